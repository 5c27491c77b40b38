"""TPE with Hyperband against random search without pruning, at equal wall time on CIFAR-10.

    python -m benchmarks.tuning_search [--minutes 20] [--epochs 6] [--images 10000] [--repeats 3]

Both search the rate, weight decay, warm-up, smoothing and MixUp of a small fastnet, in turns on the same machine, each
for the same time whatever the number of trials, from the same seeds. What counts is the clean test accuracy of the
trial that is best on validation: a search that looks at more trials also picks luckier ones. Nothing is enqueued but
the config's own values, in both. Prints Markdown; repeats x 2 x minutes.
"""

import argparse
import os
import platform
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch

from comp import config as configs
from comp.config import Config
from comp.data.dataset import open_dataset
from comp.results import runs
from comp.tuning import search
from comp.workflows import predict
from comp.workflows.load import load_run

WAYS = {"TPE, Hyperband": ("tpe", "hyperband"), "random, no pruning": ("random", "none")}
SPACE = (
    "{optim.lr: {float: [1e-4, 3e-2], log: true}, optim.weight_decay: {float: [1e-3, 0.3], log: true}, "
    "optim.warmup: {float: [0.05, 0.5]}, train.label_smoothing: {float: [0, 0.2]}, augment.mixup: {float: [0, 0.4]}}"
)


def write_subset(folder: Path, images: int, validation: int) -> None:
    """Write the first images of CIFAR-10 as arrays: a search should look at many small trainings."""
    whole = configs.load("configs/cifar10/baseline.yaml", ["competition.suite.source=none"])
    dataset = open_dataset(whole)
    assert dataset.val is not None
    assert dataset.test is not None
    folder.mkdir()
    for name, split in {
        "train": dataset.train.head(images), "val": dataset.val.head(validation), "test": dataset.test,
    }.items():  # fmt: skip
        np.save(folder / f"{name}_images.npy", np.asarray(split.images[: len(split)]))
        np.save(folder / f"{name}_labels.npy", split.labels)


def config_of(way: str, seed: int, given: argparse.Namespace, data: Path) -> Config:
    """Return the config of one search."""
    sampler, pruner = WAYS[way]
    return configs.load(
        "configs/cifar10/baseline.yaml",
        [
            "competition.ood_validation.severities=[]", "competition.suite.source=none", f"train.epochs={given.epochs}",
            "data.source=arrays", f"data.root={data}", "data.validation=official", f"seed={seed}",
            f"tune.space={SPACE}",
            f"tune.sampler={sampler}", f"tune.pruner={pruner}", "tune.trials=100000", "tune.confirm.top=0",
            f"tune.timeout={given.minutes}min", *given.overrides,
        ],
    )  # fmt: skip


def measure(way: str, seed: int, given: argparse.Namespace, folder: Path) -> tuple[float, str]:
    """Return the test accuracy of a search's best trial, and its row."""
    config = config_of(way, seed, given, folder / "data")
    name = f"{WAYS[way][0]}-{seed}"
    report = search.tune(config, name=name, runs_root=folder / name, pictures=False)
    best = next(row for row in report.trials if row["trial"] == report.recommended)
    loaded = load_run(runs.open_run(Path(best["run"])), open_dataset(config))
    scores = predict.score_test(loaded).test
    assert scores is not None
    test = scores.scores["accuracy"].value
    counts = report.counts
    return test, (
        f"| {way} | {seed} | {counts['done']} | {counts['pruned']} | {counts['failed']} | "
        f"{best[report.metrics[0]]:.4f} | "
        f"{test:.4f} |"
    )


def main() -> None:
    """Print a row a search and a mean a way."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--minutes", type=float, default=20)
    options.add_argument("--epochs", type=int, default=6)
    options.add_argument("--images", type=int, default=10_000, help="that are trained on")
    options.add_argument("--validation", type=int, default=5_000, help="images that trials are compared by")
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("overrides", nargs="*", help="key.path=value")
    given = options.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}, {given.minutes:g} min a search\n")
    print("| search | seed | whole | pruned | failed | best on validation | its test accuracy |")
    print("|---|---|---|---|---|---|---|", flush=True)
    tests: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        write_subset(Path(folder) / "data", given.images, given.validation)
        for seed in range(given.repeats):
            for way in WAYS:
                test, row = measure(way, seed, given, Path(folder))
                tests[way].append(test)
                print(row, flush=True)
    for way, scores in tests.items():
        spread = f", standard deviation {statistics.stdev(scores):.4f}" if len(scores) > 1 else ""
        print(f"\n{way}: mean test accuracy {statistics.fmean(scores):.4f}{spread}")


if __name__ == "__main__":
    main()
