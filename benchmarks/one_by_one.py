"""The 19 corruptions, one image at a time in NumPy, OpenCV and Pillow: the straightforward way to write them.

What `benchmarks.corruptions` compares the batched generator with. Images are [32, 32, 3] uint8 RGB, results float in
grey levels, not yet clipped. Randomness is NumPy's, so pixels differ from the toolkit's draw by draw.
"""

import io
import math
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.ndimage import zoom as scipy_zoom

Picture = np.ndarray
Random = np.random.Generator


def _blur(x: Picture, sigma: float) -> Picture:
    return gaussian_filter(x, (sigma, sigma, 0) if x.ndim == 3 else sigma, mode="nearest")


def _enlarge(x: Picture, factor: float) -> Picture:
    size = len(x)
    part = math.ceil(size / factor)
    top = (size - part) // 2
    zoomed = scipy_zoom(x[top : top + part, top : top + part], (factor, factor) + (1,) * (x.ndim - 2), order=1)
    trim = (len(zoomed) - size) // 2
    return zoomed[trim : trim + size, trim : trim + size]


def _trail(x: Picture, degrees: float, radius: int, sigma: float) -> Picture:
    weights = np.exp(-0.5 * (np.arange(2 * radius + 1) / sigma) ** 2)
    out, angle, size = np.zeros(x.shape), math.radians(degrees), len(x)
    for step, weight in enumerate(weights / weights.sum()):
        rows = np.clip(np.arange(size) + math.ceil(step * math.sin(angle) - 0.5), 0, size - 1)
        columns = np.clip(np.arange(size) + math.ceil(step * math.cos(angle) - 0.5), 0, size - 1)
        out += weight * x[rows[:, None], columns]
    return np.rint(out)


def gaussian_noise(x: Picture, random: Random, sigma: float) -> Picture:
    return x + 255 * random.normal(size=x.shape, scale=sigma)


def shot_noise(x: Picture, random: Random, photons: float) -> Picture:
    return random.poisson(x / 255 * photons) / photons * 255


def impulse_noise(x: Picture, random: Random, amount: float) -> Picture:
    u = random.random(x.shape)
    return np.where(u < amount / 2, 0, np.where(u < amount, 255, x))


def speckle_noise(x: Picture, random: Random, sigma: float) -> Picture:
    return x + x * random.normal(size=x.shape, scale=sigma)


def gaussian_blur(x: Picture, random: Random, sigma: float) -> Picture:
    return _blur(x / 255, sigma) * 255


def defocus_blur(x: Picture, random: Random, radius: float, alias_sigma: float) -> Picture:
    line = np.arange(-8, 9)
    disk = ((line[:, None] ** 2 + line**2) <= radius**2).astype(np.float64)
    kernel = cv2.GaussianBlur(disk / disk.sum(), (3, 3), sigmaX=alias_sigma)
    return cv2.filter2D(x / 255, -1, kernel) * 255


def glass_blur(x: Picture, random: Random, sigma: float, reach: int, rounds: int) -> Picture:
    x, size = np.uint8(_blur(x / 255, sigma) * 255), len(x)
    for _ in range(rounds):
        for row in range(size - reach, reach, -1):
            for column in range(size - reach, reach, -1):
                right, down = random.integers(-reach, reach, size=2)
                x[row, column] = x[row + down, column + right]
    return _blur(x / 255, sigma) * 255


def motion_blur(x: Picture, random: Random, radius: int, sigma: float) -> Picture:
    return _trail(x, random.uniform(-45, 45), radius, sigma)


def zoom_blur(x: Picture, random: Random, farthest: float) -> Picture:
    x = np.float32(x)
    factors = np.arange(1, farthest, 0.01)
    return (x + sum(_enlarge(x, factor) for factor in factors)) / (len(factors) + 1)


def snow(x: Picture, random: Random, loc: float, spread: float, zoom: float, threshold: float, radius: int,
         sigma: float, mix: float) -> Picture:  # fmt: skip
    x = np.float32(x)
    flakes = _enlarge(random.normal(size=x.shape[:2], loc=loc, scale=spread), zoom)
    flakes = np.floor(np.clip(np.where(flakes < threshold, 0, flakes), 0, 1) * 255)
    flakes = _trail(flakes, random.uniform(-135, -45), radius, sigma)[..., None]
    grey = cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)[..., None]
    return mix * x + (1 - mix) * np.maximum(x, grey * 1.5 + 127.5) + flakes + np.rot90(flakes, 2)


