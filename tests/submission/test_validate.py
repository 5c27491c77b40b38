"""Format checks and writing of submissions."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comp.results import blocks, predictions
from comp.runtime.errors import SubmissionError
from comp.submission import check_format, csv_io
from comp.submission import write as submission
from comp.submission.format import SubmissionFormat

FORMAT = SubmissionFormat(blocks.block_grid(range(2), range(1, 3), 3), texts=("0", "1", "2", "3"))
IDS = FORMAT.ids().tolist()


def write(path: Path, rows: list[tuple[str, str]], header: str = "id,label") -> Path:
    """Write a CSV of rows."""
    path.write_text(header + "\n" + "".join(f"{key},{label}\n" for key, label in rows), encoding="utf-8")
    return path


def is_refused(path: Path) -> bool:
    """Return whether the check finds a problem or cannot read the file."""
    try:
        return bool(check_format.check_file(path, FORMAT))
    except SubmissionError:
        return True


VALID = [(key, str(index % 4)) for index, key in enumerate(IDS)]


@settings(max_examples=25)
@given(st.lists(st.integers(0, 3), min_size=len(IDS), max_size=len(IDS)))
def test_every_valid_file_is_accepted(tmp_path_factory: pytest.TempPathFactory, labels: list[int]) -> None:
    path = tmp_path_factory.mktemp("valid") / "a.csv"
    write(path, [(key, str(label)) for key, label in zip(IDS, labels, strict=True)])
    assert check_format.check_file(path, FORMAT) == []


@settings(max_examples=25)
@given(st.permutations(VALID))
def test_rows_may_be_in_any_order_and_are_matched_by_id(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    checked = check_format.check_table(
        csv_io.read_strict(write(tmp_path_factory.mktemp("moved") / "a.csv", rows)), FORMAT
    )
    assert checked.problems == ()
    assert checked.table is not None
    assert list(checked.table.itertuples(index=False, name=None)) == VALID
    assert bool(checked.notes) == (rows != VALID)


@settings(max_examples=25)
@given(st.data())
def test_a_mutation_of_one_cell_or_row_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    rows = list(VALID)
    row = data.draw(st.integers(0, len(rows) - 1))
    kind = data.draw(st.sampled_from(["id", "label", "drop", "repeat"]))
    text = st.text(st.characters(codec="ascii", exclude_characters='",\n\r'), max_size=8)
    if kind == "id":
        rows[row] = (data.draw(text.filter(lambda t: t != rows[row][0])), rows[row][1])
    elif kind == "label":
        rows[row] = (rows[row][0], data.draw(text.filter(lambda t: t not in set("0123"))))
    elif kind == "drop":
        del rows[row]
    else:
        rows.insert(row, rows[row])
    path = write(tmp_path_factory.mktemp("mutated") / "a.csv", rows)
    assert is_refused(path)


FAULTS: dict[str, tuple[Callable[[list[tuple[str, str]]], list[tuple[str, str]]], str]] = {
    "too few": (lambda rows: rows[:-2], "rows: expected 12, found 10"),
    "missing": (lambda rows: rows[1:], "missing ids: 1, first 'distortion00_1_0'"),
    "unknown": (lambda rows: [("distortion19_1_0", "0"), *rows[1:]], "unknown ids: 1, first 'distortion19_1_0'"),
    "duplicate": (lambda rows: [*rows, rows[0]], "duplicate ids: 1, first 'distortion00_1_0'"),
    "label too large": (lambda rows: [(rows[0][0], "4"), *rows[1:]], "1 row is not whole numbers from 0 to 3"),
    "label as a float": (lambda rows: [(rows[0][0], "1.0"), *rows[1:]], "first 'distortion00_1_0': '1.0'"),
    "label empty": (lambda rows: [(rows[0][0], ""), *rows[1:]], "first 'distortion00_1_0': ''"),
    "label a name": (lambda rows: [(rows[0][0], "cat"), *rows[1:]], "'cat'"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_problem_is_named(tmp_path: Path, name: str) -> None:
    spoil, message = FAULTS[name]
    problems = check_format.check_file(write(tmp_path / "a.csv", spoil(list(VALID))), FORMAT)
    assert any(message in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        ("id,label\n".encode("utf-16"), "expected UTF-8 text"),
        (b"\xef\xbb\xbfid,label\n", "byte order mark"),
        (b"id,label\na,1\nb,2,3\n", "not a rectangular CSV"),
        (b"\x00\x01", "NUL bytes"),
    ],
)
def test_a_file_that_is_not_a_csv_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    try:
        message_text = "; ".join(check_format.check_file(tmp_path / "a.csv", FORMAT))
    except SubmissionError as error:
        message_text = str(error)
    assert message in message_text


def test_a_wrong_header_is_reported(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", VALID, header="Id,Label")
    assert check_format.check_file(path, FORMAT) == ["header: expected 'id,label', found 'Id,Label'"]


def planted(labels: np.ndarray) -> predictions.Predictions:
    """Return predictions of these labels."""
    logits = np.eye(4, dtype=np.float32)[labels]
    return predictions.from_outputs(
        logits, task="single_label", ids=FORMAT.ids(), classes="abcd", targets=None, made_by={"weights_sha256": ""}
    )


def test_a_submission_holds_the_predicted_labels(tmp_path: Path) -> None:
    labels = np.array([3, 1, 0, 2] * 3)
    submission.write_submission(tmp_path / "deep/a.csv", planted(labels), FORMAT, {"run": "r"})
    assert check_format.check_file(tmp_path / "deep/a.csv", FORMAT) == []
    lines = (tmp_path / "deep/a.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in lines[1:]] == [str(label) for label in labels]
    sidecar = json.loads((tmp_path / "deep/a.json").read_text())
    assert SubmissionFormat.from_json(sidecar["format"], tmp_path) == FORMAT


def test_existing_files_are_kept_without_force(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("mine")
    with pytest.raises(SubmissionError, match=r"a\.json: already exists"):
        submission.write_submission(tmp_path / "a.csv", planted(np.zeros(12, int)), FORMAT, {})
    assert not (tmp_path / "a.csv").exists()
    assert (tmp_path / "a.json").read_text() == "mine"
    assert submission.free_path(tmp_path, "a") == tmp_path / "a-2.csv"


def test_predictions_of_another_suite_are_refused(tmp_path: Path) -> None:
    other = SubmissionFormat(blocks.block_grid(range(1), range(1, 3), 6), texts=("0", "1", "2", "3"))
    with pytest.raises(SubmissionError, match="comp predict RUN"):
        submission.write_submission(tmp_path / "a.csv", planted(np.zeros(12, int)), other, {})
