"""`comp submit`: with a local server that implements Kaggle's API, and without the kaggle client."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comp.config import Config
from comp.results import blocks, files, runs
from comp.results.predictions import from_outputs
from comp.results.run_metrics import RunMetrics
from comp.runtime.errors import Interrupted, RunError, SubmissionError
from comp.runtime.progress import quiet
from comp.submission import kaggle, kaggle_client, scores, write
from comp.submission.format import SubmissionFormat
from tests.support.commands import Result
from tests.support.kaggle_site import Site, needs_kaggle
from tests.support.kaggle_site import site as site

Comp = Callable[..., Result]
FORMAT = SubmissionFormat(blocks.block_grid(range(2), range(1, 3), 30), texts=("0", "1", "2", "3"))


def a_submission(folder: Path, seed: int = 0) -> tuple[runs.Run, Path]:
    """Return a complete run and its submission."""
    run = runs.create(folder / "runs", Config(), "made", {"classes": list("abcd")})
    run.write_metrics(RunMetrics(run="c/run", competition="c", metric="accuracy", model="net", parameters=1))
    labels = np.random.default_rng(seed).integers(0, 4, 120)
    predictions = from_outputs(
        np.eye(4, dtype=np.float32)[labels],
        task="single_label",
        ids=FORMAT.ids(),
        classes="abcd",
        targets=None,
        made_by={},
    )
    write.write_submission(folder / "a.csv", predictions, FORMAT, {"run_path": str(run.path)})
    return run, folder / "a.csv"


def submit(comp: Comp, path: Path, *more: object) -> Result:
    """Run the command."""
    return comp("submit", path, "--competition", "shifted", "--message", "a try", *more)


@needs_kaggle
def test_submit_waits_for_the_score_and_records_it_with_the_run(
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
    assert metrics.competition == "c"  # other metrics stay
    (sent,) = json.loads(path.with_suffix(".json").read_text())["sent"]
    assert (sent["status"], sent["sha256"]) == ("complete", files.sha256_file(path))
    again = submit(comp, path)
    assert again.code == 2
    assert "0.7125" in again.err
    assert "--force" in again.err
    assert len(site.uploaded) == 1
    assert submit(comp, path, "--force").code == 0
    assert len(site.uploaded) == 2


@needs_kaggle
def test_after_a_timeout_the_same_command_waits_without_a_second_upload(
    site: Site, tmp_path: Path, comp: Comp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", "good")
    run, path = a_submission(tmp_path)
    site.pending_answers = 10**9
    result = submit(comp, path, "--wait", 0)
    assert result.code == 2
    assert "submission 4711 has no score" in result.err
    assert run.metrics().public_score is None
    site.pending_answers = 0
    assert submit(comp, path).code == 0
    assert len(site.uploaded) == 1
    assert run.metrics().public_score == 0.7125


@needs_kaggle
def test_errors_of_the_site_are_shown(site: Site, tmp_path: Path, comp: Comp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", "good")
    run, path = a_submission(tmp_path)
    refusal = 403, {"code": 403, "message": "You must accept this competition's rules"}
    site.refusals = dict.fromkeys(("StartSubmissionUpload", "GetSubmission"), refusal)
    result = submit(comp, path)
    assert result.code == 2
    assert "You must accept this competition's rules" in result.err
    assert "accept its rules on its page" in result.err
    site.refusals = {}
    site.ends_as = {"status": "ERROR", "errorDescription": "Evaluation exception"}
    result = submit(comp, path)
    assert result.code == 2
    assert "ended as error: Evaluation exception" in result.err
    assert run.metrics().public_score is None
    assert path.exists()


@needs_kaggle
@pytest.mark.parametrize("token", [None, "bad"])
def test_without_credentials_nothing_is_uploaded(
    site: Site, tmp_path: Path, comp: Comp, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    if token:
        monkeypatch.setenv("KAGGLE_API_TOKEN", token)
    _, path = a_submission(tmp_path)
    before = {p: p.read_bytes() for p in (path, path.with_suffix(".json"))}
    result = submit(comp, path)
    assert result.code == 2
    assert "credentials" in result.err
    assert "the submission is kept" in result.err
    assert result.out == ""
    assert not site.uploaded
    assert {p: p.read_bytes() for p in before} == before


@needs_kaggle
def test_an_unreachable_site_is_an_error(
    site: Site, tmp_path: Path, comp: Comp, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kagglesdk import kaggle_env

    monkeypatch.setenv("KAGGLE_API_TOKEN", "good")
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, "http://127.0.0.1:1")
    _, path = a_submission(tmp_path)
    result = submit(comp, path)
    assert result.code == 2
    assert "cannot sign in" in result.err


def test_without_the_extra_the_error_shows_how_to_install_it(
    tmp_path: Path, comp: Comp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "kaggle", None)  # makes the import fail
    monkeypatch.delitem(sys.modules, "kaggle.api", raising=False)
    monkeypatch.delitem(sys.modules, "kaggle.api.kaggle_api_extended", raising=False)
    _, path = a_submission(tmp_path)
    result = submit(comp, path)
    assert result.code == 2
    assert "pip install 'comp[kaggle]'" in result.err
    assert path.exists()


def test_an_invalid_or_misleading_file_is_not_submitted(tmp_path: Path, comp: Comp) -> None:
    _, path = a_submission(tmp_path)
    predictions = from_outputs(
        np.zeros((120, 4), np.float32), task="single_label", ids=FORMAT.ids(), classes="abcd", targets=None, made_by={}
    )
    write.write_submission(path, predictions, FORMAT, {}, force=True)
    result = submit(comp, path)
    assert result.code == 2
    assert "constant" in result.err
    assert "--force" in result.err
    path.write_text("id,label\n")
    assert "not a valid submission" in submit(comp, path, "--force").err


class Memory:
    """A fake client that answers from a list."""

    def __init__(self, *states: kaggle_client.KaggleStatus) -> None:
        self.states = list(states)
        self.sent = 0

    def upload(self, path: Path, competition: str, message: str) -> str:
        """Count uploads."""
        self.sent += 1
        return str(self.sent)

    def status(self, reference: str) -> kaggle_client.KaggleStatus:
        """Return the next answer."""
        return self.states.pop(0)


PENDING = kaggle_client.KaggleStatus("pending", None, None, "")
DONE = kaggle_client.KaggleStatus("complete", 0.5, 0.25, "")


def submit_quickly(path: Path, client: Memory, **options: Any) -> dict[str, Any]:
    """Submit without pauses between requests."""
    wait = kaggle.Wait(60, options.pop("progress", quiet), options.pop("pause_seconds", 0.0))
    return kaggle.submit(path, lambda: client, competition="c", message="m", wait=wait, **options)


def test_an_interrupted_wait_continues_with_the_same_upload(tmp_path: Path) -> None:
    run, path = a_submission(tmp_path)
    client = Memory(PENDING, PENDING, DONE)

    def interrupt(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        raise Interrupted(2)

    with pytest.raises(Interrupted):
        submit_quickly(path, client, progress=interrupt, pause_seconds=0.01)
    record = submit_quickly(path, client)
    assert client.sent == 1
    assert record["private"] == 0.25
    assert run.metrics().private_score == 0.25


def test_a_score_is_kept_in_the_sidecar_if_the_run_is_missing(tmp_path: Path) -> None:
    run, path = a_submission(tmp_path)
    run.path.rename(tmp_path / "elsewhere")
    assert submit_quickly(path, Memory(DONE))["public"] == 0.5
    assert json.loads(path.with_suffix(".json").read_text())["sent"][0]["public"] == 0.5
    assert not run.path.exists()


def test_a_changed_file_is_another_submission(tmp_path: Path) -> None:
    _, path = a_submission(tmp_path)
    client = Memory(DONE, DONE)
    submit_quickly(path, client)
    path.write_bytes(path.read_bytes().replace(b",0\n", b",1\n", 1))
    submit_quickly(path, client)
    assert client.sent == 2
    with pytest.raises(SubmissionError, match=r"'c', score 0\.5"):
        submit_quickly(path, client)


def test_recorded_scores_are_appended_or_replaced_by_reference(tmp_path: Path) -> None:
    run, _ = a_submission(tmp_path)
    scores.record_score(run, public=0.1)
    scores.record_score(run, public=0.2, private=0.3, reference="7")
    scores.record_score(run, public=0.4, private=0.3, reference="7")
    assert [row.public for row in run.metrics().leaderboard_scores] == [0.1, 0.4]
    assert run.metrics().public_score == 0.4
    unfinished = runs.create(tmp_path / "runs", Config(), "unfinished", {})
    with pytest.raises(RunError, match="not a complete run"):
        scores.record_score(unfinished, public=0.1)
