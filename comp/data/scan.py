"""One pass over a list of image files before anything is trained: every file is read, hashed and decoded once.

What it finds is kept in `comp.data.cache` under the files' names, sizes and times of change: the next opening of the
same files costs one `stat` a file.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from comp.config import DataConfig
from comp.config.section import height_and_width
from comp.data import archives, images, ranges
from comp.data.cache import cached_json
from comp.data.images import ImageFiles
from comp.data.splits import Split
from comp.results.predictions import Targets
from comp.runtime.errors import DataError
from comp.runtime.progress import Progress


def files_split(
    name: str,
    paths: Sequence[Path | None],
    ids: Sequence[str],
    labels: Sequence[int] | Targets | None,
    config: DataConfig,
    progress: Progress,
) -> Split:
    """Return a split of image files, all known to be whole.

    With `data.skip_bad`, labelled rows without a readable file are left out. Rows without labels are to be answered:
    they stay, as blank ones, which `comp.inference.predict` gives the mean of all other predictions.

    Args:
        name: the split's.
        paths: its files, in its order; None for one that is missing.
        ids: one for each.
        labels: one for each, or a row of 0 and 1 for each; None where nobody knows them.
        config: gives `image_size`, `resize`, `range`, `workers`, `skip_bad` and where facts are kept.
        progress: called while files are read.

    Raises:
        DataError: no file, one that cannot be read, or sizes that differ and no `data.image_size`.
    """
    if not paths:
        raise DataError(f"{name}: holds no image; known are {', '.join(images.SUFFIXES)}")
    there = [row for row, path in enumerate(paths) if path is not None]
    files = [path for path in paths if path is not None]
    facts = cached_json(Path(config.root), "survey", _stamp(files, config), lambda: _survey(files, name, progress))
    bad = {there[row]: reason for row, reason in facts["unreadable"]}
    if bad and (not config.skip_bad or len(bad) == len(files)):
        raise DataError(_told(name, list(bad.values()), skippable=len(bad) < len(files), labelled=labels is not None))
    whole = np.isin(np.arange(len(paths)), [row for row in there if row not in bad])
    missing = [row for row, path in enumerate(paths) if path is None]
    notes = _notes(name, [ids[row] for row in missing], [str(paths[row]) for row in bad], labelled=labels is not None)
    if animated := facts["animated"]:
        notes.append(f"{name}: {len(animated):,} animated, only the first frame is read: {animated[0]}")
    for what, names in facts["fourth"].items():
        band = "transparency" if what == "laid on white" else "a fourth band that is no transparency"
        notes.append(f"{name}: {len(names):,} have {band}, which is {what}, first {names[0]}")
    kept = np.flatnonzero(whole) if labels is not None else np.arange(len(paths))
    read = ImageFiles(
        paths=np.array([str(path) if fine else "" for path, fine in zip(paths, whole, strict=True)])[kept],
        size=_size(name, facts, config),
        resize=config.resize,
        workers=images.reading_workers(config.workers),
        content=facts["content"],
        notes=tuple(notes),
        unreadable=tuple(str(paths[row]) for row in bad) + tuple(ids[row] for row in missing),
        depth=ranges.Depth(**facts["depth"]) if facts["depth"] else None,
        scale=config.range if isinstance(config.range, tuple) else None,
    )
    known = None if labels is None else np.asarray(labels)[kept]
    return Split(name, read, np.array(ids, np.str_)[kept], known, blank=None if whole[kept].all() else ~whole[kept])


def _notes(name: str, missing: Sequence[str], unreadable: Sequence[str], *, labelled: bool) -> list[str]:
    """Return what became of rows without a readable file: ids of those without one, and files that hold no image."""
    became = "are left out" if labelled else "get a default answer, the mean of all other predictions"
    notes = []
    if missing:
        notes.append(f"{name}: {len(missing):,} rows have no file and {became}, first {missing[0]!r}")
    if unreadable:
        notes.append(f"{name}: {len(unreadable):,} files cannot be read and {became}, first {unreadable[0]}")
    return notes


def _told(name: str, reasons: Sequence[str], *, skippable: bool, labelled: bool) -> str:
    if len(reasons) == 1 and not skippable:
        return reasons[0]
    means = "leaves such out" if labelled else "gives such a default answer, the mean of all others'"
    mend = f"; data.skip_bad=true {means}, `comp data check` lists them" if skippable else ""
    return f"{name}: {len(reasons):,} files cannot be read, first {reasons[0]}{mend}"


def _size(name: str, facts: dict[str, Any], config: DataConfig) -> tuple[int, int]:
    """Return (H, W) of the decoded images."""
    if config.image_size:
        return height_and_width(config.image_size)
    if facts["smallest"] != facts["largest"]:
        smallest, largest = ("x".join(map(str, facts[key])) for key in ("smallest", "largest"))
        raise DataError(
            f"{name}: images differ in size, from {smallest} to {largest} pixels; set data.image_size to the side "
            "that all are brought to, such as 128, or to [height, width]"
        )
    return int(facts["smallest"][1]), int(facts["smallest"][0])


def _stamp(paths: Sequence[Path], config: DataConfig) -> str:
    root, lines = Path(config.root), []
    for path in paths:
        inside = path.relative_to(root) if path.is_relative_to(root) else path
        lines.append(f"{inside.as_posix()}\0{archives.stamp(path)}")
    return "\n".join(lines)


def _survey(paths: Sequence[Path], name: str, progress: Progress) -> dict[str, Any]:
    def read(row: int) -> tuple[bytes, images.Look | DataError]:
        try:
            content = archives.read(paths[row])
        except archives.DamagedError as error:
            return hashlib.sha256().digest(), error
        digest = hashlib.sha256(content).digest()
        try:
            return digest, images.look(paths[row], content)
        except DataError as error:
            return digest, error

    found = images.in_threads(read, range(len(paths)), progress, f"checking {name}")
    good = [(path, looked) for path, (_, looked) in zip(paths, found, strict=True) if not isinstance(looked, DataError)]
    depth = ranges.merged([looked.depth for _, looked in good if looked.depth])
    sizes = sorted({looked.size for _, looked in good}, key=lambda size: (size[0] * size[1], size))
    return {
        "content": hashlib.sha256(b"".join(digest for digest, _ in found)).hexdigest(),
        "smallest": list(sizes[0]) if sizes else [],
        "largest": list(sizes[-1]) if sizes else [],
        "depth": asdict(depth) if depth else None,
        "fourth": {
            what: [path.name for path, looked in good if looked.fourth == what]
            for what in sorted({looked.fourth for _, looked in good} - {""})
        },
        "animated": [path.name for path, looked in good if looked.animated],
        "unreadable": [[row, str(looked)] for row, (_, looked) in enumerate(found) if isinstance(looked, DataError)],
    }
