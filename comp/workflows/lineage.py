"""The runs that another learns from (`train.teacher`, `data.pseudo`, `model.from_run`), and what they have seen.

A teacher that has trained on an image knows its label: one that saw validation images would tell them to its student,
whose score would then be too high. So each run's split.npz, and that of every run it learned from, is compared with
this run's validation images before training.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from comp.config import Config
from comp.config.tasks import TASKS
from comp.data import pseudo, splits
from comp.data.dataset import Dataset
from comp.data.sources import Source, open_source
from comp.data.splits import Split, Suite
from comp.results import files, prediction_files, runs
from comp.results.runs import Run
from comp.runtime.errors import ConfigError, RunError, UserError
from comp.runtime.progress import Progress, quiet
from comp.workflows import plugins

TEACHER, PSEUDO, WEIGHTS = "train.teacher.runs", "data.pseudo.run", "model.from_run"
FILES = {TEACHER: "teacher", PSEUDO: "pseudo"}  # a key -> its record in provenance.json, and its .npz
_UNKNOWN = "nothing shows what that was trained on"


class Ancestor(NamedTuple):
    """A run that another learned from, or that run itself.

    Attributes:
        run: with a split.npz of its own.
        other_data: whether it may have learned from other data: it gave its weights to a run of another competition.
    """

    run: Run
    other_data: bool = False


def named_paths(config: Config) -> dict[str, tuple[str, ...]]:
    """Return the paths that each of the two keys names, without empty ones."""
    pseudo = config.data.pseudo.run
    paths = {TEACHER: config.train.teacher.runs, PSEUDO: (pseudo,) if pseudo else ()}
    return {key: named for key, named in paths.items() if named}


def check_named(config: Config) -> None:
    """Check that teachers and the run of pseudo-labels are complete runs or folders of them; needs no data.

    Raises:
        ConfigError: naming the key and the path.
    """
    for key, paths in named_paths(config).items():
        for path in paths:
            if inside := _folder_of_runs(path):
                if not any(_can_teach(run) for run in inside):
                    raise ConfigError(f"{key}: {path}: expected a complete run with weights in this folder, found none")
                continue
            try:
                run = runs.open_run(Path(path))
                run.metrics()
                for leaf in _leaves(run):
                    leaf.weights_path()
            except RunError as error:
                raise ConfigError(f"{key}: {error}") from None


def check_teachers(config: Config, dataset: Dataset, progress: Progress = quiet) -> dict[str, list[Run]]:
    """Check all that a new training learns from; return the networks that its keys name, see `networks`.

    Teachers must know this task and classes. None of them, and no run that gives the first weights, may have seen
    images that this run holds out, or bring in what the rules forbid.

    Raises:
        ConfigError: labels that are numbers, a run (see `networks`), its plug-ins without consent, or no images for
            pseudo-labels.
    """
    _check_first_weights(config, dataset, progress)
    if TASKS[dataset.competition.task].numeric:
        for key in named_paths(config):
            raise ConfigError(f"{key}: needs classes with probabilities, and the labels are numbers; leave it out")
    if config.data.pseudo.run:
        pseudo.candidates(dataset, config.data.pseudo.images)
    chosen = {key: networks(key, config, dataset, progress) for key in named_paths(config)}
    for key, members in chosen.items():
        for network in members:
            scores, classes = network.metrics(), network.provenance("classes")["classes"]
            if scores.task != dataset.competition.task or sorted(classes) != sorted(dataset.competition.classes):
                raise ConfigError(
                    f"{key}: {network.path} predicts {len(classes)} classes of task {scores.task}, expected the "
                    f"{len(dataset.competition.classes)} of task {dataset.competition.task} of this run"
                )
            _check_rules(key, config, Ancestor(network))
            try:
                plugins.check_consent(network)
            except UserError as error:
                raise ConfigError(f"{key}: {error}") from None
    return chosen


def _check_first_weights(config: Config, dataset: Dataset, progress: Progress) -> None:
    """Check the run that gives the first weights; one of another competition has seen no image of this one.

    Raises:
        ConfigError: see `check_teachers`.
    """
    if not config.model.from_run:
        return
    source = runs.open_run(Path(config.model.from_run))
    first = Ancestor(source, source.config().competition.name != config.competition.name)
    try:
        leak = _find_leak(first, config, dataset, progress)
    except UserError as error:
        raise ConfigError(f"{WEIGHTS}: {error}") from None
    if leak:
        raise ConfigError(f"{WEIGHTS}: {leak}; {_way_out(config, [])}")
    _check_rules(WEIGHTS, config, first)


def networks(key: str, config: Config, dataset: Dataset, progress: Progress = quiet) -> list[Run]:
    """Return the runs with weights that a key names: each once, ensembles as their members, none of which saw images
    that this run holds out.

    Raises:
        ConfigError: naming the run, and the images that it has seen; or it is damaged, or nothing shows what it saw.
    """
    chosen: list[Run] = []
    for path in named_paths(config)[key]:
        if inside := _folder_of_runs(path):
            leaks = {run.path: _why_not(run, config, dataset, progress) for run in inside if _can_teach(run)}
            if all(leaks.values()):
                reason = next(iter(leaks.values()))
                raise ConfigError(f"{key}: {path}: no run here can teach this one: {reason}; {_way_out(config, [])}")
        else:
            try:
                leaves = _leaves(Run(Path(path)))
                leaks = {leaf.path: _find_leak(Ancestor(leaf), config, dataset, progress) for leaf in leaves}
            except UserError as error:
                raise ConfigError(f"{key}: {error}") from None
            if leak := next(filter(None, leaks.values()), ""):
                clean = [str(other) for other in leaks if not leaks[other]]
                raise ConfigError(f"{key}: {leak}; {_way_out(config, clean)}")
        chosen += [Run(path) for path, leak in leaks.items() if not leak]
    return list({run.path.resolve(): run for run in chosen}.values())


def as_read_by(
    run: Run, config: Config, dataset: Dataset, parts: Sequence[Split | Suite], progress: Progress
) -> list[Split | Suite]:
    """Return images of this run's data as another run reads them: of its size and resizing, matched by id.

    Raises:
        ConfigError: they cannot be opened like that.
    """
    source = _verify_data(run, config, dataset, progress)
    if source is None or source.train.image_shape == dataset.competition.image_shape:
        return list(parts)
    return [_resized(run, source, dataset, images) for images in parts]


def _resized(run: Run, source: Source, dataset: Dataset, images: Split | Suite) -> Split:
    if isinstance(images, Split):
        ids = images.ids.tolist()
        for pool in (source.train, source.test) if images.name == "train" else (source.test, source.train):
            row_of = {name: row for row, name in enumerate(pool.ids.tolist())} if pool is not None else {}
            if pool is not None and row_of.keys() >= set(ids):
                return pool.take(np.array([row_of[name] for name in ids]), images.name)
    raise ConfigError(
        f"{run.path}: takes images of {source.train.image_shape}, and {images.name} cannot be opened in that size; use "
        f"runs with images of {dataset.competition.image_shape}"
    )


def _folder_of_runs(path: str) -> list[Run]:
    """Return the runs in a folder; none if it is a run itself, or holds none."""
    return [] if (Path(path) / "provenance.json").is_file() else runs.list_runs(Path(path))


def _can_teach(run: Run) -> bool:
    return run.is_complete() and run.has_weights()


def _way_out(config: Config, clean: list[str]) -> str:
    if clean:
        return f"name the runs that held them out instead: {', '.join(clean)}"
    fold = f" (data.fold={config.data.fold})" if config.data.folds else ""
    return f"name runs of the same fold{fold}, or with the same data.validation, and the same data.split_seed"


def _why_not(
    run: Run, config: Config, dataset: Dataset, progress: Progress, held: Mapping[str, NDArray[np.str_]] | None = None
) -> str:
    """Return why a run cannot teach this one; empty if it can. For `held` see `_find_leak`."""
    try:
        return _find_leak(Ancestor(run), config, dataset, progress, held)
    except UserError as error:
        return str(error)


def _leaves(run: Run) -> list[Run]:
    """Return a run with weights itself, and an ensemble as its members' leaves."""
    if run.has_weights() or "members" not in run.provenance():
        return [run]
    return [leaf for member in members_of(run) for leaf in _leaves(member)]


