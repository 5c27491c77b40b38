"""Charts and pages: what is drawn, and what a browser makes of it."""

import html.parser
import json
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comp.results import charts, comparison, curves, diagnostics, page, prediction_files, report, runs
from comp.results.page import Section
from tests.support.browser import CHROMIUM, NEEDS_CHROMIUM
from tests.support.commands import Result
from tests.support.frozen_runs import FLIPPED, PLAIN, thawed


class Chart(html.parser.HTMLParser):
    """The titles of marks, the other text, and the elements of a chart."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tips: list[str] = []
        self.labels: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self._open.append(tag)
        self.tags.append((tag, dict(attrs)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an empty element."""
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """Close an element."""
        while self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        """Note a tip or a label."""
        if self._open:
            {"title": self.tips, "text": self.labels}.get(self._open[-1], []).append(data)

    def styles(self) -> list[tuple[str | None, str | None]]:
        """Return colour and dashes of each line."""
        return [
            (row["stroke"], row.get("stroke-dasharray")) for tag, row in self.tags if tag == "path" and "stroke" in row
        ]


@given(st.floats(-1e9, 1e9), st.floats(1e-9, 1e9))
def test_ticks_are_round_distinct_and_inside(low: float, span: float) -> None:
    high = low + span
    if high <= low + abs(low) * 1e-9:
        return
    ticks = charts.nice_ticks(low, high)
    assert 1 <= len(ticks) <= 7
    assert all(low - span / 1e6 <= tick <= high + span / 1e6 for tick in ticks)
    steps = np.diff(list(ticks))
    assert np.allclose(steps, steps[0] if len(steps) else 0, rtol=1e-3)


def test_epochs_have_whole_ticks() -> None:
    for last in (1, 2, 3, 7, 30, 300):
        axis = charts.number_axis("epoch", [1, last], integers=True)
        assert all(re.fullmatch(r"[\d,]+", label) for label in axis.ticks.values())


def test_pointing_at_an_epoch_shows_all_values_there() -> None:
    series = {"a": [(1, 0.5), (2, 0.25)], "<b>": [(2, 0.75), (3, float("nan"))]}
    chart = Chart(charts.lines("loss", series, "epoch").svg())
    assert chart.tips == ["epoch 1\na: 0.5", "epoch 2\na: 0.25\n<b>: 0.75", "epoch 3\n<b>: nan"]
    assert "b" not in [tag for tag, _ in chart.tags]


def test_a_value_measured_in_one_epoch_has_a_dot_and_the_best_epoch_a_line() -> None:
    history = [{"number": str(number), "train_loss": str(1 / number), "lr": "0.1"} for number in range(1, 6)]
    history[2]["ood_accuracy"] = "0.9"
    drawn = Chart(curves.draw(history, "accuracy", best_epoch=4))
    assert "epoch 3\nvalidation, shifted: 0.9" in drawn.tips
    assert sum(tag == "circle" for tag, _ in drawn.tags) == 5 + 1 + 5
    guides = [row["d"] for _, row in drawn.tags if row.get("class") == "guide"]
    assert len(guides) == 3  # one in each chart
    assert "after epoch 4" in curves.draw(history, "accuracy", best_epoch=4)
    assert "guide" not in curves.draw(history, "accuracy", best_epoch=None)


def test_forty_lines_look_different() -> None:
    series = {f"run {number}": [(1.0, float(number)), (2.0, 0.0)] for number in range(40)}
    styles = Chart(charts.lines("loss", series, "epoch").svg()).styles()
    assert len(set(styles)) == len(styles) == 40
    assert styles == Chart(charts.legend(series)).styles()


def test_a_heat_map_holds_all_values_and_leaves_unknown_ones_empty() -> None:
    values = np.array([[0.25, np.nan], [0.5, 1.0]])
    chart = Chart(charts.heat_map(["fog", "<i>"], ["1", "2"], values, lambda r, c: f"{r} {c}", title="accuracy"))
    assert chart.tips == ["0 0", "1 0", "1 1"]
    assert [float(str(row["data-value"])) for _, row in chart.tags if "data-value" in row] == [0.25, 0.5, 1.0]
    assert {"fog", "<i>", "0.250", "1.000"} <= set(chart.labels)


