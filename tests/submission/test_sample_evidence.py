"""Formats derived from samples and training tables: numbers, lists, headers and classes."""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from comp import config as configs
from comp.config import SubmissionConfig
from comp.data.images import ImageFiles
from comp.results.predictions import from_outputs
from comp.runtime.errors import DataError, SubmissionError, UserError
from comp.submission import derive_format, samples, validate, write
from comp.submission.derive_format import DerivedFormat
from comp.submission.format import Competition, SampleSubmission, SubmissionFormat
from comp.workflows import build
from tests.support.commands import Result

Comp = Callable[..., Result]
CLASSES = ("ant", "bee", "cat")


def derived(
    cells: Sequence[str | Sequence[str]],
    metric: str = "accuracy",
    *,
    classes: Sequence[str] = CLASSES,
    columns: tuple[str, ...] = ("label",),
    task: str = "single_label",
    separator: str = "",
    **section: object,
) -> DerivedFormat:
    """Return the format of a competition with these sample cells."""
    rows = tuple((cell,) if isinstance(cell, str) else tuple(cell) for cell in cells)
    sample = SampleSubmission("sample.csv", "id", columns, tuple(f"t{row}" for row in range(len(rows))), rows)
    config = SubmissionConfig.model_validate(section)
    return derive_format.derive_format(
        Competition("c", metric, tuple(classes), (3, 8, 8), (), sample, config, task, separator=separator)
    )


def test_a_fraction_with_an_exponent_is_a_fraction() -> None:
    one = derived(["5e-1", "5e-1"], classes=("0", "1"))
    assert one.format.answer == "probability"
    assert "'5e-1'" in one.assumptions[0]
    assert derived(["5E-1"], "roc_auc", classes=("0", "1")).assumptions == ()
    wide = derived([["5e-1", "1e-3", "0"]], "macro_f1", columns=CLASSES, task="multi_label")
    assert wide.format.answer == "independent"
    assert derived(["5e-1"], classes=("5e-1", "x")).format.answer == "label"  # it may be a class name
    assert derived(["1e0"], classes=("1", "2")).format.texts == ("1", "2")


@pytest.mark.parametrize("cell", ["0,5", "50%", "33.3 %", "-0,25"])
@pytest.mark.parametrize("metric", ["accuracy", "roc_auc"])
def test_decimal_commas_and_percentages_are_refused_with_the_key(cell: str, metric: str) -> None:
    classes = ("0", "1")
    with pytest.raises(SubmissionError, match=r"competition\.submission\.answer"):
        derived([cell, cell], metric, classes=classes)
    with pytest.raises(SubmissionError, match=f"sample.csv: {cell!r}"):
        derived([[cell, cell]], metric, classes=classes, columns=classes)
    assert derived([cell], metric, classes=classes, answer="probability").format.answer == "probability"
    assert derived([cell], classes=(cell, "x")).format.texts == (cell, "x")  # it may be a class name
    assert derived(["0,1"], "samples_f1", classes=classes, task="multi_label").format.separator == ","


# Sample cell in every row, metric, task, separator of the training labels -> answer, separator, ranked classes.
LISTS = [
    ("ant,bee", "accuracy", "single_label", "", "ranked", ",", 2),
    ("ant|bee|cat", "accuracy", "single_label", "", "ranked", "|", 3),
    ("a b c", "map_at_3", "single_label", "", "ranked", " ", 3),
    ("a, b, c", "map_at_5", "single_label", "", "ranked", ", ", 3),
    ("a b c", "samples_f1", "multi_label", "", "labels", " ", 0),
    ("a|b", "samples_f1", "multi_label", " ", "labels", "|", 0),
    ("none here", "samples_f1", "multi_label", "|", "labels", "|", 0),  # two words are no list
    ("cat bee", "samples_f1", "multi_label", "|", "labels", " ", 0),
]


@pytest.mark.parametrize(("cell", "metric", "task", "separator", "answer", "sign", "ranked"), LISTS)
def test_a_list_placeholder_defines_the_separator_and_length(
    cell: str, metric: str, task: str, separator: str, answer: str, sign: str, ranked: int
) -> None:
    result = derived([cell, cell], metric, task=task, separator=separator)
    assert (result.format.answer, result.format.separator, result.format.ranked) == (answer, sign, ranked)
    assert result.format.texts == CLASSES
    holds_labels = set(cell.replace(",", " ").replace("|", " ").split()) <= set(CLASSES)
    assert bool(result.assumptions) != holds_labels


