"""Write a stand-in for CIFAR-100 from what can be had here: 100 classes, 50,000 and 10,000 images of 32 px in colour.

    python -m benchmarks.stand_in data/stand_in
    comp data corrupt stand_in.yaml --split test --out data/stand_in/suite    # 19 x 5 x 10,000: 950,000 images, 2.9 GB

Classes: the ten of CIFAR-10 and the ten of Fashion-MNIST, each upright and turned by 90, 180 and 270 degrees, and the
ten digits of MNIST upright and turned by 90. No image is used twice. It has CIFAR-100's sizes, counts and rows, not its
difficulty: a rehearsal of minutes, memory, disk and files, not of scores.
"""

import argparse
from pathlib import Path

import numpy as np

_RECORD = 1 + 3 * 32 * 32  # bytes of an image in CIFAR-10's binary files: label, red, green, blue
_COUNTS = {"train": 500, "test": 100}  # of each class
_TURNS = {"cifar": 4, "fashion": 4, "digit": 2}

Pair = tuple[np.ndarray, np.ndarray]


def read_cifar(folder: Path, split: str) -> Pair:
    """Return images uint8 [N, 32, 32, 3] and labels [N] of CIFAR-10's binary files."""
    names = ["test_batch.bin"] if split == "test" else [f"data_batch_{number}.bin" for number in range(1, 6)]
    records = np.concatenate([np.fromfile(folder / name, np.uint8) for name in names]).reshape(-1, _RECORD)
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0]


def read_grey(folder: Path, split: str) -> Pair:
    """Return images uint8 [N, 32, 32, 3], with a border of two pixels, and labels [N] of MNIST's files."""
    prefix = "t10k" if split == "test" else "train"
    images = np.fromfile(folder / f"{prefix}-images-idx3-ubyte", np.uint8, offset=16).reshape(-1, 28, 28)
    labels = np.fromfile(folder / f"{prefix}-labels-idx1-ubyte", np.uint8, offset=8)
    return np.repeat(np.pad(images, ((0, 0), (2, 2), (2, 2)))[..., None], 3, axis=3), labels


def write(data: Path, folder: Path) -> None:
    """Write `train_images.npy`, `train_labels.npy`, the test's, and `classes.txt`."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in _COUNTS.items():
        sources = {
            "cifar": read_cifar(data / "cifar-10-batches-bin", split),
            "fashion": read_grey(data / "FashionMNIST" / "raw", split),
            "digit": read_grey(data / "MNIST" / "raw", split),
        }
        images, names = [], []
        for source, (pixels, labels) in sources.items():
            for label in range(10):
                rows = np.flatnonzero(labels == label)
                for turn in range(_TURNS[source]):
                    images.append(np.rot90(pixels[rows[turn * count : (turn + 1) * count]], turn, axes=(1, 2)))
                    names.append(f"{source}_{label}_{90 * turn}")
        order = np.random.default_rng(0).permutation(len(names) * count)
        np.save(folder / f"{split}_images.npy", np.concatenate(images)[order])
        np.save(folder / f"{split}_labels.npy", np.repeat(np.arange(len(names)), count)[order])
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in names))


def main() -> None:
    parser = argparse.ArgumentParser(description="A stand-in for CIFAR-100")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, default=Path("data"), help="holds CIFAR-10, MNIST and Fashion-MNIST")
    options = parser.parse_args()
    write(options.data, options.folder)


if __name__ == "__main__":
    main()
