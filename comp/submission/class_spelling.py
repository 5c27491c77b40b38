"""How a class is written in a submission: one ordered rule, the first match wins. Torch-free.

1. `submission.labels` says it: names, numbers, or a text for each class.
2. Nothing is shown (no sample submission): blocks of distortions hold class numbers, all else the labels' own text.
   A source whose classes have numbers and names (CIFAR, MNIST, a `classes.txt`) takes either from a sample.
3. One column holds a probability: see `comp.submission.answers`; nothing is spelled then.
4. Two labels have one value (`1`, `01`), and the sample's texts are not all labels: refused.
5. Every non-blank cell of the sample is a label's text: the labels' own text.
6. Labels and cells are all plain decimals. Cells that vary must equal labels by value, else refused; a placeholder (all
   rows the same) says nothing about numbering. The cells' style (`2`, `2.0`, `002`) is used where every label fits it,
   else the label's own text.
7. The sample holds one text that is no label, a placeholder: the labels' own text, with a doubt; refused where it
   equals a label but for case or spaces.
8. All else, such as text labels and numbers in the sample: refused, naming the key that settles it.

The header of a column for each class follows the same rule. Values are compared as plain decimals (`Decimal`).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal

from comp.results import predictions
from comp.runtime.errors import SubmissionError, nearest

_KEY = "submission.labels"
_CURE = (
    "say how classes are written: competition.submission.labels=names, indices (numbers from 0) or a mapping of each "
    "class to its text"
)
_SHOWN = 5  # texts in a message


@dataclass(frozen=True)
class Spelling:
    """How classes are written.

    Attributes:
        texts: one for each class, in label order; all different.
        reason: which rule gave them, for people.
        doubts: what was assumed without evidence.
    """

    texts: tuple[str, ...]
    reason: str
    doubts: tuple[str, ...] = ()


def spell(
    classes: Sequence[str],
    cells: Sequence[str] | None,
    *,
    labels: str | Mapping[str, str] = "auto",
    numbered: bool = False,
    blocks: bool = False,
    where: str = "the sample submission",
) -> Spelling:
    """Return how classes are written.

    Args:
        classes: the training labels' texts, in label order.
        cells: what the sample submission shows: a single column's cells, or the headers of a column for each class;
            None without a sample.
        labels: `competition.submission.labels`.
        numbered: whether the source's classes have numbers as well as names.
        blocks: whether a suite of distortions is submitted.
        where: the sample, for messages.

    Raises:
        SubmissionError: nothing settles it, or two classes would be written alike.
    """
    if labels != "auto":
        return _chosen(classes, labels)
    shown = tuple(dict.fromkeys(cell for cell in cells or () if cell.strip()))
    if cells is None and blocks:
        return Spelling(_numbers(classes), "class numbers: a suite of blocks without a sample submission")
    own = tuple(classes)
    worth = predictions.class_values(classes)
    all_labels = set(shown) <= set(classes)
    if worth is not None and len(set(worth)) < len(worth) and not all_labels:
        same = _equal_pair(classes, worth)
        raise SubmissionError(
            f"{where}: labels {same[0]!r} and {same[1]!r} have one value, and {_some(shown)} are not all labels' "
            f"texts; "
            f"{_CURE}"
        )
    if all_labels:
        seen = "no sample submission" if cells is None else f"{where} holds labels" if shown else f"{where} is blank"
        reason = f"the labels' own text: {seen}"
        return Spelling(own, reason)
    values = predictions.class_values(shown)
    if worth is not None and values is not None:
        return _decimals(own, worth, shown, values, where)
    if numbered and values is not None and {str(value) for value in values} <= set(_numbers(classes)):
        return Spelling(_numbers(classes), f"class numbers: {where} holds numbers, and these classes have numbers")
    if len(shown) == 1 and values is None:
        return _placeholder(own, shown[0], where)
    raise SubmissionError(_refusal(classes, shown, where))


def _chosen(classes: Sequence[str], labels: str | Mapping[str, str]) -> Spelling:
    if isinstance(labels, str):
        texts = tuple(classes) if labels == "names" else _numbers(classes)
        return Spelling(texts, f"{_KEY}: {labels}")
    strange = [name for name in labels if name not in classes]
    if strange:
        raise SubmissionError(f"competition.{_KEY}: {strange[0]!r} is not a class{nearest(strange[0], classes)}")
    missing = [name for name in classes if name not in labels]
    if missing:
        raise SubmissionError(f"competition.{_KEY}: gives no text for {len(missing)} classes: {_some(missing)}")
    texts = tuple(labels[name] for name in classes)
    blank = next((name for name in classes if not labels[name].strip()), None)
    if blank is not None:
        raise SubmissionError(f"competition.{_KEY}: class {blank!r} is given no text; an answer must not be blank")
    if len(set(texts)) < len(texts):
        twice = next(text for text in texts if texts.count(text) > 1)
        raise SubmissionError(f"competition.{_KEY}: writes {twice!r} for several classes; give each a text of its own")
    return Spelling(texts, f"{_KEY}: a text for each class")


def _decimals(
    own: tuple[str, ...], worth: list[Decimal], shown: tuple[str, ...], values: list[Decimal], where: str
) -> Spelling:
    strange = [text for text, value in zip(shown, values, strict=True) if value not in worth]
    if strange and len(shown) > 1:
        raise SubmissionError(
            f"{where}: holds {_some(strange)}, which no label equals; the labels are {_some(own)}; {_CURE}"
        )
    style = style_of(shown)
    fitted = [style(value) for value in worth] if style else []
    texts = tuple(text for text in fitted if text is not None)
    if len(texts) == len(own) and len(set(texts)) == len(texts):
        return Spelling(texts, f"the labels' values, written like {shown[0]!r} in {where}")
    return Spelling(own, f"the labels' own text: they do not all fit the style of {shown[0]!r} in {where}")


def style_of(cells: Sequence[str]) -> Callable[[Decimal], str | None] | None:
    """Return the one style that all plain decimals have, as a function of a value: its text, None where it does not
    fit.

    `2` is a whole number, `002` one of three digits, `2.0` a number with one decimal. None where cells differ in style.
    """
    bare = [cell.strip() for cell in cells]
    if all(re.fullmatch(r"-?(0|[1-9]\d*)", cell) for cell in bare):
        return lambda value: str(int(value)) if value == int(value) else None
    widths = {len(cell) for cell in bare}
    if all(re.fullmatch(r"\d+", cell) for cell in bare) and len(widths) == 1:
        (width,) = widths
        return lambda value: _padded(value, width)
    places = {len(cell.partition(".")[2]) for cell in bare}
    if all(re.fullmatch(r"-?(0|[1-9]\d*)\.\d+", cell) for cell in bare) and len(places) == 1:
        step = Decimal(1).scaleb(-places.pop())
        return lambda value: _quantized(value, step)
    return None


def _quantized(value: Decimal, step: Decimal) -> str | None:
    exact = Context(prec=max(28, len(value.as_tuple().digits) + len(step.as_tuple().digits) + 28))
    text = str(value.quantize(step, context=exact)) if exact.remainder(value, step) == 0 else None
    return text.removeprefix("-") if text is not None and value == 0 else text


def _padded(value: Decimal, width: int) -> str | None:
    text = str(int(value)).zfill(width)
    return text if value == int(value) and value >= 0 and len(text) == width else None


def _placeholder(own: tuple[str, ...], text: str, where: str) -> Spelling:
    near = [name for name in own if _folded(name) == _folded(text)]
    if near:
        raise SubmissionError(
            f"{where}: holds {text!r}, and the label is {near[0]!r}: they differ in case or spaces; mend one of "
            f"them, or {_CURE}"
        )
    doubt = f"{where} holds only {text!r}, which is no label; the labels' own text is written, such as {own[0]!r}"
    return Spelling(own, f"the labels' own text: {text!r} in {where} is a placeholder", (doubt,))


def _folded(text: str) -> str:
    return "".join(text.split()).casefold()


def _refusal(classes: Sequence[str], shown: Sequence[str], where: str) -> str:
    strange = [text for text in shown if text not in classes]
    folded = {_folded(name): name for name in classes}
    near = next((text for text in strange if _folded(text) in folded), None)
    if near is not None:
        return (
            f"{where}: holds {near!r}, and the label is {folded[_folded(near)]!r}: they differ in case or spaces; mend "
            f"one of them, or {_CURE}"
        )
    return f"{where}: holds {_some(strange)}, which are not labels; the labels are {_some(classes)}; {_CURE}"


def _equal_pair(classes: Sequence[str], worth: Sequence[Decimal]) -> tuple[str, str]:
    seen: dict[Decimal, str] = {}
    for name, value in zip(classes, worth, strict=True):
        if value in seen:
            return seen[value], name
        seen[value] = name
    raise AssertionError("all values differ")


def _numbers(classes: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(number) for number in range(len(classes)))


def _some(texts: Sequence[str]) -> str:
    return ", ".join(map(repr, texts[:_SHOWN])) + (", ..." if len(texts) > _SHOWN else "")
