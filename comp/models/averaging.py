"""Averages of a training's weights, which often generalise better than the last ones.

An average watches a training, by steps or by epochs' ends, and at its end says which weights it has come to. It never
reads a value from the device between two steps, and its state is part of a checkpoint.
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
Score = Callable[[Mapping[str, Tensor]], float]  # of whole states, on validation; more is better

_WARM_UP = 10  # steps by which the first weights of an exponential average are as good as forgotten


class Average:
    """What a training asks of an average; this one averages nothing."""

    def step(self) -> None:
        """Look at the model after a step of its optimizer."""

    def end_epoch(self, epoch: int, value: float | None) -> None:
        """Look at it at the end of an epoch (from 1); `value` is its selected one where that was measured."""

    def current(self) -> State | None:
        """Return the average so far where it is worth scoring at every epoch's end."""
        return None

    def final(self, score: Score | None) -> State | None:
        """Return the average at the training's end, None where there is nothing to average; `score` may be asked."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes back."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Go on where `state_dict` was called.

        Raises:
            KeyError: another average's or another model's state.
            RuntimeError: shapes of another model.
        """


class _Running(Average):
    """An average that moves towards the model's weights; batch norm's statistics move alike, counters are copied.

    Not torch's AveragedModel nor timm's ModelEmaV3: a step is too short to list a model's tensors. They take 3 ms more
    for a step of efficientnet_b0, and AveragedModel makes the host wait for an accelerator twice. Here the tensors are
    listed once: whoever trains writes into them and never puts others in their place.
    """

    _NAMES: ClassVar[tuple[str, str]]
    """Of the average and of the count of its moves, in a checkpoint."""

    def __init__(self, model: nn.Module) -> None:
        self._average, self._count = clone_state_dict(model), 0
        pairs = [(self._average[name], tensor) for name, tensor in model.state_dict().items()]
        self._floating = [pair for pair in pairs if pair[0].is_floating_point()]
        self._whole = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def _move(self, share: float) -> None:
        """Move a share of the way towards the model."""
        torch._foreach_lerp_([mine for mine, _ in self._floating], [live for _, live in self._floating], share)
        for mine, live in self._whole:
            mine.copy_(live)

    def final(self, score: Score | None) -> State | None:
        """Return the average, None where the training ended before its first move."""
        return self._average if self._count else None

    def state_dict(self) -> dict[str, Any]:
        """Return the average and the count of its moves."""
        return dict(zip(self._NAMES, (self._average, self._count), strict=True))

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Take back what `state_dict` returned."""
        average, count = self._NAMES
        for name, tensor in self._average.items():
            tensor.copy_(state[average][name])
        self._count = int(state[count])


class EMA(_Running):
    """An exponential moving average over steps (as the teacher of Tarvainen and Valpola 2017, arXiv:1703.01780).

    The t-th step (from 1) moves the average by 1 - d_t towards the weights, d_t = min(d, (1 + t) / (10 + t)): at
    first it forgets faster, as TensorFlow's does, so that the drawn weights do not linger.

    Args:
        model: as it starts, on its device.
        horizon_steps: after which a step's share has fallen to 1/e; d = exp(-1 / horizon).
    """

    _NAMES = ("average", "steps")

    def __init__(self, model: nn.Module, horizon_steps: float) -> None:
        super().__init__(model)
        self._decay = math.exp(-1 / horizon_steps)

    def step(self) -> None:
        """Move towards the model's weights."""
        self._count += 1
        self._move(1 - min(self._decay, (1 + self._count) / (_WARM_UP + self._count)))

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
        """Take an epoch's weights into the mean, from the first that counts."""
        if epoch >= self._first_epoch:
            self._count += 1
            self._move(1 / self._count)


