"""Images a second of one training epoch: ours beside the loops that people write, or install.

    python -m benchmarks.training_peers [--steps 6] [--rounds 2] [--batch 128]

All train the same ResNet-18 (3x3 stem, no first pool, 10 classes) on the same random 32-px images with SGD:

- tutorial: a Dataset of PIL images, torchvision transforms, a DataLoader, float32, the loss read at every step;
- timm: its create_loader with its own transforms and prefetcher, bfloat16 autocast, channels_last, as its train.py can;
- Lightning: its Trainer over the tutorial's loader, bfloat16 autocast, channels_last (where it is installed);
- comp: `fit`, which chooses precision and layout by itself (the row says what), with everything that it keeps.

Two inputs: crop and flip, and the same with AutoAugment and ColorJitter. Each contestant has as many loader workers as
there are cores. One step warms up, then a whole epoch is timed from asking for its first batch to its end, so that no
batch is had for nothing; contestants take turns, and the median of the rounds counts. Prints Markdown; about five
minutes on two cores.
"""

import argparse
import contextlib
import logging
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import timm.data
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.training_overhead import write_images
from comp import config as configs
from comp.config import ModelConfig
from comp.models import zoo
from comp.results import runs
from comp.training import loop
from comp.training.autotune import choose_execution
from comp.training.context import build_context
from comp.workflows import build, train

MEAN, STD = (0.5, 0.5, 0.5), (0.29, 0.29, 0.29)
JITTER = (0.4, 0.4, 0.4, 0.1)  # brightness, contrast, saturation, hue; our policy's own
WORKERS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
INPUTS = {"crop and flip": False, "crop, flip, AutoAugment, ColorJitter": True}


class Pictures(Dataset[Any]):
    """Arrays as PIL images, as a tutorial's dataset gives them; timm sets `transform` itself."""

    def __init__(self, folder: Path, transform: Callable[[Image.Image], Tensor] | None = None) -> None:
        self.images = np.load(folder / "train_images.npy")
        self.labels = np.load(folder / "train_labels.npy")
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = Image.fromarray(self.images[index])
        return self.transform(image) if self.transform else image, int(self.labels[index])


def network() -> nn.Module:
    """Return what everyone trains."""
    config = ModelConfig(name="resnet18", stem="cifar")
    return zoo.build(config, classes=10, image_shape=(3, 32, 32), mean=MEAN, std=STD, seed=0).inner.to(DEVICE).train()


def tutorial_loader(folder: Path, batch: int, rich: bool) -> DataLoader[Any]:
    """Return the loader of PyTorch's own tutorials."""
    harder = [transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10), transforms.ColorJitter(*JITTER)]
    steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), *(harder if rich else [])]
    transform = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    return DataLoader(Pictures(folder, transform), batch_size=batch, shuffle=True, num_workers=WORKERS)


