"""Autotuning: time a few training steps on copies of the model, and choose how to run the training.

Four settings, each timed only where the config says `auto` and the machine has more than one option: precision and
layout together, then threads, then torch.compile of the best so far (on CUDA also with its steps captured as CUDA
graphs), then loader workers where images are streamed.

Timings are cached in the user's cache folder (`comp.data.cache.user_cache_folder`), a file for each machine, network,
image shape and batch size; trials, folds and repetitions reuse them. Timings of an overloaded machine are not cached.
Deleting the folder repeats them.
"""

import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from comp.augment.mixing import soft_targets
from comp.config import Config, parse_duration
from comp.config.plugins import portable
from comp.data import loading
from comp.data.dataset import Dataset
from comp.data.images import ImageFiles, resolve_workers
from comp.data.loading import Transform
from comp.results import files, runs
from comp.runtime import cores, device, memory
from comp.runtime.device import Execution
from comp.runtime.errors import ConfigError, plural
from comp.runtime.progress import Progress, quiet
from comp.runtime.rng import preserve_rng_state
from comp.training import losses, optimizers
from comp.training.distributed import is_distributed
from comp.training.step import SMALLEST
from comp.training.timing_cache import TimingCache

Step = Callable[[Tensor, Tensor], None]  # (images, labels): takes a training step and waits for the device
_Value = TypeVar("_Value")

# A candidate must be this much faster than the default: timings of a few steps scatter by about as much.
_WORTHWHILE = 1.05
_ROUNDS = 4
_HOPELESS = 1.5  # times the fastest: not timed in further rounds
_FEWEST_IMAGES = 32
_SHARE, _LEAST_SECONDS, _MOST_SECONDS = 0.02, 2.0, 40.0  # of the planned training, for one setting
# Building a graph takes ten seconds to minutes: in a shorter training even the attempt costs more than it can gain.
_COMPILE_FROM_SECONDS = 900.0
_WORKER_STEPS = 10
_WORKER_ROUNDS = 2  # in each of which another number of workers must be worthwhile
_MOST_WORKERS = 16
_RULES = 2  # part of every cache key: raise it when something else is timed
# Keys of section `model` that do not affect a step's time.
_WEIGHTLESS = {"pretrained", "from_run", "sha256", "drop_rate", "drop_path_rate", "normalize", "unfreeze"}
# Keys of section `augment` that do not affect the workers.
_MIXING = {"mixup", "cutmix", "switch_probability", "mix_off_epochs"}


@dataclass
class ExecutionChoice:
    """How to run, and the timings that decided it; the content of execution.json.

    Attributes:
        execution: the choice.
        seconds_a_step: of each candidate, for the config's batch; scaled up where smaller steps were timed to save
            time. Empty where nothing was left to choose.
        timing_seconds: duration of the autotuning.
        timed_before: the cache file of all timings; empty if some were taken now, or there are none.
        notes: for the user.
    """

    execution: Execution
    seconds_a_step: dict[str, float] = field(default_factory=dict)
    timing_seconds: float = 0.0
    timed_before: str = ""
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            **self.execution.to_json(),
            "seconds_a_step": self.seconds_a_step,
            "timing_seconds": self.timing_seconds,
            "timed_before": self.timed_before,
            "notes": self.notes,
        }


