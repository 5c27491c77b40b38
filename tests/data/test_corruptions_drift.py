"""The drift alarm: scores of one fixed trained net on every block of the suite, compared with recorded numbers.

An error in a corruption that leaves its pixels plausible still changes a net's outputs. Losses show differences that
accuracies are too coarse for. If every first parameter is 10 % stronger, the test fails for all corruptions but
defocus, motion and gaussian blur, which hardly change smooth digits; tests/data/test_corruptions.py covers those.
"""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from comp import config as configs
from comp.data import suites
from comp.data.dataset import open_dataset
from comp.inference.predict import predict
from comp.models import weights
from comp.results import metrics
from comp.results.predictions import Predictions
from comp.runtime import device
from comp.workflows import build
from tests.support.commands import REPOSITORY

GOLDEN = REPOSITORY / "tests/golden"
EXECUTION = device.Execution(device="cpu", precision="fp32", channels_last=True, threads=1)


def measure() -> dict[str, list[float]]:
    """Return accuracy and loss of the fixed net on every block, and on the clean test."""
    config = configs.load(GOLDEN / "digits.yaml")
    dataset = open_dataset(config)
    assert dataset.test is not None
    model = build.build_model(config, dataset)
    weights.load_weights(model, GOLDEN / "digits.safetensors")
    EXECUTION.place(model)
    classes = dataset.competition.classes

    def scores(predictions: Predictions) -> list[float]:
        return [round(metrics.accuracy(predictions), 4), round(metrics.log_loss(predictions), 4)]

    blocks = dataset.competition.blocks
    # Tinted: saturation does not change grey.
    tinted = (dataset.test.images * np.array([1, 0.75, 0.5])).astype(np.uint8)
    clean = replace(dataset.test.head(blocks[0].count), images=tinted[: blocks[0].count])
    suite = suites.corrupted_suite("suite", clean, blocks, seed=0)
    splits = {"clean": clean, **{block.name: suite.open(block) for block in blocks}}
    return {
        name: scores(
            predict(model, split, classes=classes, task="single_label", execution=EXECUTION, batch_size=200, made_by={})
        )
        for name, split in splits.items()
    }


def test_a_fixed_nets_scores_on_every_block_are_unchanged() -> None:
    recorded = json.loads((GOLDEN / "digits.json").read_text(encoding="utf-8"))
    measured = measure()
    assert measured.keys() == recorded.keys()
    assert len(measured) == 1 + 19 * 5
    drifted = {
        name: (measured[name], scores)
        for name, scores in recorded.items()
        # Two of 200 images: processors differ in rounding.
        if measured[name] != [pytest.approx(scores[0], abs=0.0101), pytest.approx(scores[1], rel=0.01, abs=0.001)]
    }
    assert not drifted, "(measured, recorded) accuracy and loss"


def test_the_recorded_scores_differ_between_severities() -> None:
    """Otherwise the comparison could never fail."""
    recorded = json.loads((GOLDEN / "digits.json").read_text(encoding="utf-8"))
    losses = [scores[1] for scores in recorded.values()]
    assert len(set(losses)) > 85
    assert recorded["clean"][0] > 0.8


if __name__ == "__main__":
    rows = [f'  "{name}": {scores}' for name, scores in measure().items()]
    sys.stdout.write("{\n" + ",\n".join(rows) + "\n}\n")
