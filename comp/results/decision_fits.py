"""What decisions are fitted by: cut points, class offsets and a temperature, from arrays alone. NumPy only.

Fits are deterministic. `comp.results.decisions` says which metric takes which, and on which rows.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_SMALLEST_STEP = 1e-12  # of the ratio that `fit_cut_points` lowers


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
