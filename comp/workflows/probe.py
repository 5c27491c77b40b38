"""`comp probe`: fit a simple classifier on a trained run's features."""

import time
from dataclasses import replace
from pathlib import Path

from comp.config import Config
from comp.config.tasks import TASKS
from comp.data.dataset import open_dataset
from comp.inference import probe as probes
from comp.results import files, prediction_files, runs
from comp.results.run_metrics import SplitScores, WeightScores
from comp.results.runs import Run
from comp.runtime.errors import ConfigError, DataError
from comp.runtime.progress import Progress, quiet
from comp.workflows import plugins
from comp.workflows.load import LoadedRun, load_model
from comp.workflows.predict import scores_of
from comp.workflows.score import describe_network
from comp.workflows.train import provenance_of


def probe(
    run: Run,
    *,
    name: str,
    k: int = 5,
    config: Config | None = None,
    run_name: str = "",
    runs_root: Path = Path("runs"),
    progress: Progress = quiet,
) -> Run:
    """Fit a classifier on a trained run's features and score it; return the result, a run without weights.

    Args:
        run: its best weights give the features.
        name: a row of `comp.inference.probe.CLASSIFIERS`.
        k: neighbours, for `knn`.
        config: of the data to probe; None: the run's.
        run_name: of the result's folder, after the time; empty: the classifier's.
        runs_root: where the result's folder is made.
        progress: called after every batch.

    Raises:
        UserError: an unknown classifier, a run that is not trained, or data that do not fit it.
    """
    probes.check_probe(name, k)
    plugins.check_consent(run)
    if config is None:
        plugins.load_of(run)
    else:
        plugins.load(config)
    dataset = open_dataset(config or run.data_config(), progress)  # before the run's rows may replace the config's
    config = config or run.config()
    competition = dataset.competition
    if TASKS[competition.task].numeric:
        raise ConfigError(f"{run.path}: a probe tells classes apart, and task {competition.task} has none")
    model, execution, _ = load_model(run)
    trained_shape = run.provenance("image_shape")["image_shape"]
    if list(competition.image_shape) != trained_shape:
        raise DataError(
            f"{run.path}: was trained on images (C, H, W) {trained_shape}, found {list(competition.image_shape)}; "
            "probe data of the same shape"
        )
    began = time.perf_counter()
    fitted = probes.Probe(
        model,
        dataset.train,
        classes=competition.classes,
        task=competition.task,
        name=name,
        k=k,
        execution=execution,
        batch_size=config.predict.batch_size,
        progress=progress,
    )
    provenance = provenance_of(config, dataset, model, execution.device)
    result = runs.create(runs_root, config, run_name or f"{name}-probe", provenance, fixes=dataset.fixes)
    made_by = {"run": run.name, "weights_sha256": files.sha256_file(run.weights_path()), "probe": name, "k": k}
    with runs.delete_on_failure(result), result.write_lock():
        scores: dict[str, SplitScores | None] = {}
        for split in (dataset.val, dataset.test):
            if split is not None:
                predicted = fitted.predict(split, made_by, progress)
                if fitted.micro_batch is not None:
                    predicted = replace(predicted, made_by={**made_by, "micro_batch": fitted.micro_batch})
                prediction_files.save(result.predictions_path(split.name), predicted)
                scores[split.name] = scores_of(predicted, competition.metric)
        probed = {
            "model": f"{name} on {run.name}",
            "train_seconds": round(time.perf_counter() - began, 2),
            "final": WeightScores(val=scores.get("val")),
            "test": scores.get("test"),
            "micro_batch": fitted.micro_batch,
        }
        loaded = LoadedRun(result, config, competition, model, execution, dataset)
        result.write_metrics(describe_network(loaded, "probe").model_copy(update=probed))
    return result
