"""What a study tells W&B when it has ended: one run beside its trials, the same one when it is continued."""

import secrets
from pathlib import Path
from typing import Any

from comp.runs import Run
from comp.tracking import login, state, studies, told
from comp.tracking.studies import Digest
from comp.tracking.told import Table
from comp.tuning import confirming
from comp.tuning.results import Report
from comp.tuning.study import Study

_KEPT = "wandb"  # of the study's attributes: the id of its W&B run, and how often it was told
_UNTOLD: dict[str, Any] = {"track": True, "tune": {"storage"}}  # of the config; a storage's URL may hold a password


def tell(search: Study, report: Report, *, pictures: bool) -> None:
    """Tell W&B what a study has come to, unless `track.wandb` is disabled; nothing that goes wrong there stops it.

    Args:
        search: the study.
        report: of it, its files written.
        pictures: whether its plots were drawn.
    """
    track = search.config.track
    if login.mode_of(track) == "disabled":
        return
    known = _claimed(search)
    digest = Digest(
        id=known["id"], number=known["told"], name=report.name, group=search.group,
        config=search.config.model_dump(mode="json", exclude=_UNTOLD),
        summary=_summary(search, report), tables=_tables(report),
        pictures=[str(path.absolute()) for path in told.pictures(Run(search.folder))] if pictures else [],
        best=str(report.best.absolute()) if report.best else "",
    )  # fmt: skip
    studies.tell(search.folder, digest, track)


def _claimed(search: Study) -> dict[str, Any]:
    """Return the id of the study's W&B run and the number of this telling: kept with its trials, for every machine."""
    known: dict[str, Any] = search.optuna.user_attrs.get(_KEPT) or {"id": secrets.token_hex(4), "told": 0}
    known = {**known, "told": known["told"] + 1}
    search.optuna.set_user_attr(_KEPT, known)
    return known


def _summary(search: Study, report: Report) -> dict[str, Any]:
    found: dict[str, Any] = {
        "study": report.name,
        "metric": ", ".join(report.metrics),
        "trials": {name: report.counts[name] for name in ("done", "pruned", "failed", "waiting")},
        "importance": report.importance,
    }
    best = next(iter(confirming.ranked(search)), None)
    if best is not None:
        found["best"] = {"trial": best.number, "value": best.values[0]}
    row = next((row for row in report.trials if row["trial"] == report.recommended), None)
    if row is not None:
        tuned = {path: row[path] for path in search.config.tune.space if row[path] is not None}
        found["recommended"] = {"trial": row["trial"], **_run(row), **_cells(tuned)}
        again = next((row for row in report.confirmed if row.trial == report.recommended), None)
        if again is not None:
            found["recommended"] |= {"mean": again.mean, "deviation": again.deviation}
    return told.results(found)


def _run(row: dict[str, Any]) -> dict[str, str]:
    """Return the name of a trial's run, and its id in W&B where it was tracked."""
    if not row["run"]:
        return {}
    run = Run(Path(row["run"]))
    known = state.read(run) if run.path.is_dir() else None
    return {"run": run.path.name} | ({"wandb_id": known.id} if known else {})


def _tables(report: Report) -> dict[str, Table]:
    rows = {
        "trials": report.trials,
        "importance": [{"knob": path, "share": share} for path, share in report.importance.items()],
        "confirmed": [row.to_json() for row in report.confirmed],
    }
    return {
        name: Table(list(found[0]), [list(_cells(row).values()) for row in found])
        for name, found in rows.items() if found
    }  # fmt: skip


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row's values as a table can hold them: lists and mappings as text."""
    return {
        name: value if value is None or isinstance(value, str | int | float) else str(value)
        for name, value in row.items()
    }
