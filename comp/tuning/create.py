"""Create a study from a config, or open one from its folder."""

import contextlib
import itertools
import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from comp import config as configs
from comp.config import Config, plugins, space
from comp.config.yaml_io import read_plain
from comp.results import files, runs
from comp.runtime.errors import ConfigError, StudyError, UserError, nearest
from comp.tuning import objectives, pruners, samplers
from comp.tuning.storage import default_url, one_at_a_time, open_store
from comp.tuning.study import Study, suggest, to_storable

_EARLIER_BESTS = 3  # how many best configs of other studies of the competition are tried first, the newest
_IDENTITY = ("space", "metric", "folds")  # keys of section `tune` that a continued study may not change
_MACHINE_KEYS = ("checkpoint_seconds", "device", "threads")  # keys of section `train` that it may
# Defaults of comp before 0.2, which `auto` now stands for.
_EARLIER_DEFAULTS = {"competition.metric": "accuracy", "data.csv.sample": "sample_submission.csv"}
SEARCH, CONFIRM = "search", "confirm"


@dataclass(frozen=True)
class StudyPlan:
    """Plain values from which each process opens a study.

    Attributes:
        config: the study's, as YAML.
        name: of the study and its folder.
        runs_root: where run folders are.
        url: of the storage.
        part: `SEARCH` or `CONFIRM`.
        deadline: `time.time()` from which no trial begins.
        prior_failures: numbers of the trials that failed before this command.
    """

    config: str
    name: str
    runs_root: str
    url: str
    part: str = SEARCH
    deadline: float = float("inf")
    prior_failures: frozenset[int] = frozenset()

    @property
    def folder(self) -> Path:
        """The study's folder."""
        return Path(self.runs_root) / self.load().competition.name / self.name

    def load(self) -> Config:
        """Return the study's config."""
        return configs.from_mapping(read_plain(self.config, "the study's config"), "the study's config")


def plan(config: Config, name: str, runs_root: Path) -> StudyPlan:
    """Return the plan of a config's study, with a default storage if it names none, and make the study's folder.

    Raises:
        RunError: the study's folder cannot be made.
    """
    name = config.tune.study or name
    folder = runs_root / config.competition.name / name
    files.make_folder(folder)
    return StudyPlan(configs.dump(config), name, str(runs_root), config.tune.storage or default_url(folder))


def check_study(config: Config) -> None:
    """Check a config's study; `checks.check_config` has checked the space's paths and values.

    Raises:
        ConfigError: an unknown name or argument, or settings that exclude each other.
    """
    if not config.tune.space:
        raise ConfigError(
            "tune.space: is empty, so there is nothing to search; e.g. {optim.lr: {float: [1e-4, 1e-2], log: true}}"
        )
    objectives.chosen(config)
    pruners.pruner(config)
    samplers.check_sampler(config, space.parse_space(config.tune))


def open_search(plan: StudyPlan, *, make: bool = True) -> Study:
    """Open or create the search of a plan; a new one tries the config's own values and earlier best configs first.

    Without `make` only an existing study is opened, and nothing changes.

    Raises:
        StudyError: it exists with another config, or `make` is False and it does not exist.
        ConfigError: its storage's URL is invalid.
    """
    config, folder = plan.load(), plan.folder
    entries = space.parse_space(config.tune)
    countable = 0 < samplers.size(entries) <= samplers.MAX_POINTS
    name = f"{config.competition.name}/{plan.name}"
    study = _open(
        plan,
        config,
        name,
        pruners.pruner(config),
        make=make,
        max_trials=config.tune.trials,
        run_prefix="trial",
        propose=lambda trial: space.apply_values(config, suggest(entries, config, trial)),
        sampler_for=lambda number, repeated: samplers.sampler(config, number, untried=repeated and countable),
    )
    if make:
        with study.turn:
            _record_identity(study.optuna, config, plan)
            if not study.optuna.get_trials(deepcopy=False):
                _enqueue(study.optuna, config, entries, folder)
    return study


def open_confirmation(plan: StudyPlan, *, make: bool = True) -> Study:
    """Open or create the study that trains a search's best trials again; its trials are those enqueued."""
    config = plan.load()
    tune = config.tune.model_copy(update={"pruner": "none", "metric": objectives.names(config)[0]})
    return _open(
        plan,
        config.model_copy(update={"tune": tune}),
        _confirmation_name(plan, config),
        optuna.pruners.NopPruner(),
        make=make,
        max_trials=None,
        run_prefix="confirm",
        propose=lambda trial: space.apply_values(config, trial.user_attrs["values"], seed=trial.user_attrs["seed"]),
        sampler_for=lambda number, repeated: optuna.samplers.RandomSampler(seed=number),
    )


