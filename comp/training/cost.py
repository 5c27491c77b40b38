"""What a training will take: time, memory of the host and the GPU, disk.

Time comes from autotune's seconds a step, else from `comp.training.probe_step`, as memory and the time of a prediction
do. Sizes of files are computed.
"""

import math
import os
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from comp.config import Config, parse_duration
from comp.config.tasks import TASKS
from comp.data.dataset import Dataset
from comp.data.images import ImageFiles
from comp.data.splits import Split, Suite
from comp.inference.options import predict_options
from comp.inference.views import views
from comp.models.classifier import Classifier
from comp.results.runs import Run
from comp.runtime.device import Execution
from comp.runtime.errors import RunError
from comp.runtime.rng import preserve_rng_state
from comp.training import best_weights, probe_step
from comp.training.probe_step import Probe, tensor_bytes

LONG_SECONDS = 60.0  # shorter ones are over before anybody has read what they take
# Fewer a second, and more seconds for a step of few, are not to be feared on any machine.
_SLOW_MULTIPLICATIONS, _SLOW_STEP_SECONDS = 2.5e9, 0.01
_AVERAGE_PASSES = 3  # over the validation images for averaged weights after the last epoch
_HEADER, _MEMBER, _ARRAY = 100, 400, 360  # bytes beside a tensor in .safetensors and .pt, and an array in .npz
_ARRAYS, _BLOCK = 11, 64  # in a .npz of predictions; bytes of a block's name and size there
_DIGITS = 9  # characters of a probability in a submission
_LINE = 60  # bytes of a Python text beside its characters


@dataclass(frozen=True)
class Cost:
    """What a training is estimated to take.

    Attributes:
        training_seconds: of all steps; with a budget, the budget, which validation is a part of.
        validation_seconds: of clean and shifted validation.
        prediction_seconds: of test and suite, where they are predicted after the training.
        epochs: that are trained; of a budget, those that fit into it.
        host_bytes: most that the process holds at a time.
        host_total: bytes of the machine's memory; 0: unknown.
        gpu_bytes: most that the GPU holds for it; 0 without one.
        gpu_total: bytes of the GPU's memory.
        files: file of the run's folder, or `submission.csv` -> bytes.
        disk_bytes: most that these files take at a time; a new one is complete before it replaces an old one.
        disk_free: bytes free where runs are stored.
    """

    training_seconds: float
    validation_seconds: float
    prediction_seconds: float
    epochs: float
    host_bytes: int
    host_total: int
    gpu_bytes: int
    gpu_total: int
    files: Mapping[str, int]
    disk_bytes: int
    disk_free: int

    @property
    def seconds(self) -> float:
        """Seconds of everything."""
        return self.training_seconds + self.validation_seconds + self.prediction_seconds

    @property
    def is_long(self) -> bool:
        """Whether it is worth telling the user."""
        return self.seconds >= LONG_SECONDS

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        values = asdict(self)
        return {name: round(value, 1) if isinstance(value, float) else value for name, value in values.items()}

    def check_disk(self, run: Run) -> None:
        """Check that the files fit the disk.

        Raises:
            RunError: they do not.
        """
        if self.disk_bytes > self.disk_free:
            raise RunError(
                f"{run.path}: its weights, checkpoint and predictions take up to {self.disk_bytes / 1e9:,.2f} GB, "
                f"found {self.disk_free / 1e9:,.2f} GB free; make room, then: comp run --resume {run.path}"
            )


def estimate(
    config: Config,
    dataset: Dataset,
    model: Classifier,
    execution: Execution,
    *,
    folder: Path,
    step_seconds: float | None = None,
    predicts: bool = True,
    processes: int = 1,
) -> Cost:
    """Estimate what a training takes.

    Args:
        config: what is trained.
        dataset: its data.
        model: a copy of it takes a few steps; it stays unchanged.
        execution: the chosen one.
        folder: on the disk of the runs; it exists.
        step_seconds: of the config's batch on one device, where they are known.
        predicts: whether test and suite are predicted afterwards.
        processes: that train together.
    """
    resident = _resident_bytes()  # before the probe
    batch_size = min(config.train.batch_size, len(dataset.train))
    steps_per_epoch = len(dataset.train) // batch_size
    with preserve_rng_state(execution.torch_device):
        probe = probe_step.probe(config, dataset, model, execution, processes)
    if probe_step.measures_gpu(execution):
        torch.cuda.empty_cache()  # what the probe held is free for the training's data
    step = step_seconds or probe.step_seconds
    an_image = step / batch_size * probe.forward_share
    predicted = _passes(config) * sum(map(len, _predicted(dataset))) if predicts else 0
    budget = parse_duration(config.train.budget) if config.train.budget else 0.0
    weights_bytes = tensor_bytes(model.state_dict().values())
    files = _file_bytes(config, dataset, model, probe, predicts=predicts)
    return Cost(
        training_seconds=budget or config.train.epochs * steps_per_epoch * step / processes,
        validation_seconds=_validated_images(config, dataset) * an_image,
        prediction_seconds=predicted * an_image,
        epochs=budget / (steps_per_epoch * step / processes) if budget else config.train.epochs,
        host_bytes=resident + _host_bytes(config, dataset, execution, probe, weights_bytes, predicts=predicts),
        host_total=_host_total(),
        gpu_bytes=_gpu_bytes(config, dataset, probe, weights_bytes) if execution.device == "cuda" else 0,
        gpu_total=torch.cuda.mem_get_info()[1] if probe_step.measures_gpu(execution) else 0,
        files=files,
        disk_bytes=_most_at_a_time(config, files),
        disk_free=shutil.disk_usage(folder).free,
    )


