"""The search space of a study: dotted config paths and their possible values."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from comp.config.loading import from_mapping
from comp.config.messages import check_keys
from comp.config.tree import Config, TuneConfig
from comp.runtime.errors import ConfigError, unknown

SECTIONS = ("augment", "model", "optim", "train")  # others would change the images that score trials
_KINDS = ("float", "int", "choice")
_MODIFIERS = {"float": {"log", "step"}, "int": {"log", "step"}, "choice": set[str]()}
_MOST_STEPS = 1_000_000  # of a range
_DIGITS = 6  # significant digits of floats; more would only be harder to read


@dataclass(frozen=True)
class Entry:
    """A tuned key and its possible values.

    Attributes:
        path: dotted, as in overrides.
        kind: float, int or choice.
        low: smallest value of a range.
        high: largest value of a range.
        log: whether values are drawn on a logarithmic scale.
        step: distance between values; None: any float, or every whole number.
        choices: the values of a choice.
        when: path of another key -> its values for which this key is tuned.
    """

    path: str
    kind: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None
    choices: tuple[Any, ...] = ()
    when: Mapping[str, tuple[Any, ...]] | None = None

    def representatives(self) -> tuple[Any, ...]:
        """Return the values that represent all: every choice, or both ends of a range."""
        return self.choices if self.kind == "choice" else tuple(self.rounded(end) for end in (self.low, self.high))

    def contains(self, value: Any) -> bool:
        """Return whether a value is one of the possible values."""
        if self.kind == "choice":
            return any(equal_values(value, choice) for choice in self.choices)
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        if self.kind == "int" and value != int(value):
            return False
        if not self.step:
            return True
        steps = (value - self.low) / self.step
        return abs(steps - round(steps)) < 1e-8  # Optuna's own tolerance

    def rounded(self, value: Any) -> Any:
        """Return a drawn value as it is written to a config: floats with few digits, within the range."""
        if self.kind == "int":
            return int(value)
        if self.kind == "choice":
            return value
        return min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high)


def equal_values(first: Any, second: Any) -> bool:
    """Return whether two plain values are equal; true does not equal 1."""
    comparable = type(first) is type(second) or (_is_number(first) and _is_number(second))
    return comparable and bool(first == second)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def parse_space(tune: TuneConfig) -> list[Entry]:
    """Return the space's entries, each after the entries that its `when` names.

    Raises:
        ConfigError: an entry is invalid, or the `when` conditions form a cycle.
    """
    entries = {path: _parse_entry(path, dict(values)) for path, values in tune.space.items()}
    ordered: dict[str, Entry] = {}
    while len(ordered) < len(entries):
        ready = [
            entry
            for path, entry in entries.items()
            if path not in ordered and all(other in ordered or other not in entries for other in entry.when or ())
        ]
        if not ready:
            cycle = ", ".join(path for path in entries if path not in ordered)
            raise ConfigError(f"tune.space: {cycle}: their `when` conditions form a cycle; remove one of them")
        ordered |= {entry.path: entry for entry in ready}
    return list(ordered.values())


def _parse_entry(path: str, values: dict[str, Any]) -> Entry:
    where = f"tune.space: {path}"
    kinds = [kind for kind in _KINDS if kind in values]
    if len(kinds) != 1:
        keys = ", ".join(values) or "nothing"
        raise ConfigError(f"{where}: expected one of float, int, choice, such as {{float: [0, 0.3]}}; found {keys}")
    (kind,) = kinds
    when = values.pop("when", {})
    content = values.pop(kind)
    allowed = {kind, "when"} | _MODIFIERS[kind]
    for name in values:
        if name not in allowed:
            raise ConfigError(f"{where}: {unknown('key', name, allowed)}")
    if not isinstance(when, Mapping):
        raise ConfigError(f"{where}: when: expected {{other.path: value}}, found {when!r}")
    conditions = {other: tuple(value) if isinstance(value, list) else (value,) for other, value in when.items()}
    if kind == "choice":
        return Entry(path, kind, choices=_parse_choices(content, where), when=conditions)
    return _parse_range(path, kind, content, values, conditions)


def _parse_choices(values: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{where}: choice: expected a list of values, found {values!r}")
    for index, value in enumerate(values):
        if any(value == earlier for earlier in values[:index]):
            raise ConfigError(f"{where}: choice: duplicate value {value!r}; remove one")
    return tuple(values)


def _parse_range(path: str, kind: str, ends: Any, values: dict[str, Any], when: dict[str, tuple[Any, ...]]) -> Entry:
    where = f"tune.space: {path}"
    log, step = values.get("log", False), values.get("step")
    whole = kind == "int"
    if not (isinstance(ends, list) and len(ends) == 2 and all(_is_number(end) for end in ends)):
        raise ConfigError(f"{where}: {kind}: expected [lowest, highest], found {ends!r}")
    if whole and any(end != int(end) for end in ends):
        raise ConfigError(f"{where}: int: expected whole numbers, found {ends!r}; use float")
    low, high = ends
    if low >= high:
        raise ConfigError(f"{where}: {kind}: expected [lowest, highest], found {ends!r}; swap them")
    if not isinstance(log, bool) or (log and low <= 0):
        raise ConfigError(f"{where}: log: expected true or false, and true only above 0; found {log!r} from {low}")
    if step is not None and (not _is_number(step) or step <= 0 or (whole and step != int(step))):
        raise ConfigError(f"{where}: step: expected a {'whole ' if whole else ''}number above 0, found {step!r}")
    if step is not None and high - low > step * _MOST_STEPS:
        raise ConfigError(
            f"{where}: step: expected at most {_MOST_STEPS:,} steps from {low} to {high}, found steps of {step!r}; "
            "take larger ones, or leave step out"
        )
    if step is not None and log:
        raise ConfigError(f"{where}: log and step cannot be combined; remove one")
    if step is not None:
        # The largest value that is reached, in decimals, as Optuna counts steps.
        first, width, size = (Decimal(str(number)) for number in (low, high - low, step))
        high = type(low + step)(first + size * int(width / size + Decimal("1e-9")))
    return Entry(path, kind, low, high, log=log, step=step, when=when)


def pick_values(space: Sequence[Entry], config: Config, pick: Callable[[Entry], Any]) -> dict[str, Any]:
    """Return path -> picked value of all active entries; the other keys keep the config's values."""
    defaults, values = config.model_dump(mode="json"), dict[str, Any]()
    for entry in space:
        if _is_active(entry, values, defaults):
            values[entry.path] = pick(entry)
    return values


