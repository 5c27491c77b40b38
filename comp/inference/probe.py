"""Probes: what a network's features tell a simple classifier (Alain and Bengio 2016, arXiv:1610.01644).

Features are what the last linear layer sees. They are standardised, fitted with scikit-learn, and the result is
predictions like any run's.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from comp.config.tasks import TASKS
from comp.data.splits import Split
from comp.models.classifier import Classifier
from comp.results import predictions
from comp.results.predictions import Predictions, Targets
from comp.runtime.device import Execution
from comp.runtime.errors import ConfigError, DataError, unknown
from comp.runtime.progress import Progress, quiet

_NEVER = -1e4  # the output of a class that training never showed
_SMOOTHING = 1e-3  # of a vote share: a class without a neighbour must not have an infinite loss

Fitted = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def linear_svm(features: NDArray[np.float32], labels: NDArray[np.int64], k: int) -> Fitted:
    """Linear support vector machines, one against the rest, squared hinge; logits are distances to the planes."""
    from sklearn.svm import LinearSVC

    return _decision(LinearSVC(dual=False).fit(features, labels))


def logistic(features: NDArray[np.float32], labels: NDArray[np.int64], k: int) -> Fitted:
    """Multinomial logistic regression."""
    from sklearn.linear_model import LogisticRegression

    return _decision(LogisticRegression(max_iter=1000).fit(features, labels))


def knn(features: NDArray[np.float32], labels: NDArray[np.int64], k: int) -> Fitted:
    """The vote of the k nearest neighbours (Euclidean); logits are logarithms of the vote's shares."""
    from sklearn.neighbors import KNeighborsClassifier

    fitted = KNeighborsClassifier(n_neighbors=k, n_jobs=-1).fit(features, labels)
    return lambda values: np.log(fitted.predict_proba(values) + _SMOOTHING).astype(np.float32)


Fit = Callable[[NDArray[np.float32], NDArray[np.int64], int], Fitted]

CLASSIFIERS: dict[str, Fit] = {
    "linear_svm": linear_svm,
    "knn": knn,
    "logistic": logistic,
}


def check_probe(name: str, k: int) -> None:
    """Refuse an unknown classifier or a k below 1.

    Raises:
        ConfigError: naming what is known.
    """
    if name not in CLASSIFIERS:
        raise ConfigError(f"--classifier: {unknown('classifier', name, CLASSIFIERS)}")
    if k < 1:
        raise ConfigError(f"--k: expected at least 1, found {k}")


def _fit_classes(fit: Fit, features: NDArray[np.float32], labels: Targets, k: int, count: int) -> Fitted:
    """Return a classifier of classes that exclude each other: [N, F] -> [N, count]."""
    indices = labels.astype(np.int64)
    shown, fitted = np.unique(indices), fit(features, indices, k)

    def outputs(values: NDArray[np.float32]) -> NDArray[np.float32]:
        every = np.full((len(values), count), _NEVER, np.float32)
        every[:, shown] = fitted(values)
        return every

    return outputs


def _fit_columns(fit: Fit, features: NDArray[np.float32], labels: Targets, k: int, count: int) -> Fitted:
    """Return a classifier of each class by itself: [N, F] -> [N, count]."""
    fitted: list[Fitted | float] = []
    for column in labels.astype(np.int64).T:
        constant = len(np.unique(column)) == 1
        fitted.append((-_NEVER if column[0] else _NEVER) if constant else fit(features, column, k))

    def outputs(values: NDArray[np.float32]) -> NDArray[np.float32]:
        columns = []
        for one in fitted:
            pair = np.full((len(values), 2), [0, one], np.float32) if isinstance(one, float) else one(values)
            columns.append(pair[:, 1] - pair[:, 0])
        return np.stack(columns, 1)

    return outputs


class Probe:
    """A classifier fitted on a frozen network's features.

    Args:
        model: placed by `execution`.
        train: labelled; each of its classes is one the probe can answer.
        classes: all class names, in label order.
        task: a row of `comp.config.tasks.TASKS`.
        name: a row of CLASSIFIERS.
        k: neighbours, for `knn`.
        execution: device, precision and layout.
        batch_size: images in a forward pass.
        progress: called after every batch.

    Raises:
        ConfigError: unknown name.
        DataError: fewer images than neighbours.
    """

    def __init__(
        self,
        model: Classifier,
        train: Split,
        *,
        classes: Sequence[str],
        task: str,
        name: str,
        k: int,
        execution: Execution,
        batch_size: int,
        progress: Progress = quiet,
    ) -> None:
        check_probe(name, k)
        if name == "knn" and k > len(train):
            raise DataError(f"--k: expected at most {len(train)}, the number of training images, found {k}")
        assert train.labels is not None
        self._model, self._classes = model, classes
        self._execution, self._batch_size = execution, batch_size
        features = self._features(train, progress)
        self._mean, self._std = features.mean(0), np.maximum(features.std(0), 1e-6)
        self._task = task
        fit = _fit_columns if TASKS[task].target_columns else _fit_classes
        self._fitted = fit(CLASSIFIERS[name], self._standardised(features), train.labels, k, len(classes))

    def predict(self, split: Split, made_by: Mapping[str, Any], progress: Progress = quiet) -> Predictions:
        """Return predictions of a split."""
        return predictions.from_outputs(
            self._fitted(self._standardised(self._features(split, progress))), task=self._task, ids=split.ids,
            classes=self._classes, targets=split.labels, made_by=made_by,
        )  # fmt: skip

    def _standardised(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        standardised: NDArray[np.float32] = (features - self._mean) / self._std
        return standardised

    @torch.inference_mode()
    def _features(self, split: Split, progress: Progress) -> NDArray[np.float32]:
        """Return [N, F] float32."""
        self._model.eval()
        found = []
        for start in range(0, len(split), self._batch_size):
            images = torch.from_numpy(np.array(split.images[start : start + self._batch_size])).permute(0, 3, 1, 2)
            with self._execution.autocast():
                features = self._model.features(self._execution.layout(images.to(self._execution.torch_device)))
            found.append(features.flatten(1).float().cpu().numpy())
            progress(f"features of {split.name}", min(start + self._batch_size, len(split)), len(split))
        return np.concatenate(found)


def _decision(fitted: Any) -> Fitted:
    def decide(values: NDArray[np.float32]) -> NDArray[np.float32]:
        scores = np.asarray(fitted.decision_function(values), np.float32)
        # With two classes scikit-learn gives one column: for the second and against the first.
        return np.stack([-scores, scores], 1) if scores.ndim == 1 else scores

    return decide
