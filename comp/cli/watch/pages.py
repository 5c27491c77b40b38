"""The pages of `comp watch`: leaderboard, runs and studies, as the files on disk are at each request. Torch-free.

A page is made again only when one of its files has changed. An address only chooses among the runs and studies that
were found below the watched folder; no file is opened by its name. Nothing is written.
"""

import functools
import itertools
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from urllib.parse import quote

from comp.cli.console.leaderboard import LEGEND, board_cells
from comp.results import analysis, diagnostics, leaderboard, page, report, runs, unfinished
from comp.results.leaderboard import LeaderboardRow
from comp.results.page import Section
from comp.results.runs import Run
from comp.results.unfinished import UnfinishedRun
from comp.runtime.errors import RunError, UserError, plural, readable
from comp.runtime.progress import duration

Stamp = tuple[tuple[str, int, int], ...]  # name, time and size of files
_SHOWN = (".csv", ".json", ".yaml", "plots")  # what a run's page shows: names in its folder end so
_STORES = ("study.log", "study.db")
_SERVER_SECONDS = 10  # a study on a database server is asked again no sooner
_LEFT_OUT = ("parameters", "device")  # columns of the leaderboard that a run's own page has
_LATEST = {  # columns of history.csv -> cards of a run without scores
    "val_metric": "validation metric",
    "val_accuracy": "validation accuracy",
    "ood_metric": "shifted validation metric",
    "ood_accuracy": "shifted validation accuracy",
    "val_loss": "validation loss",
    "train_loss": "training loss",
}


@dataclass(frozen=True)
class Snapshot:
    """What lies below the watched folder now.

    Attributes:
        runs: path below the folder -> run.
        unfinished: likewise, of the runs without scores.
        studies: path below the folder -> folder of a study with a run.
        linked: number of runs behind links that lead out of the folder, which are left out.
    """

    runs: Mapping[str, Run]
    unfinished: Mapping[str, UnfinishedRun]
    studies: Mapping[str, Path]
    linked: int


@dataclass(frozen=True)
class Pages:
    """Makes the pages.

    Attributes:
        root: the watched folder.
        prefix: of every address: `/TOKEN`.
    """

    root: Path
    prefix: str
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock, compare=False)

    def answer(self, parts: Sequence[str]) -> tuple[HTTPStatus, bytes]:
        """Return the page at a path; one that cannot be made now says why."""
        kind, name = parts[0] if parts else "", "/".join(parts[1:])
        try:
            with self._one_at_a_time:
                text = self._page(kind, name)
        except Exception as error:  # of a file that is edited or deleted while it is read: the watch goes on
            name_of_error = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            text = self._message(f"cannot be shown now: {name_of_error}{readable(error)}")
        status = HTTPStatus.OK if text else HTTPStatus.NOT_FOUND
        text = text or self._message(f"{name or kind}: not found in {self.root}, or deleted meanwhile")
        return status, text.encode("utf-8", "backslashreplace")

    def _page(self, kind: str, name: str) -> str:
        """Return a page; empty if there is none of this name."""
        now = snapshot(self.root)
        if kind == "run" and (run := now.runs.get(name)):
            way_back = self._way_back(next((key for key, at in now.studies.items() if at == run.path.parent), ""))
            return _run_page(run, stamp(run.path), now.unfinished.get(name), way_back)
        if kind == "study" and name in now.studies:
            line, sections = _study(now, name)
            shown = [self._way_back(), Section("", page.note(line)), *sections]
            return page.render(f"study {now.studies[name].name}", shown, live=True)
        return "" if kind else self._overview(now)

    def _message(self, text: str) -> str:
        return page.render("comp watch", [self._way_back(), Section("", page.note(text))], live=True)

    def _way_back(self, study: str = "") -> Section:
        links = [f'<a href="{self.prefix}/">all runs</a>', *([self._link("study", study)] if study else [])]
        return Section("", f"<p>{' · '.join(links)}</p>")

    def _link(self, kind: str, path: str) -> str:
        return f'<a href="{self.prefix}/{kind}/{quote(os.fsencode(path))}">{page.text(path)}</a>'

    def cell(self, kind: str, path: str) -> str:
        """Return a table's cell that links a page."""
        return f'<td class="text">{self._link(kind, path)}</td>'

    def _overview(self, now: Snapshot) -> str:
        running = {path: row for path, row in now.unfinished.items() if row.state == "running"}
        others = {path: row for path, row in now.unfinished.items() if path not in running}
        complete = {path: run for path, run in now.runs.items() if path not in now.unfinished}
        counts = f"{plural(len(now.runs), 'run')}, {len(running):,} running, {len(others):,} not complete"
        linked = f"{plural(now.linked, 'run')} left out: behind links that lead elsewhere" if now.linked else ""
        none = "This page fills as trainings begin." if not now.runs else ""
        notes = "".join(page.note(line) for line in (counts, none, linked) if line)
        rows = [[self.cell("run", path), _bar(row)] for path, row in running.items()]
        studies = [[self.cell("study", path), page.text_cell(_study(now, path)[0])] for path in now.studies]
        stopped = [
            [self.cell("run", path), row.state, _bar(row), *map(page.text_cell, (row.reason, row.resume))]
            for path, row in others.items()
        ]
        sections = [
            Section("", notes),
            Section("Running", _table(("run", "epochs"), rows)),
            Section("Studies", _table(("study", "progress"), studies)),
            *_boards(self, tuple((path, *_time_and_size(run.path / "metrics.json")) for path, run in complete.items())),
            Section("Not complete", _table(("run", "state", "epochs", "reason", "continue with"), stopped)),
        ]
        return page.render(f"trainings in {self.root}", sections, live=True)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return page.table(head, rows) if rows else ""


