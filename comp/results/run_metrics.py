"""The content of a run's metrics.json, typed and versioned: what leaderboard, report, tracker and tuner read.

Version 2. Version 1, which held accuracy, loss and `metric` of each split side by side, is read as version 2.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from comp.config.tasks import TASKS
from comp.runtime.errors import RunError, unknown

VERSION = 2
_BEGINNING = f'{{\n  "version": {VERSION},'.encode()  # of a file written by this version

Kind = Literal["run", "ensemble", "soup", "fold_group", "probe"]

_LOWER_IS_BETTER_1 = ("log_loss",)  # among version 1's metrics


class _Part(BaseModel):
    """A part of metrics.json: frozen, keeps keys of later versions, refuses NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)


class Score(_Part):
    """One score.

    Attributes:
        value: in the metric's own unit.
        higher_is_better: its direction.
        low: lower end of its 95 % interval, None if not computed.
        high: upper end.
    """

    value: float
    higher_is_better: bool = True
    low: float | None = None
    high: float | None = None

    @property
    def as_maximize(self) -> float:
        """The value, its sign turned if lower is better: higher is always better."""
        return self.value if self.higher_is_better else -self.value


class SplitScores(_Part):
    """Scores of one split's predictions.

    Attributes:
        images: rows that were scored.
        scores: metric name -> score: accuracy, log_loss and the competition's metric.
        undefined: metric name -> why these images leave it undefined, so that it has no score; None: they leave none.
        by_severity: severity -> accuracy, mean over its blocks; like the next two, empty for a split without blocks.
        by_distortion: distortion -> accuracy, mean over its blocks.
        by_block: block -> accuracy.
        transductive: whether the model was adapted to these images.
    """

    images: int = 0
    scores: dict[str, Score] = Field(default_factory=dict)
    undefined: dict[str, str] | None = None
    by_severity: dict[str, float] = Field(default_factory=dict)
    by_distortion: dict[str, float] = Field(default_factory=dict)
    by_block: dict[str, float] = Field(default_factory=dict)
    transductive: bool = False

    def value(self, name: str) -> float | None:
        """Return the value of a metric; None if it was not computed or is undefined."""
        score = self.scores.get(name)
        return None if score is None else score.value

    @property
    def accuracy(self) -> float | None:
        """Share of correct decisions; of a suite, the mean over its blocks."""
        return self.value("accuracy")

    @property
    def log_loss(self) -> float | None:
        """Mean negative log likelihood, in nats."""
        return self.value("log_loss")


class WeightScores(_Part):
    """Scores of one set of weights: best, averaged or final.

    Attributes:
        val: clean validation.
        ood_val: shifted validation.
        method: how averaged weights were averaged.
        statistics: where the batch norm statistics of averaged weights come from.
        missing: why there are no averaged weights; empty if there are.
    """

    val: SplitScores | None = None
    ood_val: SplitScores | None = None
    method: str = ""
    statistics: str = ""
    missing: str = ""


class AccuracyEstimate(_Part):
    """Accuracy estimated without labels; see `comp.inference.accuracy_estimate`."""

    accuracy: float
    low: float
    high: float
    width: float
    by_block: dict[str, float] = Field(default_factory=dict)
    before: float | None = None


class Decision(_Part):
    """How outputs become decisions; see `comp.results.decisions`.

    Attributes:
        kind: a row of `comp.results.decisions.KINDS`.
        values: what was fitted on all of validation: thresholds or offsets of each class, cut points, a temperature.
        fold_values: likewise on all but one fold of validation, for shifted copies of that fold's images; empty if the
            test's shares are declared.
        shift: of each class, the logarithm of its declared share of the test over its share of the training.
        tried: the kind whose gain was measured; `kind`, unless that is argmax.
        gain: of the metric over argmax on validation, cross-fitted; positive is better, whatever the metric's
            direction; None if it could not be measured.
        low: lower end of the gain's 95 % interval.
        high: upper end.
        reason: why argmax is kept, or why no gain was measured.
    """

    kind: str = "argmax"
    values: list[float] = Field(default_factory=list)
    fold_values: list[list[float]] = Field(default_factory=list)
    shift: list[float] = Field(default_factory=list)
    tried: str = ""
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""


class LeaderboardScore(_Part):
    """A recorded score on the competition's own leaderboard."""

    public: float | None = None
    private: float | None = None
    submission: str = ""
    reference: str = ""
    source: str = ""
    rows: int | None = None
    time: str = ""


