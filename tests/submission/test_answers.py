"""Every answer that a submission may hold: written, read back by the test's own code, and 10,000 mutations judged."""

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
MUTATIONS = 10_000


def predicted(task: str, classes: tuple[str, ...] = CLASSES, outputs: np.ndarray = OUTPUTS) -> Predictions:
    return predictions.from_outputs(
        outputs, task=task, ids=np.array(IDS), classes=classes, targets=None, made_by={"weights_sha256": ""}
    )


FORMS: dict[str, tuple[str, SubmissionFormat]] = {
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
}  # fmt: skip


def form_of(name: str) -> tuple[str, SubmissionFormat]:
    task, form = FORMS[name]
    classes = NUMBERS if name == "value" else CLASSES
    return task, SubmissionFormat(**{**vars(form), "listed_ids": IDS, "classes": classes})


def test_every_answer_is_tried() -> None:
    assert {name.partition(",")[0] for name in FORMS} == set(ANSWERS)


def softmax(values: np.ndarray) -> np.ndarray:
    odds = np.exp(values)
    return odds / odds.sum(1, keepdims=True)


@pytest.mark.parametrize("name", FORMS)
def test_what_is_written_is_what_was_predicted_and_reads_back(tmp_path: Path, name: str) -> None:
    task, form = form_of(name)
    classes = NUMBERS if name == "value" else CLASSES
    path = tmp_path / "a.csv"
    write.write(path, predicted(task, classes), form, {})
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    assert [row["id"] for row in rows] == list(IDS)
    shares, chances = softmax(OUTPUTS), 1 / (1 + np.exp(-OUTPUTS))
    for row, share, chance, output in zip(rows, shares, chances, OUTPUTS, strict=True):
        present = {c for c, p in zip(CLASSES, chance, strict=True) if p >= 0.5}
        if name == "label":
            assert row["label"] == CLASSES[int(output.argmax())]
        elif name == "label, wide":
            assert {c: row[c] for c in CLASSES} == {c: str(int(c == CLASSES[int(output.argmax())])) for c in CLASSES}
        elif name in ("labels", "labels, or none"):
            likeliest = set() if form.may_be_empty else {CLASSES[int(output.argmax())]}
            assert set(row["label"].split()) == (present or likeliest)
        elif name == "labels, wide":
            assert {c: row[c] for c in CLASSES} == {c: str(int(c in present)) for c in CLASSES}
        elif name == "probability":
            assert float(row["label"]) == pytest.approx(share[2], abs=2e-3)
        elif name == "probabilities":
            assert [float(row[c]) for c in CLASSES] == pytest.approx(share.tolist(), abs=2e-3)
        elif name == "independent":
            assert [float(row[c]) for c in CLASSES] == pytest.approx(chance.tolist(), abs=1e-6)
        elif name == "value":
            assert float(row["label"]) == pytest.approx(float(share @ [1, 2, 10]), abs=2e-2)
        else:
            assert row["label"] == " ".join(CLASSES[c] for c in np.argsort(-output)[:2])
    verdict = validate.validate(path, validate.format_beside(path))
    assert (verdict.problems, verdict.misleading) == ((), ())
    assert validate.format_beside(path) == form


# Independent of the checker: what a cell, or a row of cells, may be.
_FLOAT = re.compile(r"[ ]*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?[ ]*", re.ASCII)


def number(cell: str) -> float:
    return float(cell) if _FLOAT.fullmatch(cell) else math.nan


def shares(cells: list[str]) -> bool:
    return all(0 <= number(cell) <= 1 for cell in cells)


def flags(cells: list[str]) -> bool:
    return all(number(cell) in (0, 1) for cell in cells)


def listed(most: int) -> Callable[[list[str]], bool]:
    def judge(cells: list[str]) -> bool:
        parts = cells[0].split(" ")
        return set(parts) <= set(CLASSES) and len(set(parts)) == len(parts) <= most

    return judge


ORACLES: dict[str, Callable[[list[str]], bool]] = {
    "label": lambda cells: cells[0] in CLASSES,
    "label, wide": lambda cells: flags(cells) and sum(map(number, cells)) == 1,
    "labels": listed(3),
    "labels, or none": lambda cells: cells == [""] or listed(3)(cells),
    "labels, wide": flags,
    "probability": shares,
    "probabilities": lambda cells: shares(cells) and abs(sum(map(number, cells)) - 1) <= 1e-3,
    "independent": shares,
    "value": lambda cells: math.isfinite(number(cells[0])),
    "ranked": listed(2),
}

