"""Sections `predict`, `track` and `tune`, and the whole config."""

from typing import Annotated, Literal

from pydantic import Field

from comp.config.competition import CompetitionConfig
from comp.config.data import AugmentConfig, DataConfig
from comp.config.section import PATH, Duration, Fraction, FrozenMapping, Name, NotNegative, Positive, Section, UserPath
from comp.config.training import ModelConfig, OptimConfig, TrainConfig


class PredictConfig(Section):
    """Inference for a run's test split and suite; validation during training always uses the plain view."""

    batch_size: Positive = 500
    """Images per forward pass.
    Example: predict.batch_size=100"""
    views: str = "none"
    """Test-time augmentation, from `comp.inference.views.VIEWS`: the logits of several views are averaged.
    Example: predict.views=flip"""
    views_for: str = "all"
    """`all`, or `uncertain:0.25`: additional views only for the least confident quarter of each block.
    Example: predict.views_for=uncertain:0.25"""
    adapt: Literal["none", "bn", "tent", "roid"] = "none"
    """Test-time adaptation: `bn`: blend the batch norm statistics of training with those of the predicted images;
    `tent`: also minimise the entropy of the predictions by the normalisation layers' scales and shifts; `roid`: also
    train these in several passes of weighted steps; `none`: off. All are transductive; see competition.rules.
    Example: predict.adapt=bn"""
    adapt_per: Literal["block", "file", "stream"] = "block"
    """The images to adapt to at once: a block, a distortion with all its severities (file), or the whole suite
    (stream).
    Example: predict.adapt_per=file"""
    alpha: Fraction = 0.7
    """Weight of the predicted images' batch norm statistics in the blend, 0 (training only) to 1.
    Example: predict.alpha=0.9"""
    prior: Annotated[Literal["none", "uniform", "train"] | str, PATH] = "none"
    """Scale the probabilities of each block of the test so that every class has its known share of it: `uniform`,
    `train` (as in training) or a .csv with the columns class and share; needs competition.balance; `none`: off.
    Validation is scaled to the training's shares. Transductive.
    Example: predict.prior=uniform competition.balance=declared"""
    pool: Literal["none", "blocks"] = "none"
    """`blocks`: where row i of every block of the suite is the same photograph, which is checked without labels,
    combine its predictions over the blocks, weighted by confidence; `none`: off. Transductive; see competition.rules.
    Example: predict.pool=blocks"""
    decide: Literal["auto", "argmax", "thresholds", "cut_points", "temperature", "prior"] = "auto"
    """How outputs become answers, fitted on validation: `argmax`: the most likely class, or all classes from 0.5;
    `thresholds`: an offset or a threshold for each class, for F1 and balanced accuracy; `cut_points`: of the expected
    class, for quadratic weighted kappa; `temperature`: for log loss; `prior`: probabilities for the shares in
    competition.test_shares; auto: what fits the metric if its cross-fitted gain is clearly above zero, else argmax.
    Example: predict.decide=argmax"""


class TrackConfig(Section):
    """Weights & Biases: a view of the run folder, without influence on the training."""

    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """`disabled`: nothing; `online`: upload curves during training; `offline`: save them in the run's folder, upload
    with `comp leaderboard --sync`; auto: WANDB_MODE if it is set, else online if you are logged in (`wandb login` or
    WANDB_API_KEY), else offline.
    Example: track.wandb=offline"""
    project: str = ""
    """W&B project; empty: the competition's name.
    Example: track.project=cactus"""
    entity: str = ""
    """W&B user or team; empty: your account's default.
    Example: track.entity=my-team"""
    group: str = ""
    """W&B group of related runs, such as a study's trials; empty: none.
    Example: track.group=stems"""
    tags: tuple[str, ...] = ()
    """W&B tags.
    Example: 'track.tags=[baseline, no-mixup]'"""
    artifacts: tuple[Literal["weights", "submission"], ...] = ()
    """Files to upload as versioned artifacts in addition to the curves: `weights`, `submission`.
    Example: 'track.artifacts=[weights]'"""
    images: bool = False
    """Whether W&B gets images of your data: the most confident mistakes on validation.
    Example: track.images=true"""


