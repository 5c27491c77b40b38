"""How members' probabilities become one's: plain averages, and what is learnt from validation.

A method is fitted on members' values [M, N, C] in an ensemble space (`comp.ensembles.spaces`) and on targets, and then
combines any rows. What it learns is deterministic; draws are seeded by a constant.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.config.tasks import TASKS, TaskRow
from comp.results import decisions, metrics, predictions
from comp.results.predictions import Outputs, Predictions, Targets
from comp.runtime.errors import ConfigError, unknown

Values = NDArray[np.float32]  # [N, C] of one member
Stack = NDArray[np.float32]  # [M, N, C] of M members
Probabilities = NDArray[np.floating[Any]]  # [..., N, C]

LEAST_LOG = -20.0  # log-probability or log-odds: no member's certainty alone can exclude a class
_MOST_LOGIT = 60.0  # both probabilities stay normal float32 numbers
_LEAST_PROBABILITY = 1e-9
Thresholds = NDArray[np.float32]  # [C]
Labels = NDArray[np.int64]

_EM_ROUNDS, _EM_GAP = 5000, 1e-6  # nats that the best weights could still gain
_BAGS, _STEPS, _PATIENCE, _BAG_ROWS = 20, 30, 3, 20_000
_LARGE_LIBRARY = 10  # members from which on a bag sees a random half of them
_TIE = 1e-3  # of a mean log-likelihood, beside the score that is climbed
_PENALTIES = (1.0, 0.1, 0.01, 1e-3, 1e-4)  # from strong to weak; each starts where the one before ended
_PENALTY_ROWS, _ROUNDS = 10_000, 60
_LEAST = -10.0  # of the stack's inputs: beyond it one wrong certainty would outweigh all else


@dataclass(frozen=True)
class Space:
    """How members' outputs are combined.

    Attributes:
        values: outputs [N, C] -> values [N, C] float32.
        probabilities: values [..., C] -> probabilities, of the same float type.
        from_probabilities: probabilities [N, C] -> values.
        mean: values [M, N, C] and weights [M] -> values [N, C] of the weighted mean of probabilities.
        rank: values [M, N, C] -> values [N, C] that order classes or images by their mean rank.
        observed: probabilities [..., N, C] and targets -> the probability of each observation [..., P].
        ranks_images: whether `rank` orders the images of a class, so that it needs all rows of a split at once; else
            it orders the classes of an image.
    """

    values: Callable[[Outputs], Values]
    probabilities: Callable[[Probabilities], Probabilities]
    from_probabilities: Callable[[Probabilities], Values]
    mean: Callable[[Stack, NDArray[np.float64]], Values]
    rank: Callable[[Stack], Values]
    observed: Callable[[Probabilities, Targets], Probabilities]
    ranks_images: bool


def log_probabilities(outputs: Outputs) -> Values:
    """Return log-probabilities [N, C] of outputs whose rows' maxima are 0, none below -20."""
    values = outputs.astype(np.float32)
    values -= np.log(np.exp(values).sum(1, keepdims=True))
    return np.maximum(values, LEAST_LOG)


def _log(probabilities: Probabilities) -> Values:
    logarithms: Values = np.log(np.maximum(probabilities, _LEAST_PROBABILITY)).astype(np.float32)
    return logarithms


def _exclusive_mean(stack: Stack, weights: NDArray[np.float64]) -> Values:
    return _log(_weighted_sum(lambda number: np.exp(stack[number]), weights))


def _class_ranks(stack: Stack) -> Values:
    """Return each class's mean place in the members' orders (Borda counts), ties broken by mean probability."""
    places = stack.argsort(2, kind="stable").argsort(2, kind="stable").astype(np.float32)  # the likeliest is C - 1
    # Two mean places differ by 1 / M at least; a probability is at most 1.
    ranks: Values = places.mean(0) + np.exp(stack).mean(0) / (2 * len(stack))
    return ranks


def _of_target(probabilities: Probabilities, targets: Targets) -> Probabilities:
    observed: Probabilities = probabilities[..., np.arange(len(targets)), targets.astype(np.int64)]
    return np.maximum(observed, _LEAST_PROBABILITY)


