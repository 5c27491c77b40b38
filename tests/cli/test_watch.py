"""`comp watch`: pages of runs as they are on disk now, from a real process, by real requests."""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comp import config as configs
from comp.results import runs
from comp.results.runs import Run
from tests.cli.test_json import TABLES, assert_documented
from tests.support.browser import NEEDS_CHROMIUM, Browser
from tests.support.commands import REPOSITORY, Result, assert_refused, comp_process
from tests.support.configs import tuned, write_config
from tests.support.frozen_runs import ENSEMBLE, FLIPPED, PLAIN, thawed

NAME = PLAIN.removeprefix("runs/")


class Site:
    """A watching process and its answers."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        self.process, self.first = process, json.loads(process.stdout.readline())
        self.url, self.token, self.port = (self.first[key] for key in ("url", "token", "port"))

    def ask(
        self, path: str = "", headers: dict[str, str] | None = None, *, method: str = "GET"
    ) -> tuple[int, str, http.client.HTTPMessage]:
        """Return status, content and headers; the path is sent as it is, below the token unless it begins with `/`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path if path[:1] == "/" else f"/{self.token}/{path}", headers=headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read().decode(), answer.headers

    def page(self, path: str = "") -> str:
        """Return a page that is there."""
        status, text, _ = self.ask(path)
        assert status == 200
        return text


