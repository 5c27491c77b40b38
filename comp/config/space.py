"""The search space of a study: dotted paths of knobs, and the values that each may take."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comp.config.loading import from_mapping
from comp.config.messages import check_keys
from comp.config.tree import Config
from comp.config.tuning import TuneConfig
from comp.runtime.errors import ConfigError, unknown

SECTIONS = ("augment", "model", "optim", "train")  # what lies elsewhere would score trials on other images
_KINDS = ("float", "int", "choice")
_MODIFIERS = {"float": {"log", "step"}, "int": {"log", "step"}, "choice": set[str]()}
_DIGITS = 6  # of a float that is tried: more would only be harder to read


@dataclass(frozen=True)
class Entry:
    """A knob and its values.

    Attributes:
        path: dotted, as in overrides.
        kind: float, int or choice.
        low: smallest value of a range.
        high: largest one.
        log: whether values are drawn along their logarithm.
        step: distance of neighbours; None: any float, or every whole number.
        choices: values of a choice.
        when: path of another knob -> values of it with which this one is tuned.
    """

    path: str
    kind: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None
    choices: tuple[Any, ...] = ()
    when: Mapping[str, tuple[Any, ...]] | None = None

    def probes(self) -> tuple[Any, ...]:
        """Return the values that stand for all: every choice, or both ends of a range."""
        return self.choices if self.kind == "choice" else tuple(self.tidy(end) for end in (self.low, self.high))

    def holds(self, value: Any) -> bool:
        """Tell whether a value is one of this entry's."""
        if self.kind == "choice":
            return any(same(value, choice) for choice in self.choices)
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        if self.kind == "int" and value != int(value):
            return False
        if not self.step:
            return True
        steps = (value - self.low) / self.step
        return abs(steps - round(steps)) < 1e-8  # Optuna's own tolerance

    def tidy(self, value: Any) -> Any:
        """Return a drawn value as it is laid into a config: a float with few digits, within the range."""
        if self.kind == "int":
            return int(value)
        if self.kind == "choice":
            return value
        return min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high)


def same(one: Any, other: Any) -> bool:
    """Tell whether two plain values are the same; true is not 1."""
    return (type(one) is type(other) and bool(one == other)) or (_is_number(one) and _is_number(other) and one == other)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def entries(tune: TuneConfig) -> list[Entry]:
    """Return the space's entries, each after those that its `when` names.

    Raises:
        ConfigError: an entry is not one, or waits for itself.
    """
    found = {path: _entry(path, dict(values)) for path, values in tune.space.items()}
    placed: dict[str, Entry] = {}
    while len(placed) < len(found):
        ready = [
            entry
            for path, entry in found.items()
            if path not in placed and all(other in placed or other not in found for other in entry.when or ())
        ]
        if not ready:
            left = ", ".join(path for path in found if path not in placed)
            raise ConfigError(f"tune.space: {left}: each waits for another by its when; leave one of them out")
        placed |= {entry.path: entry for entry in ready}
    return list(placed.values())


def _entry(path: str, values: dict[str, Any]) -> Entry:
    where = f"tune.space: {path}"
    given = [kind for kind in _KINDS if kind in values]
    if len(given) != 1:
        found = ", ".join(values) or "nothing"
        raise ConfigError(f"{where}: expected one of float, int, choice, such as {{float: [0, 0.3]}}; found {found}")
    (kind,) = given
    when = values.pop("when", {})
    inside = values.pop(kind)
    known = {kind, "when"} | _MODIFIERS[kind]
    for name in values:
        if name not in known:
            raise ConfigError(f"{where}: {unknown('key', name, known)}")
    if not isinstance(when, Mapping):
        raise ConfigError(f"{where}: when: expected {{other.path: value}}, found {when!r}")
    conditions = {other: tuple(wanted) if isinstance(wanted, list) else (wanted,) for other, wanted in when.items()}
    if kind == "choice":
        return Entry(path, kind, choices=_choices(inside, where), when=conditions)
    return _range(path, kind, inside, values, conditions)


