"""Derive the submission format from the config, the sample submission, the task and the metric. Torch-free.

`derive_format(competition)` decides before training which answer to write, in which columns, and how to spell classes,
and gives its reasons. If the evidence does not settle this, it raises an error that names the key that does.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import numpy as np

from comp.config.tasks import TASKS
from comp.results import predictions
from comp.results.metrics import Metric, metric
from comp.runtime.errors import SubmissionError
from comp.submission import class_spelling, csv_io, samples
from comp.submission.answers import ANSWERS
from comp.submission.class_spelling import Spelling
from comp.submission.format import Competition, SampleSubmission, SubmissionFormat

_EXAMPLES = 3  # example rows before training
_MAX_EXAMPLE_CHARACTERS = 60
_DEFAULT_RANKED = 5
_WORD = re.compile(r"[^\W_]+")
_PREFIXES = ("is", "has", "p", "prob", "probability", "class")  # before a class name in a header
_NEGATIONS = frozenset({"no", "not", "non"})  # in a header


@dataclass(frozen=True)
class DerivedFormat:
    """A submission format and the evidence for it.

    Attributes:
        format: the format.
        reasons: why it was chosen.
        assumptions: choices that no evidence supports.
    """

    format: SubmissionFormat
    reasons: tuple[str, ...]
    assumptions: tuple[str, ...]


@dataclass(frozen=True)
class _Choice:
    """A row of ANSWERS, why it was chosen, and what was assumed."""

    answer: str
    reason: str
    assumptions: tuple[str, ...] = ()


def derive_format(competition: Competition) -> DerivedFormat:
    """Return a competition's submission format: from its config, else its sample, else its task and metric.

    Raises:
        SubmissionError: the evidence is contradictory or insufficient; names the key that settles it.
    """
    sample, section, classes = competition.sample, competition.submission, competition.classes
    if sample and section.answer == "auto":
        samples.refuse_ambiguous_numbers(sample, competition)
    choice = _choose_answer(competition)
    answer, assumptions = choice.answer, choice.assumptions
    wide = len(sample.columns) > 1 if sample else _is_wide_without_sample(answer, competition)
    _check_column_count(answer, wide, sample)
    form = SubmissionFormat(
        blocks=competition.blocks if not (sample or competition.test_ids) else (),
        id_column=section.id_column or (sample.full_header if sample else competition.header)[0],
        answer=answer,
        listed_ids=sample.ids if sample else competition.test_ids,
        classes=classes,
    )
    if answer == "probability":
        positive = _positive_class(competition)
        columns = _single_column(competition)
        _check_distinct_columns(form.id_column, columns)
        reasons = (choice.reason, f"probability of class {classes[positive]!r}, {_positive_reason(competition)}")
        if not section.positive and _class_in_header(competition) is None:
            assumptions = (*assumptions, *_positive_assumption(classes, positive))
        return DerivedFormat(replace(form, columns=columns, texts=classes, positive=positive), reasons, assumptions)
    if TASKS[competition.task].numeric:
        columns = _single_column(competition)
        _check_distinct_columns(form.id_column, columns)
        form = replace(form, columns=columns, classes=(), whole=metric(competition.metric).whole)
        return DerivedFormat(form, (choice.reason,), assumptions)
    spelling = _spell_classes(competition, answer, wide)
    columns = _wide_columns(spelling.texts, sample) if wide else _single_column(competition)
    _check_distinct_columns(form.id_column, columns)
    form = replace(form, columns=columns, texts=spelling.texts)
    if answer in ("labels", "ranked") and not wide:
        form = replace(form, **_list_settings(competition, answer, spelling.texts))
        assumptions = (*assumptions, *_separator_assumption(competition, form.separator))
    if answer == "value" and predictions.class_values(form.texts) is None:
        raise SubmissionError(f"competition.submission.answer: value needs numeric classes, found {classes}")
    return DerivedFormat(form, (choice.reason, spelling.reason), (*assumptions, *spelling.assumptions))


def example_rows(derived: DerivedFormat, task: str) -> list[str]:
    """Return example CSV rows for images of the first classes, made by the code that writes submissions."""
    form, count = derived.format, len(derived.format.classes)
    ids = form.ids()[:_EXAMPLES]
    if TASKS[task].numeric:
        values = np.arange(len(ids)) + (0.0 if derived.format.whole else 0.5)
        return [f"{key},{value:g}  (a prediction of {value:g})" for key, value in zip(ids, values, strict=True)]
    labels = np.arange(len(ids)) % count
    outputs = np.where(predictions.one_hot(labels, count), 4.0, -4.0).astype(np.float32)
    rows = predictions.from_outputs(outputs, task=task, ids=ids, classes=form.classes, targets=None, made_by={})
    cells = zip(*ANSWERS[form.answer].write(rows, form), strict=True)
    lines = [",".join((str(key), *row)) for key, row in zip(ids, cells, strict=True)]
    limit = _MAX_EXAMPLE_CHARACTERS
    shortened = [line if len(line) <= limit else f"{line[: limit - 3]}..." for line in lines]
    return [f"{line}  (an image of class {form.classes[k]!r})" for line, k in zip(shortened, labels, strict=True)]


def check_answer(answer: str, task: str, metric_name: str) -> None:
    """Check `competition.submission.answer` against the task and the metric; `auto` fits everything.

    Raises:
        SubmissionError: the task does not support the answer, or the metric needs probabilities that it lacks.
    """
    if answer == "auto":
        return
    if task != "auto" and answer not in TASKS[task].answers:
        raise SubmissionError(
            f"competition.submission.answer: {answer} is not an answer of task {task}; choose from "
            f"{', '.join(TASKS[task].answers)}"
        )
    if metric_name != "auto" and metric(metric_name).of_probabilities and not ANSWERS[answer].graded:
        raise SubmissionError(
            f"competition.submission.answer: {answer} writes decisions, but {metric_name} needs probabilities; leave "
            "the answer at auto, or correct competition.metric"
        )


def _single_column(competition: Competition) -> tuple[str, ...]:
    sample = competition.sample
    return (competition.submission.label_column or (sample.full_header if sample else competition.header)[1],)


def _check_distinct_columns(id_column: str, columns: Sequence[str]) -> None:
    if id_column in columns:
        raise SubmissionError(
            f"competition.submission.id_column: '{id_column}' is also an answer column; choose another name"
        )


def _is_wide_without_sample(answer: str, competition: Competition) -> bool:
    """Return whether to write one column per class when no sample shows the columns."""
    columns = ANSWERS[answer].columns
    if columns == "either":
        return answer == "labels" and not competition.separator
    return columns == "each"


def _check_column_count(answer: str, wide: bool, sample: SampleSubmission | None) -> None:
    columns = ANSWERS[answer].columns
    if columns == "either" or (columns == "each") == wide:
        return
    actual = f"{sample.path} has {len(sample.columns)} answer columns" if sample else "there is one answer column"
    needed = "one column per class" if columns == "each" else "one column"
    raise SubmissionError(
        f"competition.submission.answer: {answer} needs {needed}, but {actual}; choose another answer"
    )


def _choose_answer(competition: Competition) -> _Choice:
    answer = competition.submission.answer
    if answer != "auto":
        check_answer(answer, competition.task, competition.metric)
        return _Choice(answer, f"answer {answer}: competition.submission.answer")
    row = metric(competition.metric)
    if TASKS[competition.task].numeric:
        return _Choice("value", f"answer value: task {competition.task} predicts numbers")
    if TASKS[competition.task].target_columns:
        return _choose_multi_label_answer(competition, row)
    return _choose_single_label_answer(competition, row)


def _choose_multi_label_answer(competition: Competition, row: Metric) -> _Choice:
    sample, name = competition.sample, competition.metric
    if row.ranked:
        return _Choice("ranked", f"answer ranked: {name} counts the {row.ranked} most likely classes")
    narrow = len(sample.columns) == 1 if sample else bool(competition.separator) and not row.of_probabilities
    if narrow and row.of_probabilities and sample:
        raise SubmissionError(
            f"{sample.path}: has one answer column, but {name} needs a probability for each of "
            f"{len(competition.classes)} labels; correct competition.metric"
        )
    if row.of_probabilities:
        return _Choice("independent", f"answer independent: {name} is computed from probabilities")
    if not narrow and sample and samples.has_fractions(sample):
        assumption = f"{sample.path} holds fractions: probabilities are written, although {name} scores decisions"
        return _Choice("independent", "answer independent: the sample holds fractions", (assumption,))
    return _Choice("labels", f"answer labels: {name} scores decisions")


def _choose_single_label_answer(competition: Competition, row: Metric) -> _Choice:
    sample, name = competition.sample, competition.metric
    if not row.ranked and not row.of_probabilities and sample:
        samples.refuse_ambiguous_list(sample, competition.classes)
    if row.ranked:
        return _Choice("ranked", f"answer ranked: {name} counts the {row.ranked} most likely classes")
    if sample and samples.lists_labels(sample, competition.classes):
        return _Choice("ranked", "answer ranked: the sample lists labels")
    if sample is None:
        return _choose_answer_without_sample(competition, row)
    if len(sample.columns) > 1:
        return _choose_wide_answer(sample, name, row)
    if row.of_probabilities:
        text = next((cell for (cell,) in sample.cells if cell.strip() and samples.parse_number(cell) is None), "")
        assumption = f"{sample.path} holds {text!r}; probabilities are written because {name} needs them"
        reason = f"answer probability: {name} is computed from probabilities, and the sample has one answer column"
        return _Choice("probability", reason, (assumption,) if text else ())
    if fraction := samples.find_fraction(sample, competition.classes):
        assumption = (
            f"{sample.path} holds {fraction!r}, which is not a label: a probability is written, although {name} scores "
            "decisions; set competition.metric"
        )
        return _Choice("probability", f"answer probability: the sample holds {fraction!r}", (assumption,))
    return _Choice("label", f"answer label: {name} scores decisions")


def _choose_answer_without_sample(competition: Competition, row: Metric) -> _Choice:
    if not row.of_probabilities:
        return _Choice("label", f"answer label: {competition.metric} scores decisions")
    answer = "probability" if len(competition.classes) == 2 else "probabilities"
    return _Choice(answer, f"answer {answer}: {competition.metric} is computed from probabilities")


def _choose_wide_answer(sample: SampleSubmission, name: str, row: Metric) -> _Choice:
    """Return the single-label answer for a sample with one column per class."""
    if row.of_probabilities:
        return _Choice("probabilities", f"answer probabilities: {name} is computed from probabilities")
    if samples.is_one_hot(sample):
        assumption = (
            f"{sample.path} holds the same one-hot row for every id: one-hot labels are written, because {name} scores "
            "decisions; for probabilities set competition.submission.answer=probabilities"
        )
        reason = f"answer label: {name} scores decisions, and each sample row holds one 1"
        return _Choice("label", reason, (assumption,) if sample.is_placeholder else ())
    assumption = f"{sample.path} has one column per class: probabilities are written, although {name} scores decisions"
    return _Choice("probabilities", "answer probabilities: the sample has one column per class", (assumption,))


def _positive_class(competition: Competition) -> int:
    """Return the index of the class whose probability is written."""
    classes, name = competition.classes, competition.submission.positive
    if name:
        if name not in classes:
            raise SubmissionError(f"competition.submission.positive: {name!r} is not a class; choose from {classes}")
        return classes.index(name)
    if (label := _class_in_header(competition)) is not None:
        return label
    if len(classes) != 2:
        where = competition.sample.path if competition.sample else "competition.submission.answer"
        raise SubmissionError(
            f"{where}: one column holds one probability, but there are {len(classes)} classes; set "
            "competition.submission.positive to the class, or competition.submission.answer=label, or correct "
            "competition.metric"
        )
    return 1


def _class_in_header(competition: Competition) -> int | None:
    """Return the one class that the answer column's header names, such as `cat` or `is_cat`; else None."""
    if competition.sample is None:
        return None
    header = competition.sample.columns[0]
    full = _letters(header)
    without_prefix = {full.removeprefix(prefix) for prefix in _PREFIXES if full.startswith(prefix)} - {full}
    names = [
        {name, *(texts[label] for texts in competition.synonyms.values())}
        for label, name in enumerate(competition.classes)
    ]
    prefixed = [label for label, texts in enumerate(names) if any(_letters(text) in without_prefix for text in texts)]
    all_names = [text for texts in names for text in texts]
    if len(prefixed) == 1 and not any(_letters(text) == full for text in all_names):  # class `island` is not `is land`
        return prefixed[0]  # `is_cat`, `isCat`, `p_hot_dog`, `is_0`
    words = {header.casefold(), *_WORD.findall(header.casefold()), *map(str.casefold, _WORD.findall(header))}
    unnamed = all(text.casefold() in ("yes", "no") or predictions.parse_decimal(text) is not None for text in all_names)
    if unnamed or words & _NEGATIONS:
        return None  # pandas writes the header `0` itself, and `no_show` names no class
    matching = [
        label
        for label, texts in enumerate(names)
        if any(text.casefold() in words or _letters(text) == full for text in texts)
    ]
    return matching[0] if len(matching) == 1 else None


