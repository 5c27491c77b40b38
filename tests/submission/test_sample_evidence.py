"""What samples and training tables show before training: numbers, lists, headers, classes; never guessed in silence.

Data are files made in the test; what must be written is stated beside each case.
"""

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
from comp.submission.derive_format import Derived
from comp.submission.format import Competition, SampleSubmission, SubmissionFormat
from comp.workflows import build
from tests.support.commands import Result

Comp = Callable[..., Result]
CLASSES = ("ant", "bee", "cat")


def derived(
    cells: Sequence[str | Sequence[str]], metric: str = "accuracy", *, classes: Sequence[str] = CLASSES,
    columns: tuple[str, ...] = ("label",), task: str = "single_label", separator: str = "", **section: object,
) -> Derived:  # fmt: skip
    """Return the format of a competition with these sample cells."""
    rows = tuple((cell,) if isinstance(cell, str) else tuple(cell) for cell in cells)
    sample = SampleSubmission("sample.csv", "id", columns, tuple(f"t{row}" for row in range(len(rows))), rows)
    wanted = SubmissionConfig.model_validate(section)
    return derive_format.derive(
        Competition("c", metric, tuple(classes), (3, 8, 8), (), sample, wanted, task, separator=separator)
    )


def test_a_fraction_with_an_exponent_is_a_fraction() -> None:
    one = derived(["5e-1", "5e-1"], classes=("0", "1"))
    assert one.form.answer == "probability"
    assert "'5e-1', which is no label" in one.doubts[0]
    assert derived(["5E-1"], "roc_auc", classes=("0", "1")).doubts == ()
    wide = derived([["5e-1", "1e-3", "0"]], "macro_f1", columns=CLASSES, task="multi_label")
    assert wide.form.answer == "independent"
    assert derived(["5e-1"], classes=("5e-1", "x")).form.answer == "label"  # a class may be called so
    assert derived(["1e0"], classes=("1", "2")).form.texts == ("1", "2")


@pytest.mark.parametrize("cell", ["0,5", "50%", "33.3 %", "-0,25"])
@pytest.mark.parametrize("metric", ["accuracy", "roc_auc"])
def test_a_decimal_comma_and_a_percentage_are_refused_with_the_key(cell: str, metric: str) -> None:
    classes = ("0", "1")
    with pytest.raises(SubmissionError, match=r"competition\.submission\.answer, such as probability"):
        derived([cell, cell], metric, classes=classes)
    with pytest.raises(SubmissionError, match="decimal comma or a percentage"):
        derived([[cell, cell]], metric, classes=classes, columns=classes)
    assert derived([cell], metric, classes=classes, answer="probability").form.answer == "probability"
    assert derived([cell], classes=(cell, "x")).form.texts == (cell, "x")  # a class may be called so
    assert derived(["0,1"], "samples_f1", classes=classes, task="multi_label").form.separator == ","


# Sample cell in every row, metric, task, what parted training's labels -> answer, separator, how many.
LISTS = [
    ("ant,bee", "accuracy", "single_label", "", "ranked", ",", 2),
    ("ant|bee|cat", "accuracy", "single_label", "", "ranked", "|", 3),
    ("a b c", "map_at_3", "single_label", "", "ranked", " ", 3),
    ("a, b, c", "map_at_5", "single_label", "", "ranked", ", ", 3),
    ("a b c", "samples_f1", "multi_label", "", "labels", " ", 0),
    ("a|b", "samples_f1", "multi_label", " ", "labels", "|", 0),
    ("none here", "samples_f1", "multi_label", "|", "labels", "|", 0),  # two words are a text
    ("cat bee", "samples_f1", "multi_label", "|", "labels", " ", 0),
]  # fmt: skip


@pytest.mark.parametrize(("cell", "metric", "task", "separator", "answer", "sign", "ranked"), LISTS)
def test_a_placeholder_that_lists_labels_keeps_its_form(
    cell: str, metric: str, task: str, separator: str, answer: str, sign: str, ranked: int
) -> None:
    found = derived([cell, cell], metric, task=task, separator=separator)
    assert (found.form.answer, found.form.separator, found.form.ranked) == (answer, sign, ranked)
    assert found.form.texts == CLASSES
    known = set(cell.replace(",", " ").replace("|", " ").split()) <= set(CLASSES)
    assert bool(found.doubts) != known


