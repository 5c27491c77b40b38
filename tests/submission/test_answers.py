"""Every kind of answer: written, read back by independent code, and checked on random mutations."""

import csv
import io
import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from comp import config as configs
from comp.config import SubmissionConfig
from comp.results import predictions
from comp.results.predictions import Predictions
from comp.runtime.errors import SubmissionError
from comp.submission import check_format, derive_format, validate, write
from comp.submission.answers import ANSWERS
from comp.submission.format import Competition, SampleSubmission, SubmissionFormat

IDS = tuple(f"img_{number}" for number in range(4))
CLASSES = ("ant", "bee", "cat")
NUMBERS = ("1", "2", "10")
OUTPUTS = np.random.default_rng(3).normal(0, 2, (len(IDS), 3)).astype(np.float32)
MUTATIONS = 2_000


def predicted(task: str, classes: tuple[str, ...] = CLASSES, outputs: np.ndarray = OUTPUTS) -> Predictions:
    return predictions.from_outputs(
        outputs, task=task, ids=np.array(IDS), classes=classes, targets=None, made_by={"weights_sha256": ""}
    )


FORMATS: dict[str, tuple[str, SubmissionFormat]] = {
    "label": ("single_label", SubmissionFormat(texts=CLASSES)),
    "label, wide": ("single_label", SubmissionFormat(columns=("cat", "ant", "bee"), texts=CLASSES)),
    "labels": ("multi_label", SubmissionFormat(answer="labels", texts=CLASSES)),
    "labels, or none": ("multi_label", SubmissionFormat(answer="labels", texts=CLASSES, may_be_empty=True)),
    "labels, wide": ("multi_label", SubmissionFormat(answer="labels", columns=CLASSES, texts=CLASSES)),
    "probability": ("single_label", SubmissionFormat(answer="probability", texts=CLASSES, positive=2)),
    "probabilities": ("single_label", SubmissionFormat(answer="probabilities", columns=CLASSES[::-1], texts=CLASSES)),
    "independent": ("multi_label", SubmissionFormat(answer="independent", columns=CLASSES[::-1], texts=CLASSES)),
    "value": ("single_label", SubmissionFormat(answer="value", texts=NUMBERS)),
    "ranked": ("single_label", SubmissionFormat(answer="ranked", texts=CLASSES, ranked=2)),
}


def complete_format(name: str) -> tuple[str, SubmissionFormat]:
    task, form = FORMATS[name]
    classes = NUMBERS if name == "value" else CLASSES
    return task, SubmissionFormat(**{**vars(form), "listed_ids": IDS, "classes": classes})


def test_every_answer_is_tested() -> None:
    assert {name.partition(",")[0] for name in FORMATS} == set(ANSWERS)


def softmax(values: np.ndarray) -> np.ndarray:
    odds = np.exp(values)
    return odds / odds.sum(1, keepdims=True)


@pytest.mark.parametrize("name", FORMATS)
def test_a_submission_holds_the_predictions_and_is_read_back(tmp_path: Path, name: str) -> None:
    task, form = complete_format(name)
    classes = NUMBERS if name == "value" else CLASSES
    path = tmp_path / "a.csv"
    write.write_submission(path, predicted(task, classes), form, {})
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    assert [row["id"] for row in rows] == list(IDS)
    softmaxes, sigmoids = softmax(OUTPUTS), 1 / (1 + np.exp(-OUTPUTS))
    for row, probabilities, sigmoid, output in zip(rows, softmaxes, sigmoids, OUTPUTS, strict=True):
        present = {c for c, p in zip(CLASSES, sigmoid, strict=True) if p >= 0.5}
        if name == "label":
            assert row["label"] == CLASSES[int(output.argmax())]
        elif name == "label, wide":
            assert {c: row[c] for c in CLASSES} == {c: str(int(c == CLASSES[int(output.argmax())])) for c in CLASSES}
        elif name in ("labels", "labels, or none"):
            fallback = set() if form.may_be_empty else {CLASSES[int(output.argmax())]}
            assert set(row["label"].split()) == (present or fallback)
        elif name == "labels, wide":
            assert {c: row[c] for c in CLASSES} == {c: str(int(c in present)) for c in CLASSES}
        elif name == "probability":
            assert float(row["label"]) == pytest.approx(probabilities[2], abs=2e-3)
        elif name == "probabilities":
            assert [float(row[c]) for c in CLASSES] == pytest.approx(probabilities.tolist(), abs=2e-3)
        elif name == "independent":
            assert [float(row[c]) for c in CLASSES] == pytest.approx(sigmoid.tolist(), abs=1e-6)
        elif name == "value":
            assert float(row["label"]) == pytest.approx(float(probabilities @ [1, 2, 10]), abs=2e-2)
        else:
            assert row["label"] == " ".join(CLASSES[c] for c in np.argsort(-output)[:2])
    report = validate.validate_submission(path, validate.read_sidecar_format(path))
    assert (report.problems, report.misleading) == ((), ())
    assert validate.read_sidecar_format(path) == form


