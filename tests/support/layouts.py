"""Small datasets in the layouts on disk that their publishers use."""

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def pixels(count: int, shape: tuple[int, ...] = (32, 32, 3)) -> np.ndarray:
    """Return random images [count, *shape]."""
    return np.random.default_rng(count).integers(0, 256, (count, *shape), np.uint8)


def _cifar_record(image: np.ndarray, *labels: int) -> bytes:
    """Return a binary record: label bytes, then planes."""
    return bytes(labels) + image.transpose(2, 0, 1).tobytes()


def _planes(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def write_cifar10(root: Path, layout: str, count: int = 4) -> tuple[np.ndarray, list[int]]:
    """Write a CIFAR-10 of so many images a batch, layout `bin` or `py`; return a batch's images and labels."""
    images, labels = pixels(count), [(3 * number + 1) % 10 for number in range(count)]
    folder = root / f"cifar-10-batches-{layout}"
    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        if layout == "bin":
            records = [_cifar_record(image, label) for image, label in zip(images, labels, strict=True)]
            (folder / f"{name}.bin").write_bytes(b"".join(records))
        else:
            batch = {"data": _planes(images), "labels": labels}
            (folder / name).write_bytes(pickle.dumps(batch, protocol=4))
    (folder / "batches.meta.txt").write_text("\n".join(CIFAR10) + "\n\n")
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(CIFAR10)}))
    return images, labels


def write_cifar100(root: Path, layout: str, count: int = 10) -> tuple[np.ndarray, list[int], list[int]]:
    """Write a CIFAR-100 of so many images a split, `binary` or `python`; return images, fine and coarse labels."""
    images = pixels(count)
    fine, coarse = [(90 + number) % 100 for number in range(count)], [number % 7 for number in range(count)]
    names = {"fine": [f"fine{n}" for n in range(100)], "coarse": [f"coarse{n}" for n in range(20)]}
    folder = root / f"cifar-100-{layout}"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        if layout == "binary":
            records = [_cifar_record(*row) for row in zip(images, coarse, fine, strict=True)]
            (folder / f"{split}.bin").write_bytes(b"".join(records))
        else:
            batch = {"data": _planes(images), "fine_labels": fine, "coarse_labels": coarse}
            (folder / split).write_bytes(pickle.dumps(batch, protocol=4))
    if layout == "binary":
        for kind, listed in names.items():
            (folder / f"{kind}_label_names.txt").write_text("\n".join(listed))
    else:
        (folder / "meta").write_bytes(pickle.dumps({f"{kind}_label_names": names[kind] for kind in names}))
    return images, fine, coarse


def write_challenge_test(root: Path, images_per_block: int = 2) -> None:
    """Write the challenge's hidden test: 19 files of five severities, stacked."""
    folder = root / "ood-test"
    folder.mkdir()
    for number in range(19):
        np.save(folder / f"distortion{number:02d}.npy", pixels(5 * images_per_block))


def idx(values: np.ndarray) -> bytes:
    """Return an array as an idx file."""
    return bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def write_idx(
    root: Path, name: str = "MNIST", *, packed: bool = False, count: int = 12
) -> tuple[np.ndarray, np.ndarray]:
    """Write a small MNIST of so many images a split; return their images and labels."""
    images, labels = pixels(count, (28, 28)), np.arange(count, dtype=np.uint8) % 10
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            path = folder / f"{prefix}-{kind}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(idx(values)) if packed else idx(values))
    return images, labels
