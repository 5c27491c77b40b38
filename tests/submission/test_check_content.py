"""What `comp check` and `comp diff` say of files valid in form, and formats learnt from samples and YAML."""

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
from comp.submission import check_by_sample, check_content, derive_format, validate, write
from comp.submission.format import Competition, SampleSubmission, SubmissionFormat
from tests.support.commands import Result

Comp = Callable[..., Result]
LAYOUT = blocks.block_grid(range(3), range(1, 3), 100)
WANTED = SubmissionFormat(LAYOUT, texts=tuple("01234"))
TRUTH = np.random.default_rng(0).integers(0, 5, 600)
EVEN = [200] * 5  # training images of each class


def guess(seed: int, accuracy: float = 0.6) -> np.ndarray:
    """Return labels that are right this often."""
    generator = np.random.default_rng(seed)
    return np.where(generator.random(600) < accuracy, TRUTH, generator.integers(0, 5, 600))


def predicted(labels: np.ndarray, wanted: SubmissionFormat = WANTED) -> Predictions:
    """Return predictions that say these labels."""
    logits = np.eye(5, dtype=np.float32)[labels] * 4
    return from_outputs(logits, task="single_label", ids=wanted.ids(), classes="abcde", targets=None, made_by={})


def written(path: Path, labels: np.ndarray, **sidecar: object) -> Path:
    """Write a submission of these labels."""
    write.write(path, predicted(labels), WANTED, sidecar)
    return path


def said_of(path: Path, against: Path | None = None) -> list[tuple[str, str]]:
    """Return the first word and the verdict of each doubt."""
    verdict = validate.validate(path, WANTED, training=EVEN, against=against)
    assert verdict.problems == ()
    return [(doubt.what.partition(":")[0], doubt.verdict) for doubt in verdict.doubts]


@pytest.mark.parametrize("seed", range(5))
def test_an_honest_submission_raises_no_doubt(tmp_path: Path, seed: int) -> None:
    one, other = written(tmp_path / "a.csv", guess(seed)), written(tmp_path / "b.csv", guess(seed + 100))
    assert said_of(one, other) == []


def test_a_constant_submission_misleads(tmp_path: Path) -> None:
    assert said_of(written(tmp_path / "a.csv", np.full(600, 3))) == [("constant", "misleads")]


def test_a_histogram_far_from_training_misleads_and_a_nearer_one_is_noted(tmp_path: Path) -> None:
    far = np.where(np.arange(600) < 450, 2, guess(0))
    near = np.where(np.arange(600) < 200, 2, guess(0))
    assert said_of(written(tmp_path / "far.csv", far)) == [("lopsided", "misleads")]
    assert said_of(written(tmp_path / "near.csv", near)) == [("lopsided", "note")]


def test_a_scrambled_order_is_seen_beside_an_earlier_submission(tmp_path: Path) -> None:
    before = written(tmp_path / "a.csv", guess(1))
    scrambled = written(tmp_path / "b.csv", np.random.default_rng(9).permutation(guess(2)))
    assert said_of(scrambled) == []  # alone it looks like any other
    assert said_of(scrambled, before) == [("scrambled", "misleads")]
    swapped = guess(2)
    swapped[:100] = np.random.default_rng(3).permutation(swapped[:100])
    verdict = validate.validate(written(tmp_path / "c.csv", swapped), WANTED, against=before)
    assert [doubt.verdict for doubt in verdict.doubts] == ["note"]
    assert "distortion00_1" in verdict.doubts[0].what


def test_equal_files_agree_wholly_and_independent_ones_by_chance() -> None:
    one, other = guess(0, 1.0).astype(str), guess(1, 0.0).astype(str)
    assert check_content.agree(one, one) == (1.0, 1.0)
    assert abs(check_content.agree(one, other)[1]) < 0.1


def test_check_says_what_it_doubts_and_refuses_what_misleads(tmp_path: Path, comp: Comp) -> None:
    good = written(tmp_path / "good.csv", guess(0), training_counts=EVEN)
    bad = written(tmp_path / "bad.csv", np.full(600, 1), training_counts=EVEN)
    result = comp("check", good)
    assert (result.code, result.out) == (0, f"{good}: valid, 600 rows\n")
    result = comp("check", good, "--against", written(tmp_path / "other.csv", guess(5)), "--json")
    told = json.loads(result.out)
    assert told["valid"]
    assert 0.3 < told["agreement"] < 0.7
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


def test_check_without_a_format_says_how_to_give_one(tmp_path: Path, comp: Comp) -> None:
    path = written(tmp_path / "a.csv", guess(0))
    runs.sidecar_path(path).unlink()
    assert "give --format CONFIG" in comp("check", path).err
    assert "no such submission" in comp("check", tmp_path / "none.csv").err


