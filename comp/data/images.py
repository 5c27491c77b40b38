"""Image files, brought to one kind of pixels by fixed rules and decoded only when they are read.

| found in the file | becomes |
|---|---|
| any size | `data.image_size`, as `data.resize` says: the middle part of that shape, all of it bent, or with bars |
| EXIF rotation or mirroring | turned upright first |
| grey, black and white | three equal channels |
| palette | its colours |
| transparency (RGBA, LA, palette) | laid on white; a fourth band that is none (TIFF's RGBX) is left out |
| CMYK, YCbCr, LAB, HSV | converted to RGB as Pillow does, without a colour profile |
| 16 or 32 bits, floating point | 8 bits, by one scale for the whole data set (`data.range`, `comp.data.ranges`) |
| 16 bits in each of three or four channels | likewise, read by OpenCV: Pillow would keep the upper 8 bits |
| animation | its first frame, with a note |
| more than 64 million pixels | refused unread: a decompression bomb |
"""

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, features

from comp.data import archives, ranges
from comp.data.ranges import Depth, Scale
from comp.data.readers import Readers
from comp.runtime.device import default_workers
from comp.runtime.errors import DataError
from comp.runtime.progress import Progress, quiet

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

Resize = Literal["crop", "stretch", "letterbox"]
Sides = tuple[int, int]  # height, width
Box = tuple[float, float, float, float]  # left, top, right, bottom
Cut = Callable[[Sides, Sides], Box | None]  # (decoded, wanted sides) -> the part to bring to size; None: as configured
Rows = slice | NDArray[np.int64]
_Found = TypeVar("_Found")
_ORIENTATION = 0x0112  # EXIF
_NO_READERS = Readers()  # a batch on its way must not keep its own workers alive
_SAMPLES = 277  # TIFF: values of a pixel


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
        depth: what those with more than 8 bits a pixel hold; None where there are none.
        scale: the values of theirs that become black and white; None: the range of each file's type.
        readers: the workers that decode where images are streamed, shared by all that is taken from the same list.
    """

    paths: NDArray[np.str_]
    size: tuple[int, int]
    resize: Resize
    workers: int
    content: str
    notes: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    depth: Depth | None = None
    scale: Scale | None = None
    readers: Readers = field(default_factory=Readers, repr=False, compare=False)

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
            return self.cut(int(rows), lambda found, size: None)
        return replace(self, paths=self.paths[rows])

    def cut(self, row: int, cut: Cut) -> NDArray[np.uint8]:
        """Return an image, [H, W, 3], of which a part is brought to size."""
        if not self.paths[row]:
            return np.full((*self.size, 3), _GREY, np.uint8)
        image = read_image(Path(self.paths[row]), self.scale)
        box = cut((image.height, image.width), self.size)
        return _resized(image, self.size, box) if box else fitted(image, self.size, self.resize)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        pixels = self.decoded()
        return pixels if dtype is None else pixels.astype(dtype, copy=False)

    def bare(self) -> "ImageFiles":
        """Return what a worker needs to decode them."""
        return replace(self, notes=(), unreadable=(), readers=_NO_READERS)

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


def cut_from(images: NDArray[np.uint8] | ImageFiles, row: int, cut: Cut) -> NDArray[np.uint8]:
    """Return one image, [H, W, C] uint8, of which a part is brought to its size: of files before they are resized."""
    if isinstance(images, ImageFiles):
        return images.cut(row, cut)
    image: NDArray[np.uint8] = images[row]
    sides = (image.shape[0], image.shape[1])
    box = cut(sides, sides)
    if box is None:
        return image
    planes = [_resized(Image.fromarray(plane), sides, box) for plane in np.moveaxis(image, 2, 0)]
    return np.stack(planes, axis=2)


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
    """What one look into a file tells.

    Attributes:
        size: upright, (W, H).
        animated: whether it has several frames.
        fourth: what happens to a fourth band: `laid on white` where it is transparency and not opaque, `left out` where
            it is something else, empty where there is none.
        depth: of pixels with more than 8 bits.
    """

    size: tuple[int, int]
    animated: bool
    fourth: str
    depth: Depth | None


def look(path: Path, content: bytes) -> Look:
    """Decode a file as training would and return what it holds.

    Raises:
        DataError: as `read_image`.
    """
    animated: list[bool] = []
    fourth: list[str] = []
    depths: list[Depth] = []

    def inspect(opened: Image.Image) -> None:
        animated.append(bool(getattr(opened, "is_animated", False)))
        beyond = opened.mode == "RGB" and getattr(opened, "tag_v2", {}).get(_SAMPLES, 3) > 3
        fourth.append("left out" if beyond else "laid on white" if _shines_through(opened) else "")

    def measure(values: NDArray[Any]) -> Scale:
        depths.append(ranges.depth_of(values, str(path)))
        return 0.0, 1.0  # the pixels themselves are not looked at

    image = _decoded(path, content, inspect, measure)
    return Look(image.size, animated[0], fourth[0], ranges.merged(depths))


def _shines_through(image: Image.Image) -> bool:
    if not image.has_transparency_data:
        return False
    return bool(np.asarray(image.convert("RGBA").getchannel("A")).min() < 255)


def read_image(path: Path, scale: Scale | None = None) -> Image.Image:
    """Return a file's image: upright, RGB, 8 bits.

    Args:
        path: of the file.
        scale: the values that become black and white where it has more than 8 bits; None: the range of its type.

    Raises:
        DataError: missing, truncated, not an image, or too large to be meant.
    """
    content = archives.read(path)
    return _decoded(path, content, lambda opened: None, lambda values: scale or ranges.type_scale(str(values.dtype)))


def _decoded(
    path: Path,
    content: bytes,
    inspect: Callable[[Image.Image], object],
    scale_of: Callable[[NDArray[Any]], Scale],
) -> Image.Image:
    """Return the image; `inspect` sees it as Pillow has it, `scale_of` values of more than 8 bits."""
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as opened:
            width, height = opened.size
            if width * height > MOST_PIXELS:
                raise DataError(_bomb(path, f"{width:,} x {height:,} pixels"))
            opened.seek(0)
            deep = _deep_values(opened, content)
            inspect(opened)
            if deep is None:
                return _rgb(ImageOps.exif_transpose(opened))
            eight = _eight_bits(deep, scale_of)
            eight.getexif()[_ORIENTATION] = opened.getexif().get(_ORIENTATION, 1)
            return _rgb(ImageOps.exif_transpose(eight))
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(_bomb(path, str(error))) from None
    except Exception as error:  # decoders meet hostile bytes here and raise whatever they stumble over
        reason = "not an image that can be decoded" if "cannot identify" in str(error) else str(error)
        raise DataError(f"{path}: is truncated or damaged ({reason}); fetch it again or remove it") from None


def _deep_values(opened: Image.Image, content: bytes) -> NDArray[Any] | None:
    """Return pixels of more than 8 bits, [H, W], or [H, W, 3 or 4] in RGB order; None where there are no such."""
    if opened.mode in ("I", "F") or opened.mode.startswith("I;16"):
        values = np.asarray(opened)
        return values.astype(values.dtype.newbyteorder("="))
    if opened.mode not in ("RGB", "RGBA") or not any(";16" in str(tile.args) for tile in getattr(opened, "tile", ())):
        return None
    opened.load()  # finds damage that OpenCV would fill in
    import cv2  # imported late: few files need it

    found = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None or found.dtype != np.uint16 or found.ndim != 3:
        return None  # nothing is lost but the lower 8 bits
    order = (2, 1, 0, 3)[: found.shape[2]]
    return np.asarray(found[..., order])


def _eight_bits(deep: NDArray[Any], scale_of: Callable[[NDArray[Any]], Scale]) -> Image.Image:
    """Return deep values as an 8-bit image; transparency keeps its own scale."""
    if deep.ndim == 2:
        return Image.fromarray(ranges.stretched(deep, scale_of(deep)))
    colours = np.ascontiguousarray(deep[..., :3])
    planes = [ranges.stretched(colours, scale_of(colours))]
    planes += [ranges.stretched(deep[..., 3:], ranges.type_scale("uint16"))] if deep.shape[2] == 4 else []
    return Image.fromarray(np.concatenate(planes, axis=2))


def _bomb(path: Path, found: str) -> str:
    return f"{path}: expected at most {MOST_PIXELS:,} pixels, found {found}: a decompression bomb; remove or shrink it"


def _rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def fitted(image: Image.Image, size: tuple[int, int], resize: Resize) -> NDArray[np.uint8]:
    """Return an RGB image as [H, W, 3] uint8.

    Args:
        image: of any size.
        size: (H, W) wanted.
        resize: `crop` keeps proportions and cuts what is over at two sides, evenly: the same as bringing the shorter
            side to size and cutting out the centre; `stretch` keeps everything and bends proportions; `letterbox`
            keeps both, and puts black bars at two sides, the wider one below or at the right.
    """
    height, width = size
    if image.size != (width, height):
        if resize == "letterbox":
            return np.array(_with_bars(image, width, height))
        box: Box = (0, 0, *image.size)
        if resize == "crop":
            scale = min(image.width / width, image.height / height)
            left, top = (image.width - width * scale) / 2, (image.height - height * scale) / 2
            box = (left, top, left + width * scale, top + height * scale)
        return _resized(image, size, box)
    return np.array(image)


def _resized(image: Image.Image, size: Sides, box: Box) -> NDArray[np.uint8]:
    return np.array(image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box))


def _with_bars(image: Image.Image, width: int, height: int) -> Image.Image:
    scale = min(width / image.width, height / image.height)
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    framed = Image.new("RGB", (width, height))
    framed.paste(image.resize(inner, Image.Resampling.BILINEAR), ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return framed
