"""`comp submit`: with a server on this machine that speaks what the kaggle client speaks, and without the client."""

import importlib.util
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comp.config import Config
from comp.results import blocks, files, runs
from comp.results.predictions import from_outputs
from comp.results.run_metrics import RunMetrics
from comp.runtime.errors import Interrupted, RunError, SubmissionError
from comp.submission import kaggle, kaggle_client, scores, write
from comp.submission.format import SubmissionFormat
from tests.support.commands import Result

Comp = Callable[..., Result]
WANTED = SubmissionFormat(blocks.block_grid(range(2), range(1, 3), 30), texts=("0", "1", "2", "3"))
needs_kaggle = pytest.mark.skipif(
    importlib.util.find_spec("kaggle") is None, reason="the kaggle extra is not installed: pip install 'comp[kaggle]'"
)


def a_submission(folder: Path, seed: int = 0) -> tuple[runs.Run, Path]:
    """Return a complete run and its submission."""
    run = runs.create(folder / "runs", Config(), "made", {"classes": list("abcd")})
    run.write_metrics(RunMetrics(run="c/run", competition="c", metric="accuracy", model="net", parameters=1))
    labels = np.random.default_rng(seed).integers(0, 4, 120)
    found = from_outputs(
        np.eye(4, dtype=np.float32)[labels],
        task="single_label",
        ids=WANTED.ids(),
        classes="abcd",
        targets=None,
        made_by={},
    )
    write.write(folder / "a.csv", found, WANTED, {"run_path": str(run.path)})
    return run, folder / "a.csv"


