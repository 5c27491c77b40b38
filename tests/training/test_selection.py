"""What the best weights are selected by: the competition's metric, and of equals the lower loss."""

from pathlib import Path

import pytest
import torch

from comp import config as configs
from comp.results import prediction_files, runs
from comp.runtime.errors import ConfigError
from comp.training import best_weights, checkpoint, selection
from comp.training.checkpoint import TrainState
from comp.training.selection import Scores, Selector
from comp.workflows import checks, train

SHIFTED = ["competition.suite.source=corrupt_test", "competition.ood_validation.every=1"]


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "val_metric"),
        (SHIFTED, "ood_metric"),
        ([*SHIFTED, "competition.suite.source=test"], "val_metric"),
        ([*SHIFTED, "competition.ood_validation.severities=[]"], "val_metric"),
        ([*SHIFTED, "data.validation=none"], "val_metric"),
        ([*SHIFTED, "train.select=val_loss"], "val_loss"),
    ],
)
def test_auto_is_shifted_validation_where_it_is_measured_and_a_shifted_suite_submitted(
    workplace: Path, overrides: list[str], name: str
) -> None:
    assert selection.selection(configs.load("small.yaml", overrides)) == name


def test_every_selection_has_a_direction() -> None:
    scores = Scores(loss=0.1, accuracy=0.2, metric=0.3, ood_accuracy=0.4, ood_metric=0.5)
    for name, value in zip(selection.SELECTIONS, (0.3, 0.2, 0.1, 0.5, 0.4), strict=True):
        for metric, up in (("accuracy", 1), ("log_loss", -1)):
            selector = Selector(name, metric)
            assert selector.value(scores) == value
            sign = up if name.endswith("metric") else -1 if name == "val_loss" else 1
            assert selector.as_maximize(value) == sign * value


def test_of_equal_values_the_lower_loss_is_better() -> None:
    cursor = TrainState(best=0.5, best_loss=1.0)
    assert best_weights._is_better(0.6, 9.0, cursor)
    assert best_weights._is_better(0.5, 0.9, cursor)
    assert not best_weights._is_better(0.5, 1.0, cursor)
    assert not best_weights._is_better(0.4, 0.0, cursor)
    assert not best_weights._is_better(0.5, 0.0, TrainState(best=0.5))  # of a state that has no loss


def test_a_state_of_an_earlier_version_is_loaded(workplace: Path) -> None:
    run = runs.create(Path("runs"), configs.load("small.yaml"), "old", {})
    model = torch.nn.Linear(2, 2)
    checkpoint.save(run, {"model": model}, TrainState(epoch=3, best=0.5, best_loss=1.0))
    state = torch.load(run.path / "state.pt", weights_only=True)
    del state["cursor"]["best_loss"]
    torch.save(state, run.path / "state.pt")
    cursor = checkpoint.load(run.path / "state.pt", {"model": model}, torch.device("cpu"))
    assert (cursor.epoch, cursor.best, cursor.best_loss) == (3, 0.5, None)


@pytest.mark.parametrize("name", ["ood_accuracy", "ood_metric"])
def test_what_is_measured_at_the_end_alone_cannot_select(workplace: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"train.select: {name} is measured at the end alone"):
        checks.check_config(configs.load("small.yaml", [f"train.select={name}"]), Path("runs"))


def test_shifted_validation_selects_by_the_metric_and_history_holds_it(workplace: Path) -> None:
    config = configs.load("small.yaml", [*SHIFTED, "competition.metric=log_loss", "train.epochs=3"])
    run = train.train(config)
    scores = run.metrics()
    losses = [float(row["ood_metric"]) for row in run.history()]
    assert scores.selected_by == "ood_metric"
    assert scores.best_epoch == 1 + losses.index(min(losses))
    assert scores.best.ood_val is not None
    assert scores.best.ood_val.value("log_loss") == pytest.approx(min(losses), rel=1e-3)
    assert prediction_files.load(run.predictions_path("ood_val")).thresholds is None
