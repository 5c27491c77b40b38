"""Decode image files to RGB pixels of 8 bits, and resize them.

| in the file | becomes |
|---|---|
| any size | `data.image_size`, by `data.resize`: the centre cropped to that shape, stretched, or with black bars |
| EXIF rotation or mirroring | turned upright first |
| grey, black and white | three equal channels |
| palette | its colours |
| transparency (RGBA, LA, palette) | composited over white; a fourth band without alpha (TIFF's RGBX) is dropped |
| CMYK, YCbCr, LAB, HSV | converted to RGB as Pillow does, without a colour profile |
| 16 or 32 bits, floating point | 8 bits, by one scale for the whole data set (`data.range`) |
| 16 bits in each of three or four channels | likewise, read by OpenCV: Pillow would keep only the upper 8 bits |
| animation | its first frame, with a note |
| more than 64 million pixels | rejected before decoding: a decompression bomb |

For pixels of more than 8 bits, `data.range: auto` sets the scale from the whole training set, before the split:

| training pixels | range stretched to 0..255 |
|---|---|
| integers from 0 up | 0 to 2^b - 1, where b bits hold the largest: 12-bit pixels in 16-bit files 0 to 4095 |
| integers, some below 0 | the smallest to the largest |
| floats from 0 to 1 | 0 to 1 |
| floats from 0 up, the largest above 127 and at most 255 | 0 to 255 |
| other floats | the smallest to the largest |

A power of two does not depend on one pixel, keeps 0 black, and loses at most half of the grey levels. Values beyond the
scale are clipped.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, features

from comp.data import archives
from comp.runtime.errors import ConfigError, DataError

_HAS_AVIF = features.check("avif")  # Pillow can be built without it
_ENDINGS = "jpg jpeg jpe jfif png bmp gif webp tif tiff ppm pgm" + (" avif" if _HAS_AVIF else "")
SUFFIXES = tuple(f".{ending}" for ending in _ENDINGS.split())
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", *(("AVIF",) if _HAS_AVIF else ()))  # no subprocesses
MOST_PIXELS = 64_000_000
_EXIF_ORIENTATION = 0x0112
_TIFF_SAMPLES_PER_PIXEL = 277

_BODY_PERCENTILE = 99.9
_WIDE_SCALE = 4  # times what nearly all pixels need: then a note says so

Resize = Literal["crop", "stretch", "letterbox"]
Sides = tuple[int, int]  # height, width
Box = tuple[float, float, float, float]  # left, top, right, bottom
Scale = tuple[float, float]  # the values that become 0 and 255
Range = Literal["auto", "type"] | Scale  # the key data.range


@dataclass(frozen=True)
class Depth:
    """The values of pixels of more than 8 bits, in one image or many.

    Attributes:
        kind: NumPy's name of their type, several joined by ` and `.
        smallest: the smallest value.
        largest: the largest value.
        body: the largest of the images' 99.9th percentiles: unlike the largest value, a hot pixel does not move it.
        images: how many images have such pixels.
    """

    kind: str
    smallest: float
    largest: float
    body: float
    images: int = 1


@dataclass(frozen=True)
class ImageInfo:
    """Properties of one image file.

    Attributes:
        size: upright, (W, H).
        animated: whether it has several frames.
        fourth: how a fourth band is read: `laid on white` where it is transparency, `left out` where it is not, empty
            where there is none or all is opaque.
        depth: the values of pixels with more than 8 bits; None of 8 bits.
    """

    size: tuple[int, int]
    animated: bool
    fourth: str
    depth: Depth | None


def inspect_image(path: Path, content: bytes) -> ImageInfo:
    """Decode a file as training does and return its properties.

    Raises:
        DataError: as `read_image`.
    """
    animated: list[bool] = []
    fourth: list[str] = []
    depths: list[Depth] = []

    def inspect(image: Image.Image) -> None:
        animated.append(bool(getattr(image, "is_animated", False)))
        extra_band = image.mode == "RGB" and getattr(image, "tag_v2", {}).get(_TIFF_SAMPLES_PER_PIXEL, 3) > 3
        fourth.append("left out" if extra_band else "laid on white" if _is_transparent(image) else "")

    def measure(values: NDArray[Any]) -> Scale:
        depths.append(measure_depth(values, str(path)))
        return 0.0, 1.0  # the stretched pixels are not used

    image = _decode(path, content, inspect, measure)
    return ImageInfo(image.size, animated[0], fourth[0], merge_depths(depths))


def _is_transparent(image: Image.Image) -> bool:
    if not image.has_transparency_data:
        return False
    return bool(np.asarray(image.convert("RGBA").getchannel("A")).min() < 255)


def read_image(path: Path, scale: Scale | None = None) -> Image.Image:
    """Return a file's image: upright, RGB, 8 bits.

    Args:
        path: the file.
        scale: the values that become black and white where it has more than 8 bits; None: the range of its type.

    Raises:
        DataError: missing, truncated, not an image, or too large.
    """
    content = archives.read(path)
    return _decode(path, content, lambda image: None, lambda values: scale or type_scale(str(values.dtype)))


def _decode(
    path: Path,
    content: bytes,
    inspect: Callable[[Image.Image], object],
    choose_scale: Callable[[NDArray[Any]], Scale],
) -> Image.Image:
    """Return the image; `inspect` gets it as Pillow opens it, `choose_scale` the values of more than 8 bits."""
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise DataError(_bomb_message(path, f"{width:,} x {height:,} pixels"))
            image.seek(0)
            deep = _read_deep_values(image, content)
            inspect(image)
            if deep is None:
                return _to_rgb(ImageOps.exif_transpose(image))
            stretched = _to_8_bits(deep, choose_scale)
            stretched.getexif()[_EXIF_ORIENTATION] = image.getexif().get(_EXIF_ORIENTATION, 1)
            return _to_rgb(ImageOps.exif_transpose(stretched))
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(_bomb_message(path, str(error))) from None
    except Exception as error:  # on damaged bytes, decoders raise exceptions of any type
        reason = "not an image that can be decoded" if "cannot identify" in str(error) else str(error)
        raise DataError(f"{path}: is truncated or damaged ({reason}); fetch it again or remove it") from None


def _bomb_message(path: Path, size: str) -> str:
    return f"{path}: expected at most {MOST_PIXELS:,} pixels, found {size}: a decompression bomb; remove or shrink it"


def _read_deep_values(image: Image.Image, content: bytes) -> NDArray[Any] | None:
    """Return pixels of more than 8 bits, [H, W], or [H, W, 3 or 4] in RGB order; None of an 8-bit image."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        return values.astype(values.dtype.newbyteorder("="))
    if image.mode not in ("RGB", "RGBA") or not any(";16" in str(tile.args) for tile in getattr(image, "tile", ())):
        return None
    image.load()  # raises on damage that OpenCV would fill in
    import cv2  # imported late: few files need it

    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3:
        return None  # only the lower 8 bits are lost
    order = (2, 1, 0, 3)[: pixels.shape[2]]
    return np.asarray(pixels[..., order])


