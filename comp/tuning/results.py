"""A study's results: its table of trials, importances, best config, and the weights that it keeps."""

import contextlib
import csv
import io
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from comp import config as configs
from comp.config import space
from comp.results import cards, files, runs, stats
from comp.results.page import Section
from comp.results.runs import Run
from comp.results.stats import Interval
from comp.runtime import escape
from comp.runtime.errors import RunError, plural
from comp.tuning import confirm, create, objectives, plots
from comp.tuning.confirm import ConfirmedTrial
from comp.tuning.create import StudyPlan
from comp.tuning.storage import answering, interrupted
from comp.tuning.study import SHEDS, Study, failure_reason

_MIN_IMPORTANCE = 20  # complete trials
_GROUPS = 20
STATES = {
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


@dataclass(frozen=True)
class StudyProgress:
    """How far a study is.

    Attributes:
        total: how many trials it gets.
        counts: state (`done`, `pruned`, `failed`, `running`, `waiting`) -> trials.
        last: the trial that ended last, as a row of the table; empty before one has ended.
        best: number of the best complete trial, None before one has ended.
        best_value: its value.
        seconds_left: estimated from the trials of this command; None before one has ended.
    """

    total: int
    counts: dict[str, int]
    last: dict[str, Any]
    best: int | None
    best_value: float | None
    seconds_left: float | None


@dataclass(frozen=True)
class StudyReport:
    """The results of a study.

    Attributes:
        name: of the study.
        folder: where its runs and files lie.
        metrics: the optimised metrics.
        trials: rows of the table, by number.
        counts: state -> trials.
        pareto: numbers of the trials on the Pareto front; with one metric, of the best.
        importance: path -> share, largest first; empty if there are too few trials.
        confirmed: the best trials with new seeds, the best mean first.
        recommended: number of the trial whose config is in best.yaml, None without a complete trial.
        best: best.yaml.
        interrupted: numbers of the trials that the next command resumes.
        command: continues the study.
    """

    name: str
    folder: Path
    metrics: tuple[str, ...]
    trials: list[dict[str, Any]]
    counts: dict[str, int]
    pareto: list[int]
    importance: dict[str, float]
    confirmed: list[ConfirmedTrial]
    recommended: int | None
    best: Path | None
    interrupted: list[int]
    command: str

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            **self.__dict__,
            "folder": str(self.folder),
            "best": str(self.best) if self.best else None,
            "confirmed": [asdict(row) for row in self.confirmed],
        }

    def _repr_html_(self) -> str:
        """Return what a notebook shows: all trials, and which of them is recommended."""
        hidden = ("run", "reason", "parameters")
        head = [name for name in (self.trials[0] if self.trials else ()) if name not in hidden]
        chosen = "no complete trial" if self.recommended is None else f"recommended: trial {self.recommended}"
        return cards.rows_card(f"{self.folder}; {chosen}", head, [[row[name] for name in head] for row in self.trials])


def progress_of(study: Study, began: float, ended_before: int) -> StudyProgress:
    """Return how far a study is; this command began at `began` (`time.time()`), after `ended_before` trials."""
    trials = study.trials()
    ended = sorted((row for row in trials if row.state.is_finished()), key=lambda row: row.datetime_complete)
    best = next(iter(study.ranked()), None)
    new, now = len(ended) - ended_before, time.time()
    seconds_left: float | None = None
    if new > 0:
        missing = max(0, study.total - len(ended))
        seconds_left = min((now - began) / new * missing, max(0.0, study.deadline - now))
    return StudyProgress(
        total=study.total,
        counts=_counts(trials),
        last=row_of(study, ended[-1]) if ended else {},
        best=best.number if best else None,
        best_value=best.values[0] if best else None,
        seconds_left=seconds_left,
    )


def row_of(study: Study, trial: FrozenTrial) -> dict[str, Any]:
    """Return a trial as a row of the table."""
    names = objectives.names(study.config)
    attributes = trial.user_attrs
    values = study.values_of(trial)
    return {
        "trial": trial.number,
        **({"of": attributes["of"], "seed": attributes["seed"]} if "of" in attributes else {}),
        "state": STATES[trial.state],
        **dict(zip(names, trial.values or [None] * len(names), strict=True)),
        "seconds": attributes.get("seconds"),
        "parameters": attributes.get("parameters"),
        "epochs": attributes.get("epochs"),
        **{entry.path: values.get(entry.path) for entry in space.parse_space(study.config.tune)},
        "run": next((path for key, path in attributes.items() if key.startswith("run-")), ""),
        "reason": failure_reason(trial),
    }


