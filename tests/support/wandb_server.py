"""What W&B talks to in tests: a server on the loopback that takes what its client sends, and one that says nothing."""

import base64
import contextlib
import functools
import gc
import gzip
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

KEY = "5eed" * 10  # as long as a real one


@dataclass
class Received:
    """What has arrived: of each W&B run its history's lines by offset, its summary, its names, and who sent it."""

    address: str = ""
    history: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)
    summary: dict[str, dict[str, Any]] = field(default_factory=dict)
    upserts: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    silent: threading.Event = field(default_factory=threading.Event)  # while it is set, nothing is answered

    def curve(self, run_id: str, name: str) -> dict[int, float]:
        """Return a curve as its lines have it: step -> value."""
        lines = [line for _, line in sorted(self.history.get(run_id, {}).items())]
        return {line["_step"]: line[name] for line in lines if name in line}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    received: Received

    def log_message(self, *_: Any) -> None:
        pass

    def parse_request(self) -> bool:
        if not self.received.silent.is_set():
            return super().parse_request()
        while self.received.silent.is_set():
            time.sleep(0.1)
        self.close_connection = True
        return False

    def do_GET(self) -> None:
        self._answer({})

    def do_PUT(self) -> None:
        self._body()
        self._answer({})

    def do_POST(self) -> None:
        body = self._body()
        scheme, _, credentials = self.headers.get("Authorization", "").partition(" ")
        if scheme == "Basic":
            self.received.keys.add(base64.b64decode(credentials).decode().partition(":")[2])
        if self.path.endswith("/graphql"):
            self._answer({"data": self._graphql(json.loads(body))})
            return
        if self.path.endswith("/file_stream"):
            self._stream(self.path.split("/")[-2], json.loads(body))
        self._answer({"exitcode": None, "limits": {}})

    def _graphql(self, request: dict[str, Any]) -> dict[str, Any]:
        match = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
        operation, values = match and match[1], request.get("variables") or {}
        if operation == "UpsertBucket":
            self.received.upserts.append(values)
            return {"upsertBucket": {"bucket": self._bucket(values["name"], values["project"]), "inserted": True}}
        if operation == "RunResumeStatus":
            model = {"id": "M", "name": "p", "entity": {"id": "E", "name": "me"}, "bucket": None}
            if values["name"] in self.received.history:
                model["bucket"] = self._bucket(values["name"], values["project"])
            return {"model": model}
        if operation == "CreateArtifact":
            made = {"id": "A", "state": "COMMITTED", "artifactSequence": {"latestArtifact": None}}
            return {"createArtifact": {"artifact": made}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.received.address}/put"} for name in values["files"]]
            return {"createRunFiles": {"runID": "X", "uploadHeaders": [], "files": files}}
        viewer = {"id": "V", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
        server = {"features": [], "cliVersionInfo": {}, "latestLocalVersionInfo": None}
        return {"viewer": viewer, "serverInfo": server, "model": {"bucket": None}, "project": {"artifact": None}}

    def _bucket(self, name: str, project: str) -> dict[str, Any]:
        lines = self.received.history.get(name, {})
        tail = [json.dumps(lines[max(lines)])] if lines else []
        return {
            "id": name, "name": name, "displayName": name, "description": "", "config": "{}", "sweepName": None,
            "tags": [], "notes": "", "wandbConfig": json.dumps({"t": 1}),  # a run that has started
            "logLineCount": 0, "eventsLineCount": 0, "eventsTail": "[]",
            "historyLineCount": len(lines), "historyTail": json.dumps(tail),
            "summaryMetrics": json.dumps(self.received.summary.get(name, {})),
            "project": {"id": "P", "name": project, "entity": {"id": "E", "name": "me"}},
        }  # fmt: skip

    def _stream(self, run_id: str, body: dict[str, Any]) -> None:
        for name, part in (body.get("files") or {}).items():
            if name == "wandb-history.jsonl":
                lines = self.received.history.setdefault(run_id, {})
                lines |= {part["offset"] + index: json.loads(line) for index, line in enumerate(part["content"])}
            if name == "wandb-summary.json":
                self.received.summary[run_id] = json.loads(part["content"][-1])

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _answer(self, values: dict[str, Any]) -> None:
        body = json.dumps(values).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        pass  # a client that is killed resets its connections


@contextlib.contextmanager
def serving() -> Iterator[Received]:
    """Serve, and return what arrives."""
    received = Received()
    handler = type("Handler", (_Handler,), {"received": received})
    with _Server(("127.0.0.1", 0), handler) as server:
        received.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield received
        server.shutdown()
        thread.join()


@contextlib.contextmanager
def black_hole() -> Iterator[str]:
    """Accept connections and never answer; return the address."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        kept: list[socket.socket] = []

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    kept.append(listener.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        for connection in kept:
            connection.close()


def records(segment: Path, kind: str) -> list[dict[str, Any]]:
    """Return the records of a kind in a segment, by W&B's own reader."""
    lines = _inspect(segment).splitlines()
    return [record[kind] for record in map(json.loads, lines) if record["type"] == kind]


def summary(segment: Path) -> dict[str, Any]:
    """Return what W&B's own reader says of a segment: state, config, summary, tags, ..."""
    values: dict[str, Any] = json.loads(_inspect(segment, "--summary"))
    return values


@functools.cache  # of a segment that has ended
def _inspect(segment: Path, *options: str) -> str:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, str(segment.absolute())]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment["WANDB_ERROR_REPORTING"] = "false"
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=segment.absolute(), env=environment
    )  # fmt: skip
    return done.stdout


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Log everyone out, and afterwards ask after W&B's service processes.

    W&B drops its handle of a service that a test has killed without asking after it, and the handle's end would be a
    ResourceWarning in whichever test runs then.
    """
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    yield
    for process in gc.get_objects():
        if type(process) is subprocess.Popen:  # isinstance would wake lazy modules and dead proxies
            process.poll()


def log_in(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", address)


def assert_secret(folder: Path, *texts: str) -> None:
    """Assert that the key stands in no file below a folder, and in no text."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert not any(KEY in text for text in texts)


def table(segment: Path, key: str) -> dict[str, Any]:
    """Return a table that a segment's summary names."""
    values: dict[str, Any] = json.loads((segment / "files" / summary(segment)["summary"][key]["path"]).read_text())
    return values
