"""The end of a search: its best trials again with new seeds, and which of them noise tells apart.

The value that a trial was chosen for is the luckiest of many and too good; what new seeds give is what to expect.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from comp.config.space import parse_space
from comp.tuning.objectives import chosen
from comp.tuning.study import Study, spelled_choices

_LEVEL = 0.95  # one-sided, of the difference of two means
_CHEAPER = 0.9  # of the best's cost, from which another is worth taking


@dataclass(frozen=True)
class Confirmed:
    """A trial's config, trained again.

    Attributes:
        trial: its number in the search.
        searched: its value there.
        scores: with new seeds.
        mean: of them.
        deviation: of them, the sample's; None of one.
        seconds: of a training, mean.
        parameters: of its model.
        within_noise: whether it cannot be told from the best.
    """

    trial: int
    searched: float
    scores: tuple[float, ...]
    mean: float
    deviation: float | None
    seconds: float
    parameters: int
    within_noise: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def values_of(study: Study, trial: FrozenTrial) -> dict[str, Any]:
    """Return a trial's values as its config has them, path -> value."""
    found = {}
    for entry in parse_space(study.config.tune):
        if entry.path in trial.params:
            value = trial.params[entry.path]
            found[entry.path] = spelled_choices(entry)[value] if entry.kind == "choice" else entry.rounded(value)
    return found


def ranked(study: Study) -> list[FrozenTrial]:
    """Return a search's whole trials, the best by the first metric first."""
    whole = [trial for trial in study.trials() if trial.state == TrialState.COMPLETE]
    up = chosen(study.config)[0].higher_is_better(study.config)
    return sorted(whole, key=lambda trial: (-trial.values[0] if up else trial.values[0], trial.number))


def enqueue(search: Study, confirmation: Study) -> None:
    """Let the best trials of a search wait in its confirmation with new seeds, those that are not there yet."""
    wanted = search.config.tune.confirm
    with confirmation.turn:
        there = [(row.user_attrs.get("of"), row.user_attrs.get("seed")) for row in confirmation.trials()]
        for trial in ranked(search)[: wanted.top]:
            for seed in range(search.config.seed + 1, search.config.seed + 1 + wanted.seeds):
                if (trial.number, seed) not in there:
                    attributes = {"of": trial.number, "seed": seed, "values": values_of(search, trial)}
                    confirmation.optuna.enqueue_trial({}, user_attrs=attributes)


def confirmed(search: Study, confirmation: Study) -> list[Confirmed]:
    """Return what new seeds have given, the best mean first, with those marked that noise does not tell from it."""
    by_trial: dict[int, list[FrozenTrial]] = {}
    for row in confirmation.trials():
        if row.state == TrialState.COMPLETE:
            by_trial.setdefault(row.user_attrs["of"], []).append(row)
    searched = {trial.number: trial.values[0] for trial in ranked(search)}
    found = [_summary(number, searched[number], rows) for number, rows in by_trial.items() if number in searched]
    up = chosen(search.config)[0].higher_is_better(search.config)
    return mark(sorted(found, key=lambda row: (-row.mean if up else row.mean, row.trial)))


def _summary(number: int, searched: float, rows: Sequence[FrozenTrial]) -> Confirmed:
    scores = tuple(row.values[0] for row in rows)
    return Confirmed(
        trial=number,
        searched=searched,
        scores=scores,
        mean=statistics.fmean(scores),
        deviation=statistics.stdev(scores) if len(scores) > 1 else None,
        seconds=round(statistics.fmean(row.user_attrs["seconds"] for row in rows), 2),
        parameters=rows[0].user_attrs["parameters"],
    )


def mark(found: Sequence[Confirmed]) -> list[Confirmed]:
    """Return the same with `within_noise`: by a t-test of the difference to the first, with one deviation for all.

    Three scores say little of their own deviation, so that those of all candidates are pooled. Without two scores of
    any candidate nothing is known of noise, and only the best is within it.
    """
    best = found[0] if found else None
    freedom = sum(len(row.scores) - 1 for row in found)
    marked = []
    for row in found:
        near = row is best
        if best is not None and freedom:
            from scipy import stats  # type: ignore[import-untyped]

            error = _pooled_deviation(found) * math.sqrt(1 / len(row.scores) + 1 / len(best.scores))
            near = abs(best.mean - row.mean) <= float(stats.t.ppf(_LEVEL, freedom)) * error
        marked.append(Confirmed(**{**row.to_json(), "scores": row.scores, "within_noise": near}))
    return marked


def recommended(found: Sequence[Confirmed], *, budgeted: bool) -> Confirmed:
    """Return the cheapest whose mean is within a standard error of the best's: by seconds, or of a budget, parameters.

    The rule of one standard error (Breiman et al. 1984, section 3.4.3): what a test of few scores cannot tell from the
    best may be worse by much. The best itself, where none costs a tenth less: seconds of equal trainings differ by
    less than that, but differ.

    Args:
        found: from `mark`, the best first.
        budgeted: whether all train for the same time.
    """
    best = found[0]
    error = _pooled_deviation(found) / math.sqrt(len(best.scores))

    def cost(row: Confirmed) -> float:
        return row.parameters if budgeted else row.seconds

    cheapest = min((row for row in found if row.within_noise and abs(best.mean - row.mean) <= error), key=cost)
    return cheapest if cost(cheapest) < _CHEAPER * cost(best) else best


def _pooled_deviation(found: Sequence[Confirmed]) -> float:
    """Return one deviation of all scores from their trials' means; 0 where no trial has two."""
    freedom = sum(len(row.scores) - 1 for row in found)
    return math.sqrt(sum((score - row.mean) ** 2 for row in found for score in row.scores) / max(freedom, 1))
