"""All checks of a config, in order, each with what it may refuse; and what only the data show."""

import shutil
from collections.abc import Callable
from pathlib import Path

from comp.augment import policies, worker_stage
from comp.augment.ops import Policy
from comp.config import Config, space
from comp.config.section import height_and_width
from comp.config.tasks import TASKS, metric_name, task
from comp.data import sources, suites
from comp.data.dataset import Dataset
from comp.inference.options import check_task, predict_options
from comp.inference.views import check_size
from comp.models import averaging, zoo
from comp.models.classifier import Classifier
from comp.results import class_names, metrics, runs
from comp.runtime import device
from comp.runtime.errors import ConfigError, UserError, unknown
from comp.submission import derive_format, rules, samples, write
from comp.tracking import login
from comp.training import consistency, optimizers, validation

_SHOWN_HEADER = 80  # characters of a header in a note


_ANY_CLASSES = 10  # of a network whose data are not opened yet


_BYTES_PER_ID = 80  # of a suite's row in a .npz: id as UTF-32, top1, label


def check_config(config: Config, runs_root: Path) -> None:
    """Check what the first phase could not: names, rules, ranges, disk space. Nothing is opened or downloaded.

    Raises:
        ConfigError: what is unknown, forbidden or too large: all of it, a line each.
    """
    _check_one(config, runs_root)
    for trial in space.probes(config):
        try:
            _check_one(trial, runs_root)
        except UserError as error:
            raise ConfigError(f"tune.space: {error}") from None


def _check_one(config: Config, runs_root: Path) -> None:
    """Check a config as `check` does, its search space aside."""
    validated = config.data.validation != "none" or config.data.folds is not None
    _all_of(
        lambda: _check_competition(config),
        lambda: _check_source(config),
        lambda: optimizers.check_optimizer(config.optim),
        lambda: averaging.check_averaging(config.train, validated=validated),
        lambda: device.check_precision(config.train.precision, device.choose_device(config.train.device)),
        lambda: _check_augmentation(config),
        lambda: _check_model(config),
        lambda: suites.shifted_distortions(config.competition.ood_validation),
        lambda: validation.check_validation(config),
        lambda: login.check_login(config.track),
        lambda: _check_room(config, runs_root),
    )


def _all_of(*checks: Callable[[], object]) -> None:
    """Make every check, and refuse what they refuse in one message, each mistake once."""
    wrong: list[UserError] = []
    for made in checks:
        try:
            made()
        except UserError as error:
            wrong.append(error)
    if len(wrong) == 1:
        raise wrong[0]
    if wrong:
        raise ConfigError("\n  ".join(dict.fromkeys(str(error) for error in wrong)))


def _check_competition(config: Config) -> None:
    section = config.competition
    if section.metric != "auto":
        metrics.metric(section.metric)
    if section.task != "auto":
        metric_name(section.metric, task(section.task))
    derive_format.check_answer(section.submission.answer, section.task, section.metric)


def _check_source(config: Config) -> None:
    if config.data.source not in sources.SOURCES:
        raise ConfigError(f"data.source: {unknown('source', config.data.source, sources.SOURCES)}")


def _check_augmentation(config: Config) -> None:
    if config.augment.engine == "per_image":
        raise ConfigError(
            "augment.engine: per_image is gone: policies run on whole batches on the training device; leave the key "
            "out, and name transforms of albumentations in augment.albumentations"
        )
    policy = _policy(config)
    consistency.check_consistency(config)
    worker_stage.build(policy, config.seed)
    rules.check_rules(
        config.competition.rules, pretrained=_has_external_weights(config), imitated=policy.imitates,
        adapt=predict_options(config.predict).adapt,
    )  # fmt: skip


def _policy(config: Config) -> Policy:
    return policies.resolve(config.augment.policy, config.augment.ops, config.augment.albumentations)


def _check_model(config: Config) -> None:
    """Refuse a network that cannot be built or trained as asked, of whatever the config alone tells of its images."""
    section = config.model
    zoo.check_family_allowed(section.name, config.competition.rules.banned_families)
    shape = (3, *height_and_width(section.input_size or zoo.published_side(section.name)))
    model = zoo.build_on_meta(section, classes=_ANY_CLASSES, image_shape=shape)
    optimizers.for_model(model, config.optim)
    if section.input_size:
        _demand_pairs(config, model, shape, images=2)


def _demand_pairs(config: Config, model: Classifier, image_shape: tuple[int, int, int], images: int) -> None:
    """Refuse steps of one image where batch norm could not learn from it; `model` is a blueprint."""
    batch = min(config.train.batch_size, images)
    if batch > 1 or config.train.consistency != "none" or zoo.supports_single_images(model, image_shape):
        return
    if images == 1:
        raise ConfigError(f"data: one training image, and batch norm of {config.model.name} learns from two or more")
    raise ConfigError(
        f"train.batch_size: batch norm of {config.model.name} learns from two images or more at a time, found 1; set "
        "it to 2 or more"
    )


