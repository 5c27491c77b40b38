"""`comp submit --kernel`: Kaggle's own client with a server on the loopback that speaks its protocol."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from comp.config import Config
from comp.results import files, runs
from comp.results.run_metrics import RunMetrics
from comp.submission import kaggle_client, kaggle_failures
from tests.support.commands import Result, assert_refused
from tests.support.kaggle_site import CSV, USER, Site, needs_kaggle
from tests.support.kaggle_site import site as site

Comp = Callable[..., Result]
RUN = "dataset/runs/c/made"
# A process whose client talks to the address in its first argument.
PROGRAM = (
    "import sys; from kagglesdk import kaggle_env as env; from comp.cli.app import main\n"
    "env._env_to_endpoint[env.KaggleEnv.PROD] = sys.argv.pop(1); main()"
)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A signed-in user's working directory with a complete run in `runs/` and its package in `out`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KAGGLE_API_TOKEN", "good")
    run = runs.create(Path("runs"), Config(), "made", {"classes": list("ab")})
    run.write_metrics(RunMetrics(run="c/run", competition="c", metric="accuracy", model="net", parameters=1))
    folder = Path("out")
    for name in (RUN, "dataset/wheels", "kernel"):
        (folder / name).mkdir(parents=True)
    (folder / RUN / "config.yaml").write_text("seed: 1\n")
    (folder / "dataset/wheels/comp-0.1.0-py3-none-any.whl").write_bytes(b"wheel")
    write(
        folder / "dataset/dataset-metadata.json", id=f"{USER}/net-files", title="net-files", licenses=[{"name": "MIT"}]
    )
    write(
        folder / "kernel/kernel-metadata.json",
        id=f"{USER}/net-predicts", title="net-predicts", code_file="predict.ipynb", language="python",
        kernel_type="notebook", is_private=True, enable_gpu=True, enable_internet=False,
        dataset_sources=[f"{USER}/net-files"], competition_sources=["shifted"],
    )  # fmt: skip
    write(folder / "kernel/predict.ipynb", cells=[], metadata={}, nbformat=4, nbformat_minor=5)
    write(
        folder / "package.json",
        run_path=str(run.path), verified=True, weights_sha256=write_weights(folder, b"weights"),
    )  # fmt: skip
    return folder


def write(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(values))


def edit(path: Path, **values: Any) -> None:
    write(path, **{**json.loads(path.read_text()), **values})


def write_weights(folder: Path, content: bytes) -> dict[str, str]:
    """Write the run's weights, and return what package.json has of them."""
    (folder / RUN / "best.safetensors").write_bytes(content)
    return {"runs/c/made": files.sha256_bytes(content)}


def pushed(site: Site) -> list[int]:
    """Return how many datasets, notebooks and submissions have arrived."""
    return [len(site.dataset_versions), len(site.notebooks), len(site.submitted)]


def exported_run() -> runs.Run:
    return runs.list_runs(Path("runs"))[0]


@needs_kaggle
def test_a_package_is_pushed_run_submitted_and_its_score_recorded(site: Site, package: Path, comp: Comp) -> None:
    site.dataset_states, site.notebook_states, site.away = ["BLOBS_RECEIVED"], ["RUNNING"], ["GetKernelSessionStatus"]
    result = comp("submit", "--kernel", package, "-m", "a try", "--json")
    assert result.code == 0, result.err
    assert site.dataset_versions == [["runs.zip", "wheels.zip"]]
    notebook, submission = site.notebooks[0], site.submitted[0]
    assert notebook["slug"] == f"{USER}/net-predicts"
    assert notebook["datasetDataSources"] == [f"{USER}/net-files"]
    assert not notebook.get("enableInternet")
    assert (submission["kernelSlug"], submission["kernelVersion"]) == ("net-predicts", 1)
    assert (submission["competitionName"], submission["submissionDescription"]) == ("shifted", "a try")
    assert (package / "log.txt").read_text() == "predicted 2 images\n"
    assert (package / "submission.csv").read_bytes() == CSV
    assert json.loads(result.out)["submission"]["public"] == 0.7125
    assert exported_run().metrics().public_score == 0.7125
    assert exported_run().metrics().leaderboard_scores[0].source == "kaggle shifted"

    assert_refused(comp("submit", "--kernel", package), "already submitted to 'shifted', score 0.7125", "--force")
    assert pushed(site) == [1, 1, 1]
    again = comp("submit", "--kernel", package, "--force")
    assert again.code == 0, again.err
    assert "notebook version 2 has run: https://kaggle.test/code/" in again.out
    assert pushed(site) == [1, 2, 2]  # the files have not changed


