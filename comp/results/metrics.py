"""Metrics of predictions. NumPy only.

A competition's metric is a row of `METRICS` with its direction; accuracy and log loss are always reported too.
Definitions follow scikit-learn; where it is undefined (a class without targets) the docstring says what is returned, so
that the weights of two epochs can always be compared; `summarize` then gives the reason and no score. Single-label and
multi-label variants of a metric share a row: `roc_auc` is the mean over the columns that a task scores.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from comp.results.blocks import distortion_and_severity
from comp.results.predictions import Predictions, class_positions
from comp.results.run_metrics import RunMetrics, Score, SplitScores
from comp.results.stats import Interval, mean_interval, ranks, wilson
from comp.runtime.errors import ConfigError, unknown

_MOST_NAMED = 5  # classes, in a message

ColumnScore = Callable[[NDArray[np.float64], NDArray[np.bool_]], float]  # a class's probabilities and truth [N]


def accuracy(predictions: Predictions) -> float:
    """Return the share of correct rows, in [0, 1]; with several labels, all of them must be correct."""
    return float(predictions.correct().mean())


def balanced_accuracy(predictions: Predictions) -> float:
    """Return the mean recall over classes that occur as target, in [0, 1]."""
    table = confusion(predictions)
    support = table.sum(1)
    occurs = support > 0
    return float((table.diagonal()[occurs] / support[occurs]).mean())


def macro_f1(predictions: Predictions) -> float:
    """Return the mean F1 over classes that occur as target or decision, in [0, 1]; 0 if none does."""
    scores, _, occurs = _f1_by_class(predictions)
    return float(scores[occurs].mean()) if occurs.any() else 0.0


def weighted_f1(predictions: Predictions) -> float:
    """Return the mean F1 weighted by each class's number of targets, in [0, 1]."""
    scores, support, _ = _f1_by_class(predictions)
    return float((scores * support).sum() / support.sum())


def micro_f1(predictions: Predictions) -> float:
    """Return the F1 of all (image, class) pairs together, in [0, 1]; 0 without any target or decision."""
    decided, truth = predictions.decisions(), predictions.truth()
    total = int(decided.sum()) + int(truth.sum())
    return 2 * int((decided & truth).sum()) / total if total else 0.0


def samples_f1(predictions: Predictions) -> float:
    """Return the mean over images of the F1 of their classes, in [0, 1]; 1 for an image with no target or decision."""
    decided, truth = predictions.decisions(), predictions.truth()
    total = decided.sum(1) + truth.sum(1)
    return float(np.where(total, 2 * (decided & truth).sum(1) / np.maximum(total, 1), 1.0).mean())


def log_loss(predictions: Predictions) -> float:
    """Return the mean negative log likelihood in nats; with several labels, the mean over rows and classes."""
    return float(row_losses(predictions).mean())


def row_losses(predictions: Predictions) -> NDArray[np.float64]:
    """Return each row's negative log likelihood [N]."""
    targets, outputs = predictions.known_targets(), predictions.outputs.astype(np.float64)
    if targets.ndim == 1:
        shifted = outputs - outputs.max(1, keepdims=True)
        log_partition = np.log(np.exp(shifted).sum(1))
        losses: NDArray[np.float64] = log_partition - shifted[np.arange(len(targets)), targets.astype(np.int64)]
        return losses
    # -log sigmoid(z) of present classes and -log sigmoid(-z) of absent ones, without overflow.
    signed = np.where(targets > 0.5, outputs, -outputs)
    mean: NDArray[np.float64] = np.logaddexp(0, -signed).mean(1)
    return mean


def roc_auc(predictions: Predictions) -> float:
    """Return the area under the ROC curve in [0, 1], the mean over the scored columns; of two exclusive classes, the
    second. Columns with only one kind of target are left out; 0.5 if all are.
    """
    return _mean_over_columns(predictions, area_under_roc, 0.5)


def mean_average_precision(predictions: Predictions) -> float:
    """Return the average precision in [0, 1], the mean over the scored columns; of two exclusive classes, the
    second. Columns with only one kind of target are left out; 0 if all are.
    """
    return _mean_over_columns(predictions, average_precision, 0.0)