def _to_8_bits(deep: NDArray[Any], choose_scale: Callable[[NDArray[Any]], Scale]) -> Image.Image:
    """Return deep values as an 8-bit image; alpha keeps its own scale."""
    if deep.ndim == 2:
        return Image.fromarray(stretch_to_uint8(deep, choose_scale(deep)))
    colours = np.ascontiguousarray(deep[..., :3])
    planes = [stretch_to_uint8(colours, choose_scale(colours))]
    planes += [stretch_to_uint8(deep[..., 3:], type_scale("uint16"))] if deep.shape[2] == 4 else []
    return Image.fromarray(np.concatenate(planes, axis=2))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def resize_image(image: Image.Image, size: Sides, resize: Resize) -> NDArray[np.uint8]:
    """Return an RGB image of any size as [H, W, 3] uint8.

    Args:
        image: of any size.
        size: the output's (H, W).
        resize: `crop` keeps proportions and cuts two sides evenly, as resizing the shorter side and then cropping the
            centre does; `stretch` keeps everything and changes proportions; `letterbox` keeps both and adds black bars
            at two sides, the wider one below or at the right.
    """
    height, width = size
    if image.size == (width, height):
        return np.array(image)
    if resize == "letterbox":
        return _letterbox(image, width, height)
    box: Box = (0, 0, *image.size)
    if resize == "crop":
        scale = min(image.width / width, image.height / height)
        left, top = (image.width - width * scale) / 2, (image.height - height * scale) / 2
        box = (left, top, left + width * scale, top + height * scale)
    return resize_region(image, size, box)


def resize_region(image: Image.Image, size: Sides, box: Box) -> NDArray[np.uint8]:
    """Return a part of an image, resized to (H, W), as [H, W] or [H, W, C] uint8."""
    return np.array(image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box))


