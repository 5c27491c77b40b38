"""Log a study's results to W&B: one run beside its trials' runs, the same run when the study continues."""

import re
import secrets
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from comp.results.runs import Run
from comp.runtime import escape
from comp.tracking import payload, state, upload
from comp.tracking.payload import Table
from comp.tracking.tracker import wandb_mode
from comp.tuning.results import StudyReport
from comp.tuning.study import Study

_ATTRIBUTE = "wandb"  # of the study: its W&B run's id, and how often it was logged (`told`)
_MAX_NAME_LENGTH = 120  # of an artifact; W&B's limit is 128


def log_study(search: Study, report: StudyReport, *, pictures: bool) -> None:
    """Log a study's results to W&B unless `track.wandb` is disabled; errors become a note.

    They go to an offline segment below the study's folder, which is uploaded if you are logged in. What the network
    does not take within ten seconds waits for `comp leaderboard --sync`. The report's files have been written, and with
    `pictures` study.html too.
    """
    mode = wandb_mode(search.config.track)
    if mode == "disabled":
        return
    folder = Run(search.folder.absolute())  # not a run, but its W&B files lie like a run's
    try:
        with state.locked(folder):
            _write(search, report, folder, pictures=pictures)
            if mode == "online":
                upload.upload(state.waiting(folder), upload.END_SECONDS)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        how = "nothing is lost: upload with comp leaderboard --sync" if state.waiting(folder) else "repeat the command"
        text = f"note: W&B: not tracked: results of study {report.name} ({reason}); {how}"
        print(escape.for_terminal(text), file=sys.stderr)


def _write(search: Study, report: StudyReport, folder: Run, *, pictures: bool) -> None:
    from comp.tracking import writer

    record = search.optuna.user_attrs.get(_ATTRIBUTE) or {"id": secrets.token_hex(4), "told": 0}
    record = {**record, "told": record["told"] + 1}
    search.optuna.set_user_attr(_ATTRIBUTE, record)  # in the storage, for all machines
    track = search.config.track
    values: dict[str, Any] = {name: writer.table(table) for name, table in _tables(report).items()}
    if pictures:
        values["page"] = writer.html_page(folder.path / "study.html")
    options = {
        "id": record["id"],
        "project": track.project or search.config.competition.name,
        "name": report.name,
        "group": search.group,
        "job_type": "study",
        "tags": list(track.tags) or None,
        "config": payload.public_config(search.config),
    }
    with writer.segment(folder.path, track, **options) as wandb_run:
        wandb_run.log(values, step=record["told"], commit=True)
        if report.best:  # copied, because the continued study replaces the file
            name = re.sub(r"[^A-Za-z0-9_.-]", "_", report.name)[:_MAX_NAME_LENGTH]
            writer.log_artifact(wandb_run, f"{name}-best", "config", [report.best], copied=True)
        wandb_run.summary.update(_summary(search, report))


def _summary(search: Study, report: StudyReport) -> dict[str, Any]:
    counts = {name: report.counts[name] for name in ("done", "pruned", "failed", "waiting")}
    values: dict[str, Any] = {"study": report.name, "metric": ", ".join(report.metrics), "trials": counts}
    values["importance"] = report.importance
    best = next(iter(search.ranked()), None)
    if best is not None:
        values["best"] = {"trial": best.number, "value": best.values[0]}
    row = next((row for row in report.trials if row["trial"] == report.recommended), None)
    if row is not None:
        tuned = {path: row[path] for path in search.config.tune.space if row[path] is not None}
        values["recommended"] = {"trial": row["trial"], **_run_names(row), **_cells(tuned)}
        confirmed = next((row for row in report.confirmed if row.trial == report.recommended), None)
        if confirmed is not None:
            values["recommended"] |= {"mean": confirmed.mean, "deviation": confirmed.deviation}
    return payload.flatten(values)


def _run_names(row: dict[str, Any]) -> dict[str, str]:
    """Return the name of a trial's run, and its W&B id if it was tracked."""
    if not row["run"]:
        return {}
    run = Run(Path(row["run"]))
    tracked = state.read(run) if run.path.is_dir() else None
    return {"run": run.path.name} | ({"wandb_id": tracked.id} if tracked else {})


def _tables(report: StudyReport) -> dict[str, Table]:
    tables = {
        "trials": report.trials,
        "importance": [{"knob": path, "share": share} for path, share in report.importance.items()],
        "confirmed": [asdict(row) for row in report.confirmed],
    }
    return {
        name: Table(list(rows[0]), [list(_cells(row).values()) for row in rows])
        for name, rows in tables.items()
        if rows
    }


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row's values for a table: lists and mappings become text."""
    return {
        name: value if value is None or isinstance(value, str | int | float) else str(value)
        for name, value in row.items()
    }
