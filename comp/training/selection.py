"""Selection: the criterion for the best weights, and its direction. Torch-free."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from comp.config import Config
from comp.results import metrics

_SHIFTED_SUITES = ("corrupt_test", "distortion_files")  # of competition.suite.source


@dataclass(frozen=True)
class Scores:
    """Scores of the weights at an epoch's end; all None without a validation split.

    Attributes:
        loss: of clean validation.
        accuracy: likewise.
        metric: likewise, the competition's own.
        ood_accuracy: mean over the blocks of shifted validation; None in epochs that do not measure it.
        ood_metric: the competition's metric of shifted validation; None likewise.
        ood_by_severity: severity -> mean over its blocks; empty likewise.
        undefined: whether validation leaves the competition's metric undefined: its value still compares weights, with
            ties to the lower loss, but is not shown, and stops no training.
    """

    loss: float | None = None
    accuracy: float | None = None
    metric: float | None = None
    ood_accuracy: float | None = None
    ood_metric: float | None = None
    ood_by_severity: Mapping[str, float] = field(default_factory=dict)
    undefined: bool = False

    def shown(self, name: str) -> float | None:
        """Return the value of a row of SELECTIONS, as it is shown; None where it is undefined, or was not measured."""
        return None if self.undefined and name.endswith("metric") else SELECTIONS[name].of(self)


@dataclass(frozen=True)
class Selection:
    """A value of train.select.

    Attributes:
        of: the value, of the epoch's scores.
        higher_is_better: its direction; None: the competition metric's.
    """

    of: Callable[[Scores], float | None]
    higher_is_better: bool | None = True


# A value of train.select; also a column of history.csv.
SELECTIONS = {
    "val_metric": Selection(lambda scores: scores.metric, higher_is_better=None),
    "val_accuracy": Selection(lambda scores: scores.accuracy),
    "val_loss": Selection(lambda scores: scores.loss, higher_is_better=False),
    "ood_metric": Selection(lambda scores: scores.ood_metric, higher_is_better=None),
    "ood_accuracy": Selection(lambda scores: scores.ood_accuracy),
}


@dataclass(frozen=True)
class Selector:
    """Criterion for a training's best weights.

    Attributes:
        name: a row of SELECTIONS, never `auto`.
        metric: the competition's, a row of `comp.results.metrics.METRICS`.
    """

    name: str
    metric: str

    def value(self, scores: Scores) -> float | None:
        """Return the selected value in its own unit; None where this epoch did not measure it."""
        return SELECTIONS[self.name].of(scores)

    def as_maximize(self, value: float) -> float:
        """Return a selected value, negated where lower is better: higher is always better."""
        higher_is_better = SELECTIONS[self.name].higher_is_better
        if higher_is_better is None:
            return metrics.metric(self.metric).as_maximize(value)
        return value if higher_is_better else -value


def selection(config: Config) -> str:
    """Return the row of SELECTIONS for train.select.

    `auto` is ood_metric where a shifted suite is submitted and shifted validation is measured at epochs' ends, else
    val_metric.
    """
    if config.train.select != "auto":
        return config.train.select
    shifted, suite = config.competition.ood_validation, config.competition.suite.source
    is_measured = is_validated(config) and shifted.every != "end" and bool(shifted.severities)
    return "ood_metric" if is_measured and suite in _SHIFTED_SUITES else "val_metric"


def is_validated(config: Config) -> bool:
    """Return whether images are held out for validation."""
    return config.data.validation != "none" or config.data.folds is not None
