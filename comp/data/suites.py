"""Suites: shifted images block by block, generated from a split or read from the challenge's files."""

import functools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from comp.config import CompetitionConfig, OODValidationConfig, SuiteConfig
from comp.data.corruptions.suite import COLOURED, corrupt, images_at_once, resolve_names
from comp.data.downloads import fetch
from comp.data.sources.numpy_files import open_images
from comp.data.splits import Split, Suite
from comp.results.blocks import DISTORTIONS, Block, block_grid
from comp.results.files import read_json, sha256_bytes
from comp.runtime.errors import ConfigError, DataError
from comp.runtime.progress import Progress

MANIFEST = "manifest.json"

_CHUNK_IMAGES = 500  # per corruption call on the CPU, to keep intermediates small


def corruption_seed(split: str, split_seed: int) -> int:
    """Return the seed of a split's corruptions: `val` must not share the draws of the suite generated from `test`."""
    return split_seed + ("test", "val").index(split)


def shifted_distortions(config: OODValidationConfig) -> list[int]:
    """Return the indices of the distortions in shifted validation.

    Raises:
        ConfigError: an unknown name in `leave_out`, or nothing is left.
    """
    key = "competition.ood_validation.leave_out"
    left_out = resolve_names(config.leave_out, key)
    numbers = [number for number, name in enumerate(DISTORTIONS) if name not in left_out]
    if not numbers:
        raise ConfigError(f"{key}: leaves out all corruptions; leave out fewer, or set severities to []")
    return numbers


def check_channels(config: CompetitionConfig, channels: int, *, validated: bool) -> None:
    """Refuse generated colour corruptions for images that are neither RGB nor grey.

    Args:
        config: section competition.
        channels: of the images; 1 and 3 support every corruption.
        validated: whether there is a validation split, the origin of shifted validation.

    Raises:
        ConfigError: with the corruptions, and the setting that leaves them out.
    """
    if channels in (1, 3):
        return
    reason = f"which need images of 1 or 3 channels; these have {channels}"
    shifted = config.ood_validation
    if validated and shifted.severities:
        wrong = [DISTORTIONS[number] for number in shifted_distortions(shifted) if DISTORTIONS[number] in COLOURED]
        if wrong:
            left_out = ", ".join([*shifted.leave_out, *wrong])
            raise ConfigError(
                f"competition.ood_validation: generates {', '.join(wrong)}, {reason}; set "
                f"competition.ood_validation.leave_out=[{left_out}]"
            )
    if config.suite.source == "corrupt_test":
        wrong = [name for name in DISTORTIONS[: config.suite.files] if name in COLOURED]
        if wrong:
            raise ConfigError(
                f"competition.suite: corrupt_test generates {', '.join(wrong)}, {reason}; use only the corruptions "
                f"before them (competition.suite.files={DISTORTIONS.index(wrong[0])}), the test images themselves "
                "(competition.suite.source=test), or none"
            )


def corrupted_suite(
    name: str, split: Split, blocks: Sequence[Block], seed: int, rows: NDArray[np.int64] | None = None
) -> Suite:
    """Return the suite of a split's corrupted images; each block is generated when it is opened, on the CPU.

    `Suite.on` generates them on a GPU: 19 x 5 blocks of 10,000 images take half a minute of two cores. MPS has no
    float64, which some corruptions need, so the CPU works for it.

    Args:
        name: `suite` or `ood_val`.
        split: clean images, at least as many as the largest block.
        blocks: which distortions and severities.
        seed: of the corruptions; an image's draws depend on its row in the split.
        rows: rows of the split in each block; None: the first ones.
    """
    if rows is None:
        rows = np.arange(max((block.count for block in blocks), default=0))

    @functools.cache  # decodes image files once for all blocks
    def clean() -> Split:
        is_head = np.array_equal(rows, np.arange(len(rows)))  # then a view instead of a copy
        return (split.head(len(rows)) if is_head else split.take(rows, split.name)).decoded()

    def generated_on(device: str) -> Suite:
        target = torch.device("cpu" if device == "mps" else device)
        return Suite(name, tuple(blocks), partial(_corrupt_block, clean, rows, seed, target), moved=generated_on)

    return generated_on("cpu")


