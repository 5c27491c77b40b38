"""Weight averaging: EMA, SWA and greedy soups of a training's weights, and batch norm statistics for them.

An average is updated at steps or at epochs' ends, and returns its weights at the training's end. It never reads a value
from the device between two steps, and its state is part of a checkpoint.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from comp.config import TrainConfig
from comp.runtime.errors import ConfigError, unknown

State = dict[str, Tensor]
Score = Callable[[Mapping[str, Tensor]], float]  # of whole states, on validation; higher is better

_WARM_UP = 10  # steps after which an exponential average has nearly forgotten the first weights


class Average:
    """Interface of an average; this one averages nothing."""

    def step(self) -> None:
        """Update after an optimizer step."""

    def end_epoch(self, epoch: int, value: float | None) -> None:
        """Update at the end of an epoch (from 1); `value` is its selected value where measured."""

    def current(self) -> State | None:
        """Return the average so far if it should be scored at every epoch's end."""
        return None

    def final(self, score: Score | None) -> State | None:
        """Return the average at the training's end, None if there is nothing to average; may call `score`."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` loads."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Load what `state_dict` returned.

        Raises:
            KeyError: another average's or another model's state.
            RuntimeError: shapes of another model.
        """


class _Running(Average):
    """An average that moves towards the model's weights and batch norm statistics; counters are copied.

    Not torch's AveragedModel nor timm's ModelEmaV3, which list the model's tensors at every step: 3 ms more for a step
    of efficientnet_b0, and AveragedModel makes the host wait for an accelerator twice. Here the tensors are listed
    once: training writes into them and never replaces them.
    """

    _NAMES: ClassVar[tuple[str, str]]
    """Keys of the average and of the count of its updates in a checkpoint."""

    def __init__(self, model: nn.Module) -> None:
        self._average, self._count = clone_state_dict(model), 0
        pairs = [(self._average[name], tensor) for name, tensor in model.state_dict().items()]
        self._floating = [pair for pair in pairs if pair[0].is_floating_point()]
        self._counters = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def _lerp_(self, weight: float) -> None:
        """Move by `weight` towards the model; copy counters."""
        torch._foreach_lerp_([average for average, _ in self._floating], [live for _, live in self._floating], weight)
        if self._counters:
            torch._foreach_copy_([average for average, _ in self._counters], [live for _, live in self._counters])

    def final(self, score: Score | None) -> State | None:
        """Return the average, None if the training ended before its first update."""
        return self._average if self._count else None

    def state_dict(self) -> dict[str, Any]:
        """Return the average and the count of its updates."""
        return dict(zip(self._NAMES, (self._average, self._count), strict=True))

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Load what `state_dict` returned."""
        average, count = self._NAMES
        for name, tensor in self._average.items():
            tensor.copy_(state[average][name])
        self._count = int(state[count])


class EMA(_Running):
    """An exponential moving average over steps (as the teacher of Tarvainen and Valpola 2017, arXiv:1703.01780).

    The t-th step (from 1) moves the average by 1 - d_t towards the weights, d_t = min(d, (1 + t) / (10 + t)): at
    first it forgets faster, as TensorFlow's does, so that the initial weights do not linger.

    Args:
        model: with its initial weights, on its device.
        horizon_steps: after which a step's share has fallen to 1/e; d = exp(-1 / horizon).
    """

    _NAMES = ("average", "steps")

    def __init__(self, model: nn.Module, horizon_steps: float) -> None:
        super().__init__(model)
        self._decay = math.exp(-1 / horizon_steps)

    def step(self) -> None:
        """Move towards the model's weights."""
        self._count += 1
        self._lerp_(1 - min(self._decay, (1 + self._count) / (_WARM_UP + self._count)))

    def current(self) -> State:
        """Return the average."""
        return self._average