@pytest.mark.parametrize("cell", ["a b c", "x|y", "a,b"])
def test_a_list_of_unknown_texts_is_refused_unless_the_key_is_set(cell: str) -> None:
    with pytest.raises(SubmissionError, match=r"competition\.submission\.answer to ranked .* or label"):
        derived([cell, cell])
    assert derived([cell], answer="label").format.answer == "label"
    assert derived([cell], answer="ranked").format.ranked == len(cell) // 2 + 1
    assert derived(["no label", "no label"]).format.answer == "label"  # two words are no list


def test_numbers_in_a_placeholder_list_prove_nothing_about_numbering() -> None:
    result = derived(["0 1 2", "0 1 2"], "map_at_3", classes=("1", "2", "3"))
    assert result.format.texts == ("1", "2", "3")
    with pytest.raises(SubmissionError, match=r"competition\.submission\.labels"):
        derived(["0 1 2", "0 1 3"], "map_at_3", classes=("1", "2", "3"))
    with pytest.raises(SubmissionError, match="differ in case"):
        derived(["Ant Bee Cat"] * 2, "map_at_3")


def test_classes_with_the_separator_need_other_texts() -> None:
    classes = ("Sugar beet", "Maize")
    for cells in (["Sugar beet"], ["a b c"]):
        with pytest.raises(SubmissionError, match=r"submission\.labels: class 'Sugar beet' contains ' '"):
            derived(cells, "map_at_3", classes=classes)
    texts = {"Sugar beet": "sugar_beet", "Maize": "maize"}
    assert derived(["x"], "map_at_3", classes=classes, labels=texts).format.texts == ("sugar_beet", "maize")
    wide = derived([["0", "0"]], "macro_f1", classes=classes, columns=classes, task="multi_label")
    assert wide.format.columns == classes  # wide columns need no separator


def test_equal_one_hot_rows_are_labels_by_assumption_if_the_metric_scores_decisions() -> None:
    result = derived([["1", "0", "0"]] * 3, columns=CLASSES)
    assert result.format.answer == "label"
    assert "competition.submission.answer=probabilities" in result.assumptions[0]
    assert derived([["1", "0", "0"], ["0.0", "1.0", "0.0"]], columns=CLASSES).assumptions == ()
    assert derived([["1", "0", "0"]] * 3, "log_loss", columns=CLASSES).format.answer == "probabilities"
    for rows in (["0", "0", "0"], ["1", "1", "0"], ["0.3", "0.3", "0.4"]):
        result = derived([rows] * 3, columns=CLASSES)
        assert (result.format.answer, len(result.assumptions)) == ("probabilities", 1)
    explicit = derived([["1", "0", "0"]] * 3, columns=CLASSES, answer="probabilities")
    assert (explicit.format.answer, explicit.assumptions) == ("probabilities", ())


