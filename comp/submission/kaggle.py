"""`comp submit`: a checked submission is sent, its score waited for and kept with the run. Torch-free.

The sidecar remembers under `sent` what went where before the wait begins, so that a wait which was stopped goes on
with the submission that is there already, and none is spent twice.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from comp.results import files, runs
from comp.runtime.errors import SubmissionError
from comp.runtime.progress import Progress, quiet
from comp.submission import scores

_POLL_SECONDS = 5.0
_TICK_SECONDS = 0.2  # between two looks at the signals


class _State(Protocol):
    @property
    def status(self) -> str: ...
    @property
    def public(self) -> float | None: ...
    @property
    def private(self) -> float | None: ...
    @property
    def error(self) -> str: ...


class Client(Protocol):
    """What is asked of a competition's site; see `comp.submission.kaggle_client.Kaggle`."""

    def upload(self, path: Path, competition: str, message: str) -> str:
        """Send a CSV; return its reference."""

    def state(self, reference: str) -> _State:
        """Return what has become of it."""


def send(
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
    """Send a submission and wait for its score; return the record that its sidecar, and its run, then have.

    Args:
        path: of the CSV, checked.
        connect: signs in; called once it is clear that there is something to do.
        competition: as the site calls it.
        message: shown beside the submission there.
        wait_seconds: for the score, at most.
        again: send a file that was sent and scored before.
        poll_seconds: between two questions.
        progress: called while waiting.

    Raises:
        SubmissionError: it was sent before, the site refuses it or finds it wrong, or the score does not come in time.
    """
    beside = runs.sidecar_path(path)
    sidecar = files.read_json(beside) if beside.exists() else {}
    digest = files.sha256_file(path)
    sent = [row for row in sidecar.get("sent", ()) if (row["sha256"], row["competition"]) == (digest, competition)]
    pending = next((row for row in sent if row["status"] == "pending"), None)
    scored = next((row for row in sent if row["status"] == "complete"), None)
    if scored and not pending and not again:
        raise SubmissionError(
            f"{path}: was sent to '{competition}' already and scored {scored['public']}; send it again with --force"
        )
    client = connect()
    if pending is None:
        reference = client.upload(path, competition, message)
        pending = {
            "reference": reference, "competition": competition, "message": message, "sha256": digest,
            "status": "pending", "public": None, "private": None, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }  # fmt: skip
        _remember(beside, sidecar, pending)
    state = _wait(client, pending["reference"], wait_seconds, poll_seconds, progress)
    if state is None:
        raise SubmissionError(
            f"{path}: sent as submission {pending['reference']}, not scored after {wait_seconds:.0f} s; the same "
            "command waits on and does not send it again"
        )
    record = {**pending, "status": state.status, "public": state.public, "private": state.private}
    _remember(beside, sidecar, record)
    if state.status != "complete":
        raise SubmissionError(f"{path}: submission {pending['reference']} ended as {state.status}: {state.error}")
    _note_with_run(path, sidecar, record)
    return record


def _remember(beside: Path, sidecar: dict[str, Any], record: dict[str, Any]) -> None:
    others = [row for row in sidecar.get("sent", ()) if row["reference"] != record["reference"]]
    files.write_atomically(beside, files.to_json({**sidecar, "sent": [*others, record]}))


def _wait(client: Client, reference: str, wait_seconds: float, poll_seconds: float, progress: Progress) -> Any:
    """Return the submission's last state; None where it is still pending when the time is over."""
    began = time.monotonic()
    while (state := client.state(reference)).status == "pending":
        asked = time.monotonic()
        while time.monotonic() - asked < poll_seconds:
            waited = time.monotonic() - began
            if waited > wait_seconds:
                return None
            progress("waiting for the score", int(waited), int(wait_seconds), "seconds")
            time.sleep(min(_TICK_SECONDS, poll_seconds))
    return state


def _note_with_run(path: Path, sidecar: dict[str, Any], record: dict[str, Any]) -> None:
    """Record the score with the run, where that still lies where it was."""
    folder = Path(sidecar.get("run_path", ""))
    if "run_path" in sidecar and (folder / "metrics.json").is_file():
        scores.record_score(
            runs.open_run(folder), public=record["public"], private=record["private"], submission=str(path),
            reference=record["reference"], source=f"kaggle {record['competition']}",
        )  # fmt: skip