@pytest.mark.parametrize("cell", ["a b c", "x|y", "a,b"])
def test_a_list_of_unknown_texts_is_refused_where_nothing_says_that_one_is_wanted(cell: str) -> None:
    with pytest.raises(SubmissionError, match=r"competition\.submission\.answer=ranked .* or label"):
        derived([cell, cell])
    assert derived([cell], answer="label").form.answer == "label"
    assert derived([cell], answer="ranked").form.ranked == len(cell) // 2 + 1
    assert derived(["no label", "no label"]).form.answer == "label"  # a text, as a class may be


def test_numbers_of_a_placeholder_list_say_nothing_about_numbering() -> None:
    found = derived(["0 1 2", "0 1 2"], "map_at_3", classes=("1", "2", "3"))
    assert found.form.texts == ("1", "2", "3")
    with pytest.raises(SubmissionError, match=r"competition\.submission\.labels"):
        derived(["0 1 2", "0 1 3"], "map_at_3", classes=("1", "2", "3"))
    with pytest.raises(SubmissionError, match="differ in case"):
        derived(["Ant Bee Cat"] * 2, "map_at_3")


def test_classes_that_hold_the_separator_are_refused_unless_they_are_given_texts_without_it() -> None:
    classes = ("Sugar beet", "Maize")
    for cells in (["Sugar beet"], ["a b c"]):
        with pytest.raises(
            SubmissionError, match=r"submission\.labels: class 'Sugar beet' holds ' '.* text without it"
        ):
            derived(cells, "map_at_3", classes=classes)
    texts = {"Sugar beet": "sugar_beet", "Maize": "maize"}
    assert derived(["x"], "map_at_3", classes=classes, labels=texts).form.texts == ("sugar_beet", "maize")
    wide = derived([["0", "0"]], "macro_f1", classes=classes, columns=classes, task="multi_label")
    assert wide.form.columns == classes  # nothing is parted in a column for each class


def test_equal_one_hot_rows_under_a_metric_of_decisions_are_labels_with_a_doubt() -> None:
    found = derived([["1", "0", "0"]] * 3, columns=CLASSES)
    assert found.form.answer == "label"
    assert "competition.submission.answer=probabilities" in found.doubts[0]
    assert derived([["1", "0", "0"], ["0.0", "1.0", "0.0"]], columns=CLASSES).doubts == ()
    assert derived([["1", "0", "0"]] * 3, "log_loss", columns=CLASSES).form.answer == "probabilities"
    for rows in (["0", "0", "0"], ["1", "1", "0"], ["0.3", "0.3", "0.4"]):
        found = derived([rows] * 3, columns=CLASSES)
        assert (found.form.answer, len(found.doubts)) == ("probabilities", 1)
    explicit = derived([["1", "0", "0"]] * 3, columns=CLASSES, answer="probabilities")
    assert (explicit.form.answer, explicit.doubts) == ("probabilities", ())