class SWA(_Running):
    """The equal mean of the weights at the ends of the last epochs (Izmailov et al. 2018, arXiv:1803.05407).

    Args:
        model: on its device.
        first_epoch: the first whose end counts, from 1.
    """

    _NAMES = ("mean", "count")

    def __init__(self, model: nn.Module, first_epoch: int) -> None:
        super().__init__(model)
        self._first_epoch = first_epoch

    def end_epoch(self, epoch: int, value: float | None) -> None:
        """Add an epoch's weights to the mean, from `first_epoch` on."""
        if epoch >= self._first_epoch:
            self._count += 1
            self._lerp_(1 / self._count)


class Soup(Average):
    """A greedy soup of the weights at the ends of the last epochs (Wortsman et al. 2022, arXiv:2203.05482).

    The best epoch's weights come first; each further epoch's, from better to worse, join the equal mean if it then
    scores no less. So the soup is never worse on validation than its best member. The paper mixes separate
    fine-tunings; here all members are from one training. They are kept in main memory and in every checkpoint.

    Args:
        model: on its device.
        epochs: how many last epochs are members.
    """

    def __init__(self, model: nn.Module, epochs: int) -> None:
        self._model, self._epochs = model, epochs
        self._members: list[tuple[float | None, State]] = []

    def end_epoch(self, epoch: int, value: float | None) -> None:
        """Keep an epoch's weights and drop the oldest."""
        state = {name: tensor.to("cpu") for name, tensor in clone_state_dict(self._model).items()}
        self._members = [*self._members, (value, state)][-self._epochs :]

    def final(self, score: Score | None) -> State | None:
        """Return the soup, None without members."""
        assert score is not None
        scored = [(score(state) if value is None else value, state) for value, state in self._members]
        return greedy_soup(scored, score)[0] if scored else None

    def state_dict(self) -> dict[str, Any]:
        """Return the members and their values."""
        return {"members": self._members}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Load what `state_dict` returned."""
        self._members = [
            (value, {name: tensor.to("cpu") for name, tensor in member.items()}) for value, member in state["members"]
        ]


# train.average -> builds it for a model on its device; each takes what it needs of `build_average`'s settings.
AVERAGES: dict[str, Callable[..., Average]] = {
    "none": lambda model, **unused: Average(),
    "ema": lambda model, *, steps_per_epoch, ema_epochs, **unused: EMA(model, ema_epochs * steps_per_epoch),
    "swa": lambda model, *, epochs, swa_epochs, **unused: SWA(model, epochs - swa_epochs + 1),
    "soup": lambda model, *, soup_epochs, **unused: Soup(model, soup_epochs),
}
"""What each row is:

none: No average.
ema: Exponential moving average over steps (as the teacher of Tarvainen and Valpola 2017, arXiv:1703.01780).
swa: Equal mean over the last epochs (Izmailov et al. 2018, arXiv:1803.05407).
soup: Greedy soup of the last epochs' weights (Wortsman et al. 2022, arXiv:2203.05482).
"""


def build_average(model: nn.Module, config: TrainConfig, steps_per_epoch: int) -> Average:
    """Return the config's average of a model on its device."""
    return AVERAGES[config.average](
        model,
        steps_per_epoch=steps_per_epoch,
        epochs=config.epochs,
        ema_epochs=config.ema_epochs,
        swa_epochs=config.swa_epochs,
        soup_epochs=config.soup_epochs,
    )


def check_averaging(config: TrainConfig, *, validated: bool) -> None:
    """Check that the average exists and fits the rest of the config.

    Raises:
        ConfigError: listing the averages, or how to fix it.
    """
    if config.average not in AVERAGES:
        raise ConfigError(f"train.average: {unknown('average', config.average, AVERAGES)}")
    if config.average == "swa" and config.budget:
        raise ConfigError(
            "train.average: swa averages the last train.swa_epochs epochs, which are unknown in advance with "
            "train.budget; use ema or soup, or leave the budget out"
        )
    if config.average == "soup" and not validated:
        raise ConfigError(
            "train.average: a soup is selected on validation, and data.validation is none; use swa or ema"
        )


def mean(states: Iterable[Mapping[str, Tensor]]) -> State:
    """Return the equal mean of states of one model; integers (counters) are the last state's."""
    stacked = list(states)
    return {
        name: _wide_mean([state[name] for state in stacked]) if last.is_floating_point() else last
        for name, last in stacked[-1].items()
    }