def _has_external_weights(config: Config) -> bool:
    """Tell whether weights come from outside the competition, by way of earlier runs too."""
    if not config.model.from_run:
        return bool(config.model.pretrained)
    source = runs.open_run(Path(config.model.from_run)).config()
    return source.competition.name != config.competition.name or _has_external_weights(source)


def _check_room(config: Config, runs_root: Path) -> None:
    """Refuse a run whose predictions would not fit: a night's work should not end at a full disk."""
    suite = config.competition.suite
    rows = suite.files * suite.severities * suite.images_per_block
    needed = rows * (_BYTES_PER_ID + 2 * 100) + (100 << 20)  # float16 logits of up to 100 classes, and some weights
    if reason := runs.unwritable(runs_root):
        raise ConfigError(f"{runs_root}: {reason}; choose another folder with --runs")
    existing = next(path for path in (runs_root.absolute(), *runs_root.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ConfigError(f"{runs_root}: needs about {needed >> 20:,} MiB, found {free >> 20:,} MiB free; make room")


def check_output(config: Config, output: Path | None, *, force: bool) -> None:
    """Refuse a submission that could not be written, before the hours that end there.

    Args:
        config: what will be submitted.
        output: the CSV; None: a free name in `submissions/`.
        force: whether it may replace one.

    Raises:
        ConfigError: nothing will be submitted, so that no name is wanted.
        SubmissionError: the name is taken or cannot be written.
    """
    from comp.workflows import predict  # which imports this module

    if config.competition.suite.source != "none":
        write.demand_free(output or predict.default_submission(config), force=force)
    elif output is not None:
        raise ConfigError(f"-o {output}: competition.suite.source is none, so nothing is submitted; leave it out")


def check_data(config: Config, dataset: Dataset) -> None:
    """Refuse what a config asks for and its data do not allow.

    Raises:
        ConfigError: naming the key.
    """
    _check_task(config, dataset)
    _check_shape(config, dataset)


def _check_task(config: Config, dataset: Dataset) -> None:
    """Refuse what a config asks for and the data's task or classes do not allow.

    Raises:
        ConfigError: naming the key.
    """
    competition = dataset.competition
    check_task(predict_options(config.predict), competition.task)
    if config.train.consistency != "none" and not TASKS[competition.task].consistency:
        raise ConfigError(f"train.consistency: {config.train.consistency} is not defined for task {competition.task}")
    ordered = competition.numbered or config.data.classes or class_names.values(competition.classes) is not None
    if metrics.metric(competition.metric).ordered_classes and not ordered:
        raise ConfigError(
            f"competition.metric: {competition.metric} compares classes by their order, and these are names; give "
            "their order, lowest first: data.classes=[...]"
        )


def _check_shape(config: Config, dataset: Dataset) -> None:
    """Refuse what a config asks for and images of these channels and sides cannot have.

    Raises:
        ConfigError: naming the key, and what can be taken instead.
    """
    channels, height, width = dataset.competition.image_shape
    policies.check_channels(config.augment.policy, config.augment.ops, channels)
    worker_stage.check_image_shape(_policy(config), dataset.competition.image_shape)
    suites.check_channels(config.competition, channels, validated=dataset.val is not None)
    check_size(config.predict.views, height, width)


def _submission_notes(config: Config, dataset: Dataset) -> tuple[str, ...]:
    """Return how a submission will be written and why, with example rows; nothing where nothing is submitted."""
    if dataset.suite is None:
        return ()
    competition = dataset.competition
    derived = derive_format.derive(competition)
    header = ",".join(derived.form.header)
    shown = header if len(header) <= _SHOWN_HEADER else f"{header[:_SHOWN_HEADER]}..."
    notes = [f"submission: {shown}, {len(dataset.suite):,} rows; {'; '.join(derived.reasons)}"]
    if competition.test_ids:
        whose = ", the training table's," if competition.header != ("id", "label") else ""
        notes.append(
            f"submission: {_why_no_sample(config)}, so this header{whose} and the order of the ids are assumed"
        )
    notes += [f"submission, as it will be written: {row}" for row in derive_format.examples(derived, competition.task)]
    return (*notes, *(f"submission: {doubt}" for doubt in derived.doubts))


def _why_no_sample(config: Config) -> str:
    """Return why no sample submission was read; a named one must be there.

    Raises:
        SubmissionError: the named one is missing.
    """
    root, named = Path(config.data.root), config.data.csv.sample
    if not named:
        return "no sample submission is read (data.csv.sample is empty)"
    unread = [path] if named != "auto" and (path := samples.find(root, named)[0]) else samples.below(root)
    if not unread:
        return "no sample submission was found"
    kind = f"data.source={config.data.source}"
    return (
        f"{', '.join(map(str, unread))} is not read by {kind}, which knows no test images by the ids of a sample (only "
        "image_folder with test images in no class's folder and csv_images do)"
    )