class Site:
    """What Kaggle answers, and what it was asked."""

    def __init__(self) -> None:
        self.uploaded: list[bytes] = []
        self.submitted: list[dict[str, Any]] = []
        self.looks_until_scored = 0
        self.ends_as: dict[str, Any] = {"status": "COMPLETE", "publicScore": "0.71250", "privateScore": ""}
        self.refuses = False
        self.address = ""

    def answer(self, method: str, values: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return the status code and the body."""
        if method == "IntrospectToken":
            return 200, {"active": values["token"] == "good", "username": "someone"}
        if self.refuses:
            return 403, {"code": 403, "message": "You must accept this competition's rules"}
        if method == "StartSubmissionUpload":
            return 200, {"token": "blob", "createUrl": f"{self.address}/upload"}
        if method == "CreateSubmission":
            self.submitted.append(values)
            return 200, {"message": "Successfully submitted", "ref": 4711}
        assert method == "GetSubmission", method
        self.looks_until_scored -= 1
        waits = {"status": "PENDING", "publicScore": "", "privateScore": ""}
        return 200, {"ref": values["ref"], **(waits if self.looks_until_scored >= 0 else self.ends_as)}


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Site]:
    """A server on the loopback device, and a client that is told to speak to it and to nobody else."""
    found = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            values = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
            self._reply(*found.answer(self.path.rsplit("/", 1)[-1], values))

        def do_PUT(self) -> None:
            found.uploaded.append(self.rfile.read(int(self.headers["Content-Length"])))
            self._reply(200, {})

        def _reply(self, code: int, values: dict[str, Any]) -> None:
            content = json.dumps(values).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    for name in [name for name in os.environ if name.upper().startswith("KAGGLE") or name.upper().endswith("_PROXY")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # nobody's credentials
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "home"))
    from kagglesdk import kaggle_env

    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, found.address)
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


def submit(comp: Comp, path: Path, *more: object) -> Result:
    """Run the command."""
    return comp("submit", path, "--competition", "shifted", "--message", "a try", *more)


@needs_kaggle
def test_a_score_is_waited_for_and_kept_with_the_run(
    site: Site, tmp_path: Path, comp: Comp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", "good")
    run, path = a_submission(tmp_path)
    result = submit(comp, path, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["public"] == 0.7125
    assert site.uploaded == [path.read_bytes()]
    assert site.submitted[0]["competitionName"] == "shifted"
    assert site.submitted[0]["submissionDescription"] == "a try"
    metrics = run.metrics()
    assert metrics.public_score == 0.7125
    assert metrics.private_score is None
    assert metrics.leaderboard_scores[0].reference == "4711"
    assert metrics.competition == "c"  # what was there stays
    (sent,) = json.loads(path.with_suffix(".json").read_text())["sent"]
    assert (sent["status"], sent["sha256"]) == ("complete", files.sha256_file(path))
    again = submit(comp, path)
    assert again.code == 2
    assert "scored 0.7125; send it again with --force" in again.err
    assert len(site.uploaded) == 1
    assert submit(comp, path, "--force").code == 0
    assert len(site.uploaded) == 2


@needs_kaggle
def test_a_wait_that_ends_early_goes_on_without_sending_again(
    site: Site, tmp_path: Path, comp: Comp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", "good")
    run, path = a_submission(tmp_path)
    site.looks_until_scored = 10**9
    result = submit(comp, path, "--wait", 0)
    assert result.code == 2
    assert "sent as submission 4711, not scored" in result.err
    assert run.metrics().public_score is None
    site.looks_until_scored = 0
    assert submit(comp, path).code == 0
    assert len(site.uploaded) == 1
    assert run.metrics().public_score == 0.7125


@needs_kaggle
def test_what_the_site_finds_wrong_is_told(
    site: Site, tmp_path: Path, comp: Comp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", "good")
    run, path = a_submission(tmp_path)
    site.refuses = True
    result = submit(comp, path)
    assert result.code == 2
    assert "You must accept this competition's rules" in result.err
    site.refuses = False
    site.ends_as = {"status": "ERROR", "errorDescription": "Evaluation exception"}
    result = submit(comp, path)
    assert result.code == 2
    assert "ended as error: Evaluation exception" in result.err
    assert run.metrics().public_score is None
    assert path.exists()


@needs_kaggle
@pytest.mark.parametrize("token", [None, "bad"])
def test_without_credentials_it_says_so_and_sends_nothing(
    site: Site, tmp_path: Path, comp: Comp, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    if token:
        monkeypatch.setenv("KAGGLE_API_TOKEN", token)
    _, path = a_submission(tmp_path)
    before = {p: p.read_bytes() for p in (path, path.with_suffix(".json"))}
    result = submit(comp, path)
    assert result.code == 2
    assert "no credentials" in result.err
    assert "the submission is kept" in result.err
    assert result.out == ""
    assert not site.uploaded
    assert {p: p.read_bytes() for p in before} == before


@needs_kaggle
def test_a_site_that_cannot_be_reached_is_told(
    site: Site, tmp_path: Path, comp: Comp, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kagglesdk import kaggle_env

    monkeypatch.setenv("KAGGLE_API_TOKEN", "good")
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, "http://127.0.0.1:1")
    _, path = a_submission(tmp_path)
    result = submit(comp, path)
    assert result.code == 2
    assert "cannot sign in" in result.err


def test_without_the_extra_it_says_how_to_install_it(
    tmp_path: Path, comp: Comp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "kaggle", None)  # as python does for what cannot be imported
    monkeypatch.delitem(sys.modules, "kaggle.api", raising=False)
    monkeypatch.delitem(sys.modules, "kaggle.api.kaggle_api_extended", raising=False)
    _, path = a_submission(tmp_path)
    result = submit(comp, path)
    assert result.code == 2
    assert "pip install 'comp[kaggle]'" in result.err
    assert path.exists()


def test_what_is_invalid_or_doubtful_is_not_sent(tmp_path: Path, comp: Comp) -> None:
    _, path = a_submission(tmp_path)
    found = from_outputs(
        np.zeros((120, 4), np.float32), task="single_label", ids=WANTED.ids(), classes="abcd", targets=None, made_by={}
    )
    write.write(path, found, WANTED, {}, force=True)
    result = submit(comp, path)
    assert result.code == 2
    assert "constant" in result.err
    assert "--force" in result.err
    path.write_text("id,label\n")
    assert "not a valid submission" in submit(comp, path, "--force").err


class Memory:
    """A client at its own seam: answers from a list."""

    def __init__(self, *states: kaggle_client.KaggleStatus) -> None:
        self.states = list(states)
        self.sent = 0

    def upload(self, path: Path, competition: str, message: str) -> str:
        """Count it."""
        self.sent += 1
        return str(self.sent)

    def state(self, reference: str) -> kaggle_client.KaggleStatus:
        """Return the next answer."""
        return self.states.pop(0)


PENDING = kaggle_client.KaggleStatus("pending", None, None, "")
DONE = kaggle_client.KaggleStatus("complete", 0.5, 0.25, "")


def send(path: Path, client: Memory, **options: Any) -> dict[str, Any]:
    """Send without waiting between questions."""
    given: dict[str, Any] = {"competition": "c", "message": "m", "wait_seconds": 60, "poll_seconds": 0.0, **options}
    return kaggle.send(path, lambda: client, **given)


def test_an_interrupted_wait_has_already_remembered_what_was_sent(tmp_path: Path) -> None:
    run, path = a_submission(tmp_path)
    client = Memory(PENDING, PENDING, DONE)

    def interrupt(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        raise Interrupted(2)

    with pytest.raises(Interrupted):
        send(path, client, progress=interrupt, poll_seconds=0.01)
    record = send(path, client)
    assert client.sent == 1
    assert record["private"] == 0.25
    assert run.metrics().private_score == 0.25


def test_a_score_is_kept_in_the_sidecar_where_the_run_is_gone(tmp_path: Path) -> None:
    run, path = a_submission(tmp_path)
    run.path.rename(tmp_path / "elsewhere")
    assert send(path, Memory(DONE))["public"] == 0.5
    assert json.loads(path.with_suffix(".json").read_text())["sent"][0]["public"] == 0.5
    assert not run.path.exists()


def test_another_file_of_the_same_name_is_another_submission(tmp_path: Path) -> None:
    _, path = a_submission(tmp_path)
    client = Memory(DONE, DONE)
    send(path, client)
    path.write_bytes(path.read_bytes().replace(b",0\n", b",1\n", 1))
    send(path, client)
    assert client.sent == 2
    with pytest.raises(SubmissionError, match="was sent to 'c' already"):
        send(path, client)


def test_scores_recorded_by_hand_line_up(tmp_path: Path) -> None:
    run, _ = a_submission(tmp_path)
    scores.record_score(run, public=0.1)
    scores.record_score(run, public=0.2, private=0.3, reference="7")
    scores.record_score(run, public=0.4, private=0.3, reference="7")
    assert [row.public for row in run.metrics().leaderboard_scores] == [0.1, 0.4]
    assert run.metrics().public_score == 0.4
    unfinished = runs.create(tmp_path / "runs", Config(), "unfinished", {})
    with pytest.raises(RunError, match="not a complete run"):
        scores.record_score(unfinished, public=0.1)
