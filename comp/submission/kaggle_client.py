"""The one place that knows the `kaggle` package, an optional extra: it authenticates when it is imported, so late.

Its chatter on stdout is kept for messages: stdout is for results.
"""

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comp.runtime.errors import SubmissionError

_CREDENTIALS = "~/.kaggle/access_token, KAGGLE_API_TOKEN, ~/.kaggle/kaggle.json, or KAGGLE_USERNAME with KAGGLE_KEY"


@dataclass(frozen=True)
class KaggleStatus:
    """What Kaggle says of a submission.

    Attributes:
        status: `pending`, `complete` or `error`.
        public: its score; None where there is none yet, or it is not shown.
        private: likewise.
        error: what Kaggle found wrong.
    """

    status: str
    public: float | None
    private: float | None
    error: str


class Kaggle:
    """A signed-in client."""

    def __init__(self) -> None:
        """Sign in with the user's own credentials.

        Raises:
            SubmissionError: the extra is not installed, there are no credentials, or Kaggle cannot be reached.
        """
        with _told("kaggle: cannot sign in") as chatter:
            try:
                from kaggle.api.kaggle_api_extended import KaggleApi
            except ImportError as error:
                raise SubmissionError(
                    f"comp submit needs the `kaggle` extra, and {error.name or 'kaggle'} is not installed: pip install "
                    "'comp[kaggle]'; the submission is kept"
                ) from None
            self._api: Any = KaggleApi()
            try:
                self._api.authenticate()
            except SystemExit:
                said = " ".join(chatter.getvalue().split())
                raise SubmissionError(
                    f"kaggle: found no credentials that it accepts; put a token where kaggle looks ({_CREDENTIALS}); "
                    f"the submission is kept{': ' + said[:200] if 'nvalid' in said else ''}"
                ) from None

    def upload(self, path: Path, competition: str, message: str) -> str:
        """Send a CSV; return what Kaggle calls the submission.

        Raises:
            SubmissionError: Kaggle refuses it or cannot be reached.
        """
        with _told(f"kaggle: {path} was not taken by competition '{competition}'") as chatter:
            answer = self._api.competition_submit(str(path), message, competition, quiet=True)
            if not answer.ref:
                said = " ".join(f"{answer.message or ''} {chatter.getvalue()}".split())
                raise SubmissionError(f"kaggle: {path} was not taken by competition '{competition}': {said}")
        return str(answer.ref)

    def state(self, reference: str) -> KaggleStatus:
        """Return what has become of a submission.

        Raises:
            SubmissionError: Kaggle does not know it or cannot be reached.
        """
        with _told(f"kaggle: cannot ask for submission {reference}"):
            found = self._api.get_submission(int(reference))
        return KaggleStatus(
            found.status.name.lower(), _number(found.public_score), _number(found.private_score),
            (found.error_description or "").strip(),
        )  # fmt: skip


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


@contextlib.contextmanager
def _told(what: str) -> Iterator[io.StringIO]:
    """Keep what is printed, and turn a failing request into a message."""
    chatter = io.StringIO()
    try:
        with contextlib.redirect_stdout(chatter):
            yield chatter
    except OSError as error:  # as all of requests' errors are
        raise SubmissionError(f"{what}: {error}; the submission is kept, try again later") from None