def _mark_interrupted(row: dict[str, Any], paused: Sequence[int]) -> dict[str, Any]:
    return {**row, "reason": "interrupted"} if row["trial"] in paused else row


def _counts(trials: Sequence[FrozenTrial]) -> dict[str, int]:
    return {name: sum(row.state == state for row in trials) for state, name in STATES.items()}


def report(search: Study, confirmation: Study | None, *, write: bool = True, pictures: bool = True) -> StudyReport:
    """Return a study's results, and write trials.csv, best.yaml and study.html.

    Args:
        search: the study.
        confirmation: of its best trials, None if there is none.
        write: False writes nothing.
        pictures: False writes no study.html.
    """
    confirmed = confirm.confirmed(search, confirmation) if confirmation else []
    ranked = search.ranked()
    recommended: int | None = ranked[0].number if ranked else None
    if confirmed:
        recommended = confirm.recommended(confirmed, budgeted=bool(search.config.train.budget)).trial
    path = search.folder / "best.yaml"
    trials, single = search.trials(), len(objectives.names(search.config)) == 1
    paused = [] if write else interrupted(search)
    result = StudyReport(
        name=search.folder.name,
        folder=search.folder,
        metrics=objectives.names(search.config),
        trials=[_mark_interrupted(row_of(search, trial), paused) for trial in trials],
        counts=_counts(trials),
        pareto=sorted(trial.number for trial in (ranked[:1] if single else search.optuna.best_trials)),
        importance=importance(search),
        confirmed=confirmed,
        recommended=recommended,
        best=path if recommended is not None and (write or path.exists()) else None,
        interrupted=paused,
        command=create.continue_command(search.folder, search.store.url, search.config),
    )
    if write:
        files.write_atomically(search.folder / "trials.csv", _csv(result.trials))
        if recommended is not None:
            files.write_atomically(path, _best_config(search, result, recommended).encode())
        if pictures:
            plots.draw(search, result, _importance_intervals(search) if result.importance else {})
    return result


def load_report(name: str, *, runs_root: Path = Path("runs"), storage: str = "") -> StudyReport:
    """Return a study's results so far (`comp tune --show`) without training, writing or locking anything.

    Args:
        name: the study's folder, or its name alone.
        runs_root: where run folders are.
        storage: the study's URL, if it holds a password: passwords are not stored.

    Raises:
        StudyError: there is no such study.
    """
    with _opened(create.find_plan(name, runs_root, storage)) as (search, confirmation):
        return report(search, confirmation, write=False)


def load_sections(folder: Path) -> tuple[str, list[Section]]:
    """Return how far a study is, in a line, and the sections of its study.html as they would be now; see `load_report`.

    Args:
        folder: of the study.

    Raises:
        StudyError: its storage cannot be opened; one with a password cannot.
    """
    with _opened(create.find_plan(str(folder), folder.parent.parent, "")) as (search, confirmation):
        result = report(search, confirmation, write=False)
        intervals = _importance_intervals(search) if result.importance else {}
        counts = ", ".join(f"{count} {state}" for state, count in result.counts.items() if count)
        parts = [f"{len(search.ended())} of {plural(search.total, 'trial')} ended ({counts or 'none begun'})"]
        if best := next(iter(search.ranked()), None):
            parts.append(f"best {result.metrics[0]} {best.values[0]:.4f} (trial {best.number})")
        if confirmation:
            parts.append(f"{len(confirmation.ended())} of {confirmation.total} trainings with new seeds")
        if result.interrupted:
            parts.append(f"{len(result.interrupted)} interrupted, continue with: {result.command}")
        return "; ".join(parts), list(plots.sections(search, result, intervals))


@contextlib.contextmanager
def _opened(plan: StudyPlan) -> Iterator[tuple[Study, Study | None]]:
    """Open an existing study, and its confirmation if there is one, without changing them."""
    with contextlib.ExitStack() as opened:
        opened.enter_context(answering(plan.folder))
        search = opened.enter_context(create.open_search(plan, make=False))
        confirmation = None
        if create.is_confirmed(plan):
            confirmation = opened.enter_context(create.open_confirmation(plan, make=False))
        yield search, confirmation


def discard_weights(study: Study) -> None:
    """Remove the weights of ended trials outside the best `tune.keep`, so that a long search fits on the disk.

    With several metrics, the Pareto front keeps its weights too. Trials that began under `keep: all`, or before comp
    had `keep`, stay as they are, and so do the runs of a confirmation.
    """
    keep = study.config.tune.keep
    if keep == "all" or study.max_trials is None:
        return
    best = {trial.number for trial in study.ranked()[:keep]}
    if len(study.optuna.directions) > 1:
        best |= {trial.number for trial in study.optuna.best_trials}
    for trial in study.ended():
        if SHEDS in trial.user_attrs and trial.number not in best:
            for key, path in trial.user_attrs.items():
                if key.startswith("run-") and files.lies_in(Path(path), study.folder):
                    _remove_weights(Run(Path(path)))