def _choices(values: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{where}: choice: expected a list of values, found {values!r}")
    for place, value in enumerate(values):
        if any(value == earlier for earlier in values[:place]):
            raise ConfigError(f"{where}: choice: {value!r} stands twice; keep one of them")
    return tuple(values)


def _range(path: str, kind: str, ends: Any, values: dict[str, Any], when: dict[str, tuple[Any, ...]]) -> Entry:
    where = f"tune.space: {path}"
    log, step = values.get("log", False), values.get("step")
    whole = kind == "int"
    if not (isinstance(ends, list) and len(ends) == 2 and all(_is_number(end) for end in ends)):
        raise ConfigError(f"{where}: {kind}: expected [lowest, highest], found {ends!r}")
    if whole and any(end != int(end) for end in ends):
        raise ConfigError(f"{where}: int: expected whole numbers, found {ends!r}; use float")
    low, high = ends
    if low >= high:
        raise ConfigError(f"{where}: {kind}: expected [lowest, highest], found {ends!r}; exchange them")
    if not isinstance(log, bool) or (log and low <= 0):
        raise ConfigError(f"{where}: log: expected true or false, and true only above 0; found {log!r} from {low}")
    if step is not None and (not _is_number(step) or step <= 0 or (whole and step != int(step))):
        raise ConfigError(f"{where}: step: expected a {'whole ' if whole else ''}number above 0, found {step!r}")
    if step is not None and log:
        raise ConfigError(f"{where}: log and step exclude each other; leave one of them out")
    if step is not None:
        high = low + step * int((high - low) / step + 1e-9)  # the last one that is reached
    return Entry(path, kind, low, high, log=log, step=step, when=when)


def assemble(space: Sequence[Entry], config: Config, pick: Callable[[Entry], Any]) -> dict[str, Any]:
    """Return path -> value of the entries that hold, each picked once; the others keep the config's own values."""
    own, values = config.model_dump(mode="json"), dict[str, Any]()
    for entry in space:
        if _is_active(entry, values, own):
            values[entry.path] = pick(entry)
    return values


def _is_active(entry: Entry, values: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    return all(
        any(same(values.get(other, value_at(own, other)), value) for value in wanted)
        for other, wanted in (entry.when or {}).items()
    )


def value_at(tree: Any, path: str) -> Any:
    """Return the value at a dotted path of plain values, None where there is none."""
    for key in path.split("."):
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def lay(config: Config, values: Mapping[str, Any], *, seed: int | None = None) -> Config:
    """Return a trial's config: the study's own with some values in their place, and without its section `tune`.

    Raises:
        ConfigError: no config has such values.
    """
    tree = config.model_dump(mode="json", exclude={"tune"})
    for path, value in values.items():
        *above, name = path.split(".")
        section = tree
        for key in above:
            section = section.setdefault(key, {})
        section[name] = value
    if seed is not None:
        tree["seed"] = seed
    return from_mapping(tree, "tune.space")


def probes(config: Config) -> Iterator[Config]:
    """Yield the configs of trials in which each entry once takes each value that stands for all of its values.

    Raises:
        ConfigError: a path is unknown, a value is one that no config takes, or a `when` never holds.
    """
    space = entries(config.tune)
    by_path = {entry.path: entry for entry in space}
    own = config.model_dump(mode="json")
    for entry in space:
        _check_path(entry.path, own)
        for other in entry.when or ():
            _known(other)
        for value in entry.probes():
            forced = _prerequisites(entry, by_path, own) | {entry.path: value}

            def pick(other: Entry, forced: Mapping[str, Any] = forced) -> Any:
                if other.path in forced:
                    return forced[other.path]
                usual = value_at(own, other.path)
                return usual if other.holds(usual) else other.probes()[0]

            try:
                yield lay(config, assemble(space, config, pick))
            except ConfigError as error:
                reason = str(error).removeprefix("tune.space: ")
                if not reason.startswith(f"{entry.path}: expected"):  # a rule: it may be meant to go with another knob
                    reason += "; a knob that belongs to a value of another says so: when: {other.path: value}"
                raise ConfigError(f"tune.space: {entry.path}={value!r} would be refused: {reason}") from None


def _known(path: str) -> list[str]:
    """Return a path's keys, refused where the first unknown one stands."""
    keys = path.split(".")
    tree: Any = {}
    for key in reversed(keys):
        tree = {key: tree}
    check_keys(tree, Config, "tune.space")
    return keys


def _check_path(path: str, own: Mapping[str, Any]) -> None:
    keys = _known(path)
    if keys[0] not in SECTIONS:
        raise ConfigError(
            f"tune.space: {path}: only {', '.join(SECTIONS)} are tuned: all else would score trials on other images, "
            "or is not looked at while training"
        )
    holder = value_at(own, ".".join(keys[:-1]))
    if not isinstance(holder, Mapping) or (len(keys) == 2 and isinstance(holder.get(keys[1]), Mapping)):
        raise ConfigError(f"tune.space: {path}: expected the path of one value, such as optim.lr")


def _prerequisites(entry: Entry, by_path: Mapping[str, Entry], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return values of other entries with which this one is tuned."""
    forced: dict[str, Any] = {}
    for other, wanted in (entry.when or {}).items():
        if other in by_path:
            values = [value for value in wanted if by_path[other].holds(value)]
            forced |= _prerequisites(by_path[other], by_path, own)
        else:
            values = [value for value in wanted if same(value, value_at(own, other))]
        if not values:
            raise ConfigError(
                f"tune.space: {entry.path}: never holds: its when wants {other} to be "
                f"{' or '.join(repr(value) for value in wanted)}, which "
                + ("its entry does not offer" if other in by_path else f"is {value_at(own, other)!r} in this config")
            )
        if other in by_path:
            forced[other] = values[0]
    return forced
