"""`comp export`: a network as files that need no comp, checked in a fresh process before they get their name."""

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from comp.config import Config
from comp.config.tasks import TASKS
from comp.data.dataset import Dataset
from comp.data.splits import Split
from comp.models import int8, portable, weights
from comp.models.classifier import Classifier
from comp.results import files
from comp.results.machine import package_versions
from comp.results.runs import Run
from comp.runtime.errors import ConfigError, RunError
from comp.runtime.progress import Progress, quiet
from comp.workflows import export_check, lineage, model_card
from comp.workflows.load import LoadedRun, load_run

_WEIGHTS_ONLY = ("timm", "safetensors")  # formats without pre-processing
_CHECKED, _CALIBRATION = 256, 512  # images; one half of the latter calibrates, the other chooses
_OUTPUTS = {
    "softmax": "logits: softmax gives probabilities",
    "sigmoid": "logits: sigmoid gives each class's probability",
    "identity": "numbers in the label's own unit",
}

Card = dict[str, Any]


@dataclass(frozen=True)
class ExportRequest:
    """What a command asks for.

    Attributes:
        folder: a new one.
        format: a row of `comp.workflows.model_card.FILES`.
        input_type: a row of `comp.models.portable.INPUTS`.
        quantize: whether int8 replaces float32, in ONNX.
    """

    folder: Path
    format: str
    input_type: str
    quantize: bool

    def check(self) -> None:
        """Refuse, before any work, an existing folder, contradictory options and missing packages, by UserErrors."""
        files.check_new_folder(self.folder)
        if self.input_type == "float" and self.format in _WEIGHTS_ONLY:
            raise ConfigError(f"--input float: {self.format} files hold weights alone; choose --format onnx or torch")
        if self.quantize and self.format != "onnx":
            raise ConfigError(f"--quantize int8: needs --format onnx, found {self.format}")
        if self.format == "onnx":
            portable.check_onnx_installed()


@dataclass(frozen=True)
class Exportable:
    """A network to export: a run's, or an ensemble as one.

    Attributes:
        run: a run or an ensemble.
        network: from `portable.plain_copy`: images [B, C, H, W] -> outputs.
        parts: the trained runs in it.
        dataset: the first one's data, which check the export.
        predict: images -> outputs [N, K] of `comp predict`, without views, adaptation and decision.
        not_inside: what else the run's answers depend on.
    """

    run: Run
    network: nn.Module
    parts: tuple[LoadedRun, ...]
    dataset: Dataset
    predict: Callable[[Split], NDArray[np.float32]]
    not_inside: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return tuple(self.run.provenance("classes")["classes"])

    @property
    def classifier(self) -> Classifier:
        """The network of a run; raises ConfigError for an ensemble, which has several."""
        if not isinstance(self.network, Classifier):
            raise ConfigError(f"{self.run.path}: combines several networks; choose --format onnx or torch")
        return self.network

    @property
    def precision(self) -> str:
        """In which `comp predict` computes."""
        return ", ".join(sorted({part.execution.precision for part in self.parts}))

    def trained_on(self, images: Split) -> int:
        """How many of the parts trained on some of the images."""
        return sum(bool(np.isin(images.ids, lineage.trained_on(part.run)).any()) for part in self.parts)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.parts[0].competition.image_shape


def open_run(run: Run, plain: bool = False, progress: Progress = quiet) -> Exportable:
    """Return a trained run's network, ready to export.

    Raises:
        RunError: its predictions adapt to the test, which no network alone does; `plain` exports the network anyway.
        UserError: see `load_run`.
    """
    if (needs_test := _options_of_a_whole_test(run.config())) and not plain:
        raise RunError(
            f"{run.path}: predicts with {needs_test[0]}, which needs all images of a test at once; an exported network "
            "sees one batch, so its scores would be others; --plain exports the network alone"
        )
    loaded = load_run(run, progress=progress)
    predict = functools.partial(export_check.predict_plainly, loaded)
    network = portable.plain_copy(loaded.model)
    return Exportable(run, network, (loaded,), loaded.dataset, predict, not_inside(run))


def _options_of_a_whole_test(config: Config) -> list[str]:
    chosen = {f"predict.{name}": getattr(config.predict, name) for name in ("adapt", "prior", "pool")}
    return [f"{key}={value}" for key, value in chosen.items() if value != "none"]


def not_inside(run: Run) -> tuple[str, ...]:
    """Return what a run's answers depend on besides its network, as notes for the card."""
    config, decision = run.config(), run.metrics().fitted_decision
    kind = decision.kind if decision else "argmax"
    pixel_range = run.provenance().get("pixel_range")
    notes = {
        f"test-time views: predict.views={config.predict.views}": config.predict.views != "none",
        **{f"adaptation to the test: {option}": True for option in _options_of_a_whole_test(config)},
        f"the decision: {kind}, whose values are in {model_card.JSON}": kind != "argmax",
        f"one answer for a group: data.group_answer={config.data.group_answer}": config.data.group_answer != "none",
        f"the scaling of pixels to 0..255: data.range={pixel_range}": isinstance(pixel_range, list),
    }
    return tuple(note for note, applies in notes.items() if applies)


