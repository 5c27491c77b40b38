"""The members of an ensemble and their predictions on disk, those that a run lacks made first.

Runs that differ in `data.fold` alone are one member: each validation image is predicted by the network that has not
seen it, everything else by the mean of all folds' networks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp import config as configs
from comp import predicting, predictions, runs
from comp.competition import rules
from comp.config import Config
from comp.ensembling import members, methods, table
from comp.ensembling.members import Sample
from comp.errors import RunError
from comp.inference.variants import laid_on
from comp.predictions import Predictions
from comp.progress import Progress
from comp.runs import Run

SPLITS = ("val", "ood_val", "test", "suite")
SELECTIONS = ("ood_val", "val")  # what may be fitted on, the shifted one first


@dataclass(frozen=True)
class Group:
    """One member: a run, or one run for each fold.

    Attributes:
        name: the run's, or that of fold 0 and how many folds there are.
        runs: one, or those of fold 0, 1 ...
    """

    name: str
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Gathered:
    """Members with their predictions.

    Attributes:
        groups: the members.
        stored: run's folder -> split -> file of its predictions.
        splits: those that every run has.
    """

    groups: tuple[Group, ...]
    stored: Mapping[Path, Mapping[str, Path]]
    splits: tuple[str, ...]

    @property
    def runs(self) -> list[Run]:
        """All runs, group by group."""
        return [run for group in self.groups for run in group.runs]

    def sample(self, split: str) -> Sample:
        """Return a split as every member sees it."""
        found = [self._of_group(group, split) for group in self.groups]
        names = [group.name for group in self.groups]
        return members.sample(split, names, [part for part, _ in found], [images for _, images in found])

    def _of_group(self, group: Group, split: str) -> tuple[Predictions, NDArray[np.str_]]:
        parts = [predictions.load(self.stored[run.path][split]) for run in group.runs]
        images = [_images(run, split, part) for run, part in zip(group.runs, parts, strict=True)]
        if len(parts) == 1:
            return parts[0], images[0]
        if split in SELECTIONS:
            return members.join_folds(parts, images)
        alike = members.sample(split, [run.name for run in group.runs], parts, images)
        return table.combine(methods.METHODS["mean"].plain(len(parts), len(parts[0].classes)), alike, {}), images[0]


def gather(trained: Sequence[Run], given: Mapping[str, Any], progress: Progress) -> Gathered:
    """Return runs as members, with the predictions that all of them have.

    Args:
        trained: complete runs of one competition.
        given: fields of `predict` (views, adaptation) in place of the members' own.
        progress: called while predictions are made.

    Raises:
        UserError: runs that are not of one competition, not complete or damaged, or folds that are missing.
    """
    demand_one_competition(trained)
    groups = grouped(trained)
    stored = {run.path: _stored(run, given, progress) for run in trained}
    splits = tuple(split for split in SPLITS if all(split in paths for paths in stored.values()))
    wants = [run for run in trained if _has(run, run.config(), "suite")]
    if wants and "suite" not in splits:
        lacking = next(run for run in trained if "suite" not in stored[run.path])
        raise RunError(f"{lacking.path}: has no predictions of the suite, and {wants[0].path} has; leave one out")
    return Gathered(groups, stored, splits)


def demand_one_competition(trained: Sequence[Run]) -> None:
    """Refuse fewer than two runs, one that is named twice, and runs of several competitions.

    Raises:
        RunError: naming the run.
    """
    if len({run.path.resolve() for run in trained}) < max(2, len(trained)):
        raise RunError("an ensemble needs two or more runs, each named once")
    first = trained[0]
    first.metrics()
    for run in trained[1:]:
        run.metrics()
        mine, theirs = first.config().competition, run.config().competition
        if (mine.name, mine.metric) != (theirs.name, theirs.metric):
            raise RunError(
                f"{run.path}: is of competition '{theirs.name}' ({theirs.metric}), expected '{mine.name}' "
                f"({mine.metric}) as {first.path}"
            )


def grouped(trained: Sequence[Run]) -> tuple[Group, ...]:
    """Return runs as members: those that differ in `data.fold` alone, and are of several folds, are one.

    Raises:
        RunError: a fold is missing or there twice.
    """
    alike: dict[str, list[tuple[int, Run]]] = {}
    for run in trained:
        config = run.config()
        key = str(run.path)
        if config.data.folds is not None and run.has_weights():
            without = config.model_copy(update={"data": config.data.model_copy(update={"fold": 0})})
            key = configs.fingerprint(without)
        alike.setdefault(key, []).append((config.data.fold, run))
    found = []
    for parts in alike.values():
        if len({fold for fold, _ in parts}) == 1:
            found += [Group(run.name, (run,)) for _, run in parts]
            continue
        wanted = parts[0][1].config().data.folds
        ordered = sorted(parts, key=lambda part: part[0])
        if [fold for fold, _ in ordered] != list(range(wanted or 0)):
            raise RunError(
                f"{ordered[0][1].path}: one of {wanted} folds, and those given are {[fold for fold, _ in ordered]}; "
                "give one run for each fold, data.fold=0, 1 ..., or runs of a single one"
            )
        found.append(Group(f"{ordered[0][1].name} ({wanted} folds)", tuple(run for _, run in ordered)))
    return tuple(found)


def _has(run: Run, config: Config, split: str) -> bool:
    """Tell whether a run's data have such images, without opening them."""
    counts = run.provenance()["images"]
    wanted = config.competition
    there = {
        "val": counts["val"] > 0,
        "ood_val": counts["val"] > 0 and bool(wanted.ood_validation.severities),
        "test": counts["test"] > 0 and wanted.suite.source != "test",
        "suite": wanted.suite.source != "none",
    }
    return bool(there[split])


def _stored(run: Run, given: Mapping[str, Any], progress: Progress) -> dict[str, Path]:
    """Return the files of a run's predictions by split, those that it lacks made first."""
    if not run.has_weights():
        if any(value is not None for value in given.values()):
            raise RunError(f"{run.path}: holds no weights, so it cannot be predicted with other views or adaptation")
        paths = {split: run.predictions_path(split) for split in SPLITS}
        return {split: path for split, path in paths.items() if path.is_file()}
    config = run.config()
    variant = laid_on(config.predict, given)
    rules.check_adaptation(config.competition.rules, variant.adapt)
    paths = {split: run.predictions_path(split + variant.suffix) for split in SPLITS if _has(run, config, split)}
    digest = runs.sha256(run.weights_path())
    missing = [
        split for split, path in paths.items() if (predictions.made_by(path) or {}).get("weights_sha256") != digest
    ]
    if missing:
        loaded = predicting.load(run, progress=progress)
        for split in missing:
            predicting.predict_split(loaded, predicting.images_of(loaded, split), split, progress, variant=variant)
    return paths


def _images(run: Run, split: str, found: Predictions) -> NDArray[np.str_]:
    """Return which image each row of a run's predictions shows; of test and suite, that is the row's own id."""
    if split != "ood_val":
        return found.ids
    path = run.path / "split.npz"
    try:
        with np.load(path, allow_pickle=False) as archive:
            shown = archive["ood_val"] if "ood_val" in archive.files else archive["val"]
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise RunError(f"{path}: missing or damaged ({error}); leave the run out") from None
    if len(shown) < max(found.block_sizes, default=0):
        raise RunError(f"{path}: tells of fewer validation images than were predicted; leave the run out")
    return np.concatenate([shown[:size] for size in found.block_sizes])
