"""A download with several images a patient, and a sample submission with one row a patient."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE = 16


def write_rows(path: str | Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a table."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    Path(path).write_text(text.getvalue())


def write_patients(root: Path, *, train: int = 24, test: int = 10, classes: Sequence[str] = ("ill", "well")) -> None:
    """Write `train.csv` (image, patient, label), `test.csv` (image, patient), images, and a sample in another order.

    A patient has one to four images, of a colour that tells the class under noise.
    """
    draw = np.random.default_rng(3)
    colours = draw.integers(40, 216, (len(classes), 3))
    tables: dict[str, list[list[object]]] = {"train": [], "test": []}
    for name, patients in (("train", train), ("test", test)):
        (root / name).mkdir(parents=True)
        for patient in range(patients):
            label = patient % len(classes)
            looks = (label + (patient % 3 == 1)) % len(classes)  # a network errs on some patients
            for _ in range(1 + patient % 4):
                image = f"{name}_{len(tables[name]):03d}"
                noise = draw.normal(0, 60, (SIDE, SIDE, 3))
                pixels = np.clip(colours[looks] + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / name / f"{image}.png")
                row = [image, f"{name[:2]}-{patient}"]
                tables[name].append([*row, classes[label]] if name == "train" else row)
    order = draw.permutation(len(tables["train"]))  # a patient's rows need not follow each other
    write_rows(root / "train.csv", ["image", "patient", "label"], [tables["train"][row] for row in order])
    write_rows(root / "test.csv", ["image", "patient"], tables["test"][::-1])
    names = [f"te-{patient}" for patient in draw.permutation(test)]
    write_rows(root / "sample_submission.csv", ["patient", *classes], [[name, *[0.5] * len(classes)] for name in names])


def patients_config(root: Path, answer: str = "mean", **data: Any) -> dict[str, Any]:
    """Return a config that trains on them in a second."""
    return {
        "competition": {"name": "patients", "metric": "log_loss", "suite": {"source": "test"}},
        "data": {
            "source": "csv_images", "root": str(root), "validation": 0.3, "groups": "column", "group_answer": answer,
            "csv": {"group_column": "patient"}, **data,
        },
        "model": {"name": "mlp"},
        "optim": {"lr": 3e-3},
        "train": {
            "epochs": 3, "batch_size": 16, "precision": "fp32", "channels_last": False, "device": "cpu", "threads": 1,
            "compile": False,
        },
    }  # fmt: skip
