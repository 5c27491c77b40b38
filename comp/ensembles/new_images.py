"""`comp predict ENSEMBLE --images`: each member predicts new images, and they are combined as the ensemble was.

Nothing is fitted again: weights, coefficients and the decision are those that the ensemble recorded.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from comp.ensembles import align, collect, cross_fit, methods
from comp.ensembles.cross_fit import Decider
from comp.ensembles.methods import Fitted
from comp.ensembles.spaces import Space
from comp.inference import inputs
from comp.inference.inputs import ImageInput, Paths
from comp.inference.options import PLAIN, PredictOptions
from comp.results import decisions, files, prediction_files
from comp.results.predictions import Predictions
from comp.results.runs import Run
from comp.runtime.errors import ConfigError, RunError
from comp.runtime.progress import Progress, quiet
from comp.workflows import lineage
from comp.workflows.load import LoadedRun, load_without_data
from comp.workflows.predict import PredictResult, options_for, predict_images

Images = Paths | NDArray[np.uint8] | Callable[[LoadedRun, Progress], ImageInput]
"""See `comp.inference.inputs.PredictInput`; or a function that opens them in the shape of each member."""

_NAME = "images"
_ORIGIN = ("run", "ensemble", "weights_sha256")
_AGAIN = "make the ensemble again: comp ensemble"


def is_ensemble(run: Run) -> bool:
    """Return whether a run has no network of its own, but combines others."""
    return not run.has_weights() and "members" in run.provenance()


def refuse_own_images(run: Run) -> NoReturn:
    """Refuse to predict an ensemble's own images, which were predicted when it was made.

    Raises:
        RunError: naming its submission, and its members by their paths.
    """
    members = ", ".join(str(member.path) for member in lineage.members_of(run, "it cannot be predicted"))
    written = run.metrics().submission
    raise RunError(
        f"{run.path}: has no weights; it combines other runs"
        f"{f', and its submission is already written: {written}' if written else ''}; for other images: comp predict "
        f"{run.path} --images PATH; or predict with its members: {members}"
    )


def predict_with_members(
    run: Run,
    images: Images,
    overrides: Mapping[str, Any] | None = None,
    *,
    decide: str = "",
    device: str = "",
    progress: Progress = quiet,
) -> PredictResult:
    """Return an ensemble's predictions of any images; nothing is written.

    Args:
        run: the ensemble; the runs that it combines must be there, with the weights that they had.
        images: see `Images`.
        overrides: fields of `predict` (views, adaptation) that replace the members'; without any, they predict as when
            the ensemble was made.
        decide: value of predict.decide: the ensemble's own, or argmax; empty: its own.
        device: to predict on; empty: the training's, or the best of this machine if it lacks that.
        progress: called after every batch.

    Raises:
        ConfigError: the decision would have to be fitted, or plug-ins may not run.
        RunError: a member is missing, has other weights, or is no network.
        DataError: no such images.
    """
    scores, origin = run.metrics(), origin_of(run)
    members = lineage.members_of(run, "new images cannot be predicted")
    members = [replace(member, allow_plugins=run.allow_plugins) for member in members]
    records: Sequence[dict[str, Any]] = origin["members"]
    for member, record in zip(members, records, strict=True):
        check_weights(member, record, run)
    decision = scores.fitted_decision if _keeps_decision(run, decide) else None
    results = {
        member.path: _predict(member, record, images, overrides or {}, device, progress)
        for member, record in zip(members, records, strict=True)
    }
    groups = collect.group_folds(members)
    joined = [_join(group, [results[member.path].predictions for member in group.runs]) for group in groups]
    aligned = align.align_members(_NAME, [group.name for group in groups], joined, [part.ids for part in joined])
    fitted = fitted_method(run, origin["ensemble"], len(groups), len(joined[0].classes), aligned.space)
    predicted_by = [
        {**record, **results[member.path].predictions.made_by} for member, record in zip(members, records, strict=True)
    ]
    made_by = {**{key: origin[key] for key in _ORIGIN}, "members": predicted_by}
    made_by["transductive"] = any(record.get("transductive") for record in predicted_by)
    method = methods.METHODS[origin["ensemble"]]
    decider = Decider(scores.metric, decision=decision, calibrated=method.calibrated)
    combined = cross_fit.combine(fitted, aligned, made_by, progress)
    first = results[members[0].path]
    ranked = ("rank: the images are ranked among themselves, so predict all of them together",)
    notes = (*first.notes, *(ranked if fitted.whole_split else ()))
    return PredictResult(decider.decide(_NAME, combined, aligned), _NAME, first.competition, notes)


def origin_of(run: Run) -> dict[str, Any]:
    """Return the `made_by` of an ensemble's own predictions, which names members and method.

    Raises:
        RunError: they are missing or damaged.
    """
    stored = sorted((run.path / "predictions").glob("*.npz"))
    origin = next(filter(None, map(prediction_files.read_made_by, stored)), {})
    if not origin.get("members") or origin.get("ensemble") not in methods.METHODS:
        raise RunError(f"{run.path}: its predictions, which say how it combines its members, are missing; {_AGAIN}")
    return origin


def check_weights(member: Run, record: Mapping[str, Any], run: Run) -> None:
    """Refuse a member that is another network now than when it was combined.

    Raises:
        RunError: it has other weights, or none.
    """
    if is_ensemble(member):
        digest = origin_of(member)["weights_sha256"]
    elif member.has_weights():
        digest = files.sha256_file(member.weights_path())
    else:
        raise RunError(f"{member.path}: member of {run.path}: has no network, so it cannot predict new images")
    if digest != record.get("weights_sha256"):
        raise RunError(f"{member.path}: has other weights than when {run.path} was made; restore them, or {_AGAIN}")


def _keeps_decision(run: Run, decide: str) -> bool:
    """Return whether an ensemble's recorded decision applies, not the plain one."""
    own = run.config().predict.decide
    if decide not in ("", "argmax", own):
        raise ConfigError(
            f"--decide {decide}: {run.path} is an ensemble, whose decision is fitted when it is made; choose "
            f"{' or '.join(dict.fromkeys((own, 'argmax')))}"
        )
    return decide != "argmax" or own == decide


