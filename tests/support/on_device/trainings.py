"""Whole trainings, resumes and predictions: the same run on the device as on the CPU."""

import math
import os
from collections.abc import Callable
from contextlib import chdir
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from comp import config as configs
from comp.config import Config
from comp.config.yaml_io import merge
from comp.inference.inputs import PredictInput
from comp.inference.options import PredictOptions
from comp.results.files import read_json
from comp.results.run_metrics import RunMetrics
from comp.results.runs import Run
from comp.runtime.errors import Interrupted
from comp.workflows import train
from comp.workflows.evaluate import evaluate
from comp.workflows.load import load_for_input, load_run
from comp.workflows.predict import predict_input, predict_split
from comp.workflows.probe import probe
from tests.support.commands import interrupt_at
from tests.support.configs import small_config, write_arrays, write_config
from tests.support.on_device import Check, Values
from tests.support.pretend_device import counted
from tests.support.runs import history_without_clock, the_run, weights_of

_CONFIG: dict[str, Any] = {
    "competition": {"suite": {"source": "none"}, "ood_validation": {"severities": []}},
    "train": {"epochs": 2},
}
_WITH_SUITE: dict[str, Any] = {
    "competition": {
        "suite": {"source": "corrupt_test", "images_per_block": 12, "files": 3, "severities": 2},
        "ood_validation": {"severities": [3], "per_block": 4},
    }
}
_EVERYTHING: dict[str, Any] = {
    "train": {"average": "ema", "log_norms": True},
    "optim": {"clip": "norm", "lookahead": {"k": 2}},
}
# Name -> settings beside those of `_CONFIG`, and how far from the CPU's the weights may end (0: bit for bit).
TRAININGS: dict[str, tuple[dict[str, Any], float]] = {
    "plain": ({}, 0.0),
    "ema": ({"train": {"average": "ema"}}, 0.0),
    "swa": ({"train": {"average": "swa", "swa_epochs": 1}}, 0.0),
    "soup": ({"train": {"average": "soup", "soup_epochs": 2}}, 0.0),
    "norms and clipping": ({"train": {"log_norms": True}, "optim": {"clip": "norm"}}, 0.0),
    "adaptive clipping": ({"optim": {"clip": "adaptive"}}, 0.0),
    "consistency": ({"augment": {"policy": ["basic", "augmix"], "mixup": 0}, "train": {"consistency": "jsd"}}, 0.0),
    "robust and cutmix": ({"augment": {"policy": ["alternating_flip", "robust"], "cutmix": 1.0}}, 0.0),
    "micro-batches": ({"train": {"micro_batch": 8}}, 0.0),
    "sizes": ({"model": {"name": "fastnet", "args": {"size": "S"}}, "train": {"sizes": {1: 24, 2: 32}}}, 0.0),
    "unfreezing": ({"model": {"freeze": ["all_but_head"], "unfreeze": {2: ["*"]}}, "optim": {"name": "sgd"}}, 0.0),
    "lookahead": ({"optim": {"name": "lion", "lookahead": {"k": 2}}}, 0.0),
    "focal, sampled and weighted": (
        {"data": {"sampling": "balanced"}, "train": {"loss": "focal", "class_weights": {"1": 2.0}}},
        0.0,
    ),
    "muon": ({"optim": {"name": "muon"}}, 0.05),
    "shifted validation": (_WITH_SUITE, 0.0),
    "streamed": ({"data": {"loading": "streamed", "workers": 1}}, 0.0),
    "deterministic": ({"train": {"deterministic": True}}, 0.0),
    "channels last": ({"train": {"channels_last": True}}, 0.0),
    "whitened fastnet": ({"model": {"name": "fastnet", "args": {"size": "S"}}}, 0.0),
    "batch norm and ema": ({"model": {"name": "test_resnet"}, "train": {"average": "ema"}}, 0.0),
    "attention": ({"model": {"name": "test_vit", "timm": {"img_size": 32}}}, 0.001),
    "saved every epoch": ({"train": {"nan_retries": 1}}, 0.0),
    "bf16": ({"train": {"precision": "bf16"}}, 0.05),
    "fp16": ({"train": {"precision": "fp16"}}, 0.05),
}
ONLY_CUDA = ("bf16", "fp16")
# Those that MPS could refuse for its missing doubles: what sums, normalises, whitens, mixes or averages.
ON_MPS = (
    "plain", "norms and clipping", "consistency", "robust and cutmix", "muon", "whitened fastnet", "batch norm and ema",
    "focal, sampled and weighted",
)  # fmt: skip

# Kinds of prediction: options and what is predicted.
PREDICTIONS: dict[str, tuple[PredictOptions, str]] = {
    "val": (PredictOptions(), "val"),
    "suite": (PredictOptions(), "suite"),
    "flip": (PredictOptions(views="flip"), "test"),
    "uncertain": (PredictOptions(views="flip_shift", views_share=0.5), "test"),
    "bn": (PredictOptions(adapt="bn"), "test"),
    "tent": (PredictOptions(adapt="tent", adapt_per="file"), "suite"),
    "images": (PredictOptions(views="flip", adapt="bn"), ""),
}


