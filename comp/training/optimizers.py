"""Optimizers by name, and the rate that each of their groups gets."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer

from comp.config import OptimConfig
from comp.models import surgery
from comp.models.classifier import Classifier
from comp.runtime.errors import ConfigError, ModelError, nearest, unknown
from comp.training import eager, schedules
from comp.training.lookahead import Lookahead
from comp.training.muon import Muon
from comp.training.schedules import Plan

ParameterGroups = Iterable[dict[str, Any]]

# Fields of the config, or set by us, and so no `optim.args`.
_NOT_ARGUMENTS = {"params", "lr", "weight_decay", "momentum", "aux_momentum"}


def adamw(groups: ParameterGroups, config: OptimConfig) -> Optimizer:
    """AdamW (Loshchilov and Hutter 2019)."""
    return _construct(eager.AdamW, groups, config, betas=config.betas, fused=True)


def adam(groups: ParameterGroups, config: OptimConfig) -> Optimizer:
    """Adam (Kingma and Ba 2015); its weight decay is added to the gradient."""
    return _construct(eager.Adam, groups, config, betas=config.betas, fused=True)


class LateStartSGD(eager.SGD):
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


def sgd(groups: ParameterGroups, config: OptimConfig) -> Optimizer:
    """SGD with Nesterov momentum (Sutskever et al. 2013); `args: {nesterov: false}` for the classical one."""
    return _construct(LateStartSGD, groups, config, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)


def muon(groups: ParameterGroups, config: OptimConfig) -> Optimizer:
    """Muon for hidden matrices and kernels, SGD with Nesterov momentum for all else; see `comp.training.muon`.

    The rate and decay of the auxiliary SGD go into its groups here: `lr_scale` relates its peak to `lr`, and its weight
    decay is such that rate times decay is `aux_decay` at the peak in every group, fast or slow.
    """
    aux_lr = config.aux_lr or config.lr
    arranged = []
    for group in groups:
        if not group["hidden"]:
            peak = aux_lr * group["lr_scale"]
            decay = config.aux_decay / peak if group["decays"] and peak > 0 else 0.0
            group = group | {"lr_scale": peak / config.lr, "weight_decay": decay}
        arranged.append(group)
    return _construct(Muon, arranged, config, momentum=config.momentum, aux_momentum=config.aux_momentum)


OPTIMIZERS: dict[str, Callable[[ParameterGroups, OptimConfig], Optimizer]] = {
    "adamw": adamw,
    "adam": adam,
    "sgd": sgd,
    "muon": muon,
}


def of_timm(groups: ParameterGroups, config: OptimConfig) -> Optimizer:
    """Return an optimizer of timm's factory, with timm's defaults for what the config does not say.

    Raises:
        ConfigError: unknown to timm too, in need of second derivatives, or of a package or device that is not here.
    """
    import timm.optim

    of_theirs = timm.optim.list_optimizers()
    if config.name not in of_theirs:
        near = nearest(config.name, {*OPTIMIZERS, *of_theirs})
        raise ConfigError(
            f"optim.name: unknown optimizer '{config.name}'; choose from {', '.join(sorted(OPTIMIZERS))}, or any of "
            f"timm's {len(of_theirs)}, which timm.optim.list_optimizers() names{near}"
        )
    info = timm.optim.get_optimizer_info(config.name)
    if info.second_order:
        raise ConfigError(f"optim.name: {config.name} needs second derivatives, which the trainer does not take")
    try:
        constructor = timm.optim.get_optimizer_class(config.name)
    except (ImportError, AssertionError) as error:
        raise ConfigError(f"optim.name: {config.name} cannot be used here: {error}") from None
    momentum = {"momentum": config.momentum} if info.has_momentum else {}
    return _construct(constructor, groups, config, **momentum)


def _construct(
    constructor: Callable[..., Optimizer], groups: ParameterGroups, config: OptimConfig, **given: Any
) -> Optimizer:
    """Call a constructor with the config's rate, what is `given` and `optim.args`, in rising order of authority."""
    known = inspect.signature(constructor).parameters.keys() - _NOT_ARGUMENTS
    for name in config.args:
        if name in _NOT_ARGUMENTS:
            raise ConfigError(f"optim.args.{name}: is a field of its own or set by the trainer; say optim.{name}")
        if name not in known:
            raise ConfigError(f"optim.args: {unknown('argument', name, known)}")
    # YAML knows lists alone, and constructors want pairs as tuples.
    extra = {name: tuple(value) if isinstance(value, list) else value for name, value in config.args.items()}
    try:
        return constructor(groups, **{"lr": config.lr, **given, **extra})
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise ConfigError(f"optim.args: {config.name} refuses {dict(config.args)}: {error}") from None


def build_optimizer(groups: ParameterGroups, config: OptimConfig) -> Optimizer:
    """Return the optimizer that the config asks for.

    Args:
        groups: as `comp.models.surgery.parameter_groups` makes them.
        config: section `optim`.

    Raises:
        ConfigError: an unknown name or argument, or a value that the optimizer refuses.
    """
    optimizer = OPTIMIZERS.get(config.name, of_timm)(groups, config)
    return Lookahead(optimizer, config.lookahead.k, config.lookahead.alpha) if config.lookahead.k else optimizer


def for_model(model: Classifier, config: OptimConfig) -> Optimizer:
    """Return a model's optimizer, its parameters grouped as the config says.

    Raises:
        ConfigError: as `build_optimizer`.
        ModelError: a pattern that names nothing.
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


def check_optimizer(config: OptimConfig) -> None:
    """Refuse what no optimizer or schedule can be built from, by building one for a single small matrix.

    Raises:
        ConfigError: as `build_optimizer` and `comp.training.schedules.check_schedule`.
    """
    schedules.check_schedule(config)
    weight = torch.nn.Parameter(torch.ones(2, 2))
    build_optimizer(
        [{"params": [weight], "weight_decay": config.weight_decay, "lr_scale": 1.0, "hidden": True}], config
    )


def set_rates(optimizer: Optimizer, step: int, plan: Plan, config: OptimConfig, *, factor: float = 1.0) -> None:
    """Give every group the schedule's rate times `factor` and its own `lr_scale`; none after the group's own end."""
    shared = schedules.rate(step, plan, config)
    for group in optimizer.param_groups:
        rate = shared
        if ends := group.get("ends"):
            own = plan.ending(ends)
            rate = schedules.rate(step, own, config) if step < own.total_steps else 0.0
        group["lr"] = rate * factor * group["lr_scale"]


def freeze_finished_groups(optimizer: Optimizer, epoch: int) -> None:
    """Stop the gradients of groups whose end (`optim.ends`) lies before an epoch (from 1): nothing would use them."""
    for group in optimizer.param_groups:
        if group.get("ends") and epoch > group["ends"]:
            for parameter in group["params"]:
                parameter.requires_grad = False
                parameter.grad = None
