"""comp: from a competition's data to a scored, valid submission.csv.

Its Python API: `comp.load_config`, `train`, `predict`, `predict_package`, `ensemble` and `Run`; see `comp.api`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from comp.api import Run, ensemble, load_config, predict, predict_package, train

__version__ = "0.1.0"
__all__ = ["Run", "__version__", "ensemble", "load_config", "predict", "predict_package", "train"]


def __getattr__(name: str) -> Any:
    """Load the API, and with it torch, at the first use of one of its names."""
    if name.startswith("_") or name not in __all__:
        raise AttributeError(f"module 'comp' has no attribute '{name}'")
    importlib.import_module("comp.runtime.cores").limit_spinning()
    return getattr(importlib.import_module("comp.api"), name)
