"""Suites: shifted images block by block, made from a split or read from the challenge's own files."""

import functools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from comp.config import CompetitionConfig, OODValidationConfig, SuiteConfig
from comp.data.arrays import open_images
from comp.data.corruptions.suite import COLOURED, corrupt, named
from comp.data.downloads import fetch
from comp.data.splits import Split, Suite
from comp.results import files
from comp.results.blocks import DISTORTIONS, Block
from comp.results.blocks import block_grid as spec_blocks
from comp.runtime.errors import ConfigError, DataError
from comp.runtime.progress import Progress

MANIFEST = "manifest.json"

_CHUNK_IMAGES = 500  # of one corruption call: its intermediates stay small


def seed_of(split: str, split_seed: int) -> int:
    """Return the seed of a split's corruptions; `val` must not share the draws of the suite that is made of `test`."""
    return split_seed + ("test", "val").index(split)


def shifted_distortions(config: OODValidationConfig) -> list[int]:
    """Return the numbers of the distortions that shifted validation has, less those it leaves out.

    Raises:
        ConfigError: an unknown name, or nothing is left.
    """
    where = "competition.ood_validation.leave_out"
    left_out = named(config.leave_out, where)
    numbers = [number for number, name in enumerate(DISTORTIONS) if name not in left_out]
    if not numbers:
        raise ConfigError(f"{where}: leaves no corruption at all; leave fewer out, or set severities to []")
    return numbers


def check_channels(config: CompetitionConfig, channels: int, *, validated: bool) -> None:
    """Refuse generated corruptions of colour for images that have none.

    Args:
        config: section competition.
        channels: of the images; 1 and 3 can have every corruption.
        validated: whether there is a validation split, which shifted validation is made of.

    Raises:
        ConfigError: naming the corruptions, and the setting that leaves them out.
    """
    if channels in (1, 3):
        return
    why = f"which need images of 1 or 3 channels, and these have {channels}"
    shifted = config.ood_validation
    if validated and shifted.severities:
        wrong = [DISTORTIONS[number] for number in shifted_distortions(shifted) if DISTORTIONS[number] in COLOURED]
        if wrong:
            left_out = ", ".join([*shifted.leave_out, *wrong])
            raise ConfigError(
                f"competition.ood_validation: generates {', '.join(wrong)}, {why}; set "
                f"competition.ood_validation.leave_out=[{left_out}]"
            )
    if config.suite.source == "corrupt_test":
        wrong = [name for name in DISTORTIONS[: config.suite.files] if name in COLOURED]
        if wrong:
            raise ConfigError(
                f"competition.suite: corrupt_test generates {', '.join(wrong)}, {why}; take the corruptions before "
                f"them (competition.suite.files={DISTORTIONS.index(wrong[0])}), the test images themselves "
                "(competition.suite.source=test), or none"
            )


def corrupted(
    name: str, split: Split, blocks: Sequence[Block], seed: int, rows: NDArray[np.int64] | None = None
) -> Suite:
    """Return the suite that our corruptions make of a split's images; each block is made when it is opened.

    Args:
        name: `suite` or `ood_val`.
        split: clean images, at least as many as a block has.
        blocks: which distortions and severities.
        seed: of the corruptions' draws; an image's are those of its row in the split, whichever images a block has.
        rows: which images of the split a block has; None: the first ones.
    """
    if rows is None:
        rows = np.arange(max((block.count for block in blocks), default=0))

    @functools.cache  # image files are decoded once for all blocks, when the first is opened
    def clean() -> Split:
        is_head = np.array_equal(rows, np.arange(len(rows)))  # then a view, which copies nothing
        return (split.head(len(rows)) if is_head else split.take(rows, split.name)).decoded()

    return Suite(name, tuple(blocks), partial(_corrupt_block, clean, rows, seed))


def _corrupt_block(clean: Callable[[], Split], drawn: NDArray[np.int64], seed: int, block: Block) -> Split:
    split = clean()
    images = np.empty((block.count, *split.images.shape[1:]), np.uint8)
    for start in range(0, block.count, _CHUNK_IMAGES):
        rows = slice(start, min(start + _CHUNK_IMAGES, block.count))
        chunk = torch.from_numpy(np.array(split.images[rows])).permute(0, 3, 1, 2)  # [B, C, H, W]
        indices = torch.from_numpy(drawn[rows])
        shifted = corrupt(chunk, DISTORTIONS[block.distortion], block.severity, seed=seed, indices=indices)
        images[rows] = shifted.permute(0, 2, 3, 1).numpy()
    labels = None if split.labels is None else split.labels[: block.count]
    return Split(block.name, images, block.ids(), labels)


