"""Sections `optim` and `train`."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from comp.config.section import Broken, Duration, Fraction, FrozenMapping, Positive, Section


class LookaheadConfig(Section):
    """Slow weights that follow the optimizer's (Zhang et al. 2019, "Lookahead Optimizer")."""

    k: Annotated[int, Field(ge=0)] = 0
    """Steps between two meetings of fast and slow weights, the paper's 5 to 10; 0: no slow weights."""
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.5
    """How far the slow weights go towards the fast ones, which then start from there."""


class OptimConfig(Section):
    """Optimizer and learning rate."""

    name: str = "adamw"
    """A row of `comp.training.optimizers.OPTIMIZERS`, or a name of timm's factory (`lion`, `lamb`, `nadamw`, ...)."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate, of the loss's mean over the batch."""
    args: FrozenMapping = Field(default_factory=dict)
    """Arguments of the optimizer that are not fields here, such as `{nesterov: false}` or `{eps: 1e-6}`."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Applied to matrices and kernels, not to norms and biases."""
    decay_all: bool = False
    """Whether norms and biases decay too."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The rate of each layer is this times that of the one above it."""
    multipliers: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Blocks by name or glob, as in `model.freeze` -> factor of their rate; several that match multiply."""
    ends: dict[str, Positive] = Field(default_factory=dict)
    """Blocks, likewise -> how many epochs they are trained: their schedule is that much shorter, then they rest."""
    momentum: Fraction = 0.9
    """Of sgd (Nesterov), muon, and those of timm's that have one."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay rates of adam and adamw; timm's optimizers have theirs in `args`."""
    aux_lr: Annotated[float, Field(gt=0)] | None = None
    """Muon: peak rate of the SGD that trains what is no hidden matrix; null: `lr`. A rate meant for a loss that is
    summed over the batch is this much smaller than here, where the mean is taken: multiply it by the batch size."""
    aux_momentum: Fraction = 0.85
    """Muon: momentum (Nesterov) of that SGD."""
    aux_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Muon: share of itself that a weight of that SGD loses in a step at the peak, whatever its `multipliers`."""
    lookahead: LookaheadConfig = LookaheadConfig()
    schedule: str = "onecycle"
    """A row of `comp.training.schedules.SCHEDULES`."""
    warmup: Fraction = 0.3
    """Share of steps in which the rate of onecycle (along a cosine), cosine and linear (along a line) rises."""
    start_factor: Annotated[float, Field(gt=0, le=1)] = 0.04
    """The rise starts at `lr` times this."""
    final_factor: Annotated[float, Field(ge=0, le=1)] = 1e-5
    """onecycle, cosine and linear end at `lr` times this."""
    step_epochs: Positive = 30
    """How many epochs the rate of schedule `step` stays the same."""
    step_factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """What it is then multiplied by."""
    clip: Literal["none", "norm", "value", "adaptive"] = "none"
    """Gradients are limited by the norm of all of them, value by value, or unit by unit to a share of the weights'."""
    clip_at: Annotated[float, Field(gt=0)] | None = None
    """The limit; null: 1 for norm and value, 0.01 for adaptive."""

    def broken(self) -> Iterator[Broken]:
        """See `Section`."""
        if self.clip == "none" and self.clip_at is not None:
            yield Broken(
                ("clip_at", "clip"),
                "optim.clip_at: says where gradients are clipped, and optim.clip is none; set optim.clip too",
            )


