"""How to write classes in a submission: an ordered rule, the first match wins. Torch-free.

1. `submission.labels` sets it: names, numbers, or a text for each class.
2. Without a sample submission, distortion blocks get class numbers and everything else gets the labels' own text.
   If a source's classes have numbers and names (CIFAR, MNIST, a `classes.txt`), a sample may use either.
3. A column with one probability spells no class; see `comp.submission.answers`.
4. Two labels have the same value (`1`, `01`) and the sample's texts are not all labels: error.
5. Every non-blank cell of the sample is a label's text: the labels' own text.
6. Labels and cells are all plain decimals. Cells that vary must equal labels by value, else error; a placeholder (all
   rows the same) proves nothing about the numbering. The cells' style (`2`, `2.0`, `002`) is used if every label fits
   it, else the labels' own text.
7. The sample holds one text that is not a label, a placeholder: the labels' own text, as an assumption; an error if it
   equals a label except for case or spaces.
8. Anything else, such as text labels and numbers in the sample: an error that names the key that settles it.

The headers of one column per class follow the same rule. Values are compared as plain decimals (`Decimal`).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal

from comp.results import predictions
from comp.runtime.errors import SubmissionError, nearest, plural
from comp.submission import csv_io

_KEY = "submission.labels"
_FIX = (
    "set how classes are written: competition.submission.labels=names, indices (numbers from 0) or a mapping of each "
    "class to its text"
)


@dataclass(frozen=True)
class Spelling:
    """The text written for each class.

    Attributes:
        texts: one per class, in label order; all different.
        reason: the rule that applied.
        assumptions: choices that no evidence supports.
    """

    texts: tuple[str, ...]
    reason: str
    assumptions: tuple[str, ...] = ()


def spell_classes(
    classes: Sequence[str],
    cells: Sequence[str] | None,
    *,
    labels: str | Mapping[str, str] = "auto",
    numbered: bool = False,
    blocks: bool = False,
    where: str = "the sample submission",
) -> Spelling:
    """Return the text to write for each class.

    Args:
        classes: the training labels' texts, in label order.
        cells: the sample submission's texts: the cells of a single column, or the headers of one column per class; None
            without a sample.
        labels: `competition.submission.labels`.
        numbered: whether the source's classes have numbers as well as names.
        blocks: whether a suite of distortions is submitted.
        where: the sample, for messages.

    Raises:
        SubmissionError: the evidence is insufficient, or two classes would get the same text.
    """
    if labels != "auto":
        return _spell_as_configured(classes, labels)
    if cells is None and blocks:
        return Spelling(_indices(classes), "class numbers: a suite of blocks without a sample submission")
    texts = tuple(dict.fromkeys(cell for cell in cells or () if cell.strip()))
    label_values, cell_values = predictions.class_values(classes), predictions.class_values(texts)
    all_labels = set(texts) <= set(classes)
    if label_values is not None and len(set(label_values)) < len(label_values) and not all_labels:
        first, second = _equal_pair(classes, label_values)
        raise SubmissionError(
            f"{where}: labels {first!r} and {second!r} have the same value, and not all of "
            f"{csv_io.list_some(texts)} are labels; {_FIX}"
        )
    if all_labels:
        sample = "no sample submission" if cells is None else f"{where} {'names the labels' if texts else 'is blank'}"
        return Spelling(tuple(classes), f"the labels' own text: {sample}")
    if label_values is not None and cell_values is not None:
        return _spell_decimals(classes, label_values, texts, cell_values, where)
    if numbered and cell_values is not None and {str(value) for value in cell_values} <= set(_indices(classes)):
        return Spelling(_indices(classes), f"class numbers: {where} holds numbers, and these classes have numbers")
    if len(texts) == 1 and cell_values is None:
        return _spell_beside_placeholder(classes, texts[0], where)
    unknown = [text for text in texts if text not in classes]
    _refuse_near_match(classes, unknown, where)
    raise SubmissionError(
        f"{where}: holds {csv_io.list_some(unknown)}, which are not labels; the labels are "
        f"{csv_io.list_some(classes)}; {_FIX}"
    )


def _spell_as_configured(classes: Sequence[str], labels: str | Mapping[str, str]) -> Spelling:
    if isinstance(labels, str):
        texts = tuple(classes) if labels == "names" else _indices(classes)
        return Spelling(texts, f"{_KEY}: {labels}")
    key = f"competition.{_KEY}"
    unknown = [name for name in labels if name not in classes]
    if unknown:
        raise SubmissionError(f"{key}: {unknown[0]!r} is not a class{nearest(unknown[0], classes)}")
    missing = [name for name in classes if name not in labels]
    if missing:
        raise SubmissionError(
            f"{key}: no text for {plural(len(missing), 'class', 'classes')}: {csv_io.list_some(missing)}"
        )
    texts = tuple(labels[name] for name in classes)
    blank = next((name for name in classes if not labels[name].strip()), None)
    if blank is not None:
        raise SubmissionError(f"{key}: the text of class {blank!r} is blank; give it a text")
    if len(set(texts)) < len(texts):
        duplicate = next(text for text in texts if texts.count(text) > 1)
        raise SubmissionError(f"{key}: {duplicate!r} is the text of several classes; give each class its own")
    return Spelling(texts, f"{_KEY}: a text for each class")


def _spell_decimals(
    classes: Sequence[str],
    label_values: Sequence[Decimal],
    texts: Sequence[str],
    cell_values: Sequence[Decimal],
    where: str,
) -> Spelling:
    unknown = [text for text, value in zip(texts, cell_values, strict=True) if value not in label_values]
    if unknown and len(texts) > 1:
        raise SubmissionError(
            f"{where}: holds {csv_io.list_some(unknown)}, which equal no label; the labels are "
            f"{csv_io.list_some(classes)}; {_FIX}"
        )
    style = find_style(texts)
    styled = [style(value) for value in label_values] if style else []
    fitting = tuple(text for text in styled if text is not None)
    if len(fitting) == len(classes) and len(set(fitting)) == len(fitting):
        return Spelling(fitting, f"the labels' values, written like {texts[0]!r} in {where}")
    return Spelling(tuple(classes), f"the labels' own text: not all fit the style of {texts[0]!r} in {where}")


def find_style(cells: Sequence[str]) -> Callable[[Decimal], str | None] | None:
    """Return the common style of plain decimals as a function: value -> text, or None if the value does not fit.

    `2` is a whole number, `002` has three digits, `2.0` one decimal. None if the cells' styles differ.
    """
    bare = [cell.strip() for cell in cells]
    if all(re.fullmatch(r"-?(0|[1-9]\d*)", cell) for cell in bare):
        return lambda value: str(int(value)) if value == int(value) else None
    widths = {len(cell) for cell in bare}
    if all(re.fullmatch(r"\d+", cell) for cell in bare) and len(widths) == 1:
        (width,) = widths
        return lambda value: _pad(value, width)
    decimals = {len(cell.partition(".")[2]) for cell in bare}
    if all(re.fullmatch(r"-?(0|[1-9]\d*)\.\d+", cell) for cell in bare) and len(decimals) == 1:
        step = Decimal(1).scaleb(-decimals.pop())
        return lambda value: _quantize(value, step)
    return None


def _quantize(value: Decimal, step: Decimal) -> str | None:
    exact = Context(prec=max(28, len(value.as_tuple().digits) + len(step.as_tuple().digits) + 28))
    text = str(value.quantize(step, context=exact)) if exact.remainder(value, step) == 0 else None
    return text.removeprefix("-") if text is not None and value == 0 else text


def _pad(value: Decimal, width: int) -> str | None:
    text = str(int(value)).zfill(width)
    return text if value == int(value) and value >= 0 and len(text) == width else None


def _spell_beside_placeholder(classes: Sequence[str], text: str, where: str) -> Spelling:
    _refuse_near_match(classes, [text], where)
    assumption = (
        f"{where} holds only {text!r}, which is not a label; the labels' own text is written, such as {classes[0]!r}"
    )
    return Spelling(tuple(classes), f"the labels' own text: {text!r} in {where} is a placeholder", (assumption,))


def _refuse_near_match(classes: Sequence[str], texts: Sequence[str], where: str) -> None:
    """Refuse a text that equals a label except for case or spaces."""
    folded = {_fold(name): name for name in reversed(classes)}
    for text in texts:
        if label := folded.get(_fold(text)):
            raise SubmissionError(
                f"{where}: holds {text!r}, but the label is {label!r}: they differ in case or spaces; correct one of "
                f"them, or {_FIX}"
            )


def _fold(text: str) -> str:
    return "".join(text.split()).casefold()


def _equal_pair(classes: Sequence[str], values: Sequence[Decimal]) -> tuple[str, str]:
    """Return the first two classes with the same value."""
    names: dict[Decimal, str] = {}
    for name, value in zip(classes, values, strict=True):
        if value in names:
            return names[value], name
        names[value] = name
    raise AssertionError("all values differ")


def _indices(classes: Sequence[str]) -> tuple[str, ...]:
    return tuple(map(str, range(len(classes))))
