"""Collect the members of an ensemble and their predictions; missing predictions are made first.

Runs that differ only in `data.fold` are one member: each validation image is predicted by the network that was not
trained on it, everything else by the mean of all folds' networks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp import config as configs
from comp.config import Config
from comp.data.splits import read_split
from comp.ensembles import align, cross_fit, methods
from comp.ensembles.align import AlignedSplit
from comp.inference.options import with_overrides
from comp.results import decisions, files, prediction_files
from comp.results.predictions import Predictions
from comp.results.runs import Run
from comp.runtime.errors import RunError
from comp.runtime.progress import Progress
from comp.submission import rules
from comp.workflows.load import load_run
from comp.workflows.predict import predict_split

SPLITS = ("val", "ood_val", "test", "suite")
SELECTIONS = ("ood_val", "val")  # splits to fit on, the preferred one first


@dataclass(frozen=True)
class MemberRuns:
    """One member: a run, or one run for each fold.

    Attributes:
        name: the run's, or that of fold 0 and the number of folds.
        runs: one run, or those of fold 0, 1 ...
    """

    name: str
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class CollectedMembers:
    """Members with their predictions.

    Attributes:
        groups: the members.
        stored: run folder -> split -> its predictions file.
        splits: those that every run has, with the same images.
        differing: validation splits that every run has, with different images.
    """

    groups: tuple[MemberRuns, ...]
    stored: Mapping[Path, Mapping[str, Path]]
    splits: tuple[str, ...]
    differing: tuple[str, ...] = ()

    @property
    def runs(self) -> list[Run]:
        """All runs, member by member."""
        return [run for group in self.groups for run in group.runs]

    @property
    def note(self) -> str:
        """Which validation split the ensemble does not use, and why; empty if it uses all."""
        shared = [split for split in SELECTIONS if split in self.splits]
        if self.differing and shared:
            return f"{self.differing[0]} is left out: its images differ between the members; {shared[0]} is used"
        if self.differing:
            return f"no validation score: the members were validated on different images; {self.advice} to get one"
        if not shared:
            without = [run.name for run in self.runs if not self.stored[run.path].keys() & set(SELECTIONS)]
            return f"no validation score: {f'{without[0]} has' if without else 'the members share'} no validation split"
        return ""

    @property
    def advice(self) -> str:
        """How to give the members the same validation images."""
        if len({run.config().data.split_seed for run in self.runs}) > 1:
            return "give the runs the same data.split_seed"
        if any(run.config().data.folds for run in self.runs):
            return "give one run for each fold, data.fold=0, 1 ..."
        return "give the runs the same data.validation and data"

    def load_split(self, split: str) -> AlignedSplit:
        """Load a split of all members, aligned."""
        parts, images = self._load_members(split)
        return align.align_members(split, [group.name for group in self.groups], parts, images)

    def has_same_images(self, split: str) -> bool:
        """Return whether all members have the same images in a split."""
        return align.show_same_images(*self._load_members(split))

    def _load_members(self, split: str) -> tuple[list[Predictions], list[NDArray[np.str_]]]:
        pairs = [self._load_member(group, split) for group in self.groups]
        return [part for part, _ in pairs], [images for _, images in pairs]

    def _load_member(self, group: MemberRuns, split: str) -> tuple[Predictions, NDArray[np.str_]]:
        # An ensemble shifts to declared shares of the test by itself.
        stored = [prediction_files.load(self.stored[run.path][split]) for run in group.runs]
        parts = [decisions.without_shift(part) for part in stored]
        images = [_load_images(run, split, part) for run, part in zip(group.runs, parts, strict=True)]
        if len(parts) == 1:
            return parts[0], images[0]
        if split in SELECTIONS:
            return align.join_folds(parts, images)
        return mean_of_folds(group, split, parts, images), images[0]


def mean_of_folds(
    group: MemberRuns, split: str, parts: Sequence[Predictions], images: Sequence[NDArray[np.str_]]
) -> Predictions:
    """Return the mean of a member's folds on images that none of them was trained on."""
    aligned = align.align_members(split, [run.name for run in group.runs], parts, images)
    plain = methods.METHODS["mean"].without_data(len(parts), len(parts[0].classes), aligned.space)
    decider = cross_fit.Decider(group.runs[0].metrics().metric)
    return decider.decide(split, cross_fit.combine(plain, aligned, {}), aligned)


def collect_members(trained: Sequence[Run], overrides: Mapping[str, Any], progress: Progress) -> CollectedMembers:
    """Return runs as members, with the splits that all of them have predictions of.

    Args:
        trained: runs that passed `demand_one_competition`.
        overrides: fields of `predict` (views, adaptation) that replace the members' settings.
        progress: called while predictions are made.

    Raises:
        UserError: damaged runs, missing folds, or no images that all runs predict.
    """
    groups = group_folds(trained)
    stored = {run.path: _find_predictions(run, overrides, progress) for run in trained}
    splits = tuple(split for split in SPLITS if all(split in paths for paths in stored.values()))
    with_suite = [run for run in trained if _has_images(run, run.config(), "suite")]
    if with_suite and "suite" not in splits:
        incomplete = next(run for run in trained if "suite" not in stored[run.path])
        incomplete.weights_path()  # raises if its weights were deleted
        raise RunError(
            f"{incomplete.path}: has no suite predictions, unlike {with_suite[0].path}; leave one of them out"
        )
    collected = CollectedMembers(groups, stored, splits)
    differing = tuple(split for split in SELECTIONS if split in splits and not collected.has_same_images(split))
    shared = replace(collected, splits=tuple(split for split in splits if split not in differing), differing=differing)
    if not shared.splits:
        raise RunError(f"{trained[0].path}: the runs share no images to combine predictions of: {shared.note}")
    return shared