def choose_execution(
    model: nn.Module,
    dataset: Dataset,
    config: Config,
    *,
    transform: Transform | None = None,
    processes: int = 1,
    progress: Progress = quiet,
) -> ExecutionChoice:
    """Return how to train: the config's settings, and for `auto` the fastest by a few timed or cached steps.

    Args:
        model: on the CPU; copies are trained, it stays unchanged.
        dataset: its training images are used.
        config: sections train (device, precision, channels_last, threads, compile) and data (workers).
        transform: what loader workers do to an image; None if nothing.
        processes: that train together; each step is timed with one process's share of the batch.
        progress: called after each candidate's first step.

    Raises:
        ConfigError: `train.device` is not on this machine, or `train.compile` is true without a compiler.
        RunError: not even two images fit the memory.
    """
    began = time.perf_counter()
    train, device_name = config.train, device.choose_device(config.train.device)
    missing = device.missing_compiler(device_name)
    if train.compile is True and missing:
        raise ConfigError(f"train.compile: {missing}; install one or use train.compile=false")
    threads = [train.threads] if train.threads else cores.threads_worth_trying(device_name)
    candidates = [
        Execution(device_name, precision, layout, threads[0], workers=resolve_workers(config.data.workers))
        for precision in _options(train.precision, device.precisions_worth_trying(device_name))
        for layout in _options(train.channels_last, [False, True])
    ]
    choice = ExecutionChoice(candidates[0], notes=device.notes_on(train.device))
    most = cores.max_threads()
    if device_name == "cpu" and not train.threads and threads[0] < most:
        choice.notes.append(
            f"other processes keep the cores busy, so steps run on {threads[0]} of {most} threads; "
            f"set train.threads={most} to use all"
        )
    cache = TimingCache(_key(device_name, dataset, config, processes))
    tuner = _Tuner(model, dataset, config, choice, cache, processes, progress)
    with preserve_rng_state(torch.device("cpu")):
        tuner.choose("precision and layout", candidates)
        tuner.choose("threads", [replace(choice.execution, threads=count) for count in threads])
        if train.compile == "auto":
            tuner.choose_compile(missing, builds=1 + len(config.model.unfreeze) + len(set(config.optim.ends.values())))
        choice.execution = replace(choice.execution, compiled=choice.execution.compiled or train.compile is True)
        if config.data.workers == "auto" and not (dataset.resident and transform is None):
            tuner.choose_workers(transform)
    choice.seconds_a_step = {name: round(seconds, 5) for name, seconds in choice.seconds_a_step.items()}
    choice.timing_seconds = round(time.perf_counter() - began, 2)
    path = cache.save()
    choice.timed_before = path if choice.seconds_a_step else ""
    return choice


def _key(device_name: str, dataset: Dataset, config: Config, processes: int) -> str:
    """Return the cache key: everything a step's time depends on, except for what `_label` distinguishes."""
    gpu = torch.cuda.get_device_name() if device_name == "cuda" else ""
    key = {
        "rules": _RULES,
        "torch": torch.__version__,
        "processor": runs.cpu_model(),
        "gpu": gpu,
        "cores": cores.usable_cores(),
        "device": device_name,
        "task": dataset.competition.task,
        "model": config.model.model_dump(mode="json", exclude=_WEIGHTLESS),
        "classes": len(dataset.competition.classes),
        "image_shape": dataset.train.image_shape,
        "batch_size": min(config.train.batch_size, len(dataset.train)),
        "micro_batch": config.train.micro_batch,
        **({"processes": processes} if processes > 1 else {}),
        **({"plugins": portable(config.plugins)} if config.plugins else {}),
    }
    return json.dumps(key, sort_keys=True, default=str)


def _options(setting: _Value | Literal["auto"], candidates: Sequence[_Value]) -> Sequence[_Value]:
    return candidates if setting == "auto" else [setting]


