"""What a whole training costs beyond a bare forward/backward/step loop on a fixed batch, and a command beside it.

    python -m benchmarks.training_overhead [--epochs 8] [--threads 0] [--only resnet18]
    python -m benchmarks.training_overhead --command [--epochs 1] [--rounds 3]

`--command` asks what `comp train` takes beside the training: its wall seconds less the seconds of its epochs in
history.csv (validation is part of these), and what of the processor's. ResNet-18, 6,000 JPEG files of 64 px in folders,
RandAugment, W&B disabled; resident as `data.loading` chooses, and streamed by workers; the first round, which times how
to compute and reads all files, and the later ones' median. Asked: at most 10 s. Prints Markdown; five minutes on two
quiet cores, whose wall seconds alone mean something.

All else is the first command:

The whole training is the real `fit` with its augmentation, draws, counters, bars, history and epoch ends; the bare
loop steps a copy of the same network with the same optimizer, precision and layout on one batch that lies normalised
in memory. Every epoch of `fit` is followed by an epoch's steps of the bare loop, so that a slow moment of the machine
strikes both; each epoch gives one ratio, and their median counts. Checkpoints come once a minute
(`train.checkpoint_seconds`): one is timed by itself, and the share of a minute that it takes is added. Validation is
not part of it. A small network's epoch has 195 steps, half of CIFAR-10's, so that its end weighs no more than twice
what it does there. Prints Markdown; about six minutes on two cores.
"""

import argparse
import copy
import csv
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from comp import config as configs
from comp.cli import console
from comp.config import Config
from comp.results import runs
from comp.training import checkpoint, loop, optimizers
from comp.training.autotune import choose_execution
from comp.training.checkpoint import TrainState
from comp.training.context import TrainContext, build_context
from comp.training.loop import Epoch
from comp.workflows import build, train

BATCH = 128


@dataclass(frozen=True)
class Case:
    """A network, what is done to its images, and how many steps make an epoch."""

    title: str
    model: dict[str, Any]
    augment: dict[str, Any]
    steps: int


RESNET = {"name": "resnet18", "stem": "cifar"}
CASES = {
    "resnet18": Case("ResNet-18, 3x3 stem; crop and flip", RESNET, {"policy": "basic"}, 4),
    "convnet": Case("3-conv CNN (12-24-48), no augmentation", {"name": "convnet"}, {"policy": "none"}, 195),
    "convnet-basic": Case("the same; crop and flip", {"name": "convnet"}, {"policy": "basic"}, 195),
    "convnet-randaugment": Case("the same; RandAugment", {"name": "convnet"}, {"policy": "randaugment"}, 195),
}


