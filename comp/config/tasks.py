"""Tasks: one row of `TASKS` per kind of label. Names and plain values only, without torch.

Other packages look up their own rows by these names (`comp.results.predictions.ACTIVATIONS`,
`comp.results.metrics.METRICS`, `comp.submission.answers.ANSWERS`, `comp.training.losses.LOSSES`, `comp.data.splitting`,
`comp.ensembles.methods.METHODS`), so that none of them branches on a task's name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from comp.runtime.errors import ConfigError, unknown


@dataclass(frozen=True)
class TaskRow:
    """The consequences of a task.

    Attributes:
        name: value of `competition.task`.
        activation: outputs [N, K] -> probabilities [N, K]; a row of `comp.results.predictions.ACTIVATIONS`.
        loss: a row of `comp.training.losses.LOSSES`, the default (`train.loss: auto`).
        losses: other values of `train.loss` -> rows of LOSSES.
        metrics: rows of `comp.results.metrics.METRICS`; the first is the default (`competition.metric: auto`).
        decision: how probabilities become decisions: `arg_max`; `expected_level`, the class nearest to the expected
            position; `thresholds` per class; `values`, the outputs themselves.
        answers: supported rows of `comp.submission.answers.ANSWERS`.
        ensembles: supported rows of `comp.ensembles.methods.METHODS`.
        stratifier: a row of `comp.data.splitting.STRATIFIERS`.
        adaptations: supported values of `predict.adapt`.
        shifted: whether outputs are invariant to a constant per row, and are stored as float16 with a maximum of 0.
        target_columns: whether targets are 0/1 columns [N, K], one per class, instead of class indices [N].
        numeric: whether targets are numbers [N] float32 in the label's own unit; there is one output, no class.
        ordered: whether the classes' order is part of the task.
        reported: metrics that every scored split reports beside the competition's.
        consistency: whether `train.consistency` is supported.
        uncertain_views: whether `predict.views_for: uncertain` is supported.
        accuracy_estimate: whether accuracy can be estimated from confidences without labels.
    """

    name: str
    activation: str
    loss: str
    metrics: tuple[str, ...]
    decision: str
    answers: tuple[str, ...]
    ensembles: tuple[str, ...]
    stratifier: str
    adaptations: tuple[str, ...]
    losses: Mapping[str, str] = field(default_factory=dict)
    shifted: bool = False
    target_columns: bool = False
    numeric: bool = False
    ordered: bool = False
    reported: tuple[str, ...] = ("accuracy", "log_loss")
    consistency: bool = False
    uncertain_views: bool = False
    accuracy_estimate: bool = False

    @property
    def one_class(self) -> bool:
        """Whether each row decides on exactly one class."""
        return self.decision in ("arg_max", "expected_level")


_SINGLE_LABEL = TaskRow(
    name="single_label",
    activation="softmax",
    shifted=True,
    loss="cross_entropy",
    losses={"cross_entropy": "cross_entropy", "focal": "focal", "bce": "binary_cross_entropy", "poly": "poly"},
    consistency=True,
    metrics=(
        "accuracy",
        "balanced_accuracy",
        "macro_f1",
        "weighted_f1",
        "log_loss",
        "roc_auc",
        "mean_average_precision",
        "quadratic_weighted_kappa",
        "map_at_3",
        "map_at_5",
    ),
    decision="arg_max",
    answers=("label", "probability", "probabilities", "value", "ranked"),
    ensembles=("mean", "geometric", "rank", "weighted", "greedy", "stack", "soup"),
    stratifier="classes",
    uncertain_views=True,
    adaptations=("none", "bn", "tent", "roid"),
    accuracy_estimate=True,
)

_MULTI_LABEL = TaskRow(
    name="multi_label",
    activation="sigmoid",
    target_columns=True,
    loss="binary_cross_entropy",
    losses={
        "bce": "binary_cross_entropy",
        "focal": "binary_focal",
        "asymmetric": "asymmetric",
        "poly": "binary_poly",
    },
    metrics=(
        "roc_auc",
        "mean_average_precision",
        "log_loss",
        "macro_f1",
        "micro_f1",
        "samples_f1",
        "accuracy",
        "map_at_3",
        "map_at_5",
    ),
    decision="thresholds",
    answers=("independent", "labels", "ranked"),
    ensembles=("mean", "geometric", "rank", "weighted", "greedy", "soup"),
    stratifier="label_sets",
    adaptations=("none", "bn"),
)

_ORDINAL = replace(
    _SINGLE_LABEL,
    name="ordinal",
    ordered=True,
    loss="cumulative",
    losses={**_SINGLE_LABEL.losses, "cumulative": "cumulative"},
    metrics=(
        "quadratic_weighted_kappa",
        "mae",
        "rmse",
        *(name for name in _SINGLE_LABEL.metrics if name != "quadratic_weighted_kappa"),
    ),
    decision="expected_level",
    reported=("accuracy", "log_loss", "mae"),
    ensembles=("mean", "geometric", "weighted", "greedy", "stack", "soup"),
)

_REGRESSION = TaskRow(
    name="regression",
    activation="identity",
    numeric=True,
    loss="mse",
    losses={"mse": "mse"},
    metrics=("rmse", "mae", "r2", "quadratic_weighted_kappa"),
    decision="values",
    reported=("rmse", "mae", "r2"),
    answers=("value",),
    ensembles=("mean", "weighted", "soup"),
    stratifier="quantiles",
    adaptations=("none", "bn"),
)

TASKS = {row.name: row for row in (_SINGLE_LABEL, _MULTI_LABEL, _ORDINAL, _REGRESSION)}
"""What each row is:

single_label: One class per image.
multi_label: Any number of classes per image.
ordinal: One class per image; the classes have an order.
regression: A number per image.
"""


def task(name: str) -> TaskRow:
    """Return a row of TASKS.

    Raises:
        ConfigError: unknown name.
    """
    if name not in TASKS:
        raise ConfigError(f"competition.task: {unknown('task', name, [*TASKS, 'auto'])}")
    return TASKS[name]


def infer_task(name: str, metric: str) -> str:
    """Return `competition.task`; `auto` is the task of numbers if only such a task has the metric."""
    rows = [row for row in TASKS.values() if metric in row.metrics]
    if name != "auto" or not rows or any(not (row.numeric or row.ordered) for row in rows):
        return name
    return next(row.name for row in rows if row.numeric)


def resolve_metric(name: str, row: TaskRow) -> str:
    """Return the competition's metric; for `auto` the task's first.

    Raises:
        ConfigError: no such metric, or one that is not defined for the task.
    """
    if name == "auto":
        return row.metrics[0]
    if all(name not in each.metrics for each in TASKS.values()):
        raise ConfigError(f"competition.metric: {unknown('metric', name, row.metrics)}")
    if name not in row.metrics:
        raise ConfigError(
            f"competition.metric: {name} is not defined for task {row.name}; choose from {', '.join(row.metrics)}, or "
            "set competition.task"
        )
    return name
