"""What a submission must look like, derived from the competition, a sidecar or a sample submission. Torch-free.

`derive(competition)` decides before training which answer is written, in which columns and how classes are spelled, and
says why; it refuses what evidence does not settle.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from comp.config.tasks import TASKS
from comp.results import predictions
from comp.results.blocks import Block
from comp.results.metrics import Metric, metric
from comp.runtime.errors import SubmissionError
from comp.submission import class_spelling, sample_cells
from comp.submission.answers import ANSWERS
from comp.submission.class_spelling import Spelling
from comp.submission.format import Competition, SampleSubmission, SubmissionFormat

_EXAMPLES = 3  # rows shown before training
_DEFAULT_RANKED = 5
_WORD = re.compile(r"[^\W_]+")
_LEADS = ("is", "has", "p", "prob", "probability", "class")  # before a class in a header
_NEGATIONS = frozenset({"no", "not", "non"})  # in a header


@dataclass(frozen=True)
class Derived:
    """A format and where it comes from.

    Attributes:
        form: the format.
        reasons: why it is so, for people.
        doubts: what was assumed without evidence.
    """

    form: SubmissionFormat
    reasons: tuple[str, ...]
    doubts: tuple[str, ...]


def format_of(competition: Competition) -> SubmissionFormat:
    """Return the format that a competition wants; see `derive`."""
    return derive(competition).form


def derive(competition: Competition) -> Derived:
    """Return the format that a competition wants: its config's, else its sample's, else what task and metric need.

    Raises:
        SubmissionError: the evidence contradicts itself or does not settle how to answer; naming the key that does.
    """
    sample, section = competition.sample, competition.submission
    if sample and section.answer == "auto":
        sample_cells.refuse_foreign_numbers(sample, competition)
    answer, reason, doubts = _answer(competition)
    classes = competition.classes
    wide = bool(sample and len(sample.columns) > 1) if sample else _wide_without_sample(answer, competition)
    _demand_columns(answer, wide, sample)
    form = SubmissionFormat(
        blocks=competition.blocks if not (sample or competition.test_ids) else (),
        id_column=section.id_column or (sample.written if sample else competition.header)[0],
        answer=answer,
        listed_ids=sample.ids if sample else competition.test_ids,
        classes=classes,
    )
    if answer == "probability":
        positive = _positive(competition)
        columns = _single_column(competition)
        _demand_distinct(form.id_column, columns)
        reasons = (reason, f"probability of class {classes[positive]!r}, {_why_positive(competition)}")
        if not competition.submission.positive and _class_of_column(competition) is None:
            doubts = (*doubts, *_guessed_positive(classes, positive))
        return Derived(replace(form, columns=columns, texts=classes, positive=positive), reasons, doubts)
    spelled = _spelled(competition, answer, wide)
    columns = _wide_columns(spelled.texts, sample) if wide else _single_column(competition)
    _demand_distinct(form.id_column, columns)
    form = replace(form, columns=columns, texts=spelled.texts)
    if answer in ("labels", "ranked") and not wide:
        form = replace(form, **_list_settings(competition, answer, spelled.texts))
        doubts = (*doubts, *_separator_doubt(competition, form.separator))
    if answer == "value" and predictions.class_values(form.texts) is None:
        raise SubmissionError(f"competition.submission.answer: value needs classes that are numbers, found {classes}")
    return Derived(form, (reason, spelled.reason), (*doubts, *spelled.doubts))


def _single_column(competition: Competition) -> tuple[str, ...]:
    sample = competition.sample
    return (competition.submission.label_column or (sample.written if sample else competition.header)[1],)


def _demand_distinct(id_column: str, columns: Sequence[str]) -> None:
    if id_column in columns:
        raise SubmissionError(
            f"competition.submission.id_column: '{id_column}' is an answer column too; name another one"
        )


def _wide_without_sample(answer: str, competition: Competition) -> bool:
    """Return whether there is a column for each class where no sample shows it."""
    row = ANSWERS[answer]
    if row.columns == "either":
        return answer == "labels" and not competition.separator
    return row.columns == "each"


def _demand_columns(answer: str, wide: bool, sample: SampleSubmission | None) -> None:
    columns = ANSWERS[answer].columns
    if columns == "either" or (columns == "each") == wide:
        return
    shown = f"{sample.path} has {len(sample.columns)} answer columns" if sample else "there is one answer column"
    needed = "a column for each class" if columns == "each" else "one column"
    raise SubmissionError(f"competition.submission.answer: {answer} needs {needed}, and {shown}; choose another answer")


def check_answer(chosen: str, task: str, metric_name: str) -> None:
    """Check `competition.submission.answer` against the task and the metric; `auto` of any of them agrees with all.

    Raises:
        SubmissionError: the task has no such answer, or the metric is computed from what it does not hold.
    """
    if chosen == "auto":
        return
    if task != "auto" and chosen not in TASKS[task].answers:
        raise SubmissionError(
            f"competition.submission.answer: {chosen} is not an answer of task {task}; choose from "
            f"{', '.join(TASKS[task].answers)}"
        )
    if metric_name != "auto" and metric(metric_name).of_probabilities and not ANSWERS[chosen].graded:
        raise SubmissionError(
            f"competition.submission.answer: {chosen} writes decisions, and {metric_name} is computed from "
            "probabilities; leave the answer at auto, or correct competition.metric"
        )


def _answer(competition: Competition) -> tuple[str, str, tuple[str, ...]]:
    """Return the row of ANSWERS, why, and what was assumed."""
    row, wanted, chosen = TASKS[competition.task], metric(competition.metric), competition.submission.answer
    if chosen != "auto":
        check_answer(chosen, competition.task, competition.metric)
        return chosen, f"answer {chosen}: competition.submission.answer", ()
    if row.target_columns:
        return _answer_of_columns(competition, wanted)
    return _answer_of_one(competition, wanted)


def _answer_of_columns(competition: Competition, wanted: Metric) -> tuple[str, str, tuple[str, ...]]:
    """Return the answer of a task with a target column for each class."""
    sample, name = competition.sample, competition.metric
    if wanted.ranked:
        return "ranked", f"answer ranked: {name} counts the likeliest {wanted.ranked}", ()
    narrow = len(sample.columns) == 1 if sample else bool(competition.separator) and not wanted.of_probabilities
    if narrow and wanted.of_probabilities and sample:
        raise SubmissionError(
            f"{sample.path}: has one answer column, and {name} of {len(competition.classes)} labels needs a "
            "probability of each; set competition.metric to what counts"
        )
    if wanted.of_probabilities:
        return "independent", f"answer independent: {name} is computed from probabilities", ()
    if not narrow and sample and sample_cells.holds_fractions(sample):
        doubt = f"{sample.path} holds fractions, so probabilities are written, though {name} is computed from decisions"
        return "independent", "answer independent: the sample holds fractions", (doubt,)
    return "labels", f"answer labels: {name} is computed from decisions", ()


def _answer_of_one(competition: Competition, wanted: Metric) -> tuple[str, str, tuple[str, ...]]:
    """Return the answer of a task whose classes exclude each other."""
    sample, name = competition.sample, competition.metric
    if not wanted.ranked and not wanted.of_probabilities and sample:
        sample_cells.refuse_unclear_list(sample, competition.classes)
    if wanted.ranked or (sample and sample_cells.lists_labels(sample, competition.classes)):
        return "ranked", "answer ranked: " + (f"{name} counts them" if wanted.ranked else "the sample lists labels"), ()
    why = f"{name} is computed from probabilities"
    if sample is None or len(sample.columns) > 1:
        if wanted.of_probabilities and sample is None and len(competition.classes) == 2:
            return "probability", f"answer probability: {why}", ()
        if wanted.of_probabilities:
            return "probabilities", f"answer probabilities: {why}", ()
        if sample is None:
            return "label", f"answer label: {name} is computed from decisions", ()
        if sample_cells.one_hot(sample):
            doubt = (
                f"{sample.path} holds the same one-hot row for every id, so one-hot labels are written, as {name} is "
                "computed from decisions; for probabilities: competition.submission.answer=probabilities"
            )
            why = f"{name} is computed from decisions, and the sample's rows hold one 1"
            return "label", f"answer label: {why}", (doubt,) if sample.constant else ()
        doubt = (
            f"{sample.path} has a column for each class, so probabilities are written, though {name} is of decisions"
        )
        return "probabilities", "answer probabilities: the sample has a column for each class", (doubt,)
    if wanted.of_probabilities:
        text = next((cell for (cell,) in sample.cells if cell.strip() and sample_cells.number(cell) is None), "")
        doubt = f"{sample.path} holds {text!r}, and probabilities are written, since {name} is computed from them"
        return (
            "probability", f"answer probability: {why}, and the sample has one answer column", (doubt,) if text else ()
        )  # fmt: skip
    if strange := sample_cells.fraction_that_is_no_label(sample, competition.classes):
        doubt = (
            f"{sample.path} holds {strange!r}, which is no label, so a probability is written, though {name} is "
            "computed from decisions; name the competition's metric"
        )
        return "probability", f"answer probability: the sample holds {strange!r}", (doubt,)
    return "label", f"answer label: {name} is computed from decisions", ()


def _positive(competition: Competition) -> int:
    classes, name = competition.classes, competition.submission.positive
    if name:
        if name not in classes:
            raise SubmissionError(f"competition.submission.positive: {name!r} is not a class; choose from {classes}")
        return classes.index(name)
    if (named := _class_of_column(competition)) is not None:
        return named
    if len(classes) != 2:
        where = competition.sample.path if competition.sample else "competition.submission.answer"
        raise SubmissionError(
            f"{where}: one column holds one probability, and there are {len(classes)} classes; name the class that it "
            "is of: competition.submission.positive, or correct competition.metric, or the answer: "
            "competition.submission.answer=label"
        )
    return 1


def _class_of_column(competition: Competition) -> int | None:
    """Return the class that the answer column's header names, such as `cat` or `is_cat`; None unless it names one."""
    if competition.sample is None:
        return None
    header = competition.sample.columns[0]
    words = {header.casefold(), *_WORD.findall(header.casefold()), *(word.casefold() for word in _WORD.findall(header))}
    whole = _bare(header)
    meant = {whole, *(whole.removeprefix(lead) for lead in _LEADS if whole.startswith(lead))}
    alike = [{name, *(texts[number] for texts in competition.synonyms.values())}
             for number, name in enumerate(competition.classes)]  # fmt: skip
    led = [number for number, names in enumerate(alike) if any(_bare(name) in meant - {whole} for name in names)]
    itself = any(_bare(name) == whole for names in alike for name in names)  # `island` is no `is land` then
    if len(led) == 1 and not itself:
        return led[0]  # `is_cat`, `isCat`, `p_hot_dog`, `is_0`
    if words & _NEGATIONS or all(name.casefold() in ("yes", "no") or predictions.parse_decimal(name) is not None
                                 for names in alike for name in names):  # fmt: skip
        return None  # `0` is pandas' own header, and `no_show` names no class
    named = [number for number, names in enumerate(alike)
             if any(name.casefold() in words or _bare(name) == whole for name in names)]  # fmt: skip
    return named[0] if len(named) == 1 else None


