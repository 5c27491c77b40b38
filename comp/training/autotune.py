"""How to run a training: a few steps on scratch copies of the model, timed in every way that is worth trying.

Four questions, each asked only where the config leaves it open and the machine has more than one answer: precision
and layout together, then threads, then torch.compile of the best so far, then loader workers where images are streamed.

What was timed is kept in the user's cache folder (`comp.data.cache.user_folder`), and trials, folds and repeats decide
by it without timing anything: a file for each machine, network, shape of images and batch size. What is timed while
more processes run than the machine has room for is not kept. Deleting the folder times anew.
"""

import copy
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from comp.config import Config, seconds_of
from comp.config.tasks import TASKS
from comp.data import loading
from comp.data.cache import user_folder
from comp.data.dataset import Dataset
from comp.data.images import ImageFiles, reading_workers
from comp.data.loading import Transform
from comp.results import files, runs
from comp.runtime import device
from comp.runtime.device import Execution
from comp.runtime.errors import ConfigError, RunError
from comp.runtime.progress import Progress, quiet
from comp.training import eager, losses
from comp.training.memory import refuse_if_hopeless

Step = Callable[[Tensor, Tensor], None]  # (images, labels): takes a training step and waits for the device
_Value = TypeVar("_Value")

# Another choice must be this much faster than the plainest one: timings of a few steps scatter by about as much.
_WORTHWHILE = 1.05
_ROUNDS = 4
_HOPELESS = 1.5  # times the fastest: further rounds would not change that
_FEWEST_IMAGES = 32
_SHARE, _LEAST_SECONDS, _MOST_SECONDS = 0.02, 2.0, 40.0  # of the planned training, that one question may take
# Building a graph takes ten seconds to minutes: in a shorter training even the try costs more than it can bring.
_COMPILE_FROM_SECONDS = 900.0
_WORKER_STEPS = 10
_WORKER_ROUNDS = 2  # in each of which other workers must be worthwhile
_MOST_WORKERS = 16
_RULES = 1  # goes into every key: raised when something else is timed, which makes old records unreachable
# Of section `model`, what a step's time does not depend on.
_WEIGHTLESS = {"pretrained", "from_run", "sha256", "drop_rate", "drop_path_rate", "normalize", "unfreeze"}
# Of section `augment`, what is not done to an image on its way through a worker.
_MIXING = {"mixup", "cutmix", "switch_probability", "mix_off_epochs"}


