"""What Kaggle's client talks to in tests: a server on the loopback that keeps what it is sent, and runs no notebook."""

import contextlib
import importlib.util
import json
import os
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

USER = "someone"
needs_kaggle = pytest.mark.skipif(
    importlib.util.find_spec("kaggle") is None, reason="the kaggle extra is not installed: pip install 'comp[kaggle]'"
)
CSV = b"id,label\n1,cat\n2,dog\n"


class Site:
    """A fake Kaggle: its answers, and the requests it received."""

    def __init__(self) -> None:
        self.address = ""
        self.requests: list[str] = []
        self.refusals: dict[str, tuple[int, dict[str, Any]]] = {}  # method -> what it answers instead
        self.away: list[str] = []  # methods that answer 503 once
        self.silent: list[str] = []  # methods that answer once only when the test is over
        self.is_over = threading.Event()
        self.uploaded: list[bytes] = []
        self.submitted: list[dict[str, Any]] = []
        self.pending_answers = 0
        self.ends_as: dict[str, Any] = {"status": "COMPLETE", "publicScore": "0.71250", "privateScore": ""}
        self.dataset_versions: list[list[str]] = []  # the names of each version's files
        self.dataset_states: list[str] = []  # of a new version, before it can be read
        self.notebooks: list[dict[str, Any]] = []  # of each version what was pushed
        self.notebook_states: list[str] = []  # before it has run
        self.notebook_ends_as: dict[str, Any] = {"status": "COMPLETE"}
        self.log: Any = [{"stream_name": "stdout", "time": 1.5, "data": "predicted 2 images\n"}]
        self.outputs = {"submission.csv": CSV}
        self._files: dict[str, str] = {}
        self._version = 0
        self.waiting: list[str] = []

    def answer(self, method: str, values: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return the status code and the body."""
        self.requests.append(method)
        if method in self.away:
            self.away.remove(method)
            return 503, {}
        if method in self.silent:
            self.silent.remove(method)
            self.is_over.wait()
            return 503, {}
        if method in self.refusals:
            return self.refusals[method]
        return 200, getattr(self, re.sub(r"(?=[A-Z])", "_", method).lower())(values)

    def _introspect_token(self, values: dict[str, Any]) -> dict[str, Any]:
        return {"active": values["token"] == "good", "username": USER}

    def _start_submission_upload(self, values: dict[str, Any]) -> dict[str, Any]:
        return {"token": "blob", "createUrl": f"{self.address}/upload"}

    def _create_submission(self, values: dict[str, Any]) -> dict[str, Any]:
        self.submitted.append(values)
        return {"message": "Successfully submitted", "ref": 4710 + len(self.submitted)}

    _create_code_submission = _create_submission

    def _get_submission(self, values: dict[str, Any]) -> dict[str, Any]:
        self.pending_answers -= 1
        waits = {"status": "PENDING", "publicScore": "", "privateScore": ""}
        return {"ref": values["ref"], **(waits if self.pending_answers >= 0 else self.ends_as)}

    def _start_blob_upload(self, values: dict[str, Any]) -> dict[str, Any]:
        token = f"blob{len(self._files)}"
        self._files[token] = values["name"]
        return {"token": token, "createUrl": f"{self.address}/upload"}

    def _create_dataset(self, values: dict[str, Any]) -> dict[str, Any]:
        assert values["isPrivate"]
        return self._new_version(values["files"])

    def _create_dataset_version(self, values: dict[str, Any]) -> dict[str, Any]:
        return self._new_version(values["body"]["files"])

    def _new_version(self, files: list[dict[str, Any]]) -> dict[str, Any]:
        self.dataset_versions.append(sorted(self._files[file["token"]] for file in files))
        self.waiting = list(self.dataset_states)
        return {"status": "ok", "url": f"{self.address}/dataset"}

    def _get_dataset_status(self, values: dict[str, Any]) -> dict[str, Any]:
        self._version = len(self.dataset_versions) - bool(self.waiting)
        return {"status": self.waiting.pop(0) if self.waiting else "READY"}

    def _get_dataset(self, values: dict[str, Any]) -> dict[str, Any]:
        return {"currentVersionNumber": self._version}

    def _save_kernel(self, values: dict[str, Any]) -> dict[str, Any]:
        self.notebooks.append(values)
        self.waiting = list(self.notebook_states)
        return {"versionNumber": len(self.notebooks), "url": f"https://kaggle.test/code/{values['slug']}"}

    def _get_kernel_session_status(self, values: dict[str, Any]) -> dict[str, Any]:
        assert values["versionLabel"] == f"v{len(self.notebooks)}"
        return {"status": self.waiting.pop(0)} if self.waiting else self.notebook_ends_as

    def _list_kernel_session_output(self, values: dict[str, Any]) -> dict[str, Any]:
        files = [{"fileName": name, "url": f"{self.address}/output/{name}"} for name in ("other.txt", *self.outputs)]
        return {"files": files, "log": self.log if isinstance(self.log, str) else json.dumps(self.log)}


@contextlib.contextmanager
def serving() -> Iterator[Site]:
    """Serve a fake Kaggle, which knows no dataset until one is made."""
    fake = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            values = json.loads(self._body() or b"{}")
            method = self.path.rsplit("/", 1)[-1]
            if method in ("GetDatasetStatus", "GetDataset") and not fake.dataset_versions:
                self._reply(403, {"code": 403, "message": "Permission 'datasets.get' was denied"})
                return
            self._reply(*fake.answer(method, values))

        def do_PUT(self) -> None:
            fake.uploaded.append(self._body())
            self._reply(200, {})

        def do_GET(self) -> None:
            self._send(200, "text/csv", fake.outputs[self.path.removeprefix("/output/")])

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers["Content-Length"]))

        def _reply(self, code: int, values: dict[str, Any]) -> None:
            self._send(code, "application/json", json.dumps(values).encode())

        def _send(self, code: int, kind: str, content: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # the client has not waited
                self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield fake
    finally:
        fake.is_over.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Site]:
    """A server on the loopback that replaces Kaggle for the client in this process, to which nobody is signed in."""
    for name in [name for name in os.environ if name.upper().startswith("KAGGLE") or name.upper().endswith("_PROXY")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # without credentials
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "home"))
    from kagglesdk import kaggle_env

    with serving() as fake:
        monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, fake.address)
        yield fake