def distortion_files(folder: Path, blocks: Sequence[Block], shape: tuple[int, int, int]) -> Suite:
    """Return the suite of a folder of `distortionNN.npy`, uint8 [severities * count, H, W, 3], severities stacked.

    Args:
        folder: holds one file for each distortion of `blocks`.
        blocks: all of one size.
        shape: (C, H, W) of the training images.

    Raises:
        DataError: a file is missing, truncated, pickled or of another type or shape; the first is named. Or the
            folder's manifest, where there is one, tells of other severities.
    """
    _check_severities(folder / MANIFEST, [block.severity for block in blocks])
    for distortion in sorted({block.distortion for block in blocks}):
        rows = sum(block.count for block in blocks if block.distortion == distortion)
        check_distortion_file(distortion_path(folder, distortion), rows, shape)
    return Suite("suite", tuple(blocks), partial(_read_block, folder), str(folder))


def folder_suite(folder: Path, severities: int, shape: tuple[int, int, int]) -> Suite:
    """Return the suite of any folder of `distortionNN.npy`, severities stacked, blocks as large as the first file says.

    Raises:
        DataError: no such file, one whose rows are no multiple of `severities`, or as `distortion_files`.
    """
    numbers = sorted(int(path.stem.removeprefix("distortion")) for path in folder.glob("distortion[0-9][0-9].npy"))
    if not numbers:
        raise DataError(f"{folder}: holds no distortionNN.npy")
    first = distortion_path(folder, numbers[0])
    rows = len(open_images(first))
    if rows % severities:
        raise DataError(
            f"{first}: {rows} images are no multiple of {severities} severities; say how many: --severities"
        )
    return distortion_files(folder, spec_blocks(numbers, range(1, severities + 1), rows // severities), shape)


def _check_severities(manifest: Path, wanted: Sequence[int]) -> None:
    """A folder may hold a choice of severities; blocks would then go by wrong names."""
    if not manifest.exists():
        return
    found = files.read_json(manifest).get("severities")
    if found != sorted(set(wanted)):
        raise DataError(
            f"{manifest}: expected severities {sorted(set(wanted))}, as competition.suite.severities says, found "
            f"{found}; write the suite again with --severities 1-{max(wanted)}"
        )


def distortion_path(folder: Path, distortion: int) -> Path:
    """Return where a distortion's file lies."""
    return folder / f"distortion{distortion:02d}.npy"


def state_of(folder: Path) -> str:
    """Return what changes when one of a folder's distortion files does: a hash of names, sizes and times."""
    found = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.glob("*.npy"))]
    return files.sha256_bytes(repr(found).encode())[:16]


def name_of(folder: Path) -> str:
    """Return `suite-NAME-12345678`: a folder's name, and a hash that other files in it, or elsewhere, do not share."""
    return f"suite-{folder.resolve().name}-{state_of(folder)[:8]}"


def check_distortion_file(path: Path, rows: int, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Return the file's memory map if it holds `rows` images of `shape` (C, H, W).

    Raises:
        DataError: as `open_images`, or another shape.
    """
    images = open_images(path)
    channels, height, width = shape
    expected = (rows, height, width, channels)
    if images.shape != expected:
        raise DataError(f"{path}: expected images {list(expected)}, found {list(images.shape)}")
    return images


def _read_block(folder: Path, block: Block) -> Split:
    images = open_images(distortion_path(folder, block.distortion))
    start = (block.severity - 1) * block.count
    return Split(block.name, images[start : start + block.count], block.ids(), None)


def download_distortion_files(
    config: SuiteConfig, folder: Path, shape: tuple[int, int, int], progress: Progress
) -> None:
    """Fetch the files that `folder` lacks from `competition.suite.base_address`, each checked for its shape.

    Raises:
        DataError: a file cannot be fetched or is not what was wanted.
    """
    rows = config.severities * config.images_per_block

    def check(path: Path) -> None:
        check_distortion_file(path, rows, shape)

    for distortion in range(config.files):
        path = distortion_path(folder, distortion)
        if not path.exists():
            fetch(config.base_address.rstrip("/") + f"/{path.name}", path, check, progress)
