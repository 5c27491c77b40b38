"""How to run a training: a few steps on a scratch copy of the model, timed in each precision and layout."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import nn

from comp.config import Config
from comp.data import loading
from comp.data.dataset import Dataset
from comp.device import Execution, choose
from comp.progress import Progress, quiet

_TIMING_BATCH = 64  # images in a timed step


def choose_execution(
    model: nn.Module, dataset: Dataset, config: Config, progress: Progress = quiet
) -> tuple[Execution, dict[str, float]]:
    """Time a few training steps on a copy of the model and return how to run; see `comp.device.choose`."""
    count = min(_TIMING_BATCH, config.train.batch_size, len(dataset.train))
    split = dataset.train.head(count)

    def attempt(execution: Execution) -> Callable[[], None]:
        scratch = execution.place(copy.deepcopy(model)).train()
        images, labels = loading.resident(split, execution.torch_device).batch(
            torch.arange(count, device=execution.torch_device)
        )
        optimizer = torch.optim.SGD([p for p in scratch.parameters() if p.requires_grad], lr=0.0)

        def step() -> None:
            with execution.autocast():
                logits = scratch(execution.layout(images))
            loss = nn.functional.cross_entropy(logits.float(), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss.item()  # waits for the device

        return step

    with counted_randomness(torch.device("cpu")):
        return choose(config.train, attempt, progress)


def counted_randomness(device: torch.device) -> AbstractContextManager[None]:
    """Give torch's global generators back as they were: a library must not disturb its user's draws."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
