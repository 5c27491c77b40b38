"""The picture that every training leaves."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from comp.results import plots, runs
from tests.support.commands import Result


def row(number: int, **measured: float) -> dict[str, str]:
    """Return a row of history.csv; what is not given was not measured."""
    columns = ("lr", "train_loss", "val_loss", "train_accuracy", "val_accuracy", "ood_accuracy")
    return {"number": str(number), **{name: str(measured.get(name, "")) for name in columns}}


def drawn(path: Path) -> np.ndarray:
    """Return a PNG's pixels."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("overrides", [(), ("data.validation=none", "train.epochs=1")])
def test_every_training_leaves_its_curves(
    workplace: Path, comp: Callable[..., Result], overrides: tuple[str, ...]
) -> None:
    assert comp("train", "small.yaml", *overrides).code == 0
    (run,) = runs.list_runs(Path("runs"))
    assert drawn(run.path / "plots/curves.png").std() > 5  # something is drawn


def test_a_value_measured_in_one_epoch_is_drawn(tmp_path: Path) -> None:
    history = [row(number, train_loss=1 / number, train_accuracy=0.5, lr=0.1) for number in range(1, 6)]
    plots.draw_curves(tmp_path / "without.png", history)
    history[2]["ood_accuracy"] = "0.9"
    plots.draw_curves(tmp_path / "with.png", history)
    assert not np.array_equal(drawn(tmp_path / "without.png"), drawn(tmp_path / "with.png"))


def test_the_epoch_of_the_best_weights_is_marked(tmp_path: Path) -> None:
    history = [row(number, train_loss=1 / number, lr=0.1) for number in range(1, 6)]
    plots.draw_curves(tmp_path / "none.png", history)
    plots.draw_curves(tmp_path / "best.png", history, best_epoch=3)
    assert not np.array_equal(drawn(tmp_path / "none.png"), drawn(tmp_path / "best.png"))