def table(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    path.write_text(text.getvalue(), encoding="utf-8")


def competition(
    folder: Path, header: Sequence[str], rows: Sequence[Sequence[object]], *, tests: Sequence[str] = ("t0.png",)
) -> None:
    """Write `train.csv` of these rows, whose ids are `r0` ..., with a picture for each, and test pictures."""
    for split, names in (("train", [f"r{row}.png" for row in range(len(rows))]), ("test", tests)):
        (folder / split).mkdir(parents=True)
        for number, name in enumerate(names):
            pixels = np.full((8, 8, 3), 20 * number, np.uint8)
            Image.fromarray(pixels).save(folder / split / name, format="PNG")
    table(folder / "train.csv", header, [(f"r{row}", *cells) for row, cells in enumerate(rows)])


def config_of(folder: Path) -> Path:
    """Write a config of a folder."""
    values = {
        "competition": {"name": "t", "suite": {"source": "test"}, "ood_validation": {"severities": []}},
        "data": {"source": "csv_images", "root": str(folder), "validation": 0.25},
    }
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def opened(folder: Path, *overrides: str) -> tuple[Derived, str]:
    """Return the format that a folder's competition gets before training, and the notes that are shown."""
    dataset = build.prepare(configs.load(config_of(folder), overrides), folder / "runs")
    return derive_format.derive(dataset.competition), "\n".join(dataset.notes)


SPECIES = [("cat", "7", "x"), ("dog", "3", "y"), ("cat", "7", "y"), ("dog", "3", "x")] * 3


@pytest.mark.parametrize("cells", [["7", "3"], ["3", "3"], ["7.0", "3.0"]])
def test_a_column_that_explains_the_sample_is_named_in_the_refusal(tmp_path: Path, cells: list[str]) -> None:
    competition(tmp_path, ("id", "species", "species_id", "place"), SPECIES, tests=("t0.png", "t1.png"))
    table(tmp_path / "sample_submission.csv", ("id", "answer"), [(f"t{row}", cell) for row, cell in enumerate(cells)])
    with pytest.raises(
        UserError, match=r"column 'species_id' goes one to one .*data\.csv\.label_column=species_id"
    ) as error:
        opened(tmp_path)
    assert "competition.submission.labels={cat: 7, dog: 3, ...}" in str(error.value)
    texts = {"7": ("3", "7"), "3": ("3", "7"), "7.0": ("3.0", "7.0")}[cells[0]]
    assert opened(tmp_path, "data.csv.label_column=species_id")[0].form.texts == texts
    mapped = opened(tmp_path, "competition.submission.labels={cat: 7, dog: 3}")[0]
    assert (mapped.form.texts, mapped.doubts) == (("7", "3"), ())


def test_a_column_that_explains_a_placeholder_is_doubted_and_none_is_named_where_two_do(tmp_path: Path) -> None:
    rows = [(1, 10, "x"), (2, 20, "x"), (1, 10, "y"), (2, 20, "y")] * 3
    competition(tmp_path, ("id", "label", "code", "place"), rows)
    table(tmp_path / "sample_submission.csv", ("id", "answer"), [("t0", "10")])
    found, notes = opened(tmp_path)
    assert found.form.texts == ("1", "2")  # a placeholder says nothing about numbering, so it is said aloud
    assert "column 'code' goes one to one with the labels" in notes
    table(tmp_path / "sample_submission.csv", ("id", "answer"), [("t0", "0")])
    assert "one to one" not in opened(tmp_path)[1]
    table(
        tmp_path / "train.csv",
        ("id", "label", "code", "same"),
        [(f"r{n}", *row[:2], row[1]) for n, row in enumerate(rows)],
    )
    table(tmp_path / "sample_submission.csv", ("id", "answer"), [("t0", "10")])
    assert "one to one" not in opened(tmp_path)[1]


def test_without_a_sample_the_header_is_the_training_tables(tmp_path: Path) -> None:
    rows = [("cat",), ("dog",)] * 4
    competition(tmp_path, ("image_name", "breed"), rows, tests=("t0.png", "t1.png"))
    found, notes = opened(tmp_path)
    assert found.form.header == ("image_name", "breed")
    assert "no sample submission was found, so this header, the training table's," in notes
    explicit = opened(tmp_path, "competition.submission.id_column=Id", "competition.submission.label_column=y")[0]
    assert explicit.form.header == ("Id", "y")
    assert opened(tmp_path, "competition.metric=log_loss", "competition.submission.answer=probabilities")[
        0
    ].form.header == ("image_name", "cat", "dog")
    table(tmp_path / "sample_submission.csv", ("id", "label"), [("t0", "cat")])
    assert opened(tmp_path)[0].form.header == ("id", "label")


ONE_HOT = [("1", "0", "0", "0"), ("0", "1", "0", "0"), ("0", "0", "1", "0"), ("0", "0", "0", "1")] * 3


def test_a_sample_with_some_of_the_one_hot_columns_is_refused(tmp_path: Path) -> None:
    competition(tmp_path, ("id", "a", "b", "c", "d"), ONE_HOT)
    table(tmp_path / "sample_submission.csv", ("id", "a", "b", "c"), [("t0", 0, 0, 0)])
    for overrides in ([], ["competition.task=multi_label"]):
        with pytest.raises(DataError, match=r"no column for 'd'.*data\.csv\.label_columns=\[a, b, c\]"):
            opened(tmp_path, *overrides)
    found, notes = opened(tmp_path, "data.csv.label_columns=[a, b, c]")
    assert (found.form.columns, found.form.answer) == (("a", "b", "c"), "independent")
    assert "0.75 labels an image: multi_label" in notes


def test_flags_that_are_no_class_do_not_count_as_lost_ones(tmp_path: Path) -> None:
    female = [(*row[:3], number % 2) for number, row in enumerate(ONE_HOT) if row[3] == "0"]
    competition(tmp_path / "one", ("id", "a", "b", "c", "female"), female)
    table(tmp_path / "one/sample_submission.csv", ("id", "a", "b", "c"), [("t0", 0, 0, 0)])
    assert "one 1 in every row: single_label" in opened(tmp_path / "one")[1]
    several = [("1", "1", "0"), ("0", "0", "1"), ("0", "1", "0"), ("0", "0", "0")] * 3
    competition(tmp_path / "two", ("id", "a", "b", "female"), several)
    table(tmp_path / "two/sample_submission.csv", ("id", "a", "b"), [("t0", 0, 0)])
    assert opened(tmp_path / "two")[0].form.columns == ("a", "b")


def test_a_header_with_spaces_is_written_byte_for_byte(tmp_path: Path) -> None:
    competition(tmp_path, ("id", " cat", "dog "), [("1", "0"), ("0", "1")] * 4)
    (tmp_path / "sample_submission.csv").write_bytes(b"\xef\xbb\xbfid , dog,cat \nt0,0.5,0.5\n")
    form = opened(tmp_path, "competition.metric=log_loss")[0].form
    assert form.header == ("id ", " dog", "cat ")
    assert form.texts == ("dog", "cat")
    rows = from_outputs(
        np.array([[0, 9]], np.float32), task="single_label", ids=np.array(["t0"]), classes=form.classes, targets=None,
        made_by={},
    )  # fmt: skip
    write.write(tmp_path / "a.csv", rows, form, {})
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines[0] == "id , dog,cat "
    assert float(lines[1].split(",")[2]) > 0.99  # of cat
    assert validate.validate(tmp_path / "a.csv", validate.format_beside(tmp_path / "a.csv")).problems == ()
    table(tmp_path / "train.csv", ("id", " label "), [(f"r{row}", ("cat", "dog")[row % 2]) for row in range(8)])
    (tmp_path / "sample_submission.csv").write_text('"Id", label\nt0,cat\n')
    assert opened(tmp_path)[0].form.header == ("Id", " label")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_samples_and_tables_in_an_encoding_with_a_mark_are_read(tmp_path: Path, encoding: str) -> None:
    competition(tmp_path, ("id", "label"), [("chat noir",), ("bête",)] * 4)
    for name, text in (("sample_submission.csv", "Id,Étiquette\nt0,bête\n"), ("train.csv", None)):
        path = tmp_path / name
        path.write_bytes((text or path.read_text(encoding="utf-8")).encode(encoding))
    form = opened(tmp_path)[0].form
    assert (form.header, form.texts) == (("Id", "Étiquette"), ("bête", "chat noir"))


@pytest.mark.parametrize("name", ["sample_submission.csv", "train.csv"])
@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16-le"])
def test_other_encodings_are_refused_with_the_cure(tmp_path: Path, name: str, encoding: str) -> None:
    competition(tmp_path, ("id", "label"), [("chat noir",), ("bête",)] * 4)
    table(tmp_path / "sample_submission.csv", ("id", "label"), [("t0", "bête")])
    (tmp_path / name).write_bytes((tmp_path / name).read_text(encoding="utf-8").encode(encoding))
    with pytest.raises(DataError, match=f"{name}: expected UTF-8 text, found .*save it as UTF-8"):
        opened(tmp_path)


def test_ids_are_found_whatever_the_endings_case_or_spaces_around_them(tmp_path: Path) -> None:
    files = ("t0.PNG", "t1.png", "t2.png", "t3.JPG")
    competition(tmp_path, ("id", "label"), [("cat",), ("dog",)] * 4, tests=files)
    ids = ("t1.PNG", " t2", "t0.png ", "t3.jpg")
    table(tmp_path / "sample_submission.csv", ("id", "label"), [(key, "cat") for key in ids])
    dataset = build.prepare(configs.load(config_of(tmp_path)), tmp_path / "runs")
    assert dataset.test is not None
    assert isinstance(dataset.test.images, ImageFiles)
    names = [Path(path).name for path in dataset.test.images.paths.tolist()]
    assert names == ["t1.png", "t2.png", "t0.PNG", "t3.JPG"]
    assert derive_format.format_of(dataset.competition).listed_ids == ids  # written as the sample has them
    table(tmp_path / "sample_submission.csv", ("id", "label"), [("t1", "cat"), ("t1.png", "cat")])
    with pytest.raises(DataError, match=r"t1\.png: ids 't1' and 't1\.png' both name it; keep one row"):
        opened(tmp_path)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "test/t1.PNG", format="PNG")
    table(tmp_path / "sample_submission.csv", ("id", "label"), [("t1.Png", "cat")])
    with pytest.raises(DataError, match=r"id 't1\.Png' fits 't1\.PNG', 't1\.png'; remove all but one"):
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


