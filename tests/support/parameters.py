"""Parameters of tests of which only some run by default."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow_except(values: Iterable[Any], *quick: Any) -> list[Any]:
    """Return values for `parametrize`: those of `quick` run always, the others with `-m slow`.

    Raises:
        ValueError: `quick` names no value.
    """
    values = list(values)
    if missing := [value for value in quick if value not in values]:
        raise ValueError(f"not among the parameters: {missing}")
    rows = [(value, value if isinstance(value, tuple) else (value,)) for value in values]
    return [pytest.param(*row, marks=() if value in quick else pytest.mark.slow) for value, row in rows]
