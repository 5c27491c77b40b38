"""What notebooks and scripts use; `import comp` gives these names and loads nothing until one of them is called.

config = comp.load_config("configs/quickstart.yaml", "train.epochs=5")
run = comp.train(config)
found = comp.predict(run, views="flip", adapt="bn")
strangers = comp.predict(run, images=["photos", "more/*.jpg"])
both = comp.ensemble([run, comp.train(config.model_copy(update={"seed": 1}))])
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from comp import config
from comp.config import Config
from comp.ensembles import combine
from comp.inference.inputs import Paths, PredictInput
from comp.results.predictions import Predictions
from comp.results.runs import Run, open_run
from comp.runtime.progress import Progress, quiet
from comp.workflows import build
from comp.workflows import predict as predicting
from comp.workflows import train as pipeline

__all__ = ["Run", "ensemble", "load_config", "predict", "train"]


def load_config(path: Path | str, *overrides: str) -> Config:
    """Return the config of a YAML file with `key.path=value` overrides laid on it.

    Raises:
        ConfigError: an unknown key or a value that no field takes, with its place and the nearest known key.
    """
    return config.load(path, overrides)


def train(
    config: Config | Path | str, *, name: str = "run", runs: Path | str = "runs", progress: Progress = quiet
) -> Run:
    """Train, keep the best weights, score them on validation and on the labelled test; return the complete run.

    Args:
        config: what to train: a config, or a YAML file's path.
        name: of the run's folder, after the time.
        runs: where run folders are made.
        progress: called at every step.

    Raises:
        UserError: anything wrong with config, data or disk.
    """
    config = config if isinstance(config, Config) else load_config(config)
    dataset = build.prepare(config, Path(runs), progress)
    run = pipeline.train(config, name=name, runs_root=Path(runs), dataset=dataset, progress=progress)
    predicting.evaluate(predicting.load(run, dataset, progress), progress)
    return run


def predict(
    run: Run | Path | str,
    *,
    split: str | None = None,
    images: Paths | NDArray[np.uint8] | None = None,
    suite: Path | str | None = None,
    severities: int = 5,
    overrides: Sequence[str] = (),
    device: str = "",
    views: str | None = None,
    adapt: str | None = None,
    progress: Progress = quiet,
) -> Predictions:
    """Return a run's predictions of its suite, of a split, of another suite, or of any images.

    Those of the suite, a split or another suite are stored in the run's folder and scored in its metrics.json; those of
    images are returned alone. For images and for another suite the run's own data need not be there.

    Args:
        run: a complete run, or its folder.
        split: `suite`, `test`, `val` or `ood_val`. Of `split`, `images` and `suite` at most one is given; none means
            the run's suite.
        images: files, folders, globs, a table or text of paths, one path or several; or an array, uint8 [N, H, W, C] of
            the run's image shape.
        suite: a folder of `distortionNN.npy`.
        severities: stacked in each of its files.
        overrides: `data.root=DIR`: where the run's data lie now.
        device: `cpu`, `cuda` or `mps`; empty: the one that it was trained on.
        views: `none`, `flip`, `shift`, `flip_shift`, `ten_crop` or `dihedral`; None: the run's own.
        adapt: `none`, `bn` or `tent`; None: the run's own.
        progress: called after every batch.

    Raises:
        UserError: no such split, images that cannot be read, or the rules forbid the adaptation.
    """
    wanted = PredictInput(split, None if suite is None else Path(suite), images)
    opened = _opened(run)
    if overrides:
        opened = open_run(opened.path, (*opened.overrides, *overrides))
    loaded = predicting.load_for(opened, wanted, progress, device=device)
    variant = predicting.variant_for(loaded, {"views": views, "adapt": adapt})
    return predicting.predict_input(loaded, wanted, progress, variant=variant, severities=severities).found


def ensemble(members: Sequence[Run | Path | str], *, method: str = "mean", runs: Path | str = "runs") -> Run:
    """Combine trained runs into one, scored, stored and submitted like any other.

    Args:
        members: complete runs of one competition, or their folders.
        method: a row of `comp.ensembles.methods.METHODS`.
        runs: where its folder is made.

    Raises:
        UserError: members that do not fit each other, or an unknown method.
    """
    return combine.ensemble([_opened(member) for member in members], method=method, runs_root=Path(runs))


def _opened(run: Run | Path | str) -> Run:
    return run if isinstance(run, Run) else open_run(Path(run))
