"""How members' probabilities become one's: plain averages, and what is learnt from validation.

A method is fitted on members' log-probabilities [M, N, C] and labels, and then combines any rows. What is learnt is
deterministic; draws are seeded by a constant.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar  # type: ignore[import-untyped]

from comp.ensembling.members import Stack
from comp.errors import ConfigError, unknown

Shares = NDArray[np.float32]  # [N, C]
Labels = NDArray[np.int64]
Score = Callable[[Shares, Labels], float]  # of probabilities; more is better

_EM_ROUNDS, _EM_GAP = 5000, 1e-6  # nats that the best weights could still gain
_BAGS, _STEPS, _PATIENCE, _BAG_ROWS = 20, 30, 3, 20_000
_LARGE_LIBRARY = 10  # members from which on a bag sees a random half of them
_TIE = 1e-3  # of a mean log-likelihood, beside the score that is climbed
_PENALTIES = (1.0, 0.1, 0.01, 1e-3, 1e-4)  # from strong to weak; each starts where the one before ended
_PENALTY_ROWS, _ROUNDS = 10_000, 60
_LEAST = -10.0  # of the stack's inputs: beyond it one wrong certainty would outweigh all else


@dataclass(frozen=True)
class Fitted:
    """A method that knows how.

    Attributes:
        combine: members' log-probabilities [M, N, C] -> logits [N, C].
        weights: [M] shares of the members, where there are such; else empty.
    """

    combine: Callable[[Stack], Shares]
    weights: tuple[float, ...] = ()


def _no_score(shares: Shares, labels: Labels) -> float:
    raise AssertionError("what learns needs a score")


@dataclass(frozen=True)
class Task:
    """What a method is fitted on.

    Attributes:
        stack: [M, N, C] the members' log-probabilities.
        labels: [N]; None for what learns nothing.
        images: [N] which image a row shows; None: each its own.
        score: what is climbed.
    """

    stack: Stack
    labels: Labels | None = None
    images: NDArray[np.str_] | None = None
    score: Score = _no_score

    def known_labels(self) -> Labels:
        """Return the labels; asking what learns to do without is our fault."""
        assert self.labels is not None
        return self.labels

    def drawn(self, generator: np.random.Generator) -> NDArray[np.int64]:
        """Return the rows of as many images as there are, drawn with replacement, up to about 20,000 rows."""
        place = self._place()
        count = int(place.max()) + 1
        wanted = max(1, min(count, count * _BAG_ROWS // len(place)))
        times = np.bincount(generator.integers(0, count, wanted), minlength=count)
        return np.repeat(np.arange(len(place)), times[place])

    def _place(self) -> NDArray[np.int64]:
        """Return a number for each row [N] that rows of one image share."""
        if self.images is None:
            return np.arange(self.stack.shape[1])
        return np.unique(self.images, return_inverse=True)[1]

    def parted(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return up to 10,000 rows of four fifths of the images, and up to as many of the others."""
        place = self._place()
        shuffled = np.random.default_rng(0).permutation(len(place))
        held = np.random.default_rng(1).permutation(int(place.max()) + 1)[place[shuffled]] % 5 == 0
        if held.all():  # one image
            held[1:] = False
        return shuffled[~held][:_PENALTY_ROWS], shuffled[held][:_PENALTY_ROWS]


def mean(task: Task) -> Fitted:
    """The mean of the members' probabilities."""
    return _weighting(np.full(len(task.stack), 1 / len(task.stack)))


def geometric(task: Task) -> Fitted:
    """The geometric mean of the members' probabilities: the mean of their logarithms."""
    return Fitted(lambda rows: rows.mean(0), _equal(task.stack))