def checks() -> dict[str, Check]:
    """Return the checks by name."""
    return {
        **{f"training/{name}": partial(_check_training, name) for name in TRAININGS},
        "resume": _check_resume,
        "predictions": _check_predictions,
        "lr-find": _check_lr_find,
    }


def _in_a_folder(check: Callable[[torch.device], Values]) -> Check:
    def run(device: torch.device) -> Values:
        with TemporaryDirectory() as folder, chdir(folder):
            os.environ["COMP_CACHE"] = str(Path(folder) / "cache")
            write_arrays(Path("data"))
            return check(device)

    return run


def _config(device: str, settings: dict[str, Any]) -> Config:
    values = merge(merge(small_config(Path("data").absolute()), _CONFIG), settings)
    if "model" in settings and "name" in settings["model"]:
        values["model"] = settings["model"]  # other networks take other arguments
    values["train"]["device"] = device
    return configs.load(write_config(Path("small.yaml"), values))


def _train(device: str, settings: dict[str, Any]) -> Run:
    return train.train(_config(device, settings), runs_root=Path(f"runs-{device}"))


def _compare_runs(ours: Run, plain: Run, within: float) -> None:
    """Assert that two runs ended alike: bit for bit, or with weights whose distance is within a share of their norm."""
    first, second = weights_of(ours), weights_of(plain)
    assert first.keys() == second.keys()
    if within:
        norms = [np.linalg.norm(second[name].astype(float)) for name in second]
        distances = [np.linalg.norm(first[name].astype(float) - second[name]) for name in second]
        distance = float(np.linalg.norm(distances) / np.linalg.norm(norms))
        assert distance <= within, f"the final weights differ from the CPU's by {distance:g} of their norm"
        return
    different = [name for name in first if not np.array_equal(first[name], second[name])]
    assert not different, f"final weights differ from the CPU's: {', '.join(different)}"
    for row, other in zip(history_without_clock(ours), history_without_clock(plain), strict=True):
        for column in row:
            assert _is_close(row[column], other[column]), f"{column}: {row[column]}, on the CPU {other[column]}"
    assert _scores(ours.metrics()) == _scores(plain.metrics())


def _is_close(cell: str, other: str) -> bool:
    """Return whether cells of history.csv agree: sums of a step are float32 where there are no doubles."""
    return cell == other or math.isclose(float(cell), float(other), rel_tol=1e-6)


def _scores(metrics: RunMetrics) -> list[Any]:
    return [metrics.final, metrics.best, metrics.averaged]


def _check_training(name: str, device: torch.device) -> Values:
    settings, within = TRAININGS[name]

    @_in_a_folder
    def check(device: torch.device) -> Values:
        with counted() as counts:
            ours = _train(device.type, settings)
        plain = settings
        if name in ONLY_CUDA:  # the CPU's counterpart is in full precision
            plain = merge(settings, {"train": {"precision": "fp32"}})
        _compare_runs(ours, _train("cpu", plain), within)
        return counts.to_json()

    return check(device)


@_in_a_folder
def _check_resume(device: torch.device) -> Values:
    whole = _train(device.type, _EVERYTHING)
    for step in (4, 6):  # at an epoch's end, and within one
        folder = Path(f"stopped-{step}")
        try:
            train.train(_config(device.type, _EVERYTHING), runs_root=folder, progress=interrupt_at(step))
        except Interrupted:
            pass
        else:
            raise AssertionError("not interrupted")
        _compare_runs(train.resume(the_run(folder)), whole, 0.0)
    return {}


@_in_a_folder
def _check_predictions(device: torch.device) -> Values:
    """Predict in every way on the device and on the CPU, with the weights that the device trained."""
    run = _train(device.type, {**_WITH_SUITE, "model": {"name": "test_resnet"}})  # its batch norms adapt
    source = PredictInput(images=np.load("data/test_images.npy")[:6])
    results: dict[str, list[Any]] = {}
    for place in (device.type, "cpu"):
        for name, (options, split) in PREDICTIONS.items():
            if split:
                predicted = predict_split(load_run(run, device=place), split, options=options)
            else:
                loaded = load_for_input(run, source, device=place)
                predicted = predict_input(loaded, source, options=options).predictions
            results.setdefault(name, []).append(predicted.outputs)
        results.setdefault("evaluate", []).append(evaluate(run, device=place)["test"])
    results["probe"] = [_probed(run, place) for place in (device.type, "cpu")]
    for name, (ours, plain) in results.items():
        same = np.array_equal(ours, plain) if isinstance(ours, np.ndarray) else ours == plain
        assert same, f"{name} differs from the CPU's"
    return {"compared": list(results)}


def _probed(run: Run, place: str) -> list[Any]:
    """Return the scores of a probe, which computes features where the run's record says that it trained."""
    recorded = read_json(run.path / "execution.json")
    run.write_json("execution.json", {**recorded, "device": place})
    return _scores(probe(run, name="knn", runs_root=Path(f"probe-{place}")).metrics())


@_in_a_folder
def _check_lr_find(device: torch.device) -> Values:
    ours, plain = (train.find_learning_rate(_config(place, {}), steps=20) for place in (device.type, "cpu"))
    assert ours.losses == plain.losses, "the losses differ from the CPU's"
    return {"suggestion": ours.suggestion}