def test_images_without_a_label_may_be_answered_so(tmp_path: Path) -> None:
    several = [("ant bee",), ("",), ("cat",), ("bee",), ("ant",), ("",), ("bee cat",), ("",)]
    outputs = np.array([[3, -1, -2], [-1, -2, -3]], np.float32)  # the second image has no class
    written = {}
    for name, rows in (("some", several), ("none", [row for row in several if row[0]] * 2)):
        folder = tmp_path / name
        competition(folder, ("id", "labels"), rows, tests=("t0.png", "t1.png"))
        table(folder / "sample_submission.csv", ("id", "labels"), [("t1", "ant bee"), ("t0", "ant bee")])
        found, notes = opened(folder, "competition.metric=samples_f1")
        assert found.form.may_be_empty == (name == "some")
        assert ("3 images have none, so a list of labels in a submission may be empty" in notes) == (name == "some")
        predicted = from_outputs(
            outputs,
            task="multi_label",
            ids=np.array(["t1", "t0"]),
            classes=found.form.classes,
            targets=None,
            made_by={},
        )
        write.write(folder / "a.csv", predicted, found.form, {})
        form = validate.format_beside(folder / "a.csv")
        assert form == found.form
        assert validate.validate(folder / "a.csv", form).problems == ()
        written[name] = (folder / "a.csv").read_text()
        (folder / "b.csv").write_text("id,labels\nt0,\nt1,ant\n")
        assert bool(validate.validate(folder / "b.csv", form).problems) == (name == "none")
    assert written == {"some": "id,labels\nt1,ant\nt0,\n", "none": "id,labels\nt1,ant\nt0,ant\n"}


