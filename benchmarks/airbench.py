"""The airbench94-Muon recipe in plain PyTorch, eager bfloat16, beside configs/cifar10/fastnet.yaml.

    python -m benchmarks.airbench                  # seconds a step of both, in turn, and what a training then takes
    python -m benchmarks.airbench reference        # the whole reference training: accuracy and seconds

The recipe is that of KellerJordan/cifar10-airbench (airbench94_muon.py; Jordan 2024, arXiv:2404.00498, and the Muon
post of the same year): 8 epochs, alternating flips, 2 px of mirrored translation, whitened 2x2 patches, Muon for the
kernels and SGD for the rest, all rates falling along a line. Written here anew for a CPU, in its author's numbers.

In the comparison every turn is a process of its own, so that neither inherits the other's memory or threads: a few
steps of the reference, then a few of ours for each image size of the config (`comp.training.loop` as a user runs it),
and so on. Medians are multiplied by the steps of a whole training; ours are all of a step, augmentation included.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.stems import read_cifar10
from comp import config as configs
from comp.training.schedules import side_at
from comp.workflows import train

MEAN = torch.tensor((0.4914, 0.4822, 0.4465)).view(1, 3, 1, 1)
STD = torch.tensor((0.2470, 0.2435, 0.2616)).view(1, 3, 1, 1)
EPOCHS, WHITENING_BIAS_EPOCHS, IMAGES = 8, 3, 50_000
OURS = Path("configs/cifar10/fastnet.yaml")


def group(before: int, after: int) -> list[nn.Module]:
    """Two convolutions, the first pooled."""
    layers: list[nn.Module] = []
    for channels, pool in ((before, nn.MaxPool2d(2)), (after, nn.Identity())):
        convolution = nn.Conv2d(channels, after, 3, padding=1, bias=False)
        nn.init.dirac_(convolution.weight.data[:channels])
        norm = nn.BatchNorm2d(after, eps=1e-12, momentum=0.4)
        norm.weight.requires_grad = False
        layers += [convolution, pool, norm, nn.GELU()]
    return layers


class Reference(nn.Module):
    """The published network."""

    def __init__(self) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(3, 24, 2)
        self.whiten.weight.requires_grad = False
        body = [*group(24, 64), *group(64, 256), *group(256, 256)]
        self.body = nn.Sequential(nn.GELU(), *body, nn.MaxPool2d(3), nn.Flatten())
        self.head = nn.Linear(256, 10, bias=False)
        self.head.weight.data /= self.head.weight.data.std()

    def set_whitening(self, images: Tensor) -> None:
        patches = images.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12).double()
        variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
        kernels = (directions / (variances + 5e-4).sqrt()).T.reshape(12, 3, 2, 2).float()
        self.whiten.weight.data.copy_(torch.cat((kernels, -kernels)))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(self.whiten(images))) / 256


def orthogonal(matrix: Tensor) -> Tensor:
    """Three Newton-Schulz steps, as published."""
    x = matrix.bfloat16() / (matrix.norm() + 1e-7)
    x = x.T if len(matrix) > matrix.shape[1] else x
    for _ in range(3):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.T if len(matrix) > matrix.shape[1] else x).float()


class Kernels:
    """Muon over the convolutions' kernels."""

    def __init__(self, kernels: list[nn.Parameter]) -> None:
        self.kernels = kernels
        self.momenta = [torch.zeros_like(kernel) for kernel in kernels]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for kernel, momentum in zip(self.kernels, self.momenta, strict=True):
            momentum.mul_(0.6).add_(kernel.grad)
            update = (kernel.grad + 0.6 * momentum).flatten(1)
            kernel.mul_(len(kernel) ** 0.5 / kernel.norm())
            kernel.sub_(orthogonal(update).view_as(kernel), alpha=rate)


def windows(padded: Tensor) -> Tensor:
    """Return [B, 3, 32, 32]: each padded image's own window of the 25."""
    moves = torch.randint(0, 5, (len(padded), 2))
    out = torch.empty(len(padded), 3, 32, 32).to(memory_format=torch.channels_last)
    for down in range(5):
        for right in range(5):
            chosen = (moves[:, 0] == down) & (moves[:, 1] == right)
            out[chosen] = padded[chosen, :, down : down + 32, right : right + 32]
    return out