class Soup(Average):
    """A greedy soup of the weights at the ends of the last epochs (Wortsman et al. 2022, arXiv:2203.05482).

    The best epoch's weights come first; each further epoch's, from better to worse, are taken into the equal mean if
    it then scores no less. So the soup is never worse on validation than its best member. The paper mixes separate
    fine-tunings; here all members are of one training. They lie in main memory and in every checkpoint.

    Args:
        model: on its device.
        epochs: how many last epochs are members.
    """

    def __init__(self, model: nn.Module, epochs: int) -> None:
        self._model, self._epochs = model, epochs
        self._members: list[tuple[float | None, State]] = []

    def end_epoch(self, epoch: int, value: float | None) -> None:
        """Keep an epoch's weights, and no longer the oldest's."""
        state = {name: tensor.to("cpu") for name, tensor in clone_state_dict(self._model).items()}
        self._members = [*self._members, (value, state)][-self._epochs :]

    def final(self, score: Score | None) -> State | None:
        """Return the soup, None where there is no member."""
        assert score is not None
        scored = [(score(state) if value is None else value, state) for value, state in self._members]
        return greedy_soup(scored, score)[0] if scored else None

    def state_dict(self) -> dict[str, Any]:
        """Return the members and their values."""
        return {"members": self._members}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Take back what `state_dict` returned."""
        self._members = [
            (value, {name: tensor.to("cpu") for name, tensor in member.items()}) for value, member in state["members"]
        ]


# train.average -> what it makes of a model on its device, the steps in an epoch, and section `train`.
AVERAGES: dict[str, Callable[[nn.Module, int, TrainConfig], Average]] = {
    "none": lambda model, steps_per_epoch, train: Average(),
    "ema": lambda model, steps_per_epoch, train: EMA(model, train.ema_epochs * steps_per_epoch),
    "swa": lambda model, steps_per_epoch, train: SWA(model, train.epochs - train.swa_epochs + 1),
    "soup": lambda model, steps_per_epoch, train: Soup(model, train.soup_epochs),
}


def check_averaging(config: TrainConfig, *, validated: bool) -> None:
    """Refuse an average that there is none of, or that could not choose.

    Raises:
        ConfigError: naming the known ones, or how to mend it.
    """
    if config.average not in AVERAGES:
        raise ConfigError(f"train.average: {unknown('average', config.average, AVERAGES)}")
    if config.average == "swa" and config.budget:
        raise ConfigError(
            "train.average: swa averages the last train.swa_epochs epochs, and with train.budget nobody knows "
            "beforehand which those are; average with ema or soup, or leave the budget out"
        )
    if config.average == "soup" and not validated:
        raise ConfigError(
            "train.average: a soup is chosen by validation, and data.validation is none; average with swa or ema"
        )


def mean(states: Iterable[Mapping[str, Tensor]]) -> State:
    """Return the equal mean of states of one model; whole numbers (counters) are the last one's."""
    stacked = list(states)
    return {
        name: torch.stack([state[name].double() for state in stacked]).mean(0).to(last.dtype)
        if last.is_floating_point()
        else last
        for name, last in stacked[-1].items()
    }


def greedy_soup(scored: Sequence[tuple[float, State]], score: Score) -> tuple[State, tuple[int, ...]]:
    """Return a soup and the numbers of the states in it, the best one first (Wortsman et al. 2022, algorithm 1).

    Args:
        scored: one or more states of one model and their values; more is better.
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
    """Give a model another state for a while; its own comes back, whatever happens."""
    own = clone_state_dict(model)
    try:
        model.load_state_dict(state)
        yield
    finally:
        model.load_state_dict(own)


def refreshed(
    model: nn.Module,
    state: Mapping[str, Tensor],
    batches: Iterable[Tensor],
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> State:
    """Return a state with batch norm's statistics taken anew from images: the mean over batches.

    torch's `update_bn` takes them on a copy of the model, in this process alone. Everything else is in evaluation mode
    meanwhile (`update_bn` by itself would switch dropout on), as are layers that the model keeps still.

    Args:
        model: see `has_statistics`; nothing of it changes.
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
    """A SyncBatchNorm that does not wait for the other processes, which refresh nothing."""

    def __init__(self, layer: nn.SyncBatchNorm) -> None:
        super().__init__(layer.num_features)
        self.__dict__.update(layer.__dict__)

    def _check_input_dim(self, input: Tensor) -> None:
        """Take images and vectors."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised input, after the dropout and activation that timm's layers of this kind hold."""
        output = super().forward(input)
        for name in ("drop", "act"):
            output = getattr(self, name, nn.Identity())(output)
        return output


class _MovingNorms(nn.Module):
    """A model with no other layers than those whose statistics `update_bn` is to take anew."""

    def __init__(self, model: nn.Module, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__()
        self._norms = nn.ModuleList(_statistics(model))
        self._run: Callable[[Tensor], Tensor] = model.__call__  # as a module it would be set to training mode whole
        self._autocast = autocast

    def forward(self, images: Tensor) -> Tensor:
        """Return the model's logits."""
        with self._autocast():
            return self._run(images)


def has_statistics(model: nn.Module) -> bool:
    """Tell whether a model keeps batch statistics that training moves."""
    return bool(_statistics(model))


def _statistics(model: nn.Module) -> list[_BatchNorm]:
    still = {f"inner.{name}" for name in getattr(model, "still_norms", ())}
    return [
        layer
        for name, layer in model.named_modules()
        if isinstance(layer, _BatchNorm) and layer.track_running_stats and name not in still
    ]


def clone_state_dict(model: nn.Module) -> State:
    """Return a model's state in tensors of its own."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
