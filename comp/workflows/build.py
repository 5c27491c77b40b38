"""A config's network with its first weights, and a run's with its best ones."""

from pathlib import Path
from typing import NamedTuple

from comp.config import Config, ModelConfig
from comp.data.dataset import Dataset
from comp.models import weights, zoo
from comp.models.classifier import Classifier
from comp.results import runs
from comp.results.runs import Run
from comp.runtime import device as devices
from comp.runtime import rng
from comp.runtime.device import Execution
from comp.runtime.errors import RunError

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


class Placed(NamedTuple):
    """A run's model on the device that it predicts on, and a note of what is done otherwise than in training."""

    model: Classifier
    execution: Execution
    note: str


def load_model(run: Run, device: str = "") -> Placed:
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
    demand_own(run, weights.load_weights(model, path)["sha256"])
    execution.place(model)
    return Placed(model, execution, note)


def demand_own(run: Run, sha256: str) -> None:
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