def _remove_weights(run: Run) -> None:
    """Remove a run's weights and record that, unless another process writes the run."""
    if not (run.path / "config.yaml").is_file() or (run.path / runs.REMOVED).exists():
        return
    with contextlib.suppress(RunError), run.write_lock():
        run.write_json(runs.REMOVED, {"by": "tune.keep"})
        for name in runs.WEIGHTS:
            files.remove(run.path / name, inside=run.path)


def importance(study: Study) -> dict[str, float]:
    """Return each shared knob's importance for the first metric (PED-ANOVA, Watanabe et al. 2023).

    Empty with fewer than 20 complete trials, of which it would tell nothing.
    """
    complete = study.ranked()
    shared = [path for path in study.config.tune.space if all(path in trial.params for trial in complete)]
    varied = [path for path in shared if len({repr(trial.params[path]) for trial in complete}) > 1]
    if len(complete) < _MIN_IMPORTANCE or len(varied) < 2 or len({trial.values[0] for trial in complete}) < 2:
        return {}
    shares = _shares(study.optuna, varied, study.maximizes)
    return {path: round(share, 4) for path, share in shares.items()}


def _shares(study: optuna.Study, varied: Sequence[str], maximizes: bool) -> dict[str, float]:
    sign = -1 if maximizes else 1  # Optuna assumes that low targets are good
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental
        return dict(
            optuna.importance.get_param_importances(
                study, params=list(varied), target=lambda trial: sign * float(trial.values[0])
            )
        )


def _importance_intervals(study: Study) -> dict[str, Interval]:
    """Return the interval of each importance, from the importances without one of 20 groups of trials at a time."""
    complete, measured = sorted(study.ranked(), key=lambda trial: trial.number), importance(study)
    left_out: dict[str, list[float]] = {path: [] for path in measured}
    for group in range(_GROUPS):
        others = optuna.create_study(directions=study.optuna.directions)
        others.add_trials([trial for place, trial in enumerate(complete) if place % _GROUPS != group])
        for path, share in _shares(others, list(measured), study.maximizes).items():
            left_out[path].append(share)
    return {path: stats.jackknife_interval(share, left_out[path]) for path, share in measured.items()}


def _csv(rows: Sequence[dict[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["trial"], lineterminator="\n")
    writer.writeheader()
    writer.writerows([{name: escape.for_spreadsheet(cell) for name, cell in row.items()} for row in rows])
    return text.getvalue().encode()


def _best_config(search: Study, result: StudyReport, number: int) -> str:
    """Return best.yaml: the config of the recommended trial, under a header of what was measured and where."""
    trial = next(trial for trial in search.trials() if trial.number == number)
    config = space.apply_values(search.config, search.values_of(trial))
    counts, metric = result.counts, result.metrics[0]
    ended = counts["done"] + counts["pruned"] + counts["failed"]
    values = ", ".join(f"{name} {value:.6g}" for name, value in zip(result.metrics, trial.values, strict=True))
    lines = [
        f"Found by `comp tune`: trial {number} of study {result.name} ({ended} trials: {counts['done']} complete, "
        f"{counts['pruned']} pruned, {counts['failed']} failed).",
        f"  comp run {search.folder / 'best.yaml'}",
        f"In the search, seed {search.config.seed}: {values}.",
    ]
    row = next((row for row in result.confirmed if row.trial == number), None)
    if row is not None:
        deviation = "" if row.deviation is None else f", standard deviation {row.deviation:.4f}"
        scores = ", ".join(f"{score:.4f}" for score in row.scores)
        within_noise = ", ".join(str(row.trial) for row in result.confirmed if row.within_noise)
        is_best = row is result.confirmed[0]
        reason = "has the best mean" if is_best else "is the cheapest within a standard error of the best"
        lines += [
            f"With new seeds ({scores}): mean {metric} {row.mean:.4f}{deviation}; "
            f"{row.seconds:.1f} s of training each, {row.parameters:,} parameters.",
            f"Within noise of the best: trials {within_noise}; this one {reason}.",
        ]
    described = runs.describe_machine()
    machine = described["machine"]
    lines.append(
        f"Measured {described['time'][:10]} on {machine['processor']}, {machine['cpus']} CPUs, "
        f"torch {described['versions'].get('torch', '?')}."
    )
    return "".join(f"# {line}\n" for line in lines) + configs.dump(runs.with_copies(config))
