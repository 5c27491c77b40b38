"""What a study leaves in its folder: a table of trials, importances, pictures, and a config to train."""

import csv
import io
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from comp import config as configs
from comp.config import space
from comp.results import files, runs
from comp.tuning import confirm, objectives, plots
from comp.tuning.confirm import Confirmed
from comp.tuning.study import Study, reason_of

STATES = {
    TrialState.COMPLETE: "done", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed", TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}  # fmt: skip


@dataclass(frozen=True)
class Standing:
    """How far a study is.

    Attributes:
        total: trials that it is to have.
        counts: state (`done`, `pruned`, `failed`, `running`, `waiting`) -> trials.
        last: the trial that ended last, as a row of the table; empty before one has.
        best: number of the best whole trial, None before one has ended.
        best_value: its value.
        seconds_left: as the trials so far let expect; None before one has ended.
    """

    total: int
    counts: dict[str, int]
    last: dict[str, Any]
    best: int | None
    best_value: float | None
    seconds_left: float | None


@dataclass(frozen=True)
class Report:
    """What a study has come to.

    Attributes:
        name: the study's.
        folder: where its runs and files lie.
        metrics: what was optimised.
        trials: rows of the table, by number.
        counts: state -> trials.
        pareto: numbers of the trials that no other is better than in everything; with one metric, the best.
        importance: path -> share, largest first; empty where too few trials tell.
        confirmed: the best with new seeds, the best mean first.
        recommended: number of the trial whose config is in best.yaml, None without a whole trial.
        best: best.yaml.
    """

    name: str
    folder: Path
    metrics: tuple[str, ...]
    trials: list[dict[str, Any]]
    counts: dict[str, int]
    pareto: list[int]
    importance: dict[str, float]
    confirmed: list[Confirmed]
    recommended: int | None
    best: Path | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            **self.__dict__,
            "folder": str(self.folder),
            "best": str(self.best) if self.best else None,
            "confirmed": [row.to_json() for row in self.confirmed],
        }


def standing(study: Study, began: float, ended_before: int) -> Standing:
    """Return how far a study is.

    Args:
        study: the search, or its confirmation.
        began: `time.time()` of this command.
        ended_before: trials that had ended before it.
    """
    trials = study.trials()
    ended = sorted((row for row in trials if row.state.is_finished()), key=lambda row: row.datetime_complete)
    best = next(iter(confirm.ranked(study)), None)
    new, now = len(ended) - ended_before, time.time()
    left: float | None = None
    if new > 0:
        missing = max(0, study.total - len(ended))
        left = min((now - began) / new * missing, max(0.0, study.deadline - now))
    return Standing(
        total=study.total,
        counts=_counts(trials),
        last=row_of(study, ended[-1]) if ended else {},
        best=best.number if best else None,
        best_value=best.values[0] if best else None,
        seconds_left=left,
    )


def row_of(study: Study, trial: FrozenTrial) -> dict[str, Any]:
    """Return a trial as a row of the table."""
    names = objectives.names(study.config)
    values = trial.values or [None] * len(names)
    known = trial.user_attrs
    paths = [entry.path for entry in space.entries(study.config.tune)]
    tuned = confirm.values_of(study, trial)
    again = {"of": known["of"], "seed": known["seed"]} if "of" in known else {}
    return {
        "trial": trial.number,
        **again,
        "state": STATES[trial.state],
        **dict(zip(names, values, strict=True)),
        "seconds": known.get("seconds"),
        "parameters": known.get("parameters"),
        "epochs": known.get("epochs"),
        **{path: tuned.get(path) for path in paths},
        "run": known.get(next((key for key in known if key.startswith("run-")), ""), ""),
        "reason": reason_of(trial),
    }


def _counts(trials: Sequence[FrozenTrial]) -> dict[str, int]:
    return {name: sum(row.state == state for row in trials) for state, name in STATES.items()}


