"""Static int8 quantization of an ONNX network by onnxruntime; what agrees best with the float network is taken.

Weights get a scale for each output channel, activations one for each tensor, from the values that training images
give (Krishnamoorthi 2018, arXiv:1806.08342). The first and the last layer stay float: they cost little and lose most.
Where that is not enough, as for networks of depthwise convolutions, more of the first layers do.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.models.portable import IMAGES, OUTPUTS, Pixels, captured
from comp.runtime.errors import ModelError
from comp.runtime.progress import Progress, quiet

Outputs = NDArray[np.float32]  # [N, K]

GOOD_AGREEMENT = 0.98  # share of images with the float network's answer: the first way that has it is taken
_WAYS = (("MinMax", 1), ("Percentile", 4), ("Percentile", 8))  # calibration, first layers that stay float
_LAYERS = ("Conv", "Gemm", "MatMul")
_BATCH = 32
_PERCENTILE = 99.99


def quantize(
    path: Path, images: Pixels, agreement: Callable[[Outputs, Outputs], float], progress: Progress = quiet
) -> tuple[bytes, str]:
    """Return a float ONNX network as int8, and how: calibrated on one half of the images, chosen by the other.

    Args:
        path: of the float network.
        images: of the training, as the network takes them.
        agreement: outputs, float outputs -> the share of images with the same answer.
        progress: called after every way.

    Raises:
        ModelError: no layer is left between the first and the last.
    """
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    calibration, held_out = images[::2], images[1::2]
    expected = run(session(path), held_out)
    best, best_agreement, how = b"", -1.0, ""
    with tempfile.TemporaryDirectory() as scratch:
        ready, made = Path(scratch) / "ready.onnx", Path(scratch) / "made.onnx"
        with captured():
            quant_pre_process(str(path), str(ready), skip_symbolic_shape=True)  # fuses batch norm into convolutions
        layers = [node.name for node in onnx.load(ready).graph.node if node.op_type in _LAYERS]
        ways = [(method, first) for method, first in _WAYS if layers[first:-1]]  # else all would stay float
        if not ways:
            raise ModelError(
                f"--quantize int8: this network has {len(layers)} layers ({', '.join(_LAYERS)}), and the first and the "
                "last stay float, so there is nothing to quantize; leave --quantize out"
            )
        for count, (method, first) in enumerate(ways, 1):
            with captured():
                _quantize(ready, made, method, layers[first:-1], calibration)
            agreed = agreement(run(session(made), held_out), expected)
            progress("quantizing", count, len(ways), "ways")
            if agreed > best_agreement:
                best, best_agreement = made.read_bytes(), agreed
                how = f"weights by channel, {method} calibration; float: the first layers ({first}) and the last"
            if agreed >= GOOD_AGREEMENT:
                break
    return best, how


def _quantize(ready: Path, made: Path, method: str, layers: Sequence[str], calibration: Pixels) -> None:
    from onnxruntime import quantization

    batches = ({IMAGES: batch} for batch in _batches(calibration))
    quantization.quantize_static(
        str(ready),
        str(made),
        SimpleNamespace(get_next=lambda: next(batches, None)),  # as `quantization.CalibrationDataReader` has it
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=list(_LAYERS),
        per_channel=True,
        nodes_to_quantize=list(layers),
        calibrate_method=quantization.CalibrationMethod[method],
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        extra_options={"CalibPercentile": _PERCENTILE} if method == "Percentile" else {},
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
    """Return a session's outputs of images."""
    outputs: Outputs = np.concatenate([opened.run([OUTPUTS], {IMAGES: batch})[0] for batch in _batches(images)])
    return outputs