CELLS = ["", "nan", "NaN", "0", "1", "0.5", "0.25", "1.0", "1e-3", "2", "-0.1", "inf", "1e400", "0,5", "½", "True",
         "0x1", "1_0", "٣", "ant", "bee", "cat", "Ant", "ant bee", "bee ant", "ant ant", "ant  bee", "ant bee cat",
         " ant", "dog", "cat dog", "None", "null", "0.333", "0.3333", "0.33333", ".5", "5.", "+0.5"]  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_of_ten_thousand_mutations_every_cell_is_judged_right(tmp_path: Path, name: str) -> None:
    task, form = form_of(name)
    path, draw = tmp_path / "a.csv", random.Random(11)
    write.write(path, predicted(task, NUMBERS if name == "value" else CLASSES), form, {})
    header, *rows = list(csv.reader(io.StringIO(path.read_text())))
    valid = 0
    for _ in range(MUTATIONS // len(FORMS) + 1):
        changed = [list(row) for row in rows]
        for _ in range(draw.choice([0, 1, 1, 2])):
            row = draw.choice(changed)
            row[draw.randrange(1, len(row))] = draw.choice(CELLS)
        draw.shuffle(changed)
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *changed])
        expected = all(ORACLES[name](row[1:]) for row in changed)
        valid += expected
        assert (check_format.format_problems(path, form) == []) == expected, changed
    assert 0.1 < valid / (MUTATIONS // len(FORMS)) < 0.95  # both sides are met often


def competition(
    metric: str = "accuracy", cells: list[str] | list[list[str]] | None = None, *,
    columns: tuple[str, ...] = ("label",),
    classes: tuple[str, ...] = ("0", "1"), task: str = "single_label", separator: str = "", **section: object,
) -> Competition:  # fmt: skip
    sample = None
    if cells is not None:
        rows = tuple((cell,) if isinstance(cell, str) else tuple(cell) for cell in cells)
        sample = SampleSubmission("sample.csv", "id", columns, tuple(f"t{row}" for row in range(len(rows))), rows)
    config = SubmissionConfig.model_validate(section)
    return Competition(
        "c", metric, classes, (3, 8, 8), (), sample, config, task, () if sample else ("t0", "t1"), False, separator
    )


# Metric, sample cells, columns, classes, task -> answer. Probabilities or labels follow the metric.
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
    derived = derive_format.derive(competition(metric, cells, columns=columns, classes=classes, task=task))
    assert derived.form.answer == answer
    assert len(derive_format.examples(derived, task)) == len(derived.form.ids())


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            lambda: competition("roc_auc", ["0"], answer="label"),
            "computed from probabilities; leave the answer at auto",
        ),
        (lambda: competition("roc_auc", ["0"], classes=CLASSES), "competition.submission.positive"),
        (lambda: competition("roc_auc", ["0"], positive="3"), "'3' is not a class"),
        (lambda: competition("roc_auc", ["0"], answer="probabilities"), "needs a column for each class"),
        (lambda: competition("accuracy", ["ant"], classes=CLASSES, answer="value"), "needs classes that are numbers"),
        (lambda: competition("accuracy", ["ant"], classes=CLASSES, answer="labels"), "not an answer of task"),
        (lambda: competition("roc_auc", ["ant"], classes=CLASSES, task="multi_label"), "one answer column"),
        (
            lambda: competition("log_loss", [["1", "0", "0"]], columns=("a", "bee", "cat"), classes=CLASSES),
            "competition.submission.labels",
        ),
        (lambda: competition("map_at_3", ["Sugar beet"], classes=("Sugar beet", "Maize")), "which parts classes"),
    ],
)
def test_contradictions_are_refused_with_the_key(made: Callable[[], Competition], message: str) -> None:
    with pytest.raises(SubmissionError, match=message):
        derive_format.derive(made())


def test_the_positive_class_is_the_larger_label_or_the_named_one() -> None:
    assert derive_format.format_of(competition("roc_auc", ["0.5"], classes=("-1", "1"))).positive == 1
    assert derive_format.format_of(competition("roc_auc", ["0.5"], positive="0")).positive == 0
    assert SubmissionConfig.model_validate({"positive": 1, "labels": {"a": 0}}).positive == "1"
    assert derive_format.format_of(competition("roc_auc", ["0.5"], classes=CLASSES, positive="bee")).positive == 1


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
def test_a_column_that_names_a_class_holds_its_probability(
    header: str, classes: tuple[str, ...], positive: int
) -> None:
    made = competition("roc_auc", ["0.5"], columns=(header,), classes=classes)
    assert derive_format.format_of(made).positive == positive
    other = competition("roc_auc", ["0.5"], columns=(header,), classes=classes, positive=classes[1 - positive])
    assert derive_format.format_of(other).positive == 1 - positive  # the key goes first