def frost(x: Picture, random: Random, image_share: float, frost_share: float, sheets: Picture) -> Picture:
    sheet = sheets[random.integers(len(sheets))]
    top, left = random.integers(len(sheet) - len(x), size=2)
    return image_share * x + frost_share * sheet[top : top + len(x), left : left + len(x)]


def _plasma(random: Random, side: int, decay: float) -> Picture:
    clouds, step, wobble = np.zeros((side, side)), side, 100.0

    def settled(total: Picture) -> Picture:
        return total / 4 + wobble * random.uniform(-wobble, wobble, total.shape)

    while step >= 2:
        half = step // 2
        corners = clouds[::step, ::step]
        pairs = corners + np.roll(corners, -1, 0)
        clouds[half::step, half::step] = settled(pairs + np.roll(pairs, -1, 1))
        centres = clouds[half::step, half::step]
        clouds[::step, half::step] = settled(centres + np.roll(centres, 1, 0) + corners + np.roll(corners, -1, 1))
        clouds[half::step, ::step] = settled(centres + np.roll(centres, 1, 1) + pairs)
        step, wobble = half, wobble / decay
    clouds -= clouds.min()
    return clouds / clouds.max()


def fog(x: Picture, random: Random, amount: float, decay: float) -> Picture:
    x = x / 255
    brightest = x.max()
    return (x + amount * _plasma(random, 32, decay)[..., None]) * brightest / (brightest + amount) * 255


def _hsv(x: Picture, change: Callable[[Picture], None]) -> Picture:
    hsv = cv2.cvtColor(np.float32(x) / 255, cv2.COLOR_RGB2HSV)
    change(hsv)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255


def brightness(x: Picture, random: Random, amount: float) -> Picture:
    def raise_value(hsv: Picture) -> None:
        hsv[..., 2] = np.clip(hsv[..., 2] + amount, 0, 1)

    return _hsv(x, raise_value)


def saturate(x: Picture, random: Random, factor: float, offset: float) -> Picture:
    def stretch_saturation(hsv: Picture) -> None:
        hsv[..., 1] = np.clip(hsv[..., 1] * factor + offset, 0, 1)

    return _hsv(x, stretch_saturation)


def contrast(x: Picture, random: Random, share: float) -> Picture:
    means = x.mean((0, 1), keepdims=True)
    return (x - means) * share + means


def elastic_transform(x: Picture, random: Random, alpha: float, sigma: float, shift: float) -> Picture:
    x, size = np.float32(x), len(x)
    middle, third = np.float32([size // 2, size // 2]), size // 3
    corners = np.float32([middle + third, [middle[0] + third, middle[1] - third], middle - third])
    moved = corners + random.uniform(-32 * shift, 32 * shift, size=(3, 2)).astype(np.float32)
    x = cv2.warpAffine(x, cv2.getAffineTransform(corners, moved), (size, size), borderMode=cv2.BORDER_REFLECT_101)
    bends = [gaussian_filter(random.uniform(-1, 1, size=(size, size)), 32 * sigma, mode="reflect", truncate=3)
             for _ in range(2)]  # fmt: skip
    grid = np.mgrid[:size, :size] + 32 * alpha * np.stack(bends)
    return np.stack([map_coordinates(x[..., c], grid, order=1, mode="reflect") for c in range(3)], -1)


def pixelate(x: Picture, random: Random, share: float) -> Picture:
    small = Image.fromarray(x).resize((int(32 * share),) * 2, Image.Resampling.BOX)
    return np.asarray(small.resize((32, 32), Image.Resampling.BOX))


def jpeg_compression(x: Picture, random: Random, quality: int) -> Picture:
    file = io.BytesIO()
    Image.fromarray(x).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def spatter(x: Picture, random: Random, loc: float, spread: float, sigma: float, threshold: float, intensity: float,
            mud: int) -> Picture:  # fmt: skip
    liquid = _blur(random.normal(size=x.shape[:2], loc=loc, scale=spread), sigma)
    cover = (liquid > threshold).astype(np.float64)
    if mud:
        cover = _blur(cover, intensity)
        cover = np.where(cover < 0.8, 0, cover)[..., None]
        return x * (1 - cover) + cover * np.array([63, 42, 20])
    shine = cover * liquid * _blur(cover, 1.0)
    return x + intensity * (shine / max(shine.max(), 1e-6))[..., None] * np.array([175, 238, 238])
