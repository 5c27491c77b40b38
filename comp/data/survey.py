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
from comp.data import images, ranges
from comp.data.cache import remembered
from comp.data.images import ImageFiles
from comp.data.splits import Split
from comp.errors import DataError
from comp.predictions import Targets
from comp.progress import Progress


def files_split(
    name: str,
    paths: Sequence[Path],
    ids: Sequence[str],
    labels: Sequence[int] | Targets | None,
    config: DataConfig,
    progress: Progress,
) -> Split:
    """Return a split of image files, all known to be whole.

    Args:
        name: the split's.
        paths: its files, in its order.
        ids: one for each.
        labels: one for each, or a row of 0 and 1 for each; None where nobody knows them: such a split never leaves a
            file out.
        config: gives `image_size`, `resize`, `range`, `workers`, `skip_bad` and where facts are kept.
        progress: called while files are read.

    Raises:
        DataError: no file, one that cannot be read, or sizes that differ and no `data.image_size`.
    """
    if not paths:
        raise DataError(f"{name}: holds no image; known are {', '.join(images.SUFFIXES)}")
    facts = remembered(Path(config.root), "survey", _stamp(paths, config), lambda: _survey(paths, name, progress))
    bad = {int(row): reason for row, reason in facts["unreadable"]}
    if bad and (labels is None or not config.skip_bad or len(bad) == len(paths)):
        raise DataError(_told(name, list(bad.values()), skippable=labels is not None and len(bad) < len(paths)))
    kept = np.array([row for row in range(len(paths)) if row not in bad])
    notes = [f"{name}: {len(bad):,} files cannot be read and are left out, first {paths[min(bad)]}"] if bad else []
    if animated := facts["animated"]:
        notes.append(f"{name}: {len(animated):,} animated, only the first frame is read: {animated[0]}")
    for what, names in facts["fourth"].items():
        band = "transparency" if what == "laid on white" else "a fourth band that is no transparency"
        notes.append(f"{name}: {len(names):,} have {band}, which is {what}, first {names[0]}")
    files = ImageFiles(
        paths=np.array([str(path) for path in paths])[kept],
        size=_size(name, facts, config),
        resize=config.resize,
        workers=images.reading_workers(config.workers),
        content=facts["content"],
        notes=tuple(notes),
        unreadable=tuple(str(paths[row]) for row in bad),
        depth=ranges.Depth(**facts["depth"]) if facts["depth"] else None,
        scale=config.range if isinstance(config.range, tuple) else None,
    )
    known = None if labels is None else np.asarray(labels)[kept]
    return Split(name, files, np.array(ids, np.str_)[kept], known)


def _told(name: str, reasons: Sequence[str], *, skippable: bool) -> str:
    if len(reasons) == 1 and not skippable:
        return reasons[0]
    mend = "; data.skip_bad=true leaves such out, `comp data check` lists them" if skippable else ""
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
        try:
            facts = path.stat()
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
        inside = path.relative_to(root) if path.is_relative_to(root) else path
        lines.append(f"{inside.as_posix()}\0{facts.st_size}\0{facts.st_mtime_ns}")
    return "\n".join(lines)


def _survey(paths: Sequence[Path], name: str, progress: Progress) -> dict[str, Any]:
    def read(row: int) -> tuple[bytes, images.Look | DataError]:
        try:
            content = paths[row].read_bytes()
        except OSError as error:
            raise DataError(f"{paths[row]}: cannot be read: {error.strerror}") from None
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
