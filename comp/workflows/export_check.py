"""Check an export: load it in a fresh process without comp, compare its answers with the run's, time it."""

import functools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from comp.config.tasks import TASKS
from comp.data.splits import Split
from comp.inference.predict import predict
from comp.models import int8, portable
from comp.models.portable import Pixels
from comp.results import decisions, machine, predictions
from comp.results.predictions import Predictions
from comp.runtime import signals
from comp.runtime.errors import ModelError
from comp.workflows import model_card
from comp.workflows.load import LoadedRun
from comp.workflows.predict import scores_of

if TYPE_CHECKING:
    from comp.workflows.export import Exportable

_TOLERANCE = 1e-3  # of an output, and of its share of the greatest one
_SHIFTED = 0.02  # mean difference of a probability that bfloat16 explains; more is another network
_ROUNDS, _BATCH = 7, 64  # of timing
_SAME_NUMBER = 0.01  # of the deviation of all numbers

_BEFORE = """\
import sys
sys.modules["comp"] = None  # from here on, importing comp fails
"""
_PREDICT = """
import numpy as np
images = np.load(sys.argv[1])
outputs = np.concatenate([predict(part) for part in np.split(images, [1]) if len(part)])
"""
_LIST_WEIGHTS = """
import numpy as np
outputs = np.concatenate([weights[name].double().numpy().ravel() for name in sorted(weights)])
"""
_AFTER = """
assert not [name for name in sys.modules if name.startswith("comp.")]
np.save(sys.argv[2], outputs)
"""


def predict_plainly(loaded: LoadedRun, images: Split) -> NDArray[np.float32]:
    """Return a run's outputs [N, K] in its own precision, without views, adaptation and decision."""
    outputs = predict(loaded.model, images, **loaded.prediction_settings, made_by={}).outputs
    return outputs.astype(np.float32)


def check(folder: Path, card: Mapping[str, Any], source: "Exportable", images: Split) -> dict[str, Any]:
    """Return how a fresh process's answers of labelled images compare with the run's, for the card.

    Raises:
        ModelError: the export in the folder does not load, or computes something else.
    """
    code, shown = model_card.loading_code(card), {"split": images.name, "images": len(images)}
    pixels = portable.to_input(np.asarray(images.images), "uint8")
    if not model_card.defines_predict(card):
        state = source.classifier.inner.state_dict()
        expected = np.concatenate([state[name].double().numpy().ravel() for name in sorted(state)])
        if not np.array_equal(_run_fresh(folder, code + _LIST_WEIGHTS, pixels), expected):
            raise ModelError(f"{card['file']}: read in a fresh process, its weights are not the run's")
        return {**shown, "tensors": len(state)}
    loaded = _run_fresh(folder, code + _PREDICT, pixels)
    with torch.inference_mode():
        network = np.concatenate(
            [source.network(batch).numpy() for batch in torch.split(torch.from_numpy(pixels), _BATCH)]
        )
    difference = float(np.abs(loaded - network).max())
    tolerance = None if card["quantize"] else _TOLERANCE * max(1.0, float(np.abs(network).max()))
    if tolerance is not None and not difference <= tolerance:
        raise ModelError(
            f"{card['file']}: loaded in a fresh process, it computes other outputs than the run's network: greatest "
            f"difference {difference:.3g} on {len(images)} images of {images.name}, expected at most {tolerance:.3g}; "
            "nothing is written; choose another --format"
        )
    predicted = source.predict(images)
    _check_same_network(*(_as_predictions(outputs, card) for outputs in (network, predicted)))
    alike = functools.partial(agreement, card["task"], card["classes"], loaded)
    return {
        **shown,
        "difference": difference,
        "tolerance": tolerance,
        "agreement": alike(network),
        "agreement_predict": alike(predicted),
        "precision": source.precision,
        "metric": card["metric"],
        "exported": _score(loaded, card, images),
        "predict": _score(predicted, card, images),
        "trained_on": source.trained_on(images),
    }