def _is_active(entry: Entry, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> bool:
    return all(
        any(equal_values(values.get(other, value_at(defaults, other)), value) for value in required)
        for other, required in (entry.when or {}).items()
    )


def value_at(tree: Any, path: str) -> Any:
    """Return the value at a dotted path in plain values; None if there is none."""
    for key in path.split("."):
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def apply_values(config: Config, values: Mapping[str, Any], *, seed: int | None = None) -> Config:
    """Return a trial's config: the study's config without section `tune`, with these values and seed.

    Raises:
        ConfigError: a value is invalid.
    """
    tree = config.model_dump(mode="json", exclude={"tune"})
    for path, value in values.items():
        *sections, name = path.split(".")
        section = tree
        for key in sections:
            section = section.setdefault(key, {})
        section[name] = value
    if seed is not None:
        tree["seed"] = seed
    return from_mapping(tree, "tune.space")


def probe_configs(config: Config) -> Iterator[Config]:
    """Yield trial configs in which each entry takes each of its representative values once.

    Raises:
        ConfigError: a path is unknown, a value is invalid, or a `when` can never be true.
    """
    space = parse_space(config.tune)
    by_path = {entry.path: entry for entry in space}
    defaults = config.model_dump(mode="json")
    for entry in space:
        _check_path(entry.path, defaults)
        for other in entry.when or ():
            _check_known(other)
        for value in entry.representatives():
            forced = _prerequisites(entry, by_path, defaults) | {entry.path: value}

            def pick(other: Entry, forced: Mapping[str, Any] = forced) -> Any:
                if other.path in forced:
                    return forced[other.path]
                default = value_at(defaults, other.path)
                return default if other.contains(default) else other.representatives()[0]

            try:
                yield apply_values(config, pick_values(space, config, pick))
            except ConfigError as error:
                reason = str(error).removeprefix("tune.space: ")
                if not reason.startswith(f"{entry.path}: expected"):  # a rule between keys
                    reason += "; if this key needs a certain value of another key, add when: {other.path: value}"
                raise ConfigError(f"tune.space: {entry.path}={value!r} would be invalid: {reason}") from None


def _check_known(path: str) -> None:
    tree: Any = {}
    for key in reversed(path.split(".")):
        tree = {key: tree}
    check_keys(tree, Config, "tune.space")


def _check_path(path: str, defaults: Mapping[str, Any]) -> None:
    _check_known(path)
    *sections, name = path.split(".")
    if path.split(".")[0] not in SECTIONS:
        raise ConfigError(
            f"tune.space: {path}: only keys in {', '.join(SECTIONS)} can be tuned; other sections change the images "
            "that score trials, or have no effect on training"
        )
    parent = value_at(defaults, ".".join(sections))
    if not isinstance(parent, Mapping) or (len(sections) == 1 and isinstance(parent.get(name), Mapping)):
        raise ConfigError(f"tune.space: {path}: expected the path of one value, such as optim.lr")


def _prerequisites(entry: Entry, by_path: Mapping[str, Entry], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return values of other entries for which this one is tuned."""
    forced: dict[str, Any] = {}
    for other, required in (entry.when or {}).items():
        default = value_at(defaults, other)
        if other in by_path:
            values = [value for value in required if by_path[other].contains(value)]
            forced |= _prerequisites(by_path[other], by_path, defaults)
        else:
            values = [value for value in required if equal_values(value, default)]
        if not values:
            expected = " or ".join(map(repr, required))
            actual = "its entry does not include" if other in by_path else f"is {default!r} in this config"
            raise ConfigError(
                f"tune.space: {entry.path}: never tuned: its `when` requires {other} to be {expected}, which {actual}"
            )
        if other in by_path:
            forced[other] = values[0]
    return forced