def _corrupt_block(
    clean: Callable[[], Split], source_rows: NDArray[np.int64], seed: int, device: torch.device, block: Block
) -> Split:
    split = clean()
    images = np.empty((block.count, *split.images.shape[1:]), np.uint8)
    count = _CHUNK_IMAGES if device.type == "cpu" else images_at_once(split.image_shape, device)
    for start in range(0, block.count, count):
        rows = slice(start, min(start + count, block.count))
        chunk = torch.from_numpy(np.array(split.images[rows])).to(device).permute(0, 3, 1, 2)  # [B, C, H, W]
        indices = torch.from_numpy(source_rows[rows]).to(device)
        shifted = corrupt(chunk, DISTORTIONS[block.distortion], block.severity, seed=seed, indices=indices)
        torch.from_numpy(images[rows]).copy_(shifted.permute(0, 2, 3, 1))  # back to the host
    labels = None if split.labels is None else split.labels[: block.count]
    return Split(block.name, images, block.ids(), labels)


def distortion_files(folder: Path, blocks: Sequence[Block], shape: tuple[int, int, int]) -> Suite:
    """Return the suite of a folder of `distortionNN.npy`, uint8 [severities * count, H, W, 3], severities stacked.

    Args:
        folder: holds one file for each distortion of `blocks`.
        blocks: of equal size.
        shape: (C, H, W) of the training images.

    Raises:
        DataError: a file is missing, truncated, pickled or of another type or shape, or the folder's manifest lists
            other severities.
    """
    _check_severities(folder / MANIFEST, [block.severity for block in blocks])
    for distortion in sorted({block.distortion for block in blocks}):
        rows = sum(block.count for block in blocks if block.distortion == distortion)
        check_distortion_file(distortion_path(folder, distortion), rows, shape)
    return Suite("suite", tuple(blocks), partial(_read_block, folder), str(folder))


def folder_suite(folder: Path, severities: int, shape: tuple[int, int, int]) -> Suite:
    """Return the suite of any folder of `distortionNN.npy`, severities stacked; the first file sets the block size.

    Raises:
        DataError: no such file, rows that are not a multiple of `severities`, or as `distortion_files`.
    """
    numbers = sorted(int(path.stem.removeprefix("distortion")) for path in folder.glob("distortion[0-9][0-9].npy"))
    if not numbers:
        raise DataError(f"{folder}: holds no distortionNN.npy")
    first = distortion_path(folder, numbers[0])
    rows = len(open_images(first))
    if rows % severities:
        raise DataError(f"{first}: {rows} images are not a multiple of {severities} severities; set --severities")
    return distortion_files(folder, block_grid(numbers, range(1, severities + 1), rows // severities), shape)


def _check_severities(manifest: Path, severities: Sequence[int]) -> None:
    """Refuse a folder with other severities: its blocks would get wrong names."""
    if not manifest.exists():
        return
    expected, listed = sorted(set(severities)), read_json(manifest).get("severities")
    if listed != expected:
        raise DataError(
            f"{manifest}: expected severities {expected} (competition.suite.severities), found {listed}; write the "
            f"suite again with --severities 1-{max(expected)}"
        )


def distortion_path(folder: Path, distortion: int) -> Path:
    """Return the path of a distortion's file."""
    return folder / f"distortion{distortion:02d}.npy"


def folder_hash(folder: Path) -> str:
    """Return a hash of the names, sizes and times of a folder's distortion files."""
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.glob("*.npy"))]
    return sha256_bytes(repr(files).encode())[:16]


def suite_name(folder: Path) -> str:
    """Return `suite-NAME-12345678`: the folder's name and the start of its hash."""
    return f"suite-{folder.resolve().name}-{folder_hash(folder)[:8]}"


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
    """Download missing files from `competition.suite.base_address`, and check their shapes.

    Raises:
        DataError: a file cannot be downloaded or has the wrong shape.
    """
    validate = partial(check_distortion_file, rows=config.severities * config.images_per_block, shape=shape)
    for distortion in range(config.files):
        path = distortion_path(folder, distortion)
        if not path.exists():
            fetch(f"{config.base_address.rstrip('/')}/{path.name}", path, validate, progress)
