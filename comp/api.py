"""The Python API, for notebooks and scripts; `import comp` loads it when a name is first used.

config = comp.load_config("configs/quickstart.yaml", "train.epochs=5")
run = comp.train(config)
suite = comp.predict(run, views="flip", adapt="bn")
photos = comp.predict(run, images=["photos", "more/*.jpg"])
comp.predict_package("/kaggle/input/my-package", "/kaggle/input/the-competition")
both = comp.ensemble([run, comp.train(config.model_copy(update={"seed": 1}))])
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp import config
from comp.config import Config, shipped
from comp.ensembles import combine, new_images
from comp.ensembles.packaged import predict_package
from comp.inference.inputs import Paths, PredictInput
from comp.results.predictions import Predictions
from comp.results.runs import Run, open_run
from comp.runtime.progress import Progress, quiet
from comp.workflows import lineage
from comp.workflows import train as workflow
from comp.workflows.build import prepare
from comp.workflows.load import load_for_input, load_run
from comp.workflows.predict import options_for, predict_input, score_test, with_decision

__all__ = ["Run", "ensemble", "load_config", "predict", "predict_package", "train"]


def load_config(path: Path | str, *overrides: str) -> Config:
    """Return the config of a YAML file, or of a shipped config's name, with `key.path=value` overrides.

    Raises:
        ConfigError: an unknown key or an invalid value, with its location and the nearest valid key.
    """
    return config.load(shipped.find(Path(path)), overrides)


def train(
    config: Config | Path | str,
    *,
    name: str = "run",
    runs: Path | str = "runs",
    allow_plugins: bool = False,
    progress: Progress = quiet,
) -> Run:
    """Train, keep the best weights, score them on validation and on the labelled test; return the complete run.

    Args:
        config: a config, or a YAML file's path.
        name: of the run's folder, after the time.
        runs: where run folders are made.
        allow_plugins: run the Python code of the plug-ins of its teachers, as their folders have them.
        progress: called at every step.

    Raises:
        UserError: anything wrong with config, data or disk.
    """
    config = config if isinstance(config, Config) else load_config(config)
    if allow_plugins:
        lineage.consent(config)
    dataset = prepare(config, Path(runs), progress)
    run = workflow.train(config, name=name, runs_root=Path(runs), dataset=dataset, progress=progress)
    score_test(load_run(run, dataset, progress), progress)
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
    prior: str | None = None,
    pool: str | None = None,
    decide: str = "",
    allow_plugins: bool = False,
    progress: Progress = quiet,
) -> Predictions:
    """Return a run's predictions of its suite, a split, another suite, or any images.

    Predictions of any images are only returned; all others are stored in the run's folder and scored in its
    metrics.json. Any images and another suite do not need the run's own data. Any images are also predicted by an
    ensemble, whose members must be there.

    Args:
        run: a complete run, or its folder.
        split: `suite`, `test`, `val` or `ood_val`. Give at most one of `split`, `images` and `suite`; none means the
            run's suite.
        images: files, folders, globs, a table or text of paths, one path or several; or an array, uint8 [N, H, W, C] of
            the run's image shape.
        suite: a folder of `distortionNN.npy`.
        severities: stacked in each of its files.
        overrides: `data.root=DIR`: where the run's data are now.
        device: `cpu`, `cuda` or `mps`; empty: the training's, or the best of this machine if it lacks that.
        views: `none`, `flip`, `shift`, `flip_shift`, `ten_crop` or `dihedral`; None: the run's.
        adapt: `none`, `bn`, `tent` or `roid`; None: the run's.
        prior: known class shares of each block: `none`, `uniform`, `train` or a .csv of class and share; None: the
            run's. `overrides=["competition.balance=declared"]` declares that they are known.
        pool: `none`, or `blocks` to combine a photograph's predictions over the suite's blocks; None: the run's.
        decide: value of predict.decide, fitted on the run's validation if it has to be; empty: the run's.
        allow_plugins: run the Python code of its plug-ins, as its folder has them.
        progress: called after every batch.

    Raises:
        UserError: no such split, images that cannot be read, or the rules forbid the adaptation.
    """
    source = PredictInput(split, None if suite is None else Path(suite), images)
    opened = _open(run, allow_plugins)
    if overrides:
        opened = open_run(opened.path, (*opened.overrides, *overrides), allow_plugins=opened.allow_plugins)
    changed = {"views": views, "adapt": adapt, "prior": prior, "pool": pool}
    if images is not None and new_images.is_ensemble(opened):
        chosen: dict[str, Any] = {"decide": decide, "device": device, "progress": progress}
        return new_images.predict_with_members(opened, images, changed, **chosen).predictions
    loaded = with_decision(load_for_input(opened, source, progress, device=device), decide, progress)
    options = options_for(loaded, changed)
    return predict_input(loaded, source, progress, options=options, severities=severities).predictions


def ensemble(
    members: Sequence[Run | Path | str],
    *,
    method: str = "mean",
    runs: Path | str = "runs",
    allow_plugins: bool = False,
) -> Run:
    """Combine trained runs into one run, scored, stored and with a submission.

    Args:
        members: complete runs of one competition, or their folders.
        method: a row of `comp.ensembles.methods.METHODS`.
        runs: where the ensemble's folder is made.
        allow_plugins: run the Python code of the members' plug-ins, as their folders have them.

    Raises:
        UserError: members that do not match, or an unknown method.
    """
    opened = [_open(member, allow_plugins) for member in members]
    return combine.ensemble(opened, method=method, runs_root=Path(runs))


def _open(run: Run | Path | str, allow_plugins: bool) -> Run:
    opened = run if isinstance(run, Run) else open_run(Path(run))
    return replace(opened, allow_plugins=True) if allow_plugins else opened
