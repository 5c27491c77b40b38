"""Recognise the suite's corruptions in images: which of the 19 x 5, or none.

Linear discriminant analysis (Fisher 1936) of hand-made statistics, fitted on our own corruptions of training images.
One image says little; a block of images adds up its images' log-likelihoods.
"""

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from comp.data.corruptions.suite import COLOURED, NAMES, SEVERITIES, corrupt
from comp.runtime.progress import Progress, quiet

CLEAN, MIXTURE, NONE = "clean", "a mixture", "none of them"
_CHUNK_VALUES = 512 * 32 * 32  # pixels of the images whose statistics are computed at once
_LARGEST = 96  # px: of larger images, the statistics are those of the centre
_IMAGES = (40, 120)  # of training, each under every corruption: at least, at most
_PIXELS = 800_000  # of them together, for which fewer images are taken if they are large
_HELD_OUT = 0.2  # of them, to count how often a block is recognised
_LARGEST_BLOCK = 25  # images whose log-likelihoods add up; more agree with each other, and would fake certainty
_LEAST_LOG = -16.0  # of a class's probability: one image must not rule out a class
# Squared distance of a block's mean from that of clean training images, in standard deviations of single images, up to
# which other content explains it. CIFAR-10: single classes are 1 to 13 away, images at 0.6 of their brightness 43, grey
# ones 125.
_CONTENT = 20.0
_EXPLAINED = 0.5  # share of the distance from clean images that a corruption must explain
_EM_STEPS = 100
_LUMA = (0.299, 0.587, 0.114)
_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_LEVELS = ((0, 64), (64, 128), (128, 192), (192, 256))  # of the neighbourhood in which noise is measured


@dataclass(frozen=True)
class Verdict:
    """What a block of images looks like.

    Attributes:
        name: a corruption, or CLEAN, MIXTURE or NONE.
        severity: of the corruption, 1 to 5; 0 for anything else.
        shares: the three likeliest of clean and all corruptions, and `name` -> share of the likelihood, largest first.
        mixture: clean and corruptions -> the estimated share of the images that they changed, from 5 % up.
        distance: squared, of the mean image from what `name` predicts, in standard deviations of single images.
        clean_distance: the same from clean training images.
        images: number of images.
    """

    name: str
    severity: int
    shares: Mapping[str, float]
    mixture: Mapping[str, float]
    distance: float
    clean_distance: float
    images: int

    @property
    def is_corruption(self) -> bool:
        """Whether it is one of the suite's corruptions."""
        return self.severity > 0

    @property
    def share(self) -> float:
        """Share of the likelihood of `name`; 0 for a mixture and for none of them."""
        return self.shares.get(self.name, 0.0)


