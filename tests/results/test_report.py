"""`comp report`: pages that hold what the runs' files say, and that a browser shows without asking anybody."""

import contextlib
import html.parser
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comp.cli import app
from comp.results import runs
from tests.support.browser import CHROMIUM, NEEDS_CHROMIUM
from tests.support.commands import Result
from tests.support.configs import small_config, write_arrays, write_config
from tests.support.runs import the_run


class Page(html.parser.HTMLParser):
    """What a page shows and where it would load things from."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.values: list[float] = []
        self.sources: list[str] = []
        self.headings: list[str] = []
        self.scripts = 0
        self._in_heading = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note numbers and addresses."""
        given = dict(attrs)
        self.scripts += tag == "script"
        if given.get("data-value"):
            self.values.append(float(str(given["data-value"])))
        self.sources += [str(given[key]) for key in ("src", "href") if key in given]
        self._in_heading = tag == "h2"

    def handle_data(self, data: str) -> None:
        """Note headings."""
        if self._in_heading:
            self.headings.append(data)
            self._in_heading = False


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run and its submission, and a training of another network."""
    folder = tmp_path_factory.mktemp("trained")
    write_config(folder / "small.yaml", small_config(write_arrays(folder / "data")))
    mlp = {**small_config(folder / "data"), "model": {"name": "mlp"}}
    write_config(folder / "mlp.yaml", mlp)
    for words in (["run", "small.yaml"], ["train", "mlp.yaml", "train.log_norms=true"]):
        with contextlib.chdir(folder), pytest.raises(SystemExit) as left:
            app.main(words)
        assert not left.value.code
    return folder


@pytest.fixture
def two_runs(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A competition's folder in a working directory of its own: copies of the trained runs."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return Path("runs/small")


def test_a_runs_page_shows_the_numbers_of_its_files(two_runs: Path, comp: Callable[..., Result]) -> None:
    run = next(path for path in two_runs.iterdir() if path.name.endswith("-small"))
    result = comp("report", run, "-o", "page.html")
    assert result.code == 0, result.err
    text = Path("page.html").read_text()
    page = Page(text)
    assert all(source.startswith(("data:", "#")) for source in page.sources)
    scores = the_run_at(run)
    wanted = [scores.test.accuracy, scores.suite.accuracy, scores.best.val.accuracy]
    wanted += list(scores.suite.by_block.values())
    assert all(value in page.values for value in wanted)
    assert {"Curves", "What was trained", "Config", "Provenance"} <= set(page.headings)
    assert "model.args" in text  # departs from the defaults
    assert "train.average" not in text  # does not
    assert (run / "evaluation.json").exists()


def the_run_at(path: Path) -> Any:
    return runs.open_run(path).metrics()


def test_several_runs_are_compared_side_by_side(two_runs: Path, comp: Callable[..., Result]) -> None:
    assert comp("report", two_runs, "-o", "page.html").code == 0
    text = Path("page.html").read_text()
    assert all(path.name in text for path in two_runs.iterdir())
    rows = re.findall(r'<tr><td class="text">([\w.]+)</td><td class="text">', text.replace("<wbr>", ""))
    assert set(rows) == {"model.args", "model.name", "train.log_norms"}
    for path in two_runs.iterdir():
        assert the_run_at(path).best.val.accuracy in Page(text).values


def test_a_page_escapes_names_with_scripts(workplace: Path, comp: Callable[..., Result]) -> None:
    classes = "\n".join(["<script>alert(1)</script>", "b&b", "c", "d"])
    (workplace / "data" / "classes.txt").write_text(classes)
    assert comp("train", "small.yaml").code == 0
    assert comp("report", the_run().path, "-o", "page.html").code == 0
    text = Path("page.html").read_text()
    assert Page(text).scripts == 1  # the page's own
    assert "<script>alert" not in text
    assert "&lt;script&gt;" in text


def test_folders_without_runs_are_refused(workplace: Path, comp: Callable[..., Result]) -> None:
    Path("page.html").write_text("mine")
    result = comp("report", "data", "-o", "page.html")
    assert result.code == 2
    assert "expected a complete run or a folder of runs" in result.err
    assert Path("page.html").read_text() == "mine"


def test_the_page_of_an_unfinished_run_is_refused_with_the_command_that_finishes_it(
    two_runs: Path, comp: Callable[..., Result]
) -> None:
    paths = [run.path for run in runs.list_runs(two_runs)]
    for path in paths:
        (path / "metrics.json").unlink()
        result = comp("report", path, "-o", "page.html")
        assert (result.code, f"comp run --resume {path}" in result.err) == (2, True)
    assert f"comp run --resume {paths[-1]}" in comp("report", two_runs, "-o", "page.html").err


@NEEDS_CHROMIUM
@pytest.mark.parametrize("width", [400, 1200])
def test_a_browser_shows_the_page_without_errors(two_runs: Path, comp: Callable[..., Result], width: int) -> None:
    run = next(path for path in two_runs.iterdir() if path.name.endswith("-small"))
    assert comp("report", run, "-o", "page.html").code == 0
    done = subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            "--v=0",
            "--hide-scrollbars",
            f"--window-size={width},1600",
            f"--screenshot={Path('shot.png').absolute()}",
            f"file://{Path('page.html').absolute()}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr  # neither errors nor what the page's policy would have blocked
    with Image.open("shot.png") as shot:
        assert shot.width == width
        assert len(shot.convert("RGB").getcolors(1 << 24) or ()) > 100  # pictures, not a blank sheet