def _run_fresh(folder: Path, code: str, pixels: Pixels) -> NDArray[np.float64]:
    """Run code in a folder, in a process that cannot import comp; return what it computes of images [N, C, H, W]."""
    with tempfile.TemporaryDirectory() as scratch:
        program, images, outputs = (Path(scratch) / name for name in ("load.py", "images.npy", "outputs.npy"))
        program.write_text(_BEFORE + code + _AFTER, encoding="utf-8")
        np.save(images, pixels)
        command = [sys.executable, "-P", "-W", "ignore", str(program), str(images), str(outputs)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        signals.raise_if_interrupted()  # a signal of the terminal ends the child too
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise ModelError(f"the export does not load in a fresh process: {reason[:200]}; choose another --format")
        loaded: NDArray[np.float64] = np.load(outputs)
        return loaded


def _check_same_network(plain: Predictions, predicted: Predictions) -> None:
    """Refuse a network whose probabilities, or numbers, are others than those of `comp predict` in its precision."""
    limit = _SHIFTED * float(predicted.values().std() if plain.row.numeric else 1.0)  # 0 if all numbers are the same
    shift = float(np.abs(plain.probabilities() - predicted.probabilities()).mean(0).max())
    if not shift <= limit:
        raise ModelError(
            f"the network in float32 and `comp predict` differ by {shift:.3g} on average, expected at most "
            f"{limit:.3g}: the run's precision changes its answers, or comp has a bug; predict with the run itself"
        )


def agreement(task: str, classes: Sequence[str], one: NDArray[Any], other: NDArray[Any]) -> float:
    """Return the share of images that outputs [N, K] answer alike; numbers, within a hundredth of their deviation."""
    if TASKS[task].numeric:
        return float((np.abs(one - other) <= _SAME_NUMBER * other.std()).mean())
    card = {"task": task, "classes": classes}
    first, second = (_as_predictions(outputs, card).decisions() for outputs in (one, other))
    return float((first == second).all(1).mean())


def _as_predictions(outputs: NDArray[Any], card: Mapping[str, Any], images: Split | None = None) -> Predictions:
    """Return outputs [N, K] as predictions decided in the plain way, with the images' labels if there are images."""
    return predictions.from_outputs(
        outputs.astype(np.float32),
        task=card["task"],
        ids=np.arange(len(outputs)).astype(np.str_),
        classes=card["classes"],
        targets=None if images is None else images.labels,
        made_by={},
    )


def _score(outputs: NDArray[Any], card: Mapping[str, Any], images: Split) -> float | None:
    """Return the value of the competition's metric; None where the images leave it undefined."""
    ready = decisions.prepare_for_scoring(_as_predictions(outputs, card, images), card["metric"])
    scored = scores_of(ready, card["metric"])
    return None if scored is None else scored.value(card["metric"])


def compare_speed(
    source: "Exportable", networks: Mapping[str, Path], card: Mapping[str, Any], images: Split
) -> dict[str, Any]:
    """Return images a second and scores of the float and the int8 ONNX file beside `comp predict`, for the card."""
    threads, check = source.parts[0].execution.threads, card["check"]
    batch = images.take(np.arange(min(_BATCH, len(images))), images.name)
    pixels, few = (portable.to_input(np.asarray(split.images), card["input"]["type"]) for split in (images, batch))
    sessions = {name: int8.session(path, threads) for name, path in networks.items()}
    contestants: dict[str, Callable[[], Any]] = {
        **{name: functools.partial(int8.run, opened, few) for name, opened in sessions.items()},
        f"comp predict, {source.precision}": lambda: [predict_plainly(part, batch) for part in source.parts],
    }
    seconds = measure(contestants, _ROUNDS)
    scores = (
        _score(int8.run(next(iter(sessions.values())), pixels), card, images),
        check["exported"],
        check["predict"],
    )
    compared = [
        {"network": name, "images_per_second": round(len(batch) / seconds[name], 1), "score": score}
        for name, score in zip(contestants, scores, strict=True)
    ]
    float_rate, int8_rate, comp_rate = (row["images_per_second"] for row in compared)
    slower = "int8 is slower here: {:.2f} times the speed of {}".format
    poor = f"int8 answers like the float network on only {check['agreement']:.1%} of the images: compare the scores"
    warnings = {
        poor: check["agreement"] < int8.GOOD_AGREEMENT,
        slower(int8_rate / float_rate, "the float network"): int8_rate < float_rate,
        slower(int8_rate / comp_rate, "comp predict"): int8_rate < comp_rate,
    }
    return {
        "batch": len(batch),
        "threads": threads,
        "machine": machine.cpu_model(),
        "metric": card["metric"],
        "compared": compared,
        "warnings": [warning for warning, applies in warnings.items() if applies],
    }


def measure(contestants: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each contestant's calls, which take turns (A B A B); a first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds + 1):
        for name, call in contestants.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
        signals.raise_if_interrupted()
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}
