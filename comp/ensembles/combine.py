"""`comp ensemble RUN...`: combine the predictions of trained runs; score and store the result as a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp import config as configs
from comp.config import Config, PredictConfig
from comp.config.tasks import TASKS
from comp.data.dataset import Dataset
from comp.data.fixes import shared_fixes
from comp.ensembles import align, collect, cross_fit, methods
from comp.ensembles.align import AlignedSplit
from comp.ensembles.collect import SELECTIONS, CollectedMembers
from comp.ensembles.cross_fit import Comparison, CrossFitted, Decider
from comp.ensembles.methods import FitData, Fitted, Method, Scorer
from comp.inference import accuracy_estimate
from comp.results import decisions, files, metrics, prediction_files, runs
from comp.results.decision_fits import DeclaredShares, declared_shares
from comp.results.predictions import Predictions
from comp.results.run_metrics import AccuracyEstimate, RunMetrics, WeightScores, merged_lessons
from comp.results.runs import Run
from comp.runtime.errors import ConfigError, RunError, unknown
from comp.runtime.progress import Progress, quiet
from comp.submission import write
from comp.submission.format import Competition
from comp.submission.write import write_run_submission
from comp.workflows import plugins
from comp.workflows.load import open_run_data
from comp.workflows.predict import scores_of
from comp.workflows.score import describe_run

_FOLDS = 5


@dataclass(frozen=True)
class _Combination:
    """A method fitted on members, on the whole split and fold by fold."""

    method: str
    split: str | None  # that it was fitted and compared on; None if the members share no validation
    whole: Fitted
    crossed: CrossFitted | None  # None if `split` is
    decider: Decider

    def predict(
        self, split: str, aligned: AlignedSplit, made_by: Mapping[str, Any], progress: Progress = quiet
    ) -> Predictions:
        """Return the ensemble's predictions of a split; on validation, no row was fitted on."""
        if split in SELECTIONS and self.crossed is not None:
            combined = cross_fit.predict_out_of_fold(self.crossed, aligned, made_by)
        else:
            combined = cross_fit.combine(self.whole, aligned, made_by, progress)
        return self.decider.decide(split, combined, aligned)


def ensemble(
    trained: Sequence[Run],
    *,
    method: str = "mean",
    select_on: str | None = None,
    folds: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    name: str = "",
    runs_root: Path = Path("runs"),
    group: str = "",
    output: Path | None = None,
    force: bool = False,
    progress: Progress = quiet,
) -> Run:
    """Combine runs' predictions into a new run without weights; write its submission.

    Args:
        trained: complete runs of one competition; may include ensembles.
        method: a row of `comp.ensembles.methods.METHODS`.
        select_on: the split that weights are fitted on, `val` or `ood_val`; None: shifted validation if all have it.
        folds: number of folds for cross-fitted scores; None: 5, or the number of images if that is smaller.
        overrides: fields of `predict` (views, adaptation) that replace the members' settings.
        name: of the result's folder, after the time; empty: the method's.
        runs_root: where the result's folder is created.
        group: a folder below the competition's for it.
        output: the submission; None: a free name.
        force: replace an existing submission.
        progress: called while predictions are made and combined.

    Raises:
        UserError: unknown names, incompatible, incomplete or damaged runs, or an existing submission.
    """
    if output is not None:
        write.check_output_path(output, force=force)
    collect.check_one_competition(trained)
    for run in trained:
        plugins.load_of(run)
    first = trained[0].metrics()
    chosen = methods.method(method, TASKS[first.task])
    members = collect.collect_members(trained, overrides or {}, progress)
    split = _selection(select_on, members, learns=chosen.learns, method=method)
    score = Scorer(first.metric, trained[0].provenance("classes")["classes"], first.task)
    config = trained[0].config()
    dataset = open_run_data(trained[0], progress)
    decide = {"setting": config.predict.decide, "shares": _declared_shares(trained[0], config, dataset)}
    combination = _fit(chosen, method, split, members, score, folds, decide, progress)
    comparison = _compare(combination, members.load_split(split), first.metric) if split is not None else None
    fixes = shared_fixes(members.runs)
    learnt = combination.whole.coefficients
    stored = None if learnt is None else files.arrays_to_bytes({"coefficients": learnt})
    provenance = {
        **_provenance(members, config),
        **({"fixes": fixes.origin} if fixes else {}),
        **({"ensemble": {"sha256": files.sha256_bytes(stored)}} if stored else {}),
    }
    result = runs.create(
        runs_root,
        _plain_config(config),
        name or f"{method}-ensemble",
        provenance,
        group=group,
        fixes=fixes,
    )
    with runs.delete_on_failure(result):
        with result.write_lock():
            if stored:
                result.write("ensemble.npz", stored)
            made_by = _made_by(members, result, combination)
            scores = _store(members, result, made_by, combination, first.metric, progress)
            described = _describe(members, result, combination, dataset.competition)
            result.write_metrics(
                described.model_copy(update={**scores, "ensemble": _ensemble_json(comparison, members.note, made_by)})
            )
        if "suite" in members.splits:  # here: a run without weights cannot be submitted later
            submit(result, dataset, output, force=force)
    return result


