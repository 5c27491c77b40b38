"""Findings of `comp check`, output of `comp diff`, and formats derived from samples and configs."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from comp.config import SubmissionConfig
from comp.results import blocks, runs
from comp.results.predictions import Predictions, from_outputs
from comp.runtime.errors import SubmissionError
from comp.submission import check_content, derive_format, derive_from_sample, validate, write
from comp.submission.format import Competition, SampleSubmission, SubmissionFormat
from tests.support.commands import Result

Comp = Callable[..., Result]
LAYOUT = blocks.block_grid(range(3), range(1, 3), 100)
FORMAT = SubmissionFormat(LAYOUT, texts=tuple("01234"))
TRUTH = np.random.default_rng(0).integers(0, 5, 600)
EVEN = [200] * 5  # training images of each class


def guess(seed: int, accuracy: float = 0.6) -> np.ndarray:
    """Return labels that are right this often."""
    generator = np.random.default_rng(seed)
    return np.where(generator.random(600) < accuracy, TRUTH, generator.integers(0, 5, 600))


def predicted(labels: np.ndarray, form: SubmissionFormat = FORMAT) -> Predictions:
    """Return predictions of these labels."""
    logits = np.eye(5, dtype=np.float32)[labels] * 4
    return from_outputs(logits, task="single_label", ids=form.ids(), classes="abcde", targets=None, made_by={})


def written(path: Path, labels: np.ndarray, **sidecar: object) -> Path:
    """Write a submission of these labels."""
    write.write_submission(path, predicted(labels), FORMAT, sidecar)
    return path


def findings_of(path: Path, against: Path | None = None) -> list[tuple[str, str]]:
    """Return the first word and the verdict of each finding."""
    report = validate.validate_submission(path, FORMAT, training=EVEN, against=against)
    assert report.problems == ()
    return [(finding.what.partition(":")[0], finding.verdict) for finding in report.findings]


@pytest.mark.parametrize("seed", range(3))
def test_a_good_submission_has_no_findings(tmp_path: Path, seed: int) -> None:
    one, other = written(tmp_path / "a.csv", guess(seed)), written(tmp_path / "b.csv", guess(seed + 100))
    assert findings_of(one, other) == []


def test_a_constant_submission_misleads(tmp_path: Path) -> None:
    assert findings_of(written(tmp_path / "a.csv", np.full(600, 3))) == [("constant", "misleads")]


def test_class_frequencies_far_from_training_mislead_and_nearer_ones_are_noted(tmp_path: Path) -> None:
    far = np.where(np.arange(600) < 450, 2, guess(0))
    near = np.where(np.arange(600) < 200, 2, guess(0))
    assert findings_of(written(tmp_path / "far.csv", far)) == [("lopsided", "misleads")]
    assert findings_of(written(tmp_path / "near.csv", near)) == [("lopsided", "note")]


@pytest.mark.parametrize("counts", [None, 5, "text", ["a", "b", "c", "d"], {"a": 1}])
def test_damaged_training_counts_of_a_sidecar_are_not_compared(tmp_path: Path, counts: object) -> None:
    path = written(tmp_path / "far.csv", guess(0), training_counts=counts)
    assert validate.validate_submission(path, FORMAT).findings == ()


def test_a_scrambled_order_is_found_by_comparing_with_an_earlier_submission(tmp_path: Path) -> None:
    before = written(tmp_path / "a.csv", guess(1))
    scrambled = written(tmp_path / "b.csv", np.random.default_rng(9).permutation(guess(2)))
    assert findings_of(scrambled) == []  # not visible in a single file
    assert findings_of(scrambled, before) == [("scrambled", "misleads")]
    swapped = guess(2)
    swapped[:100] = np.random.default_rng(3).permutation(swapped[:100])
    report = validate.validate_submission(written(tmp_path / "c.csv", swapped), FORMAT, against=before)
    assert [finding.verdict for finding in report.findings] == ["note"]
    assert "distortion00_1" in report.findings[0].what


def test_agreement_is_1_for_equal_files_and_chance_for_independent_ones() -> None:
    one, other = guess(0, 1.0).astype(str), guess(1, 0.0).astype(str)
    assert check_content.measure_agreement(one, one) == (1.0, 1.0)
    assert abs(check_content.measure_agreement(one, other)[1]) < 0.1


def test_check_prints_findings_and_refuses_a_misleading_file(tmp_path: Path, comp: Comp) -> None:
    good = written(tmp_path / "good.csv", guess(0), training_counts=EVEN)
    bad = written(tmp_path / "bad.csv", np.full(600, 1), training_counts=EVEN)
    result = comp("check", good)
    assert (result.code, result.out.splitlines()[0]) == (0, f"{good}: valid, 600 rows")
    result = comp("check", good, "--against", written(tmp_path / "other.csv", guess(5)), "--json")
    values = json.loads(result.out)
    assert values["valid"]
    assert 0.3 < values["agreement"] < 0.7
    result = comp("check", bad)
    assert result.code == 2
    assert "constant: all 600 rows hold '1'" in result.err
    good.write_text(good.read_text().replace("distortion00_1_0,", "distortion00_1_0,0"))
    assert comp("check", good).code == 2
    other = written(tmp_path / "more.csv", guess(6))
    text = other.read_text().splitlines()
    text[1] = text[1].split(",")[0] + "," + str((int(text[1].split(",")[1]) + 1) % 5)
    other.write_text("\n".join(text))
    assert "note: altered" in comp("check", other).out


def test_check_without_a_sidecar_suggests_a_format(tmp_path: Path, comp: Comp) -> None:
    path = written(tmp_path / "a.csv", guess(0))
    runs.sidecar_path(path).unlink()
    assert "--format" in comp("check", path).err
    assert "no such submission" in comp("check", tmp_path / "none.csv").err


def rows_of(path: Path) -> list[list[str]]:
    """Return a CSV's rows."""
    with path.open(newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize(
    ("cell", "good", "bad"),
    [("0", "17", "cat"), ("cat", "dog", ""), ("0", "0", "nan"), ("0.5", "0.25", "x")],
)
def test_a_sample_alone_defines_ids_and_the_kind_of_labels(
    tmp_path: Path, comp: Comp, cell: str, good: str, bad: str
) -> None:
    sample, path = tmp_path / "sample_submission.csv", tmp_path / "a.csv"
    sample.write_text(f"key,answer\n7,{cell}\n3,{cell}\n")
    path.write_text(f"key,answer\n7,{good}\n3,{good}\n")
    result = comp("check", path, "--format", sample)
    assert result.code == 0, result.err
    path.write_text(f"key,answer\n7,{good}\n3,{bad}\n")
    assert f"first '3': '{bad}'" in comp("check", path, "--format", sample).err
    path.write_text(f"key,answer\n3,{good}\n7,{good}\n")
    assert "note: rows are in another order" in comp("check", path, "--format", sample).out


def test_a_sample_with_one_column_per_class_requires_probabilities(tmp_path: Path, comp: Comp) -> None:
    sample, path = tmp_path / "sample.csv", tmp_path / "a.csv"
    sample.write_text("id,cat,dog\n7,0.5,0.5\n3,0.5,0.5\n")
    path.write_text("id,cat,dog\n7,0.25,0.75\n3,1,0\n")
    assert comp("check", path, "--format", sample).code == 0
    path.write_text("id,dog,cat\n7,0.25,0.75\n3,1,0\n")
    assert "note: columns are in another order" in comp("check", path, "--format", sample).out
    path.write_text("id,cat,dog\n7,0.25,0.75\n3,1,\n")
    assert (
        "1 row is not numbers from 0 to 1 that sum to 1, 1 of them with an empty or NaN cell"
        in comp("check", path, "--format", sample).err
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,a,b\n1,x,0\n", "found '0', 'x'"),
        ("id,label\n1,0\n1,0\n", "1 duplicate ids, first '1'"),
        ("id,label\n", "found no row"),
        ("id\n1\n", "found only 'id'"),
    ],
)
def test_an_unusable_sample_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "sample.csv").write_text(content)
    with pytest.raises(SubmissionError, match=message):
        derive_from_sample.derive_from_sample(tmp_path / "sample.csv", tmp_path / "sample.csv")