def members_of(run: Run, lost: str = _UNKNOWN) -> list[Run]:
    """Return the runs that an ensemble or a soup combines; the paths of an ensemble's are in its predictions.

    Args:
        run: an ensemble or a soup.
        lost: what cannot be without a missing one, for the message.

    Raises:
        RunError: one is missing.
    """
    members = run.provenance()["members"]
    if members and isinstance(members[0], str):
        stored = sorted((run.path / "predictions").glob("*.npz"))
        made_by = next(filter(None, map(prediction_files.read_made_by, stored)), {})
        paths = {member["run"]: member["run_path"] for member in made_by.get("members", ())}
        members = [{"run": name, "run_path": paths.get(name, name)} for name in members]
    return [_relative(run, member["run_path"], lost) for member in members]


def _relative(run: Run, path: str, lost: str = _UNKNOWN) -> Run:
    """Return a run that another one records by its path, which may have moved together with that one.

    Raises:
        RunError: it is gone.
    """
    if (found := run.beside(Path(path))) is not None:
        return found
    raise RunError(f"{run.path}: was made from {path}, which is missing, so {lost}; put it back, or choose another run")


def consent(config: Config) -> None:
    """Allow the plug-ins of all runs that teach a config, for this command and its processes.

    A run that is missing or damaged is passed over: the checks say so.
    """
    for path in [path for paths in named_paths(config).values() for path in paths]:
        with contextlib.suppress(UserError):
            for run in _networks_at([path]):
                plugins.allow(run)