@contextlib.contextmanager
def watched(folder: Path, *words: str) -> Iterator[Site]:
    """Watch the runs in a folder."""
    command = [sys.executable, "-m", "comp", "watch", "--json", *words]
    with subprocess.Popen(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield Site(process)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three complete runs, which tests add to."""
    return thawed(tmp_path_factory.mktemp("watched"))


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[Site]:
    with watched(folder) as site:
        yield site


def begun(folder: Path, name: str, epochs: int, history: str = "") -> Run:
    """Return a run that has begun, as a training leaves it after some epochs."""
    config = configs.from_mapping({"competition": {"name": "begun"}, "train": {"epochs": epochs}}, "here")
    run = runs.create(folder / "runs", config, name, {"classes": ["a", "b"], "argv": ["run", "a.yaml"]})
    run.write("history.csv", (history or rows(1)).encode())
    return run


def rows(epochs: int) -> str:
    """Return a history.csv."""
    lines = [f"{epoch},0.1,{1 / epoch},0.5,{0.1 * epoch:.4f},2.0" for epoch in range(1, epochs + 1)]
    return "\n".join(["number,lr,train_loss,train_accuracy,val_accuracy,seconds", *lines, ""])


def address(run: Run) -> str:
    return f"run/begun/{run.path.name}"


def test_the_leaderboard_leads_to_each_run_and_its_report(site: Site) -> None:
    assert_documented(site.first, TABLES["comp watch"])
    text = site.page()
    links = re.findall(rf'href="/{site.token}/(run/[^"]+)"', text)
    assert {f"run/{path.removeprefix('runs/')}" for path in (PLAIN, FLIPPED, ENSEMBLE)} == set(links)
    for link in set(links):
        report = site.page(link)
        assert "Provenance" in report
        assert f'href="/{site.token}/"' in report
    assert 'class="chart"' in site.page(f"run/{NAME}")
    assert "comp evaluate" in site.page(f"run/{NAME}")
    loaded = [*re.findall(r'(?:src|href)="([^"]+)"', text), *re.findall(r"url\(([^)]+)", text)]
    assert all(source.startswith(("data:", "#", f"/{site.token}/")) for source in loaded)


def test_a_running_run_shows_its_curves_so_far(folder: Path, site: Site) -> None:
    run = begun(folder, "going", 30, rows(2))
    with run.write_lock():
        assert re.search(rf"Running</h2>.*{run.path.name}.*2 of 30", site.page(), re.DOTALL)
        text = site.page(address(run))
        assert "running" in text
        assert ">0.2000</b>" in text
        assert "56 s" in text  # left: 28 epochs of 2 s
        run.write("history.csv", rows(3).encode())
        later = site.page(address(run))
        assert later.count("<circle") == text.count("<circle") + 4  # a point more on each line
        run.write("failure.json", b'{"error": "out of <memory>"}')
    overview = site.page()
    assert re.search(
        rf"Not complete</h2>.*{run.path.name}.*failed.*out of &lt;memory&gt;.*--resume", overview, re.DOTALL
    )
    assert "out of &lt;memory&gt;" in site.page(address(run))
    assert not list(run.path.glob("*.html"))


def test_damaged_and_deleted_runs_are_told_in_the_page(folder: Path, site: Site) -> None:
    run = begun(folder, "torn", 3, rows(2)[:-9])
    assert "history.csv: damaged" in site.page(address(run))
    assert "history.csv: damaged" in site.page()
    shutil.rmtree(run.path)
    status, text, _ = site.ask(address(run))
    assert (status, "deleted meanwhile" in text) == (404, True)
    assert run.path.name not in site.page()
    copy = shutil.copytree(folder / PLAIN, folder / "runs/copied/20261126-204842-small")
    (copy / "metrics.json").write_text("{")
    assert "metrics.json: " in site.page()
    assert "cannot be shown now" in site.page("run/copied/20261126-204842-small")
    shutil.rmtree(copy.parent)


@pytest.mark.parametrize(
    "path",
    [
        "run/../../submissions",
        "run/..%2f..%2fsubmissions",
        f"run/frozen/%2e%2e/{NAME}",
        f"run/{NAME}/metrics.json",
        "run//etc/passwd",
        "run/%2fetc/passwd",
        "run/%00",
        "run/%ff",
        "study/frozen",
        "submissions/frozen.csv",
        "run/linked/20261126-204842-small",
        "run/frozen/link",
    ],
)
def test_no_path_leads_out_of_the_folder(folder: Path, site: Site, tmp_path: Path, path: str) -> None:
    outside = tmp_path / "outside"
    shutil.copytree(folder / PLAIN, outside / "20261126-204842-small")
    links = {"runs/linked": outside, "runs/frozen/link": outside / "20261126-204842-small"}
    for link, target in links.items():
        (folder / link).symlink_to(target)
    try:
        status, text, _ = site.ask(path)
        overview = site.page()
    finally:
        for link in links:
            (folder / link).unlink()
    assert status == 404
    assert "Provenance" not in text
    assert "2 runs left out" in overview


def test_only_those_with_the_token_and_this_machines_name_may_read(site: Site) -> None:
    for path in ("/", "/x/", f"/{site.token[:-1]}/", f"/{site.token}x/", "/%ff/", f"/?token={site.token}"):
        status, text, _ = site.ask(path)
        assert (status, "trainings" in text) == (403, False)
    for host in ("evil.example", f"evil.example:{site.port}", "127.0.0.1.evil.example", "", "[::1]"):
        assert site.ask("", {"Host": host})[0] == 403
    assert site.ask("", {"Host": f"localhost:{site.port}"})[0] == 200
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "X"):
        assert site.ask(method=method)[0] == 501
    assert len(site.token) >= 32


def test_an_unchanged_page_is_not_sent_again(site: Site) -> None:
    status, text, headers = site.ask(f"run/{NAME}")
    assert site.ask(f"run/{NAME}", {"If-None-Match": headers["ETag"]})[:2] == (304, "")
    status, nothing, head = site.ask(f"run/{NAME}", method="HEAD")
    assert (status, nothing, int(head["Content-Length"])) == (200, "", len(text.encode()))
    assert head["Referrer-Policy"] == "no-referrer"  # an address has the token


def test_watching_loads_no_torch_and_writes_nothing(folder: Path, site: Site) -> None:
    before = sorted(path for path in folder.rglob("*"))
    site.page()
    site.page(f"run/{NAME}")
    assert sorted(path for path in folder.rglob("*")) == before
    maps = Path(f"/proc/{site.process.pid}/maps")
    assert not maps.exists() or "libtorch" not in maps.read_text()


def assert_ends_quietly(site: Site, signum: int) -> None:
    site.process.send_signal(signum)
    assert site.process.communicate(timeout=60) == ("", "")
    assert site.process.returncode == 128 + signum


def test_a_busy_port_is_refused_if_it_was_asked_for(folder: Path, site: Site) -> None:
    refused = comp_process("watch", "--port", site.port, cwd=folder)
    assert_refused(Result(refused.returncode, refused.stdout, refused.stderr), f"port {site.port}", "--port N")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with watched(folder, "--port", str(port)) as second:
        assert second.url == f"http://127.0.0.1:{port}/{second.token}/"
        assert_ends_quietly(second, signal.SIGTERM)


def test_a_folder_that_is_missing_or_a_run_is_refused(folder: Path, comp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert_refused(comp("watch", "nosuch"), "nosuch: no such folder", "comp run quickstart")
    assert_refused(comp("watch", PLAIN), "comp watch runs/frozen")


def test_an_empty_folder_is_watched_on_the_next_free_port_until_runs_begin(tmp_path: Path, site: Site) -> None:
    first = site.port
    (tmp_path / "runs").mkdir()
    with watched(tmp_path) as site:
        assert site.port > first
        assert "fills as trainings begin" in site.page()
        run = begun(tmp_path, "first", 2)
        assert run.path.name in site.page()
        shutil.rmtree(tmp_path / "runs")
        assert "fills as trainings begin" in site.page()
        assert_ends_quietly(site, signal.SIGINT)


@pytest.mark.slow  # a study
def test_a_study_shows_its_progress_and_tune_names_the_command(workplace: Path) -> None:
    write_config(workplace / "tuned.yaml", tuned({"optim.lr": {"float": [1e-4, 1e-1], "log": True}}, trials=3))
    (workplace / "lib/optuna_dashboard").mkdir(parents=True)
    path = f"{workplace / 'lib'}:{REPOSITORY}"
    ended = comp_process("tune", "tuned.yaml", cwd=workplace, env={**os.environ, "PYTHONPATH": path})
    assert ended.returncode == 0, ended.stderr
    assert "watch it: comp watch runs\nor: optuna-dashboard runs/small/tuned/study.log\n" in ended.stderr
    with watched(workplace) as site:
        overview = site.page()
        assert "3 of 3 trials ended (3 done)" in overview
        text = site.page("study/small/tuned")
        assert "best so far" in text
        trial = re.search(r"run/small/tuned/[^\"]+", overview)
        assert trial
        assert f"/{site.token}/study/small/tuned" in site.page(trial[0])
        (workplace / "runs/small/tuned/study.log").write_text("{")
        assert "journal is damaged" in site.page()
        assert "journal is damaged" in site.page("study/small/tuned")


@pytest.mark.slow
@NEEDS_CHROMIUM
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_refreshes_the_page_and_loads_nothing_else(tmp_path: Path, width: int) -> None:
    thawed(tmp_path)
    run = begun(tmp_path, "going", 30, rows(2))
    with watched(tmp_path) as site, run.write_lock(), Browser(tmp_path / "profile") as browser:
        browser.open(site.url, width)
        browser.wait_for("document.body.textContent.includes('2 of 30')")
        run.write("history.csv", rows(3).encode())
        browser.wait_for("document.body.textContent.includes('3 of 30')")
        browser.evaluate(f"document.querySelector('a[href$=\"{run.path.name}\"]').click()")
        browser.wait_for("document.querySelectorAll('svg.chart').length > 1")
        run.write("history.csv", rows(7).encode())
        browser.wait_for("document.querySelectorAll('.line')[0].querySelectorAll('circle').length === 7")
        browser.evaluate(
            "document.querySelector('[data-tip]').dispatchEvent(new PointerEvent('pointerover', {bubbles: true}))"
        )
        assert "epoch 1\n" in browser.evaluate("document.querySelector('.tip').textContent")  # redrawn, and still shown
        browser.evaluate("document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape', bubbles: true}))")
        assert browser.evaluate("innerWidth") == width
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        browser.screenshot(tmp_path / "shot.png")
        with Image.open(tmp_path / "shot.png") as shot:
            assert len(shot.convert("RGB").getcolors(1 << 24) or ()) > 20  # curves, not a blank sheet
        site.process.send_signal(signal.SIGINT)
        browser.wait_for("document.body.textContent.includes('no answer from comp watch')")
        asked = [event["params"] for event in browser.messages if event["method"] == "Network.requestWillBeSent"]
        assert all(event["request"]["url"].startswith((site.url, "data:")) for event in asked)
        kinds = {event["method"] for event in browser.messages}
        assert "Runtime.exceptionThrown" not in kinds
