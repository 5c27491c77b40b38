"""`comp ensemble RUN...`: trained runs combined by their predictions, scored and stored like any run."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from comp import config as configs
from comp import predicting, predictions, runs
from comp.competition import submission, submitting
from comp.config import Config, PredictConfig
from comp.data.dataset import Dataset, open_dataset
from comp.ensembling import methods, table
from comp.ensembling.methods import Fitted, Task
from comp.ensembling.table import Comparison, CrossFitted
from comp.errors import ConfigError, unknown
from comp.gathering import SELECTIONS, Gathered, gather
from comp.inference import expectation
from comp.progress import Progress, quiet
from comp.runs import Run

_FOLDS = 5


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
        method: a row of `comp.ensembling.methods.METHODS`.
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
    chosen = methods.method(method, also=("soup",))
    if output is not None:
        submission.demand_free(output, force=force)
    work = gather(trained, given or {}, progress)
    split = _selection(select_on, work, learns=chosen.learns, method=method)
    config = work.runs[0].config()
    classes = work.runs[0].provenance()["classes"]
    score = table.scorer(config.competition.metric, classes)
    if split is None:
        whole, crossed, compared = chosen.plain(len(work.groups), len(classes)), None, None
    else:
        sample = work.sample(split)
        whole = chosen.fit(Task(sample.stack(), sample.labels, sample.images, score))
        count = folds or min(_FOLDS, len(np.unique(sample.images)))
        crossed = table.cross_fit(chosen, sample, count, score, progress)
        held_out = table.out_of_fold(crossed, sample, {})
        compared = table.compare(split, sample, crossed, whole, held_out, config.competition.metric)
    dataset = open_dataset(config, progress)
    result = runs.create(runs_root, _plainly(config), f"{method}-ensemble", _provenance(work, config))
    with result.writing():
        made_by = _made_by(work, result, method, whole)
        scores = _store(work, result, made_by, whole, crossed, progress)
        described = _described(work, result, config, method, split, scores)
        result.write_json("metrics.json", {**described, **({"ensemble": compared.to_json()} if compared else {})})
    if "suite" in work.splits:
        _submit(result, dataset, made_by, output, force)
    return result


def _selection(select_on: str | None, work: Gathered, *, learns: bool, method: str) -> str | None:
    """Return what is fitted on; None where there is nothing and nothing is learnt."""
    if select_on is not None and select_on not in SELECTIONS:
        raise ConfigError(f"--select-on: {unknown('split', select_on, SELECTIONS)}")
    if select_on is not None and select_on not in work.splits:
        raise ConfigError(f"--select-on {select_on}: not every run has it; see data.validation and ood_validation")
    found = select_on or next((split for split in SELECTIONS if split in work.splits), None)
    if found is None and learns:
        raise ConfigError(f"--method {method}: learns from validation, and not every run has one; take mean")
    return found


def _plainly(config: Config) -> Config:
    """Return the config that the result has: its predictions are its own plain ones, whatever the members' views."""
    return config.model_copy(update={"predict": PredictConfig(batch_size=config.predict.batch_size)})


def _provenance(work: Gathered, config: Config) -> dict[str, Any]:
    """Return where the result comes from; data and classes are the first member's."""
    first = work.runs[0].provenance()
    inherited = ("data_fingerprint", "classes", "image_shape", "images", "loading", "notes")
    return {
        **runs.describe_machine(),
        "config_hash": configs.fingerprint(_plainly(config)),
        "first_weights": "",
        **{name: first[name] for name in inherited},
        "members": [run.name for run in work.runs],
    }