def table(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    path.write_text(text.getvalue(), encoding="utf-8")


def competition(
    folder: Path, header: Sequence[str], rows: Sequence[Sequence[object]], *, tests: Sequence[str] = ("t0.png",)
) -> None:
    """Write `train.csv` with these rows and ids `r0` ..., an image for each, and test images."""
    for split, names in (("train", [f"r{row}.png" for row in range(len(rows))]), ("test", tests)):
        (folder / split).mkdir(parents=True)
        for number, name in enumerate(names):
            pixels = np.full((8, 8, 3), 20 * number, np.uint8)
            Image.fromarray(pixels).save(folder / split / name, format="PNG")
    table(folder / "train.csv", header, [(f"r{row}", *cells) for row, cells in enumerate(rows)])


def config_of(folder: Path) -> Path:
    """Write a config for a folder."""
    values = {
        "competition": {"name": "t", "suite": {"source": "test"}, "ood_validation": {"severities": []}},
        "data": {"source": "csv_images", "root": str(folder), "validation": 0.25},
    }
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def opened(folder: Path, *overrides: str) -> tuple[DerivedFormat, str]:
    """Return the format derived for a folder's competition, and the notes."""
    dataset = build.prepare(configs.load(config_of(folder), overrides), folder / "runs")
    return derive_format.derive_format(dataset.competition), "\n".join(dataset.notes)


SPECIES = [("cat", "7", "x"), ("dog", "3", "y"), ("cat", "7", "y"), ("dog", "3", "x")] * 3


@pytest.mark.parametrize("cells", [["7", "3"], ["3", "3"], ["7.0", "3.0"]])
def test_the_error_names_the_training_column_that_holds_the_samples_texts(tmp_path: Path, cells: list[str]) -> None:
    competition(tmp_path, ("id", "species", "species_id", "place"), SPECIES, tests=("t0.png", "t1.png"))
    table(tmp_path / "sample_submission.csv", ("id", "answer"), [(f"t{row}", cell) for row, cell in enumerate(cells)])
    with pytest.raises(UserError, match=r"column 'species_id'.*data\.csv\.label_column=species_id") as error:
        opened(tmp_path)
    assert "competition.submission.labels={cat: 7, dog: 3, ...}" in str(error.value)
    texts = {"7": ("3", "7"), "3": ("3", "7"), "7.0": ("3.0", "7.0")}[cells[0]]
    assert opened(tmp_path, "data.csv.label_column=species_id")[0].format.texts == texts
    mapped = opened(tmp_path, "competition.submission.labels={cat: 7, dog: 3}")[0]
    assert (mapped.format.texts, mapped.assumptions) == (("7", "3"), ())


def test_one_training_column_that_holds_a_placeholder_is_noted_and_two_are_not(tmp_path: Path) -> None:
    rows = [(1, 10, "x"), (2, 20, "x"), (1, 10, "y"), (2, 20, "y")] * 3
    competition(tmp_path, ("id", "label", "code", "place"), rows)
    table(tmp_path / "sample_submission.csv", ("id", "answer"), [("t0", "10")])
    result, notes = opened(tmp_path)
    assert result.format.texts == ("1", "2")  # a placeholder proves nothing about numbering
    assert "column 'code' maps one to one" in notes
    table(tmp_path / "sample_submission.csv", ("id", "answer"), [("t0", "0")])
    assert "one to one" not in opened(tmp_path)[1]
    table(
        tmp_path / "train.csv",
        ("id", "label", "code", "same"),
        [(f"r{n}", *row[:2], row[1]) for n, row in enumerate(rows)],
    )
    table(tmp_path / "sample_submission.csv", ("id", "answer"), [("t0", "10")])
    assert "one to one" not in opened(tmp_path)[1]


def test_without_a_sample_the_header_comes_from_the_training_table(tmp_path: Path) -> None:
    rows = [("cat",), ("dog",)] * 4
    competition(tmp_path, ("image_name", "breed"), rows, tests=("t0.png", "t1.png"))
    result, notes = opened(tmp_path)
    assert result.format.header == ("image_name", "breed")
    assert "no sample submission was found, so this header, the training table's," in notes
    explicit = opened(tmp_path, "competition.submission.id_column=Id", "competition.submission.label_column=y")[0]
    assert explicit.format.header == ("Id", "y")
    assert opened(tmp_path, "competition.metric=log_loss", "competition.submission.answer=probabilities")[
        0
    ].format.header == ("image_name", "cat", "dog")
    table(tmp_path / "sample_submission.csv", ("id", "label"), [("t0", "cat")])
    assert opened(tmp_path)[0].format.header == ("id", "label")


ONE_HOT = [("1", "0", "0", "0"), ("0", "1", "0", "0"), ("0", "0", "1", "0"), ("0", "0", "0", "1")] * 3


def test_a_sample_with_some_of_the_one_hot_columns_is_refused(tmp_path: Path) -> None:
    competition(tmp_path, ("id", "a", "b", "c", "d"), ONE_HOT)
    table(tmp_path / "sample_submission.csv", ("id", "a", "b", "c"), [("t0", 0, 0, 0)])
    for overrides in ([], ["competition.task=multi_label"]):
        with pytest.raises(DataError, match=r"no column for 'd'.*data\.csv\.label_columns=\[a, b, c\]"):
            opened(tmp_path, *overrides)
    result, notes = opened(tmp_path, "data.csv.label_columns=[a, b, c]")
    assert (result.format.columns, result.format.answer) == (("a", "b", "c"), "independent")
    assert "0.75 labels per image: multi_label" in notes


def test_flag_columns_that_are_not_classes_are_ignored(tmp_path: Path) -> None:
    female = [(*row[:3], number % 2) for number, row in enumerate(ONE_HOT) if row[3] == "0"]
    competition(tmp_path / "one", ("id", "a", "b", "c", "female"), female)
    table(tmp_path / "one/sample_submission.csv", ("id", "a", "b", "c"), [("t0", 0, 0, 0)])
    assert "one 1 in every row: single_label" in opened(tmp_path / "one")[1]
    several = [("1", "1", "0"), ("0", "0", "1"), ("0", "1", "0"), ("0", "0", "0")] * 3
    competition(tmp_path / "two", ("id", "a", "b", "female"), several)
    table(tmp_path / "two/sample_submission.csv", ("id", "a", "b"), [("t0", 0, 0)])
    assert opened(tmp_path / "two")[0].format.columns == ("a", "b")


def test_a_header_with_spaces_is_written_byte_for_byte(tmp_path: Path) -> None:
    competition(tmp_path, ("id", " cat", "dog "), [("1", "0"), ("0", "1")] * 4)
    (tmp_path / "sample_submission.csv").write_bytes(b"\xef\xbb\xbfid , dog,cat \nt0,0.5,0.5\n")
    form = opened(tmp_path, "competition.metric=log_loss")[0].format
    assert form.header == ("id ", " dog", "cat ")
    assert form.texts == ("dog", "cat")
    rows = from_outputs(
        np.array([[0, 9]], np.float32),
        task="single_label",
        ids=np.array(["t0"]),
        classes=form.classes,
        targets=None,
        made_by={},
    )
    write.write_submission(tmp_path / "a.csv", rows, form, {})
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines[0] == "id , dog,cat "
    assert float(lines[1].split(",")[2]) > 0.99  # of cat
    assert (
        validate.validate_submission(tmp_path / "a.csv", validate.read_sidecar_format(tmp_path / "a.csv")).problems
        == ()
    )
    table(tmp_path / "train.csv", ("id", " label "), [(f"r{row}", ("cat", "dog")[row % 2]) for row in range(8)])
    (tmp_path / "sample_submission.csv").write_text('"Id", label\nt0,cat\n')
    assert opened(tmp_path)[0].format.header == ("Id", " label")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_in_utf8_or_with_a_byte_order_mark_are_read(tmp_path: Path, encoding: str) -> None:
    competition(tmp_path, ("id", "label"), [("chat noir",), ("bête",)] * 4)
    for name, text in (("sample_submission.csv", "Id,Étiquette\nt0,bête\n"), ("train.csv", None)):
        path = tmp_path / name
        path.write_bytes((text or path.read_text(encoding="utf-8")).encode(encoding))
    form = opened(tmp_path)[0].format
    assert (form.header, form.texts) == (("Id", "Étiquette"), ("bête", "chat noir"))


@pytest.mark.parametrize("name", ["sample_submission.csv", "train.csv"])
@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16-le"])
def test_other_encodings_are_refused(tmp_path: Path, name: str, encoding: str) -> None:
    competition(tmp_path, ("id", "label"), [("chat noir",), ("bête",)] * 4)
    table(tmp_path / "sample_submission.csv", ("id", "label"), [("t0", "bête")])
    (tmp_path / name).write_bytes((tmp_path / name).read_text(encoding="utf-8").encode(encoding))
    with pytest.raises(DataError, match=f"{name}: .*save it as UTF-8"):
        opened(tmp_path)


def test_ids_match_files_regardless_of_suffix_case_and_spaces(tmp_path: Path) -> None:
    files = ("t0.PNG", "t1.png", "t2.png", "t3.JPG")
    competition(tmp_path, ("id", "label"), [("cat",), ("dog",)] * 4, tests=files)
    ids = ("t1.PNG", " t2", "t0.png ", "t3.jpg")
    table(tmp_path / "sample_submission.csv", ("id", "label"), [(key, "cat") for key in ids])
    dataset = build.prepare(configs.load(config_of(tmp_path)), tmp_path / "runs")
    assert dataset.test is not None
    assert isinstance(dataset.test.images, ImageFiles)
    names = [Path(path).name for path in dataset.test.images.paths.tolist()]
    assert names == ["t1.png", "t2.png", "t0.PNG", "t3.JPG"]
    assert derive_format.derive_format(dataset.competition).format.listed_ids == ids  # written as in the sample
    table(tmp_path / "sample_submission.csv", ("id", "label"), [("t1", "cat"), ("t1.png", "cat")])
    with pytest.raises(DataError, match=r"t1\.png: ids 't1' and 't1\.png' both name it; keep one row"):
        opened(tmp_path)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "test/t1.PNG", format="PNG")
    table(tmp_path / "sample_submission.csv", ("id", "label"), [("t1.Png", "cat")])
    with pytest.raises(DataError, match=r"id 't1\.Png' .*'t1\.PNG', 't1\.png'"):
        opened(tmp_path)


