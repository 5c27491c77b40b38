"""Submit a notebook to a code competition (`comp submit --kernel`): push, wait, submit, record. Torch-free.

`pushed.json` in the package's folder holds what is done, so that the same command goes on where it stopped.
"""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from comp.results import files, records
from comp.runtime.errors import SubmissionError, shortened
from comp.submission import csv_io, kaggle, kaggle_failures
from comp.submission.check_package import Package
from comp.submission.kaggle import Wait
from comp.submission.kaggle_client import KaggleClient, KaggleStatus

STATE, LOG, CSV = "pushed.json", "log.txt", "submission.csv"


def submit_kernel(
    package: Package,
    connect: Callable[[], KaggleClient],
    *,
    wait: Wait,
    runs_root: Path,
    message: str = "",
    submit: bool = True,
    again: bool = False,
) -> dict[str, Any]:
    """Push a package to Kaggle, wait for its notebook, submit its output, wait for the score and record it.

    What Kaggle has is not sent again.

    Args:
        package: its folder gets pushed.json, the notebook's log.txt and its submission.csv.
        connect: signs in; called only if there is something to do.
        wait: how long to wait, in all.
        runs_root: where the exported run is looked for if it has moved.
        message: shown beside the submission on Kaggle.
        submit: False: end once the notebook has run.
        again: push a package again whose notebook or submission has ended; one that has not is waited for.

    Returns:
        The notebook's record, the submission's (None without one) and the run's folder (empty if it is gone).

    Raises:
        SubmissionError: submitted already, refused by Kaggle, failed there, or not ready in time.
    """
    folder, connect, run = package.folder, functools.cache(connect), _find_run(package.run_path, runs_root)
    # Another process would push the same.
    with files.hold_folder(folder / "kernel", lambda: wait.progress("waiting for another comp submit", 0, 0)):
        state = _read_state(package)
        kernel = state.get("kernel", {})
        records_of_it = (kernel, *(row for row in state.get("sent", ()) if row["sha256"] == kernel.get("push")))
        is_pending = any(record.get("status") == "pending" for record in records_of_it)
        if kernel.get("sha256") != package.sha256 or (again and not is_pending):
            _push_dataset(connect(), package, state, wait)
            kernel = _push_notebook(connect(), package)
        if kernel["status"] == "pending":
            kernel = _await_notebook(connect(), package, kernel, wait)
        if kernel["error"]:
            raise SubmissionError(f"{folder}: {kernel['error']}; push it again, changed or with --force")
        submission = None
        if submit:
            submission = kaggle.submit(
                folder,
                connect,
                competition=package.competition,
                message=message,
                wait=wait,
                record_path=folder / STATE,
                digest=kernel["push"],
                run_path=run,
                upload=lambda: connect().submit_kernel(package.kernel, kernel["version"], package.competition, message),
            )
    return {"kernel": kernel, "submission": submission, "run": run}


def _read_state(package: Package) -> dict[str, Any]:
    path, cure = package.folder / STATE, "delete it to push the package anew"
    if not path.exists():
        return {}
    state = files.read_json(path, cure)
    records.check(state, path, records.PUSHED, cure)
    return state


def _write_state(package: Package, name: str, values: dict[str, Any]) -> None:
    with files.hold_folder(package.folder):
        files.write_atomically(package.folder / STATE, files.to_json({**_read_state(package), name: values}))


def _push_dataset(client: KaggleClient, package: Package, state: dict[str, Any], wait: Wait) -> None:
    """Upload the dataset, unless Kaggle has the same files, and wait until a notebook can read it."""
    for name in (package.dataset, package.kernel):
        if client.user.lower() not in ("", name.partition("/")[0].lower()):
            raise SubmissionError(
                f"{package.folder}: '{name}' is not yours: you are signed in to Kaggle as '{client.user}'; export it "
                f"again with --owner {client.user}"
            )
    pushed = state.get("dataset", {})
    if pushed.get("sha256") != package.dataset_sha256:
        wait.progress("uploading the dataset", 0, 0)
        status, version = client.dataset_state(package.dataset)
        client.push_dataset(package.folder / "dataset", "comp submit --kernel", exists=status != "missing")
        pushed = {"sha256": package.dataset_sha256, "version_before": version}
        _write_state(package, "dataset", pushed)

    def ask() -> KaggleStatus:
        status, version = client.dataset_state(package.dataset)
        if status in ("failed", "deleted"):
            return KaggleStatus("error", None, None, status)
        # Until the new version is there, the one before it is "ready".
        is_new = status == "ready" and version > pushed["version_before"]
        return KaggleStatus("complete" if is_new else "pending", None, None, status)

    result = _await(f"dataset {package.dataset}", ask, package, wait)
    if result.error != "ready":
        _write_state(package, "dataset", {"sha256": "", "version_before": 0})
        raise SubmissionError(
            f"{package.folder}: dataset {package.dataset} is {result.error} on Kaggle; run the same command again"
        )


def _push_notebook(client: KaggleClient, package: Package) -> dict[str, Any]:
    version, url = client.push_kernel(package.folder / "kernel")
    kernel = {
        "sha256": package.sha256,
        "push": files.sha256_bytes(f"{package.sha256} {version}".encode()),  # tells its submission from others
        "version": version,
        "url": url,
        "status": "pending",
        "error": "",
    }
    _write_state(package, "kernel", kernel)
    return kernel


def _await_notebook(client: KaggleClient, package: Package, kernel: dict[str, Any], wait: Wait) -> dict[str, Any]:
    """Wait until the notebook has run, fetch its log and submission, and return its record with how it ended."""
    name, log_path = f"{package.kernel}/{kernel['version']}", package.folder / LOG
    result = _await(f"notebook {name}", lambda: client.kernel_status(name), package, wait)
    with tempfile.TemporaryDirectory(dir=package.folder) as staging:
        csv, log = Path(staging) / CSV, client.kernel_output(name, Path(staging))
        files.write_atomically(log_path, log.encode(errors="replace"))
        parts = (result.error, shortened(kaggle_failures.last_error(log)), kaggle_failures.explain(result.error, log))
        reason = "; ".join(filter(None, parts)) or "Kaggle gives no reason"
        error = reason if result.status == "error" else _check_csv(csv)
        if not error:
            csv.replace(package.folder / CSV)
    if error:
        error = f"notebook {name} failed: {error}; its log is {log_path}"
    kernel = {**kernel, "status": result.status, "error": error}
    _write_state(package, "kernel", kernel)
    return kernel


def _await(what: str, ask: Callable[[], KaggleStatus], package: Package, wait: Wait) -> KaggleStatus:
    if (result := wait.until_ended(f"waiting for {what}", ask)) is None:
        raise SubmissionError(
            f"{package.folder}: {what} is not ready after {wait.seconds:g} s; run the same command to wait longer, "
            "it pushes nothing again"
        )
    return result


def _check_csv(path: Path) -> str:
    """Return what is wrong with a notebook's submission; empty if nothing is."""
    try:
        return "" if len(csv_io.read_strict(path)) else f"{CSV} has a header and no row"
    except SubmissionError as error:
        return str(error).replace(str(path), CSV) + "; the notebook must write it to /kaggle/working"


def _find_run(recorded: str, root: Path) -> str:
    """Return the exported run's folder, as recorded or moved below the folder of all runs; empty if it is gone."""
    path = Path(recorded)
    places = (path, *(root.joinpath(*path.parts[-depth:]) for depth in (2, 3)))
    return next((str(place) for place in places if (place / "metrics.json").is_file()), "")
