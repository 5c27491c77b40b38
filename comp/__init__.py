"""comp: from a competition's data to a scored, valid submission.csv.

Its Python API is in `comp.api`: `comp.load_config`, `comp.train`, `comp.Run` and others.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from comp.api import (
        Run,
        check,
        check_data,
        cross_validate,
        ensemble,
        export,
        export_kaggle,
        init,
        leaderboard,
        load_config,
        predict,
        predict_package,
        quiet,
        report,
        resume,
        train,
        tune,
    )

__version__ = "0.1.0"
__all__ = [
    "Run",
    "__version__",
    "check",
    "check_data",
    "cross_validate",
    "ensemble",
    "export",
    "export_kaggle",
    "init",
    "leaderboard",
    "load_config",
    "predict",
    "predict_package",
    "quiet",
    "report",
    "resume",
    "train",
    "tune",
]


def __dir__() -> list[str]:
    """Return the API's names, which a terminal or notebook completes before they are loaded."""
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Load the API, and with it torch, at the first use of one of its names."""
    if name.startswith("_") or name not in __all__:
        raise AttributeError(f"module 'comp' has no attribute '{name}'")
    importlib.import_module("comp.runtime.cores").limit_spinning()
    return getattr(importlib.import_module("comp.api"), name)