class Training:
    """The published training, step by step."""

    def __init__(self, batch_size: int, seed: int, data: Path) -> None:
        torch.manual_seed(seed)
        files = [read_cifar10(data / f"data_batch_{number}.bin", 10_000) for number in range(1, 6)]
        images = (torch.cat([pixels for pixels, _ in files]).float() / 255 - MEAN) / STD
        self.labels = torch.cat([labels for _, labels in files])
        self.model = Reference()
        self.model.set_whitening(images[:5000])
        self.model.to(memory_format=torch.channels_last)
        flipped = torch.rand(len(images)) < 0.5
        images[flipped] = images[flipped].flip(-1)
        self.padded = F.pad(images, (2, 2, 2, 2), "reflect").contiguous(memory_format=torch.channels_last)
        self.batch_size, self.epoch_steps = batch_size, len(images) // batch_size
        decay = 2e-6 * batch_size
        biases = [p for p in self.model.body.parameters() if p.ndim == 1 and p.requires_grad]
        self.others = torch.optim.SGD(
            [
                {"params": [self.model.whiten.bias], "peak": 0.053, "weight_decay": decay / 0.053},
                {"params": biases, "peak": 0.053, "weight_decay": decay / 0.053},
                {"params": [self.model.head.weight], "peak": 0.67, "weight_decay": decay / 0.67},
            ],
            lr=0.053,
            momentum=0.85,
            nesterov=True,
        )
        self.kernels = Kernels([p for p in self.model.body.parameters() if p.ndim == 4])
        self.taken = 0

    def step(self) -> None:
        epoch, position = divmod(self.taken, self.epoch_steps)
        if position == 0:
            self.order = torch.randperm(len(self.padded))
        rows = self.order[position * self.batch_size : (position + 1) * self.batch_size]
        images = windows(self.padded[rows].flip(-1) if epoch % 2 else self.padded[rows])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = self.model(images)
        F.cross_entropy(logits.float(), self.labels[rows], label_smoothing=0.2, reduction="sum").backward()
        left = 1 - self.taken / (EPOCHS * self.epoch_steps)
        whitening_left = max(0.0, 1 - self.taken / (WHITENING_BIAS_EPOCHS * self.epoch_steps))
        for index, parameters in enumerate(self.others.param_groups):
            parameters["lr"] = parameters["peak"] * (left if index else whitening_left)
        if not whitening_left:
            self.model.whiten.bias.requires_grad = False
            self.model.whiten.bias.grad = None
        self.others.step()
        self.kernels.step(0.24 * left)
        self.model.zero_grad()
        self.taken += 1

    @torch.no_grad()
    def accuracy(self, data: Path) -> tuple[float, float]:
        """Return test accuracy as it is, and with the recipe's six views."""
        pixels, labels = read_cifar10(data / "test_batch.bin", 10_000)
        self.model.eval()
        right = np.zeros(2)
        for images, truth in zip(((pixels.float() / 255 - MEAN) / STD).split(1000), labels.split(1000), strict=True):
            wide = F.pad(images, (1, 1, 1, 1), "reflect")
            views = [images, wide[..., :32, :32], wide[..., 2:, 2:]]
            mirrored = [0.5 * self._logits(view) + 0.5 * self._logits(view.flip(-1)) for view in views]
            together = 0.5 * mirrored[0] + 0.25 * mirrored[1] + 0.25 * mirrored[2]
            right += [(logits.argmax(1) == truth).sum().item() for logits in (self._logits(images), together)]
        plain, viewed = right / len(labels)
        return plain, viewed

    def _logits(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.model(images.contiguous(memory_format=torch.channels_last)).float()


def train_reference(batch_size: int, seed: int, data: Path) -> None:
    """Run the whole recipe and print what it came to."""
    training = Training(batch_size, seed, data)
    began = time.perf_counter()
    while training.taken < EPOCHS * training.epoch_steps:
        training.step()
        if training.taken % training.epoch_steps == 0:
            print(f"epoch {training.taken // training.epoch_steps}: {time.perf_counter() - began:.0f} s", flush=True)
    seconds = time.perf_counter() - began
    plain, viewed = training.accuracy(data)
    print(f"batch {batch_size}, seed {seed}: {100 * plain:.2f} %, with views {100 * viewed:.2f} %, {seconds:.0f} s")


def seconds_of_reference(batch_size: int, steps: int, data: Path) -> dict[str, float]:
    """Return the median seconds of a step after a first one."""
    training = Training(batch_size, 0, data)
    times = []
    for _ in range(steps + 1):
        began = time.perf_counter()
        training.step()
        times.append(time.perf_counter() - began)
    return {"step": statistics.median(times[1:])}


def seconds_of_ours(config: Path, steps: int) -> dict[str, float]:
    """Return the median seconds of a step at each image size that the config trains at, after a first one."""
    whole = configs.load(config)
    sides = sorted({side_at(whole.train.sizes, epoch) or 32 for epoch in range(1, whole.train.epochs + 1)})
    sizes = dict(enumerate(sides, 1))
    held_out = IMAGES - (steps + 1) * whole.train.batch_size
    overrides = [f"train.sizes={json.dumps(sizes)}", f"train.epochs={len(sides)}", f"data.validation={held_out}"]
    ends: dict[int, list[float]] = {epoch: [] for epoch in sizes}

    def note(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        if unit == "steps":
            ends[int(what.split()[1].split("/")[0])].append(time.perf_counter())

    with tempfile.TemporaryDirectory() as scratch:
        few = ["competition.ood_validation.severities=[]", *overrides]
        train.train(configs.load(config, few), runs_root=Path(scratch), progress=note)
    return {str(sizes[epoch]): statistics.median(np.diff(times)) for epoch, times in ends.items()}


def compare(config: Path, batch_size: int, steps: int, rounds: int) -> None:
    """Take turns, and print medians and what whole trainings come to."""
    whole = configs.load(config)
    arms = {
        "reference": ["--batch-size", str(batch_size)],
        "ours": ["--config", str(config)],
    }
    turns: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    for turn in range(rounds):
        for arm, arguments in arms.items():
            command = [sys.executable, "-m", "benchmarks.airbench", f"time-{arm}", "--steps", str(steps), *arguments]
            printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            turns[arm].append(json.loads(printed.strip().splitlines()[-1]))
            print(f"turn {turn + 1}, {arm}: {turns[arm][-1]}", flush=True)
    step = statistics.median(turn["step"] for turn in turns["reference"])
    reference = step * EPOCHS * (IMAGES // batch_size)
    ours = 0.0
    for epoch in range(1, whole.train.epochs + 1):
        side = str(side_at(whole.train.sizes, epoch) or 32)
        ours += statistics.median(turn[side] for turn in turns["ours"]) * (IMAGES // whole.train.batch_size)
    print(f"\n{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads; {rounds} turns")
    print(f"reference {reference:.0f} s, ours {ours:.0f} s: {ours / reference:.3f} of it")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="compare",
                        choices=["compare", "reference", "time-reference", "time-ours"])  # fmt: skip
    parser.add_argument("--config", type=Path, default=OURS)
    parser.add_argument("--data", type=Path, default=Path("data/cifar-10-batches-bin"))
    parser.add_argument("--batch-size", type=int, default=1000, help="the reference's; 2000 is its author's, for a GPU")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=4, help="timed in each turn")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    if given.what == "compare":
        compare(given.config, given.batch_size, given.steps, given.rounds)
    elif given.what == "reference":
        train_reference(given.batch_size, given.seed, given.data)
    elif given.what == "time-reference":
        print(json.dumps(seconds_of_reference(given.batch_size, given.steps, given.data)))
    else:
        print(json.dumps(seconds_of_ours(given.config, given.steps)))


if __name__ == "__main__":
    main()