@needs_kaggle
def test_an_interrupted_command_goes_on_without_a_second_push(site: Site, package: Path) -> None:
    site.notebook_states = ["RUNNING"] * 1000
    command = [sys.executable, "-c", PROGRAM, site.address, "submit", "--kernel", str(package)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
    while "GetKernelSessionStatus" not in site.requests:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"Continue with: comp submit --kernel {package}" in err
    site.notebook_states.clear()
    site.waiting.clear()
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "public score 0.7125" in done.stdout
    assert pushed(site) == [1, 1, 1]


@needs_kaggle
def test_requests_without_an_answer_are_repeated(
    site: Site, package: Path, comp: Comp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kaggle_client, "_TIMEOUT_SECONDS", 0.5)
    site.silent = ["GetKernelSessionStatus", "GetSubmission"]
    assert comp("submit", "--kernel", package).code == 0
    assert site.silent == []
    assert pushed(site) == [1, 1, 1]


@needs_kaggle
def test_only_what_has_changed_is_pushed(site: Site, package: Path, comp: Comp) -> None:
    first = comp("submit", "--kernel", package, "--no-submit")
    assert first.code == 0, first.err
    assert f"comp submit --kernel {package}" in first.out
    assert pushed(site) == [1, 1, 0]
    edit(package / "package.json", verified=False)
    second = comp("submit", "--kernel", package)  # submits that version
    assert second.code == 0
    assert "not verified" in second.err
    assert pushed(site) == [1, 1, 1]
    edit(package / "kernel/predict.ipynb", cells=[{"cell_type": "code", "source": "1", "outputs": []}])
    assert comp("submit", "--kernel", package).code == 0
    assert pushed(site) == [1, 2, 2]
    edit(package / "package.json", weights_sha256=write_weights(package, b"other weights"))
    site.dataset_states = ["READY"]  # of the version before
    assert comp("submit", "--kernel", package).code == 0
    assert pushed(site) == [2, 3, 3]
    assert site.requests.count("CreateDataset") == 1
    after = site.requests[site.requests.index("CreateDatasetVersion") :]
    assert after[: after.index("SaveKernel")].count("GetDataset") == 2


@needs_kaggle
def test_a_time_limit_ends_the_wait_and_not_the_work(site: Site, package: Path, comp: Comp) -> None:
    site.notebook_states = ["RUNNING"] * 2
    assert_refused(comp("submit", "--kernel", package, "--wait", "0.1s"), "not ready after 0.1 s", "nothing again")
    site.waiting.clear()
    site.notebook_states, site.pending_answers = [], 2
    assert_refused(comp("submit", "--kernel", package, "--wait", 0), "submission 4711 has no score")
    assert comp("submit", "--kernel", package, "--force").code == 0  # what is not over is not pushed
    assert pushed(site) == [1, 1, 1]
    site.pending_answers = 10**9
    assert comp("submit", "--kernel", package, "--force", "--wait", 0).code == 2
    edit(package / "kernel/predict.ipynb", cells=[{"cell_type": "code", "source": "1", "outputs": []}])
    assert comp("submit", "--kernel", package, "--wait", 0).code == 2
    assert pushed(site) == [1, 3, 3]
    site.pending_answers = 0
    assert comp("submit", "--kernel", package).code == 0
    assert comp("submit", "--kernel", package, "--force").code == 0  # an older one without a score does not matter
    assert pushed(site) == [1, 4, 4]


@needs_kaggle
@pytest.mark.parametrize(
    ("failure", "log", "parts"),
    [
        ("Your notebook tried to allocate more memory than is available.", "", ["out of memory", "batch_size"]),
        ("", "x\nModuleNotFoundError: No module named 'timm'\n", ["No module named 'timm'", "--image-packages"]),
        ("", [{"data": "KeyError: 'id'\n"}], ["KeyError: 'id'", "log.txt"]),
        ("", "", ["Kaggle gives no reason"]),
    ],
)
def test_a_failed_notebook_says_what_to_try(
    site: Site, package: Path, comp: Comp, failure: str, log: Any, parts: list[str]
) -> None:
    site.notebook_ends_as, site.log = {"status": "ERROR", "failureMessage": failure}, log
    assert_refused(comp("submit", "--kernel", package), f"{USER}/net-predicts/1 failed", *parts)
    assert_refused(comp("submit", "--kernel", package), *parts, "--force")
    assert pushed(site) == [1, 1, 0]
    assert (package / "log.txt").exists()
    site.notebook_ends_as = {"status": "COMPLETE"}
    assert comp("submit", "--kernel", package, "--force").code == 0
    assert pushed(site) == [1, 2, 1]


@needs_kaggle
@pytest.mark.parametrize(
    ("output", "parts"),
    [
        ({}, ["submission.csv: no such submission", "/kaggle/working"]),
        ({"submission.csv": b"id,label\n"}, ["has a header and no row"]),
        ({"submission.csv": b"id,label\n1\n"}, ["submission.csv"]),
    ],
)
def test_a_notebook_without_a_usable_csv_costs_no_submission(
    site: Site, package: Path, comp: Comp, output: dict[str, bytes], parts: list[str]
) -> None:
    site.outputs = output
    assert_refused(comp("submit", "--kernel", package), *parts)
    assert pushed(site) == [1, 1, 0]
    assert not (package / "submission.csv").exists()


@needs_kaggle
def test_a_rerun_that_fails_is_told_and_not_sent_again(site: Site, package: Path, comp: Comp) -> None:
    site.ends_as = {"status": "COMPLETE", "publicScore": "", "errorDescription": "Notebook Threw Exception"}
    assert_refused(comp("submit", "--kernel", package), "ended as error: Notebook Threw Exception", "skip_bad")
    assert_refused(comp("submit", "--kernel", package), "which ended as error", "--force")
    assert pushed(site) == [1, 1, 1]
    assert exported_run().metrics().public_score is None


@needs_kaggle
@pytest.mark.parametrize(
    ("method", "code", "answer", "part"),
    [
        ("SaveKernel", 200, {"error": "Maximum weekly GPU quota of 30.00 hours reached."}, "wait for the reset"),
        ("SaveKernel", 200, {"versionNumber": 1, "invalidCompetitionSources": ["shifted"]}, "source shifted"),
        ("SaveKernel", 403, {"code": 403, "message": "Phone verification is required"}, "Kaggle's settings"),
        ("SaveKernel", 200, {"versionNumber": "two"}, "was refused: invalid literal"),
        ("CreateDataset", 200, {"status": "error", "error": "title is taken"}, "title is taken"),
        ("CreateDataset", 200, {}, "Kaggle does not confirm it"),
        ("GetKernelSessionStatus", 200, {"status": "UNHEARD_OF"}, "UNHEARD_OF"),
        ("GetSubmission", 200, {"status": "UNHEARD_OF"}, "UNHEARD_OF"),
        (
            "CreateCodeSubmission",
            400,
            {"error": {"code": 400, "message": 'used its daily Submission allowance ("5") today'}},
            'allowance ("5") today; no submission is left today; run the same command',
        ),
    ],
)
def test_a_refusal_says_what_to_do_and_the_same_command_goes_on(
    site: Site, package: Path, comp: Comp, method: str, code: int, answer: dict[str, Any], part: str
) -> None:
    site.refusals[method] = code, answer
    assert_refused(comp("submit", "--kernel", package), part, "the package is kept")
    site.refusals.clear()
    assert comp("submit", "--kernel", package).code == 0
    assert pushed(site) == [1, 1, 1]


@needs_kaggle
def test_a_package_that_is_wrong_is_refused_before_anything_is_sent(site: Site, package: Path, comp: Comp) -> None:
    edit(package / "kernel/kernel-metadata.json", enable_internet=True, code_file="gone.ipynb", dataset_sources=[])
    (package / "package.json").write_text("{")
    (package / "dataset/wheels/comp-0.1.0-py3-none-any.whl").unlink()
    result = comp("submit", "--kernel", package)
    assert result.code == 2
    for part in ("enable_internet: expected false", "code_file", "dataset_sources", "package.json", "comp's wheel"):
        assert part in result.err
    assert result.err.count("error: ") == 1
    assert_refused(comp("submit", "--kernel", "none"), "no such folder", "comp export RUN --kaggle none")
    assert site.requests == []


@pytest.mark.parametrize(("file", "content"), [("predict.ipynb", "[]"), ("../predict.ipynb", '{"cells": []}')])
def test_a_notebook_must_be_one_and_in_its_folder(package: Path, comp: Comp, file: str, content: str) -> None:
    edit(package / "kernel/kernel-metadata.json", code_file=file)
    (package / "kernel" / file).write_text(content)
    assert_refused(comp("submit", "--kernel", package), "cannot be pushed", "predict.ipynb")


def test_weights_that_are_not_the_exported_ones_are_refused(package: Path, comp: Comp) -> None:
    write_weights(package, b"damaged")
    result = comp("submit", "--kernel", package)
    assert result.code == 2
    assert "out/dataset/runs/c/made: its weights are not those that were exported" in result.err


@needs_kaggle
def test_signing_in_names_the_command_and_a_package_of_another_user_is_refused(
    site: Site, package: Path, comp: Comp, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(package / "kernel/kernel-metadata.json", id="nobody/net-predicts")
    assert_refused(comp("submit", "--kernel", package), "'nobody/net-predicts' is not yours", f"as '{USER}'")
    monkeypatch.setenv("KAGGLE_API_TOKEN", "bad")
    assert_refused(comp("submit", "--kernel", package), f"run comp submit --kernel {package} again")
    assert pushed(site) == [0, 0, 0]


@needs_kaggle
def test_a_moved_run_is_found_and_a_missing_one_loses_no_score(site: Site, package: Path, comp: Comp) -> None:
    Path("runs").rename("elsewhere")
    assert comp("submit", "--kernel", package, "--runs", "elsewhere").code == 0
    assert runs.list_runs(Path("elsewhere"))[0].metrics().public_score == 0.7125
    result = comp("submit", "--kernel", package, "--force")
    assert result.code == 0
    assert "its score is in out/pushed.json" in result.err
    assert [row["public"] for row in json.loads((package / "pushed.json").read_text())["sent"]] == [0.7125, 0.7125]


@needs_kaggle
def test_a_dataset_that_kaggle_cannot_unpack_is_uploaded_again(site: Site, package: Path, comp: Comp) -> None:
    site.dataset_states = ["FAILED"]
    assert_refused(comp("submit", "--kernel", package), f"dataset {USER}/net-files is failed on Kaggle")
    site.dataset_states = []
    assert comp("submit", "--kernel", package).code == 0
    assert pushed(site) == [2, 1, 1]


def test_a_damaged_record_says_how_to_start_afresh(package: Path, comp: Comp) -> None:
    (package / "pushed.json").write_text('{"kernel": {"version": "two"}}')
    assert_refused(comp("submit", "--kernel", package), "pushed.json: damaged: kernel", "delete it")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["a.csv", "--kernel", "out"], "leave CSV out"),
        (["--kernel", "out", "--competition", "c"], "leave --competition out"),
        (["--kernel", "out", "--wait", "long"], "--wait: expected seconds, or a time such as"),
        (["a.csv", "--message", "m"], "--competition SLUG"),
        (["a.csv", "--message", "m", "--competition", "c", "--no-submit"], "--no-submit"),
        ([], "--kernel DIR"),
    ],
)
def test_options_of_a_csv_and_of_a_package_do_not_mix(package: Path, comp: Comp, words: list[str], part: str) -> None:
    assert_refused(comp("submit", *words), part)