def test_a_sample_that_the_source_does_not_read_is_named(workplace: Path, comp: Comp) -> None:
    suite = ["competition.suite.source=test", "competition.ood_validation.severities=[]"]
    table(workplace / "data/sample_submission.csv", ("ImageId", "Label"), [(row, 0) for row in range(40)])
    config = configs.load(workplace / "small.yaml", suite)
    notes = "\n".join(build.prepare(config, workplace / "runs").notes)
    assert "sample_submission.csv is not read by data.source=arrays" in notes
    assert "was found" not in notes
    missing = configs.load(workplace / "small.yaml", [*suite, "data.csv.sample=sample.csv"])
    with pytest.raises(SubmissionError, match=r"sample\.csv: no such sample submission"):
        build.prepare(missing, workplace / "runs")


def test_a_sample_beside_a_labelled_test_is_named(tmp_path: Path) -> None:
    for number, name in enumerate(["train/cat", "train/dog", "test/cat", "test/dog"] * 4):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(tmp_path / name / f"{number}.png")
    table(tmp_path / "sampleSubmission.csv", ("id", "label"), [(2, "cat")])
    assert (
        "sampleSubmission.csv is not read by data.source=image_folder"
        in opened(tmp_path, "data.source=image_folder")[1]
    )


def test_an_empty_list_is_allowed_if_training_images_have_no_label(tmp_path: Path) -> None:
    several = [("ant bee",), ("",), ("cat",), ("bee",), ("ant",), ("",), ("bee cat",), ("",)]
    outputs = np.array([[3, -1, -2], [-1, -2, -3]], np.float32)  # the second image has no class
    written = {}
    for name, rows in (("some", several), ("none", [row for row in several if row[0]] * 2)):
        folder = tmp_path / name
        competition(folder, ("id", "labels"), rows, tests=("t0.png", "t1.png"))
        table(folder / "sample_submission.csv", ("id", "labels"), [("t1", "ant bee"), ("t0", "ant bee")])
        result, notes = opened(folder, "competition.metric=samples_f1")
        assert result.format.may_be_empty == (name == "some")
        assert ("3 images have none" in notes) == (name == "some")
        predicted = from_outputs(
            outputs,
            task="multi_label",
            ids=np.array(["t1", "t0"]),
            classes=result.format.classes,
            targets=None,
            made_by={},
        )
        write.write_submission(folder / "a.csv", predicted, result.format, {})
        form = validate.read_sidecar_format(folder / "a.csv")
        assert form == result.format
        assert validate.validate_submission(folder / "a.csv", form).problems == ()
        written[name] = (folder / "a.csv").read_text()
        (folder / "b.csv").write_text("id,labels\nt0,\nt1,ant\n")
        assert bool(validate.validate_submission(folder / "b.csv", form).problems) == (name == "none")
    assert written == {"some": "id,labels\nt1,ant\nt0,\n", "none": "id,labels\nt1,ant\nt0,ant\n"}


