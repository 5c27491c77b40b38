"""Section `tune`."""

from typing import Annotated, Literal

from pydantic import Field

from comp.config.section import Duration, FrozenMapping, Positive, Section, UserPath


class ConfirmConfig(Section):
    """How a search ends: the best trials again, with seeds that nobody has selected by."""

    top: Annotated[int, Field(ge=0)] = 3
    """How many of the best trials are trained again; 0: the best trial is taken at its word."""
    seeds: Positive = 3
    """How many new seeds each of them gets; their mean counts, without the value that it was chosen for."""


class TuneConfig(Section):
    """What `comp tune` searches, and how. Trainings do not look at it."""

    space: dict[str, FrozenMapping] = Field(default_factory=dict)
    """Dotted path of a knob, as in overrides -> where its values come from: `{float: [low, high]}`, `{int: [low,
    high]}` or `{choice: [a, b, c]}`; with `log: true`, `step: 0.05` and `when: {other.path: value}`, or a list of
    values: where the other knob has another one, this knob keeps the config's own value."""
    metric: str | tuple[str, ...] = "auto"
    """A row of `comp.tuning.objectives.OBJECTIVES`, or several; trials are ranked by the first. auto: what the best
    weights are selected by, `train.select`."""
    sampler: str = "tpe"
    """A row of `comp.tuning.samplers.SAMPLERS`: what proposes the next trial."""
    sampler_args: FrozenMapping = Field(default_factory=dict)
    """Arguments of Optuna's sampler, such as `{n_startup_trials: 5}`."""
    pruner: str = "median"
    """A row of `comp.tuning.pruners.PRUNERS`: what ends trials that look bad; `none` with several metrics."""
    pruner_args: FrozenMapping = Field(default_factory=dict)
    """Arguments of Optuna's pruner, such as `{n_startup_trials: 3}`."""
    folds: Literal["one", "all"] = "one"
    """`all`: a trial trains every one of `data.folds` in turn, and its value is their mean; pruners hear once a fold.
    `wilcoxon` needs it."""
    trials: Positive = 20
    """How many trials the study has in all, however often it is continued."""
    timeout: Duration = ""
    """Time such as `90s`, `15min` or `2h` after which this command begins no trial; those under way end, and the best
    are confirmed. Empty: no limit."""
    keep: Annotated[int, Field(ge=0)] | Literal["all"] = 3
    """How many of the best trials so far keep their weights; those of the others are removed as the study goes on, and
    everything else of them stays. With several metrics the Pareto front's stay too. all: trials that begin now keep
    them for good."""
    storage: UserPath = ""
    """`journal:///PATH` or a path that ends in .log for any number of processes on one machine, `sqlite:///PATH` for
    few, `postgresql://...` for several machines; empty: a journal in the study's folder."""
    study: Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$")] = ""
    """Its name, and its folder's below `runs/<competition>/`; empty: the config file's."""
    heartbeat_seconds: Positive = 10
    """On PostgreSQL: how often a worker tells that it lives; one not heard of for three times as long counts as
    dead, and its trial goes on in another."""
    confirm: ConfirmConfig = ConfirmConfig()
