"""All checks of a config, in order, each with what it may refuse.

`check_config` needs the config alone, `check_output` the submission's path, `check_data` the open data, `check_model`
the built model. `comp config check` adds the checks of section `tune`, which live in `comp.tuning`.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from comp.augment import policies, worker_stage
from comp.config import Config, space
from comp.config.section import height_and_width
from comp.config.tasks import TASKS, resolve_metric, task
from comp.data import sources, suites
from comp.data.dataset import Dataset
from comp.data.fixes import read_fixes
from comp.inference import pool
from comp.inference.options import check_options, predict_options
from comp.inference.prior import known_shares
from comp.inference.views import check_size
from comp.models import averaging, zoo
from comp.models.classifier import Classifier
from comp.results import decisions, files, metrics, predictions, runs
from comp.results.decision_fits import declared_shares
from comp.runtime import device, memory
from comp.runtime.errors import ConfigError, UserError, unknown
from comp.submission import derive_format, rules, write
from comp.tracking import tracker
from comp.training import best_weights, imbalance, losses, optimizers, schedules
from comp.training.selection import is_validated
from comp.workflows import lineage, plugins

_ASSUMED_CLASSES = 10  # of a network whose data are not open
_BYTES_PER_ID = 80  # of a suite's row in a .npz: id as UTF-32, top1, label


def check_config(config: Config, runs_root: Path) -> None:
    """Check names, rules, ranges and disk space, also for each end of the search space; open and download nothing.

    Its plug-ins are loaded: what follows may use their rows.

    Raises:
        ConfigError: every mistake, one a line.
    """
    plugins.load(config)
    _check_alone(config, runs_root)
    for trial in space.probe_configs(config):
        try:
            _check_alone(trial, runs_root)
        except UserError as error:
            raise ConfigError(f"tune.space: {error}") from None


def _check_alone(config: Config, runs_root: Path) -> None:
    """Check a config without its search space; each comment lists what the check may refuse."""
    validated = is_validated(config)
    checks: tuple[Callable[[], object], ...] = (
        # unknown metric or task; a metric or an answer that the task does not have
        lambda: _check_competition(config),
        # unknown data source
        lambda: _check_source(config),
        # one answer for several images where a suite or shifted validation corrupts single ones
        lambda: _check_group_answer(config),
        # a fix list that is missing or contradicts itself
        lambda: config.data.fixes and read_fixes(Path(config.data.fixes)),
        # unknown optimizer, or settings that it does not have
        lambda: optimizers.check_optimizer(config.optim),
        # averaging that never starts, or selection between averages without validation
        lambda: averaging.check_averaging(config.train, validated=validated),
        # a device that this machine lacks, or a precision that the device lacks
        lambda: device.check_precision(config.train.precision, device.choose_device(config.train.device)),
        # an unknown loss, one that the task does not have, or arguments out of range
        lambda: losses.check_loss(config.train, config.competition.task),
        # class weights without a class
        lambda: imbalance.check_named_weights(config),
        # unknown policy or op; consistency that cannot be computed; what the competition's rules forbid
        lambda: _check_augmentation(config),
        # prediction options that the task does not define, or shares that the competition does not declare
        lambda: _check_prediction(config),
        # unknown or banned network; arguments, frozen blocks or an input size that it cannot take
        lambda: _check_model(config),
        # a teacher that is no complete run
        lambda: lineage.check_named(config),
        # unknown corruptions in competition.ood_validation
        lambda: suites.shifted_distortions(config.competition.ood_validation),
        # selection or early stopping by a split that is never measured
        lambda: best_weights.check_validation(config),
        # online tracking without a W&B login
        lambda: tracker.check_login(config.track),
        # a runs folder that cannot be written, or too little disk space
        lambda: _check_disk(config, runs_root),
    )
    mistakes: list[UserError] = []
    for check in checks:
        try:
            check()
        except UserError as error:
            mistakes.append(error)
    if len(mistakes) == 1:
        raise mistakes[0]
    if mistakes:
        raise ConfigError("\n  ".join(dict.fromkeys(str(error) for error in mistakes)))


def _check_competition(config: Config) -> None:
    section = config.competition
    if section.metric != "auto":
        metrics.metric(section.metric)
    if section.task != "auto":
        resolve_metric(section.metric, task(section.task))
    derive_format.check_answer(section.submission.answer, section.task, section.metric)
    balances = {
        "data.sampling": config.data.sampling != "natural",
        "train.class_weights": config.train.class_weights != "none",
    }
    if section.test_shares and any(balances.values()):
        key = next(key for key, differs in balances.items() if differs)
        raise ConfigError(
            f"competition.test_shares: expects a network that was trained on the classes' natural shares, and {key} "
            "changes them; remove one of the two"
        )
    if section.task != "auto":
        _check_decide(config, resolve_metric(section.metric, task(section.task)), section.task)


def _check_decide(config: Config, metric: str, task_name: str) -> None:
    decisions.check(
        config.predict.decide,
        metric,
        TASKS[task_name],
        validated=is_validated(config),
        shares=bool(config.competition.test_shares),
    )


def _check_source(config: Config) -> None:
    if config.data.source not in sources.SOURCES:
        raise ConfigError(f"data.source: {unknown('source', config.data.source, sources.SOURCES)}")


def _check_group_answer(config: Config) -> None:
    answer, competition = config.data.group_answer, config.competition
    if answer == "none":
        return
    if competition.suite.source not in ("test", "none"):
        raise ConfigError(
            f"data.group_answer: {answer} gives one answer a group of images, and competition.suite.source: "
            f"{competition.suite.source} asks for one an image; set the suite to test or none, or group_answer to none"
        )
    if competition.ood_validation.severities:
        raise ConfigError(
            f"competition.ood_validation.severities: shifted validation scores single images, and data.group_answer: "
            f"{answer} groups of them; set competition.ood_validation.severities=[]"
        )


def _check_prediction(config: Config, found_task: str = "single_label") -> None:
    """Check prediction options; where the task is found in the data, `found_task` is one that defines all of them."""
    chosen = config.competition.task
    check_options(predict_options(config.predict), config.competition, chosen if chosen in TASKS else found_task)


def _check_augmentation(config: Config) -> None:
    if config.augment.engine == "per_image":
        raise ConfigError(
            "augment.engine: per_image was removed: policies run on whole batches on the training device; leave the "
            "key out, and name albumentations transforms in augment.albumentations"
        )
    policy = policies.resolve(config.augment.policy, config.augment.ops, config.augment.albumentations)
    _check_delays(config)
    losses.check_consistency(config)
    worker_stage.build(policy, config.seed)
    rules.check_rules(
        config.competition.rules,
        pretrained=_has_external_weights(config),
        imitated=policy.imitates,
        options=predict_options(config.predict).to_json(),
        pseudo=bool(config.data.pseudo.run),
    )


def _check_delays(config: Config) -> None:
    """Refuse delays of policies that the config has not, or that cannot start later."""
    section, consistency = config.augment, config.train.consistency
    names = (section.policy,) if isinstance(section.policy, str) else section.policy
    for name in section.delays:
        if name not in names:
            raise ConfigError(f"augment.delays: {unknown('policy of augment.policy', name, names)}")
        if policies.resolve(name).crop:
            raise ConfigError(f"augment.delays: {name} crops images while they are read, in every epoch; leave it out")
    if section.delays and consistency != "none":
        raise ConfigError(
            f"augment.delays: train.consistency={consistency} compares augmented views in every epoch; leave one "
            "of them out"
        )


def _has_external_weights(config: Config) -> bool:
    """Return whether weights come from outside the competition, directly or through earlier runs."""
    if not config.model.from_run:
        return bool(config.model.pretrained)
    source = runs.open_run(Path(config.model.from_run)).config()
    return source.competition.name != config.competition.name or _has_external_weights(source)


def _check_model(config: Config) -> None:
    """Build the network without memory for its weights, for images of the size that the config alone shows."""
    section = config.model
    zoo.check_family_allowed(section.name, config.competition.rules.banned_families)
    shape = (3, *height_and_width(section.input_size or zoo.published_side(section.name)))
    model = zoo.build_on_meta(section, classes=_ASSUMED_CLASSES, image_shape=shape)
    _check_memory(section.name, model)
    optimizers.for_model(model, config.optim)
    if section.input_size:
        _check_batch_norm(config, model, shape, images=2)


def _check_memory(name: str, model: Classifier) -> None:
    """Refuse weights that this machine cannot hold; `model` is a blueprint."""
    needed = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    free = memory.free_host_bytes()
    if needed > free:
        raise ConfigError(
            f"model.name: the weights of {name} need {needed / 1e9:,.1f} GB, found {free / 1e9:,.1f} GB of free "
            "memory; choose a smaller network, or smaller model.args or model.timm"
        )


def _check_batch_norm(config: Config, model: Classifier, image_shape: tuple[int, int, int], images: int) -> None:
    """Refuse steps on one image if batch norm cannot learn from it; `model` is a blueprint."""
    batch = min(config.train.batch_size, images)
    if batch > 1 or config.train.consistency != "none" or zoo.supports_single_images(model, image_shape):
        return
    if images == 1:
        raise ConfigError(f"data: one training image, but batch norm of {config.model.name} needs two or more")
    raise ConfigError(
        f"train.batch_size: batch norm of {config.model.name} needs two or more images at a time, found 1; set it to "
        "2 or more"
    )


def _check_disk(config: Config, runs_root: Path) -> None:
    """Fail early if disk space is insufficient for the predictions."""
    suite = config.competition.suite
    rows = suite.files * suite.severities * suite.images_per_block
    needed = rows * (_BYTES_PER_ID + 2 * 100) + (100 << 20)  # float16 logits of up to 100 classes, and some weights
    if reason := files.find_write_problem(runs_root):
        raise ConfigError(f"{runs_root}: {reason}; choose another folder with --runs")
    existing = next(path for path in (runs_root.absolute(), *runs_root.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ConfigError(f"{runs_root}: needs about {needed >> 20:,} MiB, found {free >> 20:,} MiB free; make room")


def check_output(config: Config, output: Path | None, *, force: bool) -> None:
    """Check that a submission can be written, before training.

    Args:
        config: of the run that will be submitted.
        output: the CSV; None: a free name in `submissions/`.
        force: whether an existing file may be replaced.

    Raises:
        ConfigError: an output is named, but nothing will be submitted.
        SubmissionError: the name is taken or cannot be written.
    """
    if config.competition.suite.source != "none":
        path = output or write.free_path(write.FOLDER, config.competition.name)
        write.check_output_path(path, force=force or output is None)
    elif output is not None:
        raise ConfigError(f"-o {output}: competition.suite.source is none, so nothing is submitted; leave it out")


def check_data(config: Config, dataset: Dataset, *, whole: bool = True) -> None:
    """Check a config against its open data; `lineage.check_teachers` checks what other runs bring in.

    Args:
        config: checked by `check_config`.
        dataset: its data.
        whole: whether these are all of them; the few images of a rehearsal may lack a class.

    Raises:
        ConfigError: naming the key, and what the data allow.
    """
    competition = dataset.competition
    channels, height, width = competition.image_shape
    policy = policies.resolve(config.augment.policy, config.augment.ops, config.augment.albumentations)
    # prediction options that the task does not define
    options = predict_options(config.predict)
    _check_prediction(config, competition.task)
    # losses that the task does not define, unknown names in class weights, or a metric of ordered classes without order
    _check_task(config, dataset)
    # decisions that do not serve the metric, or shares of other classes
    _check_decide(config, competition.metric, competition.task)
    counts = dataset.train.class_counts(len(competition.classes)).tolist()
    declared_shares(config.competition.test_shares, competition.classes, counts)
    if options.prior != "none":
        known_shares(options.prior, competition.classes, counts)
    # ops that need colour
    policies.check_channels(config.augment.policy, config.augment.ops, channels)
    # albumentations transforms that change the image's shape
    worker_stage.check_image_shape(policy, competition.image_shape)
    # corruptions that need colour
    suites.check_channels(config.competition, channels, validated=dataset.val is not None)
    # views that need square images
    check_size(config.predict.views, height, width)
    # blocks to pool that are none, or too small
    if whole and options.pool != "none":
        pool.check_blocks(dataset.suite)
    # sampling and class weights with nothing to balance, or a class without images
    if whole:
        imbalance.check_imbalance(config, dataset)


def _check_task(config: Config, dataset: Dataset) -> None:
    competition = dataset.competition
    losses.check_loss(config.train, competition.task)
    imbalance.check_class_names(config, competition.classes)
    if config.train.consistency != "none" and not TASKS[competition.task].consistency:
        raise ConfigError(f"train.consistency: {config.train.consistency} is not defined for task {competition.task}")
    row = TASKS[competition.task]
    if row.numeric and config.train.label_smoothing:
        raise ConfigError(f"train.label_smoothing: {row.name} has no classes to smooth over; set it to 0")
    if "accuracy" not in row.reported and config.train.select.endswith("accuracy"):
        raise ConfigError(f"train.select: {config.train.select} is not measured in task {row.name}; leave it at auto")
    if row.numeric:
        labels = dataset.train.labels
        if metrics.metric(competition.metric).whole and labels is not None and (labels % 1).any():
            raise ConfigError(
                f"competition.metric: {competition.metric} compares whole numbers, and the labels have fractions"
            )
        return
    ordered = competition.numbered or config.data.classes or predictions.class_values(competition.classes) is not None
    if (row.ordered or metrics.metric(competition.metric).ordered_classes) and not ordered:
        key = "task" if row.ordered else "metric"
        raise ConfigError(
            f"competition.{key}: {getattr(competition, key)} compares classes by their order, and these are names; "
            "give their order, lowest first: data.classes=[...]"
        )


def check_model(config: Config, dataset: Dataset, model: Classifier) -> None:
    """Check that a built model can take its first step on these data.

    Raises:
        UserError: the optimizer's settings name blocks that the network lacks, it cannot take a size of
            `train.sizes`, or its batch norm cannot learn from one image at a time.
    """
    shape = dataset.competition.image_shape
    optimizers.for_model(model, config.optim)
    schedules.check_sizes(model, config.train.sizes, shape)
    blueprint = zoo.build_on_meta(config.model, classes=len(dataset.competition.classes), image_shape=shape)
    _check_batch_norm(config, blueprint, shape, images=len(dataset.train))
