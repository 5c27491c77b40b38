"""A suite on disk in the challenge's layout, beside a manifest of what made it.

    DIR/distortion00.npy ... distortion18.npy   uint8 [severities * count, H, W, C], severities stacked
    DIR/manifest.json                           names, parameters, seed, source images, versions
    DIR/corruptions.png                         one image through all of it

The manifest is written first and each file lands whole, so that a run which was stopped goes on with what is missing.
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
from comp.results.files import make_folder, read_json, to_json, write_atomically
from comp.runtime.errors import DataError
from comp.runtime.progress import Progress, quiet

SHEET = "corruptions.png"
_SHOWN = 3  # strangers in a message


def parse_severities(text: str) -> tuple[int, ...]:
    """Return `1-5` or `1,3,5` as numbers in rising order.

    Raises:
        DataError: anything else, or beyond 1 to 5.
    """
    wanted: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*([1-5])(?:-([1-5]))?\s*", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise DataError(f"--severities: expected numbers from 1 to 5 such as 1-5 or 1,3,5, found '{text}'")
        wanted.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(sorted(wanted))


def clean_split(dataset: Dataset, name: str) -> Split:
    """Return `val` or `test`.

    Raises:
        DataError: there is none.
    """
    split = dataset.val if name == "val" else dataset.test
    if split is None:
        mend = {
            "val": "set data.validation",
            "test": "take --split val, or set competition.suite.source: corrupt_test, which holds one out",
        }
        raise DataError(f"--split {name}: these data have no such labelled split; {mend[name]}")
    return split


def write_suite(
    split: Split,
    folder: Path,
    *,
    seed: int,
    made_of: Mapping[str, Any],
    names: Sequence[str] = DISTORTIONS,
    severities: Sequence[int] = SEVERITIES,
    count: int = 0,
    task: str = "single_label",
    progress: Progress = quiet,
) -> list[Path]:
    """Write a split's corrupted copies; complete files of the same manifest are kept. Return the files in order.

    Args:
        split: clean images.
        folder: a new or empty one, or one that the same call has begun.
        seed: the config's split_seed; the files then equal the suite or shifted validation that is made lazily.
        made_of: where the images come from: plain values for the manifest.
        names: corruptions; each keeps its number in the suite.
        severities: stacked in this order.
        count: images in each block: a sample of the split, see `division.sample`; 0 for all.
        task: a row of `comp.config.tasks.TASKS`, by which the sample is stratified.
        progress: called after every block; where it raises, whole files stay.

    Raises:
        DataError: more images wanted than there are, the folder holds something else, or the disk is too small.
    """
    if count > len(split):
        raise DataError(f"--count: expected at most {len(split)}, the images of {split.name}, found {count}")
    rows = splitting.sample(split, count or len(split), task=task)
    kept = split.take(rows, split.name) if len(rows) < len(split) else split
    seed = suites.seed_of(split.name, seed)
    numbers = [DISTORTIONS.index(name) for name in names]
    blocks = block_grid(numbers, severities, len(kept))
    manifest = _manifest(kept, rows.tolist(), seed, severities, made_of)
    _claim(folder, manifest, numbers)
    _check_space(folder, blocks, kept)
    suite = suites.corrupted("suite", split, blocks, seed, rows)
    paths = [suites.distortion_path(folder, number) for number in numbers]
    for number, path in zip(numbers, paths, strict=True):
        own = [block for block in blocks if block.distortion == number]
        if not _is_whole(path, len(own) * len(kept), kept):
            _write_file(path, suite, own, kept, progress)
    plots.draw_image_sheet(folder / SHEET, *_sheet(kept, paths, names, severities))
    return paths


def _manifest(
    split: Split, rows: list[int], seed: int, severities: Sequence[int], made_of: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what must be equal for files to belong together; `files` is added where it is written."""
    return {
        "layout": "uint8 [severities * images_per_block, H, W, C], severities stacked",
        "source": {**made_of, "split": split.name, "fingerprint": splits.fingerprint(split)},
        "seed": seed,
        "severities": list(severities),
        "images_per_block": len(split),
        "image_shape": list(split.image_shape),
        "versions": runs.package_versions(),
        "indices": rows,  # of the draws: each image's place in its split
        "ids": split.ids.tolist(),
    }


def _describe(number: int, severities: Sequence[int]) -> dict[str, Any]:
    name = DISTORTIONS[number]
    row = CORRUPTIONS[name]
    parameters = [list(row.parameters[severity - 1]) for severity in severities]
    return {"corruption": name, "family": row.family, "parameters": parameters}


def _claim(folder: Path, manifest: Mapping[str, Any], numbers: Sequence[int]) -> None:
    """Make the folder ours: write the manifest, with the files that it promises; refuse what another has put there."""
    make_folder(folder)
    path = folder / suites.MANIFEST
    files: dict[str, Any] = {}
    if path.exists():
        there = read_json(path)
        files = there.pop("files", {})
        others = [key for key in manifest if there.get(key) != manifest[key]]
        if others:
            raise DataError(f"{folder}: holds a suite that differs in {', '.join(others)}; choose another --out")
    files |= {suites.distortion_path(folder, number).name: _describe(number, manifest["severities"])
              for number in numbers}  # fmt: skip
    ours = {*files, suites.MANIFEST, SHEET} if path.exists() else set()
    # Hidden files are what a killed process, or the desktop, leaves.
    strangers = sorted(p.name for p in folder.iterdir() if p.name not in ours and not p.name.startswith("."))
    if strangers:
        shown = ", ".join(strangers[:_SHOWN])
        raise DataError(f"{folder}: holds something else already ({shown}); choose a new folder for --out")
    write_atomically(path, to_json({**manifest, "files": dict(sorted(files.items()))}))


def _check_space(folder: Path, blocks: Sequence[Block], split: Split) -> None:
    needed = sum(block.count for block in blocks) * int(np.prod(split.image_shape))
    present = sum(path.stat().st_size for path in folder.glob("distortion*.npy"))
    free = shutil.disk_usage(folder).free
    if needed - present > free:
        raise DataError(f"{folder}: needs {needed >> 20:,} MiB, found {free >> 20:,} MiB free; lower --count")


def _is_whole(path: Path, rows: int, split: Split) -> bool:
    try:
        suites.check_distortion_file(path, rows, split.image_shape)
    except DataError:  # not there, or spoilt since: it is made anew
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
    """Return the first image through everything, [names, 1 + severities, H, W, C], and the sheet's labels."""
    places = np.arange(len(severities)) * len(split)
    rows = [np.concatenate([split.images[:1], np.load(path, mmap_mode="r")[places]]) for path in paths]
    return np.stack(rows), list(names), ["clean", *(f"severity {severity}" for severity in severities)]
