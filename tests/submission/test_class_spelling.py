"""How classes are written: labels and sample cells, each with the written texts or the error."""

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comp.results import predictions
from comp.runtime.errors import SubmissionError
from comp.submission.class_spelling import spell_classes

KEY = "competition.submission.labels"

# Labels, cells of the sample submission (None: no sample), written texts.
WRITTEN: list[tuple[str, list[str] | None, str]] = [
    ("1 2 3", ["0", "0"], "1 2 3"),  # a placeholder proves nothing about numbering
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
    ("0.5 1 1.5", ["0"], "0.5 1 1.5"),  # 0.5 is not a whole number
    ("0.25 0.5", ["0.0"], "0.25 0.5"),  # 0.25 has two decimals
    ("0 1", ["0", "0"], "0 1"),
    ("0 1", ["0", "1.0"], "0 1"),  # mixed styles
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
]


@pytest.mark.parametrize(("labels", "cells", "texts"), WRITTEN)
def test_the_sample_decides_how_classes_are_written(labels: str, cells: list[str] | None, texts: str) -> None:
    assert " ".join(spell_classes(labels.split(), cells).texts) == texts


# Labels, cells, values in the message beside the key.
REFUSED: list[tuple[list[str], list[str], str]] = [
    (["1", "2", "3"], ["0", "1", "2"], "holds '0'"),
    (["2", "5", "9"], ["0", "1", "2"], "'0', '1'"),
    (["1", "01"], ["0"], "labels '1' and '01' "),
    (["1", "1.0", "2"], ["2", "3"], "labels '1' and '1.0' "),
    (["cat", "dog"], ["0", "0"], "'0', which are not labels"),
    (["cat", "dog"], ["0", "1"], "which are not labels"),
    (["cat", "dog"], ["Cat"], "differ in case or spaces"),
    (["cat", "dog"], ["cat", "DOG"], "differ in case or spaces"),
    (["Sugar beet", "Maize"], ["Sugarbeet"], "differ in case or spaces"),
    (["cat", "dog"], ["x", "y"], "'x', 'y', which are not labels"),
    (["12e4", "nan"], ["0"], "which are not labels"),
    (["1", "x"], ["0"], "which are not labels"),
]


@pytest.mark.parametrize(("labels", "cells", "values"), REFUSED)
def test_insufficient_evidence_is_refused_with_the_key(labels: list[str], cells: list[str], values: str) -> None:
    with pytest.raises(SubmissionError) as raised:
        spell_classes(labels, cells)
    assert KEY in str(raised.value)
    assert values in str(raised.value)


def test_the_key_takes_precedence_over_the_evidence() -> None:
    assert spell_classes(["cat", "dog"], ["0", "1"], labels="indices").texts == ("0", "1")
    assert spell_classes(["1", "2"], ["0", "1"], labels="names").texts == ("1", "2")
    assert spell_classes(["cat", "dog"], ["0"], labels={"dog": "1", "cat": "7"}).texts == ("7", "1")
    for mapping, message in (
        ({"cat": "0"}, "no text for 1 class: 'dog'"),
        ({"cat": "0", "dgo": "1"}, "'dgo' is not a class .*did you mean 'dog'"),
        ({"cat": "0", "dog": "0"}, "'0'"),
        ({"cat": "", "dog": "0"}, "class 'cat'"),
        ({"cat": "1", "dog": "  "}, "class 'dog'"),
    ):
        with pytest.raises(SubmissionError, match=message):
            spell_classes(["cat", "dog"], ["0"], labels=mapping)


def test_blocks_use_numbers_and_numbered_sources_names_or_numbers() -> None:
    assert spell_classes(["cat", "dog"], None, blocks=True).texts == ("0", "1")
    assert spell_classes(["cat", "dog"], ["0", "1"], numbered=True).texts == ("0", "1")
    assert spell_classes(["cat", "dog"], ["dog"], numbered=True).texts == ("cat", "dog")
    with pytest.raises(SubmissionError, match="which are not labels"):
        spell_classes(["cat", "dog"], ["1", "2"], numbered=True)


def test_a_text_placeholder_is_an_assumption() -> None:
    assert "'unknown'" in spell_classes(["cat", "dog"], ["unknown"]).assumptions[0]
    assert spell_classes(["cat", "dog"], ["cat"]).assumptions == ()


@settings(max_examples=25)
@given(st.lists(st.integers(-30, 300), min_size=2, max_size=8, unique=True), st.sampled_from(["0", "0.0", "000", "7"]))
def test_numbers_keep_their_value_with_any_placeholder(labels: list[int], placeholder: str) -> None:
    texts = spell_classes([str(label) for label in labels], [placeholder]).texts
    assert [Decimal(text) for text in texts] == labels


def test_classes_are_ordered_by_value() -> None:
    assert predictions.sort_classes(["10.0", "2.0", "1"]) == ("1", "2.0", "10.0")
    assert predictions.sort_classes(["010", "2", "-1"]) == ("-1", "2", "010")
    assert predictions.sort_classes(["b", "10", "9"]) == ("10", "9", "b")
    assert predictions.sort_classes(["12e4", "2"]) == ("12e4", "2")
