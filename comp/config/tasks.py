"""Tasks: what kind of answer an image has, one row of `TASKS` each. Names and plain values only, without torch.

The rooms that do the work look their own rows up by these names (`comp.results.predictions.ACTIVATIONS`,
`comp.results.metrics.METRICS`, `comp.submission.answers.ANSWERS`, `comp.training.losses.LOSSES`, `comp.data.splitting`,
`comp.ensembles.methods.METHODS`), so that none of them branches on a task's name.
"""

from dataclasses import dataclass

from comp.runtime.errors import ConfigError, unknown


@dataclass(frozen=True)
class TaskRow:
    """What follows from a task.

    Attributes:
        name: as `competition.task` spells it.
        activation: outputs [N, K] -> probabilities [N, K]; a row of `comp.results.predictions.ACTIVATIONS`.
        shifted: whether a row of outputs may be shifted by a constant, and is stored as float16 with its maximum at 0.
        target_columns: whether targets are [N, K] of 0 and 1, one column for each class, instead of [N] class indices.
        loss: a row of `comp.training.losses.LOSSES`.
        consistency: whether views of one image can be held to agree (`train.consistency`).
        metrics: rows of `comp.results.metrics.METRICS`; the first is what `competition.metric: auto` means.
        decision: how probabilities become a decision: `arg_max`, or `thresholds` for each class.
        answers: rows of `comp.submission.answers.ANSWERS` that a submission may hold.
        ensembles: rows of `comp.ensembles.methods.METHODS` that are defined for it.
        stratifier: a row of `comp.data.splitting.STRATIFIERS`.
        uncertain_views: whether `predict.views_for: uncertain` can rank images by their confidence.
        adaptations: values of `predict.adapt` that are sound.
        accuracy_estimate: whether accuracy can be estimated without labels from confidences.
    """

    name: str
    activation: str
    shifted: bool
    target_columns: bool
    loss: str
    consistency: bool
    metrics: tuple[str, ...]
    decision: str
    answers: tuple[str, ...]
    ensembles: tuple[str, ...]
    stratifier: str
    uncertain_views: bool
    adaptations: tuple[str, ...]
    accuracy_estimate: bool


_SINGLE_LABEL = TaskRow(
    name="single_label",
    activation="softmax",
    shifted=True,
    target_columns=False,
    loss="cross_entropy",
    consistency=True,
    metrics=(
        "accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "log_loss", "roc_auc", "mean_average_precision",
        "quadratic_weighted_kappa", "map_at_3", "map_at_5",
    ),
    decision="arg_max",
    answers=("label", "probability", "probabilities", "value", "ranked"),
    ensembles=("mean", "geometric", "rank", "weighted", "greedy", "stack", "soup"),
    stratifier="classes",
    uncertain_views=True,
    adaptations=("none", "bn", "tent"),
    accuracy_estimate=True,
)  # fmt: skip

_MULTI_LABEL = TaskRow(
    name="multi_label",
    activation="sigmoid",
    shifted=False,
    target_columns=True,
    loss="binary_cross_entropy",
    consistency=False,
    metrics=(
        "roc_auc", "mean_average_precision", "log_loss", "macro_f1", "micro_f1", "samples_f1", "accuracy",
        "map_at_3", "map_at_5",
    ),
    decision="thresholds",
    answers=("independent", "labels", "ranked"),
    ensembles=("mean", "geometric", "rank", "weighted", "greedy", "soup"),
    stratifier="label_sets",
    uncertain_views=False,
    adaptations=("none", "bn"),
    accuracy_estimate=False,
)  # fmt: skip

TASKS = {"single_label": _SINGLE_LABEL, "multi_label": _MULTI_LABEL}


def task(name: str) -> TaskRow:
    """Return a row of TASKS.

    Raises:
        ConfigError: unknown name.
    """
    if name not in TASKS:
        raise ConfigError(f"competition.task: {unknown('task', name, [*TASKS, 'auto'])}")
    return TASKS[name]


def metric_name(wanted: str, row: TaskRow) -> str:
    """Return the competition's metric: the wanted one, or the task's first for `auto`.

    Raises:
        ConfigError: the metric is not defined for the task.
    """
    if wanted == "auto":
        return row.metrics[0]
    if wanted not in row.metrics:
        raise ConfigError(
            f"competition.metric: {wanted} is not defined for task {row.name}; choose from {', '.join(row.metrics)}"
        )
    return wanted