def rows_of(path: Path) -> list[list[str]]:
    """Return a CSV's rows."""
    with path.open(newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize(
    ("cell", "good", "bad"),
    [("0", "17", "cat"), ("cat", "dog", ""), ("0", "0", "nan"), ("0.5", "0.25", "x")],
)
def test_a_sample_alone_tells_ids_and_the_kind_of_labels(
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
    assert "note: rows stand in another order" in comp("check", path, "--format", sample).out


def test_a_sample_with_a_column_for_each_class_wants_probabilities(tmp_path: Path, comp: Comp) -> None:
    sample, path = tmp_path / "sample.csv", tmp_path / "a.csv"
    sample.write_text("id,cat,dog\n7,0.5,0.5\n3,0.5,0.5\n")
    path.write_text("id,cat,dog\n7,0.25,0.75\n3,1,0\n")
    assert comp("check", path, "--format", sample).code == 0
    path.write_text("id,dog,cat\n7,0.25,0.75\n3,1,0\n")
    assert "note: columns stand in another order" in comp("check", path, "--format", sample).out
    path.write_text("id,cat,dog\n7,0.25,0.75\n3,1,\n")
    assert (
        "1 rows are not numbers from 0 to 1 that sum to 1, 1 of them with an empty or NaN cell"
        in comp("check", path, "--format", sample).err
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,a,b\n1,x,0\n", "expected numbers in a column for each class"),
        ("id,label\n1,0\n1,0\n", "lists 1 ids more than once"),
        ("id,label\n", "found no row"),
        ("id\n1\n", "found only 'id'"),
    ],
)
def test_a_sample_that_tells_nothing_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "sample.csv").write_text(content)
    with pytest.raises(SubmissionError, match=message):
        check_by_sample.from_sample(tmp_path / "sample.csv", tmp_path / "sample.csv")


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
def test_a_config_says_what_a_submission_looks_like(
    tmp_path: Path, section: SubmissionConfig, header: list[str], first: str
) -> None:
    wanted = derive_format.format_of(competition(section))
    labels = np.full(600, 1)
    write.write(tmp_path / "a.csv", predicted(labels), wanted, {})
    rows = rows_of(tmp_path / "a.csv")
    assert rows[0] == header
    assert rows[1][0] == "distortion00_1_0"
    assert rows[1][1].startswith(first)
    assert validate.validate(tmp_path / "a.csv", wanted).problems == ()
    assert validate.format_beside(tmp_path / "a.csv") == wanted


def test_a_config_goes_before_the_sample() -> None:
    cells = (("0.2",) * 5, ("0.2",) * 5)
    sample = SampleSubmission("s.csv", "key", tuple("abcde"), ("x", "y"), cells)
    derived = derive_format.derive(competition(SubmissionConfig(), sample, "log_loss"))
    assert derived.form.header == ("key", *"abcde")
    assert (derived.form.answer, derived.form.listed_ids, derived.doubts) == ("probabilities", ("x", "y"), ())
    assert derive_format.derive(competition(SubmissionConfig(), sample)).doubts  # accuracy is computed from decisions
    one_hot = derive_format.format_of(competition(SubmissionConfig(answer="label"), sample))
    assert (one_hot.header, one_hot.answer) == (("key", *"abcde"), "label")
    with pytest.raises(SubmissionError, match="is an answer column too"):
        derive_format.format_of(competition(SubmissionConfig(answer="probabilities", labels="names", id_column="a")))


@pytest.mark.parametrize("name", ["plain", 'with "quotes", a comma', "ünïcode", "two\nlines"])
def test_any_class_name_survives_the_csv(tmp_path: Path, name: str) -> None:
    wanted = SubmissionFormat(LAYOUT, texts=(name, *"bcde"))
    write.write(tmp_path / "a.csv", predicted(np.zeros(600, int)), wanted, {})
    assert {row[1] for row in rows_of(tmp_path / "a.csv")[1:]} == {name}
    assert validate.validate(tmp_path / "a.csv", wanted).problems == ()


def test_diff_counts_differing_rows_in_each_block(tmp_path: Path, comp: Comp) -> None:
    labels = guess(0)
    other = labels.copy()
    other[[0, 5, 599]] = (other[[0, 5, 599]] + 1) % 5
    one, two = written(tmp_path / "a.csv", labels), written(tmp_path / "b.csv", other)
    told = json.loads(comp("diff", one, two, "--json").out)
    assert told["total"] == {"block": "all", "rows": 600, "differing": 3}
    counts = {row["block"]: row["differing"] for row in told["blocks"]}
    assert counts == {block.name: 0 for block in LAYOUT} | {"distortion00_1": 2, "distortion02_2": 1}
    assert "0.50%" in comp("diff", one, two).out
    assert json.loads(comp("diff", one, one, "--json").out)["total"]["differing"] == 0


def test_diff_compares_by_id_and_tells_of_what_only_one_has(tmp_path: Path, comp: Comp) -> None:
    one, two, three = (tmp_path / f"{name}.csv" for name in "abc")
    one.write_text("id,label\nx,1\ny,2\nz,3\n")
    two.write_text("id,label\nz,3\nx,2\nw,1\n")
    three.write_text("id,class\nx,1\n")
    told = json.loads(comp("diff", one, two, "--json").out)
    assert told["blocks"] == [{"block": "all", "rows": 2, "differing": 1}]
    assert (told["only_first"], told["only_second"], told["moved"]) == (1, 1, True)
    assert "expected the columns 'id', 'label'" in comp("diff", one, three).err
    assert comp("diff", one, tmp_path / "none.csv").code == 2