def _wide_mean(tensors: Sequence[Tensor]) -> Tensor:
    """Return the mean, summed in float64; on the CPU for MPS, which has none."""
    last = tensors[-1]
    summed = [(tensor.cpu() if tensor.device.type == "mps" else tensor).double() for tensor in tensors]
    return torch.stack(summed).mean(0).to(last.dtype).to(last.device)


def greedy_soup(scored: Sequence[tuple[float, State]], score: Score) -> tuple[State, tuple[int, ...]]:
    """Return a soup and the numbers of the states in it, the best one first (Wortsman et al. 2022, algorithm 1).

    Args:
        scored: one or more states of one model and their values; higher is better.
        score: of the mean of some of them.
    """
    ranked = sorted(range(len(scored)), key=lambda number: scored[number][0], reverse=True)  # the older of equals first
    best, soup = scored[ranked[0]]
    chosen = [ranked[0]]
    for number in ranked[1:]:
        tried = mean([*(scored[member][1] for member in chosen), scored[number][1]])
        value = score(tried)
        if value >= best:
            best, soup, chosen = value, tried, [*chosen, number]
    return soup, tuple(chosen)


@contextmanager
def temporary_weights(model: nn.Module, state: Mapping[str, Tensor]) -> Iterator[None]:
    """Load another state into a model for the duration of a `with` block."""
    original = clone_state_dict(model)
    try:
        model.load_state_dict(state)
        yield
    finally:
        model.load_state_dict(original)


def refresh_bn_statistics(
    model: nn.Module,
    state: Mapping[str, Tensor],
    batches: Iterable[Tensor],
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> State:
    """Return a state with batch norm statistics recomputed from images: the mean over batches.

    torch's `update_bn` computes them on a copy of the model, in this process only. Everything else is in evaluation
    mode meanwhile (`update_bn` by itself would switch dropout on), including the model's frozen batch norm layers.

    Args:
        model: with batch norm (see `has_bn_statistics`); unchanged.
        state: a state of the model, such as averaged weights.
        batches: images as the model takes them; at least one batch.
        autocast: gives the context of each forward pass.
    """
    copy = deepcopy(model)
    copy.load_state_dict(state)
    for name, layer in list(copy.named_modules()):
        if isinstance(layer, nn.SyncBatchNorm):
            copy.set_submodule(name, _Unsynchronised(layer))
    copy.eval()
    update_bn(batches, _MovingNorms(copy, autocast))
    return dict(copy.state_dict())


class _Unsynchronised(_BatchNorm):
    """A SyncBatchNorm that does not wait for the other processes, which do not recompute."""

    def __init__(self, layer: nn.SyncBatchNorm) -> None:
        super().__init__(layer.num_features)
        self.__dict__.update(layer.__dict__)

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept images and vectors."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised input, after the dropout and activation that timm's layers of this kind hold."""
        output = super().forward(input)
        for name in ("drop", "act"):
            output = getattr(self, name, nn.Identity())(output)
        return output


class _MovingNorms(nn.Module):
    """A model that shows `update_bn` only the layers whose statistics it recomputes."""

    def __init__(self, model: nn.Module, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__()
        self._norms = nn.ModuleList(_statistics(model))
        self._run: Callable[[Tensor], Tensor] = model.__call__  # as a module it would be set to training mode whole
        self._autocast = autocast

    def forward(self, images: Tensor) -> Tensor:
        """Return the model's logits."""
        with self._autocast():
            return self._run(images)


def has_bn_statistics(model: nn.Module) -> bool:
    """Return whether a model has batch norm statistics that training updates."""
    return bool(_statistics(model))


def _statistics(model: nn.Module) -> list[_BatchNorm]:
    frozen = {f"inner.{name}" for name in getattr(model, "frozen_bn_layers", ())}
    return [
        layer
        for name, layer in model.named_modules()
        if isinstance(layer, _BatchNorm) and layer.track_running_stats and name not in frozen
    ]


def clone_state_dict(model: nn.Module) -> State:
    """Return a copy of a model's state."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
