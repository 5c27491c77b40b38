"""Every knob, typed and documented once: `load` a YAML file with overrides, `dump` it back. No torch here.

This is the first of two phases: shape and types. Names that a registry answers for (models, policies, metrics), rules
and disk space are checked by `comp.pipeline.check`. A config never changes after loading and nothing writes a derived
value back into it.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from comp.errors import ConfigError, nearest
from comp.yaml_files import kind, merge, parse_override, read_yaml

# Fields that hold the user's own mapping; the proxy keeps it as frozen as the rest of the tree.
FrozenMapping = Annotated[Mapping[str, JsonValue], AfterValidator(lambda value: MappingProxyType(dict(value))),
                          PlainSerializer(dict)]  # fmt: skip
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}


def seconds_of(duration: str) -> float:
    """Return the seconds of a duration as configs spell it: `90s`, `15min`, `1.5h`.

    Raises:
        ValueError: spelled otherwise, or no time at all.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|min|h)", duration)
    seconds = float(found[1]) * _SECONDS[found[2]] if found else 0.0
    if not seconds:
        raise PydanticCustomError("duration", "a time such as 90s, 15min or 1.5h")
    return seconds


def _check_duration(text: str) -> str:
    if text:
        seconds_of(text)
    return text


class Section(BaseModel):
    """A part of the config: frozen, and every key must be known."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class SuiteConfig(Section):
    """What is predicted for the submission: blocks of distortion x severity, or the test images."""

    source: Literal["corrupt_test", "distortion_files", "test", "none"] = "corrupt_test"
    """`corrupt_test`: our 19 corruptions of the labelled test split; `distortion_files`: a folder of
    `distortionNN.npy`, severities stacked; `test`: the test images themselves, in the order and with the columns of
    the sample submission; `none`: no suite, nothing to submit."""
    path: str = ""
    """Folder of the distortion files, relative to `data.root`."""
    base_address: str = ""
    """Where missing distortion files are downloaded from; empty: never."""
    files: Positive = 19
    """How many distortion files there are, numbered from 00."""
    images_per_block: Annotated[int, Field(ge=0)] = 0
    """Images in each (distortion, severity) block; for `corrupt_test` the first this many test images, 0 for all."""
    severities: Annotated[int, Field(ge=1, le=5)] = 5
    """Severities stacked in each file, or generated: 1 up to this."""


class OODValidationConfig(Section):
    """A shifted copy of the validation split: held-out training images under generated corruptions."""

    severities: tuple[Annotated[int, Field(ge=1, le=5)], ...] = (1, 3, 5)
    """Which severities are generated; empty: no shifted validation."""
    per_block: Positive = 500
    """Images in each (corruption, severity) block, at most the validation split's size."""
    every: Literal["end"] | Positive = "end"
    """`end`: once, with the best weights; N: also every N epochs, and after the last one."""
    leave_out: tuple[str, ...] = ()
    """Corruptions, or families of them (noise, blur, weather, digital), that are not generated: those that the
    augmentation imitates, say, so that the score tells of shifts that training has not seen."""


class RulesConfig(Section):
    """What the competition forbids; checked before training."""

    banned_families: tuple[str, ...] = ()
    """Kinds (`transformer`: anything with self-attention, hybrids too) or timm families (`resnet`) that may not be
    used; `comp models` shows both. A model whose kind is unknown is refused where anything is banned."""
    external_weights: bool = True
    """Whether pretrained weights are allowed."""
    test_like_augmentation: bool = True
    """Whether augmentation may imitate corruptions of the suite."""
    transductive: bool = True
    """Whether a prediction may adapt to the images that it predicts."""


