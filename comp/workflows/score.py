"""Score trained weights and describe a run, as metrics.json records them."""

from dataclasses import dataclass, field, replace
from typing import Any

from comp import config as configs
from comp.data.splits import Split, Suite
from comp.inference.options import PLAIN
from comp.inference.predict import GROUP_ANSWER, predict
from comp.models import surgery
from comp.results import decisions, metrics, prediction_files
from comp.results.blocks import DISTORTIONS
from comp.results.predictions import Predictions
from comp.results.run_metrics import Decision, Kind, RunMetrics, WeightScores
from comp.results.runs import Run
from comp.runtime.progress import Progress
from comp.submission.format import Competition
from comp.training.best_weights import Validation
from comp.training.selection import Scores
from comp.workflows.load import LoadedRun
from comp.workflows.predict import describe_prediction


@dataclass(frozen=True)
class WeightResult:
    """Scores of one set of weights.

    Attributes:
        scores: of clean and shifted validation.
        decision: for other images, fitted on all of clean validation; None: the plain one.
        task: a row of `comp.config.tasks.TASKS`.
    """

    scores: WeightScores = field(default_factory=WeightScores)
    decision: Decision | None = None
    task: str = "single_label"

    def recorded_decision(self) -> dict[str, Any]:
        """Return the decision as RunMetrics has it."""
        return decisions.recorded(self.decision, self.task)


def score_weights(
    loaded: LoadedRun,
    which: str,
    progress: Progress,
    measured: Validation | None = None,
    *,
    compared_with: Decision | None = None,
) -> WeightResult:
    """Score the model's weights on clean validation, and the best ones on shifted validation too.

    Args:
        loaded: its model holds the weights.
        which: `best`, `averaged` or `final`: the weights' file.
        progress: called after every batch.
        measured: predictions that the training has just made with these weights; they are not made again.
        compared_with: the decision of the best weights, whose kind these are decided by too; None: one of their own.
    """
    run, dataset, metric = loaded.run, loaded.dataset, loaded.competition.metric
    measured = measured or Validation(Scores())
    val, shifted, setting = None, None, loaded.config.predict.decide
    decision = decisions.decide_without_validation(setting, loaded.test_shares)
    if dataset.val is not None:
        predicted = _predict_plain(loaded, dataset.val, which, progress, measured.val)
        if compared_with is None:
            predicted, decision = decisions.decide(predicted, metric, setting, shares=loaded.test_shares)
        else:
            predicted = decisions.apply_to_validation(compared_with, predicted, metric)
        val = metrics.summarize(predicted, metric)
        prediction_files.save(run.predictions_path("val" if which == "best" else f"val-{which}"), predicted)
    if dataset.ood_val is not None and which == "best":
        predicted = _predict_plain(loaded, dataset.ood_val, which, progress, measured.ood_val)
        predicted = decisions.apply_to_shifted_validation(decision, predicted, dataset.shifted_folds())
        shifted = metrics.summarize_blocks(predicted, DISTORTIONS, metric)
        prediction_files.save(run.predictions_path("ood_val"), predicted)
    return WeightResult(WeightScores(val=val, ood_val=shifted), decision, loaded.competition.task)


def _predict_plain(
    loaded: LoadedRun, images: Split | Suite, which: str, progress: Progress, existing: Predictions | None
) -> Predictions:
    """Return plain predictions by the model's weights: the existing ones, or new ones."""
    made_by = describe_prediction(loaded, which, PLAIN)
    if existing is not None:
        grouped = {key: value for key, value in existing.made_by.items() if key == GROUP_ANSWER}
        return replace(existing, made_by={**made_by, **grouped})
    return predict(loaded.model, images, **loaded.prediction_settings, made_by=made_by, progress=progress)


def describe_run(run: Run, competition: Competition, kind: Kind, *, model: str, parameters: int) -> RunMetrics:
    """Return the metrics of a run of any kind before it is scored; add scores with `model_copy(update=...)`.

    Args:
        run: its folder.
        competition: of its data, with task and metric resolved.
        kind: of the run.
        model: a network's name, or a description in its place.
        parameters: of all its networks.
    """
    config = run.config()
    return RunMetrics(
        kind=kind,
        task=competition.task,
        run=run.name,
        competition=competition.name,
        metric=competition.metric,
        higher_is_better=metrics.metric(competition.metric).higher_is_better,
        config_hash=configs.fingerprint(config),
        group_answer=None if config.data.group_answer == "none" else config.data.group_answer,
        model=model,
        parameters=parameters,
        first_weights=run.provenance("first_weights")["first_weights"],
    )


def describe_network(loaded: LoadedRun, kind: Kind) -> RunMetrics:
    """Return the metrics of a run that has a network, before it is scored; see `describe_run`."""
    model, execution = loaded.model, loaded.execution
    parameters = sum(parameter.numel() for parameter in model.parameters())
    described = describe_run(
        loaded.run, loaded.competition, kind, model=loaded.config.model.name, parameters=parameters
    )
    data = loaded.config.data
    network = {
        "overrides": loaded.run.started_with() if kind == "run" else [],
        "fold": "" if data.folds is None else f"{data.fold} of {data.folds}",
        "trainable": [row._asdict() for row in surgery.trainable_table(model)],
        "device": execution.device,
        "precision": execution.precision,
        "compiled": execution.compiled,
    }
    return described.model_copy(update=network)
