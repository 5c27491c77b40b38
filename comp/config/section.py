"""What all sections of a config are made of."""

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, Self

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
from pydantic_core import PydanticCustomError

# Fields that hold the user's own mapping; the proxy keeps it as frozen as the rest of the tree.
FrozenMapping = Annotated[Mapping[str, JsonValue], AfterValidator(lambda value: MappingProxyType(dict(value))),
                          PlainSerializer(dict)]  # fmt: skip


Fraction = Annotated[float, Field(ge=0, le=1)]


Positive = Annotated[int, Field(ge=1)]


def expecting(text: str) -> WrapValidator:
    """Return a validator that says what is expected of a union in one phrase, not branch by branch."""

    def validate(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(tuple(value) if isinstance(value, list) else value)  # here pydantic forgets that it is JSON
        except ValidationError:
            raise PydanticCustomError("expected", "{text}", {"text": text}) from None

    return WrapValidator(validate)


_Side = Annotated[int, Field(ge=8, le=4096)]


def _square_is_one_side(size: int | tuple[int, int]) -> int | tuple[int, int]:
    """Return [N, N] as N, so that a square has one spelling and one hash."""
    return size[0] if isinstance(size, tuple) and size[0] == size[1] else size


# Of images in pixels: the side of a square, or height and width.
Size = Annotated[_Side | tuple[_Side, _Side], AfterValidator(_square_is_one_side),
                 expecting("a whole number of pixels from 8 to 4096, or [height, width]")]  # fmt: skip


def height_and_width(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (H, W) of a side or of [height, width]."""
    return (size, size) if isinstance(size, int) else size


# Marks of fields for `comp.config.spelling`.
DURATION, PATH = "a time", "a path"


# A file or folder of the user's: `~` and `${NAME}` in it are replaced when a config is read.
UserPath = Annotated[str, PATH]


class Broken(NamedTuple):
    """A rule between fields of one section that their values break.

    Attributes:
        fields: that the rule is about, with dots where they lie in sections below.
        message: says what is wrong and how to mend it, each field by its full name.
    """

    fields: tuple[str, ...]
    message: str


class Section(BaseModel):
    """A part of the config: frozen, and every key must be known."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    def broken(self) -> Iterator[Broken]:
        """Yield the rules between this section's fields that its values break."""
        yield from ()

    @model_validator(mode="after")
    def _keeps_its_rules(self) -> Self:
        if found := list(self.broken()):
            raise PydanticCustomError("rules", "rules between fields are broken", {"broken": found})
        return self


_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def seconds_of(duration: str) -> float:
    """Return the seconds of a duration as configs spell it: `90s`, `15min`, `1.5h`, `7d`.

    Raises:
        ValueError: spelled otherwise, or no time at all.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|min|h|d)", duration)
    seconds = float(found[1]) * _SECONDS[found[2]] if found else 0.0
    if not seconds:
        raise PydanticCustomError("duration", "a time such as 90s, 15min or 1.5h")
    return seconds


def _check_duration(text: str) -> str:
    if text:
        seconds_of(text)
    return text


# Empty: no limit.
Duration = Annotated[str, AfterValidator(_check_duration), DURATION]
