"""Errors for the user, and messages for unknown names.

    ValueError
    └── UserError          the user's input is wrong: one message, exit code 2
        ├── ConfigError    a YAML file or an override
        ├── DataError      images, labels, archives, downloads
        ├── ModelError     names, stems, weights
        ├── RunError       run folders, checkpoints, predictions
        │   ├── NotFiniteError  logits that are infinite or NaN
        │   └── OutOfMemoryError  memory for not even the smallest part of a batch
        ├── WorkersError   loader workers that died, hang or cannot start
        ├── StudyError     a tuning study or its storage
        └── SubmissionError  a submission.csv or its format
    BaseException
    └── Interrupted        stopped by a signal; the run can be resumed (exit code 128 + signal)

A message says what is wrong, where, what was expected, what was found and how to fix it.
"""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """The user's input is wrong."""

    exit_code = 2


class ConfigError(UserError):
    """A config file or an override is wrong."""


class DataError(UserError):
    """Images, labels or their files are missing or wrong."""


class ModelError(UserError):
    """A model cannot be built, adapted or loaded as asked."""


class RunError(UserError):
    """A run folder, checkpoint or predictions file is missing, damaged or in use."""


class NotFiniteError(RunError):
    """A network's logits are infinite or NaN."""


class OutOfMemoryError(RunError):
    """Not even the smallest part of a batch fits the memory."""


class WorkersError(UserError):
    """Loader workers died, hang or cannot start."""


class StudyError(UserError):
    """A tuning study cannot be opened or continued, or its trials keep failing."""


class SubmissionError(UserError):
    """A submission file breaks its competition's format."""


class Interrupted(BaseException):
    """Stopped by a signal. Not an Exception: no `except Exception` may swallow it."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by signal {signum}")
        self.signum = signum
        self.exit_code = 128 + signum


def nearest(name: str, names: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the closest name, or an empty string."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.55)
    return f" (did you mean '{close[0]}'?)" if close else ""


def unknown(what: str, name: str, names: Iterable[str]) -> str:
    """Return the message for a name that is not in a registry: its names and the nearest one."""
    names = sorted(names)
    return f"unknown {what} '{name}'; choose from {', '.join(names)}{nearest(name, names)}"
