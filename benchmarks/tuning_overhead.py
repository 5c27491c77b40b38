"""What a study costs beyond its trainings: trials an hour against the bare sum of the same trainings.

    python -m benchmarks.tuning_overhead [--trials 20] [--epochs 3] [--storage URL]

A study of the quickstart's digits with the TPE sampler and nothing pruned; as each trial ends, its config is trained
once more by `comp.train` with the same data, outside of any study, so that a slow moment of the machine strikes
both. The data are opened once for either. What is claimed, reported, told and stored is the study's; pictures and the
confirmation of the best are left out. Prints Markdown; about two minutes on two cores.
"""

import argparse
import os
import platform
import tempfile
import time
from pathlib import Path

import torch

from comp import config as configs
from comp.results import runs
from comp.tuning import search
from comp.tuning.results import StudyProgress
from comp.workflows import build, train


def measure(trials: int, epochs: int, storage: str, folder: Path) -> str:
    """Return the row of a study of so many trials."""
    space = "{optim.lr: {float: [1e-4, 1e-2], log: true}, augment.mixup: {float: [0, 0.4]}}"
    config = configs.load(
        "configs/quickstart.yaml",
        [
            "competition.ood_validation.severities=[]", f"train.epochs={epochs}", f"tune.space={space}",
            f"tune.trials={trials}", "tune.pruner=none", "tune.confirm.top=0", f"tune.storage='{storage}'",
        ],
    )  # fmt: skip
    dataset = build.prepare(config, folder)
    bare: list[float] = []
    whole: list[float] = []
    mark = time.perf_counter()

    def train_again(part: str, progress: StudyProgress) -> None:
        nonlocal mark
        began = time.perf_counter()
        whole.append(began - mark)
        again = runs.open_run(Path(progress.last["run"])).config()
        train.train(again, runs_root=folder / "bare", dataset=dataset)
        mark = time.perf_counter()
        bare.append(mark - began)

    search.tune(config, runs_root=folder, on_trial=train_again, pictures=False)
    # The first trial opens storage and data, and warms the process for its repetition.
    study, sum_of_trainings = sum(whole[1:]), sum(bare[1:])
    rate = 3600 * (trials - 1) / study
    return (
        f"| {trials - 1} | {sum_of_trainings:.1f} s | {study:.1f} s | {rate:,.0f} | "
        f"**{100 * sum_of_trainings / study:.1f} %** |"
    )


def main() -> None:
    """Print the row."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--trials", type=int, default=20)
    options.add_argument("--epochs", type=int, default=3)
    options.add_argument("--storage", default="", help="as tune.storage; SQLite by default")
    given = options.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}, {given.epochs} epochs a trial\n")
    print("| trials | bare trainings | study | trials an hour | of the bare rate |")
    print("|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        print(measure(given.trials, given.epochs, given.storage, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
