"""Small image sets on disk, written as their publishers lay them out."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.support.configs import small_config

COLOURS = {"ant": (200, 40, 40), "bee": (40, 200, 40), "cat": (40, 40, 200)}
SIZES = ((40, 30), (32, 48), (36, 36))  # (W, H): sizes differ as photographs' do


def photograph(number: int, colour: tuple[int, int, int], size: tuple[int, int] | None = None) -> Image.Image:
    """Return a noisy picture of one colour; each number gives another."""
    width, height = size or SIZES[number % len(SIZES)]
    noise = np.random.default_rng(number).normal(0, 30, (height, width, 3))
    return Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8))


def write_folders(root: Path, *, train: int = 16, val: int = 4, test: int = 0) -> Path:
    """Write `train/<class>/*.png` and so on, this many of each class; `test` flat and unlabelled."""
    number = 0
    for split, count in (("train", train), ("val", val)):
        for name, colour in COLOURS.items():
            for index in range(count):
                path = root / split / name / f"{index:03d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                photograph(number, colour).save(path)
                number += 1
    for index in range(test):
        (root / "test").mkdir(exist_ok=True)
        photograph(number + index, list(COLOURS.values())[index % 3]).save(root / "test" / f"{index:03d}.jpg")
    return root


def write_kaggle(root: Path, *, train: int = 48, test: int = 9) -> Path:
    """Write a Kaggle set: ids such as `007` without an ending, string labels, a sample in an order of its own."""
    (root / "train").mkdir(parents=True)
    (root / "test").mkdir()
    names = list(COLOURS)
    rows = []
    for index in range(train):
        photograph(index, COLOURS[names[index % 3]]).save(root / "train" / f"{index:03d}.jpg", quality=95)
        rows.append(f"{index:03d},{names[index % 3]}")
    (root / "train.csv").write_text("image_id,label\n" + "\n".join(rows) + "\n")
    ids = [f"{index:03d}" for index in reversed(range(test))]
    for index in range(test):
        photograph(1000 + index, COLOURS[names[index % 3]]).save(root / "test" / f"{index:03d}.jpg", quality=95)
    (root / "sample_submission.csv").write_text("image_id,label\n" + "".join(f"{key},ant\n" for key in ids))
    return root


def photographs_config(root: Path, source: str) -> dict[str, Any]:
    """Return a config of one of these sets that trains in seconds."""
    values = small_config(root)
    values["data"] = {"source": source, "root": str(root), "image_size": 32, "validation": 0.25}
    values["competition"] = {"name": "small", "suite": {"source": "test"}, "ood_validation": {"severities": []}}
    return values