# Independent of the checker: valid cells and rows.
_FLOAT = re.compile(r"[ ]*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?[ ]*", re.ASCII)


def number(cell: str) -> float:
    return float(cell) if _FLOAT.fullmatch(cell) else math.nan


def are_probabilities(cells: list[str]) -> bool:
    return all(0 <= number(cell) <= 1 for cell in cells)


def are_flags(cells: list[str]) -> bool:
    return all(number(cell) in (0, 1) for cell in cells)


def is_list(most: int) -> Callable[[list[str]], bool]:
    def is_valid(cells: list[str]) -> bool:
        parts = cells[0].split(" ")
        return set(parts) <= set(CLASSES) and len(set(parts)) == len(parts) <= most

    return is_valid


ORACLES: dict[str, Callable[[list[str]], bool]] = {
    "label": lambda cells: cells[0] in CLASSES,
    "label, wide": lambda cells: are_flags(cells) and sum(map(number, cells)) == 1,
    "labels": is_list(3),
    "labels, or none": lambda cells: cells == [""] or is_list(3)(cells),
    "labels, wide": are_flags,
    "probability": are_probabilities,
    "probabilities": lambda cells: are_probabilities(cells) and abs(sum(map(number, cells)) - 1) <= 1e-3,
    "independent": are_probabilities,
    "value": lambda cells: math.isfinite(number(cells[0])),
    "ranked": is_list(2),
}

