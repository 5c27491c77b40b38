"""Time the batched corruption suite against one image at a time, and compare its strength with a reference.

    python -m benchmarks.corruptions [--images 500] [--threads 2] [--severities 1 3 5]
    python -m benchmarks.corruptions --fidelity tests/data/corruption_stats.csv

Runs are interleaved (batched, one by one, batched, one by one, ...) and medians are taken, so that a machine that
slows down slows both. Prints Markdown.
"""

import argparse
import csv
import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from benchmarks import one_by_one
from comp.augment.kernels import textures
from comp.data.corruptions.suite import CORRUPTIONS, NAMES, corrupt

_RECORD = 1 + 3 * 32 * 32  # bytes of an image in CIFAR-10's binary files: label, red, green, blue


def read_images(path: Path, count: int) -> Tensor:
    """Return the first [count, 3, 32, 32] uint8 images of a binary CIFAR-10 file."""
    records = np.fromfile(path, np.uint8, count=count * _RECORD).reshape(-1, _RECORD)
    return torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).copy())


def batched(images: Tensor, name: str, severities: Sequence[int]) -> None:
    indices = torch.arange(len(images))
    for severity in severities:
        corrupt(images, name, severity, seed=0, indices=indices)


def singly(pictures: np.ndarray, name: str, severities: Sequence[int], random: np.random.Generator) -> None:
    function = getattr(one_by_one, name)
    if name == "frost":
        sheets = textures.frosts(1.0, torch.device("cpu")).permute(0, 2, 3, 1).numpy()
        function = partial(function, sheets=sheets)
    for severity in severities:
        parameters = CORRUPTIONS[name].parameters[severity - 1]
        for picture in pictures:
            np.uint8(np.clip(function(picture, random, *parameters), 0, 255))


def seconds(work: Callable[[], None]) -> tuple[float, float]:
    """Wall and CPU seconds (of all threads)."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def compare(images: Tensor, severities: Sequence[int], rounds: int) -> None:
    """Print images/s of both ways for every corruption."""
    pictures = images.permute(0, 2, 3, 1).contiguous().numpy()
    random = np.random.default_rng(0)
    print("| corruption | batched, images/s | images per CPU second | one by one, images/s | times faster |")
    print("|---|---|---|---|---|")
    total = len(images) * len(severities)
    all_ours, all_theirs = 0.0, 0.0
    for name in NAMES:
        ours, theirs = [], []
        batched(images[:64], name, severities)  # tables and matrices are built once a process
        for _ in range(rounds):
            ours.append(seconds(lambda name=name: batched(images, name, severities)))  # type: ignore[misc]
            theirs.append(seconds(lambda name=name: singly(pictures, name, severities, random)))  # type: ignore[misc]
        wall, cpu = (statistics.median(times) for times in zip(*ours, strict=True))
        their_wall = statistics.median(wall for wall, _ in theirs)
        all_ours, all_theirs = all_ours + wall, all_theirs + their_wall
        print(f"| {name} | {total / wall:,.0f} | {total / cpu:,.0f} | {total / their_wall:,.0f} "
              f"| {their_wall / wall:.1f} |")  # fmt: skip
    suite = total * len(NAMES)
    print(f"| **whole suite** | {suite / all_ours:,.0f} | | {suite / all_theirs:,.0f} | {all_theirs / all_ours:.1f} |")


def fidelity(images: Tensor, path: Path) -> None:
    """Print mean absolute change and PSNR (of the squared error over all images) beside a reference."""
    print("| corruption | severity | change | reference | difference | PSNR, dB | reference |")
    print("|---|---|---|---|---|---|---|")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        name, severity = row["corruption"], int(row["severity"])
        after = corrupt(images, name, severity, seed=0, indices=torch.arange(len(images)))
        error = after.float() - images.float()
        change, reference = float(error.abs().mean()), float(row["mean_absolute_change"])
        psnr = 10 * math.log10(255**2 / float(error.square().mean()))
        print(f"| {name} | {severity} | {change:.3f} | {reference:.3f} | {100 * (change / reference - 1):+.1f} % "
              f"| {psnr:.2f} | {float(row['psnr_db']):.2f} |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed and strength of the corruption suite")
    parser.add_argument("--data", type=Path, default=Path("data/cifar-10-batches-bin/test_batch.bin"))
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--severities", type=int, nargs="+", default=[1, 3, 5])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="of both ways; 0: as many as torch takes")
    parser.add_argument("--fidelity", type=Path, help="a CSV of corruption, severity, mean_absolute_change, psnr_db")
    options = parser.parse_args()
    if not options.data.exists():
        parser.error(f"--data: {options.data} does not exist; name a binary CIFAR-10 batch")
    if options.threads:
        torch.set_num_threads(options.threads)
    cv2.setNumThreads(torch.get_num_threads())
    images = read_images(options.data, options.images)
    if options.fidelity:
        fidelity(images, options.fidelity)
    else:
        print(f"{len(images)} images of 32 px, severities {options.severities}, {torch.get_num_threads()} threads, "
              f"medians of {options.rounds}\n")  # fmt: skip
        compare(images, options.severities, options.rounds)


if __name__ == "__main__":
    main()
