"""Ensemble methods: plain averages, and weights or models learnt on validation. Torch-free.

A method is fitted on the members' values [M, N, C] in an ensemble space and on targets, then combines any rows.
Fitting is deterministic: random draws use a constant seed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from comp.config.tasks import TASKS, TaskRow
from comp.ensembles.spaces import MIN_LOG, SPACES, Probabilities, Space, Stack, Values
from comp.results import decisions, metrics, predictions
from comp.results.predictions import Predictions, Targets
from comp.runtime.errors import ConfigError, unknown

Thresholds = NDArray[np.float32]  # [C]

_EM_STEPS, _EM_GAP = 5000, 1e-6  # the gap is in nats from the optimum
_BAGS, _GREEDY_STEPS, _PATIENCE, _BAG_ROWS = 20, 30, 3, 20_000
_LARGE_LIBRARY = 10  # with more members, a bag sees a random half of them
_TIE_WEIGHT = 1e-3  # of the mean log-likelihood, added to the score to break ties
_PENALTIES = (1.0, 0.1, 0.01, 1e-3, 1e-4)  # from strong to weak; each starts from the previous solution
_PENALTY_ROWS, _MAX_ITERATIONS = 10_000, 60
MIN_STACK_INPUT = -10.0  # a lower log-probability would outweigh everything else


@dataclass(frozen=True)
class Scorer:
    """The competition's metric as a function of probabilities; higher is better.

    Attributes:
        metric: a row of `comp.results.metrics.METRICS`.
        classes: class names of the columns.
        task: a row of `comp.config.tasks.TASKS`.
        thresholds: decision thresholds; None: tuned on the scored rows if the metric needs them.
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
        scored = self.with_tuned_thresholds(probabilities, targets)._predictions(probabilities, targets)
        return metric.as_maximize(metric.score(scored))

    def with_tuned_thresholds(self, probabilities: Probabilities, targets: Targets) -> "Scorer":
        """Return a scorer with the best thresholds for these probabilities if the metric needs thresholds.

        Tuning costs far more than scoring: tune once before you compare thousands of candidates.
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
    """A fitted method.

    Attributes:
        combine: members' values [M, N, C] -> outputs [N, C].
        weights: [M] of the members; empty if the method has none.
        whole_split: whether `combine` needs all rows of a split at once.
        coefficients: of `stack`; None of other methods, whose weights say all.
    """

    combine: Callable[[Stack], Values]
    weights: tuple[float, ...] = ()
    whole_split: bool = False
    coefficients: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class FitData:
    """Data that a method is fitted on.

    Attributes:
        stack: [M, N, C] the members' values.
        space: the space they are combined in.
        targets: [N] or [N, C]; None for methods that learn nothing.
        images: [N] which image each row shows; None: each row another.
        score: the score to maximize, for `greedy`.
    """

    stack: Stack
    space: Space
    targets: Targets | None = None
    images: NDArray[np.str_] | None = None
    score: Scorer | None = None

    def known_targets(self) -> Targets:
        """Return the targets, which methods that learn require."""
        assert self.targets is not None
        return self.targets

    def draw_bag(self, generator: np.random.Generator) -> NDArray[np.int64]:
        """Return a bootstrap sample: the rows of images drawn with replacement, up to about 20,000 rows."""
        image_of_row = self._image_of_row()
        count = int(image_of_row.max()) + 1
        size = max(1, min(count, count * _BAG_ROWS // len(image_of_row)))
        times = np.bincount(generator.integers(0, count, size), minlength=count)
        return np.repeat(np.arange(len(image_of_row)), times[image_of_row])

    def _image_of_row(self) -> NDArray[np.int64]:
        """Return each row's image as a number [N]."""
        if self.images is None:
            return np.arange(self.stack.shape[1])
        return np.unique(self.images, return_inverse=True)[1]

    def split_rows(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return up to 10,000 rows of four fifths of the images, and up to 10,000 of the others."""
        image_of_row = self._image_of_row()
        shuffled = np.random.default_rng(0).permutation(len(image_of_row))
        held_out = np.random.default_rng(1).permutation(int(image_of_row.max()) + 1)[image_of_row[shuffled]] % 5 == 0
        if held_out.all():  # a single image
            held_out[1:] = False
        return shuffled[~held_out][:_PENALTY_ROWS], shuffled[held_out][:_PENALTY_ROWS]


def mean(data: FitData) -> Fitted:
    """The mean of the members' probabilities."""
    return weighted_mean(np.full(len(data.stack), 1 / len(data.stack)), data.space)


def geometric(data: FitData) -> Fitted:
    """The mean of log-probabilities, or of log-odds for multi-label tasks; each counts up to 20 nats."""
    return Fitted(lambda rows: rows.clip(MIN_LOG, -MIN_LOG).mean(0), (1 / len(data.stack),) * len(data.stack))


def rank(data: FitData) -> Fitted:
    """The mean rank in the members' orders: of an image's classes, or of a class's images for multi-label tasks.

    It ignores the members' confidence; its probabilities and loss mean little.
    """
    return Fitted(data.space.rank, (1 / len(data.stack),) * len(data.stack), whole_split=data.space.ranks_images)


def weighted(data: FitData) -> Fitted:
    """The weighted mean of probabilities with the lowest log loss; of numbers, with the least squared error.

    The loss is convex in the weights, which expectation maximisation finds (Cover 1984, "An algorithm for maximizing
    expected log investment return"); it stops when its bound shows that at most 1e-6 nats are left to gain.
    """
    members, space = len(data.stack), data.space
    if space.fit_weights is not None:
        return weighted_mean(space.fit_weights(data.stack, data.known_targets()), space)
    observed = space.observed(space.probabilities(data.stack.astype(np.float64)), data.known_targets())  # [M, P]
    weights = np.full(members, 1 / members)
    for _ in range(_EM_STEPS):
        gains = (observed / (weights @ observed)).mean(1)  # [M]; their weighted mean is 1
        if gains.max() - 1 < _EM_GAP:
            break
        weights = weights * gains
    return weighted_mean(weights / weights.sum(), space)


def greedy(data: FitData) -> Fitted:
    """Forward selection with replacement, bagged (Caruana et al. 2004, "Ensemble selection from libraries of models").

    Each of 20 bags maximizes the competition's metric on images drawn with replacement, one more member at a time,
    and keeps the best size. With more than 10 members a bag sees a random half, as in the paper; with fewer that would
    force bad members in. Thresholds, if the metric needs them, are tuned on the members' mean.
    """
    targets, count = data.known_targets(), len(data.stack)
    probabilities = data.space.probabilities(data.stack)
    assert data.score is not None
    tuned = replace(data, score=data.score.with_tuned_thresholds(probabilities.mean(0), targets))
    generator = np.random.default_rng(0)
    weights = np.zeros(count)
    for _ in range(_BAGS):
        members = np.arange(count)
        if count > _LARGE_LIBRARY:
            members = np.sort(generator.permutation(count)[: count // 2])
        rows = data.draw_bag(generator)
        weights[members] += _select_greedily(probabilities[np.ix_(members, rows)], targets[rows], tuned)
    return weighted_mean(weights / _BAGS, data.space)


def _select_greedily(probabilities: Probabilities, targets: Targets, data: FitData) -> NDArray[np.float64]:
    """Return each member's weight [M] in the best ensemble found."""
    total = np.zeros_like(probabilities[0])
    counts = np.zeros(len(probabilities))
    best, best_value, steps_since = counts, -np.inf, 0
    for size in range(1, _GREEDY_STEPS + 1):
        values = [_tie_broken_score((total + member) / size, targets, data) for member in probabilities]
        chosen = int(np.argmax(values))
        total, counts = total + probabilities[chosen], counts.copy()
        counts[chosen] += 1
        steps_since += 1
        if values[chosen] > best_value:
            best, best_value, steps_since = counts / size, values[chosen], 0
        if steps_since == _PATIENCE:
            break
    return best


def _tie_broken_score(probabilities: Probabilities, targets: Targets, data: FitData) -> float:
    """Return the score plus a small part of the mean log-likelihood: many scores have plateaus."""
    assert data.score is not None
    likelihood = np.log(data.space.observed(probabilities, targets)).mean()
    return data.score(probabilities, targets) + _TIE_WEIGHT * float(likelihood)


def stack(data: FitData) -> Fitted:
    """Multinomial logistic regression on the members' logits (stacking, Wolpert 1992), shrunk towards their mean.

    The penalty is on the distance from the coefficients of the geometric mean at its best temperature, not from zero.
    Its strength is chosen among five on a fifth of the images.
    """
    labels = data.known_targets().astype(np.int64)
    features, members, classes = _features(data.stack), len(data.stack), data.stack.shape[2]
    mean_coefficients = np.concatenate([np.tile(np.eye(classes) / members, (members, 1)), np.zeros((1, classes))])
    centre = mean_coefficients * _best_logit_factor(features @ mean_coefficients.astype(np.float32), labels)
    fit_rows, held_out = data.split_rows()
    coefficients, losses = centre, []
    for penalty in _PENALTIES:
        coefficients = _regress(features[fit_rows], labels[fit_rows], centre, coefficients, penalty)
        losses.append(_loss(features[held_out] @ coefficients.astype(np.float32), labels[held_out]))
    penalty = _PENALTIES[int(np.argmin(losses))]
    final = _regress(features, labels, centre, centre, penalty).astype(np.float32)
    return stacked(final)


def stacked(coefficients: NDArray[np.float32]) -> Fitted:
    """Return a fitted `stack` with its coefficients [F, C]."""
    return Fitted(lambda rows: _features(rows) @ coefficients, coefficients=coefficients)


def _best_logit_factor(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the best factor for logits: the mean of independent members is underconfident."""
    from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]

    best = minimize_scalar(
        lambda factor: _loss(logits * np.float32(factor), labels), bounds=(0.05, 20.0), method="bounded"
    )
    return float(best.x)


def _features(stack: Stack) -> NDArray[np.float32]:
    """Return members' log-probabilities side by side and a constant, [N, M * C + 1]."""
    members, rows, classes = stack.shape
    flat = np.maximum(stack, MIN_STACK_INPUT).transpose(1, 0, 2).reshape(rows, members * classes)
    return np.concatenate([flat, np.ones((rows, 1), np.float32)], axis=1)


def _regress(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    centre: NDArray[np.float64],
    start: NDArray[np.float64],
    penalty: float,
) -> NDArray[np.float64]:
    """Return coefficients [F, C] with the least mean loss plus penalty / 2 * squared distance from `centre`."""
    from scipy.optimize import minimize

    rows = np.arange(len(labels))

    def loss_and_gradient(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        coefficients = flat.reshape(centre.shape)
        log_probabilities = _log_softmax(features @ coefficients.astype(np.float32))
        loss = -float(log_probabilities[rows, labels].mean(dtype=np.float64))
        errors = np.exp(log_probabilities)
        errors[rows, labels] -= 1
        offset = coefficients - centre
        gradient = (features.T @ errors).astype(np.float64) / len(labels) + penalty * offset
        return loss + penalty / 2 * float((offset**2).sum()), gradient.ravel()

    best = minimize(loss_and_gradient, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": _MAX_ITERATIONS})
    coefficients: NDArray[np.float64] = best.x.reshape(centre.shape)
    return coefficients


def _loss(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    return -float(_log_softmax(logits)[np.arange(len(labels)), labels].mean())


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = logits - logits.max(1, keepdims=True)
    logarithms: NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return logarithms


def weighted_mean(weights: NDArray[np.float64], space: Space) -> Fitted:
    """Return the mean of probabilities with weights [M] that sum to 1."""
    return Fitted(lambda rows: space.mean(rows, weights), tuple(weights.tolist()))


@dataclass(frozen=True)
class Method:
    """A way to combine members.

    Attributes:
        fit: data -> fitted method.
        learns: whether it needs targets.
        calibrated: whether it returns class probabilities, not only an order.
    """

    fit: Callable[[FitData], Fitted]
    learns: bool
    calibrated: bool = True

    def without_data(self, members: int, classes: int, space: Space) -> Fitted:
        """Return a fitted method that learns nothing."""
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
    """Return a row of METHODS.

    Raises:
        ConfigError: unknown name, or not defined for the task.
    """
    if name in row.ensembles and name in METHODS:
        return METHODS[name]
    if name in METHODS:
        raise ConfigError(f"--method {name}: not defined for task {row.name}; choose from {', '.join(row.ensembles)}")
    raise ConfigError(f"--method: {unknown('method', name, row.ensembles)}")
