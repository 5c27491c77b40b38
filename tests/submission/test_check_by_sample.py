"""`comp check CSV --format SAMPLE`: checks what the sample shows and notes what it leaves open."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from comp.results import predictions
from comp.submission import write
from comp.submission.format import SubmissionFormat
from tests.support.commands import Result

Comp = Callable[..., Result]
IDS = ("t0", "t1", "t2", "t3")


def table(path: Path, rows: list[str], header: str = "id,label") -> Path:
    """Write a CSV of rows without their ids."""
    lines = [f"{key},{row}" for key, row in zip(IDS, rows, strict=True)]
    path.write_text("\n".join([header, *lines, ""]), encoding="utf-8")
    return path


# The sample's cell in every row, the file's cells, how they are read.
CORRECT = [
    ("0", ["0.25", "0.5", "1", "0"], "probabilities"),
    ("0", ["-1", "1", "-1", "1"], "numbers"),
    ("0", ["1.0", "2.0", "2.0", "0.0"], "numbers"),
    ("0", ["3", "17", "3", "0"], "class numbers"),
    ("0", ["3 17", "4", "0 1 2", "0"], "lists of labels separated by ' '"),
    ("0", ["cat", "dog", "cat", "owl"], "texts"),
    ("1e-1", ["0.25", "5e-1", "1", "0"], "probabilities"),
    ("0.0", ["12.5", "-3", "1e2", "0"], "numbers"),
    ("0.5", ["1", "0", "1", "0"], "probabilities"),
    ("cat", ["nan", "none", "dog", "dog"], "texts"),
    ("cat", ["1", "2", "dog", "dog"], "texts"),
    ("a b c", ["x y", "y", "x z", "x"], "lists of labels separated by ' '"),
    ("a|b", ["x|y", "y", "Sugar beet", "x"], "lists of labels separated by '|'"),
    ("", ["x", "y", "z", "x"], "texts"),
]


@pytest.mark.parametrize(("cell", "rows", "content"), CORRECT)
def test_a_placeholder_sample_is_noted_but_accepted(
    tmp_path: Path, comp: Comp, cell: str, rows: list[str], content: str
) -> None:
    sample, path = table(tmp_path / "sample.csv", [cell] * 4), table(tmp_path / "a.csv", rows)
    result = comp("check", path, "--format", sample)
    assert result.code == 0, result.err
    assert f"the file is read as {content};" in result.out
    assert "--format CONFIG" in result.out
    if set(rows) & {"nan", "none"}:
        assert "2 rows hold 'nan'" in result.out


# The sample's cells, invalid cells of a file, the first invalid row.
WRONG = [
    (["0"] * 4, ["3", "17", "nan", "0"], "'t2': 'nan'"),
    (["0"] * 4, ["nan", "nan", "nan", "nan"], "'t0': 'nan'"),
    (["0"] * 4, ["3", "17", "", "0"], "'t2': ''"),
    (["0"] * 4, ["3", "cat", "1", "0"], "'t1': 'cat'"),
    (["0.5"] * 4, ["0.25", "0,5", "1", "0"], "'t1': '0,5'"),
    (["0.5"] * 4, ["0.25", "50%", "1", "0"], "'t1': '50%'"),
    (["0.5"] * 4, ["0.25", "inf", "1", "0"], "'t1': 'inf'"),
    (["cat"] * 4, ["dog", "dog", "", "cat"], "'t2': ''"),
    (["a b c"] * 4, ["x y", "x x", "y", "x"], "'t1': 'x x'"),
    (["0", "1", "2", "1"], ["0", "1.5", "2", "1"], "'t1': '1.5'"),
    (["-1", "1", "1", "1"], ["-1", "cat", "1", "1"], "'t1': 'cat'"),
    (["0.1", "0.9", "0.5", "0.2"], ["0.1", "2", "0.5", "0.2"], "'t1': '2'"),
]


@pytest.mark.parametrize(("cells", "rows", "first"), WRONG)
def test_an_invalid_cell_is_refused_with_its_row(
    tmp_path: Path, comp: Comp, cells: list[str], rows: list[str], first: str
) -> None:
    quoted = [f'"{row}"' if "," in row else row for row in rows]
    sample, path = table(tmp_path / "sample.csv", cells), table(tmp_path / "a.csv", quoted)
    result = comp("check", path, "--format", sample)
    assert result.code == 2, result.out
    assert f"first {first}" in result.err


def test_varying_cells_of_a_sample_allow_stricter_checks(tmp_path: Path, comp: Comp) -> None:
    sample = table(tmp_path / "sample.csv", ["-1", "1", "1", "-1"])
    result = comp("check", table(tmp_path / "a.csv", ["-1", "1", "1", "1"]), "--format", sample)
    assert (result.code, result.out.count("note")) == (0, 0)
    result = comp("check", table(tmp_path / "a.csv", ["-1", "0.5", "1", "1"]), "--format", sample)
    assert "note: cells such as '0.5'" in result.out
    sample = table(tmp_path / "sample.csv", ["x y", "", "y", "z"])
    assert comp("check", table(tmp_path / "a.csv", ["", "x", "y z", "x"]), "--format", sample).code == 0


# The sample's row, the file's rows, exit code, words in the output.
WIDE = [
    ("0.5,0.5", ["0.25,0.75", "0.9,0.9", "0.1,0.2", "0.6,0.7"], 0, "need not sum to 1"),
    ("0.5,0.5", ["0.25,0.75", "0.9,0.1", "0.1,0.9", "0.6,0.4"], 0, "that sum to 1"),
    ("0.5,0.5", ["0.25,0.75", "0.9,0.1", "0.1,0.9", "0.6,0.7"], 2, "1 row is not numbers from 0 to 1 that sum to 1"),
    ("0,0", ["1,0", "1,1", "0,0", "0,1"], 0, "read as 0 and 1"),
    ("0,0", ["1,0", "1,1", "0,", "0,1"], 2, "1 of them with an empty"),
    ("0,0", ["1.5,-2", "3,1", "7,0", "2,1"], 0, "read as numbers"),
    ("0,0", ["0.5,0.2", "3,1", "0.5,0", "0.2,1"], 2, "1 row is not numbers from 0 to 1"),
    ("5e-1,5e-1", ["0.25,0.75", "0.9,0.1", "0.1,0.9", "0.6,0.4"], 0, "that sum to 1"),
]


@pytest.mark.parametrize(("cell", "rows", "code", "words"), WIDE)
def test_the_files_rows_decide_whether_probabilities_must_sum_to_1(
    tmp_path: Path, comp: Comp, cell: str, rows: list[str], code: int, words: str
) -> None:
    sample = table(tmp_path / "sample.csv", [cell] * 4, "id,cat,dog")
    result = comp("check", table(tmp_path / "a.csv", rows, "id,cat,dog"), "--format", sample)
    assert result.code == code, result.err
    assert words in result.out + result.err


def written(path: Path, form: SubmissionFormat) -> Path:
    """Write a submission of two classes with its sidecar."""
    outputs = np.array([[2, 0], [0, 2], [0, 2], [1, 0]], np.float32)
    rows = predictions.from_outputs(
        outputs, task="single_label", ids=form.ids(), classes=("cat", "nan"), targets=None, made_by={}
    )
    write.write_submission(path, rows, form, {})
    return path


def test_a_sidecar_that_matches_the_sample_is_used(tmp_path: Path, comp: Comp) -> None:
    form = SubmissionFormat(listed_ids=IDS, classes=("cat", "nan"), texts=("cat", "nan"))
    path, sample = written(tmp_path / "a.csv", form), table(tmp_path / "sample.csv", ["0"] * 4)
    result = comp("check", path, "--format", sample)
    assert result.code == 0, result.err
    assert "note: checked against a.json" in result.out
    assert str(sample) in result.out
    path.write_text(path.read_text().replace("t1,nan", "t1,dog"))
    assert "first 't1': 'dog'" in comp("check", path, "--format", sample).err
    table(tmp_path / "sample.csv", ["0", "1", "1", "0"])  # other answers than the sidecar's
    result = comp("check", path, "--format", sample)
    assert "a.json is not used: " in result.out
    assert result.code == 2
    table(tmp_path / "sample.csv", ["0"] * 4, "id,class")
    result = comp("check", path, "--format", sample)
    assert "a.json is not used: " in result.out
    assert "header: expected 'id,class', found 'id,label'" in result.err
    (tmp_path / "a.json").write_text(json.dumps({"mine": 1}))
    table(tmp_path / "sample.csv", ["x"] * 4)
    result = comp("check", path, "--format", sample)
    assert (result.code, "a.json is not used: " in result.out) == (0, True)


def test_overrides_need_a_config(workplace: Path, comp: Comp) -> None:
    sample, path = table(workplace / "sample.csv", ["0"] * 4), table(workplace / "a.csv", ["0"] * 4)
    for options in ([], ["--format", sample]):
        result = comp("check", path, "competition.metric=accuracy", *options)
        assert result.code == 2
        assert "override 'competition.metric=accuracy'" in result.err
    blocks = ["competition.suite.files=1", "competition.suite.severities=1", "competition.suite.images_per_block=4"]
    names = "competition.submission.labels={0: a, 1: b, 2: c, 3: d}"
    rows = "".join(f"distortion00_1_{row},{text}\n" for row, text in enumerate("abcd"))
    path.write_text(f"id,label\n{rows}")
    assert comp("check", path, "--format", "small.yaml", *blocks).code == 2
    result = comp("check", path, "--format", "small.yaml", *blocks, names)
    assert result.code == 0, result.err