def _bare(text: str) -> str:
    return "".join(_WORD.findall(text)).casefold()


def _guessed_positive(classes: Sequence[str], positive: int) -> tuple[str, ...]:
    """Return the doubt that the larger of two names is the positive class; of numbers, it is."""
    if predictions.class_values(classes) is not None:
        return ()
    return (
        f"nothing shows which class the probability is of; that of {classes[positive]!r} is written: if the other is "
        f"meant, competition.submission.positive={classes[1 - positive]}",
    )


def _why_positive(competition: Competition) -> str:
    if competition.submission.positive:
        return "named by competition.submission.positive"
    named = _class_of_column(competition) is not None
    return "named by the column" if named else "the larger label (competition.submission.positive)"


def _spelled(competition: Competition, answer: str, wide: bool) -> Spelling:
    sample = competition.sample
    cells: Sequence[str] | None = None
    if sample is not None:
        cells = sample.columns if wide else tuple(cell for (cell,) in sample.cells)
        if answer in ("labels", "ranked") and not wide:
            separator = _separator(competition)
            if competition.submission.labels == "auto":
                _demand_whole(competition.classes, separator)
            cells = _listed(cells, separator, competition.classes)
        if answer == "value":
            cells = None
    meant = _synonym(competition, cells) if cells else ""
    try:
        spelled = class_spelling.spell(
            competition.classes, cells, labels=competition.submission.labels, numbered=competition.numbered,
            blocks=bool(competition.blocks), where=sample.path if sample else "",
        )  # fmt: skip
    except SubmissionError as error:
        raise SubmissionError(f"{error}{meant and f'; {meant}'}") from None
    if meant and competition.submission.labels == "auto":
        if any(predictions.parse_decimal(cell) is None for cell in cells or () if cell.strip()):
            raise SubmissionError(f"{sample.path if sample else ''}: holds no label, and {meant}")
        return replace(spelled, doubts=(*spelled.doubts, f"{sample.path if sample else ''}: {meant}"))
    return spelled


