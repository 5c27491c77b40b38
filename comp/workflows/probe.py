"""`comp probe RUN`: a simple classifier on a trained run's features, scored and stored like any run."""

import time
from pathlib import Path

from comp.config import Config
from comp.data.dataset import open_dataset
from comp.inference import probe as probes
from comp.results import files, prediction_files, runs
from comp.results.run_metrics import SplitScores, WeightScores
from comp.results.runs import Run
from comp.runtime.errors import DataError
from comp.runtime.progress import Progress, quiet
from comp.workflows import build, predict, train
from comp.workflows.predict import LoadedRun


def probe(
    run: Run,
    *,
    name: str,
    k: int = 5,
    config: Config | None = None,
    runs_root: Path = Path("runs"),
    progress: Progress = quiet,
) -> Run:
    """Fit a classifier on a trained run's features and score it; return the result, a run without weights.

    Args:
        run: whose best weights give the features.
        name: a row of `comp.inference.probe.CLASSIFIERS`.
        k: neighbours, for `knn`.
        config: whose data are probed; None takes the run's own.
        runs_root: where the result is made.
        progress: called after every batch.

    Raises:
        UserError: an unknown classifier, a run that is not trained, data that do not fit it.
    """
    probes.check_probe(name, k)
    dataset = open_dataset(config or run.data_config(), progress)
    config = config or run.config()
    model, execution, _ = build.load_model(run)
    if list(dataset.competition.image_shape) != run.provenance("image_shape")["image_shape"]:
        raise DataError(
            f"{run.path}: was trained on images (C, H, W) {run.provenance()['image_shape']}, found "
            f"{list(dataset.competition.image_shape)}; probe data of the same shape"
        )
    began = time.perf_counter()
    fitted = probes.Probe(
        model, dataset.train, classes=dataset.competition.classes, task=dataset.competition.task, name=name, k=k,
        execution=execution,
        batch_size=config.predict.batch_size, progress=progress,
    )  # fmt: skip
    result = runs.create(runs_root, config, f"{name}-probe", train.provenance_of(config, dataset, model))
    made_by = {"run": run.name, "weights_sha256": files.sha256_file(run.weights_path()), "probe": name, "k": k}
    with runs.delete_on_failure(result), result.write_lock():
        scores: dict[str, SplitScores | None] = {}
        for split in (dataset.val, dataset.test):
            if split is not None:
                found = fitted.predict(split, made_by, progress)
                prediction_files.save(result.predictions_path(split.name), found)
                scores[split.name] = predict.scores_of(found, dataset.competition.metric)
        described = train.describe_network(
            LoadedRun(result, config, dataset.competition, model, execution, dataset), "probe"
        )
        probed = {
            "model": f"{name} on {run.name}",
            "train_seconds": round(time.perf_counter() - began, 2),
            "final": WeightScores(val=scores.get("val")),
            "test": scores.get("test"),
        }
        result.write_metrics(described.model_copy(update=probed))
    return result
