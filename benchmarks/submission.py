"""How long the challenge's submission takes after its last prediction: 950,000 rows written, flushed to the disk, read
back and checked. Medians over runs; CPU time beside wall time, for machines that have other work too.

python -m benchmarks.submission [--runs 7] [--folder /tmp]
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from comp.results import blocks
from comp.results.predictions import Predictions
from comp.submission import check_format
from comp.submission import write as submission
from comp.submission.format import SubmissionFormat

CLASSES, PER_BLOCK = 100, 10_000


def planted(form: SubmissionFormat) -> Predictions:
    """Return predictions of the whole suite that say random classes."""
    ids = form.ids()
    labels = np.random.default_rng(0).integers(0, CLASSES, len(ids))
    logits = np.full((len(ids), CLASSES), -8, np.float16)
    logits[np.arange(len(ids)), labels] = 0
    names = tuple(f"class {number}" for number in range(CLASSES))
    none = np.array([], np.str_), np.array([], np.int64)
    return Predictions("single_label", ids, names, logits, None, labels, *none, {})


def milliseconds(work: Callable[[], object]) -> NDArray[np.float64]:
    """Return the wall time and the CPU time of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return np.array([time.perf_counter() - wall, time.process_time() - cpu]) * 1000


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where the CSV is written; by default the system's own")
    given = parser.parse_args()
    form = SubmissionFormat(blocks.block_grid(range(19), range(1, 6), PER_BLOCK), texts=CLASSES)
    predictions = planted(form)
    taken: dict[str, list[NDArray[np.float64]]] = {"write": [], "check": [], "both": []}
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        path = Path(folder) / "submission.csv"
        for _ in range(given.runs + 1):
            write = milliseconds(lambda: submission.write_submission(path, predictions, form, {}, force=True))
            check = milliseconds(lambda: check_format.check_file(path, form))
            for name, value in (("write", write), ("check", check), ("both", write + check)):
                taken[name].append(value)
        size = path.stat().st_size
    print(f"{len(predictions):,} rows, {size / 1e6:.1f} MB, {given.runs} runs after one that warms up")
    print("| step | median ms | lowest | highest | CPU median ms |\n|---|---|---|---|---|")
    for name, values in taken.items():
        wall, cpu = np.array(values[1:]).T
        print(f"| {name} | {np.median(wall):.0f} | {wall.min():.0f} | {wall.max():.0f} | {np.median(cpu):.0f} |")


if __name__ == "__main__":
    main()