def _ensemble_json(comparison: Comparison | None, note: str, made_by: Mapping[str, Any]) -> dict[str, Any]:
    compared = comparison.to_json() if comparison else {}
    return {**compared, **({"note": note} if note else {}), **({"pooled": True} if "pooled" in made_by else {})}


def _fit(
    method: Method,
    name: str,
    split: str | None,
    members: CollectedMembers,
    score: Scorer,
    folds: int | None,
    decide: Mapping[str, Any],
    progress: Progress,
) -> _Combination:
    """Fit a method on the members' validation; without a shared one, return a method that learns nothing.

    `decide` has the `setting` and `shares` of `comp.results.decisions.decide`.
    """
    metric, calibrated = score.metric, method.calibrated
    if split is None:
        aligned = members.load_split(members.splits[0])
        plain = method.without_data(len(members.groups), len(score.classes), aligned.space)
        decision = decisions.decide_without_validation(**decide)
        return _Combination(name, None, plain, None, Decider(metric, decision=decision, calibrated=calibrated))
    aligned = members.load_split(split)
    score = replace(score, classes=aligned.members[0].classes)
    whole = method.fit(FitData(aligned.stack(), aligned.space, aligned.targets, aligned.images, score))
    count = folds or min(_FOLDS, len(np.unique(aligned.images)))
    crossed = cross_fit.cross_fit(method, aligned, count, score, progress)
    # Decisions are fitted on clean validation, if there is one, as for a single run.
    tuned_on = "val" if "val" in members.splits else split
    tuning_split = aligned if tuned_on == split else members.load_split(tuned_on)
    answer = members.groups[0].runs[0].metrics().group_answer
    made_by = {"group_answer": answer} if answer else {}
    held_out = cross_fit.predict_out_of_fold(crossed, tuning_split, made_by)
    decider = cross_fit.fit_decider(metric, tuned_on, held_out, tuning_split.images, calibrated=calibrated, **decide)
    return _Combination(name, split, whole, crossed, decider)


def _declared_shares(first: Run, config: Config, dataset: Dataset) -> DeclaredShares | None:
    """Return the declared shares in the first member's order of the classes."""
    classes = dataset.competition.classes
    counts = dict(zip(classes, dataset.train.class_counts(len(classes)).tolist(), strict=True))
    names = first.provenance("classes")["classes"]
    return declared_shares(config.competition.test_shares, names, [counts.get(name, 0) for name in names])


def _compare(combination: _Combination, aligned: AlignedSplit, metric: str) -> Comparison:
    assert combination.split is not None
    assert combination.crossed is not None
    held_out = combination.predict(combination.split, aligned, {})
    return cross_fit.compare_with_members(
        combination.split, aligned, combination.crossed, combination.whole, held_out, metric
    )


