"""The members of an ensemble and their predictions on disk, those that a run lacks made first.

Runs that differ in `data.fold` alone are one member: each validation image is predicted by the network that has not
seen it, everything else by the mean of all folds' networks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp import config as configs
from comp.config import Config
from comp.data import splitting
from comp.ensembles import align, cross_fit, methods
from comp.ensembles.align import AlignedSplit
from comp.inference.options import with_overrides
from comp.results import files, prediction_files
from comp.results.predictions import Predictions
from comp.results.runs import Run
from comp.runtime.errors import RunError
from comp.runtime.progress import Progress
from comp.submission import rules
from comp.workflows import predict

SPLITS = ("val", "ood_val", "test", "suite")
SELECTIONS = ("ood_val", "val")  # what may be fitted on, the shifted one first


@dataclass(frozen=True)
class MemberRuns:
    """One member: a run, or one run for each fold.

    Attributes:
        name: the run's, or that of fold 0 and how many folds there are.
        runs: one, or those of fold 0, 1 ...
    """

    name: str
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class CollectedMembers:
    """Members with their predictions.

    Attributes:
        groups: the members.
        stored: run's folder -> split -> file of its predictions.
        splits: those that every run has; of validation, those that show the same images.
        differing: validation splits that every run has, with different images.
    """

    groups: tuple[MemberRuns, ...]
    stored: Mapping[Path, Mapping[str, Path]]
    splits: tuple[str, ...]
    differing: tuple[str, ...] = ()

    @property
    def runs(self) -> list[Run]:
        """All runs, group by group."""
        return [run for group in self.groups for run in group.runs]

    @property
    def note(self) -> str:
        """Which validation the ensemble goes without, and why; empty where it has all of its members'."""
        agreed = [split for split in SELECTIONS if split in self.splits]
        if self.differing and agreed:
            return f"{self.differing[0]} is left out: its images differ between the members; {agreed[0]} is used"
        if self.differing:
            return f"no validation score: the members were validated on different images; {self.advice} to get one"
        if not agreed:
            blind = [run.name for run in self.runs if not self.stored[run.path].keys() & set(SELECTIONS)]
            return f"no validation score: {f'{blind[0]} has' if blind else 'the members share'} no validation split"
        return ""

    @property
    def advice(self) -> str:
        """What gives the members the same validation images."""
        if len({run.config().data.split_seed for run in self.runs}) > 1:
            return "give the runs one data.split_seed"
        if any(run.config().data.folds for run in self.runs):
            return "give one run for each fold, data.fold=0, 1 ..."
        return "give the runs one data.validation and the same data"

    def sample(self, split: str) -> AlignedSplit:
        """Return a split as every member sees it."""
        parts, images = self._of_groups(split)
        return align.align_members(split, [group.name for group in self.groups], parts, images)

    def agrees(self, split: str) -> bool:
        """Return whether all members show the same images of a split."""
        return align.show_same_images(*self._of_groups(split))

    def _of_groups(self, split: str) -> tuple[list[Predictions], list[NDArray[np.str_]]]:
        pairs = [self._of_group(group, split) for group in self.groups]
        return [part for part, _ in pairs], [images for _, images in pairs]

    def _of_group(self, group: MemberRuns, split: str) -> tuple[Predictions, NDArray[np.str_]]:
        parts = [prediction_files.load(self.stored[run.path][split]) for run in group.runs]
        images = [_images(run, split, part) for run, part in zip(group.runs, parts, strict=True)]
        if len(parts) == 1:
            return parts[0], images[0]
        if split in SELECTIONS:
            return align.join_folds(parts, images)
        alike = align.align_members(split, [run.name for run in group.runs], parts, images)
        plain = methods.METHODS["mean"].plain(len(parts), len(parts[0].classes), alike.space)
        decider = cross_fit.Decider(group.runs[0].metrics().metric)
        return decider.decide(split, cross_fit.combine(plain, alike, {}), alike), images[0]


def collect_members(trained: Sequence[Run], given: Mapping[str, Any], progress: Progress) -> CollectedMembers:
    """Return runs as members, with the predictions that all of them have.

    Args:
        trained: runs that passed `demand_one_competition`.
        given: fields of `predict` (views, adaptation) in place of the members' own.
        progress: called while predictions are made.

    Raises:
        UserError: damaged runs, missing folds, or no images that all runs predict.
    """
    groups = group_folds(trained)
    stored = {run.path: _stored(run, given, progress) for run in trained}
    splits = tuple(split for split in SPLITS if all(split in paths for paths in stored.values()))
    wants = [run for run in trained if _has(run, run.config(), "suite")]
    if wants and "suite" not in splits:
        lacking = next(run for run in trained if "suite" not in stored[run.path])
        lacking.weights_path()  # where they were removed, that is why
        raise RunError(f"{lacking.path}: has no predictions of the suite, and {wants[0].path} has; leave one out")
    everything = CollectedMembers(groups, stored, splits)
    differing = tuple(split for split in SELECTIONS if split in splits and not everything.agrees(split))
    shared = replace(everything, splits=tuple(split for split in splits if split not in differing), differing=differing)
    if not shared.splits:
        raise RunError(f"{trained[0].path}: the runs share no images to combine predictions of: {shared.note}")
    return shared


