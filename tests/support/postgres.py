"""A real PostgreSQL server on loopback, for the time of a test."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_USERS = ("postgres", "nobody")  # initdb refuses root


def programs() -> Path | None:
    """Return the folder of initdb and pg_ctl, None where there is none."""
    initdb = shutil.which("initdb")
    folders = [Path(initdb).resolve().parent] if initdb else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((folder for folder in reversed(folders) if (folder / "initdb").exists()), None)


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Start a server in a scratch folder, as a user that is not root, and give the URL of its database."""
    folder = programs()
    assert folder is not None
    with tempfile.TemporaryDirectory(prefix="comp-postgres-") as scratch:
        data = Path(scratch) / "data"
        data.mkdir()
        run_as: list[str] = []
        if os.geteuid() == 0:
            user = next(name for name in _USERS if subprocess.run(["id", name], capture_output=True).returncode == 0)
            for path in (Path(scratch), data):
                shutil.chown(path, user)
            run_as = ["setpriv", f"--reuid={user}", "--clear-groups"]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]

        def call(*command: str) -> None:
            subprocess.run([*run_as, *command], cwd=scratch, check=True, capture_output=True, timeout=120)

        call(str(folder / "initdb"), "-D", str(data), "-A", "trust", "-U", "comp", "--no-sync")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        control = [str(folder / "pg_ctl"), "-D", str(data), "-w", "-l", str(data / "log")]
        call(*control, "-o", options, "start")
        try:
            yield f"postgresql://comp@127.0.0.1:{port}/postgres"
        finally:
            call(*control, "-m", "immediate", "stop")


@contextlib.contextmanager
def server_or_skip() -> Iterator[str]:
    """Context manager: `server`; skip the test where PostgreSQL or its driver is not installed."""
    if programs() is None:
        pytest.skip("no initdb on this machine: install PostgreSQL (Debian: postgresql)")
    pytest.importorskip("psycopg", reason="pip install 'comp[postgres]'")
    with server() as url:
        yield url
