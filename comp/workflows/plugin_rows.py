"""The rows that a plug-in may declare, and their checks; `comp.workflows.plugins` loads plug-ins and adds the rows."""

import dataclasses
import inspect
import re
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from comp.augment.batch_ops import FUNCTIONS, BatchOp
from comp.augment.ops import OPS, Policy
from comp.augment.policies import POLICIES
from comp.config.tasks import TASKS, TaskRow
from comp.data.sources import SOURCES, TESTS
from comp.inference.views import VIEWS, View
from comp.models.coursework.networks import NETWORKS
from comp.models.stems import FAMILIES, OWN_KINDS, UNCLASSIFIED, Family
from comp.results.blocks import DISTORTIONS
from comp.results.metrics import METRICS, Metric
from comp.results.predictions import Predictions
from comp.runtime.errors import ConfigError, UserError, unknown
from comp.training.losses import LOSSES
from comp.training.optimizers import OPTIMIZERS
from comp.training.schedules import SCHEDULES


@dataclass(frozen=True)
class Registry:
    """A dict of comp that plug-ins add rows to.

    Attributes:
        rows: the dict.
        what: names a row in notes; empty if another registry's row has said it.
        expected: what a row is, for messages.
        accepts: whether a value is one.
    """

    rows: dict[str, Any]
    what: str
    expected: str
    accepts: Callable[[Any], bool]


def _instance(kind: type) -> tuple[str, Callable[[Any], bool]]:
    return f"a {kind.__module__}.{kind.__name__}", lambda value: isinstance(value, kind)


def _is_op(value: Any) -> bool:
    match value:
        case (str(), frozenset() as imitated) | (str(), frozenset() as imitated, (int() | float(), int() | float())):
            return imitated <= set(DISTORTIONS)
    return False


def _is_loss(value: Any) -> bool:
    return callable(value) and "reduction" in inspect.signature(value).parameters


def _is_views(value: Any) -> bool:
    views = value if isinstance(value, tuple) else ()
    return (
        bool(views) and all(isinstance(row, View) for row in views) and abs(sum(row.weight for row in views) - 1) < 1e-6
    )


_KINDS = sorted({family.kind for family in FAMILIES.values()} | set(OWN_KINDS.values()))

REGISTRIES: dict[str, Registry] = {
    "NETWORKS": Registry(NETWORKS, "model", "a function (shape, classes, **arguments) -> network", callable),
    "OWN_KINDS": Registry(OWN_KINDS, "", f"one of {', '.join(_KINDS)}", lambda value: value in _KINDS),
    "FAMILIES": Registry(FAMILIES, "family", *_instance(Family)),
    "OPS": Registry(
        OPS,
        "op",
        "(meaning of its magnitude, frozenset of the corruptions it imitates[, (lowest, highest) magnitude])",
        _is_op,
    ),
    "FUNCTIONS": Registry(FUNCTIONS, "", *_instance(BatchOp)),
    "POLICIES": Registry(POLICIES, "policy", *_instance(Policy)),
    "LOSSES": Registry(LOSSES, "loss", "a function (logits, targets, *, reduction='mean') -> loss", _is_loss),
    "METRICS": Registry(METRICS, "metric", *_instance(Metric)),
    "SOURCES": Registry(SOURCES, "source", "a function (section data, progress, task) -> Source", callable),
    "TESTS": Registry(TESTS, "", "a function (section data, classes, progress) -> LoadedTest", callable),
    "VIEWS": Registry(VIEWS, "views", "a tuple of comp.inference.views.View whose weights add up to 1", _is_views),
    "SCHEDULES": Registry(SCHEDULES, "schedule", "a function (step, plan, schedule) -> learning rate", callable),
    "OPTIMIZERS": Registry(OPTIMIZERS, "optimizer", "a function (groups, args, **settings) -> optimizer", callable),
}
# Each row of the first dict needs one in the second.
_COMPANIONS = (("FUNCTIONS", "OPS"), ("OPS", "FUNCTIONS"), ("OWN_KINDS", "NETWORKS"), ("TESTS", "SOURCES"))
# What a task lists by name: field of TaskRow -> registry.
_LISTED = {"metrics": "METRICS", "losses": "LOSSES"}

Rows = dict[str, dict[str, Any]]  # name of a registry -> rows
TaskLists = dict[str, dict[str, tuple[str, ...]]]  # task -> field of TaskRow -> names