def _selection(select_on: str | None, members: CollectedMembers, *, learns: bool, method: str) -> str | None:
    """Return the split to fit on; None if the members share no validation and the method learns nothing."""
    if select_on is not None and select_on not in SELECTIONS:
        raise ConfigError(f"--select-on: {unknown('split', select_on, SELECTIONS)}")
    if select_on is not None and select_on in members.differing:
        raise ConfigError(
            f"--select-on {select_on}: the runs were validated on different images; {members.advice}, or take --method "
            "mean without --select-on"
        )
    if select_on is not None and select_on not in members.splits:
        raise ConfigError(f"--select-on {select_on}: not every run has it; see data.validation and ood_validation")
    split = select_on or next((split for split in SELECTIONS if split in members.splits), None)
    if split is None and learns:
        reason = (
            f"the runs were validated on different images; {members.advice}"
            if members.differing
            else "not every run has one; set data.validation"
        )
        raise ConfigError(f"--method {method}: learns from validation, and {reason}, or take --method mean")
    return split


def _plain_config(config: Config) -> Config:
    """Return the result's config: its stored predictions need no views or adaptation."""
    kept = PredictConfig(batch_size=config.predict.batch_size, decide=config.predict.decide)
    return config.model_copy(update={"predict": kept})


def _provenance(members: CollectedMembers, config: Config) -> dict[str, Any]:
    """Return the result's provenance; data and classes are the first member's."""
    inherited = ("data_fingerprint", "classes", "image_shape", "images", "loading", "notes")
    first = members.runs[0].provenance(*inherited)
    return {
        **runs.describe_machine(),
        "config_hash": configs.fingerprint(_plain_config(config)),
        "first_weights": "",
        **{name: first[name] for name in (*inherited, "pixel_range", "groups") if name in first},
        "members": [{"run": run.name, "run_path": str(run.path)} for run in members.runs],
        **({"ensemble_note": members.note} if members.note else {}),
    }


def _made_by(members: CollectedMembers, result: Run, combination: _Combination) -> dict[str, Any]:
    """Return the `made_by` of the result: every member with its weights, views, adaptation and ensemble weight."""
    sources = []
    member_weights = combination.whole.weights or (None,) * len(members.groups)
    for group, weight in zip(members.groups, member_weights, strict=True):
        for run in group.runs:
            paths = members.stored[run.path]
            config = run.config()
            sources.append(
                {
                    **(prediction_files.read_made_by(paths.get("suite") or next(iter(paths.values()))) or {}),
                    "run": run.name,
                    "run_path": str(run.path),
                    "config_hash": run.config_hash(),
                    "seed": config.seed,
                    "weight": None if weight is None else weight / len(group.runs),
                }
            )
    digests = "\n".join(f"{member.get('weights_sha256')} {member['weight']}" for member in sources)
    answer = members.runs[0].metrics().group_answer
    return {
        "run": result.name,
        **({"group_answer": answer} if answer else {}),
        "ensemble": combination.method,
        "members": sources,
        "weights_sha256": files.sha256_bytes(f"{combination.method}\n{digests}".encode()),
        "transductive": any(member.get("transductive") for member in sources),
        **({"pooled": True} if any(map(_is_pooled, sources)) else {}),
    }


def _is_pooled(made_by: Mapping[str, Any]) -> bool:
    """Return whether the predictions of a run, or of a member of an ensemble, combine blocks."""
    return made_by.get("pool", "none") != "none" or "pooled" in made_by


