"""What proposes the next trial: the rows of `tune.sampler`.

A sampler is made anew for each proposal. What it knows is the study's trials; its draws are counted from the config's
seed and the trial's number, so that workers never propose in step and a continued study goes on as it would have.
"""

import math
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna

from comp.config import Config
from comp.config.space import Entry
from comp.runtime.errors import ConfigError, unknown

_MOST_POINTS = 100_000  # of a space that is searched point by point


def _tpe(args: Mapping[str, Any], seed: int, study_seed: int) -> Any:
    # group: knobs that hold together are drawn together, also where a `when` leaves some of them out
    return optuna.samplers.TPESampler(**{"group": True, "multivariate": True, **args, "seed": seed})


def _random(args: Mapping[str, Any], seed: int, study_seed: int) -> Any:
    return optuna.samplers.RandomSampler(**{**args, "seed": seed})


def _gp(args: Mapping[str, Any], seed: int, study_seed: int) -> Any:
    return optuna.samplers.GPSampler(**{"warn_independent_sampling": False, **args, "seed": seed})


def _cmaes(args: Mapping[str, Any], seed: int, study_seed: int) -> Any:
    return optuna.samplers.CmaEsSampler(**{"warn_independent_sampling": False, **args, "seed": seed})


def _qmc(args: Mapping[str, Any], seed: int, study_seed: int) -> Any:
    # One sequence for the whole study: its points must not be drawn anew from trial to trial.
    return optuna.samplers.QMCSampler(
        **{"scramble": True, "warn_independent_sampling": False, **args, "seed": study_seed}
    )


def _every_point(args: Mapping[str, Any], seed: int, study_seed: int) -> Any:
    return optuna.samplers.BruteForceSampler(**{**args, "seed": seed})  # knobs of a `when` too, which its grid cannot


SAMPLERS: dict[str, Callable[[Mapping[str, Any], int, int], Any]] = {
    "tpe": _tpe,  # tree-structured Parzen estimators (Bergstra et al. 2011; multivariate: Falkner et al. 2018)
    "random": _random,
    "grid": _every_point,
    "gp": _gp,  # Gaussian process, log expected improvement (Ament et al. 2023)
    "cmaes": _cmaes,  # covariance matrix adaptation (Hansen 2016); choices are drawn at random
    "qmc": _qmc,  # scrambled Sobol sequence
}


def sampler(config: Config, number: int, *, untried: bool = False) -> Any:
    """Return Optuna's sampler for the trial of this number.

    Args:
        config: see section `tune`.
        number: of the trial.
        untried: whether a point that no trial has had is wanted, whatever the sampler.

    Raises:
        ConfigError: an unknown name or argument.
    """
    name = config.tune.sampler
    seed = random.Random(f"{config.seed}/{number}").randrange(2**31)
    if name not in SAMPLERS:
        raise ConfigError(f"tune.sampler: {unknown('sampler', name, SAMPLERS)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if untried:
            return _every_point({}, seed, config.seed)
        try:
            return SAMPLERS[name](config.tune.sampler_args, seed, config.seed % 2**31)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"tune.sampler_args: {name} does not take them: {error}") from None


def check_sampler(config: Config, space: Sequence[Entry]) -> None:
    """Refuse a sampler that cannot search this space.

    Raises:
        ConfigError: see `sampler`; a grid of a continuous range, or CMA-ES with several metrics.
    """
    sampler(config, 0)
    if config.tune.sampler == "cmaes" and not isinstance(config.tune.metric, str) and len(config.tune.metric) > 1:
        raise ConfigError("tune.sampler: cmaes optimises one metric; use tpe, gp, qmc, random or grid")
    if config.tune.sampler == "grid":
        for entry in space:
            if not _values(entry):
                raise ConfigError(f"tune.sampler: grid needs steps, and {entry.path} has none: step: ..., or a choice")
        if size(space) > _MOST_POINTS:
            raise ConfigError(f"tune.sampler: a grid of {size(space):,} points is too fine; use tpe or random")


def size(space: Sequence[Entry]) -> int:
    """Return how many points a space has, those that a `when` makes equal counted apart; 0: no one can say."""
    return math.prod(len(_values(entry)) for entry in space)


def is_countable(space: Sequence[Entry]) -> bool:
    """Tell whether a space has so few points that each can be tried."""
    return 0 < size(space) <= _MOST_POINTS


def _values(entry: Entry) -> Sequence[Any]:
    """Return all values of an entry, none where they are a continuum."""
    if entry.kind == "choice":
        return entry.choices
    step = entry.step or (1 if entry.kind == "int" else None)
    if step is None:
        return ()
    count = round((entry.high - entry.low) / step) + 1
    if count > _MOST_POINTS:
        return range(_MOST_POINTS + 1)  # too many to be laid out, by any count
    return [entry.low + number * step for number in range(count)]