def rank(task: Task) -> Fitted:
    """The mean place of each class in the members' orders (Borda counts); equal ones are told by mean probability.

    It asks nothing of how sure members are, and says nothing of how sure the ensemble is: its loss means little.
    """

    def combine(rows: Stack) -> Shares:
        places = rows.argsort(2, kind="stable").argsort(2, kind="stable").astype(np.float32)  # the likeliest is C - 1
        # Two mean places differ by 1 / M at least; a probability is at most 1.
        return places.mean(0) + np.exp(rows).mean(0) / (2 * len(rows))  # type: ignore[no-any-return]

    return Fitted(combine, _equal(task.stack))


def weighted(task: Task) -> Fitted:
    """The convex mean of probabilities with the least log loss.

    The loss is convex in the weights and they are found by expectation maximisation (Cover 1984, "An algorithm for
    maximizing expected log investment return"), which ends when its own bound says that at most 1e-6 nats are left.
    """
    stack, labels = task.stack, task.known_labels()
    right = np.exp(stack[:, np.arange(len(labels)), labels]).astype(np.float64)  # [M, N]
    weights = np.full(len(stack), 1 / len(stack))
    for _ in range(_EM_ROUNDS):
        gains = (right / (weights @ right)).mean(1)  # [M]; their weighted mean is 1
        if gains.max() - 1 < _EM_GAP:
            break
        weights = weights * gains
    return _weighting(weights / weights.sum())