def _listed(cells: Sequence[str], separator: str, classes: Sequence[str]) -> list[str]:
    """Return the labels that lists show; of a placeholder, one list in all rows, its first text that is no label."""
    parts = [part.strip() for cell in cells for part in cell.split(separator)]
    strange = [part for part in parts if part and part not in classes]
    constant = len({cell for cell in cells if cell.strip()}) == 1
    return strange[:1] if constant and strange else parts


def _synonym(competition: Competition, cells: Sequence[str]) -> str:
    """Return which other column of the training table holds the sample's texts; empty unless exactly one does."""
    held = {_worth(cell) for cell in cells if cell.strip()}
    if not held or held <= set(map(_worth, competition.classes)):
        return ""
    columns = [name for name, texts in competition.synonyms.items() if held <= set(map(_worth, texts))]
    if len(columns) != 1:
        return ""
    pairs = zip(competition.classes, competition.synonyms[columns[0]], strict=True)
    some = ", ".join(f"{name}: {text}" for name, text in list(pairs)[:2])
    return (
        f"the training table's column '{columns[0]}' goes one to one with the labels and holds the sample's texts: to "
        f"write those, data.csv.label_column={columns[0]}, or competition.submission.labels={{{some}, ...}}"
    )


def _worth(text: str) -> Decimal | str:
    value = predictions.parse_decimal(text)
    return text.strip() if value is None else value