@dataclass
class ExecutionChoice:
    """How to run, and what was timed to find out; the content of execution.json.

    Attributes:
        execution: the choice.
        seconds_a_step: of each candidate, for the config's batch; scaled up where smaller steps were timed, since not
            more could be afforded. Empty where nothing was left to choose.
        timing_seconds: what finding out took.
        timed_before: the file that all timings were read from; empty where some were taken now, or there are none.
        notes: what people should know of it.
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
    model: nn.Module, dataset: Dataset, config: Config, *, transform: Transform | None = None,
    progress: Progress = quiet,
) -> ExecutionChoice:  # fmt: skip
    """Return how to train: what the config fixes, and for the rest what a few timed steps say, now or before.

    Args:
        model: on the CPU; copies of it are trained, and it stays as it is.
        dataset: whose training images the steps see.
        config: sections train (device, precision, channels_last, threads, compile) and data (workers).
        transform: what loader workers do to an image; None where they do nothing, or there are none.
        progress: called after each candidate's first step.

    Raises:
        ConfigError: `train.device` is not here, or `train.compile` is true and nothing can be compiled.
        RunError: not even two images fit the memory.
    """
    began = time.perf_counter()
    wanted, place = config.train, device.choose_device(config.train.device)
    missing = device.missing_compiler(place)
    if wanted.compile is True and missing:
        raise ConfigError(f"train.compile: {missing}; install one or use train.compile=false")
    threads = [wanted.threads] if wanted.threads else device.threads_worth_trying(place)
    candidates = [
        Execution(place, precision, layout, threads[0], workers=reading_workers(config.data.workers))
        for precision in _open(wanted.precision, device.precisions_worth_trying(place))
        for layout in _open(wanted.channels_last, [False, True])
    ]
    choice = ExecutionChoice(candidates[0])
    if place == "cpu" and not wanted.threads and threads[0] < (most := device.wished_threads()):
        choice.notes.append(
            f"other processes keep the cores busy, so steps run on {threads[0]} of {most} threads; "
            f"train.threads={most} takes all of them"
        )
    record = _Record(_key(place, dataset, config))
    trial = _Trial(model, dataset, config, choice, record, progress)
    with preserve_rng_state(torch.device("cpu")):
        trial.ask("precision and layout", candidates)
        trial.ask("threads", [replace(choice.execution, threads=count) for count in threads])
        if wanted.compile == "auto":
            trial.ask_compile(missing, builds=1 + len(config.model.unfreeze) + len(set(config.optim.ends.values())))
        choice.execution = replace(choice.execution, compiled=choice.execution.compiled or wanted.compile is True)
        if config.data.workers == "auto" and not (dataset.resident and transform is None):
            trial.ask_workers(transform)
    choice.seconds_a_step = {name: round(seconds, 5) for name, seconds in choice.seconds_a_step.items()}
    choice.timing_seconds = round(time.perf_counter() - began, 2)
    kept = record.kept()
    choice.timed_before = kept if choice.seconds_a_step else ""
    return choice


def _key(place: str, dataset: Dataset, config: Config) -> str:
    """Return what the time of a step depends on, for the candidates that `_label` tells apart."""
    gpu = torch.cuda.get_device_name() if place == "cuda" else ""
    key = {
        "rules": _RULES, "torch": torch.__version__, "processor": runs.cpu_model(), "gpu": gpu,
        "cores": device.usable_cores(), "device": place, "task": dataset.competition.task,
        "model": config.model.model_dump(mode="json", exclude=_WEIGHTLESS),
        "classes": len(dataset.competition.classes), "image_shape": dataset.train.image_shape,
        "batch_size": min(config.train.batch_size, len(dataset.train)), "micro_batch": config.train.micro_batch,
    }  # fmt: skip
    return json.dumps(key, sort_keys=True, default=str)


class _Record:
    """The seconds that were timed before under one key, by question and candidate, and those that are timed now."""

    def __init__(self, key: str) -> None:
        folder = user_folder()
        self._path = folder and folder / "timing" / f"{files.sha256_bytes(key.encode())[:32]}.json"
        self._seconds: dict[str, dict[str, float]] = {}
        self._grew = False
        if self._path:
            with suppress(RunError):
                self._seconds = _checked(files.read_json(self._path), self._path)

    def known(self, question: str, candidates: Sequence[str]) -> dict[str, float] | None:
        """Return the seconds of all candidates; None where one was never timed."""
        found = self._seconds.get(question, {})
        return {name: found[name] for name in candidates} if found.keys() >= set(candidates) else None

    def add(self, question: str, seconds: Mapping[str, float]) -> None:
        """Note what was timed, in place of what was known of the question."""
        self._seconds[question] = dict(seconds)
        self._grew = True

    def kept(self) -> str:
        """Keep what was timed now, and return an empty text; where there was nothing to time, the file's name."""
        if not self._grew:
            return str(self._path)
        if self._path and not device.is_busy():
            with suppress(RunError, OSError):  # a home that cannot be written costs time, never a run
                files.make_folder(self._path.parent)
                files.write_atomically(self._path, files.to_json(self._seconds))
        return ""


def _checked(values: Mapping[str, Any], path: Path) -> dict[str, dict[str, float]]:
    """Return a record's values.

    Raises:
        RunError: damaged.
    """
    rows = [row.values() if isinstance(row, dict) else [None] for row in values.values()]
    if not all(isinstance(value, float) and math.isfinite(value) and value > 0 for row in rows for value in row):
        raise RunError(f"{path}: damaged: expected seconds")
    return dict(values)


def _open(fixed: _Value | Literal["auto"], tried: Sequence[_Value]) -> Sequence[_Value]:
    return tried if fixed == "auto" else [fixed]


