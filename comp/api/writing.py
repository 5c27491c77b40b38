"""Configs and tables before a training, and what leaves after it: checks, pages and exports."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comp.api.run import open_run, write_report
from comp.api.training import load_config
from comp.config import Config
from comp.data import inspection, quality
from comp.data.quality import DataFinding
from comp.ensembles import network, new_images
from comp.results import files, runs
from comp.results import leaderboard as board
from comp.runtime.errors import RunError, plural
from comp.runtime.progress import Progress, shown
from comp.submission import derive_from_sample, validate
from comp.submission.validate import SubmissionReport
from comp.submission.write import finish_interrupted
from comp.workflows import export as workflow
from comp.workflows import init as drafts
from comp.workflows import kaggle_package, kaggle_verify, plugins
from comp.workflows.init import Draft

if TYPE_CHECKING:
    import pandas as pd


def init(
    folder: Path | str,
    *overrides: str,
    output: Path | str = "comp.yaml",
    metric: str = "auto",
    budget: str = "",
    preset: str = "good",
    force: bool = False,
    progress: Progress | None = None,
) -> Draft:
    """Write a config for a download: its data, its submission, and a network that fits your machine.

    Args:
        folder: of the download: tables, images in folders or archives, a sample submission.
        overrides: `key=value`, which win over what is detected.
        output: the config to write.
        metric: the competition's, such as `log_loss`; `auto` if unknown.
        budget: training time of all folds together, such as `15min`; empty: the preset's.
        preset: how much to spend: `fast`, `good` or `best`.
        force: replace an existing config.
        progress: called while files are read; None: a bar in a terminal or notebook; `comp.quiet`: nothing.

    Returns:
        The YAML in `text`, its values in `config`, what the data show in `findings`, what is guessed in `guesses`.

    Raises:
        UserError: nothing that can be trained on, a wrong option, or the config exists.
    """
    drafts.check_output(Path(output), force=force)
    with shown(progress) as callback:
        draft = drafts.draft_config(
            Path(folder), metric=metric, budget=budget, preset=preset, overrides=overrides, progress=callback
        )
    drafts.write_config(draft, Path(output), force=force)
    return draft


def check_data(config: Config | Path | str, *, progress: Progress | None = None) -> list[DataFinding]:
    """Look for duplicates, leaks between splits, label conflicts and imbalanced classes.

    Args:
        config: a config, or a YAML file's path.
        progress: called while images are compared; None: a bar in a terminal or notebook; `comp.quiet`: nothing.

    Returns:
        A result of each check: `what`, `count`, `verdict` (`ok`, `note` or `misleads`), `examples`, and in `mend` how
        to fix it.

    Raises:
        UserError: the data cannot be opened.
    """
    config = config if isinstance(config, Config) else load_config(config)
    plugins.load(config)  # its metric may be in one
    with shown(progress) as callback:
        dataset = inspection.open_without_suite(config, callback)
        return quality.find_problems(dataset, config, skip_bad=config.data.skip_bad, progress=callback)


def check(
    submission: Path | str, *, sample: Path | str | None = None, against: Path | str | None = None
) -> SubmissionReport:
    """Check a submission: its header, ids, order and labels, and whether its answers can be better than chance.

    Args:
        submission: the CSV.
        sample: a sample submission that shows the format; None: the file's sidecar does.
        against: an earlier submission that it should resemble.

    Returns:
        `problems` make a file invalid, `findings` are doubts about its answers; `raise_if_invalid()` refuses it.

    Raises:
        SubmissionError: a file cannot be read as a CSV, or the format is unknown.
    """
    path, earlier = Path(submission), None if against is None else Path(against)
    finish_interrupted(path)
    if sample is None:
        return validate.validate_submission(path, validate.read_sidecar_format(path), against=earlier)
    derived = derive_from_sample.derive_from_sample(Path(sample), path)
    return validate.validate_submission(path, derived.format, against=earlier, notes=derived.assumptions)


def leaderboard(
    runs: Path | str = "runs", *, competition: str | None = None, sort: str = "auto", since: str | None = None
) -> "pd.DataFrame":
    """Return the complete runs as a table of pandas, best first, with the columns of `comp leaderboard --csv`.

    Args:
        runs: where run folders are. Damaged ones are left out, with a warning.
        competition: only its runs; None: all.
        sort: the column to sort by; `auto`: the metric on shifted validation, if most runs have it.
        since: only runs started since `2026-01-31`, `2026-01-31T12:00`, `12h`, `7d` or `2w`.

    Raises:
        ConfigError: an unknown column, or an invalid time.
    """
    import pandas as pd

    damaged: list[RunError] = []
    rows = board.read_rows(Path(runs), competition=competition, sort=sort, since=since, on_damaged=damaged.append)
    if damaged:
        warnings.warn(f"{plural(len(damaged), 'run')} left out, first {damaged[0]}", stacklevel=2)
    return pd.DataFrame([row.cells() for row in rows], columns=[*board.COLUMNS])


def report(
    compared: runs.Run | Path | str | Sequence[runs.Run | Path | str],
    path: Path | str = "report.html",
    *,
    baseline: runs.Run | Path | str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write an HTML page about several runs side by side, and return its path; of one run as `Run.report`.

    Args:
        compared: complete runs, or their folders; one, or several in a list.
        path: the page; an existing one is replaced.
        baseline: a run or a config to compare with; None: the defaults.
        progress: called after every batch; None: a bar in a terminal or notebook; `comp.quiet`: nothing.

    Raises:
        UserError: a run is incomplete or damaged, or the page cannot be written.
    """
    several = [compared] if isinstance(compared, runs.Run | Path | str) else compared
    return write_report([open_run(run) for run in several], path, baseline, progress)


