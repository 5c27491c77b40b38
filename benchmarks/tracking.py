"""What tracking costs a training: milliseconds a step, and seconds at its start and end.

    python -m benchmarks.tracking [--epochs 40] [--repeats 3]

The same small training (128 images, 4 steps an epoch) runs in this process untracked, offline, and online against a
loopback address that accepts connections and never answers. Time is taken from the end of the first epoch to the end
of the last, and from there to the return; the ways take turns, and medians count. Prints Markdown.
"""

import argparse
import contextlib
import os
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from comp import config as configs
from comp import pipeline

_STEPS = 4  # an epoch
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


def train(folder: Path, mode: str, epochs: int) -> tuple[float, float, float]:
    """Return milliseconds a step, and seconds until the first epoch's end and after the last one's."""
    config = configs.from_mapping(
        {**_CONFIG, "data": {**_CONFIG["data"], "root": str(folder)}, "track": {"wandb": mode},
         "train": {**_CONFIG["train"], "epochs": epochs}}, "benchmark",
    )  # fmt: skip
    ends: list[float] = []
    began = time.perf_counter()
    pipeline.train(config, runs_root=folder / "runs", on_epoch=lambda epoch: ends.append(time.perf_counter()))
    returned = time.perf_counter()
    return (ends[-1] - ends[0]) / ((epochs - 1) * _STEPS) * 1000, ends[0] - began, returned - ends[-1]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    ways = {"untracked": "disabled", "offline": "offline", "online, black hole": "online"}
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as scratch, black_hole() as address:
        os.environ |= {"WANDB_API_KEY": "5eed" * 10, "WANDB_BASE_URL": address}
        folder, draws = Path(scratch), np.random.default_rng(0)
        np.save(folder / "train_images.npy", draws.integers(0, 256, (160, 32, 32, 3), np.uint8))
        np.save(folder / "train_labels.npy", np.arange(160) % 4)
        train(folder, "disabled", 2)  # warms
        for _ in range(options.repeats):
            for name, mode in ways.items():
                found[name].append(train(folder, mode, options.epochs))
    print(
        "| tracking | ms a step | above untracked | s to first epoch's end | s after the last |\n|---|---|---|---|---|"
    )
    bare = statistics.median(times[0] for times in found["untracked"])
    for name, times in found.items():
        step, start, end = (statistics.median(values) for values in zip(*times, strict=True))
        print(f"| {name} | {step:.2f} | {step - bare:+.2f} | {start:.2f} | {end:.2f} |")


if __name__ == "__main__":
    main()