def seconds_of(epoch: Callable[[], object]) -> float:
    """Return how long it takes, device and all."""
    began = time.perf_counter()
    epoch()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def looped(loader: Iterable[Any], batch: int, *, fast: bool) -> float:
    """Return the seconds of an epoch of a plain loop; `fast`: bfloat16 autocast and channels_last."""
    model, layout = network(), torch.channels_last if fast else torch.contiguous_format
    model.to(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step(images: Tensor, labels: Tensor) -> None:
        images, labels = images.to(DEVICE).contiguous(memory_format=layout), labels.to(DEVICE)
        optimizer.zero_grad()
        with torch.autocast(DEVICE.type, torch.bfloat16) if fast else contextlib.nullcontext():
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        loss.item()  # the running loss that such loops print

    step(torch.zeros(batch, 3, 32, 32), torch.zeros(batch, dtype=torch.int64))
    return seconds_of(lambda: [step(*batch) for batch in loader])


def tutorial(folder: Path, batch: int, rich: bool) -> tuple[float, str]:
    return looped(tutorial_loader(folder, batch, rich), batch, fast=False), "fp32 channels_first"


def with_timm(folder: Path, batch: int, rich: bool) -> tuple[float, str]:
    pictures = Pictures(folder)
    loader = timm.data.create_loader(
        pictures, (3, 32, 32), batch, is_training=True, color_jitter=0.0, mean=MEAN, std=STD, num_workers=WORKERS,
        auto_augment="original" if rich else None, device=DEVICE,
    )  # fmt: skip
    if rich:  # timm leaves the jitter out where it has AutoAugment
        pictures.transform.transforms.insert(-1, transforms.ColorJitter(*JITTER))
    return looped(loader, batch, fast=True), "bf16 channels_last"


def with_lightning(folder: Path, batch: int, rich: bool) -> tuple[float, str]:
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = network().to(memory_format=torch.channels_last)
            self.seconds = self.began = 0.0

        def training_step(self, batch: Any, number: int) -> Tensor:
            images, labels = batch
            logits = self.model(images.contiguous(memory_format=torch.channels_last))
            loss = nn.functional.cross_entropy(logits, labels)
            self.log("loss", loss, prog_bar=True)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)

    class Stopwatch(lightning.Callback):
        """Times from the first epoch's end, which warmed up, to the second's: workers start in both."""

        ends: list[float] = []  # noqa: RUF012

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            self.ends = [*self.ends, time.perf_counter()]

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    watch = Stopwatch()
    trainer = lightning.Trainer(
        max_epochs=2, precision="bf16-mixed", logger=False, enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=False, callbacks=[watch], accelerator="auto", devices=1,
    )  # fmt: skip
    trainer.fit(Module(), tutorial_loader(folder, batch, rich))
    return watch.ends[1] - watch.ends[0], "bf16 channels_last"


def with_comp(folder: Path, batch: int, rich: bool) -> tuple[float, str]:
    policy = ["basic", "autoaugment_cifar10", "color_jitter"] if rich else ["basic"]
    config = configs.from_mapping(
        {
            "competition": {"name": "peers", "suite": {"source": "none"}, "ood_validation": {"severities": []}},
            "data": {"source": "arrays", "root": str(folder), "validation": "none"},
            "model": {"name": "resnet18", "stem": "cifar"},
            "augment": {"policy": policy},
            "optim": {"name": "sgd", "lr": 0.01},
            "train": {"epochs": 2, "batch_size": batch, "compile": False},
        },
        "peers",
    )
    dataset = build.prepare(config, folder)
    model = build.build_model(config, dataset)
    execution = choose_execution(model, dataset, config).execution
    run = runs.create(folder, config, "run", train.provenance_of(config, dataset, model, execution.device))
    ends: list[float] = []
    session = build_context(config, dataset, run, model, execution, fresh=True)
    loop.fit(session, on_epoch=lambda epoch: ends.append(time.perf_counter()))
    return ends[1] - ends[
        0
    ], f"{execution.precision} {'channels_last' if execution.channels_last else 'channels_first'}"


def main() -> None:
    """Print a table for each input."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=6)
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--batch", type=int, default=128)
    given = options.parse_args()
    contestants = {"tutorial": tutorial, "timm": with_timm, "Lightning": with_lightning, "comp": with_comp}
    if find_spec("lightning") is None:
        del contestants["Lightning"]
        print("Lightning is not installed here and left out: pip install lightning\n")
    print(f"{platform.machine()}, {WORKERS} cores, {DEVICE.type}, torch {torch.__version__}, batch {given.batch}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder, given.steps * given.batch)
        for title, rich in INPUTS.items():
            print(f"\n{title}\n\n| loop | computed in | images/s | times the tutorial |\n|---|---|---|---|", flush=True)
            rates: dict[str, list[float]] = {contestant: [] for contestant in contestants}
            computed = {}
            for _ in range(given.rounds):
                for contestant, train in contestants.items():
                    seconds, computed[contestant] = train(folder, given.batch, rich)
                    rates[contestant].append(given.steps * given.batch / seconds)
            middle = {contestant: statistics.median(values) for contestant, values in rates.items()}
            for contestant, rate in middle.items():
                print(f"| {contestant} | {computed[contestant]} | {rate:.0f} | {rate / middle['tutorial']:.2f} |")


if __name__ == "__main__":
    main()