def export(
    run: runs.Run | Path | str,
    folder: Path | str,
    *,
    file_format: str = "onnx",
    input_type: str = "uint8",
    quantize: bool = False,
    plain: bool = False,
    allow_plugins: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Export a run's network as files that need no comp, checked in a fresh process; an ensemble becomes one network.

    Args:
        run: a complete run or an ensemble, or its folder.
        folder: a new one.
        file_format: `onnx`, `torch` (a torch.export program), `timm` or `safetensors` (weights).
        input_type: pixels of onnx and torch, [N, H, W, C] `uint8` from 0 to 255, or `float` from 0 to 1.
        quantize: quantize an ONNX network to int8; its speed and loss are measured.
        plain: export the network of a run that adapts to its test, without adaptation.
        allow_plugins: run the Python code of its plug-ins, as its folder has them.
        progress: called after every batch; None: a bar in a terminal or notebook; `comp.quiet`: nothing.

    Returns:
        The card, as in the folder's model.json.

    Raises:
        UserError: the folder exists, or the network cannot be exported in this form.
    """
    request = workflow.ExportRequest(Path(folder), file_format, input_type, quantize)
    request.check()
    opened = open_run(run, allow_plugins=allow_plugins)
    with shown(progress) as callback:
        is_ensemble = new_images.is_ensemble(opened)
        source = network.open_ensemble(opened, callback) if is_ensemble else workflow.open_run(opened, plain, callback)
        return workflow.export(source, request, callback)


def export_kaggle(
    run: runs.Run | Path | str,
    folder: Path | str,
    *,
    competition: str,
    owner: str,
    title: str = "",
    image_packages: Path | str | None = None,
    verify: bool = False,
    rows: int | None = None,
    limit: str = "9h",
    allow_plugins: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Pack a run or an ensemble for a code competition: a notebook, weights and wheels, which need no network.

    Args:
        run: a complete run or an ensemble, or its folder.
        folder: a new one.
        competition: its name in the competition's Kaggle URL.
        owner: your Kaggle user name.
        title: of dataset and notebook; empty: competition and run.
        image_packages: a list of the packages of Kaggle's image, as `pip list --format=freeze` prints them there; None:
            an assumed image.
        verify: run the notebook without network, and compare its CSV with the run's own.
        rows: of the hidden test, to which the measured time is extrapolated; None: as many as the local test has.
        limit: the time that the notebook may take.
        allow_plugins: run the Python code of its plug-ins, as its folder has them.
        progress: called after every batch; None: a bar in a terminal or notebook; `comp.quiet`: nothing.

    Returns:
        The record, as in the folder's package.json; `verified` says whether the notebook has run.

    Raises:
        UserError: the folder exists, the run's test is not a folder of images, wheels cannot be downloaded, or the
            notebook fails or takes too long.
    """
    opened, target = open_run(run, allow_plugins=allow_plugins), Path(folder)
    names, image, seconds = kaggle_verify.check_request(
        opened,
        target,
        competition=competition,
        owner=owner,
        title=title,
        image_packages=None if image_packages is None else Path(image_packages),
        limit=limit,
        verify=verify,
    )
    with shown(progress) as callback:
        kaggle_package.write_package(target, opened, names, image, progress=callback)
        if verify:
            kaggle_verify.verify(target, opened, image, limit_seconds=seconds, rows=rows, progress=callback)
    record: dict[str, Any] = files.read_json(target / kaggle_package.RECORD)
    return record
