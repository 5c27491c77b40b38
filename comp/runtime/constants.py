"""Tensors that are computed once for each device and size: tables, matrices, textures."""

import functools
from collections.abc import Callable, Hashable
from typing import ParamSpec, TypeVar

import torch

_Args = ParamSpec("_Args")
_Value = TypeVar("_Value")


def cached_constant(function: Callable[_Args, _Value]) -> Callable[_Args, _Value]:
    """Cache a function whose result depends on its (positional) arguments alone.

    torch.compile looks through `functools.lru_cache` and compiles what a function computes; tensors in a plain
    dictionary it takes for inputs of its graph. So call a constant once before it is compiled.
    """
    held: dict[tuple[Hashable, ...], _Value] = {}

    @functools.wraps(function)
    def constant(*args: _Args.args, **kwargs: _Args.kwargs) -> _Value:
        assert not kwargs
        key = tuple((arg.type, arg.index) if isinstance(arg, torch.device) else arg for arg in args)
        if key not in held:
            held[key] = function(*args)  # type: ignore[call-arg]
        return held[key]

    return constant
