"""Networks as files that need no comp: torch.export programs, ONNX, and weights that timm loads.

A `Classifier` holds its pre-processing, so a program or an ONNX file takes raw images as it does.
"""

import contextlib
import copy
import importlib.util
import io
import json
import logging
import re
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from comp.config import ModelConfig
from comp.models import timm_models
from comp.models.classifier import Classifier, LabelScale, Resize
from comp.models.coursework.networks import NETWORKS
from comp.runtime.errors import ConfigError, ModelError

OPSET = 18  # the newest ONNX operators that torch writes without converting between versions
IMAGES, OUTPUTS = "images", "outputs"  # names in an ONNX file
INPUTS = {"uint8": torch.uint8, "float": torch.float32}  # type of the images: 0..255, or 0..1
_EXTRA = ("onnx", "onnxscript", "onnxruntime")
_OPERATION = re.compile(r"\b(?:aten|prims|torchvision|higher_order)(?:::|\.)\w+(?:\.\w+)?")

Shape = tuple[int, int, int]  # channels, height, width
Pixels = NDArray[np.uint8] | NDArray[np.float32]  # [N, C, H, W]


def check_onnx_installed() -> None:
    """Raise ConfigError if a package of the extra `onnx` is missing."""
    if missing := [name for name in _EXTRA if importlib.util.find_spec(name) is None]:
        raise ConfigError(
            f"--format onnx: needs the `onnx` extra, and {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not installed: pip install 'comp[onnx]', or choose --format torch"
        )


def plain_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a network to export: on the CPU, float32, in evaluation mode."""
    copied: nn.Module = copy.deepcopy(model).to("cpu", torch.float32, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return copied.eval().requires_grad_(False)


def to_input(images: NDArray[np.uint8], input_type: str) -> Pixels:
    """Return images [N, H, W, C] as an exported network takes them; `input_type` is a row of INPUTS."""
    pixels = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return pixels if input_type == "uint8" else pixels.astype(np.float32) / np.float32(255)


def to_program(model: nn.Module, image_shape: Shape, input_type: str) -> torch.export.ExportedProgram:
    """Return a network, from `plain_copy`, as a program for any number of images [B, C, H, W] of a row of INPUTS.

    Raises:
        ModelError: the network cannot be traced; names the operation.
    """
    images = torch.zeros(2, *image_shape, dtype=INPUTS[input_type])  # one image would fix the batch's size at 1
    with captured() as printed:
        try:
            return torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
        except Exception as error:  # the network's own code runs, which may raise anything
            # Torch prints the operations up to the one that it cannot trace.
            last = ["", *_OPERATION.findall(printed.getvalue())][-1]
            raise _not_exportable("torch.export", error, "only its weights can leave", last) from None


def program_bytes(program: torch.export.ExportedProgram) -> bytes:
    """Return the content of a .pt2 file."""
    buffer = io.BytesIO()
    with captured():
        torch.export.save(program, buffer)
    return buffer.getvalue()


def onnx_bytes(program: torch.export.ExportedProgram) -> bytes:
    """Return a program as ONNX of operator set OPSET.

    Raises:
        ModelError: an operation has no ONNX form; names it.
    """
    with captured():
        try:
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=[IMAGES],
                output_names=[OUTPUTS],
                dynamic_shapes=({0: "batch"},),
                verbose=False,
            )
            assert exported is not None
            content: bytes = exported.model_proto.SerializeToString()
        except Exception as error:  # torch, onnxscript and protobuf raise their own kinds
            raise _not_exportable("ONNX", error, "--format torch may work") from None
    return content


def _not_exportable(what: str, error: BaseException, advice: str, operation: str = "") -> ModelError:
    """Return the message for a network that cannot be exported, with the operation that stops it."""
    reasons: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        reasons.insert(0, str(cause))
        cause = cause.__cause__ or cause.__context__
    text = " ".join(" ".join(reasons).split())
    operation = next(iter(_OPERATION.findall(text)), operation)
    stopped = f"the operation {operation} stops it" if operation else text[:200]
    return ModelError(f"this network cannot be exported to {what}: {stopped}; {advice}")


@contextlib.contextmanager
def captured() -> Iterator[io.StringIO]:
    """Context manager: capture what libraries print of their own work; silence their logs and warnings."""
    disabled, printed = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            warnings.simplefilter("ignore")
            yield printed
    finally:
        logging.disable(disabled)


def describe_preparation(model: Classifier) -> dict[str, Any]:
    """Return a classifier's pre-processing, and the scale of a number after the network, as plain values."""
    resize, scale = model.resize, model.label_scale
    return {
        "mean": model.normalize.mean.flatten().tolist(),
        "std": model.normalize.std.flatten().tolist(),
        "per_image": model.normalize.per_image,
        "resize": list(resize.size) if isinstance(resize, Resize) else None,
        "interpolation": resize.interpolation if isinstance(resize, Resize) else None,
        "label_scale": [scale.mean.item(), scale.std.item()] if isinstance(scale, LabelScale) else None,
    }


def timm_recipe(config: ModelConfig, inner: nn.Module, shape: Shape, classes: int) -> dict[str, Any] | None:
    """Return how timm builds a network: its `name`, its `arguments`, and the layers to change after it (`stem`).

    Args:
        config: section `model` of its run.
        inner: the network. Of comp's own and of a plug-in's, which timm cannot build, None is returned.
        shape: (channels, height, width) that it takes, after the resize.
        classes: width of its outputs.
    """
    import timm

    entry = None if config.name in NETWORKS else timm.model_entrypoint(timm_models.base_name(config.name))
    if not str(getattr(entry, "__module__", "")).startswith("timm."):
        return None
    factory = timm_models.factory_arguments(config.name, shape, config.stem, config.timm)
    arguments = {"num_classes": classes, **json.loads(json.dumps(factory))}
    with torch.device("meta"):
        stock = timm.create_model(config.name, **arguments)
    return {"name": config.name, "arguments": arguments, "stem": list(_changed_layers(stock, inner))}


def _changed_layers(stock: nn.Module, inner: nn.Module) -> Iterator[dict[str, Any]]:
    """Yield layers that `stems.relax_strides` changed: their weight's shape (None: removed), stride and padding."""
    for name, layer in inner.named_modules():
        original = stock.get_submodule(name)
        weight = getattr(layer, "weight", None)
        if isinstance(layer, nn.Identity) and not isinstance(original, nn.Identity):
            yield {"layer": name, "weight": None}
        elif hasattr(layer, "kernel_size") and weight is not None and _geometry(layer) != _geometry(original):
            yield {"layer": name, **_geometry(layer)}


def _geometry(layer: Any) -> dict[str, Any]:
    return {"weight": tuple(layer.weight.shape), "stride": layer.stride, "padding": layer.padding}
