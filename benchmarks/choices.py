"""What each choice of configs/cifar100-ood/best_1gpu.yaml buys, asked on a part of CIFAR-10, with a smaller network.

    python -m benchmarks.choices [--images 12500] [--epochs 3] [--seeds 1] [--only none scratch ...]

The recipe is that file's own, but for what a CPU cannot hold: tf_efficientnet_lite0 (whose ImageNet weights can be had
here) instead of resnext50_32x4d, fewer images, fewer epochs, so a shorter exponential average. Every arm leaves one
choice out, or takes one in that it does without. Scores are those of the whole clean test and of a suite of 19 x 5 x 50
images, plain; differences of a point are noise with one seed. Prints Markdown, row by row; ten minutes or more a row on
one core.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import comp
from benchmarks.stems import read_cifar10
from comp import config as configs
from comp.config import Config

RECIPE = Path("configs/cifar100-ood/best_1gpu.yaml")
ARMS = {
    "none": ("nothing", []),
    "scratch": ("pretrained weights", ["model.pretrained=false"]),
    "stock": ("the 3x3 stem of stride 1", ["model.stem=stock"]),
    "basic": ("policy robust: crop and flip only", ["augment.policy=basic"]),
    "layer_decay": ("no layer-wise decay: 0.8", ["optim.layer_decay=0.8"]),
    "average": ("EMA", ["train.average=none"]),
    "clip": ("clipping", ["optim.clip=none"]),
    "mixup": ("no MixUp: MixUp at 0.4", ["augment.mixup=0.4"]),
}


def write_images(source: Path, folder: Path, count: int) -> None:
    """Write CIFAR-10's first `count` training images and its test as an `arrays` source."""
    training = [read_cifar10(source / f"data_batch_{number}.bin", 10_000) for number in range(1, 6)]
    test = [read_cifar10(source / "test_batch.bin", 10_000)]
    for split, parts, most in (("train", training, count), ("test", test, 10_000)):
        pixels, labels = (torch.cat(column)[:most] for column in zip(*parts, strict=True))
        np.save(folder / f"{split}_images.npy", pixels.permute(0, 2, 3, 1).numpy())
        np.save(folder / f"{split}_labels.npy", labels.numpy())


def config_of(data: Path, weights: Path, epochs: int, overrides: list[str]) -> Config:
    """Return the recipe on these images, for this network, with one choice changed."""
    recipe = configs.load(RECIPE)
    values: dict[str, Any] = {
        "competition": {"name": "choices", "suite": {"images_per_block": 50}, "ood_validation": {"severities": []}},
        "data": {"source": "arrays", "root": str(data), "validation": 0.1},
        "model": {"name": "tf_efficientnet_lite0", "stem": recipe.model.stem, "pretrained": str(weights)},
        "augment": {"policy": list(recipe.augment.policy), "mixup": recipe.augment.mixup},
        "optim": recipe.optim.model_dump(mode="json"),
        "train": {
            "epochs": epochs,
            "batch_size": 128,
            "label_smoothing": recipe.train.label_smoothing,
            "average": recipe.train.average,
            "ema_epochs": recipe.train.ema_epochs * epochs / recipe.train.epochs,
            "precision": "fp32",  # the faster one for this network on CPUs
            "channels_last": True,
            "compile": False,
        },
    }
    return configs.from_mapping(values, "benchmarks.choices", overrides)


def scores_of(config: Config, name: str, runs: Path) -> tuple[float, float, float]:
    """Train and return the accuracies on clean test and suite, and the seconds of training."""
    run = comp.train(config, name=name, runs=runs)
    comp.predict(run)
    metrics = run.metrics()
    assert metrics.test
    assert metrics.suite
    return metrics.test.scores["accuracy"].value, metrics.suite.scores["accuracy"].value, metrics.train_seconds


def main() -> None:
    """Print one row an arm."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=Path("data/cifar-10-batches-bin"))
    options.add_argument("--weights", type=Path, default=Path("data/weights/tf_efficientnet_lite0.safetensors"))
    options.add_argument("--images", type=int, default=12_500)
    options.add_argument("--epochs", type=int, default=3)
    options.add_argument("--seeds", type=int, default=1)
    options.add_argument("--only", nargs="+", choices=sorted(ARMS), default=list(ARMS))
    given = options.parse_args()
    print(f"{given.images:,} images, {given.epochs} epochs, {given.seeds} seeds\n")
    print("| left out | clean test | suite | training, s |")
    print("|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        data.mkdir()
        write_images(given.data, data, given.images)
        for name in given.only:
            title, overrides = ARMS[name]
            scores = []
            for seed in range(given.seeds):
                config = config_of(data, given.weights, given.epochs, [*overrides, f"seed={seed}"])
                scores.append(scores_of(config, name, Path(folder, "runs")))
            clean, suite, seconds = (statistics.fmean(column) for column in zip(*scores, strict=True))
            print(f"| {title} | {clean:.2%} | {suite:.2%} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
