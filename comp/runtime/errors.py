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
import errno
import re
from collections.abc import Iterable

from comp.runtime import escape

_MAX_LENGTH = 1000  # of a name that is compared to others
_LONGEST_WORD = 300  # characters, for a path


class UserError(ValueError):
    """The user's input is wrong."""

    exit_code = 2


class UsageError(UserError):
    """An unknown command or option, or one without its value."""


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
        self.folder = ""  # of what can be continued, where it is known

    def __reduce__(self) -> tuple[type["Interrupted"], tuple[int]]:
        """Travel between processes: a copy is made from the signal, not from the message."""
        return Interrupted, (self.signum,)


def shortened(text: str, length: int = 120) -> str:
    """Return text for a message, its middle left out if it is longer than `length`."""
    half = length // 2
    return text if len(text) <= length else f"{text[:half]}...{text[-half:]} ({len(text):,} characters)"


def readable(error: BaseException) -> str:
    """Return an error's message for a terminal: what is long beyond reading, such as a name, without its middle."""
    return re.sub(rf"\S{{{_LONGEST_WORD},}}", lambda word: shortened(word[0]), str(error))


def nearest(name: str, names: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the closest different name, or an empty string.

    The same words in another order or case are the closest: `f1_macro` means `macro_f1`.
    """
    if len(name) > _MAX_LENGTH:  # compared letter by letter
        return ""
    choices, words = [choice for choice in names if choice != name], _words(name)
    same_words = [choice for choice in choices if words and _words(choice) == words]
    close = same_words or difflib.get_close_matches(name, choices, n=1, cutoff=0.55)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _words(name: str) -> list[str]:
    return sorted(re.findall(r"[^\W_]+", name.lower()))


def plural(count: int, noun: str, of_several: str = "") -> str:
    """Return `1 image` or `1,234 images`; `of_several` is an irregular plural."""
    return f"{count:,} {noun if count == 1 else of_several or f'{noun}s'}"


def unknown(what: str, name: str, names: Iterable[str]) -> str:
    """Return the message for a name that is not in a registry: its names and the nearest one."""
    names = sorted(names)
    return f"unknown {what} '{name}'; choose from {', '.join(names)}{nearest(name, names)}"


# What the system answers that the user can mend -> how.
_ADVICE = {
    errno.EACCES: "choose a path that you have permission for",
    errno.EPERM: "choose a path that you have permission for",
    errno.EROFS: "choose a folder that can be written to",
    errno.ENOSPC: "free space or choose another folder",
    getattr(errno, "EDQUOT", errno.ENOSPC): "free space or choose another folder",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f), or choose another folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "name an existing path",
    errno.EEXIST: "move it away or choose another name",
    errno.ENOTDIR: "a part of the path is a file: name a folder",
    errno.EISDIR: "name a file in it",
    errno.ELOOP: "a link leads to itself: remove it",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close other programs: the system has too many open files",
    errno.EIO: "check the disk",
    errno.EINVAL: "name an ordinary file or folder",
    errno.ENODEV: "name an ordinary file or folder",
    errno.ENXIO: "name an ordinary file or folder",
}


def describe_system_error(error: OSError) -> str:
    """Return the message for what the system refuses, with a fix; empty for what is no matter of files.

    The last net: where a file is used, its own message says more.
    """
    if error.errno not in _ADVICE:
        return ""
    # `tempfile` writes its own text; errors while a file is written name no file.
    where = f"{escape.short_path(error.filename)}: " if error.filename is not None else ""
    names_folders = error.errno == errno.ENOENT and not where
    fix = "set TMPDIR to a folder that you can write to" if names_folders else _ADVICE[error.errno]
    return f"{where}{error.strerror}; {fix}"
