"""Image files, brought to one kind of pixels by fixed rules and decoded only when they are read.

| found in the file | becomes |
|---|---|
| any size | `data.image_size`: the middle square resized (`resize: crop`) or all of it (`stretch`), antialiased |
| EXIF rotation or mirroring | turned upright first |
| grey, black and white | three equal channels |
| palette | its colours |
| transparency (RGBA, LA, palette) | laid on white |
| CMYK, YCbCr, LAB, HSV | converted to RGB as Pillow does, without a colour profile |
| 16 bits a channel | 8 bits: value / 257 |
| floating point | refused: its range is unknown |
| animation | its first frame, with a note |
| more than 64 million pixels | refused unread: a decompression bomb |
"""

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, features

from comp.data import archives
from comp.device import default_workers
from comp.errors import DataError
from comp.progress import Progress, quiet

_AVIF = features.check("avif")  # Pillow can be built without it
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm",
    *((".avif",) if _AVIF else ()),
)  # fmt: skip
_GREY = 128  # stands for an image that is missing
MOST_PIXELS = 64_000_000
_FORMATS = (
    "JPEG",
    "PNG",
    "BMP",
    "GIF",
    "WEBP",
    "TIFF",
    "PPM",
    *(("AVIF",) if _AVIF else ()),
)  # none of them calls another program
_TOGETHER = 64  # files handed to the threads at a time: progress and interruption come in between

Resize = Literal["crop", "stretch"]
Rows = slice | NDArray[np.int64]
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class ImageFiles:
    """Image files, seen as an array uint8 [N, H, W, 3].

    Rows are taken without reading anything (`files[10:20]`, `files[rows]`); `np.asarray` decodes, as it would read a
    memory map; `files[7]` decodes one image.

    Attributes:
        paths: [N] text; empty for an image that is missing, which is read as grey.
        size: (H, W) of every decoded image.
        resize: how images of another size are brought to it.
        workers: processes that decode where images are streamed.
        content: a hash of all bytes of the list of files that these were taken from.
        notes: what a user should know of how they are read.
        unreadable: names of files of that list that hold no image, and ids without a file.
    """

    paths: NDArray[np.str_]
    size: tuple[int, int]
    resize: Resize
    workers: int
    content: str
    notes: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[N, H, W, 3]."""
        return (len(self.paths), *self.size, 3)

    @property
    def nbytes(self) -> int:
        """Bytes of all decoded pixels."""
        return int(np.prod(self.shape, dtype=np.int64))

    @overload
    def __getitem__(self, rows: int) -> NDArray[np.uint8]: ...

    @overload
    def __getitem__(self, rows: Rows) -> "ImageFiles": ...

    def __getitem__(self, rows: "int | Rows") -> "NDArray[np.uint8] | ImageFiles":
        if isinstance(rows, int | np.integer):
            if not self.paths[rows]:
                return np.full((*self.size, 3), _GREY, np.uint8)
            return fitted(read_image(Path(self.paths[rows])), self.size, self.resize)
        return replace(self, paths=self.paths[rows])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        pixels = self.decoded()
        return pixels if dtype is None else pixels.astype(dtype, copy=False)

    def decoded(self, progress: Progress = quiet, name: str = "images") -> NDArray[np.uint8]:
        """Return all pixels, [N, H, W, 3]; threads decode.

        Raises:
            DataError: a file cannot be read; the first is named.
        """
        pixels = np.empty(self.shape, np.uint8)

        def decode(row: int) -> None:
            pixels[row] = self[row]

        in_threads(decode, range(len(self)), progress, f"decoding {name}")
        return pixels


def reading_workers(wanted: int | Literal["auto"]) -> int:
    """Return how many processes read streamed images: `data.workers`, or one a core and at most 8."""
    return default_workers() if wanted == "auto" else wanted


def in_threads(
    work: Callable[[int], _Found], rows: Sequence[int], progress: Progress = quiet, name: str = "images"
) -> list[_Found]:
    """Return `work` of every row, in order; Pillow lets go of Python's lock while it decodes."""
    found: list[_Found] = []
    with ThreadPoolExecutor(reading_workers("auto")) as pool:
        for start in range(0, len(rows), _TOGETHER):
            found += pool.map(work, rows[start : start + _TOGETHER])
            progress(name, len(found), len(rows))
    return found


@dataclass(frozen=True)
class Look:
    """What one look into a file tells: its upright size (W, H) and whether it is animated."""

    size: tuple[int, int]
    animated: bool


def look(path: Path, content: bytes) -> Look:
    """Decode a file as training would and return what it holds.

    Raises:
        DataError: as `read_image`.
    """
    animated: list[bool] = []
    image = _decoded(path, content, lambda opened: animated.append(bool(getattr(opened, "is_animated", False))))
    return Look(image.size, animated[0])


def read_image(path: Path) -> Image.Image:
    """Return a file's image: upright, RGB, 8 bits.

    Raises:
        DataError: missing, truncated, not an image, of floating point, or too large to be meant.
    """
    return _decoded(path, archives.read(path), lambda opened: None)


def _decoded(path: Path, content: bytes, inspect: Callable[[Image.Image], object]) -> Image.Image:
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as opened:
            width, height = opened.size
            if width * height > MOST_PIXELS:
                raise DataError(_bomb(path, f"{width:,} x {height:,} pixels"))
            inspect(opened)
            opened.seek(0)
            return _rgb(ImageOps.exif_transpose(opened), path)
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(_bomb(path, str(error))) from None
    except Exception as error:  # decoders meet hostile bytes here and raise whatever they stumble over
        reason = "not an image that can be decoded" if "cannot identify" in str(error) else str(error)
        raise DataError(f"{path}: is truncated or damaged ({reason}); fetch it again or remove it") from None


def _bomb(path: Path, found: str) -> str:
    return f"{path}: expected at most {MOST_PIXELS:,} pixels, found {found}: a decompression bomb; remove or shrink it"


def _rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode == "F":
        raise DataError(f"{path}: holds floating point pixels, whose range is unknown; save it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _from_16_bits(image, path)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _from_16_bits(image: Image.Image, path: Path) -> Image.Image:
    deep = np.asarray(image).astype(np.int64)  # [H, W]
    if deep.min() < 0 or deep.max() > 0xFFFF:
        raise DataError(f"{path}: expected 8 or 16 bits a pixel, found values {deep.min()} to {deep.max()}; convert it")
    return Image.fromarray(((deep + 128) // 257).astype(np.uint8))


def fitted(image: Image.Image, size: tuple[int, int], resize: Resize) -> NDArray[np.uint8]:
    """Return an RGB image as [H, W, 3] uint8.

    Args:
        image: of any size.
        size: (H, W) wanted.
        resize: `crop` keeps proportions and cuts what is over at two sides, evenly: the same as bringing the shorter
            side to size and cutting out the centre; `stretch` keeps everything and bends proportions.
    """
    height, width = size
    if image.size != (width, height):
        box: tuple[float, float, float, float] = (0, 0, *image.size)
        if resize == "crop":
            scale = min(image.width / width, image.height / height)
            left, top = (image.width - width * scale) / 2, (image.height - height * scale) / 2
            box = (left, top, left + width * scale, top + height * scale)
        image = image.resize((width, height), Image.Resampling.BILINEAR, box=box)
    return np.array(image)