class CompetitionConfig(Section):
    """What is competed in."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "unnamed"
    """Names the folder under `runs/` and the default submission file."""
    metric: str = "accuracy"
    """What submissions are scored by: a row of `comp.metrics.METRICS`."""
    suite: SuiteConfig = SuiteConfig()
    ood_validation: OODValidationConfig = OODValidationConfig()
    rules: RulesConfig = RulesConfig()


class CSVConfig(Section):
    """Where a Kaggle set's files lie below `data.root`, and which columns its tables have."""

    table: str = "train.csv"
    """Ids and labels of the training images."""
    train: str = "train"
    """Folder of the training images."""
    test: str = "test"
    """Folder of the test images; where there is none, nothing but validation can be predicted."""
    sample: str = "sample_submission.csv"
    """What a submission must look like: columns, ids in order, how labels are written."""
    id_column: str = ""
    """Of `table`; empty: the sample's first column, else a usual name (`id`, `image_id`, `filename`, ...)."""
    label_column: str = ""
    """Of `table`; empty: the sample's, else a usual name (`label`, `class`, `target`, ...), else the only other one."""
    group_column: str = ""
    """Of `table`: images with the same text there stay together in a split; wants `data.groups: column`."""


class DataConfig(Section):
    """Where images and labels come from and how they are split."""

    source: str = "digits"
    """A row of `comp.data.sources.SOURCES`."""
    root: str = "data"
    """Folder of the datasets; relative paths start at the working directory."""
    labels: Literal["fine", "coarse"] = "fine"
    """Of cifar100: its 100 classes, or their 20 superclasses."""
    csv: CSVConfig = CSVConfig()
    image_size: Annotated[int, Field(ge=8, le=4096)] | None = None
    """Side in pixels that image files are brought to; null: they must all have one size, which is kept. Arrays keep
    their size (`model.stem: resize` enlarges them)."""
    skip_bad: bool = False
    """Whether training image files that cannot be read are left out, and counted; false: they are refused."""
    resize: Literal["crop", "stretch"] = "crop"
    """How image files of another shape are brought to `image_size`: the middle square, or everything, bent."""
    loading: Literal["auto", "resident", "streamed"] = "auto"
    """`resident`: training images lie decoded on the training device; `streamed`: workers bring them batch by batch;
    auto: resident where they take at most 4 GiB and a quarter of the free memory. The images are the same."""
    workers: Literal["auto"] | Annotated[int, Field(ge=0, le=64)] = "auto"
    """Processes that read streamed images; auto: timed for training, and one a core, at most 8, elsewhere; 0: the
    process itself."""
    validation: Annotated[float, Field(gt=0, lt=1)] | Positive | Literal["none", "official"] = 0.1
    """Held out of the training images: a fraction, a count, or `none` (train on everything); `official`: the source's
    own validation split. Not looked at where `folds` is set."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """k-fold: the training images are cut into this many parts, and part `fold` is the validation split."""
    fold: Annotated[int, Field(ge=0)] = 0
    """Which part validates, from 0."""
    stratify: bool = True
    """Whether every held-out part has the classes' shares of the whole; false: plain random."""
    groups: Literal["none", "duplicates", "column"] = "none"
    """What stays together in a split: nothing, images with equal pixels, or rows of one `csv.group_column`."""
    test: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Fraction held out as the labelled test split where the source has none of its own (digits)."""
    split_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of the held-out splits alone, so that runs with other seeds stay comparable."""
    download: bool = True
    """Whether missing files may be downloaded."""

    @model_validator(mode="after")
    def _folds_are_whole(self) -> "DataConfig":
        if self.folds is not None and self.fold >= self.folds:
            raise ValueError(f"fold: expected 0 to {self.folds - 1} of {self.folds} folds, found {self.fold}")
        if self.folds is not None and isinstance(self.validation, str):
            raise ValueError(f"folds and validation: {self.validation} contradict each other; leave one of them out")
        if (self.groups == "column") != bool(self.csv.group_column):
            raise ValueError("groups: column and csv.group_column go together")
        return self


class AugmentConfig(Section):
    """What happens to training images."""

    engine: Literal["auto", "per_batch", "per_image"] = "per_batch"
    """`per_batch`: on the training device, a batch at a time; `per_image`: albumentations, in loader workers; `auto`:
    the faster one on this machine with this policy, timed, and recorded because the two draw differently."""
    policy: str | tuple[str, ...] = "none"
    """A row of `comp.augment.policies.POLICIES`, or several, applied in turn."""
    ops: tuple[FrozenMapping, ...] = ()
    """Free ops after the policy, in turn: `{name: brightness, p: 0.5, magnitude: [-0.3, 0.3]}` for a row of
    `comp.augment.ops.OPS`; for `per_image` also any transform of albumentations, `{name: GaussNoise, p: 0.2, ...}`."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """MixUp's Beta(alpha, alpha); 0 is off."""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """CutMix's Beta(alpha, alpha); 0 is off."""
    switch_probability: Fraction = 0.5
    """A sample's probability of CutMix where both are on."""
    mix_off_epochs: Annotated[int, Field(ge=0)] = 0
    """How many last epochs train without MixUp and CutMix."""