def is_taught_alike(run: Run, config: Config, dataset: Dataset, progress: Progress = quiet) -> bool:
    """Return whether a run of a config has the teachers that a new one would have: as many, with the same weights.

    Of a folder of runs these are those that may teach it now. A run beside this one, such as another fold, or one that
    learned from such a run, is no difference: each repetition would add one.
    """
    named = named_paths(config)
    if not named or not (run.path / "split.npz").is_file():  # stopped before it had learned anything
        return True
    arrays = splits.read_split(run.path / "split.npz", f"remove {run.path} to train it again")
    held = {**_held_out(dataset), "validation": arrays.get("val", np.array([], np.str_))}
    for key, paths in named.items():
        before = sorted(record["weights_sha256"] for record in run.provenance().get(FILES[key], {}).get("runs", []))
        inside = {candidate.path.resolve() for path in paths for candidate in _folder_of_runs(path)}
        now = {one.path.resolve(): files.sha256_file(one.weights_path()) for one in _networks_at(paths)}
        new = [Run(path) for path, digest in now.items() if path in inside and digest not in before]
        others = {one.path for one in new if _is_beside(one, run) or _why_not(one, config, dataset, progress, held)}
        if sorted(digest for path, digest in now.items() if path not in others) != before:
            return False
    return True


def _is_beside(candidate: Run, run: Run) -> bool:
    """Return whether a run, or one that it learned from, lies beside another; True where its lineage is damaged."""
    try:
        return any(one.run.path.resolve().parent == run.path.resolve().parent for one in _lineage(Ancestor(candidate)))
    except UserError:
        return True


def _networks_at(paths: Sequence[str]) -> list[Run]:
    """Return the runs with weights at some paths, whether they may teach or not."""
    return [
        leaf
        for path in paths
        for run in (list(filter(_can_teach, _folder_of_runs(path))) or [Run(Path(path))])
        for leaf in _leaves(run)
    ]


def _lineage(first: Ancestor) -> Iterator[Ancestor]:
    """Yield a run with weights and all runs that it learned from, each once."""
    waiting, seen = [first], set[Path]()
    while waiting:
        ancestor = waiting.pop()
        run = ancestor.run
        if run.path.resolve() in seen:
            continue
        seen.add(run.path.resolve())
        yield ancestor
        config, provenance = run.config(), run.provenance()
        try:
            paths = [
                record["path"] for name in FILES.values() if name in provenance for record in provenance[name]["runs"]
            ]
        except (KeyError, TypeError):
            raise RunError(
                f"{run.path / 'provenance.json'}: damaged: it does not say which runs taught this one; restore the "
                "file, or choose another run"
            ) from None
        waiting += [Ancestor(_relative(run, path), ancestor.other_data) for path in paths]
        if "members" in provenance:
            waiting += [Ancestor(member, ancestor.other_data) for member in members_of(run)]
        if config.model.from_run:
            source = _relative(run, config.model.from_run)
            other = source.config().competition.name != config.competition.name
            waiting.append(Ancestor(source, ancestor.other_data or other))