def _wide_columns(texts: tuple[str, ...], sample: SampleSubmission | None) -> tuple[str, ...]:
    """Return the answer columns' headers: the sample's, in its order, each a class's text."""
    if sample is None:
        return texts
    if set(sample.columns) != set(texts):
        missing = [text for text in texts if text not in sample.columns]
        strange = [column for column in sample.columns if column not in texts]
        raise SubmissionError(
            f"{sample.path}: expected a column for each class after '{sample.id_column}': without a class are "
            f"{_some(strange)}, without a column {_some(missing)}; say how classes are written: "
            "competition.submission.labels={class: column, ...}"
        )
    return sample.written[1:]


def _some(texts: Sequence[str]) -> str:
    return ", ".join(map(repr, texts[:5])) + (", ..." if len(texts) > 5 else "") if texts else "none"


def _separator(competition: Competition) -> str:
    """Return what parts labels in a cell: what parts the sample's cells into labels, else what makes its placeholder a
    list, else what parts the training table's labels, else what the sample shows, else a space.
    """
    sample, known = competition.sample, set(competition.classes)
    cells = {cell.strip() for row in sample.cells for cell in row if cell.strip()} if sample else set()
    for sign in dict.fromkeys((competition.separator or sample_cells.SEPARATORS[0], *sample_cells.SEPARATORS)):
        if any(sign in cell for cell in cells) and all(set(cell.split(sign)) <= known for cell in cells):
            return sign
    strange = cells - known
    listed = sample_cells.list_sign(next(iter(strange)), competition.classes) if len(strange) == 1 else ""
    seen = next((sign for sign in sample_cells.SEPARATORS if any(sign in cell for cell in strange)), "")
    return listed or competition.separator or seen or " "