def test_an_answer_column_must_not_have_the_ids_name() -> None:
    with pytest.raises(SubmissionError, match="is an answer column too"):
        derive_format.derive(competition("roc_auc", ["0.5"], id_column="label"))


def test_hard_labels_in_the_sample_are_doubted_under_a_metric_of_probabilities() -> None:
    assert "'cat'" in derive_format.derive(competition("log_loss", ["cat"], classes=("cat", "dog"))).doubts[0]


@pytest.mark.parametrize(
    ("classes", "cells", "known", "separator"),
    [
        (("Sugar beet", "Maize"), ["Sugar beet"], "|", "|"),
        (("a", "b"), ["a, b"], ",", ", "),
        (("a", "b"), ["a|b"], " ", "|"),
        (("a", "b"), ["a"], ",", ","),
        (("a", "b"), ["a b"], "", " "),
    ],
)
def test_labels_are_parted_as_the_sample_parts_them_else_as_training_does(
    classes: tuple[str, ...], cells: list[str], known: str, separator: str
) -> None:
    made = competition("samples_f1", cells, classes=classes, task="multi_label", separator=known)
    assert derive_format.format_of(made).separator == separator


def test_a_value_keeps_large_numbers_apart() -> None:
    form = SubmissionFormat(answer="value", texts=("100000001", "100000002"), listed_ids=("a", "b"))
    rows = predictions.from_outputs(
        np.array([[50, 0], [0, 50]], np.float32), task="single_label", ids=np.array(["a", "b"]),
        classes=form.texts, targets=None, made_by={},
    )  # fmt: skip
    assert ANSWERS["value"].write(rows, form) == [["100000001", "100000002"]]


def test_a_probability_for_a_metric_of_decisions_is_doubted() -> None:
    assert "name the competition's metric" in derive_format.derive(competition("accuracy", ["0.5"])).doubts[0]
    assert derive_format.derive(competition("roc_auc", ["0.5"])).doubts == ()


def test_wide_columns_are_matched_by_value_and_kept_in_the_samples_order() -> None:
    made = competition("log_loss", [["0.5", "0.5"]], columns=("10.0", "2.0"), classes=("2", "10"))
    form = derive_format.format_of(made)
    assert form.header == ("id", "10.0", "2.0")
    assert form.column_classes() == [1, 0]


def test_a_class_written_as_another_ones_label_is_doubted(tmp_path: Path) -> None:
    ids = tuple(f"t{row}" for row in range(3))
    (tmp_path / "run").mkdir()
    (tmp_path / "run/provenance.json").write_text('{"classes": ["1", "2", "3"]}')
    path = tmp_path / "old.csv"
    path.write_text("id,label\n" + "".join(f"{key},{row}\n" for row, key in enumerate(ids)))
    old = {"columns": ["id", "label"], "blocks": [], "class_count": 3, "ids": list(ids), "answers": ["0", "1", "2"]}
    (tmp_path / "old.json").write_text(json.dumps({"run_path": str(tmp_path / "run"), "format": old}))
    verdict = validate.validate(path, validate.format_beside(path))
    (doubt,) = verdict.misleading
    assert "class '2' is written '1', which is the label of class '1'" in doubt


def test_classes_that_are_never_predicted_are_noted(tmp_path: Path) -> None:
    ids = tuple(f"t{row}" for row in range(100))
    form = SubmissionFormat(texts=CLASSES, classes=CLASSES, listed_ids=ids)
    outputs = np.eye(3, dtype=np.float32)[np.arange(100) % 2]
    rows = predictions.from_outputs(
        outputs, task="single_label", ids=np.array(ids), classes=CLASSES, targets=None, made_by={}
    )
    write.write(tmp_path / "a.csv", rows, form, {"training_counts": [49, 49, 2]})
    verdict = validate.validate(tmp_path / "a.csv", form)
    assert [doubt.verdict for doubt in verdict.doubts] == ["note"]
    assert "never predicted: 1 of 3 classes, 'cat'" in verdict.doubts[0].what
