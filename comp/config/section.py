"""The base of all config sections, and the types of their fields."""

import re
import types
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, Self, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from comp.runtime.errors import ConfigError

# A mapping with keys of your own; the proxy makes it as immutable as the rest of the config.
FrozenMapping = Annotated[
    Mapping[str, JsonValue], AfterValidator(lambda value: MappingProxyType(dict(value))), PlainSerializer(dict)
]
Fraction = Annotated[float, Field(ge=0, le=1)]
# Counts: a billion means "all", or "never".
Positive = Annotated[int, Field(ge=1, le=10**9)]
NotNegative = Annotated[int, Field(ge=0, le=10**9)]
Amount = Annotated[float, Field(ge=0, le=1e9)]
Name = Annotated[str, Field(max_length=200)]  # of a folder or file, whose names end at 255 bytes

# Marks of fields for `comp.config.loading`.
DURATION, PATH = "a time", "a path"

# A file or folder; `~` and `${NAME}` in it are replaced when a config file is read.
UserPath = Annotated[str, PATH]


def expecting(text: str) -> WrapValidator:
    """Return a validator that describes a union's expected values in one phrase instead of branch by branch."""

    def validate(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(tuple(value) if isinstance(value, list) else value)  # here strict mode accepts no JSON list
        except ValidationError:
            raise PydanticCustomError("expected", "{text}", {"text": text}) from None

    return WrapValidator(validate)


def _simplify_square(size: int | tuple[int, int]) -> int | tuple[int, int]:
    """Return [N, N] as N, so that a square has one spelling and one hash."""
    return size[0] if isinstance(size, tuple) and size[0] == size[1] else size


_Side = Annotated[int, Field(ge=8, le=4096)]
# Image size in pixels: the side of a square, or [height, width].
Size = Annotated[
    _Side | tuple[_Side, _Side],
    AfterValidator(_simplify_square),
    expecting("a whole number of pixels from 8 to 4096, or [height, width]"),
]


def height_and_width(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (H, W) of a side or of [height, width]."""
    return (size, size) if isinstance(size, int) else size


_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_LONGEST = 1000 * _SECONDS["d"]


def parse_duration(duration: str) -> float:
    """Return the seconds of a duration such as `90s`, `15min`, `1.5h` or `7d`.

    Raises:
        ValueError: another spelling, zero, or more than 1000 days.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|min|h|d)", duration)
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if not 0 < seconds <= _LONGEST:
        raise PydanticCustomError("duration", "a time such as 90s, 15min or 1.5h, at most 1000d")
    return seconds


def _check_duration(text: str) -> str:
    if text:
        parse_duration(text)
    return text


# Empty: no limit.
Duration = Annotated[str, AfterValidator(_check_duration), DURATION]


class BrokenRule(NamedTuple):
    """A rule between a section's fields that their values break.

    Attributes:
        fields: the rule's fields; dotted if they are in subsections.
        message: what is wrong and how to fix it, with the fields' full names.
    """

    fields: tuple[str, ...]
    message: str


class Section(BaseModel):
    """A part of the config: immutable, with no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    def broken_rules(self) -> Iterator[BrokenRule]:
        """Yield the rules between fields that this section's values break."""
        yield from ()

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        if rules := list(self.broken_rules()):
            raise PydanticCustomError("rules", "rules between fields are broken", {"broken": rules})
        return self


def section_of(info: FieldInfo | None) -> type[BaseModel] | None:
    """Return the section class of a field, None if the field holds a value."""
    annotation = info.annotation if info else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def alternatives(annotation: Any) -> Iterator[Any]:
    """Yield the types of a union, without their constraints."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from alternatives(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from alternatives(member)
    else:
        yield annotation


def is_mapping(annotation: Any) -> bool:
    """Return whether a field may be a mapping with keys of your own."""
    return any(get_origin(member) in (dict, Mapping) for member in alternatives(annotation))


def check_numbers(values: Any, where: str, low: float, high: float) -> None:
    """Check that every number in plain values, also in their lists and mappings, lies in a range.

    Args:
        values: of a config.
        where: their key, for the message.
        low: smallest allowed number.
        high: largest allowed number.

    Raises:
        ConfigError: names the first other number.
    """
    if isinstance(values, Mapping | list | tuple):
        for key, value in values.items() if isinstance(values, Mapping) else enumerate(values):
            check_numbers(value, f"{where}.{key}", low, high)
    elif isinstance(values, int | float) and not low <= values <= high:
        raise ConfigError(f"{where}: expected a number from {low:g} to {high:g}, found {values!r}")