def _bounded(outputs: Outputs) -> Values:
    return np.clip(outputs.astype(np.float32), -_MOST_LOGIT, _MOST_LOGIT)


def _sigmoid(values: Probabilities) -> Probabilities:
    probabilities: Probabilities = 1 / (1 + np.exp(-values))
    return probabilities


def _logit(probabilities: Probabilities) -> Values:
    return _log(probabilities) - _log(1 - probabilities)


def _independent_mean(stack: Stack, weights: NDArray[np.float64]) -> Values:
    # Summed apart, so that a mean beside 1 keeps its order.
    present = _weighted_sum(lambda number: _sigmoid(stack[number]), weights)
    absent = _weighted_sum(lambda number: _sigmoid(-stack[number]), weights)
    smallest = np.finfo(np.float32).tiny
    logits: Values = np.log(np.maximum(present, smallest)) - np.log(np.maximum(absent, smallest))
    return logits


def _image_ranks(stack: Stack) -> Values:
    """Return the logit of each image's mean rank within its class, ranks scaled into (0, 1), ties averaged."""
    from scipy.stats import rankdata  # type: ignore[import-untyped]

    shares = np.mean([(rankdata(member, axis=0) - 0.5) / len(member) for member in stack], axis=0)
    return _logit(shares)


def _of_pairs(probabilities: Probabilities, targets: Targets) -> Probabilities:
    observed = np.where(targets > 0.5, probabilities, 1 - probabilities)
    return np.maximum(observed, _LEAST_PROBABILITY).reshape(*observed.shape[:-2], -1)


def _weighted_sum(member: Callable[[int], Probabilities], weights: NDArray[np.float64]) -> Probabilities:
    parts = (np.float32(weight) * member(number) for number, weight in enumerate(weights) if weight > 0)
    return sum(parts, start=np.zeros((), np.float32))


SPACES = {
    "softmax": Space(log_probabilities, np.exp, _log, _exclusive_mean, _class_ranks, _of_target, ranks_images=False),
    "sigmoid": Space(_bounded, _sigmoid, _logit, _independent_mean, _image_ranks, _of_pairs, ranks_images=True),
}


@dataclass(frozen=True)
class Scorer:
    """The competition's metric as a function of probabilities, higher being better.

    Attributes:
        metric: a row of `comp.results.metrics.METRICS`.
        classes: the columns.
        task: a row of `comp.config.tasks.TASKS`.
        thresholds: that decide; None: tuned on what is scored, where the metric needs them.
    """

    metric: str
    classes: Sequence[str]
    task: str
    thresholds: Thresholds | None = None

    def __call__(self, probabilities: Probabilities, targets: Targets) -> float:
        """Return the score of probabilities [N, C]."""
        if self.metric == "accuracy" and TASKS[self.task].decision == "arg_max":
            return float((probabilities.argmax(1) == targets).mean())
        metric = metrics.metric(self.metric)
        scored = self.tuned_on(probabilities, targets)._predictions(probabilities, targets)
        return metric.as_maximize(metric.score(scored))

    def tuned_on(self, probabilities: Probabilities, targets: Targets) -> "Scorer":
        """Return the same with thresholds that are best for these probabilities, where the metric needs thresholds.

        Tuning costs far more than scoring: what compares thousands of candidates tunes once.
        """
        if self.thresholds is not None:
            return self
        scored = self._predictions(probabilities, targets)
        if not decisions.needs_thresholds(scored, self.metric):
            return self
        return replace(self, thresholds=decisions.tune_thresholds(scored, self.metric))

    def _predictions(self, probabilities: Probabilities, targets: Targets) -> Predictions:
        return predictions.from_outputs(
            SPACES[TASKS[self.task].activation].from_probabilities(probabilities),
            task=self.task,
            ids=np.empty(len(targets), "U1"),
            classes=self.classes,
            targets=targets,
            made_by={},
            thresholds=self.thresholds,
        )