def check_one_competition(trained: Sequence[Run]) -> None:
    """Refuse fewer than two runs, one that is named twice, incomplete ones, and several competitions or tasks.

    Raises:
        RunError: naming the run.
    """
    if len({run.path.resolve() for run in trained}) < max(2, len(trained)):
        raise RunError("an ensemble needs two or more runs, each named once")
    first = trained[0]
    expected = _competition_of(first)
    for run in trained[1:]:
        if (competition := _competition_of(run)) != expected:
            raise RunError(
                f"{run.path}: is of {_described(competition)}; expected {_described(expected)} as {first.path}"
            )


def _competition_of(run: Run) -> tuple[str, str, str]:
    scores = run.metrics()
    return scores.competition, scores.task, scores.metric


def _described(competition: tuple[str, str, str]) -> str:
    name, task, metric = competition
    return f"competition '{name}' (task {task}, metric {metric})"


def group_folds(trained: Sequence[Run]) -> tuple[MemberRuns, ...]:
    """Return runs as members: those that differ in `data.fold` alone are one where each fold is there once.

    Where a fold is missing or there twice, each run is a member of its own: they were validated on different images.
    """
    alike: dict[str, list[tuple[int, Run]]] = {}
    for run in trained:
        config = run.config()
        key = str(run.path)
        if config.data.folds is not None and run.has_weights():
            without = config.model_copy(update={"data": config.data.model_copy(update={"fold": 0})})
            key = configs.fingerprint(without)
        alike.setdefault(key, []).append((config.data.fold, run))
    groups = []
    for parts in alike.values():
        count = parts[0][1].config().data.folds
        ordered = sorted(parts, key=lambda part: part[0])
        if [fold for fold, _ in ordered] != list(range(count or 0)):
            groups += [MemberRuns(run.name, (run,)) for _, run in parts]
            continue
        groups.append(MemberRuns(f"{ordered[0][1].name} ({count} folds)", tuple(run for _, run in ordered)))
    return tuple(groups)


def _has(run: Run, config: Config, split: str) -> bool:
    """Return whether a run's data have such images, without opening them."""
    counts = run.provenance("images")["images"]
    competition = config.competition
    available = {
        "val": counts["val"] > 0,
        "ood_val": counts["val"] > 0 and bool(competition.ood_validation.severities),
        "test": counts["test"] > 0 and competition.suite.source != "test",
        "suite": competition.suite.source != "none",
    }
    return bool(available[split])


def _stored(run: Run, given: Mapping[str, Any], progress: Progress) -> dict[str, Path]:
    """Return the files of a run's predictions by split, those that it lacks made first."""
    if not run.has_weights():
        if any(value is not None for value in given.values()):
            raise RunError(f"{run.path}: holds no weights, so it cannot be predicted with other views or adaptation")
        paths = {split: run.predictions_path(split) for split in SPLITS}
        return {split: path for split, path in paths.items() if path.is_file()}
    config = run.config()
    variant = with_overrides(config.predict, given)
    rules.check_adaptation(config.competition.rules, variant.adapt)
    paths = {split: run.predictions_path(split + variant.suffix) for split in SPLITS if _has(run, config, split)}
    digest = files.sha256_file(run.weights_path())
    missing = [
        split
        for split, path in paths.items()
        if (prediction_files.read_made_by(path) or {}).get("weights_sha256") != digest
    ]
    if missing:
        loaded = predict.load(run, progress=progress)
        for split in missing:
            predict.predict_split(loaded, predict.images_of(loaded, split), split, progress, variant=variant)
    return paths


def _images(run: Run, split: str, predicted: Predictions) -> NDArray[np.str_]:
    """Return which image each row of a run's predictions shows; of test and suite, that is the row's own id."""
    if split != "ood_val":
        return predicted.ids
    path = run.path / "split.npz"
    cure = f"leave the run out, or {run.repair_hint}"
    found = splitting.read(path, cure)
    shown, rows = found.get("ood_val", found.get("val")), found.get("rows_ood_val")
    if shown is None:
        raise RunError(f"{path}: damaged (it lacks val); {cure}")
    if rows is not None and "ood_val" not in found:  # an ensemble's lists the images themselves
        if rows.max(initial=0) >= len(shown):
            raise RunError(f"{path}: damaged (it samples images that it does not list); {cure}")
        shown = shown[rows]
    if len(shown) < max(predicted.block_sizes, default=0):
        raise RunError(f"{path}: lists fewer validation images than were predicted; {cure}")
    return np.concatenate([shown[:size] for size in predicted.block_sizes])
