"""The challenge's whole submission, 950,000 rows, read by twenty lines that know nothing of `comp`."""

from pathlib import Path

import numpy as np

from comp.results import blocks, predictions
from comp.submission import check_format, write
from comp.submission.format import SubmissionFormat

PER_BLOCK, CLASSES = 10_000, 100


def read_independently(path: Path, planted: np.ndarray) -> int:
    """Return how many rows a submission has; assert that ids, their order and their labels are the planted ones.

    Args:
        path: of the CSV.
        planted: labels [19, 5, 10000].
    """
    rows = 0
    with path.open("rb") as file:
        assert file.readline() == b"id,label\n"
        for distortion in range(19):
            for severity in range(1, 6):
                for index in range(10_000):
                    label = planted[distortion, severity - 1, index]
                    assert file.readline() == b"distortion%02d_%d_%d,%d\n" % (distortion, severity, index, label)
                    rows += 1
        assert file.read() == b""
    return rows


def test_a_full_submission_holds_the_planted_labels_in_the_challenges_order(tmp_path: Path) -> None:
    layout = blocks.block_grid(range(19), range(1, 6), PER_BLOCK)
    planted = np.random.default_rng(3).integers(0, CLASSES, (19, 5, PER_BLOCK))
    parts = [
        predictions.from_outputs(
            np.eye(CLASSES, dtype=np.float32)[planted[block.distortion, block.severity - 1]], task="single_label",
            ids=block.ids(), classes=[str(label) for label in range(CLASSES)], targets=None, made_by={},
            blocks=[(block.name, block.count)],
        )
        for block in layout
    ]  # fmt: skip
    wanted = SubmissionFormat(layout, texts=tuple(map(str, range(CLASSES))))
    write.write(tmp_path / "a.csv", predictions.concatenate(parts), wanted, {})
    assert read_independently(tmp_path / "a.csv", planted) == 950_000
    assert check_format.format_problems(tmp_path / "a.csv", wanted) == []