@dataclass(frozen=True)
class Fitted:
    """A method that is ready to combine.

    Attributes:
        combine: members' values [M, N, C] -> outputs [N, C].
        weights: [M] shares of the members, where there are such; else empty.
        whole_split: whether `combine` needs all rows of a split at once.
    """

    combine: Callable[[Stack], Values]
    weights: tuple[float, ...] = ()
    whole_split: bool = False


@dataclass(frozen=True)
class FitData:
    """What a method is fitted on.

    Attributes:
        stack: [M, N, C] the members' values.
        space: what they are combined in.
        targets: [N] or [N, C]; None for methods that learn nothing.
        images: [N] which image a row shows; None: each its own.
        score: what is climbed; None for methods that climb nothing.
    """

    stack: Stack
    space: Space
    targets: Targets | None = None
    images: NDArray[np.str_] | None = None
    score: Scorer | None = None

    def known_targets(self) -> Targets:
        """Return the targets; asking a method that learns to do without is our fault."""
        assert self.targets is not None
        return self.targets

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


def mean(data: FitData) -> Fitted:
    """The mean of the members' probabilities."""
    return _weighting(np.full(len(data.stack), 1 / len(data.stack)), data.space)


def geometric(data: FitData) -> Fitted:
    """The mean of log-probabilities, or of log-odds where classes are independent; certainty counts up to 20 nats."""
    return Fitted(lambda rows: rows.clip(LEAST_LOG, -LEAST_LOG).mean(0), _equal(data.stack))


def rank(data: FitData) -> Fitted:
    """The mean rank in the members' orders: of an image's classes, or of a class's images where those are independent.

    It ignores how sure members are, and its probabilities and loss mean little.
    """
    return Fitted(data.space.rank, _equal(data.stack), whole_split=data.space.ranks_images)


def weighted(data: FitData) -> Fitted:
    """The convex mean of probabilities with the least log loss.

    The loss is convex in the weights and they are found by expectation maximisation (Cover 1984, "An algorithm for
    maximizing expected log investment return"), which ends when its own bound says that at most 1e-6 nats are left.
    """
    members, space = len(data.stack), data.space
    observed = space.observed(space.probabilities(data.stack.astype(np.float64)), data.known_targets())  # [M, P]
    weights = np.full(members, 1 / members)
    for _ in range(_EM_ROUNDS):
        gains = (observed / (weights @ observed)).mean(1)  # [M]; their weighted mean is 1
        if gains.max() - 1 < _EM_GAP:
            break
        weights = weights * gains
    return _weighting(weights / weights.sum(), space)