class ModelConfig(Section):
    """Which network, how it is adapted, where its first weights come from, and which of them are trained."""

    name: str = "simple_cnn"
    """A network of ours or any timm model, with or without the tag of its weights (`resnet18.a1_in1k`)."""
    stem: Literal["stock", "cifar", "resize"] = "stock"
    """`cifar` fits a timm model's first layers to small images; `resize` keeps them and enlarges the images."""
    input_size: Annotated[int, Field(ge=8)] | None = None
    """Image side in pixels that `stem: resize` brings images to, inside the model."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How `stem: resize` enlarges."""
    pretrained: bool | str = False
    """true: timm's weights, from `data.root`/weights/NAME.safetensors or the hub; a path: a .safetensors or .pth
    file."""
    from_run: str = ""
    """A trained run's folder whose best weights are the first ones; a head for other classes starts fresh."""
    sha256: Annotated[str, Field(pattern=r"^([0-9a-fA-F]{8,64})?$")] = ""
    """Hash the weights file must have, or its first 8 digits or more; empty: any."""
    drop_rate: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Dropout before the classifier; null: the network's own."""
    drop_path_rate: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Stochastic depth of a timm model; null: the network's own."""
    timm: FrozenMapping = Field(default_factory=dict)
    """Arguments of timm's factory that are not fields here (`drop_block_rate`, `act_layer`, ...)."""
    args: FrozenMapping = Field(default_factory=dict)
    """Arguments of our own networks (depth, hidden, ...)."""
    normalize: (
        Literal["auto", "dataset", "pretrained", "per_image"] | dict[Literal["mean", "std"], tuple[float, ...]]
    ) = "auto"
    """What the first layer subtracts and divides by; auto: the weights' own if pretrained, else the dataset's;
    per_image: the dataset's, and then every image's own, which takes haze and weak contrast out."""
    freeze: tuple[str, ...] = ()
    """Blocks that are not trained: names or globs of the network's modules and parameters, or `all_but_head`."""
    unfreeze: dict[Annotated[int, Field(ge=1)], tuple[str, ...]] = Field(default_factory=dict)
    """Epoch (from 1) -> frozen blocks that are trained from it on; names or globs, `*` for all."""
    freeze_bn_stats: bool = True
    """Whether batch norm in frozen blocks keeps its statistics; false: they move."""
    unfreeze_bn: bool = False
    """Whether batch norm in frozen blocks is trained after all: statistics, scale and shift."""

    @model_validator(mode="after")
    def _belongs_together(self) -> "ModelConfig":
        if (self.stem == "resize") != (self.input_size is not None):
            raise ValueError("stem: resize and input_size go together, such as {stem: resize, input_size: 64}")
        if self.from_run and self.pretrained:
            raise ValueError("from_run and pretrained both say where the first weights come from; keep one")
        if not (self.pretrained or self.from_run) and (self.sha256 or self.normalize == "pretrained"):
            raise ValueError("sha256 and normalize: pretrained are about weights; they need model.pretrained")
        return self


class LookaheadConfig(Section):
    """Slow weights that follow the optimizer's (Zhang et al. 2019, "Lookahead Optimizer")."""

    k: Annotated[int, Field(ge=0)] = 0
    """Steps between two meetings of fast and slow weights, the paper's 5 to 10; 0: no slow weights."""
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.5
    """How far the slow weights go towards the fast ones, which then start from there."""


class OptimConfig(Section):
    """Optimizer and learning rate."""

    name: str = "adamw"
    """A row of `comp.training.optim.OPTIMIZERS`, or a name of timm's factory (`lion`, `lamb`, `nadamw`, ...)."""
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

    @model_validator(mode="after")
    def _limit_belongs_to_clipping(self) -> "OptimConfig":
        if self.clip == "none" and self.clip_at is not None:
            raise ValueError("clip_at: says where gradients are clipped, and clip is none; set clip too")
        return self


