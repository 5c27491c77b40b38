"""Fits of decisions: cut points, class offsets, thresholds, a temperature, and the shift to declared shares, of arrays.

Fits are deterministic. `comp.results.decisions` says which metric takes which fit, and on which rows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.runtime.errors import ConfigError

_SMALLEST_STEP = 1e-12  # of a ratio or score, so that rounding is no progress
_STRENGTHS = np.linspace(0, 1.5, 16)  # of the classes' log frequencies; 1 undoes them
_LARGEST_OFFSET = 10.0  # nats
_SWEEPS, _SMALLEST_GAIN = 10, 1e-4  # of a sweep over all classes, relative to the score
_LEAST_TARGETS = 5  # of a class with an offset of its own
MAX_ROWS = 10_000  # to fit on
_MAX_CELLS = 100_000_000  # rows x classes x classes: about a second for a sweep
_SMALLEST_SHARE = 1e-6  # keeps the logarithm of a share of 0 finite
_SCALES = (0.05, 20.0)  # bounds of a temperature and of its inverse


def fit_cut_points(
    values: NDArray[np.floating[Any]],
    targets: NDArray[np.integer[Any]],
    levels: int,
    positions: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Return the cut points [levels - 1], ascending, that give these rows the best quadratic weighted kappa.

    A row's level is the number of cut points that its value reaches; see `cut`. The result is the global optimum:
    observed and expected disagreement are both sums over rows, so their ratio is minimised by a few steps of
    Dinkelbach's method (1967), each a dynamic program over the sorted values in O(rows x levels).

    Args:
        values: [N] finite numbers, such as the expected level; N is at least 1.
        targets: [N] levels from 0 to levels - 1.
        levels: number of levels, at least 2; some may not occur.
        positions: [levels] ascending, where kappa places the levels; None: 0, 1 ...
    """
    assert len(values) == len(targets) > 0
    places = np.arange(levels, dtype=np.float64) if positions is None else positions
    distinct, index = np.unique(np.asarray(values, np.float64), return_inverse=True)
    truth = places[targets]
    centre, spread = truth.mean(), truth.var()
    truth, places = truth - centre, (places - centre)[:, None]
    rows, total = np.bincount(index), np.bincount(index, weights=truth)
    # Disagreement [levels, distinct values] if all rows of a value had that level.
    observed = np.bincount(index, weights=truth**2) - 2 * places * total + places**2 * rows
    expected = (spread + places**2) * rows
    numbers = np.arange(len(distinct))
    ratio, best = 1.0 if spread else 0.0, None  # 1: what one level for all rows gives
    while True:
        starts = _cheapest_starts(observed - ratio * expected)
        level = np.searchsorted(starts, numbers, side="right")
        by_chance = float(expected[level, numbers].sum())
        lower = float(observed[level, numbers].sum()) / by_chance if by_chance else ratio
        if best is None or lower < ratio - _SMALLEST_STEP:
            best = starts
        if lower >= ratio - _SMALLEST_STEP:
            break
        ratio = lower
    # Halfway between two values; beyond the last one for a level that no row has.
    edges = np.append(distinct, np.nextafter(distinct[-1], np.inf))
    below, above = edges[np.maximum(best - 1, 0)], edges[best]
    middle = below + (above - below) / 2
    cut_points: NDArray[np.float64] = np.where((best == len(distinct)) | (middle <= below), above, middle)
    return cut_points


