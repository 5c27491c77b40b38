"""Sections `model`, `optim` and `train`."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from comp.config.section import (
    PATH,
    Amount,
    BrokenRule,
    Duration,
    Fraction,
    FrozenMapping,
    NotNegative,
    Positive,
    Section,
    Size,
    UserPath,
)
from comp.runtime.errors import shortened

_Rate = Annotated[float, Field(ge=1e-12, le=1e38)]  # what diverges stops with its own advice
_SMALLEST_STD, _LARGEST_MEAN = 1e-6, 1000  # of images in 0 to 1, which are divided by it
_LIGHTEST, _HEAVIEST = 1e-6, 1e6  # class in the loss


class ModelConfig(Section):
    """The network, its initial weights, and which of them are trained."""

    name: str = "simple_cnn"
    """One of comp's networks or any timm model, optionally with a weights tag (`resnet18.a1_in1k`); see `comp
    models`.
    Example: model.name=resnet18"""
    stem: Literal["stock", "cifar", "resize"] = "stock"
    """`stock`: unchanged; `cifar`: adapt a timm model's first layers to small images; `resize`: enlarge the images.
    Example: model.stem=cifar"""
    input_size: Size | None = None
    """Size in pixels to which `stem: resize` resizes images inside the model: a side or [height, width], 8 to 4096.
    Example: model.stem=resize model.input_size=64"""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Interpolation of `stem: resize`: `bilinear`, or `bicubic`, which is sharper.
    Example: model.interpolation=bicubic"""
    pretrained: Annotated[bool | str, PATH] = False
    """true: timm's weights, from `data.root`/weights/NAME.safetensors or the hub; a path: a .safetensors or .pth file;
    false: random weights.
    Example: model.pretrained=true"""
    from_run: UserPath = ""
    """Folder of a run whose best weights are the initial ones; a head for other classes is initialised anew.
    Example: model.from_run=runs/cactus/RUN"""
    sha256: Annotated[str, Field(pattern=r"^([0-9a-fA-F]{8,64})?$")] = ""
    """Expected SHA-256 of the weights file, or its first 8 digits or more; empty: not checked.
    Example: model.sha256=1a2b3c4d model.pretrained=true"""
    drop_rate: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Dropout rate before the classifier, from 0 to below 1; null: the network's default.
    Example: model.drop_rate=0.2"""
    drop_path_rate: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Stochastic depth rate of a timm model, from 0 to below 1; null: the network's default.
    Example: model.drop_path_rate=0.1"""
    timm: FrozenMapping = Field(default_factory=dict)
    """Further arguments of timm's model factory (`drop_block_rate`, `act_layer`, ...).
    Example: 'model.timm={act_layer: silu}'"""
    args: FrozenMapping = Field(default_factory=dict)
    """Arguments of comp's own networks (depth, hidden, ...).
    Example: 'model.args={depth: 6}'"""
    normalize: (
        Literal["auto", "dataset", "pretrained", "per_image"] | dict[Literal["mean", "std"], tuple[float, ...]]
    ) = "auto"
    """Mean and standard deviation for input normalisation: those of the dataset, of the pretrained weights, or
    `{mean: [...], std: [...]}`; auto: pretrained if there are pretrained weights, else dataset; per_image: the
    dataset's and then each image's own, which removes haze and weak contrast.
    Example: model.normalize=per_image"""
    freeze: tuple[str, ...] = ()
    """Blocks that are not trained: names or globs of modules and parameters, or `all_but_head`.
    Example: 'model.freeze=[all_but_head]'"""
    unfreeze: dict[Annotated[int, Field(ge=1)], tuple[str, ...]] = Field(default_factory=dict)
    """Epoch (from 1) -> frozen blocks to train from this epoch on; names or globs, `*` for all.
    Example: 'model.freeze=[all_but_head]' 'model.unfreeze={3: ["*"]}'"""
    freeze_bn_stats: bool = True
    """Whether batch norm statistics in frozen blocks are kept; false: they are updated during training.
    Example: model.freeze_bn_stats=false"""
    unfreeze_bn: bool = False
    """Whether to train batch norm in frozen blocks: statistics, scale and shift.
    Example: model.unfreeze_bn=true"""

    def broken_rules(self) -> Iterator[BrokenRule]:
        """See `Section.broken_rules`."""
        if (self.stem == "resize") != (self.input_size is not None):
            yield BrokenRule(
                ("stem", "input_size"),
                "model.stem: resize and input_size go together, such as model: {stem: resize, input_size: 64}",
            )
        if self.from_run and self.pretrained:
            yield BrokenRule(
                ("from_run", "pretrained"),
                "model: from_run and pretrained both set the initial weights; keep one of them",
            )
        has_weights = bool(self.pretrained or self.from_run)
        if self.sha256 and not has_weights:
            yield BrokenRule(
                ("sha256",), "model.sha256: there is no weights file to check; set model.pretrained or remove it"
            )
        pair = self.normalize if isinstance(self.normalize, dict) else {}
        mean, std = pair.get("mean", ()), pair.get("std", ())
        if any(value < _SMALLEST_STD for value in std) or any(abs(value) > _LARGEST_MEAN for value in (*mean, *std)):
            yield BrokenRule(
                ("normalize",),
                f"model.normalize: expected std from {_SMALLEST_STD:g} and mean from {-_LARGEST_MEAN} to "
                f"{_LARGEST_MEAN}, for images in 0 to 1; found {dict(pair)}",
            )
        if self.normalize == "pretrained" and not has_weights:
            yield BrokenRule(
                ("normalize",),
                "model.normalize: pretrained needs pretrained weights; set model.pretrained",
            )


class LookaheadConfig(Section):
    """Lookahead: slow weights that follow the optimizer's fast weights (Zhang et al. 2019, "Lookahead Optimizer")."""

    k: NotNegative = 0
    """Steps between two synchronisations; the paper uses 5 to 10; 0: off.
    Example: optim.lookahead.k=5"""
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Step size of the slow weights towards the fast ones, above 0 and at most 1.
    Example: optim.lookahead.k=5 optim.lookahead.alpha=0.8"""


class OptimConfig(Section):
    """Optimizer and learning rate schedule."""

    name: str = "adamw"
    """A name from `comp.training.optimizers.OPTIMIZERS` or from timm's factory (`lion`, `lamb`, `nadamw`, ...).
    Example: optim.name=muon"""
    lr: _Rate = 1e-3
    """Peak learning rate, for a loss that is averaged over the batch.
    Example: optim.lr=3e-4"""
    args: FrozenMapping = Field(default_factory=dict)
    """Further arguments of the optimizer, such as `{nesterov: false}` or `{eps: 1e-6}`.
    Example: 'optim.args={eps: 1e-6}'"""
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = 0.05
    """Weight decay of matrices and kernels; norms and biases have none unless `decay_all` is set.
    Example: optim.weight_decay=0.01"""
    decay_all: bool = False
    """Whether weight decay also applies to norms and biases.
    Example: optim.decay_all=true"""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor between the learning rates of a layer and the layer above it, above 0 and at most 1; 1: the same rate.
    Example: optim.layer_decay=0.75"""
    multipliers: dict[str, Annotated[float, Field(ge=0, le=1000)]] = Field(default_factory=dict)
    """Block name or glob (as in `model.freeze`) -> learning rate factor; several matching factors multiply.
    Example: 'optim.multipliers={"layer4.*": 0.1}'"""
    ends: dict[str, Positive] = Field(default_factory=dict)
    """Block name or glob -> number of epochs to train it: its schedule is shortened, then it is frozen.
    Example: 'optim.ends={"layer1.*": 5}'"""
    momentum: Fraction = 0.9
    """Momentum of sgd (Nesterov), muon, and timm optimizers that have one, 0 to 1.
    Example: optim.momentum=0.95"""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Betas, from 0 to below 1, of adam and adamw; for timm's optimizers use `args`.
    Example: 'optim.betas=[0.9, 0.95]'"""
    aux_lr: _Rate | None = None
    """Muon: peak learning rate of the SGD for all parameters except hidden matrices; null: `lr`. Multiply rates that
    are meant for a loss summed over the batch by the batch size.
    Example: optim.name=muon optim.aux_lr=0.01"""
    aux_momentum: Fraction = 0.85
    """Muon: Nesterov momentum of that SGD, 0 to 1.
    Example: optim.name=muon optim.aux_momentum=0.9"""
    aux_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Muon: weight decay of that SGD per step at the peak rate, independent of `multipliers`; from 0 to below 1.
    Example: optim.name=muon optim.aux_decay=1e-4"""
    lookahead: LookaheadConfig = LookaheadConfig()
    schedule: str = "onecycle"
    """Learning rate schedule, from `comp.training.schedules.SCHEDULES`.
    Example: optim.schedule=cosine"""
    warmup: Fraction = 0.3
    """Fraction of steps (0 to 1) in which the rate rises: along a cosine for onecycle, linearly for cosine and
    linear.
    Example: optim.warmup=0.1"""
    start_factor: Annotated[float, Field(gt=0, le=1)] = 0.04
    """The warmup starts at `lr` times this factor, above 0 and at most 1.
    Example: optim.start_factor=0.1"""
    final_factor: Annotated[float, Field(ge=0, le=1)] = 1e-5
    """onecycle, cosine and linear end at `lr` times this factor, 0 to 1.
    Example: optim.final_factor=0.01"""
    step_epochs: Positive = 30
    """Schedule `step`: epochs between two reductions.
    Example: optim.schedule=step optim.step_epochs=10"""
    step_factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Schedule `step`: factor of each reduction, above 0 and at most 1.
    Example: optim.schedule=step optim.step_factor=0.2"""
    clip: Literal["none", "norm", "value", "adaptive"] = "none"
    """Gradient clipping: `norm`: by total norm; `value`: by value; `adaptive`: each unit relative to its weights' norm
    (Brock et al. 2021, arXiv:2102.06171); `none`: off.
    Example: optim.clip=norm"""
    clip_at: Annotated[float, Field(gt=0, le=1e9)] | None = None
    """Clipping limit, above 0; null: 1 for norm and value, 0.01 for adaptive.
    Example: optim.clip=norm optim.clip_at=0.5"""

    def broken_rules(self) -> Iterator[BrokenRule]:
        """See `Section.broken_rules`."""
        if self.clip == "none" and self.clip_at is not None:
            yield BrokenRule(
                ("clip_at", "clip"),
                "optim.clip_at: has no effect while optim.clip is none; set optim.clip too",
            )


class TeacherConfig(Section):
    """Trained runs whose outputs are part of the targets (Hinton et al. 2015, "Distilling the Knowledge in a Neural
    Network").
    """

    runs: Annotated[tuple[str, ...], PATH] = ()
    """Runs; ensembles, whose members teach; or folders of runs such as `comp cv` makes, of which those teach that never
    saw this run's validation images. All networks count the same; empty: no teacher.
    Example: 'train.teacher.runs=[runs/cactus/RUN]'"""
    temperature: Annotated[float, Field(ge=0.01, le=1000)] = 1.0
    """Divides the teachers' outputs before softmax or sigmoid, 0.01 to 1000: above 1 the targets are softer. The
    student's own outputs are not divided.
    Example: train.teacher.temperature=2 'train.teacher.runs=[runs/cactus/RUN]'"""
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Weight of the teachers' mean probabilities in every target, above 0 and at most 1; the rest is the label's.
    Example: train.teacher.share=0.7 'train.teacher.runs=[runs/cactus/RUN]'"""

    def broken_rules(self) -> Iterator[BrokenRule]:
        """See `Section.broken_rules`."""
        for name in ("temperature", "share"):
            if not self.runs and getattr(self, name) != type(self).model_fields[name].default:
                yield BrokenRule((name, "runs"), f"train.teacher.{name}: has no effect without train.teacher.runs")


class TrainConfig(Section):
    """The training loop."""

    epochs: Annotated[int, Field(ge=1, le=10**6)] = 10
    """Number of epochs; ignored if `budget` is set.
    Example: train.epochs=30"""
    budget: Duration = ""
    """Wall-clock time of the training, such as `90s`, `15min` or `1.5h`; empty: use `epochs`. The number of steps that
    fit is planned from the first steps and again after every epoch (plans.json); the schedule ends with the last step,
    and the last epoch may be incomplete. Autotuning, validation and checkpoints count; opening the data and final
    scoring do not. The number of steps differs between runs.
    Example: train.budget=15min"""
    batch_size: Positive = 128
    """Images per optimizer step.
    Example: train.batch_size=256"""
    micro_batch: Annotated[int, Field(ge=2, le=10**9)] | None = None
    """Images per forward pass, at least 2. Gradients are averaged over the batch, so the step is the same, but batch
    norm sees only this many images. null: the whole batch. It is halved if memory runs out.
    Example: train.micro_batch=32"""
    nan_retries: NotNegative = 0
    """How many times a training with a non-finite loss rolls back to its last good state, at half the learning rate; 0:
    it stops. If above 0, state.pt is also written after every epoch.
    Example: train.nan_retries=2"""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Label smoothing, from 0 (off) to below 1.
    Example: train.label_smoothing=0.1"""
    loss: str = "auto"
    """Training loss: `cross_entropy`, `focal`, `bce` or `poly` for one class an image, `bce`, `focal`, `asymmetric` or
    `poly` for several; auto: cross_entropy or bce, for ordered classes `cumulative`, for numbers `mse`. Whatever the
    loss, predictions of one class an image are the softmax of the outputs (also after `bce`), and validation reports
    the log loss.
    Example: train.loss=focal"""
    loss_args: FrozenMapping = Field(default_factory=dict)
    """Arguments of the loss: focal `{gamma: 2}`, poly `{epsilon: 2}`, asymmetric `{gamma_neg: 4, gamma_pos: 1, clip:
    0.05}`, bce `{target_threshold: 0.2}` (soft targets above it count as 1).
    Example: train.loss=focal 'train.loss_args={gamma: 3}'"""
    class_weights: Literal["none", "balanced", "effective"] | FrozenMapping = "none"
    """Weights of the classes in the loss, scaled to a mean of 1 over the images of an epoch: `balanced` (inverse
    frequency), `effective` (inverse effective number of images, which grows slower than the number) or `{class:
    weight}`, where a class that is not named weighs 1; `none`: all weigh 1. With several classes an image, each class
    is weighed against its absence. Frequencies are those after `data.sampling`.
    Example: train.class_weights=balanced"""
    teacher: TeacherConfig = TeacherConfig()
    consistency: Literal["none", "jsd"] = "none"
    """`none`: off; `jsd`: three views of every image, cross-entropy on the clean view plus the Jensen-Shannon
    divergence of their predictions (AugMix). Not possible with MixUp, CutMix or augmentation in workers. A step costs
    three times as much.
    Example: train.consistency=jsd augment.policy=augmix"""
    consistency_weight: Annotated[float, Field(ge=0, le=1e6)] = 12.0
    """Weight of the divergence in the loss.
    Example: train.consistency=jsd train.consistency_weight=6"""
    sizes: dict[Positive, Annotated[int, Field(ge=8, le=4096)]] = Field(default_factory=dict)
    """Progressive resizing: epoch (from 1) -> side of the training images in pixels from this epoch on, such as
    {1: 24, 5: 32}; before the first listed epoch they keep their size. The network must accept any size; validation and
    prediction use full-size images.
    Example: 'train.sizes={1: 24, 5: 32}'"""
    select: Literal["auto", "val_metric", "val_accuracy", "val_loss", "ood_metric", "ood_accuracy"] = "auto"
    """What selects the best weights; ties go to the lower validation loss. `val_metric`: competition.metric on
    validation; `ood_metric`: the same on shifted validation, at the epochs set by competition.ood_validation.every;
    `val_accuracy`, `ood_accuracy`: accuracy there; `val_loss`: log loss on validation; auto: ood_metric if it is
    measured during training and a shifted suite is submitted, else val_metric.
    Example: train.select=val_loss"""
    average: str = "none"
    """Weight averaging, from `comp.models.averaging.AVERAGES`: ema (over steps, validated after every epoch beside the
    raw weights), swa or soup (over the last epochs, validated once). `select` chooses between averaged and raw weights;
    without a validation split the averaged weights are used.
    Example: train.average=ema"""
    ema_epochs: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    """Time constant of ema in epochs, above 0: a step's weight in the average falls to 1/e after this many epochs.
    Example: train.average=ema train.ema_epochs=2"""
    swa_epochs: Positive = 5
    """Number of last epochs that swa averages; a training that stops earlier has no average.
    Example: train.average=swa train.swa_epochs=3"""
    soup_epochs: Positive = 5
    """Number of last epochs from which soup chooses; their weights are kept in memory and in every checkpoint.
    Example: train.average=soup train.soup_epochs=3"""
    patience: Positive | None = None
    """Early stopping: epochs without an improvement of `select`; null: off.
    Example: train.patience=5"""
    min_delta: Amount = 0.0
    """Smallest improvement that counts for `patience`, in the unit of `select`.
    Example: train.min_delta=0.001 train.patience=5"""
    overfit_patience: Positive | None = None
    """Early stopping: consecutive epochs with a validation loss above its best; null: off.
    Example: train.overfit_patience=3"""
    overfit_threshold: Amount = 0.0
    """Smallest excess over the best validation loss that counts for `overfit_patience`, in nats.
    Example: train.overfit_threshold=0.05 train.overfit_patience=3"""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Training device: `cpu`, `cuda`, or `mps` (Apple's GPU); auto: a GPU if there is one.
    Example: train.device=cpu"""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the computation: `fp32`, `bf16`, or `fp16`, for older GPUs, which scales the loss; auto: timed
    on a few steps, cached for this machine (in ~/.cache/comp; delete it to time again) and recorded in the run's
    execution.json.
    Example: train.precision=bf16"""
    channels_last: Literal["auto"] | bool = "auto"
    """Whether images and weights use the channels-last memory layout; auto: timed together with precision.
    Example: train.channels_last=true"""
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """CPU threads; 0: one per core, or half if that is faster with hyper-threading, at most OMP_NUM_THREADS.
    Example: train.threads=4"""
    compile: Literal["auto"] | bool = "auto"
    """Whether to use torch.compile for training steps; auto: in trainings longer than 15 minutes, if timing shows a
    gain that exceeds the compile time. Validation and prediction are never compiled.
    Example: train.compile=false"""
    deterministic: bool = False
    """Whether CUDA may use only deterministic kernels, which are slower; operations without one are an error. The CPU
    is always deterministic.
    Example: train.deterministic=true"""
    log_norms: bool = False
    """Whether to write and plot the gradient and weight norms of every layer per epoch (norms.csv).
    Example: train.log_norms=true"""
    checkpoint_seconds: Amount = 60.0
    """Seconds between two checkpoints (state.pt); one is also written when the training is interrupted.
    Example: train.checkpoint_seconds=300"""
    keep_state: bool = False
    """Whether a complete run keeps state.pt (optimizer, averages, position). Prediction, ensembles and `model.from_run`
    do not need it.
    Example: train.keep_state=true"""

    def broken_rules(self) -> Iterator[BrokenRule]:
        """See `Section.broken_rules`."""
        for name, weight in {} if isinstance(self.class_weights, str) else self.class_weights.items():
            number = 0.0 if isinstance(weight, bool) or not isinstance(weight, int | float) else weight
            if not _LIGHTEST <= number <= _HEAVIEST:
                yield BrokenRule(
                    ("class_weights",),
                    f"train.class_weights: {name}: expected a number from {_LIGHTEST:g} to {_HEAVIEST:g}, "
                    f"found {shortened(repr(weight))}; write {{cat: 2.5}}",
                )
        if self.min_delta and self.patience is None:
            yield BrokenRule(
                ("min_delta", "patience"),
                "train.min_delta: has no effect without train.patience; set train.patience too",
            )
        if self.overfit_threshold and self.overfit_patience is None:
            yield BrokenRule(
                ("overfit_threshold", "overfit_patience"),
                "train.overfit_threshold: has no effect without train.overfit_patience; set it too",
            )
        if self.budget and self.sizes:
            yield BrokenRule(
                ("budget", "sizes"),
                "train.budget and train.sizes: a budget is planned from the time of past steps, but sizes makes later "
                "steps slower; remove one of them",
            )