class TrainConfig(Section):
    """The loop."""

    epochs: Positive = 10
    """Whole epochs; not looked at where `budget` is set."""
    budget: Annotated[str, AfterValidator(_check_duration)] = ""
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
    select: Literal["val_accuracy", "val_loss", "val_metric", "ood_accuracy"] = "val_accuracy"
    """What the best weights are chosen by; `val_metric` is competition.metric, and `ood_accuracy` chooses among the
    epochs that competition.ood_validation.every measures."""
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
    """auto: timed on a few steps and recorded in the run's execution.json; fp16, for older GPUs, scales the loss."""
    channels_last: Literal["auto"] | bool = "auto"
    """Memory layout of images and weights; auto: timed together with precision."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads; 0: one a core, or half of them where hyper-threads make that faster."""
    compile: Literal["auto"] | bool = "auto"
    """Whether training steps run through torch.compile; auto: in trainings of more than 15 minutes, where they win by
    timing with the minutes it takes to build counted in. Validation and prediction are never compiled."""
    deterministic: bool = False
    """Whether CUDA may use only kernels that give the same bits every time, which are slower, and refuses what has
    none. The CPU gives the same bits in any case."""
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 60.0
    """state.pt is written at the first step or epoch end after this many seconds, and when interrupted."""

    @model_validator(mode="after")
    def _limits_belong_to_a_patience(self) -> "TrainConfig":
        if self.min_delta and self.patience is None:
            raise ValueError("min_delta: says what patience counts as better, and there is none; set patience too")
        if self.overfit_threshold and self.overfit_patience is None:
            raise ValueError("overfit_threshold: is overfit_patience's, and there is none; set overfit_patience too")
        return self

    @model_validator(mode="after")
    def _a_budget_knows_what_epochs_cost(self) -> "TrainConfig":
        if self.budget and self.sizes:
            raise ValueError("budget and sizes: a budget plans by the steps it saw, and sizes makes later ones dearer")
        return self


class PredictConfig(Section):
    """Inference: what the run's own test and suite are predicted with; validation during training stays plain."""

    batch_size: Positive = 500
    views: str = "none"
    """A row of `comp.inference.views.VIEWS`: each image is seen in several ways and the logits are averaged."""
    views_for: str = "all"
    """`all`, or `uncertain:0.25`: only the least confident quarter of each block gets more than the plain view."""
    adapt: Literal["none", "bn", "tent"] = "none"
    """`bn`: batch-norm statistics of the images at hand, blended with those of training; `tent`: less entropy on them
    too, by the normalisation layers' scales and shifts. Both are transductive: see competition.rules."""
    adapt_per: Literal["block", "file", "stream"] = "block"
    """What is adapted to at once: a block, a distortion in all its severities, or the whole suite."""
    alpha: Fraction = 0.7
    """Share of the images' own batch-norm statistics in the blend with those of training."""


class Config(Section):
    """The whole tree. A YAML file holds only departures from these defaults."""

    competition: CompetitionConfig = CompetitionConfig()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = Field(default_factory=ModelConfig)
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    predict: PredictConfig = PredictConfig()
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of every draw but the splits: initial weights, order, augmentation."""

    @model_validator(mode="after")
    def _suite_needs_its_folder(self) -> "Config":
        if self.competition.suite.source == "distortion_files" and not self.competition.suite.path:
            raise ValueError("competition.suite.path: a suite of distortion_files needs its folder")
        return self


def load(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Return the config of a YAML file with `key.path=value` overrides laid on it.

    Raises:
        ConfigError: naming file, key, what was expected and found, and the nearest known key.
    """
    values = read_yaml(Path(path))
    for text in overrides:
        tree = parse_override(text)
        _check_keys(tree, Config, f"override '{text}'")
        values = merge(values, tree)
    return from_mapping(values, str(path), overrides)


def from_mapping(values: Mapping[str, Any], where: str, overrides: Sequence[str] = ()) -> Config:
    """Return the config of plain values; `where` names their origin in messages.

    Raises:
        ConfigError: as `load`.
    """
    try:
        text = json.dumps(values)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from None
    try:
        # JSON mode with strict types: a list may be a tuple, but "3" is not 3.
        return Config.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise ConfigError(_explain(error, values, where, overrides)) from None


