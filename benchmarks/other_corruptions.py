"""The 19 distortions of the suite, each in another implementation, as another author might have written them.

A hidden test is never made by one's own generator. Each function takes an image, uint8 [32, 32, 3] RGB, a strength
from 0 (unchanged) upwards and a random generator, and returns float grey levels, not yet clipped. `benchmarks.variants`
chooses the strengths so that the root mean square change equals that of the suite's block.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image, ImageEnhance
from scipy.ndimage import gaussian_filter

Picture = np.ndarray
Random = np.random.Generator
_HAZE = 220.0  # grey level of fog and of frost's ice


def gaussian_noise(x: Picture, strength: float, random: Random) -> Picture:
    """Normal noise that is the same in all channels."""
    return x + 255 * strength * random.normal(size=(*x.shape[:2], 1))


def shot_noise(x: Picture, strength: float, random: Random) -> Picture:
    """Poisson counts of linear light."""
    photons = 1 / max(strength, 1e-4) ** 2
    return 255 * (random.poisson((x / 255) ** 2.2 * photons) / photons) ** (1 / 2.2)


def impulse_noise(x: Picture, strength: float, random: Random) -> Picture:
    """Whole pixels of random colours."""
    hit = random.random((*x.shape[:2], 1)) < strength
    return np.where(hit, random.integers(0, 256, x.shape), x)


def speckle_noise(x: Picture, strength: float, random: Random) -> Picture:
    """Uniform factors around one."""
    return x * (1 + strength * random.uniform(-1.73, 1.73, x.shape))


def gaussian_blur(x: Picture, strength: float, random: Random) -> Picture:
    """A kernel that falls exponentially."""
    line = np.exp(-np.abs(np.arange(-12, 13)) / max(strength, 1e-3))
    return cv2.sepFilter2D(np.float32(x), -1, line / line.sum(), line / line.sum(), borderType=cv2.BORDER_REFLECT)


def defocus_blur(x: Picture, strength: float, random: Random) -> Picture:
    """A hexagonal aperture, supersampled eight times."""
    fine = np.zeros((136, 136), np.uint8)
    turn = random.uniform(0, math.pi / 3)
    angles = turn + np.arange(6) * math.pi / 3
    corners = 68 + 8 * strength * np.stack((np.cos(angles), np.sin(angles)), 1)
    cv2.fillPoly(fine, [np.int32(np.rint(corners * 16))], 255, cv2.LINE_AA, shift=4)
    kernel = cv2.resize(np.float32(fine), (17, 17), interpolation=cv2.INTER_AREA)
    kernel[8, 8] += 1e-3
    return cv2.filter2D(np.float32(x), -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT)


def glass_blur(x: Picture, strength: float, random: Random) -> Picture:
    """Neighbours that really change places, in random order: no pixel is copied or lost."""
    height, width, _ = x.shape
    swaps = int(strength * height * width)
    rows, columns = random.integers(1, height - 1, swaps), random.integers(1, width - 1, swaps)
    places, order = rows * width + columns, list(range(height * width))
    neighbours = places + random.integers(-1, 2, swaps) * width + random.integers(-1, 2, swaps)
    for place, neighbour in zip(places.tolist(), neighbours.tolist(), strict=True):
        order[place], order[neighbour] = order[neighbour], order[place]
    return np.float32(x.reshape(-1, x.shape[2])[order].reshape(x.shape))


def motion_blur(x: Picture, strength: float, random: Random) -> Picture:
    """A centred line of even weight, at any angle, supersampled eight times."""
    fine, angle = np.zeros((200, 200), np.uint8), random.uniform(0, math.pi)
    reach = 4 * strength * np.array((math.cos(angle), math.sin(angle)))
    ends = (tuple(np.int32(np.rint((100 + sign * reach) * 16)).tolist()) for sign in (-1, 1))
    cv2.line(fine, *ends, 255, 8, cv2.LINE_AA, shift=4)  # type: ignore[call-overload]
    kernel = cv2.resize(np.float32(fine), (25, 25), interpolation=cv2.INTER_AREA)
    return cv2.filter2D(np.float32(x), -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT)


def zoom_blur(x: Picture, strength: float, random: Random) -> Picture:
    """The mean of enlargements about a point that is not the centre."""
    at, total = random.uniform(12, 20, 2), np.zeros(x.shape)
    for factor in np.linspace(1, 1 + strength, 12):
        matrix = np.array([[factor, 0, at[0] * (1 - factor)], [0, factor, at[1] * (1 - factor)]])
        total += cv2.warpAffine(np.float32(x), matrix, x.shape[1::-1], borderMode=cv2.BORDER_REFLECT)
    return total / 12


def snow(x: Picture, strength: float, random: Random) -> Picture:
    """Short lines of one direction, screened over the image."""
    fine, angle = np.zeros((256, 256), np.uint8), random.uniform(-0.5, 0.5)
    for _ in range(int(200 * strength)):
        (left, top), length = random.integers(0, 256, 2), random.uniform(8, 40)
        end = (int(left + length * math.sin(angle)), int(top + length * math.cos(angle)))
        cv2.line(fine, (int(left), int(top)), end, 255, int(random.integers(4, 12)), cv2.LINE_AA)
    flakes = cv2.resize(np.float32(fine), x.shape[1::-1], interpolation=cv2.INTER_AREA)[..., None]
    return 255 - (255 - np.float32(x)) * (1 - 0.9 * flakes / 255)


def frost(x: Picture, strength: float, random: Random) -> Picture:
    """Needles that grow from the borders."""
    fine = np.zeros((256, 256), np.uint8)
    for _ in range(60):
        side, place = int(random.integers(4)), float(random.uniform(0, 255))
        start = np.array(((place, 0.0), (place, 255.0), (0.0, place), (255.0, place))[side])
        end = start + (128 + random.normal(0, 60, 2) - start) * random.uniform(0.2, 0.8)
        line = [tuple(int(value) for value in point) for point in (start, end)]
        cv2.line(fine, *line, int(random.integers(120, 256)), int(random.integers(3, 10)), cv2.LINE_AA)
    ice = cv2.resize(np.float32(fine), x.shape[1::-1], interpolation=cv2.INTER_AREA)[..., None] / 255
    cover = np.clip(strength * (0.2 + ice), 0, 0.95)
    return x * (1 - cover) + cover * np.array((_HAZE - 20, _HAZE, _HAZE + 20))


def fog(x: Picture, strength: float, random: Random) -> Picture:
    """Haze whose density changes smoothly: an image's light is replaced by grey."""
    density = gaussian_filter(random.normal(size=x.shape[:2]), 6, mode="wrap")
    through = np.exp(-strength * (1 + density / max(float(np.abs(density).max()), 1e-6)))[..., None]
    return x * through + _HAZE * (1 - through)


