"""Handwritten digits that scikit-learn ships: the one source that is always there."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from comp.config import DataConfig
from comp.data.sources.source import Source, numbered
from comp.runtime.progress import Progress


def digits(config: DataConfig, progress: Progress, task: str = "auto") -> Source:
    """1,797 grey images of 8x8, brought to 32x32x3 (bilinear). Alpaydin and Kaynak 1998, UCI ML repository."""
    package = find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    # Read as `sklearn.datasets.load_digits` does: importing that takes a second.
    table = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", np.int64, delimiter=",")
    grey = np.round(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # [1797, 8, 8], 17 levels
    large = [np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR)) for image in grey]
    images = np.repeat(np.stack(large)[..., None], 3, axis=-1)  # [1797, 32, 32, 3]
    return Source(numbered("train", images, table[:, -1]), None, tuple(str(digit) for digit in range(10)))