def snapshot(root: Path) -> Snapshot:
    """Return what lies below a folder now.

    Raises:
        RunError: it is no folder of runs; see `runs.list_runs`.
    """
    top, listed = root.resolve(), runs.list_runs(root)
    parents = {
        folder: top in (folder.resolve(), *folder.resolve().parents) for folder in {r.path.parent for r in listed}
    }
    inside = [run for run in listed if parents[run.path.parent] and not run.path.is_symlink()]
    named = {os.path.relpath(run.path, root): run for run in inside}
    incomplete = {path: run for path, run in named.items() if not run.is_complete()}
    return Snapshot(
        runs=named,
        unfinished={
            path: _describe(run, stamp(run.path), unfinished.is_written(run)) for path, run in incomplete.items()
        },
        studies={
            folder.resolve().name if folder == root else os.path.relpath(folder, root): folder
            for folder, is_inside in sorted(parents.items())
            if is_inside and (folder / "study.json").is_file()
        },
        linked=len(listed) - len(inside),
    )


@functools.lru_cache(maxsize=4096)
def _describe(run: Run, files: Stamp, is_written: bool) -> UnfinishedRun:
    return unfinished.describe(run)


def stamp(folder: Path) -> Stamp:
    """Return what changes when a run's page may have changed."""
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(_SHOWN))
    except OSError:  # deleted meanwhile
        names = []
    return tuple((name, *_time_and_size(folder / name)) for name in names)


def _time_and_size(path: Path) -> tuple[int, int]:
    try:
        state = path.stat()
    except OSError:
        return 0, 0
    return state.st_mtime_ns, state.st_size


@functools.lru_cache(maxsize=32)
def _run_page(run: Run, files: Stamp, row: UnfinishedRun | None, way_back: Section) -> str:
    shown = _unfinished_sections(run, row) if row else _complete_sections(run)
    return page.render(run.name, [way_back, *shown], live=True)


def _complete_sections(run: Run) -> Iterator[Section]:
    if not (run.path / diagnostics.FILE).is_file():
        yield Section("", page.note(f"for scores by class, confusions and mistakes: comp evaluate {run.path}"))
    yield from report.sections(run)


def _unfinished_sections(run: Run, row: UnfinishedRun) -> Iterator[Section]:
    lines = [row.state, row.reason, f"continue with: {row.resume}" if row.resume else ""]
    notes = "".join(page.note(line) for line in lines if line)
    if row.state == "damaged":
        yield Section("", notes)
        return
    yield Section("", notes + page.cards(_cards(run.history(), row)))
    yield from report.curve_sections(run, run.config().competition.metric, best_epoch=None)
    yield from report.origins(run)


