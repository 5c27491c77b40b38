"""Static int8 quantization of an ONNX network by onnxruntime; choose what agrees best with the float network.

Weights get a scale for each output channel, activations one for each tensor, from the values that training images
give (Krishnamoorthi 2018, arXiv:1806.08342). The first and the last layer stay float: they cost little and lose most.
Where that is not enough, as for networks of depthwise convolutions, more of the first layers do.
"""

import contextlib
import io
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.models.portable import IMAGES, OUTPUTS, Pixels
from comp.runtime.progress import Progress, quiet

Outputs = NDArray[np.float32]

GOOD_AGREEMENT = 0.98  # share of images with the float network's answer; the first way that has it is taken
_LAYERS = ("Conv", "Gemm", "MatMul")
_BATCH = 32
_PERCENTILE = 99.99


@dataclass(frozen=True)
class Way:
    """A way to quantize.

    Attributes:
        calibration: of activations, a name in onnxruntime's `CalibrationMethod`.
        first: how many of the first layers stay float.
    """

    calibration: str
    first: int

    def __str__(self) -> str:
        first = f"the first {self.first} layers" if self.first > 1 else "the first layer"
        return f"int8 weights by channel, {self.calibration} calibration, {first} and the last in float"


_WAYS = (Way("MinMax", 1), Way("Percentile", 4), Way("Percentile", 8))


def quantize(
    path: Path, images: Pixels, agreement: Callable[[Outputs, Outputs], float], progress: Progress = quiet
) -> tuple[bytes, str]:
    """Return a float ONNX network as int8, and how: calibrated on one half of the images, chosen by the other.

    Args:
        path: of the float network.
        images: of the training, as the network takes them.
        agreement: outputs, float outputs -> the share of images with the same answer.
        progress: called after every way.
    """
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    calibration, held_out = images[::2], images[1::2]
    expected = run(session(path), held_out)
    best, best_agreement, method = b"", -1.0, ""
    with _quiet(), tempfile.TemporaryDirectory() as scratch:
        ready, made = Path(scratch) / "ready.onnx", Path(scratch) / "made.onnx"
        quant_pre_process(str(path), str(ready), skip_symbolic_shape=True)  # fuses batch norm into convolutions
        layers = [node.name for node in onnx.load(ready).graph.node if node.op_type in _LAYERS]
        for count, way in enumerate(_WAYS, 1):
            _quantize(ready, made, way, [*layers[: way.first], layers[-1]], calibration)
            agreed = agreement(run(session(made), held_out), expected)
            progress("quantizing", count, len(_WAYS), "ways")
            if agreed > best_agreement:
                best, best_agreement, method = made.read_bytes(), agreed, str(way)
            if agreed >= GOOD_AGREEMENT:
                break
    return best, method


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what onnxruntime's quantizer prints and logs."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)


def _quantize(ready: Path, made: Path, way: Way, kept: Sequence[str], calibration: Pixels) -> None:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Batches(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            self._batches = _batches(calibration)

        def get_next(self) -> dict[str, Pixels] | None:
            batch = next(self._batches, None)
            return None if batch is None else {IMAGES: batch}

    quantize_static(
        str(ready),
        str(made),
        Batches(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(_LAYERS),
        per_channel=True,
        nodes_to_exclude=list(kept),
        calibrate_method=CalibrationMethod[way.calibration],
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"CalibPercentile": _PERCENTILE} if way.calibration == "Percentile" else {},
    )


def _batches(images: Pixels) -> Iterator[Pixels]:
    for start in range(0, len(images), _BATCH):
        yield images[start : start + _BATCH]


def session(path: Path, threads: int = 0) -> Any:
    """Return an onnxruntime session on the CPU; 0 threads: one for each core."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors alone
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(opened: Any, images: Pixels) -> Outputs:
    """Return a session's outputs [N, K] of images [N, C, H, W]."""
    outputs: Outputs = np.concatenate([opened.run([OUTPUTS], {IMAGES: batch})[0] for batch in _batches(images)])
    return outputs