def test_an_older_sidecar_allows_no_empty_list() -> None:
    values = SubmissionFormat(answer="labels", texts=CLASSES, may_be_empty=True).to_json()
    assert SubmissionFormat.from_json(values, Path()).may_be_empty
    del values["may_be_empty"]
    assert not SubmissionFormat.from_json(values, Path()).may_be_empty


def test_samples_keep_spaces_in_their_header(tmp_path: Path) -> None:
    (tmp_path / "sample.csv").write_text("id , label\na,0\n")
    sample = samples.read_sample(tmp_path / "sample.csv")
    assert (sample.id_column, sample.columns, sample.full_header) == ("id", ("label",), ("id ", " label"))
    (tmp_path / "sample.csv").write_text("id,label, label\na,0,1\n")
    with pytest.raises(SubmissionError, match="two columns"):
        samples.read_sample(tmp_path / "sample.csv")


@pytest.mark.parametrize(
    "override",
    [
        "tune.metric=zzz",
        "tune.metric=[val_metric, zzz]",
        "competition.metric=zzz",
        "train.select=zzz",
        "competition.submission.answer=zzz",
        "tune.sampler=zzz",
        "tune.pruner=zzz",
    ],
)
def test_config_check_refuses_unknown_names(workplace: Path, comp: Comp, override: str) -> None:
    result = comp("config", "check", "small.yaml", override)
    assert result.code == 2
    assert override.partition("=")[0].rpartition(".")[2] in result.err
    assert "zzz" in result.err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["competition.task=single_label", "competition.submission.answer=independent"], "is not an answer of task"),
        (["competition.metric=log_loss", "competition.submission.answer=label"], "log_loss"),
    ],
)
def test_config_check_refuses_an_answer_that_task_or_metric_contradict(
    workplace: Path, comp: Comp, overrides: list[str], message: str
) -> None:
    result = comp("config", "check", "small.yaml", *overrides)
    assert result.code == 2
    assert f"competition.submission.answer: {overrides[1].partition('=')[2]}" in result.err
    assert message in result.err
    assert comp("config", "check", "small.yaml", overrides[1]).code == 0  # no contradiction yet