def _made_by(work: Gathered, result: Run, method: str, whole: Fitted) -> dict[str, Any]:
    """Return what the result's predictions are made by: every member with its weights, views, adaptation and share."""
    told = []
    shares = whole.weights or (None,) * len(work.groups)
    for group, share in zip(work.groups, shares, strict=True):
        for run in group.runs:
            paths = work.stored[run.path]
            config = run.config()
            told.append(
                {
                    **(predictions.made_by(paths.get("suite") or next(iter(paths.values()))) or {}),
                    "run": run.name,
                    "run_path": str(run.path),
                    "config_hash": configs.fingerprint(config),
                    "seed": config.seed,
                    "weight": None if share is None else share / len(group.runs),
                }
            )
    digests = "\n".join(f"{member.get('weights_sha256')} {member['weight']}" for member in told)
    return {
        "run": result.name,
        "ensemble": method,
        "members": told,
        "weights_sha256": runs.sha256_of(f"{method}\n{digests}".encode()),
        "transductive": any(member.get("transductive") for member in told),
    }


def _store(
    work: Gathered,
    result: Run,
    made_by: Mapping[str, Any],
    whole: Fitted,
    crossed: CrossFitted | None,
    progress: Progress,
) -> dict[str, Any]:
    """Write the result's predictions, one split in memory at a time; return their scores and expectations."""
    scores: dict[str, Any] = {"val": {}, "ood_val": {}}
    images: dict[str, NDArray[np.str_]] = {}
    metric, calibration = result.config().competition.metric, None
    for split in work.splits:
        sample = work.sample(split)
        if split in SELECTIONS and crossed is not None:
            found = table.out_of_fold(crossed, sample, made_by)
        else:
            found = table.combine(whole, sample, made_by, progress)
        predictions.save(result.predictions_path(split), found)
        scores[split] = predicting.scores_of(found, metric)
        if split == "val":
            images["val"] = sample.images
        if split == "ood_val":
            images["ood_val"] = sample.images[: int(found.block_sizes[0])]
            calibration = expectation.calibrate(found)
        if split == "suite" and calibration is not None:
            scores["expected"] = {"suite": expectation.expect(found, calibration).to_json()}
    result.write("split.npz", partial(_savez, arrays={"train": np.array([], np.str_), **images}))
    return scores


def _savez(file: BinaryIO, arrays: Mapping[str, NDArray[np.str_]]) -> None:
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes its own flag for a keyword array


def _described(
    work: Gathered, result: Run, config: Config, method: str, split: str | None, scores: Mapping[str, Any]
) -> dict[str, Any]:
    """Return metrics.json: what costs time and space is the sum of the members'."""
    theirs = [run.metrics() for run in work.runs]
    best = {name: scores[name] for name in SELECTIONS if scores[name]}
    return {
        "run": result.name,
        "competition": config.competition.name,
        "metric": config.competition.metric,
        "config_hash": configs.fingerprint(result.config()),
        "model": f"{method} of {len(work.runs)} runs",
        "parameters": sum(found["parameters"] for found in theirs),
        "first_weights": "",
        "device": ", ".join(sorted({found["device"] for found in theirs})),
        "precision": ", ".join(sorted({found["precision"] for found in theirs})),
        "compiled": False,
        "selected_by": split or "",
        "epochs": 0,
        "stopped": "",
        "best_epoch": 0,
        "train_seconds": round(sum(found["train_seconds"] for found in theirs), 2),
        "test_like": sorted({name for found in theirs for name in found["test_like"]}),
        "final": {},
        "best": best,
        **{name: scores[name] for name in ("test", "suite", "expected") if scores.get(name)},
    }


def _submit(result: Run, dataset: Dataset, made_by: Mapping[str, Any], output: Path | None, force: bool) -> None:
    found = predictions.load(result.predictions_path("suite"))
    path = output or predicting.default_submission(result.config())
    trace = {
        "weights_sha256": made_by["weights_sha256"],
        "seed": [member["seed"] for member in made_by["members"]],
        "members": made_by["members"],
    }
    submitting.submit(result, found, dataset.competition, path, trace=trace, training=dataset.train.labels, force=force)


def comparison(run: Run) -> Comparison | None:
    """Return an ensemble beside its members, as its metrics.json has it; None where nothing could be compared."""
    values = run.metrics().get("ensemble")
    if not values or "members" not in values or "gain" not in values:
        return None
    rows = {name: table.Row(**values[name]) for name in ("best_single", "ensemble")}
    parts = tuple(table.Row(**row) for row in values["members"])
    return Comparison(**{**values, **rows, "members": parts})