def is_surely_short(config: Config, dataset: Dataset, model: Classifier, *, predicts: bool) -> bool:
    """Return whether even a slow machine is done within `LONG_SECONDS`, by one image's forward pass on the CPU."""
    train = config.train
    steps = 0 if train.budget else train.epochs * len(dataset.train) // min(train.batch_size, len(dataset.train))
    images = 3 * steps * train.batch_size + _validated_images(config, dataset)  # a step is three forward passes
    images += int(_passes(config) * sum(map(len, _predicted(dataset)))) if predicts else 0
    seconds = parse_duration(train.budget) if train.budget else steps * _SLOW_STEP_SECONDS
    if seconds >= LONG_SECONDS:
        return False
    multiplications = images * probe_step.count_multiplications(model, dataset.train.image_shape)
    return seconds + multiplications / _SLOW_MULTIPLICATIONS < LONG_SECONDS


def timed_step_seconds(execution: Execution, seconds_a_step: Mapping[str, float]) -> float | None:
    """Return the seconds a step of the chosen execution among those that autotune has timed; None: it has not.

    Those with loader workers include the reading of images. Of the others the fastest is the chosen one, or within the
    few percent that are not worth a choice.
    """
    if (with_workers := seconds_a_step.get(f"{execution.workers} workers")) is not None:
        return with_workers
    timed = [
        seconds
        for name, seconds in seconds_a_step.items()
        if name.startswith(f"{execution.precision} ")
        and (" compiled" in name) == execution.compiled
        and (" with CUDA graphs" in name) == execution.cuda_graphs
    ]
    return min(timed, default=None)


def _averages(config: Config) -> int:
    """Return how many copies of the weights an average keeps."""
    train = config.train
    if train.average == "soup":
        return train.soup_epochs if train.budget else min(train.soup_epochs, train.epochs)
    return int(train.average != "none")


def _validated_images(config: Config, dataset: Dataset) -> int:
    """Return how many images validation predicts, less what a budget includes."""
    train, at_end = config.train, config.competition.ood_validation.every == "end"
    shifted = len(dataset.ood_val or ()) if at_end else 0
    if train.budget:
        return shifted
    passes = 2 if train.average == "ema" else 1  # the average is scored beside the weights
    last = best_weights.validation_images(dataset, config, train.epochs, last=True)
    of_epochs = [
        best_weights.validation_images(dataset, config, number, last=number == train.epochs)
        for number in range(1, train.epochs + 1)
    ]
    return passes * sum(of_epochs) + (_AVERAGE_PASSES * last if train.average != "none" else 0) + shifted


def _predicted(dataset: Dataset) -> list[Split | Suite]:
    """Return what is predicted after the training."""
    labelled = dataset.test if dataset.test is not None and dataset.test.labels is not None else None
    return [split for split in (labelled, dataset.suite) if split is not None]


def _passes(config: Config) -> float:
    """Return how often a prediction looks at an image."""
    options = predict_options(config.predict)
    return 1 + options.views_share * (len(views(options.views)) - 1)


def _row_bytes(dataset: Dataset, images: Split | Suite) -> int:
    """Return the bytes of an image's prediction in a .npz."""
    classes, task = len(dataset.competition.classes), TASKS[dataset.competition.task]
    if isinstance(images, Split):
        letters, labelled = images.ids.dtype.itemsize // 4, images.labels is not None
    else:
        letters = max(len(f"{block.name}_{block.count - 1}") for block in images.blocks)
        labelled = not images.folder
    outputs = classes * (2 if task.shifted else 4)
    targets = (classes if task.target_columns else 4) if labelled else 0
    return 4 * letters + outputs + targets + (4 if task.one_class else 0)