@dataclass
class Stopwatch:
    """An `on_epoch` that times the epoch behind it, then as many bare steps."""

    session: TrainContext
    whole: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        model = copy.deepcopy(self.session.model)
        optimizer = optimizers.for_model(model, self.session.config.optim)
        execution = self.session.execution
        batch = next(self.session.train.batches(torch.arange(BATCH, device=execution.torch_device), BATCH, epoch=0))
        images = execution.layout(model.prepare(batch.images))

        def step() -> None:
            with execution.autocast():
                logits = model.inner(images)
            loss = nn.functional.cross_entropy(logits.float(), batch.labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        self._step, self._mark = step, time.perf_counter()

    def __call__(self, epoch: Epoch) -> None:
        """Note both times."""
        console.print_epoch(epoch)
        self.synchronise()
        now = time.perf_counter()
        self.whole.append(now - self._mark)
        for _ in range(self.session.steps_per_epoch):
            self._step()
        self.synchronise()
        self._mark = time.perf_counter()
        self.bare.append(self._mark - now)

    def synchronise(self) -> None:
        """Wait for the device."""
        if self.session.execution.device == "cuda":
            torch.cuda.synchronize()


def write_images(folder: Path, count: int) -> None:
    """Write random images [count, 32, 32, 3] of 10 classes as an `arrays` source."""
    generator = np.random.default_rng(0)
    np.save(folder / "train_images.npy", generator.integers(0, 256, (count, 32, 32, 3), np.uint8))
    np.save(folder / "train_labels.npy", np.arange(count) % 10)


def config_of(case: Case, epochs: int, threads: int, root: Path) -> Config:
    """Return the config of one case; precision and layout are left to be measured."""
    values = {
        "competition": {"name": "overhead", "suite": {"source": "none"}, "ood_validation": {"severities": []}},
        "data": {"source": "arrays", "root": str(root), "validation": "none"},
        "model": case.model,
        "augment": case.augment,
        "train": {"epochs": epochs, "batch_size": BATCH, "compile": False, "threads": threads},
    }
    return configs.from_mapping(values, case.title)


def measure(case: Case, epochs: int, threads: int, folder: Path) -> str:
    """Return a row of the table."""
    root = folder / "data"
    root.mkdir(exist_ok=True)
    write_images(root, case.steps * BATCH)
    config = config_of(case, epochs + 1, threads, root)  # the first epoch warms up
    dataset = build.prepare(config, folder)
    model = build.build_model(config, dataset)
    execution = choose_execution(model, dataset, config).execution
    run = runs.create(folder, config, "run", train.provenance_of(config, dataset, model, execution.device))
    session = build_context(config, dataset, run, model, execution, fresh=True)
    stopwatch = Stopwatch(session)
    with console.bars() as progress:
        loop.fit(session, on_epoch=stopwatch, progress=progress)
    began = time.perf_counter()
    checkpoint.save(run, session.parts, TrainState())
    saving = time.perf_counter() - began
    ratios = [whole / bare for whole, bare in zip(stopwatch.whole[1:], stopwatch.bare[1:], strict=True)]
    ratio, share = statistics.median(ratios), saving / config.train.checkpoint_seconds
    rate = case.steps * BATCH / statistics.median(stopwatch.bare[1:])
    layout = "channels_last" if execution.channels_last else "channels_first"
    return (
        f"| {case.title} | {execution.precision} {layout} | {rate:,.0f} | {100 * (ratio - 1):+.1f} % "
        f"({100 * (min(ratios) - 1):+.1f} to {100 * (max(ratios) - 1):+.1f}) | {100 * share:.1f} % "
        f"| **{100 * (ratio + share - 1):+.1f} %** |"
    )


FILES = """
competition: {{name: files, suite: {{source: none}}, ood_validation: {{severities: []}}}}
data: {{source: image_folder, root: {folder}/data, validation: 0.1}}
model: {{name: resnet18}}
augment: {{policy: randaugment}}
train: {{epochs: {epochs}, batch_size: 64}}
track: {{wandb: disabled}}
"""


def write_files(folder: Path, count: int = 6_000, side: int = 64, classes: int = 10) -> None:
    """Write smooth random JPEG images as `train/CLASS/NUMBER.jpg`."""
    generator = np.random.default_rng(0)
    for number in range(count):
        path = folder / "train" / f"class{number % classes}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = generator.integers(0, 256, (side // 8, side // 8, 3), np.uint8)
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BILINEAR).save(path, quality=90)


def command_seconds(folder: Path, loading: str) -> tuple[float, float, float, float]:
    """Return a command's wall and CPU seconds, its epochs' seconds, and images a second in the last of them."""
    runs_root = folder / f"runs-{loading}"
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = ["train", str(folder / "files.yaml"), f"data.loading={loading}", "--runs", str(runs_root)]
    subprocess.run([sys.executable, "-m", "comp", *command], check=True, capture_output=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    newest = max(runs_root.glob("*/*/history.csv"), key=lambda path: path.stat().st_mtime)
    with newest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return wall, cpu, sum(float(row["seconds"]) for row in rows), float(rows[-1]["images_per_second"])


def command(epochs: int, rounds: int) -> None:
    """Print what `comp train` takes beside its epochs, in turns of both ways to load."""
    print("| loading | round | command, s | epochs, s | **beside, s** | CPU, s | images/s |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["COMP_CACHE"] = str(folder / "cache")
        write_files(folder / "data")
        (folder / "files.yaml").write_text(FILES.format(folder=folder, epochs=epochs))
        later: dict[str, list[float]] = {"auto": [], "streamed": []}
        for number in range(rounds + 1):
            for loading, beside in later.items():
                wall, cpu, training, speed = command_seconds(folder, loading)
                if number:
                    beside.append(wall - training)
                print(
                    f"| {loading} | {number} | {wall:.1f} | {training:.1f} | {wall - training:.1f} | {cpu:.1f} "
                    f"| {speed:,.0f} |",
                    flush=True,
                )
    print("\nmedian beside:", {loading: round(statistics.median(beside), 1) for loading, beside in later.items()})


def main() -> None:
    """Print one row a case."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--epochs", type=int, help="8, or 1 of a command")
    options.add_argument("--command", action="store_true", help="what `comp train` takes beside its epochs")
    options.add_argument("--rounds", type=int, default=3, help="of --command, after the first")
    options.add_argument("--threads", type=int, default=0, help="CPU threads; 0: as `comp` chooses")
    options.add_argument("--only", choices=sorted(CASES))
    given = options.parse_args()
    if given.command:
        command(given.epochs or 1, given.rounds)
        return
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}, batch {BATCH}\n")
    print("| training | computed in | bare images/s | fit against bare (range) | checkpoints | in all |")
    print("|---|---|---|---|---|---|", flush=True)
    for name, case in CASES.items():
        if given.only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                print(measure(case, given.epochs or 8, given.threads, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
