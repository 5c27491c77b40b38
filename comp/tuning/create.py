"""How a study is opened or made: from a config, or from its folder."""

import contextlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import yaml

from comp import config as configs
from comp.config import Config, space
from comp.results import files, runs
from comp.runtime.errors import ConfigError, StudyError, UserError, nearest
from comp.tuning import objectives, pruners, samplers
from comp.tuning.storage import default_url, open_store
from comp.tuning.study import Study, spell, suggest

_EARLIER_BESTS = 3  # of other studies of the competition that are tried first, the newest
_IDENTITY = ("space", "metric", "folds")  # of section `tune`: what a continued study may not change
_OF_THE_MACHINE = ("checkpoint_seconds", "device", "threads")  # of section `train`
# Before 0.2, what `auto` now finds by itself.
_EARLIER_DEFAULTS = {"competition.metric": "accuracy", "data.csv.sample": "sample_submission.csv"}
SEARCH, CONFIRM = "search", "confirm"


@dataclass(frozen=True)
class StudyPlan:
    """What every process of a study opens it with; plain values, so that it can be sent to one.

    Attributes:
        config: the study's, as YAML.
        name: of the study and of its folder.
        runs_root: where run folders are.
        url: of the storage.
        part: the search, or the confirmation of its best.
        deadline: `time.time()` from which no trial begins.
        forgiven: numbers of trials that failed before this command.
    """

    config: str
    name: str
    runs_root: str
    url: str
    part: str = SEARCH
    deadline: float = float("inf")
    forgiven: frozenset[int] = frozenset()

    @property
    def folder(self) -> Path:
        """The study's folder."""
        return Path(self.runs_root) / self.load().competition.name / self.name

    def load(self) -> Config:
        """Return the study's config."""
        return configs.from_mapping(yaml.safe_load(self.config), "the study's config")


def plan(config: Config, name: str, runs_root: Path) -> StudyPlan:
    """Return the plan of a command: what a config says, with a default storage where it names none.

    Raises:
        RunError: the study's folder cannot be made.
    """
    name = config.tune.study or name
    folder = runs_root / config.competition.name / name
    files.make_folder(folder)
    return StudyPlan(configs.dump(config), name, str(runs_root), config.tune.storage or default_url(folder))


def check_study(config: Config) -> None:
    """Check what a config says of its study; `pipeline.check` has checked the space's paths and values.

    Raises:
        ConfigError: an unknown name or argument, or things that do not go together.
    """
    if not config.tune.space:
        raise ConfigError(
            "tune.space: is empty, so there is nothing to search; such as {optim.lr: {float: [1e-4, 1e-2], log: true}}"
        )
    objectives.chosen(config)
    pruners.pruner(config)
    samplers.check_sampler(config, space.entries(config.tune))


def open_search(plan: StudyPlan, *, make: bool = True) -> Study:
    """Open or make the study of a plan; a new one has the config's own values and earlier bests waiting.

    Args:
        plan: see `Plan`.
        make: False only looks at one that exists.

    Raises:
        StudyError: it exists with another config, or is to be looked at and does not exist.
        ConfigError: its storage is none.
    """
    config, folder = plan.load(), plan.folder
    entries = space.entries(config.tune)
    countable = samplers.is_countable(entries)
    directions = ["maximize" if row.higher_is_better(config) else "minimize" for row in objectives.chosen(config)]
    name = f"{config.competition.name}/{plan.name}"
    study = _open(
        plan, config, name, directions, pruners.pruner(config), make=make, wanted=config.tune.trials, kind="trial",
        propose=lambda trial: space.lay(config, suggest(entries, config, trial)),
        sampler_for=lambda number, repeated: samplers.sampler(config, number, untried=repeated and countable),
    )  # fmt: skip
    if make:
        with study.turn:
            _identify(study.optuna, config, plan)
            if not study.optuna.get_trials(deepcopy=False):
                _enqueue(study.optuna, config, entries, folder)
    return study


def open_confirmation(plan: StudyPlan, *, make: bool = True) -> Study:
    """Open or make the study in which the best trials of a search are trained again; it holds what is enqueued."""
    config = plan.load()
    directions = ["maximize" if objectives.chosen(config)[0].higher_is_better(config) else "minimize"]
    silent = config.model_copy(
        update={"tune": config.tune.model_copy(update={"pruner": "none", "metric": objectives.names(config)[0]})}
    )
    return _open(
        plan, silent, f"{config.competition.name}/{plan.name}/confirm", directions, optuna.pruners.NopPruner(),
        make=make, wanted=None, kind="confirm",
        propose=lambda trial: space.lay(config, trial.user_attrs["values"], seed=trial.user_attrs["seed"]),
        sampler_for=lambda number, repeated: optuna.samplers.RandomSampler(seed=number),
    )  # fmt: skip


def is_confirmed(plan: StudyPlan) -> bool:
    """Tell whether the best trials of a study have been trained again, or at least begun."""
    config = plan.load()
    name = f"{config.competition.name}/{plan.name}/confirm"
    with contextlib.closing(open_store(plan.url, plan.folder, config.tune.heartbeat_seconds)) as store:
        return any(study.study_name == name for study in store.backend.get_all_studies())


OPENERS = {SEARCH: open_search, CONFIRM: open_confirmation}