def _line_bytes(dataset: Dataset) -> int:
    """Return the bytes of a submission's line."""
    suite, names = dataset.suite, dataset.competition.classes
    assert suite is not None
    if isinstance(suite, Split):
        key = sum(map(len, suite.ids.tolist())) / max(len(suite), 1)
    else:
        key = max(len(f"{block.name}_{block.count - 1}") for block in suite.blocks)
    columns = len(dataset.competition.header) - 1
    answer = sum(map(len, names)) / len(names) + 1 if columns < 2 else columns * (_DIGITS + 1)
    return round(key + answer + 1)


def _file_bytes(config: Config, dataset: Dataset, model: Classifier, probe: Probe, *, predicts: bool) -> dict[str, int]:
    """Return the bytes of every file of some size, by its name in the run's folder."""
    state, options = model.state_dict(), predict_options(config.predict)
    averages, plain = _averages(config), tensor_bytes(state.values())
    names = ["final", *(["averaged"] if averages else []), *(["best"] if dataset.val is not None else [])]
    files = {f"{name}.safetensors": plain + _HEADER * len(state) for name in names}
    copies = (1 + averages) * (plain + _MEMBER * len(state))
    files["state.pt"] = copies + probe.state_bytes + _MEMBER * probe.state_tensors
    splits = {f"val-{name}" if name != "best" else "val": dataset.val for name in names}
    rows: dict[str, Split | Suite | None] = {**splits, "ood_val": dataset.ood_val}
    if predicts:
        for split in _predicted(dataset):
            rows["suite" + options.suffix if split is dataset.suite else "test" + options.suffix] = split
        if dataset.suite is not None:
            files["submission.csv"] = len(dataset.suite) * _line_bytes(dataset)
    for name, images in rows.items():
        if images is not None:
            blocks = _BLOCK * len(images.blocks) if isinstance(images, Suite) else 0
            files[f"predictions/{name}.npz"] = len(images) * _row_bytes(dataset, images) + _ARRAYS * _ARRAY + blocks
    return files


def _most_at_a_time(config: Config, files: Mapping[str, int]) -> int:
    """Return the bytes when most are on the disk: a checkpoint beside its successor, or a suite beside its blocks."""
    state = files["state.pt"]
    weights = [size for name, size in files.items() if name.endswith(".safetensors")]
    suite = sum(size for name, size in files.items() if name.startswith("predictions/suite"))
    finished = sum(files.values()) - (0 if config.train.keep_state else state)
    return max(sum(weights) + max(weights) + 2 * state, finished + suite)


def _train_bytes(dataset: Dataset) -> int:
    """Return the bytes of resident training images."""
    return len(dataset.train) * math.prod(dataset.train.image_shape) if dataset.resident else 0


def _host_bytes(
    config: Config, dataset: Dataset, execution: Execution, probe: Probe, weights: int, *, predicts: bool
) -> int:
    """Return the bytes that training and prediction add to the process."""
    decoded = [split for split in (dataset.train, dataset.val) if split and isinstance(split.images, ImageFiles)]
    images = sum(len(split) * math.prod(split.image_shape) for split in decoded) if dataset.resident else 0
    # Loaded once more as a tensor, which stays or goes to the GPU.
    images += _train_bytes(dataset)
    training = 0 if execution.device == "cuda" else probe.device_bytes - weights + _averages(config) * weights
    suites = [suite for suite in (dataset.ood_val, dataset.suite if predicts else None) if suite is not None]
    # The blocks' predictions, and all in one; a block's clean pixels, and the corrupted ones.
    predicting = 0 if execution.device == "cuda" else probe.forward_bytes
    predicting += max((2 * len(suite) * _row_bytes(dataset, suite) for suite in suites), default=0)
    blocks = [block.count for suite in suites if isinstance(suite, Suite) for block in suite.blocks]
    predicting += 2 * max(blocks, default=0) * math.prod(dataset.train.image_shape)
    if predicts and dataset.suite is not None:
        predicting += len(dataset.suite) * (_LINE + 2 * _line_bytes(dataset))
    return images + max(training, predicting)


def _gpu_bytes(config: Config, dataset: Dataset, probe: Probe, weights: int) -> int:
    """Return the bytes that training needs on the GPU; a soup's members stay in host memory."""
    average = weights if config.train.average in ("ema", "swa") else 0
    return max(probe.device_bytes, weights + probe.forward_bytes) + average + _train_bytes(dataset)


def _resident_bytes() -> int:
    """Return the bytes that the process holds; elsewhere than on Linux what it has held at most."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    with suppress(ImportError):
        import resource  # not on Windows

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return 0


def _host_total() -> int:
    """Return the bytes of the machine's memory; 0 where the system does not say."""
    with suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 0