class RunMetrics(_Part):
    """The content of metrics.json. Attributes that do not apply to a kind of run are empty.

    Attributes:
        version: of this format.
        kind: how the run was made.
        task: a row of `comp.config.tasks.TASKS`.
        run: `<competition>/<time>-<name>`.
        competition: its name.
        metric: the competition's, a row of `comp.results.metrics.METRICS`.
        higher_is_better: the metric's direction; None in files from before plug-ins, whose metrics are all comp's own.
        overrides: `key=value` of the command that started a training.
        fold: of a training, such as `1 of 5`; empty without folds.
        selected_by: what the best weights were selected by; empty if nothing was selected.
        teachers: names of the runs whose outputs were part of the targets; None without.
        pseudo_labels: how many pseudo-labelled images joined the training images; None without.
        group_answer: how a group's images answered together, `mean` or `max`; None where each image was scored.
        best: scores of the best weights by validation.
        final: scores of the last epoch's weights.
        averaged: scores of averaged weights.
        test: the clean test, if labelled.
        suite: the suite, if labelled.
        variants: name of predictions with views or adaptation (`suite+flip`) -> scores.
        variant: views and adaptation that the run's config sets for test and suite, such as `+flip`.
        others: name of another suite or split -> scores.
        expected: name of predictions -> accuracy estimated without labels.
        thresholds: of each class in multi-label tasks, tuned on validation; empty if decisions need none.
        decision: how outputs become decisions; None: the plain way, without a question.
        submission: the CSV written last.
        submissions: each CSV -> how its predictions were made, as the end of their file's name, such as
            `+flip+decide-argmax`; the last one written comes last; None in files of earlier versions.
        transductive: whether the model was adapted to the submission's images.
        public_score: of the latest recorded submission.
        private_score: likewise.
        leaderboard_scores: all recorded scores of its submissions.
        ensemble: an ensemble's comparison with its members, and whether their blocks were `pooled`.
        soup: a soup's members.
    """

    version: int = VERSION
    kind: Kind = "run"
    task: str = "single_label"
    run: str
    competition: str
    metric: str
    higher_is_better: bool | None = None
    config_hash: str = ""
    overrides: list[str] = Field(default_factory=list)
    fold: str = ""
    model: str
    parameters: int
    trainable: list[dict[str, Any]] = Field(default_factory=list)
    first_weights: str = ""
    device: str = ""
    precision: str = ""
    compiled: bool = False
    selected_by: str = ""
    epochs: int = 0
    stopped: str = ""
    rollbacks: list[str] = Field(default_factory=list)
    deterministic: bool = False
    micro_batch: int | None = None
    best_epoch: int = 0
    best_averaged: bool = False
    train_seconds: float = 0.0
    test_like: list[str] = Field(default_factory=list)
    teachers: list[str] | None = None
    pseudo_labels: int | None = None
    group_answer: str | None = None
    best: WeightScores = WeightScores()
    final: WeightScores = WeightScores()
    averaged: WeightScores = WeightScores()
    test: SplitScores | None = None
    suite: SplitScores | None = None
    variants: dict[str, SplitScores] = Field(default_factory=dict)
    variant: str = ""
    others: dict[str, SplitScores] = Field(default_factory=dict)
    expected: dict[str, AccuracyEstimate] = Field(default_factory=dict)
    thresholds: list[float] = Field(default_factory=list)
    decision: Decision | None = None
    weights_sha256: str = ""
    submission: str = ""
    submissions: dict[str, str] | None = None
    transductive: bool = False
    public_score: float | None = None
    private_score: float | None = None
    leaderboard_scores: list[LeaderboardScore] = Field(default_factory=list)
    ensemble: dict[str, Any] | None = None
    soup: dict[str, Any] | None = None

    @field_validator("task")
    @classmethod
    def _check_task(cls, task: str) -> str:
        if task not in TASKS:
            raise ValueError(unknown("task", task, TASKS))
        return task

    @field_validator("trainable")
    @classmethod
    def _check_trainable(cls, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        kinds = {"name": str, "parameters": int, "trainable": int, "statistics": str}
        if not all(isinstance(row.get(name), kind) for row in rows for name, kind in kinds.items()):
            raise ValueError(f"expected rows of {', '.join(kinds)}")
        return rows

    @property
    def fitted_decision(self) -> Decision | None:
        """The decision for new images; runs of multi-label tasks record `thresholds` too, and once did nothing else."""
        if not self.thresholds:
            return self.decision
        fold_values = self.decision.fold_values if self.decision else []
        return Decision(kind="thresholds", values=self.thresholds, fold_values=fold_values)

    @property
    def best_or_final(self) -> WeightScores:
        """Scores of the weights used to predict: the best by validation, or the final ones without validation."""
        return self.best if self.best.val or self.best.ood_val else self.final

    @property
    def lessons(self) -> list[str]:
        """What other runs brought into the training: `teacher`, `pseudo-labels`, both or nothing."""
        return ["teacher"] * bool(self.teachers) + ["pseudo-labels"] * bool(self.pseudo_labels)

    def split_scores(self, name: str, variant: str | None = None) -> SplitScores | None:
        """Return the scores of `test` or `suite` predicted in one way, None: the config's; None if there are none."""
        variant = self.variant if variant is None else variant
        if variant:
            return self.variants.get(name + variant)
        return self.test if name == "test" else self.suite

    def written(self) -> dict[str, str]:
        """Return `submissions`, of earlier versions with the last one alone, as if made in the config's way."""
        if self.submissions is None:
            return {self.submission: self.variant} if self.submission else {}
        return self.submissions

    def with_scores(self, name: str, scores: SplitScores) -> "RunMetrics":
        """Return a copy with the scores of `test`, `suite` or another suite."""
        if name in ("test", "suite"):
            return self.model_copy(update={name: scores})
        return self.model_copy(update={"others": {**self.others, name: scores}})

    def to_json(self) -> dict[str, Any]:
        """Return plain values without None."""
        return self.model_dump(mode="json", exclude_none=True)


def merged_lessons(members: Sequence[RunMetrics]) -> dict[str, Any]:
    """Return `teachers` and `pseudo_labels` of a run that is made from others: all teachers, and the most labels."""
    teachers = sorted({name for member in members for name in member.teachers or ()})
    pseudo_labels = max((member.pseudo_labels or 0 for member in members), default=0)
    return {"teachers": teachers or None, "pseudo_labels": pseudo_labels or None}


def from_bytes(content: bytes, where: str) -> RunMetrics:
    """Parse the content of metrics.json; see `from_json`.

    Files of the current version are validated while parsing: ten thousand take a second.
    """
    try:
        if content.startswith(_BEGINNING):
            return RunMetrics.model_validate_json(content)
        values = pydantic_core.from_json(content)
    except (ValidationError, ValueError) as error:
        raise _damaged(where, error) from None
    if not isinstance(values, dict):
        raise _damaged(where, TypeError(f"expected a JSON object, found {type(values).__name__}"))
    return from_json(values, where)


def from_json(values: Mapping[str, Any], where: str) -> RunMetrics:
    """Parse the plain values of metrics.json, of this version or an earlier one.

    Args:
        values: the file's object.
        where: the file, for error messages.

    Raises:
        RunError: a later version, or damaged.
    """
    version = values.get("version", 1)
    if isinstance(version, bool):
        raise _damaged(where, TypeError(f"version: expected a number, found {version}"))
    if isinstance(version, int) and version > VERSION:
        raise RunError(f"{where}: version {version} is newer than {VERSION}; update comp")
    try:
        return RunMetrics.model_validate(_from_version_1(values) if version == 1 else values)
    except (ValidationError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise _damaged(where, error) from None


def _damaged(where: str, error: Exception) -> RunError:
    reason = repr(error)
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        reason = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
    return RunError(
        f"{where}: damaged ({reason}); restore the file, or move {Path(where).parent} away and start the run again"
    )


def _from_version_1(values: Mapping[str, Any]) -> dict[str, Any]:
    metric = values["metric"]

    def split(old: Mapping[str, Any] | None) -> dict[str, Any] | None:
        if not old:
            return None
        names = {"accuracy": "accuracy", "loss": "log_loss", "metric": metric}
        scores = {
            name: {"value": old[key], "higher_is_better": name not in _LOWER_IS_BETTER_1}
            for key, name in names.items()
            if isinstance(old.get(key), int | float) and math.isfinite(old[key])
        }
        return {**{key: value for key, value in old.items() if key not in names}, "scores": scores}

    def weights(old: Mapping[str, Any] | None) -> dict[str, Any]:
        kept = {key: value for key, value in (old or {}).items() if key in ("method", "statistics", "missing")}
        return {**kept, **{name: split((old or {}).get(name)) for name in ("val", "ood_val")}}

    fields = set(RunMetrics.model_fields) | {"scores"}
    # Version 1 stored other suites under their own names.
    others = {
        key: split(value)
        for key, value in values.items()
        if key not in fields and isinstance(value, Mapping) and "accuracy" in value
    }
    upgraded = {
        **{key: value for key, value in values.items() if key not in others and key != "scores"},
        "version": VERSION,
        "kind": _kind_1(values),
        **{name: weights(values.get(name)) for name in ("best", "final", "averaged")},
        **{name: split(values.get(name)) for name in ("test", "suite")},
        "variants": {name: split(old) or {} for name, old in values.get("variants", {}).items()},
        "others": others,
        "leaderboard_scores": list(values.get("scores", ())),
    }
    if values.get("val") and not values.get("best"):  # an ensemble's clean validation in version 1
        upgraded["best"] = weights({"val": values["val"]})
    return upgraded


def _kind_1(values: Mapping[str, Any]) -> Kind:
    """Return the kind of a version 1 run, from its other keys."""
    if "soup" in values:
        return "soup"
    if "ensemble" in values or (values.get("epochs") == 0 and " of " in values["model"]):
        return "ensemble"
    return "probe" if values.get("epochs") == 0 and " on " in values["model"] else "run"