def test_a_sidecar_of_before_allows_no_empty_list() -> None:
    values = SubmissionFormat(answer="labels", texts=CLASSES, may_be_empty=True).to_json()
    assert derive_format.from_json(values, Path()).may_be_empty
    del values["may_be_empty"]
    assert not derive_format.from_json(values, Path()).may_be_empty


def test_samples_keep_what_their_header_holds(tmp_path: Path) -> None:
    (tmp_path / "sample.csv").write_text("id , label\na,0\n")
    sample = samples.read(tmp_path / "sample.csv")
    assert (sample.id_column, sample.columns, sample.written) == ("id", ("label",), ("id ", " label"))
    (tmp_path / "sample.csv").write_text("id,label, label\na,0,1\n")
    with pytest.raises(SubmissionError, match="two columns of one name"):
        samples.read(tmp_path / "sample.csv")


@pytest.mark.parametrize(
    "override",
    [
        "tune.metric=zzz", "tune.metric=[val_metric, zzz]", "competition.metric=zzz", "train.select=zzz",
        "competition.submission.answer=zzz", "tune.sampler=zzz", "tune.pruner=zzz",
    ],
)  # fmt: skip
def test_config_check_refuses_names_that_would_fail_later(workplace: Path, comp: Comp, override: str) -> None:
    result = comp("config", "check", "small.yaml", override)
    assert result.code == 2
    assert override.partition("=")[0].rpartition(".")[2] in result.err
    assert "zzz" in result.err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["competition.task=single_label", "competition.submission.answer=independent"], "is not an answer of task"),
        (["competition.metric=log_loss", "competition.submission.answer=label"], "computed from probabilities"),
    ],
)
def test_config_check_refuses_an_answer_that_task_or_metric_contradict(
    workplace: Path, comp: Comp, overrides: list[str], message: str
) -> None:
    result = comp("config", "check", "small.yaml", *overrides)
    assert result.code == 2
    assert f"competition.submission.answer: {overrides[1].partition('=')[2]}" in result.err
    assert message in result.err
    assert comp("config", "check", "small.yaml", overrides[1]).code == 0  # nothing contradicts it yet