def _mean_over_columns(predictions: Predictions, score: ColumnScore, default: float) -> float:
    probabilities, truth = predictions.probabilities(), predictions.truth()
    exclusive_pair = truth.shape[1] == 2 and not predictions.row.target_columns
    columns = (1,) if exclusive_pair else range(truth.shape[1])
    scored = [c for c in columns if 0 < np.count_nonzero(truth[:, c]) < len(truth)]
    return float(np.mean([score(probabilities[:, c], truth[:, c]) for c in scored])) if scored else default


def map_at(count: int, predictions: Predictions) -> float:
    """Return the mean average precision of each row's `count` most likely classes, in [0, 1] (Kaggle's MAP@k)."""
    truth = predictions.truth()
    order = np.argsort(-predictions.outputs.astype(np.float64), axis=1, kind="stable")[:, :count]
    hits = np.take_along_axis(truth, order, 1)  # [N, k]
    precision = np.cumsum(hits, 1) / np.arange(1, order.shape[1] + 1)
    possible = np.minimum(truth.sum(1), count)
    return float(((precision * hits).sum(1) / np.maximum(possible, 1)).mean())


def quadratic_weighted_kappa(predictions: Predictions) -> float:
    """Return Cohen's kappa with squared distances between classes as weights, at most 1 (Cohen 1968).

    Classes that are plain decimals are placed at their values, others at their index. 1 if all targets and decisions
    are one class. Numbers are rounded to whole ones where they have no cut points.
    """
    if predictions.row.numeric:
        return _kappa_of_values(predictions.whole_values(), predictions.target_values())
    table = confusion(predictions).astype(np.float64)
    positions = class_positions(predictions.classes)
    weights = (positions[:, None] - positions) ** 2
    by_chance = np.outer(table.sum(1), table.sum(0)) / table.sum()
    expected = float((weights * by_chance).sum())
    return 1.0 - float((weights * table).sum()) / expected if expected else 1.0


def _kappa_of_values(values: NDArray[np.float64], targets: NDArray[np.float64]) -> float:
    """Return the kappa of whole numbers [N]: 1 minus their squared errors relative to those of chance pairs."""
    centre = targets.mean()
    values, targets = values - centre, targets - centre
    by_chance = float((values**2).sum() + (targets**2).sum() - 2 * values.mean() * targets.sum())
    return 1.0 - float(((values - targets) ** 2).sum()) / by_chance if by_chance else 1.0


def rmse(predictions: Predictions) -> float:
    """Return the root of the mean squared error, in the label's unit; of ordered classes, of their positions."""
    return float(np.sqrt((_errors(predictions) ** 2).mean()))


def mae(predictions: Predictions) -> float:
    """Return the mean absolute error, in the label's unit; of ordered classes, of their positions."""
    return float(np.abs(_errors(predictions)).mean())


def r2(predictions: Predictions) -> float:
    """Return the share of the targets' variance that is explained, at most 1; 0 if all targets are equal."""
    targets = predictions.target_values()
    spread = float(((targets - targets.mean()) ** 2).sum())
    return 1.0 - float((_errors(predictions) ** 2).sum()) / spread if spread else 0.0


def _errors(predictions: Predictions) -> NDArray[np.float64]:
    return predictions.values() - predictions.target_values()


def confusion(predictions: Predictions) -> NDArray[np.int64]:
    """Return counts [C, C]: rows are true classes, columns predicted ones; for single-label tasks."""
    assert predictions.top1 is not None
    count = len(predictions.classes)
    cells = predictions.known_targets().astype(np.int64) * count + predictions.top1
    return np.bincount(cells, minlength=count * count).reshape(count, count)


def _f1_by_class(predictions: Predictions) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
    """Return each class's F1, number of targets and whether it occurs as target or decision, each [C]."""
    both, support, decided = class_counts(predictions)
    total = support + decided
    return 2 * both / np.maximum(total, 1), support, total > 0