def _confirmation_name(plan: StudyPlan, config: Config) -> str:
    return f"{config.competition.name}/{plan.name}/confirm"


def is_confirmed(plan: StudyPlan) -> bool:
    """Return whether the confirmation of a study exists."""
    config = plan.load()
    name = _confirmation_name(plan, config)
    with contextlib.closing(open_store(plan.url, plan.folder, config.tune.heartbeat_seconds)) as store:
        return any(study.study_name == name for study in store.backend.get_all_studies())


OPENERS = {SEARCH: open_search, CONFIRM: open_confirmation}


def continue_command(folder: Path, url: str, config: Config) -> str:
    """Return the command that continues a study with the config that it keeps.

    Args:
        folder: of the study.
        url: of its storage.
        config: of the study.
    """
    words = ["comp", "tune", str(folder / "study.yaml"), "--study", folder.name]
    if folder.parent.parent != Path("runs"):
        words += ["--runs", str(folder.parent.parent)]
    if runs.hide_passwords(url) != url:  # study.yaml has it without the password
        words += ["--storage", "URL"]
    if config.plugins:
        words.append("--allow-plugins")
    return shlex.join(words)


def find_plan(name: str, runs_root: Path, storage: str) -> StudyPlan:
    """Return the plan of an existing study.

    Args:
        name: its folder, or its name alone.
        runs_root: where run folders are.
        storage: its URL; empty: as recorded.

    Raises:
        StudyError: no study has this name, or several have.
    """
    path = Path(name) / "study.json"
    matches = [path] if path.is_file() else sorted(runs_root.glob(f"*/{name}/study.json"))
    if not matches:
        existing = [path.parent.name for path in runs_root.glob("*/*/study.json")]
        hint = f"{nearest(name, existing)}; existing: {', '.join(existing) or 'none'}"
        raise StudyError(f"{name}: no such study below {runs_root}{hint}")
    if len(matches) > 1:
        folders = ", ".join(str(path.parent) for path in matches)
        raise StudyError(f"{name}: several studies have this name; name a folder: {folders}")
    folder = matches[0].parent
    recorded = files.read_json(matches[0], "restore the file").get("storage")
    if not isinstance(recorded, str):
        raise StudyError(f"{matches[0]}: damaged: expected a text `storage`, found {recorded!r}; restore the file")
    url = storage or recorded or default_url(folder)
    config = _read_config(folder / "study.yaml")
    return StudyPlan(config, folder.name, str(folder.parent.parent), url)


def _read_config(path: Path) -> str:
    """Return a study's config as text."""
    try:
        text = path.read_text(encoding="utf-8")
        values = read_plain(text, "its text")
    except (OSError, UnicodeDecodeError, ConfigError) as error:
        raise StudyError(f"{path}: missing or damaged ({files.error_text(error)}); restore the file") from None
    if not isinstance(values, dict):
        raise StudyError(f"{path}: damaged: expected a mapping, found {type(values).__name__}; restore the file")
    return text


def _open(plan: StudyPlan, config: Config, name: str, pruner: Any, *, make: bool, **rest: Any) -> Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # comp reports trials itself
    store = open_store(plan.url, plan.folder, config.tune.heartbeat_seconds)
    try:
        if make:
            directions = [
                "maximize" if row.higher_is_better(config) else "minimize" for row in objectives.chosen(config)
            ]
            with one_at_a_time(store.locks):
                study = optuna.create_study(
                    storage=store.backend, study_name=name, directions=directions, pruner=pruner, load_if_exists=True
                )
        else:
            study = optuna.load_study(storage=store.backend, study_name=name, pruner=pruner)
    except KeyError:
        raise StudyError(
            f"{runs.hide_passwords(store.url)}: no study {name} in this storage; check tune.storage"
        ) from None
    limits: dict[str, Any] = {"deadline": plan.deadline, "prior_failures": plan.prior_failures}
    return Study(name, plan.folder, config, store, study, **limits, **rest)


