"""Build a config's model and open its data, with every check that training needs."""

from dataclasses import replace
from pathlib import Path

from comp.config import Config, ModelConfig
from comp.data.dataset import Dataset, open_dataset
from comp.data.splits import Split
from comp.models import zoo
from comp.models.classifier import Classifier
from comp.results import runs
from comp.runtime import rng
from comp.runtime.errors import plural
from comp.runtime.progress import Progress, quiet
from comp.submission import derive_format, samples
from comp.training import imbalance
from comp.workflows import checks, plugins

_INITIAL_WEIGHTS = 1  # key of the weights' random draw beside the seed
_HEADER_CHARACTERS = 80  # of a header in a note


def prepare(config: Config, runs_root: Path = Path("runs"), progress: Progress = quiet) -> Dataset:
    """Check a config and open its data; the dataset's notes also state how its submission will be written.

    Raises:
        UserError: see `checks.check_config`, `open_dataset`, `checks.check_data` and `derive_format.derive_format`.
    """
    checks.check_config(config, runs_root)
    return open_data(config, progress)


def open_data(config: Config, progress: Progress = quiet) -> Dataset:
    """Open the data of a checked config and check the config against them; see `prepare`."""
    return check_opened(config, open_dataset(config, progress))


def check_opened(config: Config, dataset: Dataset) -> Dataset:
    """Check a config against its data; return them with notes on the submission; see `prepare`."""
    checks.check_data(config, dataset)
    balance = () if config.data.pseudo.run else imbalance.describe(config, dataset)  # else when its images have joined
    notes = (*balance, *_delay_notes(config), *_submission_notes(config, dataset))
    return replace(dataset, notes=(*plugins.describe(config), *dataset.notes, *notes))


def ready_model(config: Config, dataset: Dataset) -> Classifier:
    """Return the config's model with its first weights, checked for the first step on these data.

    Raises:
        UserError: see `build_model` and `checks.check_model`.
    """
    model = build_model(config, dataset)
    checks.check_model(config, dataset, model)
    return model


def build_model(config: Config, dataset: Dataset, *, first_weights: bool = True) -> Classifier:
    """Return the config's model on the CPU.

    Args:
        config: section `model` and the seed.
        dataset: gives classes, image shape, mean and standard deviation.
        first_weights: load pretrained weights or a run's, as configured; False draws them at random, for a model whose
            weights a checkpoint holds.

    Raises:
        ModelError: unknown name or argument, or weights that are missing or do not fit.
        RunError: `model.from_run` names no trained run.
    """
    section = config.model
    if not first_weights:
        section = without_weights(section)
    elif section.from_run:
        path = runs.open_run(Path(section.from_run)).weights_path()
        section = section.model_copy(update={"pretrained": str(path)})
    return zoo.build(
        section,
        classes=len(dataset.competition.classes),
        image_shape=dataset.competition.image_shape,
        mean=dataset.mean,
        std=dataset.std,
        seed=rng.key(config.seed, _INITIAL_WEIGHTS),
        weights_folder=Path(config.data.root) / "weights",
        label_scale=dataset.label_scale,
    )


def without_weights(section: ModelConfig) -> ModelConfig:
    """Return the same network with random weights, for weights and normalisation that are loaded later."""
    normalize = "per_image" if section.normalize == "per_image" else "dataset"
    return section.model_copy(update={"pretrained": False, "from_run": "", "sha256": "", "normalize": normalize})


def _delay_notes(config: Config) -> tuple[str, ...]:
    """Return which policies a training is too short for, or may be."""
    train, delays = config.train, config.augment.delays
    if train.budget:
        allows = f"if train.budget={train.budget} lasts that long"
        return tuple(f"augment.delays: {name} starts after epoch {delay}, {allows}" for name, delay in delays.items())
    end = f"the training ends after {plural(train.epochs, 'epoch')}"
    late = [name for name, delay in delays.items() if delay >= train.epochs]
    return tuple(f"augment.delays: {name} never starts: {end}" for name in late)


def _submission_notes(config: Config, dataset: Dataset) -> tuple[str, ...]:
    """Return how the submission will be written and why, with example rows; empty if nothing is submitted."""
    if dataset.suite is None:
        return ()
    competition = dataset.competition
    derived = derive_format.derive_format(competition)
    header = ",".join(derived.format.header)
    if len(header) > _HEADER_CHARACTERS:
        header = f"{header[:_HEADER_CHARACTERS]}..."
    rows = len(dataset.suite.one_per_answer() if isinstance(dataset.suite, Split) else dataset.suite)
    notes = [f"submission: {header}, {plural(rows, 'row')}; {'; '.join(derived.reasons)}"]
    if competition.test_ids:
        table = ", the training table's," if competition.header != ("id", "label") else ""
        notes.append(f"submission: {_why_no_sample(config)}, so this header{table} and the ids' order are assumed")
    notes += [
        f"submission, as it will be written: {row}" for row in derive_format.example_rows(derived, competition.task)
    ]
    return (*notes, *(f"submission: {doubt}" for doubt in derived.assumptions))


def _why_no_sample(config: Config) -> str:
    """Return why no sample submission was read.

    Raises:
        SubmissionError: the named one is missing.
    """
    root, name = Path(config.data.root), config.data.csv.sample
    if not name:
        return "no sample submission is read (data.csv.sample is empty)"
    unread = [path] if name != "auto" and (path := samples.find_sample(root, name)[0]) else samples.list_samples(root)
    if not unread:
        return "no sample submission was found"
    return (
        f"{', '.join(map(str, unread))} is not read by data.source={config.data.source}: only csv_images, and "
        "image_folder with test images outside the class folders, identify test images by the ids of a sample"
    )
