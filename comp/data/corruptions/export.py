"""Write a suite in the challenge's layout, with a manifest of its origin.

    DIR/distortion00.npy ... distortion18.npy   uint8 [severities * count, H, W, C], severities stacked
    DIR/manifest.json                           names, parameters, seed, source images, versions
    DIR/corruptions.png                         one image under all corruptions

The manifest is written first and each file atomically, so an interrupted export continues with the missing files.
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from comp.data import splits, splitting, suites
from comp.data.corruptions.suite import CORRUPTIONS, SEVERITIES
from comp.data.dataset import Dataset
from comp.data.splits import Split, Suite
from comp.results import plots, runs
from comp.results.blocks import DISTORTIONS, Block, block_grid
from comp.results.files import hold_folder, make_folder, read_json, to_json, write_atomically
from comp.runtime.errors import DataError
from comp.runtime.progress import Progress, quiet

SHEET = "corruptions.png"
_SHOWN = 3  # files in a message


def parse_severities(text: str) -> tuple[int, ...]:
    """Parse `1-5` or `1,3,5` into ascending numbers.

    Raises:
        DataError: another form, or numbers other than 1 to 5.
    """
    severities: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*([1-5])(?:-([1-5]))?\s*", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise DataError(f"--severities: expected numbers from 1 to 5 such as 1-5 or 1,3,5, found '{text}'")
        severities.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(sorted(severities))


def clean_split(dataset: Dataset, name: str) -> Split:
    """Return the split `val` or `test`.

    Raises:
        DataError: the data have no such split.
    """
    split = dataset.val if name == "val" else dataset.test
    if split is None:
        hints = {
            "val": "set data.validation",
            "test": "use --split val, or set competition.suite.source: corrupt_test, which holds one out",
        }
        raise DataError(f"--split {name}: the data have no such labelled split; {hints[name]}")
    return split


def write_suite(
    split: Split,
    folder: Path,
    *,
    seed: int,
    source: Mapping[str, Any],
    names: Sequence[str] = DISTORTIONS,
    severities: Sequence[int] = SEVERITIES,
    count: int = 0,
    task: str = "single_label",
    progress: Progress = quiet,
) -> list[Path]:
    """Write a split's corrupted copies and return the files in order; complete files of the same manifest are kept.

    Args:
        split: clean images.
        folder: new, empty, or begun by the same call.
        seed: the config's split_seed: the files equal the generated suite or shifted validation.
        source: origin of the images, as plain values for the manifest.
        names: corruptions; each keeps its index in the suite.
        severities: stacked in this order.
        count: images per block: a sample of the split, see `splitting.sample`; 0: all.
        task: a row of `comp.config.tasks.TASKS`, which sets how the sample is stratified.
        progress: called after every block; if it raises, complete files stay.

    Raises:
        DataError: `count` exceeds the split, the folder holds other files, or the disk is too small.
    """
    if count > len(split):
        raise DataError(f"--count: expected at most {len(split)}, the images of {split.name}, found {count}")
    rows = splitting.sample_indices(split, count or len(split), task=task)
    kept = split.take(rows, split.name) if len(rows) < len(split) else split
    seed = suites.corruption_seed(split.name, seed)
    numbers = [DISTORTIONS.index(name) for name in names]
    blocks = block_grid(numbers, severities, len(kept))
    manifest = _manifest(kept, rows.tolist(), seed, severities, source)
    make_folder(folder)
    with hold_folder(folder):  # two exports of different corruptions, one manifest
        _claim_folder(folder, manifest, numbers)
    _check_space(folder, blocks, kept)
    suite = suites.corrupted_suite("suite", split, blocks, seed, rows)
    paths = [suites.distortion_path(folder, number) for number in numbers]
    for number, path in zip(numbers, paths, strict=True):
        stack = [block for block in blocks if block.distortion == number]
        if not _is_complete(path, len(stack) * len(kept), kept):
            _write_file(path, suite, stack, kept, progress)
    plots.draw_image_sheet(folder / SHEET, *_sheet(kept, paths, names, severities))
    return paths


def _manifest(
    split: Split, rows: list[int], seed: int, severities: Sequence[int], source: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the values that must be equal for files to belong together; `_claim_folder` adds `files`."""
    return {
        "layout": "uint8 [severities * images_per_block, H, W, C], severities stacked",
        "source": {**source, "split": split.name, "fingerprint": splits.fingerprint(split)},
        "seed": seed,
        "severities": list(severities),
        "images_per_block": len(split),
        "image_shape": list(split.image_shape),
        "versions": runs.package_versions(),
        "indices": rows,  # each image's row in its split, which determines its draws
        "ids": split.ids.tolist(),
    }