def class_counts(predictions: Predictions) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return each class's number of correct rows, of targets and of decisions, each [C]."""
    if predictions.top1 is not None:
        table = confusion(predictions)
        return table.diagonal(), table.sum(1), table.sum(0)
    decided, truth = predictions.decisions(), predictions.truth()
    return (decided & truth).sum(0), truth.sum(0), decided.sum(0)


def area_under_roc(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Return the share of (positive, negative) pairs in the right order, ties counting half (Mann and Whitney)."""
    positives = int(positive.sum())
    negatives = len(positive) - positives
    return float((ranks(scores)[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def average_precision(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Return the precision at each distinct score, weighted by the gain in recall, as in scikit-learn."""
    _, index = np.unique(-scores, return_inverse=True)
    selected = np.cumsum(np.bincount(index))
    true_positives = np.cumsum(np.bincount(index, weights=positive))
    gained = np.diff(true_positives, prepend=0)
    return float((gained * true_positives / selected).sum() / positive.sum())


@dataclass(frozen=True)
class Metric:
    """A metric: its function, direction and range.

    Attributes:
        score: predictions with targets -> score.
        higher_is_better: its direction.
        of_probabilities: whether it is computed from probabilities, which a submission then holds, or from decisions.
        ranked: number of classes that a submission's row lists in order; 0 for other metrics.
        low: smallest possible value.
        high: largest possible value.
        ordered_classes: whether the classes' order or values matter.
        whole: whether it compares whole numbers, in a task of numbers.
        needs_variety: whether it says nothing where all targets are one class or number.
    """

    score: Callable[[Predictions], float]
    higher_is_better: bool = True
    of_probabilities: bool = False
    ranked: int = 0
    low: float = 0.0
    high: float = 1.0
    ordered_classes: bool = False
    whole: bool = False
    needs_variety: bool = False

    def as_maximize(self, score: float) -> float:
        """Return the score with its sign turned where lower is better: higher is always better."""
        return score if self.higher_is_better else -score


METRICS = {
    "accuracy": Metric(accuracy),
    "balanced_accuracy": Metric(balanced_accuracy, needs_variety=True),
    "macro_f1": Metric(macro_f1, needs_variety=True),
    "weighted_f1": Metric(weighted_f1),
    "micro_f1": Metric(micro_f1),
    "samples_f1": Metric(samples_f1),
    "log_loss": Metric(log_loss, higher_is_better=False, of_probabilities=True, high=float("inf")),
    "roc_auc": Metric(roc_auc, of_probabilities=True, needs_variety=True),
    "mean_average_precision": Metric(mean_average_precision, of_probabilities=True, needs_variety=True),
    "map_at_3": Metric(partial(map_at, 3), ranked=3),
    "map_at_5": Metric(partial(map_at, 5), ranked=5),
    "quadratic_weighted_kappa": Metric(
        quadratic_weighted_kappa, low=-1.0, ordered_classes=True, whole=True, needs_variety=True
    ),
    "rmse": Metric(rmse, higher_is_better=False, high=float("inf"), ordered_classes=True),
    "mae": Metric(mae, higher_is_better=False, high=float("inf"), ordered_classes=True),
    "r2": Metric(r2, low=float("-inf"), needs_variety=True),
}
"""Rows whose function does not describe them:

map_at_3: Mean average precision of the three most likely classes, in [0, 1] (Kaggle's MAP@3).
map_at_5: Mean average precision of the five most likely classes, in [0, 1] (Kaggle's MAP@5).
"""


def metric(name: str) -> Metric:
    """Return a row of METRICS.

    Raises:
        ConfigError: unknown name.
    """
    if name not in METRICS:
        raise ConfigError(f"competition.metric: {unknown('metric', name, [*METRICS, 'auto'])}")
    return METRICS[name]


def find_undefined(predictions: Predictions, name: str) -> str:
    """Return why the targets leave a metric undefined, so that its score means nothing; empty if they do not."""
    row, targets = METRICS.get(name), predictions.known_targets()
    if row is None or not row.needs_variety:
        return ""
    if targets.ndim == 2:
        has_both = ((targets > 0.5).any(0) & (targets <= 0.5).any(0)).any()
        return "" if has_both or not row.of_probabilities else "each class is in all of its images, or in none"
    if len(np.unique(targets)) > 1:
        return ""
    if predictions.row.numeric:
        return f"all its labels are {targets[0]:g}"
    absent = [repr(label) for number, label in enumerate(predictions.classes) if number != int(targets[0])]
    named = ", ".join(absent[:_MOST_NAMED]) + (", ..." if len(absent) > _MOST_NAMED else "")
    return f"no {'group' if predictions.made_by.get('group_answer') else 'image'} of class {named}"


def is_higher_better(scores: RunMetrics) -> bool:
    """Return the direction of a run's metric, as recorded: a plug-in's metric need not be loaded.

    Raises:
        ConfigError: not recorded, and unknown.
    """
    recorded = scores.higher_is_better
    return metric(scores.metric).higher_is_better if recorded is None else recorded


def summarize(predictions: Predictions, metric_name: str) -> SplitScores:
    """Return what the task reports and the competition's metric of a labelled split, with intervals where defined."""
    names, undefined = _reported(predictions, metric_name)
    values = {name: metric(name).score(predictions) for name in names}
    intervals = {name: _INTERVALS[name](predictions) for name in names if name in _INTERVALS}
    scores = {name: _score(name, value, intervals.get(name)) for name, value in values.items()}
    return SplitScores(images=len(predictions), scores=scores, undefined=undefined or None)


def _reported(predictions: Predictions, metric_name: str) -> tuple[list[str], dict[str, str]]:
    """Return the metrics of the task and of the competition that the targets define, and why not the others."""
    names = dict.fromkeys((*predictions.row.reported, metric_name))
    undefined = {name: reason for name in names if (reason := find_undefined(predictions, name))}
    return [name for name in names if name not in undefined], undefined


def _interval_of_rmse(predictions: Predictions) -> Interval | None:
    squares = mean_interval(_errors(predictions) ** 2)
    return squares and Interval(float(np.sqrt(max(squares.low, 0.0))), float(np.sqrt(squares.high)))


_INTERVALS: dict[str, Callable[[Predictions], Interval | None]] = {
    "accuracy": lambda predictions: wilson(accuracy(predictions), len(predictions)),
    "log_loss": lambda predictions: mean_interval(row_losses(predictions)),
    "mae": lambda predictions: mean_interval(np.abs(_errors(predictions))),
    "rmse": _interval_of_rmse,
}


def summarize_blocks(predictions: Predictions, names: tuple[str, ...], metric_name: str) -> SplitScores:
    """Return a labelled suite's scores: overall, and accuracy by severity, distortion and block if the task has any.

    Args:
        predictions: with blocks named `distortion<NN>_<severity>`.
        names: the distortions' names, indexed by number.
        metric_name: a row of METRICS, computed on all rows at once like a submission; accuracy is the mean over blocks.
    """
    names_reported, undefined = _reported(predictions, metric_name)
    blocks = predictions.block_accuracy() if "accuracy" in names_reported else {}
    by_severity: dict[str, list[float]] = {}
    by_distortion: dict[str, list[float]] = {}
    for block, value in blocks.items():
        distortion, severity = distortion_and_severity(block)
        by_severity.setdefault(str(severity), []).append(value)
        by_distortion.setdefault(names[distortion], []).append(value)
    values = {
        name: float(np.mean(list(blocks.values()))) if name == "accuracy" else metric(name).score(predictions)
        for name in names_reported
    }
    return SplitScores(
        images=len(predictions),
        scores={name: _score(name, value, None) for name, value in values.items()},
        undefined=undefined or None,
        by_severity={key: float(np.mean(values)) for key, values in sorted(by_severity.items())},
        by_distortion={key: float(np.mean(values)) for key, values in by_distortion.items()},
        by_block=blocks,
    )


def _score(name: str, value: float, interval: Interval | None) -> Score:
    low, high = (interval.low, interval.high) if interval else (None, None)
    return Score(value=value, higher_is_better=METRICS[name].higher_is_better, low=low, high=high)