def dump(config: Config) -> str:
    """Return the resolved config as YAML; `load` of it gives an equal config."""
    values = config.model_dump(mode="json")
    # PyYAML writes line separators (U+0085, U+2028) as they are and then reads them as line ends.
    plain = json.dumps(values, ensure_ascii=False).isprintable()
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=plain, width=120)


def fingerprint(config: Config) -> str:
    """Return a hash of the resolved config: 16 hex digits of SHA-256."""
    canonical = json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def schema() -> dict[str, Any]:
    """Return the JSON schema of a config file, for editors."""
    tree = Config.model_json_schema()
    tree["properties"]["extends"] = {"type": "string", "description": "a YAML file that this one departs from"}
    return tree


def _section(model: type[BaseModel], keys: Iterable[Any]) -> type[BaseModel] | None:
    """Return the section that a path of keys leads to, None where it leaves the sections."""
    for key in keys:
        field = model.model_fields.get(str(key))
        inner = field.annotation if field else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return None
        model = inner
    return model


def _paths(model: type[BaseModel], prefix: str = "") -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += _paths(inner, f"{prefix}{name}.")
        else:
            found.append(f"{prefix}{name}")
    return found


def _unknown_key(keys: Sequence[Any], where: str) -> str:
    name, section = str(keys[-1]), _section(Config, keys[:-1])
    known = list(section.model_fields) if section else []
    near = nearest(name, known)
    if not near:  # the key may stand one section off: epochs -> train.epochs
        elsewhere = [path for path in _paths(Config) if path.rsplit(".", 1)[-1] == name]
        near = f" (did you mean '{elsewhere[0]}'?)" if elsewhere else ""
    dotted = ".".join(str(key) for key in keys)
    return f"{where}: unknown key '{dotted}'{near}; known here: {', '.join(known)}"


def _check_keys(tree: Mapping[str, Any], model: type[BaseModel], where: str, path: tuple[str, ...] = ()) -> None:
    """Check an override's own keys first, so that the message blames the override and not the file."""
    for key, value in tree.items():
        if key not in model.model_fields:
            raise ConfigError(_unknown_key((*path, key), where))
        inner = _section(model, [key])
        if inner is not None and isinstance(value, Mapping):
            _check_keys(value, inner, where, (*path, key))


def _lookup(values: Any, keys: Iterable[Any]) -> Any:
    for key in keys:
        try:
            values = values[key]
        except (KeyError, IndexError, TypeError):
            return None
    return values


def _explain(error: ValidationError, values: Mapping[str, Any], where: str, overrides: Sequence[str]) -> str:
    """Return one message for the first mistake, and how many more there are."""
    details = error.errors(include_url=False)
    first = details[0]
    # Union branches append their own name to the path; the value's own path is its longest part that exists.
    keys: list[Any] = []
    for key in first["loc"]:
        if _section(Config, keys) is None and _lookup(values, [*keys, key]) is None:
            break
        keys.append(key)
    dotted = ".".join(str(key) for key in keys)
    if any(text.partition("=")[0].strip() == dotted for text in overrides):
        where = f"override '{dotted}'"
    if first["type"] == "extra_forbidden":
        message = _unknown_key(keys, where)
    elif not keys:
        message = f"{where}: {first['msg'].removeprefix('Value error, ')}"
    else:
        same = [d for d in details if tuple(d["loc"][: len(keys)]) == tuple(keys)]
        expected = " or ".join(dict.fromkeys(_expected(d) for d in same))
        message = f"{where}: {dotted}: expected {expected}, found {kind(_lookup(values, keys))}"
    others = len({tuple(d["loc"][: max(1, len(keys))]) for d in details}) - 1
    return f"{message} (and {others} more to mend)" if others else message


_SECTION = "a section of `key: value` lines"
_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "model_type": _SECTION,
    "dict_type": _SECTION,
    "mapping_type": _SECTION,
    "literal_error": "{expected}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "string_pattern_mismatch": "letters, digits, '.', '_' and '-', starting with a letter or digit",
}


def _expected(detail: Any) -> str:
    form = _EXPECTED.get(detail["type"])
    return form.format(**detail.get("ctx", {})) if form else str(detail["msg"])