def competition(
    section: SubmissionConfig, sample: SampleSubmission | None = None, metric: str = "accuracy"
) -> Competition:
    """Return a competition with this section of the config."""
    return Competition("c", metric, tuple("abcde"), (3, 8, 8), LAYOUT, sample, section)


@pytest.mark.parametrize(
    ("section", "header", "first"),
    [
        (SubmissionConfig(), ["id", "label"], "1"),
        (SubmissionConfig(id_column="ID", label_column="Class"), ["ID", "Class"], "1"),
        (SubmissionConfig(labels="names"), ["id", "label"], "b"),
        (SubmissionConfig(labels={"a": "u", "b": "v", "c": "w", "d": "x", "e": "y"}), ["id", "label"], "v"),
        (SubmissionConfig(labels="probabilities", id_column="key"), ["key", *"01234"], "0.0170"),  # type: ignore[arg-type]
        (SubmissionConfig(answer="probabilities", labels="names"), ["id", *"abcde"], "0.0170"),
    ],
)
def test_a_config_defines_the_submissions_columns_and_texts(
    tmp_path: Path, section: SubmissionConfig, header: list[str], first: str
) -> None:
    form = derive_format.derive_format(competition(section)).format
    labels = np.full(600, 1)
    write.write_submission(tmp_path / "a.csv", predicted(labels), form, {})
    rows = rows_of(tmp_path / "a.csv")
    assert rows[0] == header
    assert rows[1][0] == "distortion00_1_0"
    assert rows[1][1].startswith(first)
    assert validate.validate_submission(tmp_path / "a.csv", form).problems == ()
    assert validate.read_sidecar_format(tmp_path / "a.csv") == form


