"""Kaggle client: the only module that imports `kaggle`, an optional extra.

It is imported late because importing it signs in, and its output is captured because stdout is for results.
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
    """A submission's status on Kaggle.

    Attributes:
        status: `pending`, `complete` or `error`.
        public: public score; None if not available.
        private: private score; None if not available.
        error: Kaggle's error message.
    """

    status: str
    public: float | None
    private: float | None
    error: str


class KaggleClient:
    """A signed-in Kaggle client."""

    def __init__(self) -> None:
        """Sign in with the user's own credentials.

        Raises:
            SubmissionError: the extra is not installed, there are no credentials, or Kaggle cannot be reached.
        """
        with _requests("kaggle: cannot sign in") as output:
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
                message = " ".join(output.getvalue().split())
                raise SubmissionError(
                    f"kaggle: no valid credentials; store a token in {_CREDENTIALS}; the submission is kept"
                    f"{': ' + message[:200] if 'nvalid' in message else ''}"
                ) from None

    def upload(self, path: Path, competition: str, message: str) -> str:
        """Upload a CSV; return its reference on Kaggle.

        Raises:
            SubmissionError: Kaggle refuses it or cannot be reached.
        """
        refused = f"kaggle: {path} was refused by competition '{competition}'"
        with _requests(refused) as output:
            answer = self._api.competition_submit(str(path), message, competition, quiet=True)
            if not answer.ref:
                reason = " ".join(f"{answer.message or ''} {output.getvalue()}".split())
                raise SubmissionError(f"{refused}: {reason}")
        return str(answer.ref)

    def status(self, reference: str) -> KaggleStatus:
        """Return a submission's status.

        Raises:
            SubmissionError: Kaggle does not know it or cannot be reached.
        """
        with _requests(f"kaggle: cannot read the status of submission {reference}"):
            submission = self._api.get_submission(int(reference))
        return KaggleStatus(
            status=submission.status.name.lower(),
            public=_parse_score(submission.public_score),
            private=_parse_score(submission.private_score),
            error=(submission.error_description or "").strip(),
        )


def _parse_score(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


@contextlib.contextmanager
def _requests(failure: str) -> Iterator[io.StringIO]:
    """Capture stdout, and turn failing requests into a SubmissionError that begins with `failure`."""
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            yield output
    except OSError as error:  # the base of all errors of `requests`
        raise SubmissionError(f"{failure}: {error}; the submission is kept; try again later") from None