def _record_identity(study: optuna.Study, config: Config, plan: StudyPlan) -> None:
    """Record what a new study searches, and refuse to continue a study with another config."""
    tree = _identity({**config.model_dump(mode="json"), "plugins": plugins.portable(config.plugins)})
    recorded = study.user_attrs.get("identity")
    if recorded is None:
        study.set_user_attr("identity", json.dumps(tree, sort_keys=True))
    else:
        _check_same_config(_with_defaults(json.loads(recorded)), tree, plan)
    folder, storage = plan.folder, runs.hide_passwords(config.tune.storage)
    public = config.model_copy(update={"tune": config.tune.model_copy(update={"storage": storage})})
    runs.copy_plugins(config, folder)
    files.write_atomically(folder / "study.yaml", configs.dump(runs.with_copies(public)).encode())
    values = {"study": plan.name, "storage": storage, "argv": runs.describe_machine()["argv"]}
    files.write_atomically(folder / "study.json", files.to_json(values))


def _identity(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a config's plain values that a continued study may not change."""
    tune = {key: tree["tune"][key] for key in _IDENTITY}
    train = {key: value for key, value in tree["train"].items() if key not in _MACHINE_KEYS}
    return {**tree, "tune": tune, "train": train}


def _with_defaults(recorded: dict[str, Any]) -> dict[str, Any]:
    """Return a recorded identity with today's defaults for keys that are newer than the study."""
    try:
        return _identity(configs.from_mapping(recorded, "the study's record").model_dump(mode="json"))
    except ConfigError:  # it has keys that comp has removed
        return recorded


def _check_same_config(recorded: dict[str, Any], tree: dict[str, Any], plan: StudyPlan) -> None:
    """Refuse to continue a study with another config; if only defaults have changed, say how to keep the study's."""
    changed = [path for path in _differences(recorded, tree) if not _is_renamed_default(path, recorded, tree)]
    if not changed:
        return
    command = continue_command(plan.folder, plan.url, plan.load())
    selectors = [path for path in ("train.select", "tune.metric") if path in changed]
    earlier = [path for path in selectors if space.value_at(recorded, path) == "val_accuracy"]
    if earlier and all(space.value_at(tree, path) == "auto" for path in earlier) and len(earlier) == len(changed):
        settings = " ".join(f"{path}=val_accuracy" for path in earlier)
        raise StudyError(
            f"{plan.folder}: this study selects by val_accuracy, the former default, and the config selects by "
            f"auto; continue it by setting {settings}, or begin another study: --study NAME"
        )
    raise StudyError(
        f"{plan.folder}: this study began with another config, so its trials are not comparable: {', '.join(changed)} "
        f"differs; continue it with its own config: {command}; or begin another study: --study NAME"
    )


def _is_renamed_default(path: str, recorded: dict[str, Any], tree: dict[str, Any]) -> bool:
    """Return whether a value is a default of comp before 0.2 that `auto` now stands for."""
    return (
        space.value_at(tree, path) == "auto"
        and path in _EARLIER_DEFAULTS
        and space.value_at(recorded, path) == _EARLIER_DEFAULTS[path]
    )


def _differences(first: Any, second: Any, path: str = "") -> Iterator[str]:
    if isinstance(first, dict) and isinstance(second, dict):
        for key in dict.fromkeys([*first, *second]):
            yield from _differences(first.get(key), second.get(key), f"{path}.{key}" if path else key)
    elif first != second:
        yield path


def _enqueue(study: optuna.Study, config: Config, entries: Sequence[space.Entry], folder: Path) -> None:
    """Enqueue the config's own values and the best values of other studies as the first trials."""
    queued: list[dict[str, Any]] = []
    for tree in itertools.islice(_first_configs(config, folder), config.tune.trials):
        at_paths = [(entry, space.value_at(tree, entry.path)) for entry in entries]
        # The sampler draws those that the space does not offer.
        values = {entry.path: to_storable(entry, value) for entry, value in at_paths if entry.contains(value)}
        if values and values not in queued:
            queued.append(values)
            study.enqueue_trial(values)


def _first_configs(config: Config, folder: Path) -> Iterator[dict[str, Any]]:
    yield config.model_dump(mode="json")
    others = sorted(folder.parent.glob("*/best.yaml"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in others[:_EARLIER_BESTS]:
        try:
            yield configs.load(path).model_dump(mode="json")
        except UserError:  # edited by hand, and not needed
            continue
