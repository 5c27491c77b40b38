"""Handwritten digits that scikit-learn ships: the one source that is always there."""

import numpy as np
from PIL import Image

from comp.config import DataConfig
from comp.data.sources.source import Source, numbered
from comp.progress import Progress


def digits(config: DataConfig, progress: Progress, task: str = "auto") -> Source:
    """1,797 grey images of 8x8, brought to 32x32x3 (bilinear). Alpaydin and Kaynak 1998, UCI ML repository."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # [1797, 8, 8], 17 levels
    large = [np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR)) for image in grey]
    images = np.repeat(np.stack(large)[..., None], 3, axis=-1)  # [1797, 32, 32, 3]
    return Source(numbered("train", images, bunch.target), None, tuple(str(digit) for digit in range(10)))