CELLS = ["", "nan", "NaN", "0", "1", "0.5", "0.25", "1.0", "1e-3", "2", "-0.1", "inf", "1e400", "0,5", "½", "True",
         "0x1", "1_0", "٣", "ant", "bee", "cat", "Ant", "ant bee", "bee ant", "ant ant", "ant  bee", "ant bee cat",
         " ant", "dog", "cat dog", "None", "null", "0.333", "0.3333", "0.33333", ".5", "5.", "+0.5"]  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_random_mutations_are_accepted_exactly_if_they_are_valid(tmp_path: Path, name: str) -> None:
    task, form = complete_format(name)
    path, draw = tmp_path / "a.csv", random.Random(11)
    write.write_submission(path, predicted(task, NUMBERS if name == "value" else CLASSES), form, {})
    header, *rows = list(csv.reader(io.StringIO(path.read_text())))
    valid = 0
    for _ in range(MUTATIONS // len(FORMATS) + 1):
        changed = [list(row) for row in rows]
        for _ in range(draw.choice([0, 1, 1, 2])):
            row = draw.choice(changed)
            row[draw.randrange(1, len(row))] = draw.choice(CELLS)
        draw.shuffle(changed)
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *changed])
        expected = all(ORACLES[name](row[1:]) for row in changed)
        valid += expected
        assert (check_format.check_file(path, form) == []) == expected, changed
    assert 0.1 < valid / (MUTATIONS // len(FORMATS)) < 0.95  # both cases are frequent


def competition(
    metric: str = "accuracy",
    cells: list[str] | list[list[str]] | None = None,
    *,
    columns: tuple[str, ...] = ("label",),
    classes: tuple[str, ...] = ("0", "1"),
    task: str = "single_label",
    separator: str = "",
    **section: object,
) -> Competition:
    sample = None
    if cells is not None:
        rows = tuple((cell,) if isinstance(cell, str) else tuple(cell) for cell in cells)
        sample = SampleSubmission("sample.csv", "id", columns, tuple(f"t{row}" for row in range(len(rows))), rows)
    config = SubmissionConfig.model_validate(section)
    return Competition(
        "c", metric, classes, (3, 8, 8), (), sample, config, task, () if sample else ("t0", "t1"), False, separator
    )


# Metric, sample cells, columns, classes, task -> answer.
ANSWERED = [
    ("roc_auc", ["0", "0"], ("label",), ("0", "1"), "single_label", "probability"),
    ("roc_auc", ["0.5"], ("label",), ("0", "1"), "single_label", "probability"),
    ("log_loss", ["cat"], ("label",), ("cat", "dog"), "single_label", "probability"),
    ("accuracy", ["0"], ("label",), ("0", "1"), "single_label", "label"),
    ("accuracy", ["0.5"], ("label",), ("0", "1"), "single_label", "probability"),
    ("accuracy", ["0.5"], ("label",), ("0.5", "1"), "single_label", "label"),
    ("log_loss", [["0", "0", "0"]], CLASSES, CLASSES, "single_label", "probabilities"),
    ("accuracy", [["0", "1", "0"], ["1", "0", "0"]], CLASSES, CLASSES, "single_label", "label"),
    ("accuracy", [["0.3", "0.3", "0.4"]], CLASSES, CLASSES, "single_label", "probabilities"),
    ("map_at_3", ["ant bee cat"], ("label",), CLASSES, "single_label", "ranked"),
    ("accuracy", ["ant bee"], ("label",), CLASSES, "single_label", "ranked"),
    ("roc_auc", None, ("label",), ("0", "1"), "single_label", "probability"),
    ("log_loss", None, ("label",), CLASSES, "single_label", "probabilities"),
    ("macro_f1", None, ("label",), CLASSES, "single_label", "label"),
    ("roc_auc", [["0", "0", "0"]], CLASSES, CLASSES, "multi_label", "independent"),
    ("macro_f1", [["0", "0", "0"]], CLASSES, CLASSES, "multi_label", "labels"),
    ("macro_f1", [["0.5", "0.5", "0.5"]], CLASSES, CLASSES, "multi_label", "independent"),
    ("samples_f1", ["ant bee"], ("label",), CLASSES, "multi_label", "labels"),
]


@pytest.mark.parametrize(("metric", "cells", "columns", "classes", "task", "answer"), ANSWERED)
def test_the_answer_follows_metric_task_and_sample(
    metric: str, cells: list[str] | None, columns: tuple[str, ...], classes: tuple[str, ...], task: str, answer: str
) -> None:
    derived = derive_format.derive_format(competition(metric, cells, columns=columns, classes=classes, task=task))
    assert derived.format.answer == answer
    assert len(derive_format.example_rows(derived, task)) == len(derived.format.ids())


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            lambda: competition("roc_auc", ["0"], answer="label"),
            "submission.answer: label .* roc_auc",
        ),
        (lambda: competition("roc_auc", ["0"], classes=CLASSES), "competition.submission.positive"),
        (lambda: competition("roc_auc", ["0"], positive="3"), "'3' is not a class"),
        (lambda: competition("roc_auc", ["0"], answer="probabilities"), "probabilities needs one column per class"),
        (lambda: competition("accuracy", ["ant"], classes=CLASSES, answer="value"), "submission.answer: value"),
        (lambda: competition("accuracy", ["ant"], classes=CLASSES, answer="labels"), "not an answer of task"),
        (lambda: competition("roc_auc", ["ant"], classes=CLASSES, task="multi_label"), "one answer column"),
        (
            lambda: competition("log_loss", [["1", "0", "0"]], columns=("a", "bee", "cat"), classes=CLASSES),
            "competition.submission.labels",
        ),
        (lambda: competition("map_at_3", ["Sugar beet"], classes=("Sugar beet", "Maize")), "'Sugar beet' contains ' '"),
    ],
)
def test_a_contradiction_is_refused_with_the_key(made: Callable[[], Competition], message: str) -> None:
    with pytest.raises(SubmissionError, match=message):
        derive_format.derive_format(made())


def test_the_positive_class_is_the_larger_label_or_the_named_one() -> None:
    assert derive_format.derive_format(competition("roc_auc", ["0.5"], classes=("-1", "1"))).format.positive == 1
    assert derive_format.derive_format(competition("roc_auc", ["0.5"], positive="0")).format.positive == 0
    section = {"positive": 1, "labels": {"a": 0}}
    assert (
        configs.from_mapping({"competition": {"submission": section}}, "a test").competition.submission.positive == "1"
    )
    assert (
        derive_format.derive_format(competition("roc_auc", ["0.5"], classes=CLASSES, positive="bee")).format.positive
        == 1
    )


@pytest.mark.parametrize(
    ("header", "classes", "positive"),
    [
        ("abnormal", ("abnormal", "normal"), 0),
        ("is_cat", ("cat", "dog"), 0),
        ("Probability.Dog", ("cat", "dog"), 1),
        ("label", ("cat", "dog"), 1),
        ("cat_or_dog", ("cat", "dog"), 1),
        ("0", ("0", "1"), 1),
        ("no_show", ("no", "yes"), 1),
        ("not_cat", ("cat", "dog"), 1),
    ],
)
def test_a_header_that_names_a_class_makes_it_the_positive_one(
    header: str, classes: tuple[str, ...], positive: int
) -> None:
    made = competition("roc_auc", ["0.5"], columns=(header,), classes=classes)
    assert derive_format.derive_format(made).format.positive == positive
    other = competition("roc_auc", ["0.5"], columns=(header,), classes=classes, positive=classes[1 - positive])
    assert derive_format.derive_format(other).format.positive == 1 - positive  # the key takes precedence