def export(source: Exportable, request: ExportRequest, progress: Progress = quiet) -> Card:
    """Write a network, its card and the card's page into a new folder; return the card.

    Raises:
        ModelError: an operation has no such form, or the files, loaded in a fresh process, compute something else:
            nothing is left.
        RunError: the folder exists or cannot be written.
    """
    card, data = _describe(source, request), source.dataset
    images = _sample(data.train if data.val is None else data.val, data, _CHECKED)
    with files.new_folder(request.folder) as folder, tempfile.TemporaryDirectory() as scratch:
        content, file = _network_bytes(source, request), folder / card["file"]
        if request.quantize:
            plain = Path(scratch) / card["file"]
            plain.write_bytes(content)
            training = _sample(data.train, data, _CALIBRATION)
            pixels = portable.to_input(np.asarray(training.images), request.input_type)
            agreement = functools.partial(export_check.agreement, card["task"], source.classes)
            content, method = int8.quantize(plain, pixels, agreement, progress)
        files.write_atomically(file, content)
        card["sha256"] = files.sha256_bytes(content)
        files.write_atomically(folder / model_card.JSON, files.to_json(card))  # the code that loads weights reads it
        progress("checking in a fresh process", 0, len(images))
        card["check"] = export_check.check(folder, card, source, images)
        progress("checking in a fresh process", len(images), len(images))
        if request.quantize:
            made = {"method": method, "calibration_images": (len(training) + 1) // 2}
            compared = export_check.compare_speed(source, {"float ONNX": plain, "int8 ONNX": file}, card, images)
            card["quantization"] = {**made, **compared}
        files.write_atomically(folder / model_card.JSON, files.to_json(card))
        files.write_atomically(folder / model_card.PAGE, model_card.page_bytes(card))
    return card


def _network_bytes(source: Exportable, request: ExportRequest) -> bytes:
    if request.format in _WEIGHTS_ONLY:
        return weights.to_bytes(source.classifier.inner.state_dict(), {"format": "pt"})
    program = portable.to_program(source.network, source.image_shape, request.input_type)
    return portable.onnx_bytes(program) if request.format == "onnx" else portable.program_bytes(program)


def _describe(source: Exportable, request: ExportRequest) -> Card:
    """Return the card but for what the files show."""
    run, scores = source.run, source.run.metrics()
    decision = scores.fitted_decision
    card: Card = {
        "run": run.name,
        "competition": scores.competition,
        "task": scores.task,
        "metric": scores.metric,
        "network": scores.model,
        "parameters": scores.parameters,
        "format": request.format,
        "quantize": "int8" if request.quantize else None,
        "file": model_card.FILES[request.format],
        "classes": source.classes,
        "input": {"type": request.input_type, "shape": ["batch", *source.image_shape]},
        "output": _OUTPUTS[TASKS[scores.task].activation],
        "first_weights": [model_card.first_weights(part.run) for part in source.parts],
        "weights_sha256": [part.run.metrics().weights_sha256 for part in source.parts],
        "scores": model_card.scores(run),
        "not_inside": source.not_inside,
        "decision": None if decision is None or decision.kind == "argmax" else decision.model_dump(mode="json"),
        "versions": package_versions(),
    }
    if request.format == "onnx":
        card |= {"opset": portable.OPSET}
    if isinstance(source.network, Classifier):
        card |= {"preparation": portable.describe_preparation(source.network)}
    if request.format in _WEIGHTS_ONLY and (recipe := _timm_recipe(source, request)):
        card |= {"timm": recipe}
    return card


def _timm_recipe(source: Exportable, request: ExportRequest) -> Card | None:
    """Return how timm builds the network; None for other networks, whose weights alone `safetensors` holds."""
    classifier, section = source.classifier, source.run.config().model
    channels, *size = source.image_shape
    height, width = portable.describe_preparation(classifier)["resize"] or size
    recipe = portable.timm_recipe(section, classifier.inner, (channels, height, width), len(source.classes))
    if recipe is None and request.format == "timm":
        raise ConfigError(
            f"--format timm: {section.name} is comp's own or a plug-in's, so timm cannot build it; choose --format "
            "onnx, torch or safetensors"
        )
    return recipe


def _sample(split: Split, dataset: Dataset, count: int) -> Split:
    return replace(split.take(dataset.sample(split, count), split.name).decoded(), groups=None)