def test_a_config_takes_precedence_over_the_sample() -> None:
    cells = (("0.2",) * 5, ("0.2",) * 5)
    sample = SampleSubmission("s.csv", "key", tuple("abcde"), ("x", "y"), cells)
    derived = derive_format.derive_format(competition(SubmissionConfig(), sample, "log_loss"))
    assert derived.format.header == ("key", *"abcde")
    assert (derived.format.answer, derived.format.listed_ids, derived.assumptions) == ("probabilities", ("x", "y"), ())
    assert derive_format.derive_format(
        competition(SubmissionConfig(), sample)
    ).assumptions  # accuracy is computed from decisions
    one_hot = derive_format.derive_format(competition(SubmissionConfig(answer="label"), sample)).format
    assert (one_hot.header, one_hot.answer) == (("key", *"abcde"), "label")
    with pytest.raises(SubmissionError, match=r"submission\.id_column.*'a'"):
        derive_format.derive_format(
            competition(SubmissionConfig(answer="probabilities", labels="names", id_column="a"))
        )


@pytest.mark.parametrize("name", ["plain", 'with "quotes", a comma', "ünïcode", "two\nlines"])
def test_any_class_name_survives_the_csv(tmp_path: Path, name: str) -> None:
    form = SubmissionFormat(LAYOUT, texts=(name, *"bcde"))
    write.write_submission(tmp_path / "a.csv", predicted(np.zeros(600, int)), form, {})
    assert {row[1] for row in rows_of(tmp_path / "a.csv")[1:]} == {name}
    assert validate.validate_submission(tmp_path / "a.csv", form).problems == ()


def test_diff_counts_differing_rows_in_each_block(tmp_path: Path, comp: Comp) -> None:
    labels = guess(0)
    other = labels.copy()
    other[[0, 5, 599]] = (other[[0, 5, 599]] + 1) % 5
    one, two = written(tmp_path / "a.csv", labels), written(tmp_path / "b.csv", other)
    values = json.loads(comp("diff", one, two, "--json").out)
    assert values["total"] == {"block": "all", "rows": 600, "differing": 3}
    counts = {row["block"]: row["differing"] for row in values["blocks"]}
    assert counts == {block.name: 0 for block in LAYOUT} | {"distortion00_1": 2, "distortion02_2": 1}
    assert "0.50%" in comp("diff", one, two).out
    assert json.loads(comp("diff", one, one, "--json").out)["total"]["differing"] == 0


def test_diff_compares_by_id_and_counts_ids_that_only_one_file_has(tmp_path: Path, comp: Comp) -> None:
    one, two, three = (tmp_path / f"{name}.csv" for name in "abc")
    one.write_text("id,label\nx,1\ny,2\nz,3\n")
    two.write_text("id,label\nz,3\nx,2\nw,1\n")
    three.write_text("id,class\nx,1\n")
    values = json.loads(comp("diff", one, two, "--json").out)
    assert values["blocks"] == [{"block": "all", "rows": 2, "differing": 1}]
    assert (values["only_first"], values["only_second"], values["moved"]) == (1, 1, True)
    assert "expected the columns 'id', 'label'" in comp("diff", one, three).err
    assert comp("diff", one, tmp_path / "none.csv").code == 2