def _cards(history: Sequence[Mapping[str, str]], row: UnfinishedRun) -> Iterator[str]:
    yield page.card("epochs", f"<b>{_epochs(row)}</b>")
    if not history:
        return
    if row.of and row.state == "running":
        seconds = sum(float(epoch["seconds"]) for epoch in history) / len(history) * (row.of - row.epochs)
        yield page.card("time left, about", f"<b>{duration(seconds)}</b>")
    last = history[-1]
    for column, title in _LATEST.items():
        is_repeated = column.endswith("metric") and last.get(column) == last.get(column.replace("metric", "accuracy"))
        if last.get(column) and not is_repeated:
            value = float(last[column])
            yield page.card(title, f"<b{page.data(value)}>{value:.4f}</b>")


def _epochs(row: UnfinishedRun) -> str:
    return f"{row.epochs:,} of {row.of:,}" if row.of else f"{row.epochs:,}"


def _bar(row: UnfinishedRun) -> str:
    bar = f'<progress max="{row.of}" value="{row.epochs}"></progress> ' if row.of else ""
    return f"{bar}{_epochs(row)}"


def _study(now: Snapshot, path: str) -> tuple[str, list[Section]]:
    """Return how far a study is, or why that is unknown, and the sections of its page."""
    folder = now.studies[path]
    stores = tuple((name, *_time_and_size(folder / name)) for name in _STORES if (folder / name).exists())
    server = () if stores else (("server", int(time.monotonic() / _SERVER_SECONDS), 0),)
    running = tuple(row.run for row in now.unfinished.values() if row.state == "running")
    return _load_study(folder, stores + server, running)


@functools.lru_cache(maxsize=16)
def _load_study(folder: Path, files: Stamp, running: tuple[str, ...]) -> tuple[str, list[Section]]:
    from comp.tuning import results  # imports optuna

    try:
        return results.load_sections(folder)
    except UserError as error:
        return readable(error), []


@functools.lru_cache(maxsize=2)
def _boards(pages: Pages, files: Stamp) -> list[Section]:
    """Return the leaderboard of each competition, of the runs whose metrics.json are `files`, and the damaged runs."""
    paths, damaged = {path for path, *_ in files}, list[RunError]()
    all_rows = leaderboard.read_rows(pages.root, on_damaged=damaged.append)
    rows = [row for row in all_rows if os.path.relpath(row.run, pages.root) in paths]
    sections: list[Section] = []
    for _, group in itertools.groupby(rows, lambda row: row.competition):
        sections += _competition(pages, list(group))
    return [*sections, Section("Damaged", "".join(page.note(readable(error)) for error in damaged))]


def _competition(pages: Pages, rows: list[LeaderboardRow]) -> Iterator[Section]:
    """Yield a competition's leaderboard as `comp leaderboard` prints it: a table for each metric."""
    verdicts = analysis.analyze_leaderboard(rows, "auto")
    marks = iter(["" if above is None else "\u00a0<" if above.is_real else "\u00a0~" for above in verdicts.above])
    groups = leaderboard.comparable_groups(rows, "auto")
    for group in groups:
        metrics = [name for name in dict.fromkeys(row.metric for row in group) if name != "accuracy"]
        lines = [board_cells(row, rank, metrics) for rank, row in enumerate(group, 1)]
        columns = [name for name in lines[0] if name not in _LEFT_OUT and any(line[name] for line in lines)]
        cells = []
        for line in lines:
            shown = {name: page.text(line[name]) for name in columns}
            shown |= {
                "#": page.text(line["#"] + next(marks)),
                "run": pages.cell("run", os.path.relpath(line["run"], pages.root)),
            }
            cells.append([*shown.values()])
        title = f": {group[0].metric} ({group[0].task})" if len(groups) > 1 else ""
        yield Section(f"Leaderboard of {group[0].competition}{title}", page.table(columns, cells))
    notes = [leaderboard.describe_sort(rows, "auto"), LEGEND, *verdicts.sentences()]
    yield Section("", page.note("\n".join(notes)))