def declared_rows(module: ModuleType, where: str) -> Rows:
    """Return a plug-in's rows, each of its registry's type.

    Raises:
        ConfigError: naming the plug-in `where`, the row, and what is expected.
    """
    rows = {name: named for name in REGISTRIES if (named := _declared(module, name, where))}
    for name, companion in _COMPANIONS:
        if missing := sorted(rows.get(name, {}).keys() - rows.get(companion, {}).keys()):
            raise ConfigError(f"{where}: {name}['{missing[0]}']: add its row in {companion}")
    for name in rows.get("NETWORKS", {}):
        rows.setdefault("OWN_KINDS", {}).setdefault(name, UNCLASSIFIED.kind)
    for name, row in rows.get("METRICS", {}).items():
        rows["METRICS"][name] = dataclasses.replace(row, score=partial(_score, str(module.__file__), name, row.score))
    return rows


def _declared(module: ModuleType, name: str, where: str) -> dict[str, Any]:
    registry, declared = REGISTRIES[name], vars(module).get(name)
    if declared is None or declared is registry.rows:  # imported, to be read
        return {}
    if not isinstance(declared, dict):
        raise ConfigError(f"{where}: {name}: expected a dict of rows, found {_shortened(declared)}")
    for key, value in declared.items():
        if not isinstance(key, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", key):
            raise ConfigError(f"{where}: {name}: expected names such as my_row, of a-z, 0-9 and _, found {key!r}")
        if not registry.accepts(value):
            raise ConfigError(f"{where}: {name}['{key}']: expected {registry.expected}, found {_shortened(value)}")
    return dict(declared)


def declared_tasks(module: ModuleType, rows: Rows, where: str) -> TaskLists:
    """Return which tasks list a plug-in's metrics and losses, as its TASKS says.

    Raises:
        ConfigError: an unknown task, a name that is not its own, or a row that no task lists.
    """
    declared = vars(module).get("TASKS", {})
    declared = {} if declared is TASKS else declared
    example = "expected such as TASKS = {'single_label': {'metrics': ['my_metric']}}"
    if not isinstance(declared, dict) or not all(isinstance(lists, dict) for lists in declared.values()):
        raise ConfigError(f"{where}: TASKS: {example}, found {_shortened(declared)}")
    fields = _LISTED.keys() & {field.name for field in dataclasses.fields(TaskRow)}
    for task, lists in declared.items():
        if task not in TASKS:
            raise ConfigError(f"{where}: TASKS: {unknown('task', str(task), TASKS)}")
        for field, names in lists.items():
            if field not in fields or not isinstance(names, list | tuple):
                raise ConfigError(f"{where}: TASKS['{task}']: {example}, found {field!r}: {_shortened(names)}")
            if missing := [name for name in names if name not in rows.get(_LISTED[field], ())]:
                raise ConfigError(f"{where}: TASKS['{task}']: {missing[0]!r} is not in its {_LISTED[field]}")
    for field in fields:
        listed = {name for lists in declared.values() for name in lists.get(field, ())}
        if missing := sorted(rows.get(_LISTED[field], {}).keys() - listed):
            raise ConfigError(f"{where}: {_LISTED[field]}['{missing[0]}']: no task lists it; {example}")
    return {task: {field: tuple(names) for field, names in lists.items()} for task, lists in declared.items()}


def list_in_tasks(lists: TaskLists, *, remove: bool = False) -> None:
    """Add a plug-in's names to the tasks that list them, or remove them."""
    for task, fields in lists.items():
        for field, names in fields.items():
            listed = getattr(TASKS[task], field)
            kept = {name: listed[name] if isinstance(listed, Mapping) else name for name in listed if name not in names}
            changed = kept if remove else kept | {name: name for name in names}
            value: Any = changed if isinstance(listed, Mapping) else tuple(changed)
            TASKS[task] = dataclasses.replace(TASKS[task], **{field: value})


def _score(where: str, name: str, score: Callable[[Predictions], float], predictions: Predictions) -> float:
    """Return a plug-in's score of predictions.

    Raises:
        ConfigError: it fails, or is no finite number.
    """
    try:
        value = score(predictions)
    except UserError:
        raise
    except Exception as error:
        raise ConfigError(f"{error_line(error, [where]) or where}: metric {name}: {reason_of(error)}") from None
    if not isinstance(value, int | float | np.number) or not np.isfinite(value):
        raise ConfigError(f"{where}: metric {name}: expected a finite number, found {_shortened(value)}")
    return float(value)


def error_line(error: BaseException, files: Iterable[str]) -> str:
    """Return `file, line n` of the innermost line in one of the files that led to an error; empty if none did."""
    names = set(files)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in names]
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else ""


def reason_of(error: BaseException) -> str:
    """Return an error's type and first line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}"[:300] if lines else type(error).__name__


def _shortened(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else f'{text[:57]}...'}"
