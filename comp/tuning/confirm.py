"""Train a search's best trials again with new seeds, and find which of them differ by more than noise.

A trial's value in the search is biased upwards: it is the luckiest of many. New seeds give what to expect.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from optuna.trial import FrozenTrial, TrialState

from comp.tuning.study import Study

_CONFIDENCE = 0.95  # one-sided, of the difference of two means
_CHEAPER = 0.9  # a trial must cost less than this share of the best's cost to be preferred


@dataclass(frozen=True)
class ConfirmedTrial:
    """A trial's config, trained again with new seeds.

    Attributes:
        trial: its number in the search.
        searched: its value there.
        scores: with new seeds.
        mean: of the scores.
        deviation: the scores' sample standard deviation; None for one score.
        seconds: mean of the trainings.
        parameters: of its model.
        epochs: mean of the trainings.
        within_noise: whether it does not differ significantly from the best.
    """

    trial: int
    searched: float
    scores: tuple[float, ...]
    mean: float
    deviation: float | None
    seconds: float
    parameters: int
    epochs: float
    within_noise: bool = False


def enqueue(search: Study, confirmation: Study) -> None:
    """Enqueue a search's best trials in its confirmation, once for each new seed, if they are not there yet."""
    options = search.config.tune.confirm
    with confirmation.turn:
        existing = {(row.user_attrs.get("of"), row.user_attrs.get("seed")) for row in confirmation.trials()}
        for trial in search.ranked()[: options.top]:
            for seed in range(search.config.seed + 1, search.config.seed + 1 + options.seeds):
                if (trial.number, seed) not in existing:
                    attributes = {"of": trial.number, "seed": seed, "values": search.values_of(trial)}
                    confirmation.optuna.enqueue_trial({}, user_attrs=attributes)


def confirmed(search: Study, confirmation: Study) -> list[ConfirmedTrial]:
    """Return the confirmed trials, the best mean first; those within noise of it are marked."""
    by_trial: dict[int, list[FrozenTrial]] = {}
    for row in confirmation.trials():
        if row.state == TrialState.COMPLETE:
            by_trial.setdefault(row.user_attrs["of"], []).append(row)
    searched = {trial.number: trial.values[0] for trial in search.ranked()}
    trials = [_summary(number, searched[number], rows) for number, rows in by_trial.items() if number in searched]
    sign = -1 if search.maximizes else 1
    return mark_within_noise(sorted(trials, key=lambda row: (sign * row.mean, row.trial)))


def _summary(number: int, searched: float, rows: Sequence[FrozenTrial]) -> ConfirmedTrial:
    scores = tuple(row.values[0] for row in rows)
    return ConfirmedTrial(
        trial=number,
        searched=searched,
        scores=scores,
        mean=statistics.fmean(scores),
        deviation=statistics.stdev(scores) if len(scores) > 1 else None,
        seconds=round(statistics.fmean(row.user_attrs["seconds"] for row in rows), 2),
        parameters=rows[0].user_attrs["parameters"],
        epochs=statistics.fmean(row.user_attrs["epochs"] for row in rows),
    )


def mark_within_noise(trials: Sequence[ConfirmedTrial]) -> list[ConfirmedTrial]:
    """Return the trials, the best first, with `within_noise` set by a t-test of the difference to the best.

    Three scores estimate their own deviation badly, so the deviation is pooled over all trials. If no trial has two
    scores, noise is unknown and only the best is within it.
    """
    freedom = sum(len(row.scores) - 1 for row in trials)
    marked = []
    for row in trials:
        best = trials[0]
        within_noise = row is best
        if freedom:
            from scipy import stats  # type: ignore[import-untyped]

            error = _pooled_deviation(trials) * math.sqrt(1 / len(row.scores) + 1 / len(best.scores))
            within_noise = abs(best.mean - row.mean) <= float(stats.t.ppf(_CONFIDENCE, freedom)) * error
        marked.append(replace(row, within_noise=within_noise))
    return marked


def recommended(trials: Sequence[ConfirmedTrial], *, budgeted: bool) -> ConfirmedTrial:
    """Return the cheapest trial whose mean is within one standard error of the best's.

    The one-standard-error rule (Breiman et al. 1984, section 3.4.3) is stricter than the t-test, which with few scores
    does not reject trials that may be much worse. Cost is counted, parameters times epochs, and never timed: the
    seconds of equal trainings differ, and another recommendation would follow. The best itself is returned if none
    costs a tenth less.

    Args:
        trials: from `mark_within_noise`, the best first.
        budgeted: all train for the same time, which decides their epochs: cost is parameters alone.
    """
    best = trials[0]
    error = _pooled_deviation(trials) / math.sqrt(len(best.scores))

    def cost(row: ConfirmedTrial) -> float:
        return row.parameters * (1 if budgeted else row.epochs)

    cheapest = min((row for row in trials if row.within_noise and abs(best.mean - row.mean) <= error), key=cost)
    return cheapest if cost(cheapest) < _CHEAPER * cost(best) else best


def _pooled_deviation(trials: Sequence[ConfirmedTrial]) -> float:
    """Return one standard deviation of all scores around their trials' means; 0 if no trial has two."""
    freedom = sum(len(row.scores) - 1 for row in trials)
    return math.sqrt(sum((score - row.mean) ** 2 for row in trials for score in row.scores) / max(freedom, 1))