def _cheapest_starts(costs: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return where each level but the first starts [levels - 1], so that the sum of the costs is the lowest.

    `costs` [levels, values] are those of giving a value a level; levels must not fall with the values.
    """
    levels, count = costs.shape
    sums = np.concatenate([np.zeros((levels, 1)), np.cumsum(costs, axis=1)], axis=1)
    numbers = np.arange(count + 1)
    best, starts = sums[0], np.zeros((levels, count + 1), np.int64)
    for level in range(1, levels):
        entered = best - sums[level]  # cost of starting this level at each value, but for a common part
        lowest = np.minimum.accumulate(entered)
        falls = entered < np.concatenate([[np.inf], lowest[:-1]])
        starts[level] = np.maximum.accumulate(np.where(falls, numbers, 0))
        best = sums[level] + lowest
    path, end = np.zeros(levels - 1, np.int64), count
    for level in range(levels - 1, 0, -1):
        end = path[level - 1] = starts[level, end]
    return path


def cut(values: NDArray[np.floating[Any]], cut_points: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return each value's level [N]: the number of cut points that it reaches."""
    return np.searchsorted(cut_points, values, side="right").astype(np.int64)


Term = Callable[[Any, Any, Any], Any]  # a class's correct rows, targets and decisions -> its part of the score

# Metrics that are sums over classes -> a class's part, but for a common factor.
TERMS: dict[str, Term] = {
    "balanced_accuracy": lambda correct, targets, decided: correct / np.maximum(targets, 1),
    "macro_f1": lambda correct, targets, decided: 2 * correct / np.maximum(targets + decided, 1),
    "weighted_f1": lambda correct, targets, decided: 2 * correct * targets / np.maximum(targets + decided, 1),
}


def fit_offsets(outputs: NDArray[np.float64], targets: NDArray[np.int64], metric: str) -> NDArray[np.float64]:
    """Return what to add to each class's output [K] before the largest one decides, for the best expected score.

    Scores of rare classes are noisy, so offsets that maximise them on these rows are worse on others. Hence rows count
    for a class by its calibrated probability, not by their target (a plug-in rule; Narasimhan et al. 2014, "On the
    statistical consistency of plug-in classifiers for non-decomposable performance measures"). The start is the best
    multiple of the negative log frequencies (logit adjustment, Menon et al. 2020, arXiv:2007.07314), coordinate ascent
    follows. Classes with fewer than five expected targets, and all if there are very many, keep their start.

    Args:
        outputs: [N, K] before the softmax; of very many rows an even sample is used.
        targets: [N] class indices.
        metric: a row of TERMS.
    """
    sample = np.linspace(0, len(outputs) - 1, min(len(outputs), MAX_ROWS)).astype(np.int64)
    outputs, targets = outputs[sample], targets[sample]
    scale, calibrated = _calibrate(outputs, targets)
    odds = np.exp(calibrated - calibrated.max(1, keepdims=True))
    weights = odds / odds.sum(1, keepdims=True)
    term, support = TERMS[metric], weights.sum(0)

    def score(offsets: NDArray[np.float64]) -> float:
        decided = (calibrated + offsets).argmax(1)
        correct = np.bincount(decided, weights[np.arange(len(decided)), decided], minlength=len(support))
        return float(term(correct, support, np.bincount(decided, minlength=len(support))).sum())

    rarity = -np.log(np.maximum(support, 1) / len(targets))
    offsets: NDArray[np.float64] = max((strength * rarity for strength in _STRENGTHS), key=score)
    reached = score(offsets)
    sweeps = _SWEEPS if weights.size * len(support) <= _MAX_CELLS else 0
    for _ in range(sweeps):
        before = reached
        for label in np.flatnonzero(support >= _LEAST_TARGETS):
            offsets[label] = _best_offset(calibrated, weights, offsets, int(label), term)
        reached = score(offsets)
        if reached - before <= _SMALLEST_GAIN * reached:
            break
    # From the calibrated outputs' scale back to that of the given ones.
    offsets = (offsets + (calibrated[0] - scale * outputs[0])) / scale
    centred: NDArray[np.float64] = offsets - offsets.mean()
    return centred


def _calibrate(outputs: NDArray[np.float64], targets: NDArray[np.int64]) -> tuple[float, NDArray[np.float64]]:
    """Return an inverse temperature, and the outputs [N, K] times it plus a multiple of the log class frequencies.

    Both have the lowest log loss. The frequencies matter if the training has seen others, as with balanced sampling.
    """
    from scipy.optimize import minimize  # type: ignore[import-untyped]  # half a second to import

    rows = np.arange(len(targets))
    frequencies = np.log(np.maximum(np.bincount(targets, minlength=outputs.shape[1]), 1) / len(targets))

    def loss_and_slopes(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        scaled = parameters[0] * outputs + parameters[1] * frequencies
        scaled -= scaled.max(1, keepdims=True)
        odds = np.exp(scaled)
        probabilities = odds / odds.sum(1, keepdims=True)
        loss = np.log(odds.sum(1)) - scaled[rows, targets]
        by_scale = (probabilities * outputs).sum(1) - outputs[rows, targets]
        by_strength = probabilities @ frequencies - frequencies[targets]
        return float(loss.mean()), np.array([by_scale.mean(), by_strength.mean()])

    fitted = minimize(loss_and_slopes, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=(_SCALES, (-3, 3)))
    scale, strength = fitted.x.tolist()
    return scale, scale * outputs + strength * frequencies


def _best_offset(
    outputs: NDArray[np.float64], weights: NDArray[np.float64], offsets: NDArray[np.float64], label: int, term: Term
) -> float:
    """Return the best offset of one class, given the others'; the present one if none is better.

    `weights` [N, K] say how much of a row belongs to each class.
    """
    rows, classes = outputs.shape
    support, rivals = weights.sum(0), outputs + offsets
    rivals[:, label] = -np.inf
    rival = rivals.argmax(1)
    margin = rivals[np.arange(rows), rival] - outputs[:, label]  # the offset above which the row goes to the class
    order = np.argsort(margin, kind="stable")
    margin, rival = margin[order], rival[order]
    lost, won = weights[order, rival], weights[order, label]
    correct, decided = np.bincount(rival, lost, minlength=classes), np.bincount(rival, minlength=classes)
    # Row by row, in this order, a rival loses a decision.
    grouped = np.argsort(rival, kind="stable")
    of, lost = rival[grouped], lost[grouped]
    first = np.cumsum(decided) - decided
    sums = np.concatenate([[0.0], np.cumsum(lost)])
    decided_left = decided[of] - (np.arange(rows) - first[of])
    correct_left = correct[of] - (sums[:-1] - sums[first[of]])
    change = np.empty(rows)
    change[grouped] = term(correct_left - lost, support[of], decided_left - 1) - term(
        correct_left, support[of], decided_left
    )
    own = term(np.concatenate([[0.0], np.cumsum(won)]), support[label], np.arange(rows + 1))
    scores = own + np.concatenate([[0.0], np.cumsum(change)])  # [rows + 1]: if the first 0, 1 ... rows go to the class
    edges = np.concatenate([[margin[0] - 0.2], margin, [margin[-1] + 0.2]])
    middles = (edges[:-1] + edges[1:]) / 2
    allowed = (edges[:-1] < edges[1:]) & (np.abs(middles) <= _LARGEST_OFFSET)
    present = scores[np.searchsorted(margin, offsets[label])]
    if not allowed.any() or scores[allowed].max() <= present + _SMALLEST_STEP * rows:
        return float(offsets[label])
    best: NDArray[np.float64] = middles[allowed & (scores >= scores[allowed].max() - _SMALLEST_STEP)]
    return float(best[np.abs(best - offsets[label]).argmin()])


def fit_temperature(losses: Callable[[float], float]) -> float:
    """Return the temperature with the lowest loss, from 0.05 to 20 (Guo et al. 2017, arXiv:1706.04599).

    `losses` gives the mean log loss of outputs that are divided by a temperature; it has one minimum.
    """
    from scipy.optimize import minimize_scalar

    low, high = np.log(_SCALES)
    fitted = minimize_scalar(lambda logarithm: losses(float(np.exp(logarithm))), bounds=(low, high), method="bounded")
    return float(np.exp(fitted.x))


def fit_f1_threshold(probabilities: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    """Return the midpoint between sorted probabilities [N] with the best F1; 0.5 if the class never occurs."""
    if not truth.any():
        return 0.5
    distinct, index = np.unique(probabilities, return_inverse=True)  # ascending
    decided = np.cumsum(np.bincount(index)[::-1])[::-1]  # rows at or above each distinct probability
    both = np.cumsum(np.bincount(index, weights=truth)[::-1])[::-1]
    scores = 2 * both / (decided + truth.sum())
    midpoints = (distinct + np.concatenate(([0.0], distinct[:-1]))) / 2
    return float(nearest_half(midpoints, scores))


def nearest_half(candidates: NDArray[np.floating], scores: NDArray[np.float64]) -> np.floating:
    """Return the candidate with the best score; of equal ones, the nearest to 0.5."""
    best = candidates[scores == scores.max()]
    nearest: np.floating = best[np.abs(best - 0.5).argmin()]
    return nearest


@dataclass(frozen=True)
class DeclaredShares:
    """The test's share of each class, as the competition declares it.

    Attributes:
        shares: [K] of the test, with a sum of 1.
        shift: [K] what to add to a class's output (Saerens et al. 2002, "Adjusting the outputs of a classifier to new
            a priori probabilities"): the logarithm of its share of the test over its share of the training.
    """

    shares: NDArray[np.float64]
    shift: NDArray[np.float64]

    def sample(self, targets: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return about as many rows as there are targets, each class as often as in the test; some rows repeat."""
        rows = []
        for label, share in enumerate(self.shares):
            of_class = np.flatnonzero(targets == label)
            count = round(share * len(targets)) if len(of_class) else 0
            rows.append(of_class[np.arange(count) * len(of_class) // max(count, 1)])
        return np.concatenate(rows)


def declared_shares(
    shares: Mapping[str, float], classes: Sequence[str], counts: Sequence[int], *, key: str = "competition.test_shares"
) -> DeclaredShares | None:
    """Return the declared shares in the classes' order, given each class's training images; None without any.

    `key` is where they come from, for the message.

    Raises:
        ConfigError: a class is missing or unknown.
    """
    if not shares:
        return None
    missing = [name for name in classes if name not in shares]
    extra = [name for name in shares if name not in classes]
    if missing or extra:
        problem = f"no share of {missing[0]}" if missing else f"a share of {extra[0]}, which is no class"
        raise ConfigError(
            f"{key}: expected a share of each of {len(classes)} classes ({', '.join(classes[:5])}"
            f"{' ...' if len(classes) > 5 else ''}), found {problem}"
        )
    declared = np.maximum([shares[name] for name in classes], _SMALLEST_SHARE)
    declared = declared / declared.sum()
    trained = np.maximum(counts, 1) / np.maximum(counts, 1).sum()
    return DeclaredShares(declared, np.log(declared / trained))