def _letterbox(image: Image.Image, width: int, height: int) -> NDArray[np.uint8]:
    scale = min(width / image.width, height / image.height)
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    framed = Image.new("RGB", (width, height))
    framed.paste(image.resize(inner, Image.Resampling.BILINEAR), ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return np.array(framed)


def measure_depth(values: NDArray[Any], where: str) -> Depth:
    """Return the type and range of one image's values, of any shape.

    Raises:
        DataError: values that are not finite; `where` names the image.
    """
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        count = int(np.count_nonzero(~np.isfinite(values)))
        raise DataError(
            f"{where}: expected finite pixels, found {count:,} that are NaN or infinite; correct those first"
        )
    index = values.size - 1 - int(values.size * (1 - _BODY_PERCENTILE / 100))
    body = np.partition(values, index, axis=None)[index]
    return Depth(str(values.dtype), float(values.min()), float(values.max()), float(body))


def merge_depths(depths: Sequence[Depth]) -> Depth | None:
    """Return the type and range of many images together; None of none."""
    if not depths:
        return None
    return Depth(
        " and ".join(dict.fromkeys(kind for depth in depths for kind in depth.kind.split(" and "))),
        min(depth.smallest for depth in depths),
        max(depth.largest for depth in depths),
        max(depth.body for depth in depths),
        sum(depth.images for depth in depths),
    )


def choose_scale(configured: Range, train: Depth) -> Scale:
    """Return the scale of a data set.

    Args:
        configured: `data.range`.
        train: type and range of the whole training set.

    Raises:
        ConfigError: images of several types have no common range.
    """
    if isinstance(configured, tuple):
        return configured
    if " and " in train.kind:
        raise ConfigError(
            f"data.range: {configured}: the images hold pixels of several types, {train.kind}; convert them to one "
            "type, or give the values that become black and white: data.range=[0, 4095]"
        )
    if configured == "type":
        return type_scale(train.kind)
    low, high = _fit_scale(train)
    return low, max(high, low + 1)


def _fit_scale(train: Depth) -> Scale:
    integers = np.dtype(train.kind).kind != "f"
    if train.smallest < 0 or (not integers and 1 < train.largest <= 127) or (not integers and train.largest > 255):
        return train.smallest, train.largest
    if integers:
        return 0.0, float(2 ** int(train.largest).bit_length() - 1)
    return 0.0, 1.0 if train.largest <= 1 else 255.0


def type_scale(kind: str) -> Scale:
    """Return the range of a type: 0 to 1 of floats; image files' 32-bit integers count as 16-bit ones."""
    dtype = np.dtype(kind)
    if dtype.kind in "fb":
        return 0.0, 1.0
    if dtype == np.int32:  # Pillow's type for 16-bit PGM and some TIFF
        return 0.0, 65535.0
    return float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)


def stretch_to_uint8(values: NDArray[Any], scale: Scale) -> NDArray[np.uint8]:
    """Return values as uint8 of the same shape: `scale` becomes 0..255, rounded; values beyond it are clipped."""
    if values.dtype == np.uint16:
        return _lookup_table(scale).take(values)
    return _compute_levels(values, scale)


@lru_cache(maxsize=8)
def _lookup_table(scale: Scale) -> NDArray[np.uint8]:
    return _compute_levels(np.arange(1 << 16), scale)


def _compute_levels(values: NDArray[Any], scale: Scale) -> NDArray[np.uint8]:
    low, high = scale
    levels = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.asarray(np.floor(levels.clip(0, 255) + 0.5), np.uint8)


def describe_scale(configured: Range, scale: Scale, depths: Sequence[tuple[str, Depth | None]]) -> list[str]:
    """Return notes on a scale: its values, whether it wastes grey levels, and which splits it clips.

    Args:
        configured: `data.range`.
        scale: from `choose_scale`.
        depths: of each split by name, the training images' first.
    """
    notes = []
    low, high = scale
    train = depths[0][1]
    if train is not None:
        spelled = configured if isinstance(configured, str) else f"[{configured[0]:g}, {configured[1]:g}]"
        notes.append(
            f"pixels: {train.kind}, from {train.smallest:g} to {train.largest:g} in {train.images:,} training images; "
            f"{low:g} to {high:g} is stretched to 0 to 255, in every split alike (data.range: {spelled})"
        )
        if _WIDE_SCALE * (train.body - low) <= high - low and train.body > low:
            notes.append(
                f"pixels: 99.9 % of every training image's values are at most {train.body:g}: "
                f"data.range=[{low:g}, {train.body:g}] keeps more of the grey levels"
            )
    for name, depth in depths:
        if depth is not None and (depth.smallest < low or depth.largest > high):
            notes.append(
                f"{name}: pixels from {depth.smallest:g} to {depth.largest:g} are clipped to {low:g} to {high:g}"
            )
    return notes
