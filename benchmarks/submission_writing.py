"""How long a full submission takes to write, against the bytes themselves.

    python -m benchmarks.submission_writing

Writes the challenge's 950,000 rows of labels by `comp.submission.write`, and by pandas' `to_csv`, in turns
(A B A B), and prints the medians of wall-clock seconds. Reading and checking the file is timed beside them.
"""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from comp.results import blocks, predictions
from comp.submission import check_format, write
from comp.submission.format import SubmissionFormat

_ROUNDS, _CLASSES = 5, 100


def main() -> None:
    """Print a line for each way."""
    layout = blocks.block_grid(range(19), range(1, 6), 10_000)
    form = SubmissionFormat(layout, texts=tuple(map(str, range(_CLASSES))))
    ids = form.ids()
    outputs = np.random.default_rng(0).normal(size=(len(ids), _CLASSES)).astype(np.float32)
    rows = predictions.from_outputs(
        outputs, task="single_label", ids=ids, classes=form.texts, targets=None, made_by={},
    )  # fmt: skip
    seconds: dict[str, list[float]] = {"comp": [], "pandas": [], "comp check": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        for _ in range(_ROUNDS):
            began = time.perf_counter()
            write.write_submission(path, rows, form, {}, force=True)
            seconds["comp"].append(time.perf_counter() - began)
            began = time.perf_counter()
            assert not check_format.check_file(path, form)
            seconds["comp check"].append(time.perf_counter() - began)
            began = time.perf_counter()
            pd.DataFrame({"id": ids, "label": rows.top1}).to_csv(Path(folder) / "b.csv", index=False)
            seconds["pandas"].append(time.perf_counter() - began)
    for way, taken in seconds.items():
        print(f"{way}: {statistics.median(taken):.2f} s ({min(taken):.2f} to {max(taken):.2f})")


if __name__ == "__main__":
    main()
