"""Kaggle client: the only module that imports `kaggle`, an optional extra.

It is imported late because importing it signs in, and its output is captured because stdout is for results.
"""

import contextlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comp.results import files
from comp.runtime.errors import SubmissionError, UserError
from comp.submission import kaggle_failures

_CREDENTIALS = "~/.kaggle/access_token, KAGGLE_API_TOKEN, ~/.kaggle/kaggle.json, or KAGGLE_USERNAME with KAGGLE_KEY"
_TOO_MANY_REQUESTS, _SERVER_ERRORS = 429, 500
_TIMEOUT_SECONDS = 120.0  # for the next bytes of an answer
_UNKNOWN = (403, 404)  # Kaggle's answers to a name that does not exist, or is another user's
_MESSAGE = re.compile(r'"message"\s*:\s*("(?:[^"\\]|\\.)*")')  # in the JSON of a refusal


class UnreachableError(SubmissionError):
    """Kaggle cannot be reached, or asks to come later."""


@dataclass(frozen=True)
class KaggleStatus:
    """A submission's or a notebook's status on Kaggle.

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
    """A signed-in Kaggle client; every method raises SubmissionError if Kaggle refuses or cannot be reached."""

    def __init__(self, command: str = "comp submit", kept: str = "the submission is kept") -> None:
        """Sign in with the user's own credentials; messages name the command and end with what is kept."""
        self._kept = kept
        with self._requests("kaggle: cannot sign in") as output:
            try:
                from kaggle.api.kaggle_api_extended import KaggleApi
            except ImportError as error:
                raise SubmissionError(
                    f"{command} needs the `kaggle` extra, and {error.name or 'kaggle'} is not installed: pip install "
                    f"'comp[kaggle]'; {kept}"
                ) from None
            self._api: Any = KaggleApi()
            try:
                self._api.authenticate()
            except SystemExit:
                message = " ".join(output.getvalue().split())
                raise SubmissionError(
                    f"kaggle: no valid credentials; store a token in {_CREDENTIALS}, then run {command} again; {kept}"
                    f"{': ' + message[:200] if 'nvalid' in message else ''}"
                ) from None
        self.user = str(self._api.get_config_value("username") or "")

    def upload(self, path: Path, competition: str, message: str) -> str:
        """Upload a CSV; return its reference on Kaggle."""
        with self._requests(f"kaggle: {path} was refused by competition '{competition}'") as output:
            answer = self._api.competition_submit(str(path), message, competition, quiet=True)
            _check_answer(answer.ref, f"{answer.message or ''} {output.getvalue()}")
        return str(answer.ref)

    def status(self, reference: str) -> KaggleStatus:
        """Return a submission's status."""
        with self._requests(f"kaggle: cannot read the status of submission {reference}"):
            submission = self._api.get_submission(int(reference))
        status, error = submission.status.name.lower(), (submission.error_description or "").strip()
        public, private = _parse_score(submission.public_score), _parse_score(submission.private_score)
        if status == "complete" and error and public is None:  # a rerun that failed ends as "complete" too
            status = "error"
        return KaggleStatus(status=status, public=public, private=private, error=error)

    def dataset_state(self, dataset: str) -> tuple[str, int]:
        """Return a dataset's state (`ready`, `failed`, ..., `missing`) and its current version."""
        with self._requests(f"kaggle: cannot read the status of dataset {dataset}"):
            try:
                answer = json.loads(self._api.dataset_status(dataset, format="json"))
            except OSError as error:
                if _code(error) in _UNKNOWN:
                    return "missing", 0
                raise
            return str(answer["status"]), int(answer["current_version_number"])

    def push_dataset(self, folder: Path, message: str, *, exists: bool) -> None:
        """Create a private dataset from a folder, or a new version of it; subfolders travel as .zip files."""
        with self._requests(f"kaggle: dataset {folder} was refused") as output:
            if exists:
                answer = self._api.dataset_create_version(str(folder), message, quiet=True, dir_mode="zip")
            else:
                answer = self._api.dataset_create_new(str(folder), quiet=True, dir_mode="zip")
            is_made = not answer.error and str(answer.status).lower() == "ok"
            _check_answer(is_made, f"{answer.error or 'Kaggle does not confirm it'} {output.getvalue()}")

    def push_kernel(self, folder: Path) -> tuple[int, str]:
        """Push a notebook, which Kaggle then runs; return its version and its address."""
        with self._requests(f"kaggle: notebook {folder} was refused"):
            answer = self._api.kernels_push(str(folder))
            _check_answer(not answer.error and answer.version_number, str(answer.error or "it got no version"))
            unknown = [*(answer.invalid_dataset_sources or ()), *(answer.invalid_competition_sources or ())]
            _check_answer(not unknown, f"Kaggle does not know, or show you, its source {', '.join(unknown)}")
            return int(answer.version_number), str(answer.url or "")

    def kernel_status(self, kernel: str) -> KaggleStatus:
        """Return the status of a notebook's version (`owner/slug/version`)."""
        with self._requests(f"kaggle: cannot read the status of notebook {kernel}"):
            answer = self._api.kernels_status(kernel)
        name = answer.status.name
        status = {"COMPLETE": "complete", "ERROR": "error", "CANCEL_ACKNOWLEDGED": "error"}.get(name, "pending")
        cancelled = "canceled" if name.startswith("CANCEL") else ""
        return KaggleStatus(status, None, None, (answer.failure_message or cancelled).strip())

    def kernel_output(self, kernel: str, folder: Path) -> str:
        """Download submission.csv of a notebook's version into a folder, if there is one; return the log."""
        with self._requests(f"kaggle: cannot download the output of notebook {kernel}"):
            log = str(self._api.kernels_logs(kernel))
            self._api.kernels_output(kernel, str(folder), file_pattern=r"^submission\.csv$", force=True)
        try:
            return "".join(str(entry["data"]) for entry in json.loads(log))
        except (ValueError, TypeError, KeyError):
            return log  # not the list of outputs that Kaggle keeps today

    def submit_kernel(self, kernel: str, version: int, competition: str, message: str) -> str:
        """Submit submission.csv of a notebook's version to a code competition; return the submission's reference."""
        with self._requests(f"kaggle: {kernel}, version {version}, was refused by competition '{competition}'"):
            answer = self._api.competition_submit_code("submission.csv", message, competition, kernel, version)
            _check_answer(answer.ref, answer.message or "")
        return str(answer.ref)

    @contextlib.contextmanager
    def _requests(self, failure: str) -> Iterator[io.StringIO]:
        """Capture stdout, and turn what fails into a SubmissionError that begins with `failure`."""
        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output), _time_limit():
                yield output
        except UserError:
            raise
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            # OSError is the base of all errors of `requests`; the others come from answers that the client cannot read
            reason, code = _reason(error), _code(error)
            is_away = isinstance(error, OSError) and (not code or code == _TOO_MANY_REQUESTS or code >= _SERVER_ERRORS)
            advice = kaggle_failures.explain(reason) or ("try again later" if is_away else "")
            message = "; ".join(filter(None, (f"{failure}: {reason}", advice, self._kept)))
            raise (UnreachableError if is_away else SubmissionError)(message) from None


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    """Limit the time of every request: Kaggle's client would wait for ever for an answer."""
    try:
        from requests.adapters import HTTPAdapter
    except ImportError:  # nor is Kaggle's client there
        yield
        return
    send = HTTPAdapter.send

    def limited(self: HTTPAdapter, request: Any, *arguments: Any, **options: Any) -> Any:
        return send(self, request, *arguments, **{**options, "timeout": options.get("timeout") or _TIMEOUT_SECONDS})

    HTTPAdapter.send = limited  # type: ignore[method-assign]
    try:
        yield
    finally:
        HTTPAdapter.send = send  # type: ignore[method-assign]


def _check_answer(is_accepted: object, reason: str) -> None:
    if not is_accepted:
        raise ValueError(" ".join(reason.split()) or "Kaggle gives no reason")


def _code(error: Exception) -> int:
    """Return the HTTP status that an error carries; 0 without an answer."""
    response = getattr(error, "response", None)
    return 0 if response is None else int(response.status_code)


def _reason(error: Exception) -> str:
    """Return Kaggle's message in a refusal, else the error's own."""
    message = _MESSAGE.search(error.response.text) if _code(error) else None  # type: ignore[attr-defined]
    return str(json.loads(message[1])) if message else files.error_text(error)


def _parse_score(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None
