"""What starting costs: CPU seconds (user and system, children too) of commands, beside importing torch, or Python.

    python -m benchmarks.startup [--runs 7] [--only check]

Asked: `comp config check` of a built-in network at most 1.3 times `import torch`, and `comp train` of one to its first
step at most 1.5 times, W&B disabled and choices timed before; W&B's share (offline) stands beside it. Commands take
turns, and the medians count; the first round of each is not counted (file caches, choices). Threads are one. CPU
seconds hardly depend on what else the machine does; wall seconds stand beside them.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

TRAIN = [sys.executable, "-m", "benchmarks.startup", "--to-first-step", "--runs", "{folder}/runs"]
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "comp --help": [sys.executable, "-m", "comp", "--help"],
    "import torch": [sys.executable, "-c", "import torch"],
    "comp config check quickstart.yaml": [sys.executable, "-m", "comp", "config", "check", "configs/quickstart.yaml"],
    "comp train quickstart.yaml, to its first step": [*TRAIN, "configs/quickstart.yaml", "track.wandb=disabled"],
    "comp train simple_cnn, arrays, to its first step": [*TRAIN, "{folder}/small.yaml", "track.wandb=disabled"],
    "the same, tracked offline": [*TRAIN, "{folder}/small.yaml", "track.wandb=offline"],
}
ASKED = {"comp config": 1.3, "comp train": 1.5}  # times `import torch`
SMALL = """
competition: {{name: startup, suite: {{source: none}}, ood_validation: {{severities: []}}}}
data: {{source: arrays, root: {folder}/data, validation: 0.1}}
model: {{name: simple_cnn, args: {{depth: 2}}}}
train: {{epochs: 1, batch_size: 64, device: cpu}}
"""


def measured(command: list[str]) -> tuple[float, float]:
    """Return CPU and wall seconds of one run."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    extra = [float(line.split()[1]) for line in output.splitlines() if line.startswith("unended:")]
    return cpu + sum(extra), time.perf_counter() - began


def train_to_first_step(arguments: list[str]) -> None:
    """Run `comp train` and leave at its first step, telling what processes it has started took until then."""
    from contextlib import contextmanager

    from comp.cli import app, console

    def stop(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        if unit == "steps":
            print(f"unended: {cpu_of_children(os.getpid())}", flush=True)
            os._exit(0)

    console.bars = contextmanager(lambda: iter([stop]))  # type: ignore[assignment,arg-type]
    app.main(["train", *arguments])


def cpu_of_children(pid: int) -> float:
    """Return the CPU seconds of all living descendants of a process (Linux)."""
    tick, total = os.sysconf("SC_CLK_TCK"), 0.0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:  # its parent
            total += (int(fields[11]) + int(fields[12])) / tick + cpu_of_children(int(stat.parent.name))
    return total


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--only", default="", help="commands that hold this text, and `import torch`")
    given = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["COMP_CACHE"] = str(folder / "cache")
        (folder / "data").mkdir()
        (folder / "small.yaml").write_text(SMALL.format(folder=folder))
        images = np.random.default_rng(0).integers(0, 256, (2_000, 32, 32, 3), np.uint8)
        np.save(folder / "data" / "train_images.npy", images)
        np.save(folder / "data" / "train_labels.npy", np.arange(2_000) % 10)
        commands = {
            title: [part.format(folder=folder) for part in command]
            for title, command in COMMANDS.items()
            if given.only in title or title == "import torch"
        }
        taken: dict[str, list[tuple[float, float]]] = {title: [] for title in commands}
        for command in commands.values():
            measured(command)
        for _ in range(given.runs):
            for title, command in commands.items():
                taken[title].append(measured(command))
    cpu = {title: statistics.median(values[0] for values in runs) for title, runs in taken.items()}
    print("| command | CPU s | lowest | highest | wall s | times import torch | asked |\n|---|---|---|---|---|---|---|")
    for title, runs in taken.items():
        values, wall = [values[0] for values in runs], statistics.median(values[1] for values in runs)
        asked = next((f"{most}" for start, most in ASKED.items() if title.startswith(start)), "")
        print(
            f"| `{title}` | {cpu[title]:.2f} | {min(values):.2f} | {max(values):.2f} | {wall:.2f} "
            f"| {cpu[title] / cpu['import torch']:.2f} | {asked} |"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--to-first-step"]:
        train_to_first_step(sys.argv[2:])
    else:
        main()