def _describe(number: int, severities: Sequence[int]) -> dict[str, Any]:
    name = DISTORTIONS[number]
    row = CORRUPTIONS[name]
    parameters = [list(row.parameters[severity - 1]) for severity in severities]
    return {"corruption": name, "family": row.family, "parameters": parameters}


def _claim_folder(folder: Path, manifest: Mapping[str, Any], numbers: Sequence[int]) -> None:
    """Write the manifest with the planned files; refuse a folder with other content."""
    path = folder / suites.MANIFEST
    files: dict[str, Any] = {}
    if path.exists():
        existing = read_json(path)
        files = existing.pop("files", {})
        if not isinstance(files, dict):
            raise DataError(f"{path}: damaged: files: expected an object, found {files!r:.80}; choose a new --out")
        different = [key for key in manifest if existing.get(key) != manifest[key]]
        if different:
            raise DataError(f"{folder}: holds a suite that differs in {', '.join(different)}; choose another --out")
    for number in numbers:
        files[suites.distortion_path(folder, number).name] = _describe(number, manifest["severities"])
    expected = {*files, suites.MANIFEST, SHEET} if path.exists() else set()
    # Hidden files are leftovers of a killed process or the desktop.
    names = sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))
    if unexpected := [name for name in names if name not in expected]:
        shown = ", ".join(unexpected[:_SHOWN])
        raise DataError(f"{folder}: already holds other files ({shown}); choose a new folder for --out")
    write_atomically(path, to_json({**manifest, "files": dict(sorted(files.items()))}))


def _check_space(folder: Path, blocks: Sequence[Block], split: Split) -> None:
    needed = sum(block.count for block in blocks) * int(np.prod(split.image_shape))
    existing = sum(path.stat().st_size for path in folder.glob("distortion*.npy"))
    free = shutil.disk_usage(folder).free
    if needed - existing > free:
        raise DataError(f"{folder}: needs {needed >> 20:,} MiB, found {free >> 20:,} MiB free; reduce --count")


def _is_complete(path: Path, rows: int, split: Split) -> bool:
    try:
        suites.check_distortion_file(path, rows, split.image_shape)
    except DataError:  # missing or damaged: it is written again
        return False
    return True


def _write_file(path: Path, suite: Suite, blocks: Sequence[Block], split: Split, progress: Progress) -> None:
    rows = len(blocks) * len(split)
    header = {"descr": "|u1", "fortran_order": False, "shape": (rows, *split.images.shape[1:])}

    def stack(file: BinaryIO) -> None:
        np.lib.format.write_array_header_1_0(file, header)
        for done, block in enumerate(blocks, 1):
            file.write(np.ascontiguousarray(suite.open(block).images).data)
            progress(path.name, done * len(split), rows)

    write_atomically(path, stack)


def _sheet(
    split: Split, paths: Sequence[Path], names: Sequence[str], severities: Sequence[int]
) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], list[str], list[str]]:
    """Return the first image under all corruptions, [names, 1 + severities, H, W, C], and the sheet's labels."""
    first_rows = np.arange(len(severities)) * len(split)
    rows = [np.concatenate([split.images[:1], np.load(path, mmap_mode="r")[first_rows]]) for path in paths]
    return np.stack(rows), list(names), ["clean", *(f"severity {severity}" for severity in severities)]