def report(search: Study, confirmation: Study | None, *, write: bool = True, pictures: bool = True) -> Report:
    """Return what a study has come to, and write its files.

    Files: trials.csv, best.yaml, plots/*.png, study.html.

    Args:
        search: the study.
        confirmation: of its best, None where there is none.
        write: False only looks.
        pictures: whether they are drawn too.
    """
    trials = search.trials()
    found = confirm.confirmed(search, confirmation) if confirmation else []
    best = confirm.ranked(search)
    chosen: int | None = best[0].number if best else None
    if found:
        chosen = confirm.recommended(found, budgeted=bool(search.config.train.budget)).trial
    path = search.folder / "best.yaml"
    made = Report(
        name=search.folder.name, folder=search.folder, metrics=objectives.names(search.config),
        trials=[row_of(search, trial) for trial in trials], counts=_counts(trials), pareto=_pareto(search),
        importance=importance(search), confirmed=found, recommended=chosen,
        best=path if chosen is not None and (write or path.exists()) else None,
    )  # fmt: skip
    if write:
        files.write_atomically(search.folder / "trials.csv", _csv(made.trials))
        if chosen is not None:
            files.write_atomically(path, _best_config(search, made, chosen).encode())
        if pictures:
            plots.draw(search, made.importance, made.pareto, made.trials)
    return made


def importance(study: Study) -> dict[str, float]:
    """Return how much each knob that all trials have tells of the first metric (PED-ANOVA, Watanabe et al. 2023)."""
    whole = confirm.ranked(study)
    shared = [path for path in study.config.tune.space if all(path in trial.params for trial in whole)]
    varied = [path for path in shared if len({repr(trial.params[path]) for trial in whole}) > 1]
    if len(varied) < 2 or len({trial.values[0] for trial in whole}) < 2:
        return {}
    # Optuna looks for what makes a target low.
    sign = -1 if objectives.chosen(study.config)[0].higher_is_better(study.config) else 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which it says each time
        shares = optuna.importance.get_param_importances(
            study.optuna, params=varied, target=lambda trial: sign * trial.values[0]
        )
    return {path: round(share, 4) for path, share in shares.items()}


def _pareto(study: Study) -> list[int]:
    if len(objectives.names(study.config)) == 1:
        return [trial.number for trial in confirm.ranked(study)[:1]]
    return sorted(trial.number for trial in study.optuna.best_trials)


def _csv(rows: Sequence[dict[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["trial"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _best_config(search: Study, made: Report, chosen: int) -> str:
    """Return best.yaml: the whole config, under a header of what was measured and where."""
    trial = next(trial for trial in search.trials() if trial.number == chosen)
    config = space.lay(search.config, confirm.values_of(search, trial))
    metric, counts = made.metrics[0], made.counts
    ended = sum(counts[name] for name in ("done", "pruned", "failed"))
    lines = [
        f"Found by `comp tune`: trial {chosen} of study {made.name} ({ended} trials: {counts['done']} whole, "
        f"{counts['pruned']} pruned, {counts['failed']} failed).",
        f"  comp run {search.folder / 'best.yaml'}",
        f"In the search, seed {search.config.seed}: "
        + ", ".join(f"{name} {value:.6g}" for name, value in zip(made.metrics, trial.values, strict=True))
        + ".",
    ]
    row = next((row for row in made.confirmed if row.trial == chosen), None)
    if row is not None:
        spread = "" if row.deviation is None else f", standard deviation {row.deviation:.4f}"
        scores = ", ".join(f"{score:.4f}" for score in row.scores)
        near = ", ".join(str(other.trial) for other in made.confirmed if other.within_noise)
        lines += [
            f"With new seeds ({scores}): mean {metric} {row.mean:.4f}{spread}; "
            f"{row.seconds:.1f} s of training each, {row.parameters:,} parameters.",
            f"Within noise of the best: trials {near}; this one "
            + ("has the best mean." if row is made.confirmed[0] else "is the cheapest within a standard error of it."),
        ]
    described = runs.describe_machine()
    machine = described["machine"]
    lines.append(
        f"Measured {described['time'][:10]} on {machine['processor']}, {machine['cpus']} CPUs, "
        f"torch {described['versions'].get('torch', '?')}."
    )
    return "".join(f"# {line}\n" for line in lines) + configs.dump(config)
