"""How long `comp leaderboard` takes over many runs: whole processes, best and median of several.

    python -m benchmarks.leaderboard [--runs 10000] [--repeats 5]

Makes run folders whose metrics.json are as long as real ones (19 x 5 blocks of the suite, as many expected scores, 19 x
3 of shifted validation, predictions of the first twenty), and lists them in each way. Prints Markdown.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from comp.results import prediction_files, predictions, runs
from comp.results.blocks import DISTORTIONS, block_grid
from comp.results.run_metrics import AccuracyEstimate, RunMetrics, Score, SplitScores, WeightScores

WAYS: dict[str, list[str]] = {
    "comp leaderboard": [],
    "comp leaderboard --top 0": ["--top", "0"],
    "comp leaderboard --json": ["--json"],
    "comp leaderboard --csv": ["--csv"],
    "comp leaderboard --md": ["--md"],
    "comp leaderboard --group-by model": ["--group-by", "model"],
}
SHIFTED = block_grid(range(19), (1, 3, 5), 100)


def shifted(draws: np.random.Generator, severities: tuple[int, ...], images: int) -> SplitScores:
    """Return a suite's scores."""
    layout = block_grid(range(19), severities, images)
    by_block = {block.name: float(draws.uniform(0.3, 0.9)) for block in layout}
    return SplitScores(
        images=images * len(layout), scores=both(float(np.mean(list(by_block.values())))),
        by_severity={str(severity): 0.5 for severity in severities},
        by_distortion=dict.fromkeys(DISTORTIONS, 0.5), by_block=by_block,
    )  # fmt: skip


def both(accuracy: float) -> dict[str, Score]:
    """Return an accuracy, and a loss beside it."""
    return {"accuracy": Score(value=accuracy), "log_loss": Score(value=1.0, higher_is_better=False)}


def make(root: Path, count: int) -> None:
    """Make complete runs of one competition."""
    draws = np.random.default_rng(0)
    for number in range(count):
        folder = root / "many" / f"20260101-{number // 3600:02d}{number // 60 % 60:02d}{number % 60:02d}-run"
        folder.mkdir(parents=True)
        suite = shifted(draws, (1, 2, 3, 4, 5), 10_000)
        val = SplitScores(images=5000, scores=both(float(draws.uniform(0.6, 0.8))))
        estimate = AccuracyEstimate(accuracy=0.6, low=0.5, high=0.7, width=0.2, by_block=suite.by_block)
        runs.Run(folder).write_metrics(RunMetrics(
            run=folder.name, competition="many", metric="accuracy", model=f"resnet{number % 7}",
            parameters=11_000_000 + number, device="cpu", test_like=["fog"], train_seconds=600.0,
            best=WeightScores(val=val, ood_val=shifted(draws, (1, 3, 5), 100)), suite=suite,
            expected={"suite": estimate}, submission=f"submissions/many-{number}.csv",
        ))  # fmt: skip
        (folder / "provenance.json").write_text("{}")
        (folder / "config.yaml").write_text("{}")
        if number < 200:
            save_predictions(folder, draws)


def save_predictions(folder: Path, draws: np.random.Generator) -> None:
    """Write predictions of shifted validation as large as metrics.json says."""
    (folder / "predictions").mkdir()
    count = sum(block.count for block in SHIFTED)
    found = predictions.from_outputs(
        draws.normal(size=(count, 10)).astype(np.float32), task="single_label",
        ids=np.concatenate([block.ids() for block in SHIFTED]),
        classes="abcdefghij", targets=np.arange(count) % 10, made_by={},
        blocks=[(block.name, block.count) for block in SHIFTED],
    )  # fmt: skip
    prediction_files.save(folder / "predictions" / "ood_val.npz", found)


def processor() -> float:
    """Return the seconds that ended processes of this one have had on the processor."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        make(Path(scratch), options.runs)
        print("| command | best s | median s | of it on the processor |\n|---|---|---|---|")
        for name, words in WAYS.items():
            command = [sys.executable, "-m", "comp", "leaderboard", "--runs", scratch, *words]
            taken, used = [], []
            for _ in range(options.repeats + 1):  # the first warms the file cache
                began, spent = time.perf_counter(), processor()
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                taken.append(time.perf_counter() - began)
                used.append(processor() - spent)
            best, median, own = min(taken[1:]), statistics.median(taken[1:]), statistics.median(used[1:])
            print(f"| `{name}` | {best:.2f} | {median:.2f} | {own:.2f} |", flush=True)


if __name__ == "__main__":
    main()