class Recogniser:
    """A classifier of corruptions, fitted on clean images.

    Attributes:
        names: clean, and the corruptions that images of this kind can have.
        held_out: how many blocks of other clean images, each under one corruption, it was tried on.
        right: how many of them got their corruption's name.
    """

    def __init__(self, images: NDArray[np.uint8], *, seed: int, progress: Progress = quiet) -> None:
        """Corrupt the images and fit.

        Args:
            images: clean, [N, H, W, C]: the first ones are taken, at most 120.
            seed: of the corruptions; the suite that is judged should have another.
            progress: called after every corruption.
        """
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

        least, most = _IMAGES
        pixels = images[: max(least, min(most, _PIXELS // (images.shape[1] * images.shape[2])))]
        self._classes = [(CLEAN, 0), *((name, level) for name in _possible(images.shape[3]) for level in SEVERITIES)]
        self.names = tuple(dict.fromkeys(name for name, _ in self._classes))
        rows = np.stack(list(self._statistics_of_classes(pixels, seed, progress)))  # [K, n, F]
        kept = max(1, round(len(pixels) * (1 - _HELD_OUT)))
        fitted = rows[:, :kept].reshape(-1, rows.shape[2])
        self._mean, self._std = fitted.mean(0), fitted.std(0) + 1e-6
        values = (fitted - self._mean) / self._std
        labels = np.repeat(np.arange(len(rows)), kept)
        self._fitted = LinearDiscriminantAnalysis().fit(values, labels)
        inside = values - self._fitted.means_[labels]
        self._precision = np.linalg.inv(inside.T @ inside / len(inside) + 1e-3 * np.eye(values.shape[1]))
        self._fitted_count = kept
        held = [self._pooled(self._log_probabilities(block)) for block in rows[:, kept:]] if kept < len(pixels) else []
        self.held_out = len(held)
        self.right = sum(self._classes[int(block.argmax())][0] == self._classes[k][0] for k, block in enumerate(held))

    def _statistics_of_classes(
        self, pixels: NDArray[np.uint8], seed: int, progress: Progress
    ) -> Iterator[NDArray[np.float32]]:
        """Yield statistics of the same images under every class: what differs is the corruption alone."""
        batch, indices = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2), torch.arange(len(pixels))
        for done, (name, severity) in enumerate(self._classes, 1):
            changed = corrupt(batch, name, severity, seed=seed, indices=indices) if severity else batch
            yield statistics(changed.permute(0, 2, 3, 1).numpy())
            progress("learning corruptions", done, len(self._classes), "corruptions")

    def _log_probabilities(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        logs: NDArray[np.float64] = self._fitted.predict_log_proba((values - self._mean) / self._std)
        return np.maximum(logs, _LEAST_LOG)

    def _pooled(self, logs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return each class's share of the likelihood of a block, [K], from [N, K]."""
        shares: NDArray[np.float64] = np.exp(_shifted(logs.mean(0) * min(len(logs), _LARGEST_BLOCK)))
        shares /= shares.sum()
        return shares

    def _by_name(self, shares: NDArray[np.float64]) -> dict[str, float]:
        """Return shares of classes [K] summed over severities, the largest first."""
        sums: dict[str, float] = {}
        for (name, _), share in zip(self._classes, shares.tolist(), strict=True):
            sums[name] = sums.get(name, 0.0) + share
        return dict(sorted(sums.items(), key=lambda item: -item[1]))

    def judge(self, images: NDArray[np.uint8]) -> Verdict:
        """Return what a block of images [N, H, W, C] looks like, N at least 1.

        The likeliest corruption counts if the distance from clean images is no chance (two standard deviations), and
        it explains at least half of that. Else images near the clean ones are clean: other content alone moves them so
        far. What is far from either may be a mixture, if that explains half of the rest.
        """
        values = statistics(images)
        logs = self._log_probabilities(values)
        pooled, mixture = self._pooled(logs), _mixture(logs)
        middle = (values.mean(0) - self._mean) / self._std
        best = int(pooled.argmax())
        clean, nearest = self._distance(middle, 0, len(images)), self._distance(middle, best, len(images))
        mixed = self._distance(middle, mixture, len(images))
        (name, severity), distance = self._classes[best], nearest
        chance = 2 * math.sqrt(2 * len(middle)) * self._variance(len(images))
        if best == 0 or clean <= chance or nearest > (1 - _EXPLAINED) * clean:
            name, severity, distance = (CLEAN if clean <= _CONTENT else NONE), 0, min(clean, nearest)
        if distance > _CONTENT and mixed <= (1 - _EXPLAINED) * distance:
            name, severity, distance = MIXTURE, 0, mixed
        # The rate of errors on held-out blocks bounds every share: a likelihood alone would soon say 1.
        errors = (self.held_out - self.right + 1) / (self.held_out + 2)
        shares = self._by_name((1 - errors) * pooled + errors / len(pooled))
        listed = {part: share for rank, (part, share) in enumerate(shares.items()) if rank < 3 or part == name}
        parts = {part: share for part, share in self._by_name(mixture).items() if share >= 0.05}
        return Verdict(name, severity, listed, parts, distance, clean, len(images))

    def _distance(self, middle: NDArray[np.float64], classes: "int | NDArray[np.float64]", count: int) -> float:
        """Return the squared distance of a mean of `count` images from a class, or from classes in these shares [K].

        The share of it that chance alone would give is taken off.
        """
        means = self._fitted.means_
        offset = middle - (means[classes] if isinstance(classes, int) else classes @ means)
        chance = len(middle) * self._variance(count)
        return max(0.0, float(offset @ self._precision @ offset) - chance)

    def _variance(self, count: int) -> float:
        """Return the variance of the mean of `count` images less a class's mean, per statistic."""
        return 1 / count + 1 / self._fitted_count


def _possible(channels: int) -> list[str]:
    """Return the corruptions that exist, and change something, for a number of channels."""
    if channels == 3:
        return list(NAMES)
    left_out = ("saturate",) if channels == 1 else COLOURED
    return [name for name in NAMES if name not in left_out]


def _shifted(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return logarithms less the largest of each row: its exponential cannot overflow."""
    shifted: NDArray[np.float64] = logs - logs.max(-1, keepdims=True)
    return shifted


def _mixture(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the shares of classes [K] in images with log-probabilities [N, K] under equal shares.

    Expectation maximisation of the priors (Saerens, Latinne and Decaestecker 2002).
    """
    likelihoods = np.exp(_shifted(logs))
    shares = np.full(logs.shape[1], 1 / logs.shape[1])
    for _ in range(_EM_STEPS):
        weighted = likelihoods * shares
        shares = (weighted / weighted.sum(1, keepdims=True)).mean(0)
    return shares


def luma_of(pixels: Tensor) -> Tensor:
    """Return grey levels [N, H, W] of float images [N, C, H, W]: luma of RGB, else the mean of the channels."""
    return torch.einsum("nchw,c->nhw", pixels, torch.tensor(_LUMA)) if pixels.shape[1] == 3 else pixels.mean(1)


def statistics(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return statistics [N, F] of images [N, H, W, C] with sides of at least 8 pixels.

    Of grey levels, colours, differences of neighbours, noise by grey level, 8 x 8 cosine spectra and borders of blocks.
    F depends on C: other than 3 channels have no colour.
    """
    top, left = (max(0, side - _LARGEST) // 2 for side in images.shape[1:3])
    centre = images[:, top : top + _LARGEST, left : left + _LARGEST]
    step = max(1, _CHUNK_VALUES // (centre.shape[1] * centre.shape[2]))
    parts = [_statistics(torch.from_numpy(np.array(centre[at : at + step]))) for at in range(0, len(images), step)]
    return np.concatenate(parts)


def _statistics(images: Tensor) -> NDArray[np.float32]:
    pixels = images.permute(0, 3, 1, 2).float()  # [N, C, H, W]
    colour = pixels.shape[1] == 3
    luma = luma_of(pixels)
    columns = [*_levels(pixels, luma), *_differences(luma), *_noise(luma), *_spectrum(luma, 15), *_borders(luma)]
    if colour:
        columns += _colours(pixels)
        for chroma in (pixels[:, 0] - luma, pixels[:, 2] - luma):
            columns += [*_spectrum(chroma, 5), *_noise(chroma)[:4]]
    return torch.stack(columns, 1).nan_to_num_().numpy()


def _log(values: Tensor) -> Tensor:
    return torch.log(values + 0.1)


def _quantiles(values: Tensor, at: tuple[float, ...]) -> Tensor:
    """Return quantiles [Q, N] of values [N, M], without interpolation: one sort serves all."""
    # NumPy sorts rows several times as fast as torch on a CPU.
    ordered = np.sort(values.numpy(), axis=1)[:, [round(share * (values.shape[1] - 1)) for share in at]]
    return torch.from_numpy(ordered.T.copy())


def _mean(values: Tensor) -> Tensor:
    return values.flatten(1).float().mean(1)


def _levels(pixels: Tensor, luma: Tensor) -> list[Tensor]:
    """Grey levels: quantiles, spread, shares of black and white, how many levels occur."""
    flat = luma.flatten(1)
    quantiles = _quantiles(flat, _QUANTILES)
    histogram = torch.zeros(len(flat), 256).scatter_add_(1, flat.round().long(), torch.ones_like(flat))
    share = histogram / flat.shape[1]
    darkest, brightest = pixels.amin(1), pixels.amax(1)
    return [
        *quantiles,
        flat.mean(1),
        _log(flat.std(1)),
        _log(quantiles[5] - quantiles[1]),
        _mean(pixels <= 0),
        _mean(pixels >= 255),
        _mean(darkest),
        darkest.flatten(1).amin(1),
        brightest.flatten(1).amax(1),
        _mean(brightest),
        (histogram > 0).float().mean(1),
        -(share * torch.log(share + 1e-9)).sum(1),
    ]


def _differences(luma: Tensor) -> list[Tensor]:
    """Differences of neighbours: their size by direction and distance, how many are 0, tails."""
    across, down = luma.diff(dim=2).abs(), luma.diff(dim=1).abs()
    diagonals = (luma[:, 1:, 1:] - luma[:, :-1, :-1]).abs(), (luma[:, 1:, :-1] - luma[:, :-1, 1:]).abs()
    far = (luma[:, :, 2:] - luma[:, :, :-2]).abs(), (luma[:, 2:] - luma[:, :-2]).abs()
    further = (luma[:, :, 4:] - luma[:, :, :-4]).abs(), (luma[:, 4:] - luma[:, :-4]).abs()
    near = [_log(_mean(part)) for part in (across, down, *diagonals)]
    stacked = torch.stack(near, 1)
    height, width = luma.shape[1:]
    middle = across[:, height // 4 : -(height // 4), width // 4 : -(width // 4)]
    return [
        *near,
        stacked.amax(1) - stacked.amin(1),
        *[_log(_mean(part)) - near[index] for index, part in enumerate(far)],
        *[_log(_mean(part)) - near[index] for index, part in enumerate(further)],
        _mean(across < 0.75),
        _mean(down < 0.75),
        _mean(across > 40),
        _mean(across > 90),
        _log(_mean(middle)) - near[0],
        _mean(luma[:, height // 4 : -(height // 4), width // 4 : -(width // 4)]) - _mean(luma),
    ]


def _noise(plane: Tensor) -> list[Tensor]:
    """What the mean of four neighbours leaves: size, tails, sign, and size by the neighbours' grey level."""
    around = (plane[:, :-2, 1:-1] + plane[:, 2:, 1:-1] + plane[:, 1:-1, :-2] + plane[:, 1:-1, 2:]) / 4
    left = plane[:, 1:-1, 1:-1] - around
    size = left.abs()
    root = left.flatten(1).pow(2).mean(1).sqrt()
    overall = _mean(size)
    quantiles = _quantiles(size.flatten(1), (0.25, 0.5, 0.95))
    columns = [_log(overall), *[_log(part) for part in quantiles], _log(root), _mean(size > 40), _mean(size > 90)]
    columns.append(left.flatten(1).pow(3).mean(1) / (root + 0.1) ** 3)
    columns.append(torch.log(left.flatten(1).pow(4).mean(1) / (root + 0.1) ** 4 + 0.1))
    # Curvature separates noise from edges, which stand out in neither diagonal.
    cross = plane[:, 1:, 1:] - plane[:, :-1, 1:] - plane[:, 1:, :-1] + plane[:, :-1, :-1]
    columns += [_log(_quantiles(cross.flatten(1).abs(), (0.5,))[0]), _log(_mean(cross.abs()))]
    for low, high in _LEVELS:
        inside = ((around >= low) & (around < high)).float()
        count = inside.flatten(1).sum(1)
        columns.append(_log(((size * inside).flatten(1).sum(1) + overall * 4) / (count + 4)) - _log(overall))
    return columns


def _spectrum(plane: Tensor, groups: int) -> list[Tensor]:
    """8 x 8 cosine transform, by diagonal: mean size and how many coefficients are near 0, as JPEG leaves them."""
    height, width = (side // 8 * 8 for side in plane.shape[1:])
    blocks = plane[:, :height, :width].reshape(len(plane), height // 8, 8, width // 8, 8)
    basis = _cosines()
    found = torch.einsum("nabcd,ub,vd->nuvac", blocks, basis, basis).flatten(3).abs()  # [N, 8, 8, blocks]
    sizes, zeros = torch.log(found + 0.5).mean(3), (found < 0.75).float().mean(3)
    diagonal = (torch.arange(8)[:, None] + torch.arange(8)) * (groups - 1) // 14
    members = F.one_hot(diagonal, groups).float()
    members[0, 0] = 0
    weights = members / members.sum((0, 1)).clamp(min=1)
    return [*torch.einsum("nuv,uvg->gn", sizes, weights), *torch.einsum("nuv,uvg->gn", zeros, weights)[groups // 4 :]]


@functools.cache
def _cosines() -> Tensor:
    """[8, 8]: the orthonormal cosine basis."""
    angles = math.pi / 8 * (torch.arange(8) + 0.5) * torch.arange(8)[:, None]
    basis = torch.cos(angles) / 2
    basis[0] /= math.sqrt(2)
    return basis


def _borders(luma: Tensor) -> list[Tensor]:
    """Differences across borders of 8 x 8 blocks, relative to all others."""
    columns = []
    for dim in (1, 2):
        steps = luma.diff(dim=dim).abs().mean(3 - dim)  # [N, side - 1]
        at_border = torch.arange(steps.shape[1]) % 8 == 7
        if at_border.any():
            columns.append(_log(steps[:, at_border].mean(1)) - _log(steps[:, ~at_border].mean(1)))
    return columns


def _colours(pixels: Tensor) -> list[Tensor]:
    """Colours: means and spreads of channels, saturation, and whether their noise agrees."""
    high, low = pixels.amax(1), pixels.amin(1)
    saturation = ((high - low) / high.clamp(min=1)).flatten(1)
    quantiles = _quantiles(saturation, (0.05, 0.5, 0.95))
    means = pixels.flatten(2).mean(2)
    steps = pixels.diff(dim=3).flatten(2)  # [N, C, H * (W - 1)]
    root = steps.pow(2).mean(2).sqrt() + 0.1
    agreement = [(steps[:, a] * steps[:, b]).mean(1) / (root[:, a] * root[:, b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    return [
        *(means - means.mean(1, keepdim=True)).T,
        *_log(pixels.flatten(2).std(2)).T,
        saturation.mean(1),
        saturation.std(1),
        *quantiles,
        _mean(high - low < 1.5),
        *agreement,
        *_log(root).T,
    ]
