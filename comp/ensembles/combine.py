"""`comp ensemble RUN...`: trained runs combined by their predictions, scored and stored like any run."""

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
from comp.ensembles import align, collect, cross_fit, methods
from comp.ensembles.align import AlignedSplit
from comp.ensembles.collect import SELECTIONS, CollectedMembers
from comp.ensembles.cross_fit import Comparison, CrossFitted, Decider
from comp.ensembles.methods import FitData, Fitted, Method, Scorer
from comp.inference import accuracy_estimate
from comp.results import files, metrics, prediction_files, runs
from comp.results.predictions import Predictions
from comp.results.run_metrics import AccuracyEstimate, RunMetrics, WeightScores
from comp.results.runs import Run
from comp.runtime.errors import ConfigError, unknown
from comp.runtime.progress import Progress, quiet
from comp.submission import submitting, write
from comp.submission.format import Competition
from comp.workflows import predict, train

_FOLDS = 5


@dataclass(frozen=True)
class _Combination:
    """A method fitted on members.

    Attributes:
        method: its name.
        split: what it was fitted and compared on; None where the members share no validation.
        whole: fitted on all of that.
        crossed: fitted fold by fold; None likewise.
        decider: which thresholds decide.
    """

    method: str
    split: str | None
    whole: Fitted
    crossed: CrossFitted | None
    decider: Decider

    def of(
        self, split: str, sample: AlignedSplit, made_by: Mapping[str, Any], progress: Progress = quiet
    ) -> Predictions:
        """Return the ensemble's predictions of a split, of validation those that are not fitted on their own rows."""
        if split in SELECTIONS and self.crossed is not None:
            combined = cross_fit.predict_out_of_fold(self.crossed, sample, made_by)
        else:
            combined = cross_fit.combine(self.whole, sample, made_by, progress)
        return self.decider.decide(split, combined, sample)


def ensemble(
    trained: Sequence[Run],
    *,
    method: str = "mean",
    select_on: str | None = None,
    folds: int | None = None,
    given: Mapping[str, Any] | None = None,
    runs_root: Path = Path("runs"),
    output: Path | None = None,
    force: bool = False,
    progress: Progress = quiet,
) -> Run:
    """Combine runs' predictions; return the result, a run without weights, its submission written.

    Args:
        trained: complete runs of one competition, ensembles among them.
        method: a row of `comp.ensembles.methods.METHODS`.
        select_on: `val` or `ood_val`, what weights are fitted on; None: shifted validation where all have it.
        folds: into which the images of that are cut for scores that are not fitted on what they score; None: 5, or as
            many as there are images.
        given: fields of `predict` (views, adaptation) in place of the members' own.
        runs_root: where the result is made.
        output: the submission; None: a free name.
        force: replace that.
        progress: called while predictions are made and combined.

    Raises:
        UserError: unknown names, runs that are not alike, not complete or damaged, a submission that is there already.
    """
    if output is not None:
        write.demand_free(output, force=force)
    collect.check_one_competition(trained)
    first = trained[0].metrics()
    chosen = methods.method(method, TASKS[first.task])
    work = collect.collect_members(trained, given or {}, progress)
    split = _selection(select_on, work, learns=chosen.learns, method=method)
    score = Scorer(first.metric, trained[0].provenance("classes")["classes"], first.task)
    combination = _fit(chosen, method, split, work, score, folds, progress)
    compared = _compare(combination, work.sample(split), first.metric) if split is not None else None
    config = trained[0].config()
    dataset = predict.opened_data(trained[0], progress)
    result = runs.create(runs_root, _plainly(config), f"{method}-ensemble", _provenance(work, config))
    with runs.delete_on_failure(result):
        with result.write_lock():
            made_by = _made_by(work, result, combination)
            scores = _store(work, result, made_by, combination, first.metric, progress)
            described = _described(work, result, combination, dataset.competition)
            result.write_metrics(described.model_copy(update={**scores, "ensemble": _noted(compared, work.note)}))
        if "suite" in work.splits:  # within: nothing could write the submission of a run without weights later
            _submit(result, dataset, made_by, output, force)
    return result


def _noted(compared: Comparison | None, note: str) -> dict[str, Any]:
    return {**(compared.to_json() if compared else {}), **({"note": note} if note else {})}


