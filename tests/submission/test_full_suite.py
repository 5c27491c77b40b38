"""The challenge's submission, read by twenty independent lines."""

from pathlib import Path

import numpy as np
import pytest

from comp.results import blocks, predictions
from comp.submission import check_format, write
from comp.submission.format import SubmissionFormat

CLASSES = 100


def read_independently(path: Path, planted: np.ndarray) -> int:
    """Return a submission's number of rows; assert that ids, their order and their labels are the planted ones.

    Args:
        path: the CSV.
        planted: labels [19, 5, N].
    """
    rows = 0
    with path.open("rb") as file:
        assert file.readline() == b"id,label\n"
        for distortion in range(19):
            for severity in range(1, 6):
                for index in range(planted.shape[2]):
                    label = planted[distortion, severity - 1, index]
                    assert file.readline() == b"distortion%02d_%d_%d,%d\n" % (distortion, severity, index, label)
                    rows += 1
        assert file.read() == b""
    return rows


@pytest.mark.parametrize("per_block", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_submission_holds_the_labels_in_the_challenges_order(tmp_path: Path, per_block: int) -> None:
    layout = blocks.block_grid(range(19), range(1, 6), per_block)
    planted = np.random.default_rng(3).integers(0, CLASSES, (19, 5, per_block))
    parts = [
        predictions.from_outputs(
            np.eye(CLASSES, dtype=np.float32)[planted[block.distortion, block.severity - 1]],
            task="single_label",
            ids=block.ids(),
            classes=[str(label) for label in range(CLASSES)],
            targets=None,
            made_by={},
            blocks=[(block.name, block.count)],
        )
        for block in layout
    ]
    form = SubmissionFormat(layout, texts=tuple(map(str, range(CLASSES))))
    write.write_submission(tmp_path / "a.csv", predictions.concatenate(parts), form, {})
    assert read_independently(tmp_path / "a.csv", planted) == 19 * 5 * per_block
    assert check_format.check_file(tmp_path / "a.csv", form) == []
