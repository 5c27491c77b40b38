"""A config's network with its first weights, and a run's with its best ones."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from comp.config import Config, ModelConfig
from comp.data.dataset import Dataset, open_dataset
from comp.models import weights, zoo
from comp.models.classifier import Classifier
from comp.results import runs
from comp.results.runs import Run
from comp.runtime import device as devices
from comp.runtime import rng
from comp.runtime.device import Execution
from comp.runtime.errors import RunError
from comp.runtime.progress import Progress, quiet
from comp.training import optimizers, resolution
from comp.workflows.checks import _demand_pairs, _submission_notes, check_config, check_data

_INITIAL_WEIGHTS = 1  # names the purpose of a draw beside the seed


def build_model(config: Config, dataset: Dataset, *, first_weights: bool = True) -> Classifier:
    """Return the config's model on the CPU, with its first weights: random, pretrained, or a previous run's.

    Args:
        config: section `model` and the seed.
        dataset: gives classes, image shape, mean and deviation.
        first_weights: False draws them at random, for a model whose weights a checkpoint holds.

    Raises:
        ModelError: an unknown name or argument, or weights that are missing or do not fit.
        RunError: `model.from_run` names no trained run.
    """
    section = config.model
    if not first_weights:
        section = _without_weights(section)
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
    )


def _without_weights(section: ModelConfig) -> ModelConfig:
    """Return the same network for weights that come from elsewhere, its normalisation's among them."""
    normalize = "per_image" if section.normalize == "per_image" else "dataset"
    return section.model_copy(update={"pretrained": False, "from_run": "", "sha256": "", "normalize": normalize})


class PlacedModel(NamedTuple):
    """A run's model on the device that it predicts on, and a note of what is done otherwise than in training."""

    model: Classifier
    execution: Execution
    note: str


def load_model(run: Run, device: str = "") -> PlacedModel:
    """Return a trained run's best weights in its model, placed as recorded; its data are not needed.

    Args:
        run: complete, or trained to the end.
        device: to predict on instead of the recorded one: `cpu`, `cuda` or `mps`.

    Raises:
        ConfigError: the device is unknown or not on this machine.
        RunError: not trained to the end, or its weights are not those that it ended with.
        ModelError: the weights are damaged or another network's.
    """
    path, provenance = run.weights_path(), run.provenance("classes", "image_shape")
    recorded = run.path / "execution.json"
    execution, note = devices.for_prediction(runs.read_json(recorded), str(recorded), device)
    channels, height, width = provenance["image_shape"]
    model = zoo.build(
        _without_weights(run.config().model),
        classes=len(provenance["classes"]),
        image_shape=(channels, height, width),
        mean=[0.0] * channels,  # like the deviation, read with the weights
        std=[1.0] * channels,
        seed=0,
    )
    verify_weights_hash(run, weights.load_weights(model, path)["sha256"])
    execution.place(model)
    return PlacedModel(model, execution, note)


def verify_weights_hash(run: Run, sha256: str) -> None:
    """Refuse weights that are not those that a run ended with: a flipped bit would only make it predict worse.

    Args:
        run: complete or not; earlier versions recorded no hash, and theirs are believed.
        sha256: of the file that was read.

    Raises:
        RunError: naming both hashes.
    """
    wanted = (run.metrics().weights_sha256 if run.is_complete() else "") or sha256
    if sha256 != wanted:
        path = run.weights_path()
        gone = "" if path.name == "best.safetensors" else ", or best.safetensors was there and is gone"
        raise RunError(
            f"{path}: expected sha256 {wanted}, as the run ended with, found {sha256}; the file is damaged or another "
            f"one{gone}: put the right one back, or train again"
        )


def prepare(config: Config, runs_root: Path = Path("runs"), progress: Progress = quiet) -> Dataset:
    """Check a config and open its data: all that can be refused before the first step is refused here.

    The dataset's notes then also say how the submission will be written, and why.

    Raises:
        UserError: as `check`, `open_dataset` and `comp.submission.derive_format.derive`.
    """
    check_config(config, runs_root)
    return open_data(config, progress)


def open_data(config: Config, progress: Progress = quiet) -> Dataset:
    """Open the data of a config that is checked, and refuse what only they show; see `prepare`."""
    dataset = open_dataset(config, progress)
    check_data(config, dataset)
    return replace(dataset, notes=(*dataset.notes, *_submission_notes(config, dataset)))


def ready_model(config: Config, dataset: Dataset) -> Classifier:
    """Return the config's model with its first weights, and refuse what could not take these data's first step.

    Raises:
        UserError: as `build_model`; blocks that the optimizer's settings name and the network does not have; sizes that
            it cannot take.
    """
    model = build_model(config, dataset)
    shape = dataset.competition.image_shape
    optimizers.for_model(model, config.optim)
    resolution.check_sizes(model, config.train.sizes, shape)
    blank = zoo.build_on_meta(config.model, classes=len(dataset.competition.classes), image_shape=shape)
    _demand_pairs(config, blank, shape, images=len(dataset.train))
    return model
