"""Run a package's notebook as a code competition would: without network, in an environment of its own.

The environment is a fresh one whose only packages are the image's, as they are installed here, and what runs notebooks.
They are lent as links in a folder that a `.pth` file names, so that what the image lacks has to come from the package.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterable
from importlib import metadata
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from comp.config import parse_duration
from comp.data import cache
from comp.data.splits import Split
from comp.inference.inputs import PredictInput
from comp.results import files, prediction_files
from comp.results.predictions import Predictions
from comp.results.runs import Run
from comp.runtime.errors import ConfigError, RunError, UserError
from comp.runtime.progress import Progress, quiet
from comp.submission import kaggle_failures
from comp.workflows import kaggle_package, kaggle_wheels
from comp.workflows.hidden_test import Manifest, write_rows
from comp.workflows.kaggle_package import DATASET, KERNEL, NOTEBOOK, RECORD, Names
from comp.workflows.kaggle_wheels import HERE, Image
from comp.workflows.load import load_for_input
from comp.workflows.predict import predict_images

_RUNNERS = ("nbclient", "ipykernel")
_TICK_SECONDS = 0.2
_LAST_LINES = 15  # of what a notebook that failed said
_OWN_NETWORK = ("unshare", "--net", "--map-root-user")  # Linux: no network for any code, if the kernel permits it

# For where that is not permitted. Jupyter's sockets are on the loopback.
_BLOCK_NETWORK = """
import socket

def guarded(function, host_of):
    def call(*arguments, **options):
        if (host := host_of(*arguments)) not in (None, "", "localhost", "127.0.0.1", "::1"):
            raise OSError(f"no network in a code competition: {host}")
        return function(*arguments, **options)
    return call

def host_of(connection, *arguments):
    return None if connection.family == socket.AF_UNIX else arguments[-1][0]

for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, guarded(getattr(socket.socket, name), host_of))
socket.getaddrinfo = guarded(socket.getaddrinfo, lambda host, *arguments: host)
"""
# Runs the notebook and one more cell, in which it tells what it needed. Its arguments: notebook, result, kernel, and
# `own` where a network of its own needs its loopback switched on (SIOCSIFFLAGS; IFF_UP, IFF_RUNNING).
_RUN_NOTEBOOK = """
import fcntl, json, socket, struct, sys, time
import nbclient, nbformat

if sys.argv[4] == "own":
    with socket.socket() as connection:
        fcntl.ioctl(connection, 0x8914, struct.pack("16sh", b"lo", 0x41))
notebook = nbformat.read(sys.argv[1], 4)
measure = (
    "import json, resource\\n"
    "peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))\\n"
    "print(json.dumps({'predict_seconds': result.seconds, 'rows': result.rows, 'notes': result.notes, 'peak': peak}))"
)
notebook.cells.append(nbformat.v4.new_code_cell(measure))
client = nbclient.NotebookClient(notebook, kernel_name=sys.argv[3], timeout=None)
started = time.monotonic()
try:
    client.execute()
except nbclient.exceptions.CellExecutionError as error:
    sys.exit(str(error))
printed = json.loads(notebook.cells[-1].outputs[0]["text"])
printed["seconds"] = time.monotonic() - started
with open(sys.argv[2], "w") as file:
    json.dump(printed, file)
"""


class Request(NamedTuple):
    """A package that can be made.

    Attributes:
        names: of dataset and notebook.
        image: that the notebook will run in.
        limit_seconds: the time that it may take.
    """

    names: Names
    image: Image
    limit_seconds: float


def check_request(
    run: Run,
    folder: Path,
    *,
    competition: str,
    owner: str,
    title: str,
    image_packages: Path | None,
    limit: str,
    verify: bool,
) -> Request:
    """Check everything that needs no work; see `comp.export_kaggle` for the arguments.

    Raises:
        UserError: a name, a time, the folder or the list of packages; or this Python cannot verify.
    """
    try:
        seconds = parse_duration(limit)
    except ValueError:
        raise ConfigError(f"--limit: expected a time such as 90s, 15min or 9h, found '{limit}'") from None
    names = kaggle_package.check_names(run, competition=competition, owner=owner, title=title)
    files.check_new_folder(folder)
    image = kaggle_wheels.read_image(image_packages)
    if verify:
        check_tools(image)
    return Request(names, image, seconds)


def check_tools(image: Image) -> None:
    """Check that this Python can stand in for the image's, and runs notebooks; else raise UserError."""
    if image.python != HERE:
        raise UserError(
            f"--verify: the image has Python {image.python}, and its wheels are not made for this {HERE}; use "
            f"Python {image.python}, or leave --verify out"
        )
    if os.name == "nt":
        raise UserError("--verify: needs Linux or macOS; leave it out")
    if missing := [name for name in _RUNNERS if not find_spec(name)]:
        raise UserError(f"--verify: {missing[0]} is not installed: pip install 'comp[verify]'")


