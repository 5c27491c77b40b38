"""Linear and k-NN probes of a network's features (Alain and Bengio 2016, arXiv:1610.01644).

Features are the last linear layer's inputs, standardised and fitted with scikit-learn; the result is predictions as of
any run.
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
from comp.runtime.memory import MicroBatch
from comp.runtime.progress import Progress, quiet

_UNSEEN = -1e4  # logit of a class without training images
_SMOOTHING = 1e-3  # added to vote shares: a class without neighbours must not have an infinite loss

Fitted = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def linear_svm(features: NDArray[np.float32], labels: NDArray[np.int64], k: int) -> Fitted:
    """Fit one-vs-rest linear SVMs with squared hinge loss; logits are distances to the hyperplanes."""
    from sklearn.svm import LinearSVC

    return _logits_of(LinearSVC(dual=False).fit(features, labels))


def logistic(features: NDArray[np.float32], labels: NDArray[np.int64], k: int) -> Fitted:
    """Fit multinomial logistic regression."""
    from sklearn.linear_model import LogisticRegression

    return _logits_of(LogisticRegression(max_iter=1000).fit(features, labels))


def knn(features: NDArray[np.float32], labels: NDArray[np.int64], k: int) -> Fitted:
    """Fit k nearest neighbours (Euclidean); logits are logarithms of the vote shares."""
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
    """Check the classifier's name and k.

    Raises:
        ConfigError: unknown classifier, or k below 1.
    """
    if name not in CLASSIFIERS:
        raise ConfigError(f"--classifier: {unknown('classifier', name, CLASSIFIERS)}")
    if k < 1:
        raise ConfigError(f"--k: expected at least 1, found {k}")


def _fit_classes(fit: Fit, features: NDArray[np.float32], labels: Targets, k: int, count: int) -> Fitted:
    """Fit a classifier of exclusive classes: [N, F] -> logits [N, count]."""
    indices = labels.astype(np.int64)
    present, fitted = np.unique(indices), fit(features, indices, k)

    def outputs(values: NDArray[np.float32]) -> NDArray[np.float32]:
        logits = np.full((len(values), count), _UNSEEN, np.float32)
        logits[:, present] = fitted(values)
        return logits

    return outputs


def _fit_columns(fit: Fit, features: NDArray[np.float32], labels: Targets, k: int, count: int) -> Fitted:
    """Fit one binary classifier per class: [N, F] -> logits [N, count]."""
    fitted: list[Fitted | float] = []
    for column in labels.astype(np.int64).T:
        constant = len(np.unique(column)) == 1
        fitted.append((-_UNSEEN if column[0] else _UNSEEN) if constant else fit(features, column, k))

    def outputs(values: NDArray[np.float32]) -> NDArray[np.float32]:
        columns = []
        for predict in fitted:
            if isinstance(predict, float):
                pair = np.full((len(values), 2), [0, predict], np.float32)
            else:
                pair = predict(values)
            columns.append(pair[:, 1] - pair[:, 0])
        return np.stack(columns, 1)

    return outputs


class Probe:
    """A classifier fitted on a frozen network's features.

    Args:
        model: placed by `execution`.
        train: labelled images.
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
        OutOfMemoryError: not even one image fits the memory.
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
        self._execution, self._micro_batch = execution, MicroBatch(batch_size)
        features = self._features(train, progress)
        self._mean, self._std = features.mean(0), np.maximum(features.std(0), 1e-6)
        self._task = task
        fit = _fit_columns if TASKS[task].target_columns else _fit_classes
        self._fitted = fit(CLASSIFIERS[name], self._standardise(features), train.labels, k, len(classes))

    @property
    def micro_batch(self) -> int | None:
        """Images at a time that fitted after memory ran out; None: it did not."""
        return self._micro_batch.images if self._micro_batch.has_shrunk else None

    def predict(self, split: Split, made_by: Mapping[str, Any], progress: Progress = quiet) -> Predictions:
        """Return predictions of a split: a row for each image, or each group."""
        outputs, answered = self._fitted(self._standardise(self._features(split, progress))), split.one_per_answer()
        return predictions.from_outputs(
            split.combine(outputs, self._task),
            task=self._task,
            ids=answered.ids,
            classes=self._classes,
            targets=answered.labels,
            made_by=made_by,
        )

    def _standardise(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        standardised: NDArray[np.float32] = (features - self._mean) / self._std
        return standardised

    def _features(self, split: Split, progress: Progress) -> NDArray[np.float32]:
        return network_features(
            self._model, split, execution=self._execution, micro_batch=self._micro_batch, progress=progress
        )


@torch.inference_mode()
def network_features(
    model: Classifier, split: Split, *, execution: Execution, micro_batch: MicroBatch, progress: Progress = quiet
) -> NDArray[np.float32]:
    """Return the inputs of a network's last linear layer, [N, F] float32.

    Args:
        model: placed by `execution`.
        split: the images.
        execution: device, precision and layout.
        micro_batch: images in a forward pass.
        progress: called after every batch.

    Raises:
        OutOfMemoryError: not even one image fits the memory.
    """
    model.eval()
    parts: list[NDArray[np.float32]] = []

    def features(rows: slice) -> NDArray[np.float32]:
        images = torch.from_numpy(np.array(split.images[rows])).permute(0, 3, 1, 2)
        with execution.autocast():
            values = model.features(execution.layout(images.to(execution.torch_device)))
        return values.flatten(1).float().cpu().numpy()

    done = 0
    for part in micro_batch.parts(len(split), features):
        parts.append(part)
        done += len(part)
        progress(f"features of {split.name}", done, len(split), "images", micro_batch.note)
    return np.concatenate(parts)


def _logits_of(fitted: Any) -> Fitted:
    def decide(values: NDArray[np.float32]) -> NDArray[np.float32]:
        scores = np.asarray(fitted.decision_function(values), np.float32)
        # With two classes scikit-learn returns one column: the second class against the first.
        return np.stack([-scores, scores], 1) if scores.ndim == 1 else scores

    return decide
