"""Trainings that get no better end, at the epoch that the rule names, whether they were interrupted or not."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comp import config as configs
from comp.results import runs
from comp.runtime.errors import Interrupted
from comp.training import early_stopping
from comp.training.selection import Selector
from comp.workflows import train
from tests.support.commands import Result

# Few different values, so that ties and plateaus are as frequent as rises.
VALUES = st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.5, 0.9]), min_size=1, max_size=30)


def accuracies(values: list[float | None]) -> list[dict[str, Any]]:
    """Return a history with these validation accuracies."""
    return [{"number": number, "val_accuracy": value, "averaged": None} for number, value in enumerate(values, 1)]


def losses(values: list[float]) -> list[dict[str, Any]]:
    """Return a history with these validation losses."""
    return [{"number": number, "val_loss": value, "averaged": None} for number, value in enumerate(values, 1)]


def first_stop(rows: list[dict[str, Any]], told: Callable[[list[dict[str, Any]]], str]) -> int | None:
    """Return the epoch at whose end a training would have stopped."""
    return next((end for end in range(1, len(rows) + 1) if told(rows[:end])), None)


@given(VALUES, st.integers(1, 6))
def test_stagnation_ends_a_training_patience_epochs_after_its_first_best(values: list[float], patience: int) -> None:
    def told(rows: list[dict[str, Any]]) -> str:
        return early_stopping.stagnation(rows, lambda row: row["val_accuracy"], patience)

    stop = first_stop(accuracies(values), told)
    # Said otherwise: the first epoch before which `patience` epochs brought nothing above what was there before them.
    wanted = next(
        (end for end in range(patience + 1, len(values) + 1)
         if max(values[end - patience : end]) <= max(values[: end - patience])),
        None,
    )  # fmt: skip
    assert stop == wanted


@given(VALUES, st.integers(1, 6), st.sampled_from([0.0, 0.15, 0.25]))
def test_overfitting_ends_a_training_after_that_many_epochs_above_the_best(
    values: list[float], patience: int, threshold: float
) -> None:
    stop = first_stop(losses(values), lambda rows: early_stopping.overfitting(rows, patience, threshold))
    wanted = next(
        (end for end in range(patience + 1, len(values) + 1)
         if all(values[e] > min(values[:e]) + threshold for e in range(end - patience, end))),
        None,
    )  # fmt: skip
    assert stop == wanted


def test_a_rise_within_min_delta_is_none() -> None:
    rows = accuracies([0.5, 0.505, 0.509, 0.52])
    value_of = lambda row: row["val_accuracy"]  # noqa: E731
    assert "none since epoch 1" in early_stopping.stagnation(rows[:3], value_of, 2, min_delta=0.01)
    assert not early_stopping.stagnation(rows, value_of, 2, min_delta=0.01)


def test_epochs_that_did_not_measure_neither_improve_nor_stop() -> None:
    rows = accuracies([0.5, None, None, 0.5])
    ends = first_stop(rows, lambda known: early_stopping.stagnation(known, lambda row: row["val_accuracy"], 2))
    assert ends == 4


@given(VALUES)
def test_a_history_read_back_from_its_file_decides_as_the_one_in_memory(values: list[float]) -> None:
    config = configs.from_mapping({"train": {"select": "val_loss", "patience": 2, "overfit_patience": 3}}, "test")
    rows = losses(values)
    text = [{key: "" if value is None else str(value) for key, value in row.items()} for row in rows]
    selector = Selector("val_loss", "accuracy")
    assert early_stopping.due(rows, config, selector) == early_stopping.due(text, config, selector)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["train.patience=1", "train.min_delta=2"], "val_metric stagnates: at the end of epoch 2"),
        (["train.select=val_loss", "train.patience=2", "train.min_delta=9"],
         "val_loss stagnates: at the end of epoch 3,"),
        (["train.overfit_patience=1", "optim.lr=0.5"], "validation loss overfits: at the end of epoch"),
    ],
)  # fmt: skip
def test_a_training_stops_and_says_when_and_why(
    workplace: Path, comp: Callable[..., Result], settings: list[str], said: str
) -> None:
    result = comp("train", "small.yaml", "train.epochs=9", "competition.ood_validation.severities=[]", *settings)
    assert result.code == 0, result.err
    (run,) = runs.list_runs(Path("runs"))
    assert said in run.metrics().stopped
    assert said in result.out
    assert len(run.history()) == run.metrics().epochs < 9


def test_an_interrupted_training_stops_at_the_epoch_at_which_the_whole_one_does(workplace: Path) -> None:
    settings = ["train.epochs=9", "train.patience=2", "train.min_delta=2", "competition.ood_validation.severities=[]"]

    def stop(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        if what.startswith("epoch 3") and done == 2:
            raise Interrupted(signal.SIGTERM)

    with pytest.raises(Interrupted):
        train.train(configs.load("small.yaml", settings), progress=stop)
    (run,) = runs.list_runs(Path("runs"))
    resumed = train.resume(run)
    assert "at the end of epoch 3" in resumed.metrics().stopped


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["train.min_delta=0.1"], "train.patience"),
        (["train.overfit_threshold=0.1"], "train.overfit_patience"),
        (["train.budget=90s", "train.sizes={1: 16}"], "train.sizes"),
        (["train.patience=3", "data.validation=none"], "train.patience: watches a validation split"),
    ],
)
def test_a_rule_that_could_never_fire_is_refused(
    workplace: Path, comp: Callable[..., Result], settings: list[str], said: str
) -> None:
    result = comp("train", "small.yaml", *settings)
    assert result.code == 2
    assert said in result.err