def check_one_competition(trained: Sequence[Run]) -> None:
    """Check for at least two different, complete runs of one competition, task and metric.

    Raises:
        RunError: naming the run.
    """
    if len({run.path.resolve() for run in trained}) < max(2, len(trained)):
        raise RunError("an ensemble needs two or more runs, each named once")
    first = trained[0]
    expected = _competition_key(first)
    for run in trained[1:]:
        if (competition := _competition_key(run)) != expected:
            raise RunError(
                f"{run.path}: found {_describe(competition)}, expected {_describe(expected)} as {first.path} has"
            )


def _competition_key(run: Run) -> tuple[str, str, str, bool]:
    scores = run.metrics()
    return scores.competition, scores.task, scores.metric, bool(scores.group_answer)


def _describe(competition: tuple[str, str, str, bool]) -> str:
    name, task, metric, grouped = competition
    answers = ", one answer a group" if grouped else ""
    return f"competition '{name}' (task {task}, metric {metric}{answers})"


def group_folds(trained: Sequence[Run]) -> tuple[MemberRuns, ...]:
    """Return runs as members: runs that differ only in `data.fold` are one member if each fold occurs once.

    If a fold is missing or occurs twice, each run is its own member: they were validated on different images.
    """
    runs_by_config: dict[str, list[tuple[int, Run]]] = {}
    for run in trained:
        config = run.config()
        key = str(run.path)
        if config.data.folds is not None and run.has_weights():
            first_fold = config.model_copy(update={"data": config.data.model_copy(update={"fold": 0})})
            key = configs.fingerprint(first_fold)
        runs_by_config.setdefault(key, []).append((config.data.fold, run))
    groups = []
    for parts in runs_by_config.values():
        count = parts[0][1].config().data.folds
        ordered = sorted(parts, key=lambda part: part[0])
        if [fold for fold, _ in ordered] != list(range(count or 0)):
            groups += [MemberRuns(run.name, (run,)) for _, run in parts]
            continue
        groups.append(MemberRuns(f"{ordered[0][1].name} ({count} folds)", tuple(run for _, run in ordered)))
    return tuple(groups)


def _has_images(run: Run, config: Config, split: str) -> bool:
    """Return whether a run's data have such a split, without opening them."""
    counts = run.provenance("images")["images"]
    competition = config.competition
    available = {
        "val": counts["val"] > 0,
        "ood_val": counts["val"] > 0 and bool(competition.ood_validation.severities),
        "test": counts["test"] > 0 and competition.suite.source != "test",
        "suite": competition.suite.source != "none",
    }
    return bool(available[split])


def _find_predictions(run: Run, overrides: Mapping[str, Any], progress: Progress) -> dict[str, Path]:
    """Return a run's predictions file for each split; missing ones are made first."""
    if not run.has_weights():
        if any(value is not None for value in overrides.values()):
            raise RunError(f"{run.path}: has no weights, so its views and adaptation cannot be changed")
        paths = {split: run.predictions_path(split) for split in SPLITS}
        return {split: path for split, path in paths.items() if path.is_file()}
    config = run.config()
    options = with_overrides(config.predict, overrides)
    rules.check_options(config.competition.rules, options.to_json())
    paths = {split: run.predictions_path(split + options.suffix) for split in SPLITS if _has_images(run, config, split)}
    digest = files.sha256_file(run.weights_path())
    missing = [
        split
        for split, path in paths.items()
        if (prediction_files.read_made_by(path) or {}).get("weights_sha256") != digest
    ]
    if missing:
        loaded = load_run(run, progress=progress)
        for split in missing:
            predict_split(loaded, split, progress, options=options)
    return paths


def _load_images(run: Run, split: str, stored: Predictions) -> NDArray[np.str_]:
    """Return which image each row shows; only in shifted validation this is not the row's id."""
    if split != "ood_val":
        return stored.ids
    path = run.path / "split.npz"
    hint = f"leave the run out, or {run.repair_hint}"
    arrays = read_split(path, hint)
    images, rows = arrays.get("ood_val", arrays.get("val")), arrays.get("rows_ood_val")
    if images is None:
        raise RunError(f"{path}: damaged (it lacks val); {hint}")
    if rows is not None and "ood_val" not in arrays:  # an ensemble lists the images themselves
        if rows.max(initial=0) >= len(images):
            raise RunError(f"{path}: damaged (its sample refers to images that are not listed); {hint}")
        images = images[rows]
    if len(images) < max(stored.block_sizes, default=0):
        raise RunError(f"{path}: lists fewer validation images than the predictions have; {hint}")
    return np.concatenate([images[:size] for size in stored.block_sizes])
