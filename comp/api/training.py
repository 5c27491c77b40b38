"""From a config to runs, folds, studies and predictions."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from comp import config
from comp.api.run import Run, open_run
from comp.config import Config, shipped
from comp.ensembles import combine, new_images
from comp.ensembles import cross_validate as folds
from comp.ensembles.cross_validate import CrossValidation
from comp.inference.inputs import Paths, PredictInput
from comp.results import runs as run_folders
from comp.results.predictions import Predictions
from comp.runtime.progress import Progress, shown
from comp.workflows import lineage
from comp.workflows import train as workflow
from comp.workflows.build import prepare
from comp.workflows.load import load_for_input, load_run, open_run_data
from comp.workflows.predict import options_for, predict_input, score_test, with_decision

if TYPE_CHECKING:
    from comp.tuning.results import StudyReport


def load_config(path: Path | str, *overrides: str) -> Config:
    """Return a config.

    Args:
        path: a YAML file, or the name of a shipped config such as `quickstart`.
        overrides: `key.path=value`, which win over the file.

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
    progress: Progress | None = None,
) -> Run:
    """Train, keep the best weights, score them on validation and on the labelled test; return the complete run.

    Args:
        config: a config, or a YAML file's path.
        name: of the run's folder, after the time.
        runs: where run folders are made.
        allow_plugins: run the Python code of the plug-ins of its teachers, as their folders have them.
        progress: called at every step; None: a bar in a terminal or notebook; `comp.quiet`: nothing.

    Raises:
        UserError: anything wrong with config, data or disk.
    """
    config = _open_config(config, allow_plugins)
    with shown(progress) as callback:
        dataset = prepare(config, Path(runs), callback)
        run = workflow.train(config, name=name, runs_root=Path(runs), dataset=dataset, progress=callback)
        score_test(load_run(run, dataset, callback), callback)
    return open_run(run)


def resume(
    run: run_folders.Run | Path | str,
    *overrides: str,
    allow_plugins: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Finish an interrupted training, and score it as `train` does; return the complete run.

    A complete run keeps its weights, and gets the scores that it lacks.

    Args:
        run: its folder.
        overrides: `data.root=DIR`: where its data are now.
        allow_plugins: run the Python code of its plug-ins, as its folder has them.
        progress: called at every step; None: a bar in a terminal or notebook; `comp.quiet`: nothing.

    Raises:
        UserError: its data, its config or its files have changed since it was started.
    """
    opened = open_run(run, allow_plugins=allow_plugins, overrides=overrides)
    if opened.is_complete() and opened.metrics().split_scores("test") is not None:
        return opened
    with shown(progress) as callback:
        if not opened.is_complete():
            opened.check_config()  # before its data are opened
        dataset = open_run_data(opened, callback)
        workflow.resume(opened, dataset=dataset, progress=callback)
        score_test(load_run(opened, dataset, callback), callback)
    return opened


def cross_validate(
    config: Config | Path | str,
    *,
    name: str = "",
    runs: Path | str = "runs",
    workers: int = 1,
    output: Path | str | None = None,
    force: bool = False,
    allow_plugins: bool = False,
    progress: Progress | None = None,
) -> CrossValidation:
    """Train all folds of a config, and combine them into one run with out-of-fold scores and a submission.

    The same call continues after an interruption, and trains no fold twice.

    Args:
        config: a config with `data.folds`, or a YAML file's path.
        name: of new runs' folders, after the time; empty: `fold0` and so on.
        runs: where run folders are made.
        workers: folds trained at a time, each in its own process if there are several.
        output: the submission; None: a free name.
        force: replace an existing submission.
        allow_plugins: run the Python code of the plug-ins of its teachers, as their folders have them.
        progress: called at every step; None: a bar in a terminal or notebook; `comp.quiet`: nothing.

    Returns:
        The runs of the folds in `folds`, their ensemble in `result`, and their scores by `to_json()`.

    Raises:
        UserError: no folds, or anything wrong with config, data or disk.
    """
    config = _open_config(config, allow_plugins)
    path = None if output is None else Path(output)
    with shown(progress) as callback:
        result = folds.cross_validate(
            config, name=name, runs_root=Path(runs), workers=workers, output=path, force=force, progress=callback
        )
    return replace(result, folds=tuple(map(open_run, result.folds)), result=open_run(result.result))


def tune(
    config: Config | Path | str,
    *,
    name: str = "study",
    runs: Path | str = "runs",
    workers: int = 1,
    allow_plugins: bool = False,
    progress: Progress | None = None,
) -> "StudyReport":
    """Search a config's `tune.space`, train the best again with new seeds, and write best.yaml.

    The same call continues a study.

    Args:
        config: a config with section `tune`, or a YAML file's path.
        name: of the study, if the config names none.
        runs: where run folders are made.
        workers: trainings at a time, each in its own process if there are several.
        allow_plugins: run the Python code of the plug-ins of its teachers, as their folders have them.
        progress: called at every step; None: a bar in a terminal or notebook; `comp.quiet`: nothing.

    Returns:
        All trials in `trials`, the number of the one to train in `recommended`, and the path of best.yaml in `best`.

    Raises:
        UserError: config, data or storage are wrong, three trials in a row have failed, or none is complete.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "IProgress not found")  # of a bar of optuna's that nobody sees
        from comp.tuning import search  # optuna, which predicting does not need

    config = _open_config(config, allow_plugins)
    with shown(progress) as callback:
        return search.tune(config, name=name, runs_root=Path(runs), workers=workers, progress=callback)


def predict(
    run: run_folders.Run | Path | str,
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
    progress: Progress | None = None,
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
        progress: called after every batch; None: a bar in a terminal or notebook; `comp.quiet`: nothing.

    Raises:
        UserError: no such split, images that cannot be read, or the rules forbid the adaptation.
    """
    source = PredictInput(split, None if suite is None else Path(suite), images)
    opened = open_run(run, allow_plugins=allow_plugins, overrides=tuple(overrides))
    changed = {"views": views, "adapt": adapt, "prior": prior, "pool": pool}
    with shown(progress) as callback:
        if images is not None and new_images.is_ensemble(opened):
            chosen: dict[str, Any] = {"decide": decide, "device": device, "progress": callback}
            return new_images.predict_with_members(opened, images, changed, **chosen).predictions
        loaded = with_decision(load_for_input(opened, source, callback, device=device), decide, callback)
        options = options_for(loaded, changed)
        return predict_input(loaded, source, callback, options=options, severities=severities).predictions


def ensemble(
    members: Sequence[run_folders.Run | Path | str],
    *,
    method: str = "mean",
    runs: Path | str = "runs",
    allow_plugins: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Combine trained runs into one run, scored, stored and with a submission.

    Args:
        members: complete runs of one competition, or their folders.
        method: a row of `comp.ensembles.methods.METHODS`.
        runs: where the ensemble's folder is made.
        allow_plugins: run the Python code of the members' plug-ins, as their folders have them.
        progress: called after every batch; None: a bar in a terminal or notebook; `comp.quiet`: nothing.

    Raises:
        UserError: members that do not match, or an unknown method.
    """
    opened = [open_run(member, allow_plugins=allow_plugins) for member in members]
    with shown(progress) as callback:
        return open_run(combine.ensemble(opened, method=method, runs_root=Path(runs), progress=callback))


def _open_config(config: Config | Path | str, allow_plugins: bool) -> Config:
    config = config if isinstance(config, Config) else load_config(config)
    if allow_plugins:
        lineage.consent(config)
    return config
