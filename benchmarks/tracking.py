"""What tracking costs a training: milliseconds a step, and seconds at its start and end.

    python -m benchmarks.tracking [--epochs 40] [--repeats 3]

The same small training (128 images, 4 steps an epoch) runs in this process untracked, offline, and online against a
loopback address that accepts connections and never answers, from the start or from half of the epochs on. A step's time
is taken over the second half of the epochs: on the wall, where W&B's service competes for cores, and this process's own
on the processor. What other processes took altogether stands beside it. The ways take turns, and medians count. Asked
of a silent server: a step at most 1 ms more than untracked, the start 5 s, the end 10 s. Prints Markdown.
"""

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from comp import config as configs
from comp.training.loop import Epoch
from comp.workflows.train import train as train_config
from tests.support.wandb_server import KEY, black_hole, serving

_STEPS = 4  # an epoch
_COLUMNS = {
    "ms a step": "wall", "of it this process's own": "own", "s to the first epoch's end": "first",
    "s after the last": "end", "s of other processes": "others",
}  # fmt: skip
_CONFIG = {
    "competition": {"name": "tracked", "suite": {"source": "none"}, "ood_validation": {"severities": []}},
    "data": {"source": "arrays", "validation": 32},
    "model": {"name": "simple_cnn", "args": {"depth": 2}},
    "train": {"batch_size": 32, "precision": "fp32", "channels_last": False, "device": "cpu", "compile": False,
              "threads": 1},
}  # fmt: skip


@dataclass(frozen=True)
class Taken:
    """What one training took.

    Attributes:
        wall: milliseconds a step.
        own: likewise, of this process on the processor.
        first: seconds until the first epoch's end.
        end: seconds after the last epoch's.
        others: seconds of the other processes on the processor.
    """

    wall: float
    own: float
    first: float
    end: float
    others: float


def train(folder: Path, mode: str, epochs: int, half_way: Callable[[], None] = lambda: None) -> Taken:
    """Train once; `half_way` is called where the timed epochs begin."""
    config = configs.from_mapping(
        {**_CONFIG, "data": {**_CONFIG["data"], "root": str(folder)}, "track": {"wandb": mode},
         "train": {**_CONFIG["train"], "epochs": epochs}}, "benchmark",
    )  # fmt: skip
    ends: list[tuple[float, float]] = []

    def at_end(epoch: Epoch) -> None:
        if epoch.number == epochs // 2:
            half_way()
        ends.append((time.perf_counter(), time.process_time()))

    began, spent = time.perf_counter(), _others()
    train_config(config, runs_root=folder / "runs", on_epoch=at_end)
    returned, half = time.perf_counter(), epochs // 2
    wall, own = ((ends[-1][i] - ends[half - 1][i]) / ((epochs - half) * _STEPS) * 1000 for i in (0, 1))
    return Taken(wall, own, ends[0][0] - began, returned - ends[-1][0], _others() - spent)


def _others() -> float:
    """Return the seconds that ended processes of this one have had on the processor."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    ways = ("untracked", "offline", "online, silent", "online, silent half-way")
    times: dict[str, list[Taken]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as scratch, black_hole() as hole, serving() as received:
        os.environ["WANDB_API_KEY"] = KEY
        folder, draws = Path(scratch), np.random.default_rng(0)
        np.save(folder / "train_images.npy", draws.integers(0, 256, (160, 32, 32, 3), np.uint8))
        np.save(folder / "train_labels.npy", np.arange(160) % 4)
        train(folder, "disabled", 2)  # warms
        train(folder, "offline", 2)
        for _ in range(options.repeats):
            times["untracked"].append(train(folder, "disabled", options.epochs))
            times["offline"].append(train(folder, "offline", options.epochs))
            os.environ["WANDB_BASE_URL"] = hole
            times["online, silent"].append(train(folder, "online", options.epochs))
            os.environ["WANDB_BASE_URL"] = received.address
            times["online, silent half-way"].append(train(folder, "online", options.epochs, received.silent.set))
            received.silent.clear()
    print(f"| tracking | {' | '.join(_COLUMNS)} |\n|---|" + "---|" * len(_COLUMNS))
    for name, taken in times.items():
        medians = [statistics.median(getattr(one, field) for one in taken) for field in _COLUMNS.values()]
        print(f"| {name} | {' | '.join(f'{value:.2f}' for value in medians)} |")


if __name__ == "__main__":
    main()