def _fit(
    method: Method,
    name: str,
    split: str | None,
    work: CollectedMembers,
    score: Scorer,
    folds: int | None,
    progress: Progress,
) -> _Combination:
    """Return a method fitted on the members' validation, or one that learns nothing where they share none."""
    metric, calibrated = score.metric, method.calibrated
    if split is None:
        sample = work.sample(work.splits[0])
        plain = method.plain(len(work.groups), len(score.classes), sample.space)
        return _Combination(name, None, plain, None, Decider(metric, calibrated=calibrated))
    sample = work.sample(split)
    score = replace(score, classes=sample.members[0].classes)
    whole = method.fit(FitData(sample.stack(), sample.space, sample.targets, sample.images, score))
    count = folds or min(_FOLDS, len(np.unique(sample.images)))
    crossed = cross_fit.cross_fit(method, sample, count, score, progress)
    # Clean validation tunes the thresholds where there is any, as it does for a single run.
    tuned_on = "val" if "val" in work.splits else split
    held_out = cross_fit.predict_out_of_fold(crossed, sample if tuned_on == split else work.sample(tuned_on), {})
    return _Combination(
        name, split, whole, crossed, cross_fit.tune_decider(metric, tuned_on, held_out, calibrated=calibrated)
    )


def _compare(combination: _Combination, sample: AlignedSplit, metric: str) -> Comparison:
    assert combination.split is not None
    assert combination.crossed is not None
    held_out = combination.of(combination.split, sample, {})
    return cross_fit.compare_with_members(
        combination.split, sample, combination.crossed, combination.whole, held_out, metric
    )


def _selection(select_on: str | None, work: CollectedMembers, *, learns: bool, method: str) -> str | None:
    """Return what is fitted on; None where the members share no validation and nothing is learnt."""
    if select_on is not None and select_on not in SELECTIONS:
        raise ConfigError(f"--select-on: {unknown('split', select_on, SELECTIONS)}")
    if select_on is not None and select_on in work.differing:
        raise ConfigError(
            f"--select-on {select_on}: the runs were validated on different images; {work.advice}, or take --method "
            "mean without --select-on"
        )
    if select_on is not None and select_on not in work.splits:
        raise ConfigError(f"--select-on {select_on}: not every run has it; see data.validation and ood_validation")
    split = select_on or next((split for split in SELECTIONS if split in work.splits), None)
    if split is None and learns:
        reason = (
            f"the runs were validated on different images; {work.advice}"
            if work.differing
            else "not every run has one; set data.validation"
        )
        raise ConfigError(f"--method {method}: learns from validation, and {reason}, or take --method mean")
    return split


def _plainly(config: Config) -> Config:
    """Return the config that the result has: its predictions are its own plain ones, whatever the members' views."""
    return config.model_copy(update={"predict": PredictConfig(batch_size=config.predict.batch_size)})


def _provenance(work: CollectedMembers, config: Config) -> dict[str, Any]:
    """Return where the result comes from; data and classes are the first member's."""
    inherited = ("data_fingerprint", "classes", "image_shape", "images", "loading", "notes")
    first = work.runs[0].provenance(*inherited)
    return {
        **runs.describe_machine(),
        "config_hash": configs.fingerprint(_plainly(config)),
        "first_weights": "",
        **{name: first[name] for name in (*inherited, "pixel_range") if name in first},
        "members": [run.name for run in work.runs],
        **({"ensemble_note": work.note} if work.note else {}),
    }


def _made_by(work: CollectedMembers, result: Run, combination: _Combination) -> dict[str, Any]:
    """Return what the result's predictions are made by: every member with its weights, views, adaptation and share."""
    sources = []
    shares = combination.whole.weights or (None,) * len(work.groups)
    for group, share in zip(work.groups, shares, strict=True):
        for run in group.runs:
            paths = work.stored[run.path]
            config = run.config()
            sources.append(
                {
                    **(prediction_files.read_made_by(paths.get("suite") or next(iter(paths.values()))) or {}),
                    "run": run.name,
                    "run_path": str(run.path),
                    "config_hash": run.config_hash(),
                    "seed": config.seed,
                    "weight": None if share is None else share / len(group.runs),
                }
            )
    digests = "\n".join(f"{member.get('weights_sha256')} {member['weight']}" for member in sources)
    return {
        "run": result.name,
        "ensemble": combination.method,
        "members": sources,
        "weights_sha256": files.sha256_bytes(f"{combination.method}\n{digests}".encode()),
        "transductive": any(member.get("transductive") for member in sources),
    }