def _store(
    members: CollectedMembers,
    result: Run,
    made_by: Mapping[str, Any],
    combination: _Combination,
    metric: str,
    progress: Progress,
) -> dict[str, Any]:
    """Write the result's predictions, one split in memory at a time; return their scores as fields of RunMetrics."""
    scores: dict[str, Any] = {}
    images: dict[str, NDArray[np.str_]] = {}
    calibration = None
    for split in members.splits:
        aligned = members.load_split(split)
        combined = combination.predict(split, aligned, made_by, progress)
        prediction_files.save(result.predictions_path(split), combined)
        scores[split] = scores_of(combined, metric)
        if split == "val":
            images["val"] = aligned.images
        if split == "ood_val":
            images["ood_val"] = aligned.images[: int(combined.block_sizes[0])]
            calibration = accuracy_estimate.calibrate(combined)
        if split == "suite" and calibration is not None and "pooled" not in made_by:
            estimate = accuracy_estimate.estimate_accuracy(combined, calibration).to_json()
            scores["expected"] = {"suite": AccuracyEstimate.model_validate(estimate)}
    files.write_arrays(result.path / "split.npz", {"train": np.array([], np.str_), **images})
    return {"best": WeightScores(val=scores.pop("val", None), ood_val=scores.pop("ood_val", None)), **scores}


def _describe(
    members: CollectedMembers, result: Run, combination: _Combination, competition: Competition
) -> RunMetrics:
    """Return the result's metrics without scores; parameters and training time are the members' sums."""
    sources = [run.metrics() for run in members.runs]
    described = describe_run(
        result,
        competition,
        "ensemble" if len(members.groups) > 1 else "fold_group",
        model=f"{combination.method} of {len(members.runs)} runs",
        parameters=sum(source.parameters for source in sources),
    )
    return described.model_copy(
        update={
            "device": ", ".join(sorted({source.device for source in sources})),
            "precision": ", ".join(sorted({source.precision for source in sources})),
            "selected_by": combination.split or "",
            "train_seconds": round(sum(source.train_seconds for source in sources), 2),
            "test_like": sorted({name for source in sources for name in source.test_like}),
            **merged_lessons(sources),
            **decisions.recorded(combination.decider.decision, sources[0].task),
        }
    )


def submit(result: Run, dataset: Dataset, output: Path | None, *, force: bool) -> Path:
    """Write an ensemble's submission in the format of the first member's current data, classes matched by name."""
    stored = prediction_files.load(result.predictions_path("suite"))
    made_by = stored.made_by
    problem = f"{dataset.competition.name}: the classes of the first member's data have changed since training"
    ordered = align.reorder_classes(stored, dataset.competition.classes, problem)
    trace = {
        "weights_sha256": made_by["weights_sha256"],
        "seed": [member["seed"] for member in made_by["members"]],
        "members": made_by["members"],
    }
    counts = dataset.train.one_per_answer().class_counts(len(dataset.competition.classes)).tolist()
    return write_run_submission(
        result, ordered, dataset.competition, output, trace=trace, training_counts=counts, force=force
    )


def read_comparison(run: Run) -> Comparison | None:
    """Return an ensemble's comparison with its members from metrics.json; None if there is none."""
    stored = run.metrics()
    values = {key: value for key, value in (stored.ensemble or {}).items() if key not in ("note", "pooled")}
    if "members" not in values or "gain" not in values:
        return None
    try:
        scores = {name: cross_fit.EnsembleRow(**values[name]) for name in ("best_single", "ensemble")}
        ensemble, single, gain = scores["ensemble"].metric, scores["best_single"].metric, None
        if ensemble is not None and single is not None:
            gain = (ensemble - single) * (1 if metrics.is_higher_better(stored) else -1)
        version_1 = {"metric": stored.metric, "metric_gain": gain, "metric_gain_error": None}
        parts = tuple(cross_fit.EnsembleRow(**row) for row in values["members"])
        return Comparison(**{**version_1, **values, **scores, "members": parts})
    except (KeyError, TypeError) as error:
        raise RunError(
            f"{run.path / 'metrics.json'}: damaged: ensemble: {error!r}; restore the file, or create the ensemble again"
        ) from None