def find(name: str, runs_root: Path, storage: str) -> StudyPlan:
    """Return the plan of a study that exists, named by its folder or by its name alone.

    Raises:
        StudyError: there is none, or several of that name.
    """
    given = Path(name) / "study.json"
    found = [given] if given.is_file() else sorted(runs_root.glob(f"*/{name}/study.json"))
    if not found:
        known = [path.parent.name for path in runs_root.glob("*/*/study.json")]
        hint = f"{nearest(name, known)}; known: {', '.join(known) or 'none'}"
        raise StudyError(f"{name}: no such study below {runs_root}{hint}")
    if len(found) > 1:
        folders = ", ".join(str(path.parent) for path in found)
        raise StudyError(f"{name}: several studies have this name; name a folder: {folders}")
    folder = found[0].parent
    url = storage or files.read_json(found[0])["storage"] or default_url(folder)
    config = (folder / "study.yaml").read_text(encoding="utf-8")
    return StudyPlan(config, folder.name, str(folder.parent.parent), url)


def _open(
    plan: StudyPlan, config: Config, name: str, directions: list[str], pruner: Any, *, make: bool, **rest: Any
) -> Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # what users should know is told by us
    store = open_store(plan.url, plan.folder, config.tune.heartbeat_seconds)
    try:
        if make:
            opened = optuna.create_study(
                storage=store.backend, study_name=name, directions=directions, pruner=pruner, load_if_exists=True
            )
        else:
            opened = optuna.load_study(storage=store.backend, study_name=name, pruner=pruner)
    except KeyError:
        raise StudyError(f"{runs.hide_passwords(store.url)}: holds no study {name}; is it the right storage?") from None
    return Study(
        name, plan.folder, config, store, opened, deadline=plan.deadline, forgiven=plan.forgiven, **rest
    )  # fmt: skip


def _identify(found: Any, config: Config, plan: StudyPlan) -> None:
    """Note what a new study is of, and refuse to go on with another one."""
    tree = _identity(config.model_dump(mode="json"))
    recorded = found.user_attrs.get("identity")
    if recorded is None:
        found.set_user_attr("identity", json.dumps(tree, sort_keys=True))
    else:
        _demand_same(_filled(json.loads(recorded)), tree, plan.folder)
    folder, storage = plan.folder, runs.hide_passwords(config.tune.storage)
    shown = config.model_copy(update={"tune": config.tune.model_copy(update={"storage": storage})})
    files.write_atomically(folder / "study.yaml", configs.dump(shown).encode())
    noted = {"study": plan.name, "storage": storage, "argv": runs.describe_machine()["argv"]}
    files.write_atomically(folder / "study.json", files.to_json(noted))


def _identity(tree: dict[str, Any]) -> dict[str, Any]:
    """Return what of a config's plain values a continued study may not change."""
    kept = {**tree, "tune": {key: tree["tune"][key] for key in _IDENTITY}}
    # The others are the machine's, not the study's.
    kept["train"] = {key: value for key, value in tree["train"].items() if key not in _OF_THE_MACHINE}
    return kept


def _filled(recorded: dict[str, Any]) -> dict[str, Any]:
    """Return a recorded identity with today's defaults for keys that comp did not know then."""
    try:
        return _identity(configs.from_mapping(recorded, "the study's record").model_dump(mode="json"))
    except ConfigError:  # it has keys that no config has any more
        return recorded


def _demand_same(recorded: dict[str, Any], tree: dict[str, Any], folder: Path) -> None:
    """Refuse another config than a study's own.

    Raises:
        StudyError: naming what differs, and where only defaults have changed, how to keep the study's.
    """
    changed = [path for path in _differences(recorded, tree) if not _is_renamed_default(path, recorded, tree)]
    if not changed:
        return
    earlier = [
        p for p in ("train.select", "tune.metric") if p in changed and space.value_at(recorded, p) == "val_accuracy"
    ]
    if earlier and all(space.value_at(tree, path) == "auto" for path in earlier) and len(earlier) == len(changed):
        settings = " ".join(f"{path}=val_accuracy" for path in earlier)
        raise StudyError(
            f"{folder}: this study selects by val_accuracy, the default of comp before 0.2, and the config now says "
            f"auto; go on with it by setting {settings}, or begin another: --study NAME"
        )
    raise StudyError(
        f"{folder}: this study began with another config (it differs in {', '.join(changed)}), and its trials would "
        "not compare; give its own config, or begin another: --study NAME"
    )


def _is_renamed_default(path: str, recorded: dict[str, Any], tree: dict[str, Any]) -> bool:
    """Return whether a value is a default of comp before 0.2 that `auto` now stands for."""
    return (
        space.value_at(tree, path) == "auto"
        and path in _EARLIER_DEFAULTS
        and space.value_at(recorded, path) == _EARLIER_DEFAULTS[path]
    )


def _differences(one: Any, other: Any, path: str = "") -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            yield from _differences(one.get(key), other.get(key), f"{path}.{key}" if path else key)
    elif one != other:
        yield path


def _enqueue(found: Any, config: Config, entries: Sequence[space.Entry], folder: Path) -> None:
    """Let the config's own values and the bests of other studies wait as the first trials."""
    queued: list[dict[str, Any]] = []
    for tree in itertools.islice(_first_configs(config, folder), config.tune.trials):
        own = [(entry, space.value_at(tree, entry.path)) for entry in entries]
        values = {entry.path: spell(entry, value) for entry, value in own if entry.holds(value)}
        if values and values not in queued:  # what the space does not offer is drawn
            queued.append(values)
            found.enqueue_trial(values)


def _first_configs(config: Config, folder: Path) -> Iterator[dict[str, Any]]:
    yield config.model_dump(mode="json")
    others = sorted(folder.parent.glob("*/best.yaml"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in others[:_EARLIER_BESTS]:
        try:
            yield configs.load(path).model_dump(mode="json")
        except UserError:  # someone has edited it; a search can do without
            continue