def test_an_answer_column_cannot_have_the_id_columns_name() -> None:
    with pytest.raises(SubmissionError, match=r"submission\.id_column: 'label'"):
        derive_format.derive_format(competition("roc_auc", ["0.5"], id_column="label"))


def test_labels_in_the_sample_are_an_assumption_if_the_metric_needs_probabilities() -> None:
    assert (
        "'cat'" in derive_format.derive_format(competition("log_loss", ["cat"], classes=("cat", "dog"))).assumptions[0]
    )


@pytest.mark.parametrize(
    ("classes", "cells", "training_separator", "separator"),
    [
        (("Sugar beet", "Maize"), ["Sugar beet"], "|", "|"),
        (("a", "b"), ["a, b"], ",", ", "),
        (("a", "b"), ["a|b"], " ", "|"),
        (("a", "b"), ["a"], ",", ","),
        (("a", "b"), ["a b"], "", " "),
    ],
)
def test_the_separator_comes_from_the_sample_else_from_the_training_table(
    classes: tuple[str, ...], cells: list[str], training_separator: str, separator: str
) -> None:
    made = competition("samples_f1", cells, classes=classes, task="multi_label", separator=training_separator)
    assert derive_format.derive_format(made).format.separator == separator


def test_large_values_stay_distinct() -> None:
    form = SubmissionFormat(answer="value", texts=("100000001", "100000002"), listed_ids=("a", "b"))
    rows = predictions.from_outputs(
        np.array([[50, 0], [0, 50]], np.float32),
        task="single_label",
        ids=np.array(["a", "b"]),
        classes=form.texts,
        targets=None,
        made_by={},
    )
    assert ANSWERS["value"].write(rows, form) == [["100000001", "100000002"]]


def test_a_probability_is_an_assumption_if_the_metric_scores_decisions() -> None:
    (assumption,) = derive_format.derive_format(competition("accuracy", ["0.5"])).assumptions
    assert "'0.5'" in assumption
    assert "competition.metric" in assumption
    assert derive_format.derive_format(competition("roc_auc", ["0.5"])).assumptions == ()


def test_wide_columns_are_matched_by_value_and_keep_the_samples_order() -> None:
    made = competition("log_loss", [["0.5", "0.5"]], columns=("10.0", "2.0"), classes=("2", "10"))
    form = derive_format.derive_format(made).format
    assert form.header == ("id", "10.0", "2.0")
    assert form.column_classes() == [1, 0]


def test_a_class_written_as_the_label_of_another_misleads(tmp_path: Path) -> None:
    ids = tuple(f"t{row}" for row in range(3))
    (tmp_path / "run").mkdir()
    (tmp_path / "run/provenance.json").write_text('{"classes": ["1", "2", "3"]}')
    path = tmp_path / "old.csv"
    path.write_text("id,label\n" + "".join(f"{key},{row}\n" for row, key in enumerate(ids)))
    old = {"columns": ["id", "label"], "blocks": [], "class_count": 3, "ids": list(ids), "answers": ["0", "1", "2"]}
    (tmp_path / "old.json").write_text(json.dumps({"run_path": str(tmp_path / "run"), "format": old}))
    report = validate.validate_submission(path, validate.read_sidecar_format(path))
    (finding,) = report.misleading
    assert "class '2' is written as '1', which is the label of class '1'" in finding


def test_classes_that_are_never_predicted_are_noted(tmp_path: Path) -> None:
    ids = tuple(f"t{row}" for row in range(100))
    form = SubmissionFormat(texts=CLASSES, classes=CLASSES, listed_ids=ids)
    outputs = np.eye(3, dtype=np.float32)[np.arange(100) % 2]
    rows = predictions.from_outputs(
        outputs, task="single_label", ids=np.array(ids), classes=CLASSES, targets=None, made_by={}
    )
    write.write_submission(tmp_path / "a.csv", rows, form, {"training_counts": [49, 49, 2]})
    report = validate.validate_submission(tmp_path / "a.csv", form)
    assert [finding.verdict for finding in report.findings] == ["note"]
    assert "never predicted: 1 of 3 classes, 'cat'" in report.findings[0].what
