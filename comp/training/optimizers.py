"""Optimizers by name, built from parameter groups, and the learning rate of each group."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, optim
from torch.optim import Optimizer

from comp.config import OptimConfig
from comp.config.section import check_numbers
from comp.models import surgery
from comp.models.classifier import Classifier
from comp.runtime.errors import ConfigError, ModelError, nearest, unknown
from comp.training import schedules
from comp.training.muon import Muon
from comp.training.schedules import Plan, Schedule

ParameterGroups = Iterable[dict[str, Any]]

# Config fields of their own, or set by the trainer: not allowed in `optim.args`.
_NOT_ARGUMENTS = {"params", "lr", "weight_decay", "momentum", "aux_momentum"}


_LARGEST = 1e6  # number in `optim.args`
# What constructors and steps raise for arguments that do not suit them.
_REFUSALS = (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, AttributeError, AssertionError)


class Eager(Optimizer):
    """An optimizer whose methods are torch's own, undecorated; as a base class it precedes torch's.

    torch's methods import `torch._dynamo` at their first call to keep it away from compiled graphs, which takes as long
    as importing torch. Here only forward passes are compiled (`train.compile`), so the wrapped methods are called
    directly: the same bits.
    """

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)
    state_dict = inspect.unwrap(Optimizer.state_dict)
    load_state_dict = inspect.unwrap(Optimizer.load_state_dict)


class SGD(Eager, optim.SGD):
    """torch's SGD."""

    step = torch.no_grad()(inspect.unwrap(optim.SGD.step))


class Adam(Eager, optim.Adam):
    """torch's Adam."""

    step = torch.no_grad()(inspect.unwrap(optim.Adam.step))


class AdamW(Eager, optim.AdamW):
    """torch's AdamW."""

    step = torch.no_grad()(inspect.unwrap(optim.AdamW.step))


class EagerMuon(Eager, Muon):
    """Muon without torch's decorators."""


class LateStartSGD(SGD):
    """torch's SGD where some parameters get their first gradient later than others (`model.unfreeze`).

    torch's fused step refuses a list in which some parameters have a momentum and others do not. A momentum of zero is
    what its first step starts from.
    """

    def step(self, closure: Any = None) -> Any:
        """Take a step; see `torch.optim.SGD.step`."""
        for group in self.param_groups:
            states = [self.state[parameter] for parameter in group["params"] if parameter.grad is not None]
            missing = [state.get("momentum_buffer") is None for state in states]
            if any(missing) and not all(missing):
                for parameter in group["params"]:
                    if parameter.grad is not None and self.state[parameter].get("momentum_buffer") is None:
                        self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return super().step(closure)


