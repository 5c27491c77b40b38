"""How classes are written: pairs of labels and sample, each with what is written or which key is asked for."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comp.results import predictions
from comp.runtime.errors import SubmissionError
from comp.submission.class_spelling import spell

KEY = "competition.submission.labels"

# Labels, cells of the sample submission (None: no sample), what is written.
WRITTEN: list[tuple[str, list[str] | None, str]] = [
    ("1 2 3", ["0", "0"], "1 2 3"),  # a placeholder says nothing about numbering
    ("1 2 3", ["1", "3", "2"], "1 2 3"),
    ("1 2 3", ["1.0", "1.0"], "1.0 2.0 3.0"),
    ("0.0 1.0 2.0 10.0 11.0", ["0"], "0 1 2 10 11"),
    ("0.0 1.0 2.0 10.0 11.0", None, "0.0 1.0 2.0 10.0 11.0"),
    ("001 002 012", ["1"], "1 2 12"),
    ("001 002 012", ["001"], "001 002 012"),
    ("001 002 012", ["000"], "001 002 012"),
    ("1 2 12", ["002"], "001 002 012"),
    ("1 2 1000", ["002"], "1 2 1000"),  # 1000 does not fit three digits
    ("1 2 12", ["00", "00"], "01 02 12"),
    ("-1 1", ["0"], "-1 1"),
    ("-1 1", ["0.0"], "-1.0 1.0"),
    ("-1 1", ["00"], "-1 1"),  # padded numbers have no sign
    ("2 5 9", ["0"], "2 5 9"),
    ("2 5 9", ["9", "2"], "2 5 9"),
    ("2 5 9", ["2.00"], "2.00 5.00 9.00"),
    ("0.5 1.0 1.5", ["0.5"], "0.5 1.0 1.5"),
    ("0.5 1 1.5", ["0"], "0.5 1 1.5"),  # 0.5 is no whole number
    ("0.25 0.5", ["0.0"], "0.25 0.5"),  # nor has it one decimal
    ("0 1", ["0", "0"], "0 1"),
    ("0 1", ["0", "1.0"], "0 1"),  # two styles are none
    ("cat dog owl", ["cat", "cat"], "cat dog owl"),
    ("cat dog owl", ["dog", "cat"], "cat dog owl"),
    ("cat dog owl", ["", " "], "cat dog owl"),
    ("cat dog owl", None, "cat dog owl"),
    ("cat dog owl", ["unknown"], "cat dog owl"),
    ("12e4 nan", ["nan"], "12e4 nan"),
    ("12e4 inf", None, "12e4 inf"),
    ("1 2 3", ["class"], "1 2 3"),
    ("1 01", ["1", "01"], "1 01"),
    ("1 01", None, "1 01"),
    ("1 2 x", ["x"], "1 2 x"),
    (f"1 {'9' * 40}", ["0.0"], f"1.0 {'9' * 40}.0"),
]  # fmt: skip


@pytest.mark.parametrize(("labels", "cells", "texts"), WRITTEN)
def test_classes_are_written_so(labels: str, cells: list[str] | None, texts: str) -> None:
    assert " ".join(spell(labels.split(), cells).texts) == texts


# Labels, cells, what the message names beside the key.
REFUSED: list[tuple[list[str], list[str], str]] = [
    (["1", "2", "3"], ["0", "1", "2"], "'0', which no label equals"),
    (["2", "5", "9"], ["0", "1", "2"], "'0', '1'"),
    (["1", "01"], ["0"], "labels '1' and '01' have one value"),
    (["1", "1.0", "2"], ["2", "3"], "labels '1' and '1.0' have one value"),
    (["cat", "dog"], ["0", "0"], "'0', which are not labels"),
    (["cat", "dog"], ["0", "1"], "which are not labels"),
    (["cat", "dog"], ["Cat"], "differ in case or spaces"),
    (["cat", "dog"], ["cat", "DOG"], "differ in case or spaces"),
    (["Sugar beet", "Maize"], ["Sugarbeet"], "differ in case or spaces"),
    (["cat", "dog"], ["x", "y"], "'x', 'y', which are not labels"),
    (["12e4", "nan"], ["0"], "which are not labels"),
    (["1", "x"], ["0"], "which are not labels"),
]


@pytest.mark.parametrize(("labels", "cells", "shown"), REFUSED)
def test_what_evidence_does_not_settle_is_refused_with_the_key(labels: list[str], cells: list[str], shown: str) -> None:
    with pytest.raises(SubmissionError) as raised:
        spell(labels, cells)
    assert KEY in str(raised.value)
    assert shown in str(raised.value)


def test_a_key_goes_before_all_evidence() -> None:
    assert spell(["cat", "dog"], ["0", "1"], labels="indices").texts == ("0", "1")
    assert spell(["1", "2"], ["0", "1"], labels="names").texts == ("1", "2")
    assert spell(["cat", "dog"], ["0"], labels={"dog": "1", "cat": "7"}).texts == ("7", "1")
    for mapping, message in (
        ({"cat": "0"}, "gives no text for 1 classes"),
        ({"cat": "0", "dgo": "1"}, "'dgo' is not a class .*did you mean 'dog'"),
        ({"cat": "0", "dog": "0"}, "writes '0' for several classes"),
        ({"cat": "", "dog": "0"}, "class 'cat' is given no text; an answer must not be blank"),
        ({"cat": "1", "dog": "  "}, "class 'dog' is given no text"),
    ):
        with pytest.raises(SubmissionError, match=message):
            spell(["cat", "dog"], ["0"], labels=mapping)


def test_blocks_hold_numbers_and_numbered_sources_take_names_and_numbers() -> None:
    assert spell(["cat", "dog"], None, blocks=True).texts == ("0", "1")
    assert spell(["cat", "dog"], ["0", "1"], numbered=True).texts == ("0", "1")
    assert spell(["cat", "dog"], ["dog"], numbered=True).texts == ("cat", "dog")
    with pytest.raises(SubmissionError, match="which are not labels"):
        spell(["cat", "dog"], ["1", "2"], numbered=True)


def test_a_text_placeholder_is_doubted() -> None:
    assert "'unknown'" in spell(["cat", "dog"], ["unknown"]).doubts[0]
    assert spell(["cat", "dog"], ["cat"]).doubts == ()


@given(st.lists(st.integers(-30, 300), min_size=2, max_size=8, unique=True), st.sampled_from(["0", "0.0", "000", "7"]))
def test_numbers_keep_their_value_whatever_the_placeholder(labels: list[int], placeholder: str) -> None:
    texts = spell([str(label) for label in labels], [placeholder]).texts
    assert [Decimal(text) for text in texts] == labels


def test_classes_are_in_the_order_of_their_values() -> None:
    assert predictions.sort_classes(["10.0", "2.0", "1"]) == ("1", "2.0", "10.0")
    assert predictions.sort_classes(["010", "2", "-1"]) == ("-1", "2", "010")
    assert predictions.sort_classes(["b", "10", "9"]) == ("10", "9", "b")
    assert predictions.sort_classes(["12e4", "2"]) == ("12e4", "2")