class ConfirmConfig(Section):
    """Confirmation of the best trials with new seeds, which the search has not selected for."""

    top: Annotated[int, Field(ge=0, le=1000)] = 3
    """Number of best trials to train again; 0: no confirmation.
    Example: tune.confirm.top=5"""
    seeds: Annotated[int, Field(ge=1, le=1000)] = 3
    """Number of new seeds for each; their mean counts, without the trial's original value.
    Example: tune.confirm.seeds=5"""


class TuneConfig(Section):
    """The hyperparameter search of `comp tune`; ignored by other commands."""

    space: dict[str, FrozenMapping] = Field(default_factory=dict)
    """Dotted path of a key, as in overrides -> its values: `{float: [low, high]}`, `{int: [low, high]}` or
    `{choice: [a, b, c]}`. Optional: `log: true`, `step: 0.05` and `when: {other.path: value}` (or a list of values):
    if the other key has another value, this key keeps the config's value.
    Example: 'tune.space.optim.lr={float: [1e-4, 1e-2], log: true}'"""
    metric: str | tuple[str, ...] = "auto"
    """One or several objectives from `comp.tuning.objectives.OBJECTIVES`; trials are ranked by the first; auto: as
    `train.select`.
    Example: 'tune.metric=[val_metric, train_seconds]'"""
    sampler: str = "tpe"
    """What proposes trials, from `comp.tuning.samplers.SAMPLERS`.
    Example: tune.sampler=gp"""
    sampler_args: FrozenMapping = Field(default_factory=dict)
    """Arguments of Optuna's sampler, such as `{n_startup_trials: 5}`.
    Example: 'tune.sampler_args={n_startup_trials: 5}'"""
    pruner: str = "median"
    """What stops unpromising trials, from `comp.tuning.pruners.PRUNERS`; `none` with several metrics.
    Example: tune.pruner=hyperband"""
    pruner_args: FrozenMapping = Field(default_factory=dict)
    """Arguments of Optuna's pruner, such as `{n_startup_trials: 3}`.
    Example: 'tune.pruner_args={n_startup_trials: 3}'"""
    folds: Literal["one", "all"] = "one"
    """`one`: a trial trains `data.fold`; `all`: a trial trains all `data.folds` in turn, its value is their mean, and
    pruners get one value per fold (`wilcoxon` requires this).
    Example: tune.folds=all"""
    trials: Positive = 20
    """Total number of trials of the study, including earlier sessions.
    Example: tune.trials=50"""
    timeout: Duration = ""
    """Time such as `90s`, `15min` or `2h` after which no new trial starts; running trials finish and the best are
    confirmed. Empty: no limit.
    Example: tune.timeout=2h"""
    keep: NotNegative | Literal["all"] = 3
    """Number of best trials that keep their weights; the weights of other trials are deleted during the study. With
    several metrics the Pareto front also keeps its weights. all: new trials keep their weights permanently.
    Example: tune.keep=all"""
    storage: UserPath = ""
    """`journal:///PATH` or a path ending in .log: any number of processes on one machine; `sqlite:///PATH`: a few
    processes; `postgresql://...`: several machines; empty: a journal in the study's folder.
    Example: tune.storage=postgresql://user@host/db"""
    study: Annotated[Name, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$")] = ""
    """Name of the study and of its folder below `runs/<competition>/`; empty: the config file's name.
    Example: tune.study=learning-rates"""
    heartbeat_seconds: Annotated[int, Field(ge=1, le=3600)] = 10
    """On PostgreSQL: seconds between two heartbeats of a worker. After three missed heartbeats another worker continues
    its trial.
    Example: tune.heartbeat_seconds=30"""
    confirm: ConfirmConfig = ConfirmConfig()


class Config(Section):
    """The whole config. A YAML file holds only the settings that differ from these defaults."""

    competition: CompetitionConfig = CompetitionConfig()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = Field(default_factory=ModelConfig)
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    predict: PredictConfig = PredictConfig()
    track: TrackConfig = TrackConfig()
    tune: TuneConfig = Field(default_factory=TuneConfig)
    plugins: tuple[str, ...] = ()
    """Your own models, losses, metrics, augmentation ops, data sources and views: Python files beside this config
    (`my_module.py`), or installed modules by name; see docs/PLUGINS.md. Their code runs as you.
    Example: 'plugins=[my_models.py]'"""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of initial weights, sample order and augmentation, but not of the splits (`data.split_seed`).
    Example: seed=1"""
