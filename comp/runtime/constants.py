"""Tensors that are computed once for each device and size: tables, matrices, textures."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_Args = ParamSpec("_Args")
_Value = TypeVar("_Value")


def cached_constant(function: Callable[_Args, _Value]) -> Callable[_Args, _Value]:
    """Cache a function whose result depends on its arguments alone, for 16 sets of them.

    `functools.lru_cache` would do, but torch.compile looks through it and compiles what it computes.
    """
    cached = functools.lru_cache(maxsize=16)(function)

    @functools.wraps(function)
    def constant(*args: _Args.args, **kwargs: _Args.kwargs) -> _Value:
        return cached(*args, **kwargs)  # type: ignore[arg-type]

    # What torch.compiler.assume_constant_result sets, without a second for the compiler's import.
    constant._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return constant