SAID = [  # by Kaggle, in logs or by its API, in the order of the table
    "Your notebook was stopped because it exceeded the max allowed execution duration. Exit code: 137",
    "Your notebook tried to use more disk space than is available.",
    "Your notebook tried to allocate more memory than is available. It has restarted.",
    "Notebook Exceeded Allowed Compute",
    "Submission CSV Not Found",
    "Evaluation Exception: Submission must have 32019 rows",
    "Notebook Threw Exception",
    "ERROR: Could not find a version that satisfies the requirement timm (from versions: none)",
    "<urlopen error [Errno -3] Temporary failure in name resolution>",
    "Permission 'kernelSessions.enableInternet' was denied",
    "403 - You cannot submit until you accept the competition rules",
    "Maximum weekly GPU quota of 30.00 hours reached.",
    "Maximum batch GPU session count of 2 reached.",
    "Submission not allowed: Your team has used its daily Submission allowance (5) today, please try again tomorrow",
    "Submission not allowed:  This competition only accepts Submissions from Notebooks.",
    "Notebook not found",
    "The kernel was killed due to a requested cancel.",
]


def test_each_failure_has_its_own_advice() -> None:
    expected = [f"{meaning}; {advice}" for meaning, advice in kaggle_failures.FAILURES.values()]
    assert [kaggle_failures.explain(text) for text in SAID] == expected
    assert kaggle_failures.explain("An unknown failure") == ""


def test_the_last_error_of_a_log_is_found_behind_colors_and_warnings() -> None:
    log = "ValueError: early\n" + "line\n" * 200 + "\x1b[0;31mKeyError\x1b[0m: 'id'\n[NbConvertApp] done\n"
    assert kaggle_failures.last_error(log) == "KeyError: 'id'"
    assert kaggle_failures.last_error("all is well\n") == ""