def _predict(
    member: Run,
    record: Mapping[str, Any],
    images: Images,
    overrides: Mapping[str, Any],
    device: str,
    progress: Progress,
) -> PredictResult:
    """Return a member's predictions as an ensemble combines them: for the classes' shares of the training."""
    if is_ensemble(member):
        result = predict_with_members(member, images, overrides, device=device, progress=progress)
    else:
        loaded = load_without_data(member, device=device)
        recorded = PredictOptions(**{name: record[name] for name in PLAIN.to_json() if name in record})
        changed = any(value is not None for value in overrides.values())
        options = options_for(loaded, overrides) if changed else recorded
        if callable(images):
            opened = images(loaded, progress)
        else:
            config = member.data_config().data
            opened = inputs.open_images(images, loaded.competition.image_shape, config, progress)
        predicted = predict_images(loaded, opened.split, progress, options=options)
        result = PredictResult(predicted, _NAME, loaded.competition, opened.notes)
    return replace(result, predictions=decisions.without_shift(result.predictions))


def _join(group: collect.MemberRuns, parts: Sequence[Predictions]) -> Predictions:
    return parts[0] if len(parts) == 1 else collect.mean_of_folds(group, _NAME, parts, [part.ids for part in parts])


def fitted_method(run: Run, name: str, members: int, classes: int, space: Space) -> Fitted:
    """Return an ensemble's method with what it had learnt.

    Raises:
        RunError: an earlier version has not recorded it.
    """
    method = methods.METHODS[name]
    if not method.learns:
        return method.without_data(members, classes, space)
    if "ensemble" in run.provenance():
        return methods.stacked(run.read_recorded("ensemble")["coefficients"])
    weights = [row.get("weight") for row in (run.metrics().ensemble or {}).get("members", ())]
    if len(weights) != members or None in weights:
        raise RunError(f"{run.path}: does not record what {name} has learnt, as an earlier version made it; {_AGAIN}")
    return methods.weighted_mean(np.array(weights, np.float64), space)
