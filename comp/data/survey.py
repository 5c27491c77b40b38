"""One pass over a list of image files before anything is trained: every file is read, hashed and decoded once.

What it finds is kept in `comp.data.cache` under the files' names, sizes and times of change: the next opening of the
same files costs one `stat` a file.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from comp.config import DataConfig
from comp.data import images
from comp.data.cache import remembered
from comp.data.images import ImageFiles
from comp.errors import DataError
from comp.progress import Progress


def surveyed(paths: Sequence[Path], config: DataConfig, name: str, progress: Progress) -> ImageFiles:
    """Return image files ready to be read, all known to be whole.

    Args:
        paths: the files, in the split's order.
        config: gives `image_size`, `resize`, `workers` and where facts are kept.
        name: the split's, for messages.
        progress: called while files are read.

    Raises:
        DataError: no file, one that cannot be read, or sizes that differ and no `data.image_size`.
    """
    if not paths:
        raise DataError(f"{name}: holds no image; known are {', '.join(images.SUFFIXES)}")
    facts = remembered(Path(config.root), "survey", _stamp(paths, config), lambda: _survey(paths, name, progress))
    size = (config.image_size, config.image_size) if config.image_size else None
    if size is None:
        if facts["smallest"] != facts["largest"]:
            smallest, largest = ("x".join(map(str, facts[key])) for key in ("smallest", "largest"))
            raise DataError(
                f"{name}: images differ in size, from {smallest} to {largest} pixels; set data.image_size to the side "
                "that all are brought to, such as 128"
            )
        size = (facts["smallest"][1], facts["smallest"][0])
    animated = facts["animated"]
    notes = (f"{name}: {len(animated)} animated, only the first frame is read: {animated[0]}",) if animated else ()
    workers = images.reading_workers(config.workers)
    return ImageFiles(np.array([str(path) for path in paths]), size, config.resize, workers, facts["content"], notes)


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


def _survey(paths: Sequence[Path], name: str, progress: Progress) -> dict[str, object]:
    def read(row: int) -> tuple[bytes, images.Look]:
        try:
            content = paths[row].read_bytes()
        except OSError as error:
            raise DataError(f"{paths[row]}: cannot be read: {error.strerror}") from None
        return hashlib.sha256(content).digest(), images.look(paths[row], content)

    found = images.in_threads(read, range(len(paths)), progress, f"checking {name}")
    sizes = sorted({looked.size for _, looked in found}, key=lambda size: (size[0] * size[1], size))
    return {
        "content": hashlib.sha256(b"".join(digest for digest, _ in found)).hexdigest(),
        "smallest": list(sizes[0]),
        "largest": list(sizes[-1]),
        "animated": [path.name for path, (_, looked) in zip(paths, found, strict=True) if looked.animated],
    }
