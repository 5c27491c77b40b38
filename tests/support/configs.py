"""Small data sets on disk and configs that train on them in a second or two."""

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from comp.config.yaml_io import merge


def write_arrays(folder: Path, *, train: int = 160, test: int = 40, classes: int = 4, size: int = 32) -> Path:
    """Write an `arrays` dataset that a small net can learn: each class has a colour of its own under noise."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    colours = generator.integers(40, 216, (classes, 3))
    for name, count in (("train", train), ("test", test)):
        labels = np.arange(count) % classes
        noise = generator.normal(0, 25, (count, size, size, 3))
        images = np.clip(colours[labels][:, None, None] + noise, 0, 255).astype(np.uint8)
        np.save(folder / f"{name}_images.npy", images)
        np.save(folder / f"{name}_labels.npy", labels)
    return folder


def small_config(root: Path) -> dict[str, Any]:
    """Return a config that goes through every stage in a second or two."""
    return {
        "competition": {
            "name": "small",
            "suite": {"images_per_block": 4},
            "ood_validation": {"severities": [3], "per_block": 4},
        },
        "data": {"source": "arrays", "root": str(root), "validation": 0.2},
        "model": {"name": "simple_cnn", "args": {"depth": 2}},
        "augment": {"policy": "basic", "mixup": 0.4},
        "train": {
            "epochs": 2, "batch_size": 32, "label_smoothing": 0.1,
            "precision": "fp32", "channels_last": False, "device": "cpu", "threads": 1, "compile": False,
        },
    }  # fmt: skip


def write_config(path: Path, values: dict[str, Any]) -> Path:
    """Write a config file."""
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


# Overrides of `small.yaml` for tests of what follows training: one epoch, six blocks to submit.
QUICK = [
    "train.epochs=1", "competition.suite.files=3", "competition.suite.severities=2",
    "competition.ood_validation.per_block=12",
]  # fmt: skip


NUMBERS = {"optim.lr": {"float": [1e-4, 1e-1], "log": True}, "optim.momentum": {"float": [0.5, 0.9], "step": 0.1}}


def tuned(knobs: dict[str, Any], **tune: Any) -> dict[str, Any]:
    """Return a config of the small data whose trials take a tenth of a second."""
    values = small_config(Path("data"))
    values["competition"]["ood_validation"]["severities"] = []
    values["model"] = {"name": "simple_cnn", "args": {"depth": 2}}
    values["augment"] = {}
    values["tune"] = {"space": knobs, "pruner": "none", "confirm": {"top": 0}, **tune}
    return values


def small(model: dict[str, Any]) -> Path:
    """Write the small config with another model, for one epoch."""
    values = merge(small_config(Path("data")), {"train": {"epochs": 1}})
    return write_config(Path("other.yaml"), {**values, "model": model})