def _letters(text: str) -> str:
    return "".join(_WORD.findall(text)).casefold()


def _positive_assumption(classes: Sequence[str], positive: int) -> tuple[str, ...]:
    """Return the assumption that the second of two names is the positive class; for numbers it needs none."""
    if predictions.class_values(classes) is not None:
        return ()
    return (
        f"no evidence for the positive class; the probability of {classes[positive]!r} is written: for the other "
        f"class set competition.submission.positive={classes[1 - positive]}",
    )


def _positive_reason(competition: Competition) -> str:
    if competition.submission.positive:
        return "set by competition.submission.positive"
    in_header = _class_in_header(competition) is not None
    return "named in the column's header" if in_header else "the larger label (competition.submission.positive)"


def _spell_classes(competition: Competition, answer: str, wide: bool) -> Spelling:
    sample, labels = competition.sample, competition.submission.labels
    path = sample.path if sample else ""
    cells: Sequence[str] | None = None
    if sample is not None and answer != "value":
        cells = sample.columns if wide else tuple(cell for (cell,) in sample.cells)
        if answer in ("labels", "ranked") and not wide:
            separator = _separator(competition)
            if labels == "auto":
                _check_separator_is_free(competition.classes, separator)
            cells = _split_lists(cells, separator, competition.classes)
    synonym = _synonym_hint(competition, cells) if cells else ""
    try:
        spelling = class_spelling.spell_classes(
            competition.classes,
            cells,
            labels=labels,
            numbered=competition.numbered,
            blocks=bool(competition.blocks),
            where=path,
        )
    except SubmissionError as error:
        raise SubmissionError(f"{error}; {synonym}" if synonym else str(error)) from None
    if not synonym or labels != "auto":
        return spelling
    if any(predictions.parse_decimal(cell) is None for cell in cells or () if cell.strip()):
        raise SubmissionError(f"{path}: holds texts that are not labels; {synonym}")
    return replace(spelling, assumptions=(*spelling.assumptions, f"{path}: {synonym}"))


