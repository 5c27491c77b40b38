"""Check a list of image files before training: read, hash and decode every file once.

The result is cached (`comp.data.cache`) under the files' names, sizes and modification times: opening the same files
again costs one `stat` per file.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from comp.config import DataConfig
from comp.config.section import height_and_width
from comp.data import archives, decode
from comp.data.cache import cached_json
from comp.data.images import ImageFiles, map_in_threads, resolve_workers
from comp.data.splits import Split
from comp.results.predictions import Targets
from comp.runtime.errors import DataError, plural
from comp.runtime.progress import Progress

# How a fourth band is read, as ImageInfo.fourth spells it -> the note on it.
_FOURTH_BAND = {
    "laid on white": "have transparency, composited over white",
    "left out": "have a fourth band that is not transparency, which is dropped",
}


def scan_files(
    name: str,
    paths: Sequence[Path | None],
    ids: Sequence[str],
    labels: Sequence[int] | Targets | None,
    config: DataConfig,
    progress: Progress,
) -> Split:
    """Return a split of image files, all of which can be decoded.

    With `data.skip_bad`, labelled rows without a readable file are left out. Rows without labels need a prediction, so
    they stay, as blank images, for which `comp.inference.predict` predicts the mean of all others.

    Args:
        name: of the split.
        paths: its files, in order; None for a missing one.
        ids: one per file.
        labels: one per file, or a row of 0 and 1 per file; None where unknown.
        config: gives `image_size`, `resize`, `range`, `workers`, `skip_bad` and the cache's `root`.
        progress: called while files are read.

    Raises:
        DataError: no file, one that cannot be read, or different sizes without `data.image_size`.
    """
    if not paths:
        raise DataError(f"{name}: no images; supported endings: {', '.join(decode.SUFFIXES)}")
    rows = [row for row, path in enumerate(paths) if path is not None]
    files = [path for path in paths if path is not None]
    facts = cached_json(
        Path(config.root),
        "survey",
        _cache_key(files, config),
        lambda: _scan(files, name, progress),
        lambda facts: _is_survey(facts, len(files)),
    )
    unreadable = {rows[index]: reason for index, reason in facts["unreadable"]}
    labelled = labels is not None
    if unreadable and (not config.skip_bad or len(unreadable) == len(files)):
        skippable = len(unreadable) < len(files)
        raise DataError(_unreadable_message(name, list(unreadable.values()), skippable=skippable, labelled=labelled))
    readable = np.isin(np.arange(len(paths)), [row for row in rows if row not in unreadable])
    missing_ids = [ids[row] for row, path in enumerate(paths) if path is None]
    bad_paths = [str(paths[row]) for row in unreadable]
    kept = np.flatnonzero(readable) if labels is not None else np.arange(len(paths))
    images = ImageFiles(
        paths=np.array([str(path) if usable else "" for path, usable in zip(paths, readable, strict=True)])[kept],
        size=_choose_size(name, facts, config),
        resize=config.resize,
        workers=resolve_workers(config.workers),
        content=facts["content"],
        notes=tuple(_notes(name, facts, missing_ids, bad_paths, labelled=labelled)),
        unreadable=(*bad_paths, *missing_ids),
        depth=decode.Depth(**facts["depth"]) if facts["depth"] else None,
        scale=config.range if isinstance(config.range, tuple) else None,
    )
    kept_labels = None if labels is None else np.asarray(labels)[kept]
    blank = None if readable[kept].all() else ~readable[kept]
    return Split(name, images, np.array(ids, np.str_)[kept], kept_labels, blank=blank)


def _is_survey(facts: dict[str, Any], count: int) -> bool:
    """Return whether cached facts have the form of `_scan`; raises if they are far from it."""
    sizes = [facts["smallest"], facts["largest"]]
    names = [facts["content"], *facts["animated"], *(name for files in facts["fourth"].values() for name in files)]
    depth = decode.Depth(**facts["depth"] or {"kind": "", "smallest": 0, "largest": 0, "body": 0})
    return (
        all(len(size) in (0, 2) and all(type(side) is int and side > 0 for side in size) for size in sizes)
        and all(isinstance(name, str) for name in (*names, depth.kind))
        and facts["fourth"].keys() <= _FOURTH_BAND.keys()
        and all(facts["fourth"].values())
        and all(
            type(row) is int and 0 <= row < count and isinstance(reason, str) for row, reason in facts["unreadable"]
        )
        and math.isfinite(depth.smallest + depth.largest + depth.body + depth.images)
    )


def _notes(
    name: str, facts: dict[str, Any], missing: Sequence[str], unreadable: Sequence[str], *, labelled: bool
) -> list[str]:
    """Return notes on ids without a file, files that hold no image, and images read in an unexpected way."""
    outcome = "left out" if labelled else "given a default answer, the mean of all other predictions"
    notes = []
    if missing:
        rows = plural(len(missing), "row without a file is", "rows without a file are")
        notes.append(f"{name}: {rows} {outcome}, first {missing[0]!r}")
    if unreadable:
        broken = plural(len(unreadable), "unreadable file is", "unreadable files are")
        notes.append(f"{name}: {broken} {outcome}, first {unreadable[0]}")
    if animated := facts["animated"]:
        notes.append(f"{name}: {len(animated):,} animated, only the first frame is read: {animated[0]}")
    for fourth, files in facts["fourth"].items():
        notes.append(f"{name}: {len(files):,} {_FOURTH_BAND[fourth]}, first {files[0]}")
    return notes


def _unreadable_message(name: str, reasons: Sequence[str], *, skippable: bool, labelled: bool) -> str:
    if len(reasons) == 1 and not skippable:
        return reasons[0]
    effect = "leaves them out" if labelled else "gives such images a default answer, the mean of all other predictions"
    fix = f"; data.skip_bad=true {effect}, `comp data check` lists them" if skippable else ""
    return f"{name}: {plural(len(reasons), 'file')} cannot be read, first {reasons[0]}{fix}"


def _choose_size(name: str, facts: dict[str, Any], config: DataConfig) -> tuple[int, int]:
    """Return (H, W) of the decoded images."""
    if config.image_size:
        return height_and_width(config.image_size)
    if facts["smallest"] != facts["largest"]:
        smallest, largest = ("x".join(map(str, facts[key])) for key in ("smallest", "largest"))
        raise DataError(
            f"{name}: images differ in size, from {smallest} to {largest} pixels; set data.image_size to the side to "
            "resize all to, such as 128, or to [height, width]"
        )
    return int(facts["smallest"][1]), int(facts["smallest"][0])


def _cache_key(paths: Sequence[Path], config: DataConfig) -> str:
    root, lines = Path(config.root), []
    for path in paths:
        relative = path.relative_to(root) if path.is_relative_to(root) else path
        lines.append(f"{relative.as_posix()}\0{archives.stamp(path)}")
    return "\n".join(lines)


def _scan(paths: Sequence[Path], name: str, progress: Progress) -> dict[str, Any]:
    def read(row: int) -> tuple[bytes, decode.ImageInfo | DataError]:
        try:
            content = archives.read(paths[row])
        except archives.DamagedError as error:
            return hashlib.sha256().digest(), error
        digest = hashlib.sha256(content).digest()
        try:
            return digest, decode.inspect_image(paths[row], content)
        except DataError as error:
            return digest, error

    results = map_in_threads(read, range(len(paths)), progress, f"checking {name}")
    readable = [(path, info) for path, (_, info) in zip(paths, results, strict=True) if not isinstance(info, DataError)]
    depth = decode.merge_depths([info.depth for _, info in readable if info.depth])
    sizes = sorted({info.size for _, info in readable}, key=lambda size: (size[0] * size[1], size))
    return {
        "content": hashlib.sha256(b"".join(digest for digest, _ in results)).hexdigest(),
        "smallest": list(sizes[0]) if sizes else [],
        "largest": list(sizes[-1]) if sizes else [],
        "depth": asdict(depth) if depth else None,
        "fourth": {
            fourth: [path.name for path, info in readable if info.fourth == fourth]
            for fourth in sorted({info.fourth for _, info in readable} - {""})
        },
        "animated": [path.name for path, info in readable if info.animated],
        "unreadable": [[row, str(info)] for row, (_, info) in enumerate(results) if isinstance(info, DataError)],
    }
