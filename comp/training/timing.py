"""How to run a training: a few steps on scratch copies of the model, timed in every way that is worth trying.

Four questions, each asked only where the config leaves it open and the machine has more than one answer: precision
and layout together, then threads, then torch.compile of the best so far, then loader workers where images are streamed.
"""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from comp import device
from comp.config import Config, seconds_of
from comp.data import loading
from comp.data.dataset import Dataset
from comp.data.images import reading_workers
from comp.data.loading import Transform
from comp.device import Execution
from comp.errors import ConfigError
from comp.progress import Progress, quiet
from comp.tasks import TASKS
from comp.training import losses
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
_MOST_WORKERS = 16


@dataclass
class Choice:
    """How to run, and what was timed to find out; the content of execution.json.

    Attributes:
        execution: the choice.
        seconds_a_step: of each candidate, for the config's batch; scaled up where smaller steps were timed, since not
            more could be afforded. Empty where nothing was left to choose.
        timing_seconds: what finding out took.
        notes: what people should know of it.
    """

    execution: Execution
    seconds_a_step: dict[str, float] = field(default_factory=dict)
    timing_seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            **self.execution.to_json(),
            "seconds_a_step": self.seconds_a_step,
            "timing_seconds": self.timing_seconds,
            "notes": self.notes,
        }


def choose_execution(
    model: nn.Module, dataset: Dataset, config: Config, *, transform: Transform | None = None,
    progress: Progress = quiet,
) -> Choice:  # fmt: skip
    """Return how to train: what the config fixes, and for the rest what a few timed steps say.

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
    choice = Choice(candidates[0])
    trial = _Trial(model, dataset, config, choice, progress)
    with counted_randomness(torch.device("cpu")):
        trial.ask("precision and layout", candidates)
        trial.ask("threads", [replace(choice.execution, threads=count) for count in threads])
        if wanted.compile == "auto":
            trial.ask_compile(missing, builds=1 + len(config.model.unfreeze) + len(set(config.optim.ends.values())))
        choice.execution = replace(choice.execution, compiled=choice.execution.compiled or wanted.compile is True)
        if config.data.workers == "auto" and not (dataset.resident and transform is None):
            trial.ask_workers(transform)
    choice.seconds_a_step = {name: round(seconds, 5) for name, seconds in choice.seconds_a_step.items()}
    choice.timing_seconds = round(time.perf_counter() - began, 2)
    return choice


def _open(fixed: _Value | Literal["auto"], tried: Sequence[_Value]) -> Sequence[_Value]:
    return tried if fixed == "auto" else [fixed]


class _Trial:
    """Asks one question after the other, and writes the answers into a `Choice`."""

    def __init__(self, model: nn.Module, dataset: Dataset, config: Config, choice: Choice, progress: Progress) -> None:
        self._model, self._dataset, self._choice, self._progress = model, dataset, choice, progress
        self._batch_size = min(config.train.batch_size, len(dataset.train))
        self._at_a_time = min(config.train.micro_batch or self._batch_size, self._batch_size)
        self._probed: dict[Execution, float] = {}
        self._config = config

    def ask(self, what: str, candidates: Sequence[Execution]) -> None:
        """Time candidates of one question, the plainest first, and keep the best."""
        if len(candidates) < 2:
            return
        count = self._affordable_images(candidates[0], len(candidates) * (_ROUNDS + 1))
        steps = {candidate: self._step(candidate) for candidate in candidates}
        seconds = self._race(f"timing {what}", steps, count)
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
        count = self._affordable_images(plain, 2 * (_ROUNDS + 1))
        steps, batch = {plain: self._step(plain), compiled: self._step(compiled)}, self._batch(plain, count)
        began = time.perf_counter()
        try:
            steps[compiled](*batch)
        except ConfigError as error:
            self._choice.notes.append(f"{error}; steps run uncompiled")
            return
        building = time.perf_counter() - began
        seconds = self._race("timing compiled steps", steps, count)
        planned_steps = self._planned_seconds(seconds[plain] / self._batch_size) / seconds[plain]
        total = {execution: taken * planned_steps for execution, taken in seconds.items()}
        if (total[compiled] + builds * building) * _WORTHWHILE < total[plain]:
            self._choice.execution = compiled
        self._choice.notes.append(f"train.compile: {building:.0f} s to build, {builds} times")

    def ask_workers(self, transform: Transform | None) -> None:
        """Time training on streamed images with several numbers of workers, and keep the best."""
        plain = self._choice.execution
        usual = plain.workers
        counts = sorted({0, max(1, usual // 2), usual, min(_MOST_WORKERS, device.usable_cores())})
        images = self._affordable_images(plain, len(counts) * _WORKER_STEPS)
        step = self._step(plain)
        step(*self._batch(plain, images))  # warm, before the first loader
        seconds = {}
        for done, count in enumerate(counts):
            seconds[count] = self._seconds_with_workers(step, count, images, transform) * self._batch_size / images
            self._choice.seconds_a_step[f"{count} workers"] = seconds[count]
            self._progress("timing loader workers", done + 1, len(counts), "candidates")
        fastest = min(counts, key=lambda count: seconds[count])
        worthwhile = seconds[fastest] * _WORTHWHILE < seconds[usual]
        self._choice.execution = replace(plain, workers=fastest if worthwhile else usual)

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
        if plain not in self._probed:
            step = self._step(plain)

            def probed(count: int) -> float:
                batch = self._batch(plain, count)
                step(*batch)
                return min(_seconds(step, batch) for _ in range(_ROUNDS - 1)) / count

            self._probed[plain] = self._while_it_fits(min(_FEWEST_IMAGES, self._at_a_time), probed)
        return self._probed[plain]

    def _step(self, execution: Execution) -> Step:
        scratch = execution.place(copy.deepcopy(self._model)).train()
        forward = execution.training_forward(scratch)
        optimizer = torch.optim.SGD([p for p in scratch.parameters() if p.requires_grad], lr=0.0)
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
            self._progress(what, done + 1, len(steps), "candidates")
        seconds = {candidate: _seconds(step, batch) for candidate, step in steps.items()}
        for _ in range(_ROUNDS - 1):
            for candidate, step in steps.items():
                if seconds[candidate] < _HOPELESS * min(seconds.values()):
                    seconds[candidate] = min(seconds[candidate], _seconds(step, batch))
        seconds = {candidate: taken * self._batch_size / count for candidate, taken in seconds.items()}
        self._choice.seconds_a_step |= {_label(candidate): taken for candidate, taken in seconds.items()}
        return seconds


def _seconds(step: Step, batch: tuple[Tensor, Tensor]) -> float:
    began = time.perf_counter()
    step(*batch)
    return time.perf_counter() - began


def _label(candidate: Execution) -> str:
    layout = "channels_last" if candidate.channels_last else "channels_first"
    compiled = " compiled" if candidate.compiled else ""
    return f"{candidate.precision} {layout} {candidate.threads} threads{compiled}"


def counted_randomness(device: torch.device) -> AbstractContextManager[None]:
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
