"""What tracking costs a training: milliseconds a step, and seconds at its start and end.

    python -m benchmarks.tracking [--epochs 40] [--repeats 3]

The same small training (128 images, 4 steps an epoch) runs in this process untracked, offline, and online against a
loopback address that accepts connections and never answers. A step's time is taken over the second half of the epochs,
when the processes that track have started: on the wall, where they compete for cores, and this process's own on the
processor. What the other processes took altogether stands beside it. The ways take turns, and medians count. Prints
Markdown.
"""

import argparse
import contextlib
import os
import resource
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from comp import config as configs
from comp import pipeline

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


@contextlib.contextmanager
def black_hole() -> Iterator[str]:
    """Accept connections and never answer."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        kept: list[socket.socket] = []

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    kept.append(listener.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


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


def train(folder: Path, mode: str, epochs: int) -> Taken:
    """Train once."""
    config = configs.from_mapping(
        {**_CONFIG, "data": {**_CONFIG["data"], "root": str(folder)}, "track": {"wandb": mode},
         "train": {**_CONFIG["train"], "epochs": epochs}}, "benchmark",
    )  # fmt: skip
    ends: list[tuple[float, float]] = []
    began, spent = time.perf_counter(), _others()
    pipeline.train(
        config, runs_root=folder / "runs",
        on_epoch=lambda epoch: ends.append((time.perf_counter(), time.process_time())),
    )  # fmt: skip
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
    ways = {"untracked": "disabled", "offline": "offline", "online, black hole": "online"}
    found: dict[str, list[Taken]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as scratch, black_hole() as address:
        os.environ |= {"WANDB_API_KEY": "5eed" * 10, "WANDB_BASE_URL": address}
        folder, draws = Path(scratch), np.random.default_rng(0)
        np.save(folder / "train_images.npy", draws.integers(0, 256, (160, 32, 32, 3), np.uint8))
        np.save(folder / "train_labels.npy", np.arange(160) % 4)
        train(folder, "disabled", 2)  # warms
        for _ in range(options.repeats):
            for name, mode in ways.items():
                found[name].append(train(folder, mode, options.epochs))
    print(f"| tracking | {' | '.join(_COLUMNS)} |\n|---|" + "---|" * len(_COLUMNS))
    for name, times in found.items():
        medians = [statistics.median(getattr(one, field) for one in times) for field in _COLUMNS.values()]
        print(f"| {name} | {' | '.join(f'{value:.2f}' for value in medians)} |")


if __name__ == "__main__":
    main()
