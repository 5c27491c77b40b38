"""What a study tells W&B when it has ended: one run beside its trials, the same one when it is continued."""

import re
import secrets
import sys
from pathlib import Path
from typing import Any

from comp.results.runs import Run
from comp.tracking import login, payload, state, upload
from comp.tracking.payload import Table
from comp.tuning import confirm
from comp.tuning.results import Report
from comp.tuning.study import Study

_KEPT = "wandb"  # of the study's attributes: the id of its W&B run, and how often it was told
_MOST_LETTERS = 120  # of an artifact's name; W&B takes 128


def tell(search: Study, report: Report, *, pictures: bool) -> None:
    """Tell W&B what a study has come to, unless `track.wandb` is disabled; nothing that goes wrong there stops it.

    It is kept in an offline segment below the study's folder, and uploaded where one is logged in; what the network
    does not take within ten seconds waits for `comp leaderboard --sync`.

    Args:
        search: the study.
        report: of it, its files written.
        pictures: whether its plots were drawn.
    """
    mode = login.mode_of(search.config.track)
    if mode == "disabled":
        return
    place = Run(search.folder.absolute())  # no run itself, but W&B's files lie below both alike
    try:
        with state.telling(place):
            _write(search, report, place, pictures=pictures)
            if mode == "online":
                upload.upload(state.waiting(place), upload.END_SECONDS)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        print(f"note: W&B was not told all of the study: {reason}", file=sys.stderr)


def _write(search: Study, report: Report, place: Run, *, pictures: bool) -> None:
    from comp.tracking import writer

    known = search.optuna.user_attrs.get(_KEPT) or {"id": secrets.token_hex(4), "told": 0}
    known = {**known, "told": known["told"] + 1}
    search.optuna.set_user_attr(_KEPT, known)  # with its trials, for every machine
    track = search.config.track
    shown: dict[str, Any] = {name: writer.table(values) for name, values in _tables(report).items()}
    if pictures:
        shown |= {f"plots/{path.stem}": writer.picture(path) for path in payload.pictures(place)}
    with writer.segment(
        place.path, track, id=known["id"], project=track.project or search.config.competition.name, name=report.name,
        group=search.group, job_type="study", tags=list(track.tags) or None,
        config=search.config.model_dump(mode="json", exclude=payload.UNTOLD),
    ) as opened:  # fmt: skip
        opened.log(shown, step=known["told"], commit=True)
        if report.best:  # copied: the next end of the study replaces the file
            name = re.sub(r"[^A-Za-z0-9_.-]", "_", report.name)[:_MOST_LETTERS]
            writer.log_artifact(opened, f"{name}-best", "config", [report.best], copied=True)
        opened.summary.update(_summary(search, report))


def _summary(search: Study, report: Report) -> dict[str, Any]:
    counts = {name: report.counts[name] for name in ("done", "pruned", "failed", "waiting")}
    values: dict[str, Any] = {
        "study": report.name, "metric": ", ".join(report.metrics), "trials": counts, "importance": report.importance
    }  # fmt: skip
    best = next(iter(confirm.ranked(search)), None)
    if best is not None:
        values["best"] = {"trial": best.number, "value": best.values[0]}
    row = next((row for row in report.trials if row["trial"] == report.recommended), None)
    if row is not None:
        tuned = {path: row[path] for path in search.config.tune.space if row[path] is not None}
        values["recommended"] = {"trial": row["trial"], **_run(row), **_cells(tuned)}
        again = next((row for row in report.confirmed if row.trial == report.recommended), None)
        if again is not None:
            values["recommended"] |= {"mean": again.mean, "deviation": again.deviation}
    return payload.results(values)


def _run(row: dict[str, Any]) -> dict[str, str]:
    """Return the name of a trial's run, and its id in W&B where it was tracked."""
    if not row["run"]:
        return {}
    run = Run(Path(row["run"]))
    known = state.read(run) if run.path.is_dir() else None
    return {"run": run.path.name} | ({"wandb_id": known.id} if known else {})


def _tables(report: Report) -> dict[str, Table]:
    tables = {
        "trials": report.trials,
        "importance": [{"knob": path, "share": share} for path, share in report.importance.items()],
        "confirmed": [row.to_json() for row in report.confirmed],
    }
    return {
        name: Table(list(rows[0]), [list(_cells(row).values()) for row in rows])
        for name, rows in tables.items() if rows
    }  # fmt: skip


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row's values as a table can hold them: lists and mappings as text."""
    return {
        name: value if value is None or isinstance(value, str | int | float) else str(value)
        for name, value in row.items()
    }
