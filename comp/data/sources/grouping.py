"""Read which images get one answer (`data.group_answer`) from the tables, and check that they can."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from comp.config import CSVConfig, DataConfig
from comp.data.groups import Groups
from comp.data.sources.columns import configured_column, shown_columns
from comp.data.sources.source import Source
from comp.data.splits import Split
from comp.runtime.errors import ConfigError, DataError, nearest, plural
from comp.submission.format import SampleSubmission

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 3  # labels in a message


def image_columns(columns: Sequence[str], config: DataConfig, path: Path) -> list[str]:
    """Return the columns that may identify images: where a group has one answer, its name identifies none.

    Raises:
        DataError: there is none.
    """
    kept = [name for name in columns if config.group_answer == "none" or name != config.csv.group_column]
    if columns and not kept:
        raise DataError(f"{path}: expected a column that names the images beside '{columns[0]}', which names groups")
    return kept


def image_sample(sample: SampleSubmission | None, config: DataConfig) -> SampleSubmission | None:
    """Return the sample submission if its ids are those of images; None where they are those of groups."""
    return sample if config.group_answer == "none" else None


def in_test_table(
    config: DataConfig, test: "pd.DataFrame", sample: SampleSubmission | None, path: Path, train: "pd.DataFrame | None"
) -> tuple[DataConfig, list[str]]:
    """Return the config with the group column of a test table at `path`, and a note on another name of it, or on groups
    that the training table (None: not read) has too.

    Raises:
        DataError: groups have one answer, and no column evidently names them.
    """
    name, columns, notes = config.csv.group_column, list(map(str, test.columns)), []
    if config.group_answer != "none" and name not in columns:
        ids = set(sample.ids) if sample else set()
        same = [column for column in columns if ids and ids <= set(test[column]) and not test[column].is_unique]
        if len(same) != 1:
            evidence = f"{shown_columns(same)} all hold" if same else f"none of {shown_columns(columns)} repeats all of"
            raise DataError(
                f"{path}: no column '{name}', which names groups in {config.csv.table} (data.csv.group_column), and "
                f"{evidence} the ids of a sample submission; call the one that names groups '{name}' here too"
            )
        notes = [f"{path}: column '{same[0]}' is '{name}' of {config.csv.table}: it holds the sample submission's ids"]
        config = config.model_copy(update={"csv": config.csv.model_copy(update={"group_column": same[0]})})
    elif name and name in columns and train is not None:
        names, known = sorted(set(test[name]) - {""}), set(train[name])
        if shared := [group for group in names if group in known]:
            notes = [
                f"{path}: column '{name}': {len(shared):,} of {plural(len(names), 'group')} are in the training table "
                f"too, first {shared[0]!r}; validation holds whole groups out, so the test may be easier"
            ]
    return config, notes


def read_group_names(table: "pd.DataFrame", config: CSVConfig, path: Path) -> NDArray[np.str_]:
    """Return the group of each row [N].

    Raises:
        DataError: no such column, or rows without a group.
    """
    column = configured_column(config.group_column, "group_column", list(map(str, table.columns)), path)
    names: NDArray[np.str_] = table[column].to_numpy(str)
    missing = np.flatnonzero(np.strings.strip(names) == "")
    if len(missing):
        raise DataError(
            f"{path}: column '{column}': {len(missing):,} rows have no group, first row {missing[0] + 2}, and "
            "data.group_answer gives one answer a group; fill in or remove these rows"
        )
    return names


def group_test(
    test: Split, group_of: Mapping[str, str], sample: SampleSubmission | None, config: DataConfig, path: Path
) -> tuple[Split, list[str]]:
    """Return the test images with their groups, these in the sample's order, and notes.

    Args:
        test: its images in the order of the test table.
        group_of: id -> group.
        sample: one row a group, or None.
        config: section `data`.
        path: of the test table, for messages.

    Raises:
        DataError: a row of the sample names no group of the table.
    """
    groups = Groups(np.array([group_of[key] for key in test.ids.tolist()], np.str_), config.group_answer)
    names = groups.ids.tolist()
    place = {name: number for number, name in enumerate(sample.ids if sample else names)}
    unknown = [name for name, is_listed in zip(place, np.isin(list(place), names), strict=True) if not is_listed]
    if sample and unknown:
        raise DataError(_unknown_groups(unknown, names, test, sample, config, path))
    places = np.array([place.get(name, -1) for name in groups.names.tolist()])
    rows = np.argsort(places, kind="stable")
    dropped = len(names) - len(place)
    notes = [
        f"test: {plural(dropped, f'group of {path} is', f'groups of {path} are')} not in the sample submission, "
        "and not predicted"
    ]
    return replace(test, groups=groups).take(rows[places[rows] >= 0], test.name), notes if dropped else []


def _unknown_groups(
    unknown: Sequence[str], names: Sequence[str], test: Split, sample: SampleSubmission, config: DataConfig, path: Path
) -> str:
    column = config.csv.group_column
    message = (
        f"{sample.path}: {len(unknown):,} of {len(sample.ids):,} ids have no image: column '{column}' of {path} does "
        f"not name them, first {unknown[0]!r}{nearest(unknown[0], names)}"
    )
    if set(unknown) <= set(test.ids.tolist()):
        return f"{message}; they are images, so each has its own answer: set data.group_answer=none"
    return f"{message}; correct the table or the sample, or set data.csv.group_column to the column of the sample's ids"


def answer_each_image(config: DataConfig) -> str:
    """Return the overrides that give each image an answer, though the sample submission lists groups."""
    column = config.csv.id_column or "COLUMN"
    return (
        f"data.group_answer=none data.csv.sample='\"\"' data.csv.id_column={column}, without the sample submission "
        "that lists groups" + ("" if config.csv.id_column else "; COLUMN names the images")
    )


def check_groups(source: Source, config: DataConfig) -> Source:
    """Return a source whose groups can have one answer each, with a note on them.

    Raises:
        ConfigError: the source names no groups.
        DataError: images of a group have different labels.
    """
    groups, labels = source.train.groups, source.train.labels
    if groups is None or labels is None or (source.test is not None and source.test.groups is None):
        raise ConfigError(
            f"data.group_answer: {config.source} does not say which images belong together; use csv_images, or set it "
            "to none"
        )
    differing = groups.differing(labels)
    if len(differing):
        mixed = groups.names[differing]
        count = len(np.unique(mixed))
        rows = np.flatnonzero(groups.names == mixed[0])
        shown = list(dict.fromkeys(_label_text(source, int(row)) for row in rows))[:_SHOWN]
        raise DataError(
            f"{config.csv.table}: column '{config.csv.group_column}': the images of {plural(count, 'group')} "
            f"have different labels, first {str(mixed[0])!r} ({', '.join(shown)}), and data.group_answer: "
            f"{config.group_answer} expects one a group; correct the labels in the table (data.fixes applies later), "
            f"or let each image have its own answer: {answer_each_image(config)}"
        )
    counts = [
        f"{plural(len(split), f'{split.name} image')} of {plural(len(split.groups.ids), 'group')}"
        for split in source.splits
        if split.groups is not None
    ]
    rule = "the mean" if config.group_answer == "mean" else "the highest"
    note = (
        f"groups: {', '.join(counts)}; a group has one answer, {rule} of its images' (data.group_answer: "
        f"{config.group_answer})"
    )
    return replace(source, notes=(*source.notes, note))


def _label_text(source: Source, row: int) -> str:
    """Return a training image's label as the user writes it."""
    assert source.train.labels is not None
    label = source.train.labels[row]
    if source.train.is_numeric:
        return f"{label:g}"
    if label.ndim:
        return " and ".join(np.array(source.classes)[label > 0.5].tolist()) or "no class"
    return source.classes[int(label)]
