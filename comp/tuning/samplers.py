"""Samplers propose the next trial: the rows of `tune.sampler`.

Each proposal gets a new sampler. Its knowledge is the study's trials, and its seed is a hash of the config's seed and
the trial's number: workers never draw in step, and a continued study proposes what an uninterrupted one would have.
"""

import math
import random
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.samplers import BruteForceSampler, CmaEsSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from comp.config import Config
from comp.config.section import check_numbers
from comp.config.space import Entry
from comp.runtime.errors import ConfigError, unknown

MAX_POINTS = 100_000  # of a space that is searched point by point
_QUIET = {"warn_independent_sampling": False}


class GridSampler(BruteForceSampler):  # type: ignore[misc]  # optuna is not typed
    """Every point once. A trial that a kill stopped while it was proposed is no searched point.

    Optuna takes it for one: its path ends early, and with it all points behind, so that the study would stop.
    """

    @staticmethod
    def _populate_tree(tree: Any, trials: list[FrozenTrial], params: dict[str, Any]) -> None:
        whole = [trial for trial in trials if trial.state != TrialState.FAIL or trial.user_attrs]
        BruteForceSampler._populate_tree(tree, whole, params)


# Name -> Optuna's class and its default arguments here.
SAMPLERS: dict[str, tuple[type[Any], Mapping[str, Any]]] = {
    # With `group`, related knobs are drawn together even where a `when` leaves some of them out.
    "tpe": (TPESampler, {"group": True, "multivariate": True}),
    "random": (RandomSampler, {}),
    "grid": (GridSampler, {}),  # Optuna's GridSampler cannot search the knobs of a `when`
    "gp": (GPSampler, _QUIET),
    "cmaes": (CmaEsSampler, _QUIET),
    "qmc": (QMCSampler, {"scramble": True, **_QUIET}),
}
"""What each row is:

tpe: Tree-structured Parzen estimators (Bergstra et al. 2011; multivariate, Falkner et al. 2018).
random: Independent random points (Bergstra and Bengio 2012).
grid: Every point once; each key needs a step or choices.
gp: A Gaussian process with log expected improvement (Ament et al. 2023, arXiv:2310.20708).
cmaes: Covariance matrix adaptation (Hansen 2016, arXiv:1604.00772); draws choices at random; one metric.
qmc: A scrambled Sobol sequence, which covers the space evenly (Bergstra and Bengio 2012).
"""


def sampler(config: Config, number: int, *, untried: bool = False) -> Any:
    """Return Optuna's sampler for a trial.

    With `untried` it proposes a point that was not tried, whatever `tune.sampler` is.

    Raises:
        ConfigError: a name or argument is unknown.
    """
    name = config.tune.sampler
    if name not in SAMPLERS:
        raise ConfigError(f"tune.sampler: {unknown('sampler', name, SAMPLERS)}")
    check_numbers(config.tune.sampler_args, "tune.sampler_args", 0, MAX_POINTS)
    seed = random.Random(f"{config.seed}/{number}").randrange(2**31)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if untried:
            return GridSampler(seed=seed)
        kind, defaults = SAMPLERS[name]
        if kind is QMCSampler:
            seed = config.seed % 2**31  # all trials take points of one sequence
        try:
            return kind(**{**defaults, **config.tune.sampler_args, "seed": seed})
        except (TypeError, ValueError) as error:
            raise ConfigError(f"tune.sampler_args: {name} does not take them: {error}") from None


def check_sampler(config: Config, space: Sequence[Entry]) -> None:
    """Refuse a sampler that cannot search a space.

    Raises:
        ConfigError: see `sampler`; or a grid of a continuous range, or CMA-ES with several metrics.
    """
    sampler(config, 0)
    if config.tune.sampler == "cmaes" and not isinstance(config.tune.metric, str) and len(config.tune.metric) > 1:
        raise ConfigError("tune.sampler: cmaes optimises one metric; use tpe, gp, qmc, random or grid")
    if config.tune.sampler == "grid":
        for entry in space:
            if not _values(entry):
                raise ConfigError(f"tune.sampler: grid needs steps, and {entry.path} has none: step: ..., or a choice")
        if size(space) > MAX_POINTS:
            raise ConfigError(f"tune.sampler: a grid of {size(space):,} points is too fine; use tpe or random")


def size(space: Sequence[Entry]) -> int:
    """Return how many points a space has, counting points that a `when` makes equal; 0 if it is continuous."""
    return math.prod(len(_values(entry)) for entry in space)


def _values(entry: Entry) -> Sequence[Any]:
    """Return all values of an entry, none if they are continuous."""
    if entry.kind == "choice":
        return entry.choices
    step = entry.step or (1 if entry.kind == "int" else None)
    if step is None:
        return ()
    count = round((entry.high - entry.low) / step) + 1
    if count > MAX_POINTS:
        return range(MAX_POINTS + 1)  # too many to list
    return [entry.low + index * step for index in range(count)]