class _Trial:
    """Asks one question after the other, and writes the answers into a `Choice`."""

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        config: Config,
        choice: ExecutionChoice,
        record: _Record,
        progress: Progress,
    ) -> None:
        self._model, self._dataset, self._choice, self._progress = model, dataset, choice, progress
        self._record = record
        self._batch_size = min(config.train.batch_size, len(dataset.train))
        self._at_a_time = min(config.train.micro_batch or self._batch_size, self._batch_size)
        self._config = config

    def ask(self, what: str, candidates: Sequence[Execution]) -> None:
        """Time candidates of one question, the plainest first, and keep the best."""
        if len(candidates) < 2:
            return
        seconds = self._known(what, candidates)
        if seconds is None:
            count = self._affordable_images(candidates[0], len(candidates) * (_ROUNDS + 1))
            seconds = self._race(what, {candidate: self._step(candidate) for candidate in candidates}, count)
        fastest = min(candidates, key=lambda candidate: seconds[candidate])
        worthwhile = seconds[fastest] * _WORTHWHILE < seconds[candidates[0]]
        self._choice.execution = fastest if worthwhile else candidates[0]

    def ask_compile(self, missing: str, builds: int) -> None:
        """Compile the choice so far where the training is long enough, and keep that if it wins with its building time.

        Args:
            missing: why nothing can be compiled here; empty where it can.
            builds: how often the graph is built: anew whenever other parameters are trained.
        """
        plain = self._choice.execution
        if self._planned_seconds(self._probe(plain)) < _COMPILE_FROM_SECONDS:
            return
        if missing:
            self._choice.notes.append(f"train.compile: {missing}; steps run uncompiled")
            return
        compiled = replace(plain, compiled=True)
        what, label = "compiled steps", _label(compiled)
        seconds, built = self._known(what, [plain, compiled]), self._record.known("building", [label])
        if seconds is None or built is None:
            count = self._affordable_images(plain, 2 * (_ROUNDS + 1))
            steps, batch = {plain: self._step(plain), compiled: self._step(compiled)}, self._batch(plain, count)
            began = time.perf_counter()
            try:
                steps[compiled](*batch)
            except ConfigError as error:
                self._choice.notes.append(f"{error}; steps run uncompiled")
                return
            built = {label: time.perf_counter() - began}
            self._record.add("building", built)
            seconds = self._race(what, steps, count)
        building = built[label]
        planned_steps = self._planned_seconds(seconds[plain] / self._batch_size) / seconds[plain]
        total = {execution: taken * planned_steps for execution, taken in seconds.items()}
        if (total[compiled] + builds * building) * _WORTHWHILE < total[plain]:
            self._choice.execution = compiled
        self._choice.notes.append(f"train.compile: {building:.0f} s to build, {builds} times")

    def ask_workers(self, transform: Transform | None) -> None:
        """Time training on streamed images with several numbers of workers.

        The usual number stays unless another one is worthwhile in both of two rounds, of which the second sees those
        alone that were so in the first.
        """
        plain = self._choice.execution
        usual = plain.workers
        counts = sorted({0, max(1, usual // 2), usual, min(_MOST_WORKERS, device.usable_cores())})
        what = f"workers {self._input(transform)}"
        self._choice.execution = replace(plain, workers=self._best_workers(what, counts, usual, transform))

    def _best_workers(self, what: str, counts: list[int], usual: int, transform: Transform | None) -> int:
        taken = dict.fromkeys(counts, 0.0)
        for number in range(_WORKER_ROUNDS):
            seconds = self._seconds_by_workers(f"{what} round {number + 1}", counts, transform)
            counts = [count for count in counts if count == usual or seconds[count] * _WORTHWHILE < seconds[usual]]
            taken = {count: taken[count] + seconds[count] for count in counts}
            if counts == [usual]:
                break
        return min(counts, key=lambda count: taken[count])

    def _seconds_by_workers(self, what: str, counts: list[int], transform: Transform | None) -> dict[int, float]:
        """Return the seconds a step by number of workers."""
        names = {count: f"{count} workers" for count in counts}
        known = self._record.known(what, list(names.values()))
        if known is None:
            plain = self._choice.execution
            images = self._affordable_images(plain, _WORKER_ROUNDS * len(counts) * _WORKER_STEPS)
            step, known = self._step(plain), {}
            step(*self._batch(plain, images))  # warm, before the first loader
            for count, name in names.items():
                taken = self._seconds_with_workers(step, count, images, transform)
                known[name] = taken * self._batch_size / images
                self._progress("timing loader workers", len(known), len(counts), "candidates")
            self._record.add(what, known)
        self._choice.seconds_a_step |= known
        return {count: known[name] for count, name in names.items()}

    def _input(self, transform: Transform | None) -> str:
        """Return what the time to read an image depends on."""
        images = self._dataset.train.images
        read = (images.content, images.resize) if isinstance(images, ImageFiles) else "array"
        changed = self._config.augment.model_dump(mode="json", exclude=_MIXING) if transform else None
        return files.sha256_bytes(json.dumps([read, changed], sort_keys=True).encode())[:16]

    def _seconds_with_workers(self, step: Step, workers: int, images: int, transform: Transform | None) -> float:
        """Return seconds a step between the first batch and the last; starting workers is paid once a training."""
        place, train = self._choice.execution.torch_device, self._dataset.train
        order = torch.arange(images * _WORKER_STEPS, device=place) % len(train)
        began = 0.0
        for batch in loading.Streamed(train, place, workers=workers, transform=transform).batches(
            order, images, epoch=1
        ):
            began = began or time.perf_counter()
            step(batch.images, batch.labels)
        return (time.perf_counter() - began) / (_WORKER_STEPS - 1)

    def _affordable_images(self, plain: Execution, steps: int) -> int:
        """Return how many images so many steps may have, at most the batch size; see the constants above."""
        seconds = self._probe(plain)
        allowed = min(max(_SHARE * self._planned_seconds(seconds), _LEAST_SECONDS), _MOST_SECONDS)
        return min(max(int(allowed / steps / seconds), _FEWEST_IMAGES), self._at_a_time)

    def _planned_seconds(self, seconds_an_image: float) -> float:
        """Return what the training's steps will take if an image takes so long: the budget, where there is one."""
        train = self._config.train
        if train.budget:
            return seconds_of(train.budget)
        steps = len(self._dataset.train) // self._batch_size * train.epochs
        return seconds_an_image * self._batch_size * steps

    def _probe(self, plain: Execution) -> float:
        """Return the seconds an image that a small step takes."""
        label = _label(plain)
        known = self._record.known(f"image in {label}", [label])
        if known is None:
            step = self._step(plain)

            def probed(count: int) -> float:
                batch = self._batch(plain, count)
                step(*batch)
                return min(_seconds(step, batch) for _ in range(_ROUNDS - 1)) / count

            known = {label: self._while_it_fits(min(_FEWEST_IMAGES, self._at_a_time), probed)}
            self._record.add(f"image in {label}", known)
        return known[label]

    def _known(self, what: str, candidates: Sequence[Execution]) -> dict[Execution, float] | None:
        """Return the seconds of candidates that were timed before; None where one was not."""
        known = self._record.known(what, [_label(candidate) for candidate in candidates])
        if known is None:
            return None
        self._choice.seconds_a_step |= known
        return {candidate: known[_label(candidate)] for candidate in candidates}

    def _step(self, execution: Execution) -> Step:
        scratch = execution.place(copy.deepcopy(self._model)).train()
        forward = execution.training_forward(scratch)
        optimizer = eager.SGD([p for p in scratch.parameters() if p.requires_grad], lr=0.0)
        criterion = losses.LOSSES[TASKS[self._dataset.competition.task].loss]

        def step(images: Tensor, labels: Tensor) -> None:
            torch.set_num_threads(execution.threads)
            with execution.autocast():
                logits = forward(execution.layout(images))
            loss = criterion(logits.float(), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss.item()  # waits for the device

        return step

    def _batch(self, execution: Execution, count: int) -> tuple[Tensor, Tensor]:
        place = execution.torch_device
        return loading.resident(self._dataset.train.head(count), place).batch(torch.arange(count, device=place))

    def _race(self, what: str, steps: Mapping[Execution, Step], count: int) -> dict[Execution, float]:
        """Return each candidate's seconds for the config's batch: the fastest step of several.

        They are taken in turns, so that a slow moment of the machine strikes all candidates. Where memory runs out,
        smaller steps are timed, as smaller ones will be taken.
        """
        return self._while_it_fits(count, lambda fitting: self._raced(what, steps, fitting))

    def _while_it_fits(self, count: int, timed: Callable[[int], _Value]) -> _Value:
        """Return what steps of `count` images show, or of half as many, until memory suffices."""
        while True:
            try:
                return timed(count)
            except (RuntimeError, MemoryError) as error:
                refuse_if_hopeless(error, count)
            count = self._at_a_time = count // 2

    def _raced(self, what: str, steps: Mapping[Execution, Step], count: int) -> dict[Execution, float]:
        batch = self._batch(next(iter(steps)), count)
        for done, step in enumerate(steps.values()):
            step(*batch)  # the first one allocates and picks kernels
            self._progress(f"timing {what}", done + 1, len(steps), "candidates")
        seconds = {candidate: _seconds(step, batch) for candidate, step in steps.items()}
        for _ in range(_ROUNDS - 1):
            for candidate, step in steps.items():
                if seconds[candidate] < _HOPELESS * min(seconds.values()):
                    seconds[candidate] = min(seconds[candidate], _seconds(step, batch))
        seconds = {candidate: taken * self._batch_size / count for candidate, taken in seconds.items()}
        known = {_label(candidate): taken for candidate, taken in seconds.items()}
        self._record.add(what, known)
        self._choice.seconds_a_step |= known
        return seconds


def _seconds(step: Step, batch: tuple[Tensor, Tensor]) -> float:
    began = time.perf_counter()
    step(*batch)
    return time.perf_counter() - began


def _label(candidate: Execution) -> str:
    layout = "channels_last" if candidate.channels_last else "channels_first"
    compiled = " compiled" if candidate.compiled else ""
    return f"{candidate.precision} {layout} {candidate.threads} threads{compiled}"


def preserve_rng_state(device: torch.device) -> AbstractContextManager[None]:
    """Give torch's global generators back as they were: a library must not disturb its user's draws."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def seed_generators(seed: int, place: torch.device) -> None:
    """Seed what a step on this device draws from; inside `counted_randomness`.

    `torch.manual_seed` gives the same bits, but where CUDA is absent or asleep it also formats and keeps a stack trace
    for every call: half a percent of a small network's step.
    """
    torch.default_generator.manual_seed(seed)
    if place.type == "cuda":
        torch.cuda.manual_seed(seed)