def _store(
    work: CollectedMembers,
    result: Run,
    made_by: Mapping[str, Any],
    combination: _Combination,
    metric: str,
    progress: Progress,
) -> dict[str, Any]:
    """Write the result's predictions, one split in memory at a time; return their scores as RunMetrics has them."""
    scores: dict[str, Any] = {}
    images: dict[str, NDArray[np.str_]] = {}
    calibration = None
    for split in work.splits:
        sample = work.sample(split)
        combined = combination.of(split, sample, made_by, progress)
        prediction_files.save(result.predictions_path(split), combined)
        scores[split] = predict.scores_of(combined, metric)
        if split == "val":
            images["val"] = sample.images
        if split == "ood_val":
            images["ood_val"] = sample.images[: int(combined.block_sizes[0])]
            calibration = accuracy_estimate.calibrate(combined)
        if split == "suite" and calibration is not None:
            estimate = accuracy_estimate.estimate_accuracy(combined, calibration).to_json()
            scores["expected"] = {"suite": AccuracyEstimate.model_validate(estimate)}
    files.write_arrays(result.path / "split.npz", {"train": np.array([], np.str_), **images})
    return {"best": WeightScores(val=scores.pop("val", None), ood_val=scores.pop("ood_val", None)), **scores}


def _described(work: CollectedMembers, result: Run, combination: _Combination, competition: Competition) -> RunMetrics:
    """Return the metrics of the result before its scores: what costs time and space is the sum of the members'."""
    sources = [run.metrics() for run in work.runs]
    described = train.describe(
        result, competition, "ensemble" if len(work.groups) > 1 else "fold_group",
        model=f"{combination.method} of {len(work.runs)} runs", parameters=sum(source.parameters for source in sources),
    )  # fmt: skip
    thresholds = combination.decider.thresholds
    return described.model_copy(
        update={
            "device": ", ".join(sorted({source.device for source in sources})),
            "precision": ", ".join(sorted({source.precision for source in sources})),
            "selected_by": combination.split or "",
            "train_seconds": round(sum(source.train_seconds for source in sources), 2),
            "test_like": sorted({name for source in sources for name in source.test_like}),
            "thresholds": [] if thresholds is None else thresholds.tolist(),
        }
    )


def _submit(result: Run, dataset: Dataset, made_by: Mapping[str, Any], output: Path | None, force: bool) -> None:
    """Write the submission in the format of the first member's data as they are now, classes matched by name."""
    stored = prediction_files.load(result.predictions_path("suite"))
    problem = f"{dataset.competition.name}: the first member's data have other classes now than it was trained on"
    ordered = align.reorder_classes(stored, dataset.competition.classes, problem)
    path = output or predict.default_submission(result.config())
    trace = {
        "weights_sha256": made_by["weights_sha256"],
        "seed": [member["seed"] for member in made_by["members"]],
        "members": made_by["members"],
    }
    counts = dataset.train.class_counts(len(dataset.competition.classes)).tolist()
    submitting.submit(result, ordered, dataset.competition, path, trace=trace, training_counts=counts, force=force)


def read_comparison(run: Run) -> Comparison | None:
    """Return an ensemble beside its members, as its metrics.json has it; None where nothing could be compared."""
    stored = run.metrics()
    values = {key: value for key, value in (stored.ensemble or {}).items() if key != "note"}
    if "members" not in values or "gain" not in values:
        return None
    rows = {name: cross_fit.EnsembleRow(**values[name]) for name in ("best_single", "ensemble")}
    gained = metrics.metric(stored.metric).as_maximize(rows["ensemble"].metric - rows["best_single"].metric)
    version_1 = {"metric": stored.metric, "metric_gain": gained, "metric_gain_error": None}
    parts = tuple(cross_fit.EnsembleRow(**row) for row in values["members"])
    return Comparison(**{**version_1, **values, **rows, "members": parts})
