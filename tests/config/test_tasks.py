"""Tasks: every name in a row is registered in the package that implements it."""

import pytest

from comp.config.tasks import TASKS, resolve_metric, task
from comp.data.splitting import STRATIFIERS
from comp.ensembles.methods import METHODS
from comp.results import decisions, predictions
from comp.results.metrics import METRICS
from comp.runtime.errors import ConfigError
from comp.submission.answers import ANSWERS
from comp.training.losses import LOSSES


@pytest.mark.parametrize("name", TASKS)
def test_a_tasks_names_are_registered(name: str) -> None:
    row = TASKS[name]
    assert row.name == name
    assert row.activation in predictions.ACTIVATIONS
    assert {row.loss, *row.losses.values()} <= set(LOSSES)
    assert set(row.metrics) <= set(METRICS)
    assert set(row.answers) <= set(ANSWERS)
    assert set(row.ensembles) <= {*METHODS, "soup"}
    assert row.stratifier in STRATIFIERS
    assert set(row.reported) <= set(row.metrics)


def test_every_loss_metric_and_answer_belongs_to_a_task() -> None:
    assert {name for row in TASKS.values() for name in (row.loss, *row.losses.values())} == set(LOSSES)
    assert {name for row in TASKS.values() for name in row.metrics} == set(METRICS)
    assert {name for row in TASKS.values() for name in row.answers} == set(ANSWERS)
    assert set(decisions.TUNERS) <= set(TASKS["multi_label"].metrics)


def test_an_unknown_task_and_a_metric_of_another_task_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown task 'multilabel'.*did you mean 'multi_label'"):
        task("multilabel")
    with pytest.raises(ConfigError, match=r"weighted_f1 is not defined for task multi_label; choose from roc_auc"):
        resolve_metric("weighted_f1", TASKS["multi_label"])
    assert resolve_metric("auto", TASKS["single_label"]) == "accuracy"
    assert resolve_metric("auto", TASKS["multi_label"]) == "roc_auc"
