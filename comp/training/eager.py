"""torch's optimizers for steps that are never compiled.

Their methods import `torch._dynamo` at the first call, to keep it away from graphs; that takes as long as importing
torch, and here only forward passes are compiled (`train.compile`). What they wrap is called instead: the same bits.
"""

import inspect

import torch
from torch import optim


class Eager(optim.Optimizer):
    """An optimizer whose methods are torch's own, undecorated; among bases it stands before torch's class."""

    add_param_group = inspect.unwrap(optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(optim.Optimizer.load_state_dict)


class SGD(Eager, optim.SGD):
    """torch's SGD."""

    step = torch.no_grad()(inspect.unwrap(optim.SGD.step))


class Adam(Eager, optim.Adam):
    """torch's Adam."""

    step = torch.no_grad()(inspect.unwrap(optim.Adam.step))


class AdamW(Eager, optim.AdamW):
    """torch's AdamW."""

    step = torch.no_grad()(inspect.unwrap(optim.AdamW.step))