class _Tuner:
    """Times one setting after the other, and writes the fastest into an `ExecutionChoice`."""

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        config: Config,
        choice: ExecutionChoice,
        cache: TimingCache,
        processes: int,
        progress: Progress,
    ) -> None:
        self._model, self._dataset, self._choice, self._progress = model, dataset, choice, progress
        self._cache = cache
        self._batch_size = min(config.train.batch_size, len(dataset.train))
        self._share = max(SMALLEST, self._batch_size // processes)  # of one process
        self._micro_batch = min(config.train.micro_batch or self._share, self._share)
        self._config = config

    def choose(self, setting: str, candidates: Sequence[Execution]) -> None:
        """Time a setting's candidates, the default first, and keep the fastest."""
        if len(candidates) < 2:
            return
        seconds = self._cached(setting, candidates)
        if seconds is None:
            count = self._affordable_images(candidates[0], len(candidates) * (_ROUNDS + 1))
            seconds = self._time(setting, {candidate: self._step(candidate) for candidate in candidates}, count)
        fastest = min(candidates, key=lambda candidate: seconds[candidate])
        worthwhile = seconds[fastest] * _WORTHWHILE < seconds[candidates[0]]
        self._choice.execution = fastest if worthwhile else candidates[0]

    def choose_compile(self, missing: str, builds: int) -> None:
        """Compile the choice so far if the training is long enough, and keep it if it wins including its build time.

        Args:
            missing: why this machine cannot compile; empty if it can.
            builds: how often the graph is built: again whenever the trainable parameters change.
        """
        plain = self._choice.execution
        if self._planned_seconds(self._probe(plain)) < _COMPILE_FROM_SECONDS:
            return
        if missing:
            self._choice.notes.append(f"train.compile: {missing}; steps run uncompiled")
            return
        variants = compiled_variants(plain, whole_batches=self._micro_batch == self._share)
        setting, labels = "compiled steps", [_label(variant) for variant in variants]
        seconds, building = self._cached(setting, [plain, *variants]), self._cache.get("building", labels)
        if seconds is None or building is None:
            count = self._affordable_images(plain, (1 + len(variants)) * (_ROUNDS + 1))
            steps, building = self._built(variants, self._batch(plain, count))
            if not steps:
                return
            self._cache.add("building", building)
            seconds = self._time(setting, {plain: self._step(plain), **steps}, count)
        planned_steps = self._planned_seconds(seconds[plain] / self._batch_size) / seconds[plain]
        total = {plain: seconds[plain] * planned_steps}
        for variant in seconds.keys() - {plain}:
            total[variant] = seconds[variant] * planned_steps + builds * building[_label(variant)]
        fastest = min(total, key=lambda execution: total[execution])
        if total[fastest] * _WORTHWHILE < total[plain]:
            self._choice.execution = fastest
        self._choice.notes += [
            f"train.compile: {building[_label(variant)]:.0f} s to build, {builds} times{_graphs(variant)}"
            for variant in variants
            if variant in total
        ]

    def _built(
        self, variants: Sequence[Execution], batch: tuple[Tensor, Tensor]
    ) -> tuple[dict[Execution, Step], dict[str, float]]:
        """Return the steps of the variants that can be built, and by label the seconds that took."""
        steps: dict[Execution, Step] = {}
        building: dict[str, float] = {}
        for variant in variants:
            step = self._step(variant)
            try:
                building[_label(variant)] = _seconds(step, batch)
                if variant.cuda_graphs:
                    step(*batch)  # the second call captures, and may fail to
            except ConfigError as error:
                self._choice.notes.append(f"{error}; steps run uncompiled")
                break
            except (RuntimeError, MemoryError) as error:
                what = "captured as CUDA graphs" if variant.cuda_graphs else "compiled"
                self._choice.notes.append(f"train.compile: steps cannot be {what} ({memory.reason_of(error)})")
                break
            steps[variant] = step
        return steps, building

    def choose_workers(self, transform: Transform | None) -> None:
        """Time training on streamed images with several numbers of workers.

        The default number stays unless another one is worthwhile in both of two rounds; the second round times only
        those that were in the first.
        """
        plain = self._choice.execution
        default = plain.workers
        counts = sorted({0, max(1, default // 2), default, min(_MOST_WORKERS, cores.usable_cores())})
        setting = f"workers {self._input_hash(transform)}"
        self._choice.execution = replace(plain, workers=self._best_workers(setting, counts, default, transform))

    def _best_workers(self, setting: str, counts: list[int], default: int, transform: Transform | None) -> int:
        total = dict.fromkeys(counts, 0.0)
        for number in range(_WORKER_ROUNDS):
            seconds = self._seconds_by_workers(f"{setting} round {number + 1}", counts, transform)
            counts = [count for count in counts if count == default or seconds[count] * _WORTHWHILE < seconds[default]]
            total = {count: total[count] + seconds[count] for count in counts}
            if counts == [default]:
                break
        return min(counts, key=lambda count: total[count])

    def _seconds_by_workers(self, setting: str, counts: list[int], transform: Transform | None) -> dict[int, float]:
        """Return seconds a step by number of workers."""
        names = {count: f"{count} workers" for count in counts}
        seconds = self._cache.get(setting, list(names.values()))
        if seconds is None:
            plain = self._choice.execution
            images = self._affordable_images(plain, _WORKER_ROUNDS * len(counts) * _WORKER_STEPS)
            step, seconds = self._step(plain), {}
            step(*self._batch(plain, images))  # warm, before the first loader
            for count, name in names.items():
                step_seconds = self._seconds_with_workers(step, count, images, transform)
                seconds[name] = step_seconds * self._batch_size / images
                self._progress("timing loader workers", len(seconds), len(counts), "candidates")
            self._cache.add(setting, seconds)
        self._choice.seconds_a_step |= seconds
        return {count: seconds[name] for count, name in names.items()}

    def _input_hash(self, transform: Transform | None) -> str:
        """Return a hash of everything the time to read an image depends on."""
        images = self._dataset.train.images
        source = (images.content, images.resize) if isinstance(images, ImageFiles) else "array"
        augment = self._config.augment.model_dump(mode="json", exclude=_MIXING) if transform else None
        return files.sha256_bytes(json.dumps([source, augment], sort_keys=True).encode())[:16]

    def _seconds_with_workers(self, step: Step, workers: int, images: int, transform: Transform | None) -> float:
        """Return seconds a step from the first batch to the last: workers start only once a training."""
        torch_device, train = self._choice.execution.torch_device, self._dataset.train
        order = torch.arange(images * _WORKER_STEPS, device=torch_device) % len(train)
        loader = loading.StreamedLoader(train, torch_device, workers=workers, transform=transform)
        began = 0.0
        for batch in loader.batches(order, images, epoch=1):
            began = began or time.perf_counter()
            step(batch.images, batch.labels)
        return (time.perf_counter() - began) / (_WORKER_STEPS - 1)

    def _affordable_images(self, plain: Execution, steps: int) -> int:
        """Return how many images each of so many steps can have within the time limit, at most a micro-batch."""
        seconds = self._probe(plain)
        allowed = min(max(_SHARE * self._planned_seconds(seconds), _LEAST_SECONDS), _MOST_SECONDS)
        return min(max(int(allowed / steps / seconds), _FEWEST_IMAGES), self._micro_batch)

    def _planned_seconds(self, seconds_an_image: float) -> float:
        """Return the seconds of the training's steps: the budget, or estimated from the seconds of an image."""
        train = self._config.train
        if train.budget:
            return parse_duration(train.budget)
        steps = len(self._dataset.train) // self._batch_size * train.epochs
        return seconds_an_image * self._batch_size * steps

    def _probe(self, plain: Execution) -> float:
        """Return the seconds an image, by a step; see `probe_images`."""
        label = _label(plain)
        seconds = self._cache.get(f"image in {label}", [label])
        if seconds is None:
            step = self._step(plain)

            def probe(count: int) -> float:
                batch = self._batch(plain, count)
                step(*batch)
                return min(_seconds(step, batch) for _ in range(_ROUNDS - 1)) / count

            seconds = {label: self._halve_until_fitting(probe_images(plain.device, self._micro_batch), probe)}
            self._cache.add(f"image in {label}", seconds)
        return seconds[label]

    def _cached(self, setting: str, candidates: Sequence[Execution]) -> dict[Execution, float] | None:
        """Return the cached seconds of the candidates; None if one is missing."""
        seconds = self._cache.get(setting, [_label(candidate) for candidate in candidates])
        if seconds is None:
            return None
        self._choice.seconds_a_step |= seconds
        return {candidate: seconds[_label(candidate)] for candidate in candidates}

    def _step(self, execution: Execution) -> Step:
        scratch = execution.place(copy.deepcopy(self._model)).train()
        forward = execution.training_forward(scratch)
        optimizer = optimizers.SGD([p for p in scratch.parameters() if p.requires_grad], lr=0.0)
        criterion = losses.build_criterion(self._config, self._dataset, execution.torch_device)

        def step(images: Tensor, labels: Tensor) -> None:
            torch.set_num_threads(execution.threads)
            with execution.autocast():
                logits = forward(execution.layout(images))
            loss = criterion(logits.float(), soft_targets(labels, classes=logits.shape[1]))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss.item()  # waits for the device

        return step

    def _batch(self, execution: Execution, count: int) -> tuple[Tensor, Tensor]:
        torch_device = execution.torch_device
        head = self._dataset.train.head(count)
        rows = torch.arange(count, device=torch_device) % len(head)  # of fewer images, some are taken again
        return loading.load_resident(head, torch_device).batch(rows)

    def _halve_until_fitting(self, count: int, measure: Callable[[int], _Value]) -> _Value:
        """Return the measurement for `count` images, or for half as many, until memory suffices."""
        fitting = memory.MicroBatch(count, smallest=SMALLEST)
        result = fitting.fit(count, measure)
        if fitting.has_shrunk:
            self._micro_batch = fitting.images
        return result

    def _time(self, setting: str, steps: Mapping[Execution, Step], count: int) -> dict[Execution, float]:
        """Return each candidate's seconds for the config's batch: the fastest step of several.

        Candidates take turns, so that a slow moment of the machine affects all. Where memory runs out, smaller steps
        are timed, as in the training.
        """
        return self._halve_until_fitting(count, lambda fitting: self._time_steps(setting, steps, fitting))

    def _time_steps(self, setting: str, steps: Mapping[Execution, Step], count: int) -> dict[Execution, float]:
        batch = self._batch(next(iter(steps)), count)
        for done, step in enumerate(steps.values()):
            step(*batch)  # the first one allocates and picks kernels
            self._progress(f"timing {setting}", done + 1, len(steps), "candidates")
        seconds = {candidate: _seconds(step, batch) for candidate, step in steps.items()}
        for _ in range(_ROUNDS - 1):
            for candidate, step in steps.items():
                if seconds[candidate] < _HOPELESS * min(seconds.values()):
                    seconds[candidate] = min(seconds[candidate], _seconds(step, batch))
        seconds = {candidate: value * self._batch_size / count for candidate, value in seconds.items()}
        by_label = {_label(candidate): value for candidate, value in seconds.items()}
        self._cache.add(setting, by_label)
        self._choice.seconds_a_step |= by_label
        return seconds


def probe_images(device_name: str, micro_batch: int) -> int:
    """Return how many images the first step is timed with.

    On the CPU few are enough. An accelerator starts kernels for 32 images as long as for 512: there only the training's
    own batch tells the time of an image, and one step costs nothing.
    """
    return min(_FEWEST_IMAGES, micro_batch) if device_name == "cpu" else micro_batch


def compiled_variants(plain: Execution, *, whole_batches: bool) -> list[Execution]:
    """Return how steps may be compiled: on CUDA also captured, where one process takes a batch at once.

    Gradients of micro-batches add up, and a captured step would overwrite those of the one before.
    """
    compiled = replace(plain, compiled=True)
    captures = plain.device == "cuda" and whole_batches and not is_distributed()
    return [compiled, replace(compiled, cuda_graphs=True)] if captures else [compiled]


def _graphs(execution: Execution) -> str:
    return " with CUDA graphs" if execution.cuda_graphs else ""


def _seconds(step: Step, batch: tuple[Tensor, Tensor]) -> float:
    began = time.perf_counter()
    step(*batch)
    return time.perf_counter() - began


def _label(candidate: Execution) -> str:
    layout = "channels_last" if candidate.channels_last else "channels_first"
    compiled = " compiled" if candidate.compiled else ""
    return f"{candidate.precision} {layout} {plural(candidate.threads, 'thread')}{compiled}{_graphs(candidate)}"