def greedy(task: Task) -> Fitted:
    """Forward selection with replacement, bagged (Caruana et al. 2004, "Ensemble selection from libraries of models").

    Each of 20 bags climbs the competition's metric on images drawn with replacement, member by member, and keeps the
    best of the sizes it went through. Of libraries of more than 10 members a bag sees a random half, as in the paper;
    of smaller ones that would only force bad members in.
    """
    stack, labels = task.stack, task.known_labels()
    generator = np.random.default_rng(0)
    weights = np.zeros(len(stack))
    for _ in range(_BAGS):
        members = np.arange(len(stack))
        if len(stack) > _LARGE_LIBRARY:
            members = np.sort(generator.permutation(len(stack))[: len(stack) // 2])
        rows = task.drawn(generator)
        weights[members] += _climb(np.exp(stack[np.ix_(members, rows)]), labels[rows], task.score)
    return _weighting(weights / _BAGS)


def _climb(shares: NDArray[np.float32], labels: Labels, score: Score) -> NDArray[np.float64]:
    """Return each member's share [M] of the best ensemble on the way up."""
    total = np.zeros_like(shares[0])
    counts = np.zeros(len(shares))
    best, best_value, since = counts, -np.inf, 0
    for size in range(1, _STEPS + 1):
        values = [_value((total + member) / size, labels, score) for member in shares]
        chosen = int(np.argmax(values))
        total, counts = total + shares[chosen], counts.copy()
        counts[chosen] += 1
        since += 1
        if values[chosen] > best_value:
            best, best_value, since = counts / size, values[chosen], 0
        if since == _PATIENCE:
            break
    return best


def _value(shares: Shares, labels: Labels, score: Score) -> float:
    """Return the score, and a little of the likelihood: accuracy alone has plateaus."""
    likelihood = np.log(np.maximum(shares[np.arange(len(labels)), labels], 1e-9)).mean()
    return score(shares, labels) + _TIE * float(likelihood)


def stack(task: Task) -> Fitted:
    """Multinomial logistic regression on the members' logits (stacking, Wolpert 1992), drawn towards their mean.

    The penalty is on how far the coefficients are from those of the geometric mean at its best temperature, not from
    zero: where validation says little, that is what remains. It is chosen among five on a fifth of the images.
    """
    labels = task.known_labels()
    features, members, classes = _features(task.stack), len(task.stack), task.stack.shape[2]
    plain = np.concatenate([np.tile(np.eye(classes) / members, (members, 1)), np.zeros((1, classes))])
    centre = plain * _sharpness(features @ plain.astype(np.float32), labels)
    tried, held = task.parted()
    found, losses = centre, []
    for penalty in _PENALTIES:
        found = _regress(features[tried], labels[tried], centre, found, penalty)
        losses.append(_loss(features[held] @ found.astype(np.float32), labels[held]))
    penalty = _PENALTIES[int(np.argmin(losses))]
    coefficients = _regress(features, labels, centre, centre, penalty).astype(np.float32)
    return Fitted(lambda rows: _features(rows) @ coefficients)


def _sharpness(logits: NDArray[np.float32], labels: Labels) -> float:
    """Return what logits are best multiplied by: the mean of independent members is less sure than it might be."""
    found = minimize_scalar(
        lambda factor: _loss(logits * np.float32(factor), labels), bounds=(0.05, 20.0), method="bounded"
    )
    return float(found.x)


def _features(stack: Stack) -> NDArray[np.float32]:
    """Return members' log-probabilities side by side and a constant, [N, M * C + 1]."""
    members, rows, classes = stack.shape
    flat = np.maximum(stack, _LEAST).transpose(1, 0, 2).reshape(rows, members * classes)
    return np.concatenate([flat, np.ones((rows, 1), np.float32)], axis=1)


def _regress(
    features: NDArray[np.float32],
    labels: Labels,
    centre: NDArray[np.float64],
    start: NDArray[np.float64],
    penalty: float,
) -> NDArray[np.float64]:
    """Return coefficients [F, C] of the least mean loss plus half the penalty times their squared way from `centre`."""
    rows = np.arange(len(labels))

    def loss_and_slope(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        coefficients = flat.reshape(centre.shape)
        shares = _log_softmax(features @ coefficients.astype(np.float32))
        loss = -float(shares[rows, labels].mean(dtype=np.float64))
        errors = np.exp(shares)
        errors[rows, labels] -= 1
        away = coefficients - centre
        slope = (features.T @ errors).astype(np.float64) / len(labels) + penalty * away
        return loss + penalty / 2 * float((away**2).sum()), slope.ravel()

    found = minimize(loss_and_slope, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": _ROUNDS})
    coefficients: NDArray[np.float64] = found.x.reshape(centre.shape)
    return coefficients


def _loss(logits: NDArray[np.float32], labels: Labels) -> float:
    return -float(_log_softmax(logits)[np.arange(len(labels)), labels].mean())


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = logits - logits.max(1, keepdims=True)
    logarithms: NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return logarithms


def _weighting(weights: NDArray[np.float64]) -> Fitted:
    """Return the mean of probabilities with weights [M] that sum to 1."""
    used = [(number, np.float32(weight)) for number, weight in enumerate(weights) if weight > 0]

    def combine(rows: Stack) -> Shares:
        total = sum(weight * np.exp(rows[number]) for number, weight in used)
        return np.log(np.maximum(total, 1e-9, dtype=np.float32))  # type: ignore[no-any-return]

    return Fitted(combine, tuple(weights.tolist()))


def _equal(stack: Stack) -> tuple[float, ...]:
    return (1 / len(stack),) * len(stack)


@dataclass(frozen=True)
class Method:
    """A way to combine members, and whether it learns from labels."""

    fit: Callable[[Task], Fitted]
    learns: bool

    def plain(self, members: int, classes: int) -> Fitted:
        """Return a method that learns nothing, for so many members."""
        assert not self.learns
        return self.fit(Task(np.zeros((members, 1, classes), np.float32)))


METHODS = {
    "mean": Method(mean, False),
    "geometric": Method(geometric, False),
    "rank": Method(rank, False),
    "weighted": Method(weighted, True),
    "greedy": Method(greedy, True),
    "stack": Method(stack, True),
}


def method(name: str, also: tuple[str, ...] = ()) -> Method:
    """Return a row of METHODS; `also` names what is known elsewhere.

    Raises:
        ConfigError: unknown name.
    """
    if name not in METHODS:
        raise ConfigError(f"--method: {unknown('method', name, [*METHODS, *also])}")
    return METHODS[name]
