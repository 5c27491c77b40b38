"""Submit to Kaggle (`comp submit`): upload a CSV, wait for its score and record it with the run. Torch-free.

The sidecar's `sent` lists each upload before the wait begins, so that an interrupted wait continues with the same
upload instead of spending another one.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from comp.results import files, records, runs
from comp.runtime.errors import SubmissionError
from comp.runtime.progress import Progress, quiet
from comp.submission import scores
from comp.submission.kaggle_client import KaggleStatus

_POLL_SECONDS = 5.0
_TICK_SECONDS = 0.2  # between two checks for signals


class Client(Protocol):
    """A competition site's client; see `comp.submission.kaggle_client.KaggleClient`."""

    def upload(self, path: Path, competition: str, message: str) -> str:
        """Upload a CSV; return its reference."""

    def status(self, reference: str) -> KaggleStatus:
        """Return a submission's status."""


def submit(
    path: Path,
    connect: Callable[[], Client],
    *,
    competition: str,
    message: str,
    wait_seconds: float,
    again: bool = False,
    poll_seconds: float = _POLL_SECONDS,
    progress: Progress = quiet,
) -> dict[str, Any]:
    """Upload a submission, wait for its score and return the record for its sidecar and its run.

    Args:
        path: the CSV, already checked.
        connect: signs in; called only if there is something to do.
        competition: Kaggle's name of the competition (slug).
        message: shown beside the submission on Kaggle.
        wait_seconds: maximum time to wait for the score.
        again: submit a file that already has a score.
        poll_seconds: time between two requests.
        progress: called while waiting.

    Raises:
        SubmissionError: already submitted, refused by Kaggle, found invalid by Kaggle, or not scored in time.
    """
    sidecar_path = runs.sidecar_path(path)
    sidecar = records.read_sidecar(sidecar_path) if sidecar_path.exists() else {}
    digest = files.sha256_file(path)
    uploads = [row for row in sidecar.get("sent", ()) if (row["sha256"], row["competition"]) == (digest, competition)]
    pending = next((row for row in uploads if row["status"] == "pending"), None)
    scored = next((row for row in uploads if row["status"] == "complete"), None)
    if scored and not pending and not again:
        raise SubmissionError(
            f"{path}: already submitted to '{competition}', score {scored['public']}; submit it again with --force"
        )
    client = connect()
    if pending is None:
        reference = client.upload(path, competition, message)
        pending = {
            "reference": reference,
            "competition": competition,
            "message": message,
            "sha256": digest,
            "status": "pending",
            "public": None,
            "private": None,
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        _write_record(sidecar_path, pending)
    result = _wait(client, pending["reference"], wait_seconds, poll_seconds, progress)
    if result is None:
        raise SubmissionError(
            f"{path}: submission {pending['reference']} has no score after {wait_seconds:.0f} s; run the same command "
            "to wait longer, it does not submit again"
        )
    record = {**pending, "status": result.status, "public": result.public, "private": result.private}
    _write_record(sidecar_path, record)
    if result.status != "complete":
        raise SubmissionError(f"{path}: submission {pending['reference']} ended as {result.status}: {result.error}")
    _record_with_run(path, sidecar, record)
    return record


def _write_record(sidecar_path: Path, record: dict[str, Any]) -> None:
    with files.hold_folder(sidecar_path.parent):
        sidecar = files.read_json(sidecar_path) if sidecar_path.exists() else {}
        others = [row for row in sidecar.get("sent", ()) if row["reference"] != record["reference"]]
        files.write_atomically(sidecar_path, files.to_json({**sidecar, "sent": [*others, record]}))


def _wait(
    client: Client, reference: str, wait_seconds: float, poll_seconds: float, progress: Progress
) -> KaggleStatus | None:
    """Return the submission's final status; None if it is still pending when the time is up."""
    start = time.monotonic()
    while (result := client.status(reference)).status == "pending":
        last_request = time.monotonic()
        while time.monotonic() - last_request < poll_seconds:
            waited = time.monotonic() - start
            if waited > wait_seconds:
                return None
            progress("waiting for the score", int(waited), int(wait_seconds), "seconds")
            time.sleep(min(_TICK_SECONDS, poll_seconds))
    return result


def _record_with_run(path: Path, sidecar: dict[str, Any], record: dict[str, Any]) -> None:
    """Record the score with the run, if its folder still exists."""
    folder = Path(str(sidecar.get("run_path", "")))
    if "run_path" in sidecar and (folder / "metrics.json").is_file():
        scores.record_score(
            runs.open_run(folder),
            public=record["public"],
            private=record["private"],
            submission=str(path),
            reference=record["reference"],
            source=f"kaggle {record['competition']}",
        )