def _held_out(dataset: Dataset) -> dict[str, NDArray[np.str_]]:
    """Return the ids of the images that a run holds out, by what they are for."""
    splits = {"validation": dataset.val, "test": dataset.test if dataset.test_is_cut else None}
    return {name: split.ids for name, split in splits.items() if split is not None}


def _find_leak(
    first: Ancestor,
    config: Config,
    dataset: Dataset,
    progress: Progress,
    held: Mapping[str, NDArray[np.str_]] | None = None,
) -> str:
    """Return which run of a lineage was trained on how many held-out images; empty if none was.

    `held` are the ids of the held-out images; None: those of the data.

    Raises:
        ConfigError: a run's data differ, so that its split.npz cannot be compared.
        RunError: a run has no split.npz.
    """
    held = _held_out(dataset) if held is None else held
    if not any(map(len, held.values())):
        return ""
    for ancestor in _lineage(first):
        try:
            _verify_data(ancestor.run, config, dataset, progress)
        except ConfigError:
            if ancestor.other_data:
                continue
            raise
        seen = trained_on(ancestor.run)
        through = "" if ancestor.run.path == first.run.path else f" learned from {ancestor.run.path}, which"
        subject = f"{first.run.path}{through} was trained on"
        for name, ids in held.items():
            if count := int(np.isin(ids, seen).sum()):
                return f"{subject} {count:,} of the {len(ids):,} {name} images of this run"
    return ""


def trained_on(run: Run) -> NDArray[np.str_]:
    """Return the ids of a run's training images."""
    cure = "nothing shows which images it was trained on: choose another run"
    arrays: Mapping[str, NDArray[Any]] = splits.read_split(run.path / "split.npz", cure)
    if len(arrays.get("train", ())) != (count := run.provenance("images")["images"]["train"]):
        raise RunError(f"{run.path / 'split.npz'}: damaged (expected {count:,} training images); {cure}")
    return arrays["train"]


def _verify_data(run: Run, config: Config, dataset: Dataset, progress: Progress) -> Source | None:
    """Verify that a run's ids name the same images as this run's.

    Returns:
        None where both read the same pixels and labels; else this run's data as the other one reads them.

    Raises:
        ConfigError: the data differ.
    """
    recorded = run.provenance("data_fingerprint")["data_fingerprint"]
    if recorded == dataset.fingerprint:
        return None
    theirs = run.data_config().data
    changed = {key: getattr(theirs, key) for key in ("classes", "image_size", "resize", "range")}
    if any(getattr(config.data, key) != value for key, value in changed.items()):
        with contextlib.suppress(UserError):  # these data cannot be read like that, so they are others
            source = open_source(config.data.model_copy(update=changed), progress, dataset.competition.task)
            if splits.fingerprint(source.train) == recorded:
                return source
    raise ConfigError(
        f"{run.path}: was trained on other images or labels (fingerprint {recorded}, here {dataset.fingerprint}), so "
        "its split.npz cannot show that it never saw this run's validation images; use runs of the same data"
    )


def _check_rules(key: str, config: Config, first: Ancestor) -> None:
    """Refuse what the competition's rules forbid and a teacher, or the first weights, would bring in.

    Raises:
        ConfigError: naming the rule.
    """
    rules = config.competition.rules
    if rules.external_weights and rules.transductive:
        return
    for run, other_data in _lineage(first):
        theirs = run.config()
        if (other_data or theirs.model.pretrained) and not rules.external_weights:
            origin = "was trained on other data" if other_data else "started from pretrained weights"
            raise ConfigError(
                f"{key}: {run.path} {origin}, which competition.rules.external_weights=false "
                "forbids; choose another run"
            )
        elsewhere = other_data and theirs.competition.name != config.competition.name
        if FILES[PSEUDO] in run.provenance() and not elsewhere and not rules.transductive:
            raise ConfigError(
                f"{key}: {run.path} was trained on pseudo-labels of the test images, which "
                "competition.rules.transductive=false forbids; choose another run"
            )