def _split_lists(cells: Sequence[str], separator: str, classes: Sequence[str]) -> list[str]:
    """Return the labels in lists; for a placeholder (the same list in all rows) only its first unknown text."""
    parts = [part.strip() for cell in cells for part in cell.split(separator)]
    unknown = [part for part in parts if part and part not in classes]
    is_placeholder = len({cell for cell in cells if cell.strip()}) == 1
    return unknown[:1] if is_placeholder and unknown else parts


def _synonym_hint(competition: Competition, cells: Sequence[str]) -> str:
    """Return how to write the one other column of the training table that holds the sample's texts; empty if none."""
    sample_values = {_comparable(cell) for cell in cells if cell.strip()}
    if not sample_values or sample_values <= set(map(_comparable, competition.classes)):
        return ""
    columns = [name for name, texts in competition.synonyms.items() if sample_values <= set(map(_comparable, texts))]
    if len(columns) != 1:
        return ""
    pairs = zip(competition.classes, competition.synonyms[columns[0]], strict=True)
    examples = ", ".join(f"{name}: {text}" for name, text in list(pairs)[:2])
    return (
        f"the training table's column '{columns[0]}' maps one to one to the labels and holds the sample's texts: to "
        f"write these, set data.csv.label_column={columns[0]} or competition.submission.labels={{{examples}, ...}}"
    )