def greedy(data: FitData) -> Fitted:
    """Forward selection with replacement, bagged (Caruana et al. 2004, "Ensemble selection from libraries of models").

    Each of 20 bags climbs the competition's metric on images drawn with replacement, member by member, and keeps the
    best of the sizes it went through. Of libraries of more than 10 members a bag sees a random half, as in the paper;
    of smaller ones that would only force bad members in. Thresholds, where the metric needs them, are those of the
    members' plain mean.
    """
    targets, count = data.known_targets(), len(data.stack)
    probabilities = data.space.probabilities(data.stack)
    assert data.score is not None
    climbed = replace(data, score=data.score.tuned_on(probabilities.mean(0), targets))
    generator = np.random.default_rng(0)
    weights = np.zeros(count)
    for _ in range(_BAGS):
        members = np.arange(count)
        if count > _LARGE_LIBRARY:
            members = np.sort(generator.permutation(count)[: count // 2])
        rows = data.drawn(generator)
        weights[members] += _climb(probabilities[np.ix_(members, rows)], targets[rows], climbed)
    return _weighting(weights / _BAGS, data.space)


def _climb(probabilities: Probabilities, targets: Targets, data: FitData) -> NDArray[np.float64]:
    """Return each member's share [M] of the best ensemble on the way up."""
    total = np.zeros_like(probabilities[0])
    counts = np.zeros(len(probabilities))
    best, best_value, since = counts, -np.inf, 0
    for size in range(1, _STEPS + 1):
        values = [_value((total + member) / size, targets, data) for member in probabilities]
        chosen = int(np.argmax(values))
        total, counts = total + probabilities[chosen], counts.copy()
        counts[chosen] += 1
        since += 1
        if values[chosen] > best_value:
            best, best_value, since = counts / size, values[chosen], 0
        if since == _PATIENCE:
            break
    return best


def _value(probabilities: Probabilities, targets: Targets, data: FitData) -> float:
    """Return the score, and a little of the mean log-likelihood: many scores have plateaus."""
    assert data.score is not None
    likelihood = np.log(data.space.observed(probabilities, targets)).mean()
    return data.score(probabilities, targets) + _TIE * float(likelihood)


def stack(data: FitData) -> Fitted:
    """Multinomial logistic regression on the members' logits (stacking, Wolpert 1992), drawn towards their mean.

    The penalty is on how far the coefficients are from those of the geometric mean at its best temperature, not from
    zero: where validation says little, that is what remains. It is chosen among five on a fifth of the images.
    """
    labels = data.known_targets().astype(np.int64)
    features, members, classes = _features(data.stack), len(data.stack), data.stack.shape[2]
    plain = np.concatenate([np.tile(np.eye(classes) / members, (members, 1)), np.zeros((1, classes))])
    centre = plain * _sharpness(features @ plain.astype(np.float32), labels)
    tried, held = data.parted()
    coefficients, losses = centre, []
    for penalty in _PENALTIES:
        coefficients = _regress(features[tried], labels[tried], centre, coefficients, penalty)
        losses.append(_loss(features[held] @ coefficients.astype(np.float32), labels[held]))
    penalty = _PENALTIES[int(np.argmin(losses))]
    final = _regress(features, labels, centre, centre, penalty).astype(np.float32)
    return Fitted(lambda rows: _features(rows) @ final)


def _sharpness(logits: NDArray[np.float32], labels: Labels) -> float:
    """Return what logits are best multiplied by: the mean of independent members is less sure than it might be."""
    from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]

    best = minimize_scalar(
        lambda factor: _loss(logits * np.float32(factor), labels), bounds=(0.05, 20.0), method="bounded"
    )
    return float(best.x)


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
    from scipy.optimize import minimize

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

    best = minimize(loss_and_slope, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": _ROUNDS})
    coefficients: NDArray[np.float64] = best.x.reshape(centre.shape)
    return coefficients


def _loss(logits: NDArray[np.float32], labels: Labels) -> float:
    return -float(_log_softmax(logits)[np.arange(len(labels)), labels].mean())


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = logits - logits.max(1, keepdims=True)
    logarithms: NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return logarithms


def _weighting(weights: NDArray[np.float64], space: Space) -> Fitted:
    """Return the mean of probabilities with weights [M] that sum to 1."""
    return Fitted(lambda rows: space.mean(rows, weights), tuple(weights.tolist()))


def _equal(stack: Stack) -> tuple[float, ...]:
    return (1 / len(stack),) * len(stack)


@dataclass(frozen=True)
class Method:
    """A way to combine members.

    Attributes:
        fit: what is fitted -> the method, ready to combine.
        learns: whether it needs targets.
        calibrated: whether what it gives are probabilities of classes, rather than an order alone.
    """

    fit: Callable[[FitData], Fitted]
    learns: bool
    calibrated: bool = True

    def plain(self, members: int, classes: int, space: Space) -> Fitted:
        """Return a method that learns nothing, for so many members."""
        assert not self.learns
        return self.fit(FitData(np.zeros((members, 1, classes), np.float32), space))


METHODS = {
    "mean": Method(mean, learns=False),
    "geometric": Method(geometric, learns=False),
    "rank": Method(rank, learns=False, calibrated=False),
    "weighted": Method(weighted, learns=True),
    "greedy": Method(greedy, learns=True),
    "stack": Method(stack, learns=True),
}


def method(name: str, row: TaskRow) -> Method:
    """Return a row of METHODS that is defined for a task.

    Raises:
        ConfigError: unknown name, or not defined for the task.
    """
    if name in row.ensembles and name in METHODS:
        return METHODS[name]
    if name in METHODS:
        raise ConfigError(
            f"--method {name}: is not defined for task {row.name}; choose from {', '.join(row.ensembles)}"
        )
    raise ConfigError(f"--method: {unknown('method', name, row.ensembles)}")