def test_a_confusion_table_names_and_counts_a_hundred_classes() -> None:
    table = np.diag(np.full(100, 90))
    table[3, 7] = 10
    names = [f"class {number}" for number in range(100)]
    chart = Chart(charts.confusion(table, table.sum(1), names, "images"))
    assert len(chart.tips) == 101
    assert "class 3, predicted class 7: 10 images (10.0%)" in chart.tips
    assert chart.labels.count("90") == 100
    assert all(chart.labels.count(name) == 2 for name in names)


def test_a_large_confusion_table_stays_small() -> None:
    generator = np.random.default_rng(0)
    truth, wrong = generator.integers(0, 100, 950_000), generator.integers(0, 100, 950_000)
    predicted = np.where(generator.random(950_000) < 0.5, truth, (truth + wrong**2 // 300) % 100)
    table = np.bincount(truth * 100 + predicted, minlength=10_000).reshape(100, 100)
    assert len(charts.confusion(table, table.sum(1), [f"class {n}" for n in range(100)], "images")) < 1_000_000


def test_classes_that_are_confused_are_neighbours() -> None:
    table = np.diag(np.full(12, 50))
    for first, second in ((0, 7), (3, 11), (5, 9)):
        table[first, second] = table[second, first] = 30
    order = diagnostics.class_order(table, keep=False)
    assert sorted(order) == list(range(12))
    places = np.argsort(order)
    assert all(abs(places[first] - places[second]) == 1 for first, second in ((0, 7), (3, 11), (5, 9)))
    assert diagnostics.class_order(table, keep=True) == list(range(12))


def test_contents_lead_to_each_section() -> None:
    text = page.render("t", [Section(f"part {number}", "<p></p>") for number in range(4)] + [Section("empty", "")])
    links = re.findall(r'<a href="#([^"]+)">', text)
    assert links == re.findall(r'<section id="([^"]+)">', text)
    assert len(links) == 4
    assert "script" not in text  # nothing is drawn


@pytest.fixture
def frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two runs of an earlier version."""
    monkeypatch.chdir(thawed(tmp_path))
    return tmp_path


def test_a_page_shows_intervals_and_differences_to_a_baseline(frozen: Path, comp: Callable[..., Result]) -> None:
    result = comp("report", PLAIN, "--baseline", FLIPPED, "-o", "page.html")
    assert result.code == 0, result.err
    text = Path("page.html").read_text()
    run, other = (runs.open_run(Path(path)) for path in (PLAIN, FLIPPED))
    score, before = (each.metrics().best.val.scores["accuracy"] for each in (run, other))
    assert f"95 %: {score.low:.4f} to {score.high:.4f}" in text
    first, second = (prediction_files.find_correctness(each.path / "predictions/val.npz") for each in (run, other))
    assert first is not None
    assert second is not None
    assert first.has_same_rows(second)
    assert re.search(rf"{re.escape(f'{score.value - before.value:+.4f}')} \([+-][\d.]+ to [+-][\d.]+\)", text)


def test_of_an_unfinished_baseline_the_config_is_compared(frozen: Path, comp: Callable[..., Result]) -> None:
    (Path(FLIPPED) / "metrics.json").unlink()
    assert comp("report", PLAIN, "--baseline", FLIPPED, "-o", "page.html").code == 0
    text = Path("page.html").read_text()
    assert "<th>baseline</th>" in text or 'class="text">baseline</th>' in text
    assert "differences to" not in text


def test_several_runs_have_a_winner_by_shifted_validation(frozen: Path) -> None:
    compared = report.find_runs([Path(PLAIN), Path(FLIPPED)])
    text = comparison.render_page(compared)
    scores = {run.path.name: run.metrics().best.ood_val.scores["accuracy"].value for run in compared}
    best = max(scores, key=lambda name: scores[name])
    winner = re.search(r'<p class="winner">Best by shifted validation accuracy: <b>([^<]+)</b>.*?</p>', text)
    assert winner
    assert scores[winner[1]] == scores[best]
    assert re.search(r"significantly better", winner[0])


def test_titles_are_wholly_inside_a_narrow_chart() -> None:
    narrow = charts.heat_map(["a"], ["1"], np.zeros((1, 1)), lambda row, column: "", title="accuracy by distortion")
    table = charts.confusion(np.eye(2, dtype=np.int64), np.ones(2, np.int64), ["a", "b"], "images")
    for drawn, title in ((narrow, "accuracy by distortion"), (table, "columns: predicted, rows: true")):
        width = re.search(r'viewBox="0 0 (\d+)', drawn)
        assert width
        assert int(width[1]) >= 6 * len(title)


def test_a_page_shows_forty_runs_and_says_of_how_many(frozen: Path) -> None:
    compared = report.find_runs([Path(PLAIN), Path(FLIPPED)])
    assert "<h1>the best 40 of 42 runs</h1>" in comparison.render_page(compared * 21)
    assert "<h1>2 runs</h1>" in comparison.render_page(compared)


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_damaged_pictures_are_one_message_with_the_cure(
    frozen: Path, comp: Callable[..., Result], content: bytes | None
) -> None:
    assert comp("report", PLAIN, "-o", "page.html").code == 0
    picture = Path(PLAIN) / "plots/examples-val.png"
    picture.write_bytes(picture.read_bytes()[:400] if content is None else content)
    result = comp("report", PLAIN, "-o", "page.html")
    assert result.code == 2
    assert len(result.err.strip().splitlines()) == 1
    assert f"create it again: comp evaluate {PLAIN}" in result.err
    picture.unlink()
    assert comp("report", PLAIN, "-o", "page.html").code == 0
    assert "No pictures of mistakes" in Path("page.html").read_text()


HOVER = """
const hover = mark => { mark.dispatchEvent(new PointerEvent('pointerover', {bubbles: true}));
  const tip = document.querySelector('.tip'); return tip.hidden ? '' : tip.textContent; };
const press = (target, key) => target.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));
const charts = [...document.querySelectorAll('svg.chart')];
const first = charts.map(chart => hover(chart.querySelector('[data-tip]')));
press(document.body, 'Escape');
const hidden = document.querySelector('.tip').hidden;
charts[0].focus();
press(charts[0], 'ArrowRight');
const keyed = document.querySelector('.tip').textContent, content = document.documentElement.scrollWidth;
console.log('MEASURED' + JSON.stringify({inner: innerWidth, content, first, hidden, keyed}));
"""


def opened(path: Path, width: int) -> dict[str, Any]:
    """Return what a browser measures of a page in a window of a width, and what pointing at its charts shows."""
    text = path.read_text().replace("</body>", f"<script>{HOVER}</script></body>")
    probed = path.with_name("probed.html")
    probed.write_text(re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text))
    # A window is at least 500 pixels wide, a frame is not.
    frame = path.with_name("frame.html")
    frame.write_text(f'<iframe src="probed.html" width="{width}" height="900" frameborder="0"></iframe>')
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0", "--dump-dom"]
    command = [str(CHROMIUM), *options, f"--window-size={width + 50},1000", f"file://{frame.absolute()}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    measured = re.search(r'MEASURED(\{.*\})", source', done.stderr)
    assert measured, done.stderr
    values: dict[str, Any] = json.loads(measured[1])
    return values


@pytest.mark.slow
@NEEDS_CHROMIUM
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("paths", [[PLAIN], [PLAIN, FLIPPED]])
def test_a_browser_shows_values_under_the_pointer_and_nothing_overflows(
    frozen: Path, comp: Callable[..., Result], paths: Sequence[str], width: int
) -> None:
    assert comp("report", *paths, "-o", "page.html").code == 0
    measured = opened(Path("page.html"), width)
    assert measured["inner"] == width
    assert measured["content"] <= width
    assert len(measured["first"]) > 2
    assert all(re.search(r"\d", tip) for tip in measured["first"])
    assert measured["hidden"]
    assert re.search(r"\d", measured["keyed"])
