"""Class names: which are numbers, what those are worth, and the order that classes come in."""

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal

# No exponent, no inf, no nan: a class may be called `12e4` or `nan`, and then it is a name.
_PLAIN = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)", re.ASCII)


def decimal(text: str) -> Decimal | None:
    """Return the value of a plain decimal such as `2`, `2.0`, `-1` or `007`; None for any other text."""
    bare = text.strip()
    return Decimal(bare) if _PLAIN.fullmatch(bare) else None


def values(names: Sequence[str]) -> list[Decimal] | None:
    """Return what the names are worth where all of them are plain decimals, else None."""
    found = [decimal(name) for name in names]
    known = [value for value in found if value is not None]
    return known if len(known) == len(found) else None


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Return names in label order: by value where all are plain decimals, so that 2 comes before 10, else by text."""
    distinct = sorted(set(names))
    worth = values(distinct)
    if worth is None:
        return tuple(distinct)
    return tuple(name for _, name in sorted(zip(worth, distinct, strict=True)))