class TrainConfig(Section):
    """The loop."""

    epochs: Positive = 10
    """Whole epochs; not looked at where `budget` is set."""
    budget: Duration = ""
    """Wall-clock time of the training, such as `90s`, `15min` or `1.5h`; empty: `epochs` says how long. As many steps
    as fit are planned from the first ones and again at every epoch's end (plans.json); the schedule ends with the last
    of them, in an epoch that may be cut short. Timing how to compute, validation and checkpoints count; opening the
    data before it and scoring after it do not. No two runs take the same number of steps."""
    batch_size: Positive = 128
    micro_batch: Annotated[int, Field(ge=2)] | None = None
    """Images that go through the network at a time; gradients are averaged over the batch, so that the step is the
    same, but batch norm sees this many. null: the whole batch. Where memory runs out it is halved, in any case."""
    nan_retries: Annotated[int, Field(ge=0)] = 0
    """How many times a training whose loss is not finite goes back to its last good state, at half the rate; 0: it
    stops. More than 0: state.pt is also written at every epoch's end."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    consistency: Literal["none", "jsd"] = "none"
    """`jsd`: three views of every image, cross-entropy on the clean one, and the Jensen-Shannon divergence of their
    predictions (AugMix); not with MixUp or CutMix, nor with augmentation in workers. A step costs thrice as much."""
    consistency_weight: Annotated[float, Field(ge=0)] = 12.0
    """What the divergence is multiplied by."""
    sizes: dict[Positive, Annotated[int, Field(ge=8)]] = Field(default_factory=dict)
    """Epoch (from 1) -> side in pixels that training images have from it on, such as {1: 24, 5: 32}; until the first
    one named they keep their own. Networks must take any size; validation and prediction see whole images."""
    select: Literal["auto", "val_metric", "val_accuracy", "val_loss", "ood_metric", "ood_accuracy"] = "auto"
    """What the best weights are selected by, ties by the lower validation loss. `val_metric` is competition.metric on
    validation, `ood_metric` the same on shifted validation, among the epochs that competition.ood_validation.every
    measures; auto: ood_metric where it is measured at epochs and a shifted suite is submitted, else val_metric."""
    average: str = "none"
    """A row of `comp.models.averaging.AVERAGES`: ema (over steps, validated beside the raw weights at every epoch's
    end), swa or soup (over the ends of the last epochs, validated once). Averaged weights compete with the raw ones by
    `select`; without a validation split they are what predicts."""
    ema_epochs: Annotated[float, Field(gt=0)] = 1.0
    """After how many epochs a step's share in the exponential average has fallen to 1/e."""
    swa_epochs: Positive = 5
    """How many last epochs' ends swa averages; a training that stops before them has no average."""
    soup_epochs: Positive = 5
    """How many last epochs' ends a soup chooses among; they lie in memory and in every checkpoint."""
    patience: Positive | None = None
    """Epochs without a better value of `select` after which the training ends; null: it never does for that."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """By how much more than this a value must exceed the best one to be better, for `patience`; in its own unit."""
    overfit_patience: Positive | None = None
    """Epochs in a row with a validation loss above its best after which the training ends; null: likewise."""
    overfit_threshold: Annotated[float, Field(ge=0)] = 0.0
    """By how much more than this the loss must exceed its best, for `overfit_patience`; in nats."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: timed on a few steps, kept for this machine (~/.cache/comp; deleting that times anew) and recorded in the
    run's execution.json; fp16, for older GPUs, scales the loss."""
    channels_last: Literal["auto"] | bool = "auto"
    """Memory layout of images and weights; auto: timed together with precision."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads; 0: one a core, half of them where hyper-threads make that faster, at most OMP_NUM_THREADS."""
    compile: Literal["auto"] | bool = "auto"
    """Whether training steps run through torch.compile; auto: in trainings of more than 15 minutes, where they win by
    timing with the minutes it takes to build counted in. Validation and prediction are never compiled."""
    deterministic: bool = False
    """Whether CUDA may use only kernels that give the same bits every time, which are slower, and refuses what has
    none. The CPU gives the same bits in any case."""
    log_norms: bool = False
    """Whether gradient and weight norms of every layer are written to norms.csv, epoch by epoch, and drawn."""
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 60.0
    """state.pt is written at the first step or epoch end after this many seconds, and when interrupted."""
    keep_state: bool = False
    """Whether state.pt (optimizer, averages, position) stays in a complete run. Predicting, ensembles and
    `model.from_run` do without it."""

    def broken(self) -> Iterator[Broken]:
        """See `Section`."""
        if self.min_delta and self.patience is None:
            yield Broken(
                ("min_delta", "patience"),
                "train.min_delta: says what train.patience counts as better, and that is not set; set patience too",
            )
        if self.overfit_threshold and self.overfit_patience is None:
            yield Broken(
                ("overfit_threshold", "overfit_patience"),
                "train.overfit_threshold: is train.overfit_patience's, and that is not set; set overfit_patience too",
            )
        if self.budget and self.sizes:
            yield Broken(
                ("budget", "sizes"),
                "train.budget and train.sizes: a budget plans by the steps that it has seen, and sizes makes later "
                "ones dearer; leave one of them out",
            )
