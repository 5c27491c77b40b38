"""What class weights and sampling buy on a long-tailed CIFAR-10, by balanced accuracy.

    python -m benchmarks.imbalance

4,000 real training images whose classes shrink exponentially to a fiftieth (Cui et al. 2019), 5,000 test images, and
the mean of the classes' recalls there. A small network, the same in all arms.
"""

import argparse
import platform
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.stems import read_cifar10
from comp import config as configs
from comp.workflows.load import load_run
from comp.workflows.predict import predict_split
from comp.workflows.train import train

ARMS = {
    "nothing": [],
    "class_weights: balanced": ["train.class_weights=balanced"],
    "class_weights: effective": ["train.class_weights=effective"],
    "sampling: balanced": ["data.sampling=balanced"],
    "sampling: sqrt": ["data.sampling=sqrt"],
    "loss: focal": ["train.loss=focal"],
    "sampling: sqrt, class_weights: balanced": ["data.sampling=sqrt", "train.class_weights=balanced"],
}
CLASSES, RATIO = 10, 50


def class_sizes(images: int) -> list[int]:
    """Return the images of each class: exponentially fewer, the last one a fiftieth of the first."""
    shares = RATIO ** (-np.arange(CLASSES) / (CLASSES - 1))
    return [round(size) for size in images * shares / shares.sum()]


def write_long_tail(source: Path, folder: Path, images: int) -> list[int]:
    """Write `arrays` data: the first images of each class, and the test split; return the classes' sizes."""
    sizes = class_sizes(images)
    parts = [read_cifar10(source / f"data_batch_{number}.bin", 10_000) for number in (1, 2)]
    pixels, labels = (torch.cat(values) for values in zip(*parts, strict=True))
    rows = torch.cat([(labels == name).nonzero()[:size, 0] for name, size in enumerate(sizes)]).sort().values
    test_pixels, test_labels = read_cifar10(source / "test_batch.bin", 5_000)
    for name, values in (
        ("train_images", pixels[rows].permute(0, 2, 3, 1)), ("train_labels", labels[rows]),
        ("test_images", test_pixels.permute(0, 2, 3, 1)), ("test_labels", test_labels),
    ):  # fmt: skip
        np.save(folder / f"{name}.npy", values.numpy())
    return sizes


def recalls(folder: Path, arm: str, seed: int, epochs: int) -> np.ndarray:
    """Train one arm; return the share of each class's test images that is right."""
    values = {
        "competition": {"name": "long-tail", "suite": {"source": "none"}, "ood_validation": {"severities": []}},
        "data": {"source": "arrays", "root": str(folder), "validation": "none"},
        "model": {"name": "fastnet", "args": {"size": "S"}},
        "augment": {"policy": "mirrored_crop"},
        "optim": {"lr": 3e-3},
        "train": {
            "epochs": epochs, "batch_size": 32, "device": "cpu", "precision": "fp32", "channels_last": True,
            "compile": False,
        },
        "track": {"wandb": "disabled"},
        "seed": seed,
    }  # fmt: skip
    run = train(configs.from_mapping(values, "benchmark", ARMS[arm]), runs_root=folder / "runs")
    predicted = predict_split(load_run(run), "test")
    assert predicted.top1 is not None
    right = predicted.top1 == predicted.targets
    return np.array([right[predicted.targets == name].mean() for name in range(CLASSES)])


def main() -> None:
    """Print the balanced accuracy of each arm, and of its three most and least frequent classes."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=Path("data/cifar-10-batches-bin"))
    options.add_argument("--images", type=int, default=4_000)
    options.add_argument("--epochs", type=int, default=5)
    options.add_argument("--seeds", type=int, default=2)
    given = options.parse_args()
    print(f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    print(
        "| setting | balanced accuracy, mean (each seed) | three largest classes | three smallest |\n|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as scratch:
        sizes = write_long_tail(given.data, Path(scratch), given.images)
        for arm in ARMS:
            by_seed = [recalls(Path(scratch), arm, seed, given.epochs) for seed in range(given.seeds)]
            each = ", ".join(f"{100 * recall.mean():.1f}" for recall in by_seed)
            mean = np.mean(by_seed, axis=0)
            print(
                f"| {arm} | {100 * statistics.mean(recall.mean() for recall in by_seed):.1f} % ({each}) | "
                f"{100 * mean[:3].mean():.1f} % | {100 * mean[-3:].mean():.1f} % |",
                flush=True,
            )
        print(f"classes of {sizes}")


if __name__ == "__main__":
    main()