def _comparable(text: str) -> Decimal | str:
    value = predictions.parse_decimal(text)
    return text.strip() if value is None else value


def _wide_columns(texts: tuple[str, ...], sample: SampleSubmission | None) -> tuple[str, ...]:
    """Return the answer columns' headers: the sample's if there is one, which must match the classes' texts."""
    if sample is None:
        return texts
    if set(sample.columns) != set(texts):
        missing = [text for text in texts if text not in sample.columns]
        unknown = [column for column in sample.columns if column not in texts]
        raise SubmissionError(
            f"{sample.path}: expected one column per class after '{sample.id_column}'; columns without a class: "
            f"{csv_io.list_some(unknown) or 'none'}; classes without a column: {csv_io.list_some(missing) or 'none'}; "
            "set competition.submission.labels={class: column, ...}"
        )
    return sample.full_header[1:]


def _separator(competition: Competition) -> str:
    """Return the separator of labels in a cell.

    In this order: the one that splits the sample's cells into labels, the one that makes its placeholder a list, the
    training table's, any one in the sample, a space.
    """
    sample, labels = competition.sample, set(competition.classes)
    cells = {cell.strip() for row in sample.cells for cell in row if cell.strip()} if sample else set()
    candidates = samples.SEPARATORS
    for sign in dict.fromkeys((competition.separator or candidates[0], *candidates)):
        if any(sign in cell for cell in cells) and all(set(cell.split(sign)) <= labels for cell in cells):
            return sign
    unknown = cells - labels
    of_placeholder = samples.find_separator(next(iter(unknown)), competition.classes) if len(unknown) == 1 else ""
    present = next((sign for sign in candidates if any(sign in cell for cell in unknown)), "")
    return of_placeholder or competition.separator or present or " "