def brightness(x: Picture, strength: float, random: Random) -> Picture:
    """All channels times a factor, which changes saturation where they clip."""
    return np.float32(ImageEnhance.Brightness(Image.fromarray(x)).enhance(1 + strength))


def contrast(x: Picture, strength: float, random: Random) -> Picture:
    """Towards the mean grey of the whole image."""
    return np.float32(ImageEnhance.Contrast(Image.fromarray(x)).enhance(math.exp(-strength)))


def elastic_transform(x: Picture, strength: float, random: Random) -> Picture:
    """A cubic displacement of five by five control points."""
    bend = cv2.resize(random.normal(size=(5, 5, 2)), x.shape[1::-1], interpolation=cv2.INTER_CUBIC) * strength
    columns, rows = np.meshgrid(np.arange(x.shape[1]), np.arange(x.shape[0]))
    maps = np.float32(columns + bend[..., 0]), np.float32(rows + bend[..., 1])
    return cv2.remap(np.float32(x), *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def pixelate(x: Picture, strength: float, random: Random) -> Picture:
    """Shrunk without smoothing, and mixed with the image for steps between whole sizes."""
    share = min(strength, 4.0) / 4
    size = max(4, round(len(x) * (1 - 0.75 * share)))
    small = cv2.resize(x, (size, size), interpolation=cv2.INTER_AREA)
    return np.float32(cv2.resize(small, x.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT))


def jpeg_compression(x: Picture, strength: float, random: Random) -> Picture:
    """WebP, whose blocks and predictions differ from JPEG's."""
    quality = int(np.clip(100 - strength, 0, 100))
    coded = cv2.imencode(".webp", x[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, quality])[1]
    return np.float32(cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1])


def spatter(x: Picture, strength: float, random: Random) -> Picture:
    """Ellipses of dirt or of water with soft edges."""
    fine, out = np.zeros((256, 256), np.uint8), np.float32(x)
    for _ in range(int(random.integers(6, 14))):
        centre, axes = random.integers(0, 256, 2), random.uniform(6, 6 + 40 * strength, 2)
        box = (tuple(map(float, centre)), tuple(map(float, axes)), float(random.uniform(0, 180)))
        cv2.ellipse(fine, box, 255, -1, cv2.LINE_AA)
    soft = cv2.resize(np.float32(cv2.GaussianBlur(fine, (0, 0), 6)), x.shape[1::-1], interpolation=cv2.INTER_AREA)
    cover = min(1.0, 3 * strength) * soft[..., None] / 255
    colour = np.array((70.0, 55.0, 40.0)) if random.random() < 0.5 else np.array((200.0, 215.0, 225.0))
    return out * (1 - cover) + cover * colour


def saturate(x: Picture, strength: float, random: Random) -> Picture:
    """Away from the luma, or towards it."""
    factor = 1 + strength if random.random() < 0.5 else math.exp(-strength)
    return np.float32(ImageEnhance.Color(Image.fromarray(x)).enhance(factor))


FUNCTIONS: dict[str, Callable[[Picture, float, Random], Picture]] = {
    function.__name__: function
    for function in (
        gaussian_noise, shot_noise, impulse_noise, defocus_blur, glass_blur, motion_blur, zoom_blur, snow, frost, fog,
        brightness, contrast, elastic_transform, pixelate, jpeg_compression, speckle_noise, gaussian_blur, spatter,
        saturate,
    )
}  # fmt: skip