def verify(
    folder: Path,
    run: Run,
    image: Image,
    *,
    limit_seconds: float,
    rows: int | None = None,
    progress: Progress = quiet,
) -> dict[str, Any]:
    """Run a package's notebook on the local test, compare its CSV with `comp predict`'s, and record what was measured.

    Args:
        folder: the package.
        run: what was packed in it.
        image: what it was packed for.
        limit_seconds: that the notebook may take; it is stopped at that.
        rows: of the hidden test, to which the time is extrapolated; None: as many as the local test has.
        progress: called while the notebook runs.

    Raises:
        RunError: the notebook fails or takes too long, or its CSV differs; the package stays, marked as unverified.
    """
    manifest = Manifest.read(folder / DATASET)
    try:
        with tempfile.TemporaryDirectory(prefix="comp-verify-") as temporary:
            place = Path(temporary)
            python = _create_environment(place / "environment", image)
            measured = _run_notebook(folder, run, python, place, limit_seconds, progress)
            expected = place / "expected.csv"
            write_rows(expected, _predict(run, progress), manifest)
            difference = _difference(expected, place / "submission.csv")
    except (OSError, subprocess.CalledProcessError) as error:  # the second: no pip in the environment
        raise RunError(
            f"{folder}: unverified: in {tempfile.gettempdir()}: {files.error_text(error)}; free space there, or set "
            "TMPDIR to another folder"
        ) from None
    fixed = measured["seconds"] - measured["predict_seconds"]
    asked = manifest.rows if rows is None else rows
    values = {
        "rows": measured["rows"],
        "seconds": round(measured["seconds"], 2),
        "predict_seconds": round(measured["predict_seconds"], 2),
        "peak_bytes": measured["peak"] * (1 if sys.platform == "darwin" else 1024),
        "notes": measured["notes"],
        "hidden_rows": asked,
        "hidden_seconds": round(fixed + measured["predict_seconds"] * asked / measured["rows"], 1),
        "limit_seconds": limit_seconds,
        "network": "only the loopback" + ("" if measured["own_network"] else ", for Python's sockets"),
    }
    record = {**files.read_json(folder / RECORD), "verified": not difference, "verification": values}
    files.write_atomically(folder / RECORD, files.to_json(record))
    if difference:
        raise RunError(f"{folder}: unverified: the notebook's CSV differs from that of {run.path}: {difference}")
    if values["hidden_seconds"] > limit_seconds:
        raise RunError(
            f"{folder}: {asked:,} rows would take {values['hidden_seconds']:,.0f} s, more than {limit_seconds:,.0f} s "
            f"(--limit), as {measured['rows']:,} took {measured['predict_seconds']:.1f} s; predict with fewer views or "
            "members, or on a GPU"
        )
    return values


def _predict(run: Run, progress: Progress) -> Predictions:
    """Return the predictions of `comp predict`, which are not stored again, or the stored ones of an ensemble."""
    if not run.has_weights():
        return prediction_files.load(run.path / "predictions" / "suite.npz")
    loaded = load_for_input(run, PredictInput(), progress)
    images = loaded.images_of("suite")
    assert isinstance(images, Split), "only a test is packed"
    return predict_images(loaded, images, progress)


def _create_environment(folder: Path, image: Image) -> Path:
    """Create a virtual environment with the image's packages, without network; return its Python."""
    venv.create(folder, with_pip=True, symlinks=True)
    python = folder / "bin" / "python"
    (site_packages,) = folder.glob("lib/python3*/site-packages")
    lent = folder / "lent"
    _lend({*image.packages, *kaggle_wheels.closure(_RUNNERS, image.python)} - {"comp"}, lent)
    (site_packages / "comp_no_network.py").write_text(_BLOCK_NETWORK)
    (site_packages / "comp_verify.pth").write_text(f"{lent}\nimport comp_no_network\n")
    kernel = folder / "share/jupyter/kernels" / folder.name / "kernel.json"  # no other kernel has this name
    files.make_folder(kernel.parent)
    words = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.write_text(json.dumps({"argv": words, "display_name": folder.name, "language": "python"}))
    return python


def _lend(names: Iterable[str], folder: Path) -> None:
    """Link what packages have installed here into a folder; packages that are not installed are skipped."""
    files.make_folder(folder)
    for name in names:
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__", "bin"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(distribution.locate_file(top))).resolve())


def _run_notebook(
    folder: Path, run: Run, python: Path, place: Path, limit_seconds: float, progress: Progress
) -> dict[str, Any]:
    """Run the notebook with a working folder of its own; return what it measured."""
    own_network = _can_unshare()
    notebook = str((folder / KERNEL / NOTEBOOK).resolve())
    network = "own" if own_network else ""
    words = [str(python), "-c", _RUN_NOTEBOOK, notebook, "result.json", python.parents[1].name, network]
    data = place / "data"  # links, without the cache of what comp has found out about the files
    files.make_folder(data)
    for source in Path(kaggle_package.first_network(run).config().data.root).resolve().iterdir():
        if source.name != cache.FOLDER:
            (data / source.name).symlink_to(source)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {
        "COMP_DATASET": str((folder / DATASET).resolve()),
        "COMP_DATA": str(data),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    log, started = place / "log.txt", time.monotonic()
    command = [*(_OWN_NETWORK if own_network else ()), *words]
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=place, env=environment, stdout=output, stderr=output)
        try:
            while process.poll() is None:
                elapsed = time.monotonic() - started
                if elapsed > limit_seconds:
                    raise RunError(f"{folder}: unverified: the notebook still runs after {limit_seconds:,.0f} s")
                progress("running the notebook", int(elapsed), 0, "seconds")
                time.sleep(_TICK_SECONDS)
        finally:
            process.terminate()
            process.wait()
    if process.returncode:
        lines = kaggle_failures.last_lines(log.read_text(errors="replace"), _LAST_LINES)
        raise RunError(f"{folder}: unverified: the notebook failed:\n{lines}")
    return {**files.read_json(place / "result.json"), "own_network": own_network}


def _can_unshare() -> bool:
    try:
        return not subprocess.run([*_OWN_NETWORK, "true"], capture_output=True, check=False).returncode
    except OSError:
        return False


def _difference(expected: Path, written: Path) -> str:
    """Return how two CSVs differ, empty if they have the same bytes."""
    if expected.read_bytes() == written.read_bytes():
        return ""
    pairs = list(zip_longest(*(path.read_bytes().splitlines() for path in (expected, written))))
    return f"{sum(one != other for one, other in pairs):,} of {len(pairs):,} lines"