def _separator_doubt(competition: Competition, separator: str) -> tuple[str, ...]:
    """Return the doubt that a placeholder of unknown texts parts them by another sign than the training table does."""
    sample = competition.sample
    if sample is None or competition.separator in ("", separator.strip() or separator):
        return ()
    parts = {part for (cell,) in sample.cells for part in cell.split(separator) if part.strip()}
    if parts <= set(competition.classes):
        return ()
    return (
        f"{sample.path} parts texts that are no labels by {separator!r}, and the training table parts labels by "
        f"{competition.separator!r}; the sample's is written",
    )


def _demand_whole(texts: Sequence[str], separator: str) -> None:
    if split := [text for text in texts if separator in text]:
        raise SubmissionError(
            f"competition.submission.labels: class {split[0]!r} holds {separator!r}, which parts classes in a cell; "
            "give each class a text without it"
        )


def _list_settings(competition: Competition, answer: str, texts: Sequence[str]) -> dict[str, Any]:
    """Return `separator` and `ranked` of answers that list classes in a cell."""
    separator = _separator(competition)
    _demand_whole(texts, separator)
    if answer == "labels":
        return {"separator": separator, "may_be_empty": competition.bare_images}
    cells = {cell for (cell,) in competition.sample.cells} if competition.sample else set()
    listed = max((len(cell.split(separator)) for cell in cells), default=0)
    count = competition.submission.ranked or metric(competition.metric).ranked or (listed if listed > 1 else 0)
    return {"separator": separator, "ranked": min(count or _DEFAULT_RANKED, len(texts))}


def examples(derived: Derived, task: str) -> list[str]:
    """Return rows as they will be written of images of the first classes, by the code that writes submissions."""
    form, count = derived.form, len(derived.form.classes)
    ids = form.ids()[:_EXAMPLES]
    classes = np.arange(len(ids)) % count
    outputs = np.where(predictions.one_hot(classes, count), 4.0, -4.0).astype(np.float32)
    rows = predictions.from_outputs(
        outputs, task=task, ids=ids, classes=form.classes, targets=None, made_by={},
    )  # fmt: skip
    cells = ANSWERS[form.answer].write(rows, form)
    lines = [",".join((str(key), *row)) for key, row in zip(ids, zip(*cells, strict=True), strict=True)]
    shown = [line if len(line) <= 60 else line[:57] + "..." for line in lines]
    return [f"{line}  (an image of class {form.classes[c]!r})" for line, c in zip(shown, classes, strict=True)]


def from_json(values: Mapping[str, Any], where: Path) -> SubmissionFormat:
    """Return the format that a sidecar holds, of this version or the first.

    Raises:
        SubmissionError: the sidecar was altered.
    """
    try:
        blocks = tuple(Block(int(d), int(s), int(n)) for d, s, n in values["blocks"])
        ids = tuple(map(str, values.get("ids", ())))
        if "version" not in values:
            return _from_version_1(values, blocks, ids)
        answer = str(values["answer"])
        if answer not in ANSWERS:
            raise ValueError(f"answer {answer}")
        return SubmissionFormat(
            blocks=blocks, id_column=str(values["id_column"]), columns=tuple(map(str, values["columns"])),
            answer=answer, listed_ids=ids, classes=tuple(map(str, values["classes"])),
            texts=tuple(map(str, values["texts"])),
            positive=None if values["positive"] is None else int(values["positive"]),
            separator=str(values["separator"]), ranked=int(values["ranked"]), any_text=bool(values["any_text"]),
            may_be_empty=bool(values.get("may_be_empty", False)),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise SubmissionError(f"{where}: its `format` is damaged ({error!r}); give --format CONFIG") from None


def _from_version_1(values: Mapping[str, Any], blocks: tuple[Block, ...], ids: tuple[str, ...]) -> SubmissionFormat:
    id_column, *columns = (str(column) for column in values["columns"])
    texts = tuple(map(str, values.get("answers", ()))) or tuple(map(str, range(int(values["class_count"]))))
    answer = "probabilities" if values.get("probabilities") else "label"
    return SubmissionFormat(
        blocks=blocks, id_column=id_column, columns=tuple(columns), answer=answer, listed_ids=ids, texts=texts,
        any_text=bool(values.get("names")),
    )  # fmt: skip