class Lookahead(Eager):
    """Wrap an optimizer (Zhang, Lucas, Hinton and Ba 2019, "Lookahead Optimizer: k steps forward, 1 step back").

    Slow weights start as the initial weights, as in the paper. timm's Lookahead starts them at the first
    synchronisation: after 600 steps of AdamW its weights differ by 6 % of their way, and a synchronisation takes 2.9
    times as long. Groups are the wrapped optimizer's own, so a rate set here is set there; its momentum is kept.

    Args:
        fast: takes the steps.
        k: steps between two synchronisations.
        alpha: share of the way that slow weights move towards fast ones.
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
        """Take a fast step; every k-th time move slow weights towards fast ones, and set fast ones to them."""
        loss = self.fast.step(closure)
        self._steps += 1
        if self._steps % self._k == 0:
            fast = self._parameters()
            torch._foreach_lerp_(self._slow, fast, self._alpha)
            torch._foreach_copy_(fast, self._slow)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped optimizer's state, slow weights and the number of steps."""
        return {"fast": self.fast.state_dict(), "slow": self._slow, "steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned.

        Raises:
            ValueError: from another model or optimizer.
        """
        slow = state_dict["slow"]
        if [tensor.shape for tensor in slow] != [tensor.shape for tensor in self._slow]:
            raise ValueError("slow weights of another model")
        self.fast.load_state_dict(state_dict["fast"])
        self.param_groups = self.fast.param_groups
        torch._foreach_copy_(self._slow, slow)
        self._steps = state_dict["steps"]


def adamw(
    groups: ParameterGroups, args: Mapping[str, Any], *, lr: float, betas: tuple[float, float], **unused: Any
) -> Optimizer:
    """AdamW (Loshchilov and Hutter 2019)."""
    return _construct("adamw", AdamW, groups, args, lr=lr, betas=betas, fused=True)


def adam(
    groups: ParameterGroups, args: Mapping[str, Any], *, lr: float, betas: tuple[float, float], **unused: Any
) -> Optimizer:
    """Adam (Kingma and Ba 2015); its weight decay is added to the gradient."""
    return _construct("adam", Adam, groups, args, lr=lr, betas=betas, fused=True)


def sgd(groups: ParameterGroups, args: Mapping[str, Any], *, lr: float, momentum: float, **unused: Any) -> Optimizer:
    """SGD with Nesterov momentum (Sutskever et al. 2013); `args: {nesterov: false}` for the classical one."""
    settings = {"lr": lr, "momentum": momentum, "nesterov": momentum > 0, "fused": True}
    return _construct("sgd", LateStartSGD, groups, args, **settings)


def muon(
    groups: ParameterGroups,
    args: Mapping[str, Any],
    *,
    lr: float,
    momentum: float,
    aux_lr: float | None,
    aux_momentum: float,
    aux_decay: float,
    **unused: Any,
) -> Optimizer:
    """Muon for hidden matrices and kernels (Jordan et al. 2024), SGD with Nesterov momentum for the rest.

    Sets the rate and decay of the auxiliary SGD in its groups: `lr_scale` relates its peak to `lr`, and its weight
    decay makes rate times decay equal `aux_decay` at the peak in every group, fast or slow.
    """
    scaled = []
    for group in groups:
        if not group["hidden"]:
            peak = (aux_lr or lr) * group["lr_scale"]
            decay = aux_decay / peak if group["decays"] and peak > 0 else 0.0
            group = group | {"lr_scale": peak / lr, "weight_decay": decay}
        scaled.append(group)
    return _construct("muon", EagerMuon, scaled, args, lr=lr, momentum=momentum, aux_momentum=aux_momentum)


# optim.name -> builds it from parameter groups, `optim.args`, and the values of OptimConfig (each takes what it needs).
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"adamw": adamw, "adam": adam, "sgd": sgd, "muon": muon}


def timm_optimizer(
    name: str, groups: ParameterGroups, args: Mapping[str, Any], *, lr: float, momentum: float
) -> Optimizer:
    """Return an optimizer of timm's factory, with timm's defaults for everything but rate, decay and momentum.

    Raises:
        ConfigError: unknown to timm too, needs second derivatives, or a package or device that is missing.
    """
    import timm.optim

    names = timm.optim.list_optimizers()
    if name not in names:
        near = nearest(name, {*OPTIMIZERS, *names})
        raise ConfigError(
            f"optim.name: unknown optimizer '{name}'; choose from {', '.join(sorted(OPTIMIZERS))}, or any of timm's "
            f"{len(names)}, listed by timm.optim.list_optimizers(){near}"
        )
    info = timm.optim.get_optimizer_info(name)
    if info.second_order:
        raise ConfigError(f"optim.name: {name} needs second derivatives, which the trainer does not compute")
    try:
        constructor = timm.optim.get_optimizer_class(name)
    except (ImportError, AssertionError) as error:
        raise ConfigError(f"optim.name: {name} cannot be used on this machine: {error}") from None
    return _construct(name, constructor, groups, args, lr=lr, **({"momentum": momentum} if info.has_momentum else {}))


def _construct(
    name: str,
    constructor: Callable[..., Optimizer],
    groups: ParameterGroups,
    args: Mapping[str, Any],
    **settings: Any,
) -> Optimizer:
    """Call a constructor with settings and `optim.args`, which override them."""
    allowed = inspect.signature(constructor).parameters.keys() - _NOT_ARGUMENTS
    for argument in args:
        if argument in _NOT_ARGUMENTS:
            raise ConfigError(
                f"optim.args.{argument}: is a config field or set by the trainer; use optim.{argument} instead"
            )
        if argument not in allowed:
            raise ConfigError(f"optim.args: {unknown('argument', argument, allowed)}")
    # YAML has only lists, and constructors want pairs as tuples.
    extra = {key: tuple(value) if isinstance(value, list) else value for key, value in args.items()}
    try:
        return constructor(groups, **{**settings, **extra})
    except _REFUSALS as error:
        what = f"optim.args: {name} refuses {dict(args)}" if args else f"optim: {name} refuses {settings}"
        raise ConfigError(f"{what}: {error}") from None


def build_optimizer(groups: ParameterGroups, config: OptimConfig) -> Optimizer:
    """Return the config's optimizer.

    Args:
        groups: from `comp.models.surgery.parameter_groups`.
        config: section `optim`.

    Raises:
        ConfigError: an unknown name or argument, or a value that the optimizer refuses.
    """
    if config.name in OPTIMIZERS:
        optimizer = OPTIMIZERS[config.name](
            groups,
            config.args,
            lr=config.lr,
            momentum=config.momentum,
            betas=config.betas,
            aux_lr=config.aux_lr,
            aux_momentum=config.aux_momentum,
            aux_decay=config.aux_decay,
        )
    else:
        optimizer = timm_optimizer(config.name, groups, config.args, lr=config.lr, momentum=config.momentum)
    return Lookahead(optimizer, config.lookahead.k, config.lookahead.alpha) if config.lookahead.k else optimizer


def for_model(model: Classifier, config: OptimConfig) -> Optimizer:
    """Return a model's optimizer, its parameters grouped by the config.

    Raises:
        ConfigError: see `build_optimizer`.
        ModelError: a pattern that matches nothing.
    """
    try:
        groups = surgery.parameter_groups(
            model,
            config.weight_decay,
            config.layer_decay,
            decay_all=config.decay_all,
            multipliers=config.multipliers,
            ends=config.ends,
            hidden_apart=config.name == "muon",
        )
    except ModelError as error:
        raise ModelError(f"optim.multipliers, optim.ends: {error}") from None
    return build_optimizer(groups, config)


def schedule_of(config: OptimConfig) -> Schedule:
    """Return the config's learning rate schedule.

    Raises:
        ConfigError: unknown.
    """
    schedules.check_schedule(config.schedule)
    return Schedule(
        config.schedule,
        config.lr,
        warmup=config.warmup,
        start_factor=config.start_factor,
        final_factor=config.final_factor,
        step_epochs=config.step_epochs,
        step_factor=config.step_factor,
    )


def check_optimizer(config: OptimConfig) -> None:
    """Check optimizer and schedule by building them for one small matrix, and arguments by taking two steps with them.

    Raises:
        ConfigError: see `build_optimizer` and `schedule_of`; or a step that fails, or ends in NaN or infinity.
    """
    schedule_of(config)
    check_numbers(config.args, "optim.args", -_LARGEST, _LARGEST)
    weight = torch.nn.Parameter(torch.ones(2, 2))
    group = {"params": [weight], "weight_decay": config.weight_decay, "lr_scale": 1.0, "hidden": True}
    optimizer = build_optimizer([group], config)
    if not config.args:
        return
    reason = "the weights are no longer finite"
    try:
        for slope in (0.5, -0.25):
            weight.grad = torch.full_like(weight, slope)
            weight.grad[0, 0] = 0  # as of a bias before batch norm
            optimizer.step()
    except _REFUSALS as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
    else:
        if weight.isfinite().all():
            return
    raise ConfigError(f"optim.args: {config.name} cannot take a step with {dict(config.args)}: {reason}")


def set_rates(optimizer: Optimizer, step: int, plan: Plan, schedule: Schedule, *, factor: float = 1.0) -> None:
    """Set every group's rate: the schedule's times `factor` and the group's `lr_scale`; 0 after the group's end."""
    shared = schedule.rate(step, plan)
    for group in optimizer.param_groups:
        rate = shared
        if ends := group.get("ends"):
            group_plan = plan.ending(ends)
            rate = schedule.rate(step, group_plan) if step < group_plan.total_steps else 0.0
        group["lr"] = rate * factor * group["lr_scale"]


def freeze_finished_groups(optimizer: Optimizer, epoch: int) -> None:
    """Turn off gradients of groups whose end (`optim.ends`) lies before an epoch (from 1)."""
    for group in optimizer.param_groups:
        if group.get("ends") and epoch > group["ends"]:
            for parameter in group["params"]:
                parameter.requires_grad = False
                parameter.grad = None