def _separator_assumption(competition: Competition, separator: str) -> tuple[str, ...]:
    """Return the assumption that an unknown placeholder's separator is right where the training table has another."""
    sample = competition.sample
    if sample is None or competition.separator in ("", separator.strip() or separator):
        return ()
    parts = {part for (cell,) in sample.cells for part in cell.split(separator) if part.strip()}
    if parts <= set(competition.classes):
        return ()
    return (
        f"{sample.path} separates texts that are not labels by {separator!r}, the training table separates labels by "
        f"{competition.separator!r}; the sample's separator is written",
    )


def _check_separator_is_free(texts: Sequence[str], separator: str) -> None:
    if conflicts := [text for text in texts if separator in text]:
        raise SubmissionError(
            f"competition.submission.labels: class {conflicts[0]!r} contains {separator!r}, which separates classes in "
            "a cell; give each class a text without it"
        )


def _list_settings(competition: Competition, answer: str, texts: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a format whose cells list classes."""
    separator = _separator(competition)
    _check_separator_is_free(texts, separator)
    if answer == "labels":
        return {"separator": separator, "may_be_empty": competition.bare_images}
    cells = {cell for (cell,) in competition.sample.cells} if competition.sample else set()
    longest = max((len(cell.split(separator)) for cell in cells), default=0)
    count = competition.submission.ranked or metric(competition.metric).ranked or (longest if longest > 1 else 0)
    return {"separator": separator, "ranked": min(count or _DEFAULT_RANKED, len(texts))}
