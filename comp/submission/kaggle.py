"""Submit to Kaggle (`comp submit`): upload a CSV, wait for its score and record it with the run. Torch-free.

The sidecar's `sent` lists each upload before the wait begins, so that an interrupted wait continues with the same
upload instead of spending another one.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from comp.results import files, records, runs
from comp.runtime.errors import SubmissionError
from comp.runtime.progress import Progress, quiet
from comp.submission import kaggle_failures, scores
from comp.submission.kaggle_client import KaggleStatus, UnreachableError

_TICK_SECONDS = 0.2  # between two checks for signals
_LONGEST_PAUSE_SECONDS, _LONGER = 30.0, 1.5  # between two requests; times the pause before


class Client(Protocol):
    """A competition site's client; see `comp.submission.kaggle_client.KaggleClient`."""

    def upload(self, path: Path, competition: str, message: str) -> str:
        """Upload a CSV; return its reference."""

    def status(self, reference: str) -> KaggleStatus:
        """Return a submission's status."""


@dataclass(frozen=True)
class Wait:
    """How long to wait for Kaggle, in all; `pause_seconds` is the time between the first two requests."""

    seconds: float
    progress: Progress = quiet
    pause_seconds: float = 1.0
    start: float = field(default_factory=time.monotonic)

    def until_ended(self, what: str, ask: Callable[[], KaggleStatus]) -> KaggleStatus | None:
        """Return a final status, or None if it is still pending when the time is up. Lost connections are waited out.

        Raises:
            SubmissionError: Kaggle refuses to answer, or cannot be reached when the time is up.
        """
        pause = self.pause_seconds
        while True:
            lost: UnreachableError | None = None
            try:
                if (result := ask()).status != "pending":
                    return result
            except UnreachableError as error:
                lost = error
            last_request = time.monotonic()
            while time.monotonic() - last_request < pause:
                waited = time.monotonic() - self.start
                if waited > self.seconds:
                    if lost is not None:
                        raise lost
                    return None
                self.progress(what, int(waited), int(self.seconds), "seconds")
                time.sleep(min(_TICK_SECONDS, pause))
            pause = min(_LONGER * pause, _LONGEST_PAUSE_SECONDS)


def submit(
    path: Path,
    connect: Callable[[], Client],
    *,
    competition: str,
    message: str,
    wait: Wait,
    again: bool = False,
    record_path: Path | None = None,
    digest: str = "",
    run_path: str = "",
    upload: Callable[[], str] | None = None,
) -> dict[str, Any]:
    """Upload a submission, wait for its score and return the record for its sidecar and its run.

    Args:
        path: the CSV, already checked.
        connect: signs in; called only if there is something to do.
        competition: Kaggle's name of the competition (slug).
        message: shown beside the submission on Kaggle.
        wait: how long to wait for the score.
        again: submit a file that already has a score, or that Kaggle found invalid.
        record_path: the JSON file whose `sent` lists the uploads; None: the sidecar, which names the run too.
        digest: what tells this submission from others; empty: the file's SHA-256.
        run_path: folder of the run; empty: the sidecar's.
        upload: submits it and returns its reference; None: the client uploads the file.

    Raises:
        SubmissionError: already submitted, refused by Kaggle, found invalid by Kaggle, or not scored in time.
    """
    record_path = record_path or runs.sidecar_path(path)
    sidecar = records.read_sidecar(record_path) if record_path.exists() else {}
    digest = digest or files.sha256_file(path)
    uploads = [row for row in sidecar.get("sent", ()) if (row["sha256"], row["competition"]) == (digest, competition)]
    pending = next((row for row in uploads if row["status"] == "pending"), None)
    if uploads and not pending and not again:
        status, score = uploads[-1]["status"], uploads[-1].get("public")
        ending = f"score {score}" if status == "complete" else f"which ended as {status}"
        raise SubmissionError(f"{path}: already submitted to '{competition}', {ending}; submit it again with --force")
    client = connect()
    if pending is None:
        reference = upload() if upload else client.upload(path, competition, message)
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
        _write_record(record_path, pending)
    reference = pending["reference"]
    result = wait.until_ended("waiting for the score", lambda: client.status(reference))
    if result is None:
        raise SubmissionError(
            f"{path}: submission {reference} has no score after {wait.seconds:g} s; run the same command to wait "
            "longer, it does not submit again"
        )
    record = {**pending, "status": result.status, "public": result.public, "private": result.private}
    _write_record(record_path, record)
    if result.status != "complete":
        reason = result.error or "Kaggle gives no reason; the competition's list of your submissions may"
        parts = (f"{path}: submission {reference} ended as {result.status}: {reason}", kaggle_failures.explain(reason))
        raise SubmissionError("; ".join(filter(None, parts)))
    _record_with_run(path, run_path or str(sidecar.get("run_path", "")), record)
    return record


def _write_record(sidecar_path: Path, record: dict[str, Any]) -> None:
    with files.hold_folder(sidecar_path.parent):
        sidecar = files.read_json(sidecar_path) if sidecar_path.exists() else {}
        others = [row for row in sidecar.get("sent", ()) if row["reference"] != record["reference"]]
        files.write_atomically(sidecar_path, files.to_json({**sidecar, "sent": [*others, record]}))


def _record_with_run(path: Path, run_path: str, record: dict[str, Any]) -> None:
    """Record the score with the run, if its folder still exists."""
    folder = Path(run_path)
    if run_path and (folder / "metrics.json").is_file():
        scores.record_score(
            runs.open_run(folder),
            public=record["public"],
            private=record["private"],
            submission=str(path),
            reference=record["reference"],
            source=f"kaggle {record['competition']}",
        )
