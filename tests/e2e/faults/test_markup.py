"""Markup: names of classes, files, runs and studies are text, wherever they are shown."""

import contextlib
import csv
import html
import html.parser
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from comp.cli import app
from comp.cli.console import output
from comp.results import page as pages
from comp.results import runs
from comp.runtime import escape
from tests.support.commands import Result
from tests.support.configs import QUICK, small_config, write_arrays, write_config
from tests.support.faults import assert_clean, assert_fault
from tests.support.frozen_runs import PLAIN, thawed
from tests.support.runs import the_run

Comp = Callable[..., Result]
CLASSES = ("[/x] [bold]b", "\x1b[31mred\x1b]8;;a\x07", "=HYPERLINK(1)|<script>alert(1)</script>", "a\u202etxt $\\frac{")
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
FORMULA = re.compile(r"[=+@\t\r-](?![\d.]+$)")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data whose classes have hostile names, and a run on them."""
    folder = tmp_path_factory.mktemp("markup")
    write_config(folder / "small.yaml", small_config(write_arrays(folder / "data")))
    (folder / "data/classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    with contextlib.chdir(folder), pytest.raises(SystemExit) as left:
        app.main(["run", "small.yaml", *QUICK])
    assert not left.value.code
    images = folder / "images"
    images.mkdir()
    for name in ("=1+cmd|' 'A0.png", "[red]a.png", "\x1b[2Jb.png", "<img src=x>.png", "-5.png", "\u202egnp.c.png"):
        Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(images / name)
    return folder


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a copy of the trained folder."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def assert_plain(result: Result) -> None:
    """Assert that a command succeeded and printed nothing that commands a terminal."""
    assert_clean(result)
    assert result.code == 0, result.err
    printed = result.out + result.err
    assert not (hidden := HIDDEN.search(printed)), printed[max(0, hidden.start() - 80) : hidden.end() + 80]


SHOWN: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "data show": (("data", "show", "small.yaml"), ("[/x] [bold]b", r"\x1b[31mred\x1b]8;;a\x07", r"a\u202etxt")),
    "data check": (("data", "check", "small.yaml"), ()),
    "data prepare": (("data", "prepare", "small.yaml"), ()),
    "evaluate": (("evaluate", "RUN"), ("[/x] [bold]b", r"\x1b[31mred", r"a\u202etxt")),
    "evaluate --json": (("evaluate", "RUN", "--json"), (r"\u001b[31mred", r"\u202e", "[/x] [bold]b")),
    "predict": (("predict", "RUN", "--images", "images"), ("[red]a.png", r"\x1b[2Jb.png", r"\u202egnp.c.png")),
    "predict --json": (("predict", "RUN", "--images", "images", "--json"), (r"\u001b[2Jb.png",)),
    "check": (("check", "submissions/small.csv"), ()),
    "report": (("report", "RUN"), ()),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", SHOWN)
def test_hostile_names_are_printed_as_text(place: Path, comp: Comp, name: str) -> None:
    words, parts = SHOWN[name]
    result = comp(*[str(the_run().path) if word == "RUN" else word for word in words])
    if name == "check":  # an untrained network's answers may be lopsided, which is refused
        assert not HIDDEN.search(result.out + result.err)
        return
    assert_plain(result)
    for part in parts:
        assert part in result.out, result.out


class Tags(html.parser.HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        assert not any(name.startswith("on") for name, _ in attrs)
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        """Note text."""
        self.text += data


@pytest.mark.slow
def test_hostile_names_are_text_in_a_report(place: Path, comp: Comp) -> None:
    hostile = the_run().path.rename(the_run().path.with_name("20260101-120000-<script>x"))
    assert_plain(comp("evaluate", hostile))
    for paths in ([hostile], [hostile, *thaw_one(place)]):
        assert_plain(comp("report", *paths))
        page = Tags(Path("report.html").read_text())
        assert page.tags.count("script") == 1  # the page's own, the only one that its policy lets run
        assert not HIDDEN.search(page.text)
        assert "<script>x" in page.text


def thaw_one(place: Path) -> list[Path]:
    """Return a second run's folder."""
    thawed(place / "more")
    return [place / "more" / PLAIN]


def test_pictures_of_suspects_escape_every_cell() -> None:
    page = Tags(pages.render_pictures("<b>t", ["id", "<i>"], [b"png"], [["<script>", "\x1b[31m"]]))
    assert not {"script", "i"} & set(page.tags)
    assert r"\x1b[31m" in page.text


RUN_NAMES = ["[/x]", "[bold]b", "\x1b[31mred", "=HYPERLINK(1)", "<script>", "a|b", "\u202ea", "a\nb", "\udcffa"]


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory whose runs have hostile names and models."""
    thawed(tmp_path)
    monkeypatch.chdir(tmp_path)
    write_config(Path("small.yaml"), small_config(Path("data")))
    for name in RUN_NAMES:
        copy = Path("=runs") / f"20260101-120000-{name}"
        shutil.copytree(PLAIN, copy)
        values = json.loads((copy / "metrics.json").read_text())
        (copy / "metrics.json").write_text(
            json.dumps({**values, "model": (model := name.replace("\udcff", "")), "device": model})
        )
    return tmp_path


@pytest.mark.parametrize("syntax", ["", "--md", "--csv", "--json"])
def test_a_leaderboard_of_hostile_names_is_a_table_of_text(board: Path, comp: Comp, syntax: str) -> None:
    result = comp("leaderboard", "--runs", "=runs", *filter(None, [syntax]))
    assert_plain(result)
    if syntax == "--json":
        assert {row["model"] for row in json.loads(result.out)} == {name.replace("\udcff", "") for name in RUN_NAMES}
    elif syntax == "--csv":
        head, *rows = csv.reader(io.StringIO(result.out))
        assert len(rows) == len(RUN_NAMES)
        assert all(len(row) == len(head) for row in rows)
        assert not [cell for row in rows for cell in row if FORMULA.match(cell)]
    elif syntax == "--md":
        lines = result.out.splitlines()
        assert len(lines) == 2 + len(RUN_NAMES)
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {lines[0].count("|")}
        assert "<script>" not in result.out
    else:
        assert "[/x]" in "".join(re.findall(r"[^│\s]", result.out))


def test_a_long_leaderboard_without_frames_is_text_too(
    board: Path, comp: Comp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comp.cli.console.leaderboard._MAX_DRAWN_ROWS", 2)
    assert_plain(comp("leaderboard", "--runs", "=runs"))


@pytest.mark.parametrize("words", [("--group-by", "model"), ("--group-by", "model", "--csv"), ("--sort", "[/x]\x1b")])
def test_groups_and_wrong_columns_are_text(board: Path, comp: Comp, words: tuple[str, ...]) -> None:
    result = comp("leaderboard", "--runs", "=runs", *words)
    assert_clean(result)
    assert not HIDDEN.search(result.out + result.err)


@pytest.mark.slow
def test_a_table_of_predicted_files_begins_no_formula(place: Path, comp: Comp) -> None:
    assert_plain(comp("predict", the_run().path, "--images", "images", "-o", "table.csv"))
    rows = list(csv.reader(Path("table.csv").read_text().splitlines()))
    assert len(rows) == 7
    assert not [cell for row in rows for cell in row if FORMULA.match(cell)]
    assert any(row[0].startswith("'=1+cmd") for row in rows)


@pytest.mark.slow
def test_a_submissions_own_cells_stay_exact(place: Path) -> None:
    cells = {row[1] for row in csv.reader(Path("submissions/small.csv").read_text(encoding="utf-8").splitlines()[1:])}
    assert cells <= {*CLASSES, "0", "1", "2", "3"}


ERRORS: dict[str, tuple[str, ...]] = {
    "an override": ("config", "check", "small.yaml", "model.name=[/x]\x1b[31m"),
    "a key": ("config", "check", "small.yaml", "mo\x1b[2Jdel=3"),
    "a value": ("config", "check", "small.yaml", "train.epochs=\u202e3"),
    "a pattern": ("models", "[bold]\x1b[31m"),
    "an option": ("report", "--\x1b[2J"),
    "a command": ("\x1b]8;;x",),
    "a number": ("leaderboard", "--top", "\x1b[31m"),
    "a study": ("tune", "--show", "\x1b[31m[/x]"),
    "a run": ("predict", "\x1b[31m[/x]"),
    "a forged message": ("predict", "x\nerror: fake\nTraceback"),
}


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=pytest.mark.slow if what == "a pattern" else ()) for what in ERRORS]
)
def test_an_error_shows_hostile_words_as_text(board: Path, comp: Comp, what: str) -> None:
    result = comp(*ERRORS[what])
    assert not HIDDEN.search(result.out + result.err), result.err
    assert not re.search(r"^Traceback", result.err, re.MULTILINE)
    assert result.code in (0, 2)
    assert sum(line.startswith("error: ") for line in result.err.splitlines()) <= 1


def test_a_config_that_is_refused_is_quoted_as_text(board: Path, comp: Comp) -> None:
    Path("hostile.yaml").write_text('"model\\e[31m": {"na\\u202eme": "[/x]\\e]8;;"}\n')
    result = comp("config", "check", "hostile.yaml")
    assert_fault(result, "hostile.yaml", r"\x1b[31m")
    assert not HIDDEN.search(result.err)


def test_json_of_names_that_no_encoding_has_is_still_the_same_values(capsys: pytest.CaptureFixture[str]) -> None:
    values = {"id": "\udcff \x1b[31m \u202e é 🐈", "n": 0.5}
    output.print_json(values)
    printed = capsys.readouterr().out
    assert json.loads(printed) == values
    assert not HIDDEN.search(printed)


def test_records_hold_the_bytes_of_an_undecodable_name(tmp_path: Path) -> None:
    run = runs.Run(tmp_path)
    run.write_json("provenance.json", {"argv": ["\udcff.yaml"]})
    assert run.provenance()["argv"] == ["\udcff.yaml"]


ANY_TEXT = st.text(st.characters(), max_size=40)


@given(ANY_TEXT)
def test_text_for_a_terminal_holds_no_command_and_is_stable(text: str) -> None:
    shown = escape.for_terminal(text)
    assert not HIDDEN.search(shown)
    assert escape.for_terminal(shown) == shown
    assert "\n" not in escape.one_line(text)


@given(st.text(st.characters(categories=("L", "N", "P", "S", "Zs"))))
def test_ordinary_text_is_printed_as_it_is(text: str) -> None:
    assert escape.for_terminal(text) == escape.one_line(text) == text


@given(ANY_TEXT)
def test_text_in_html_is_the_text_of_a_terminal(text: str) -> None:
    page = Tags(f'<p title="{escape.for_html(text)}">{escape.for_html(text)}</p>')
    assert page.tags == ["p"]
    assert html.unescape(escape.for_html(text)) == escape.for_terminal(text)


@given(st.one_of(ANY_TEXT, st.sampled_from("=+-@\t\r\n＝").flatmap(lambda first: ANY_TEXT.map(first.__add__))))
def test_a_cell_of_a_spreadsheet_is_no_formula(text: str) -> None:
    cell = escape.for_spreadsheet(text)
    assert isinstance(cell, str)
    assert cell[:1] not in ("=", "+", "-", "@", "\t", "\r", "＝") or np.isscalar(float(cell))


@given(st.floats(allow_nan=False) | st.integers())
def test_numbers_of_a_spreadsheet_stay(number: float) -> None:
    assert escape.for_spreadsheet(number) == number
    assert escape.for_spreadsheet(str(number)) == str(number)


@given(st.lists(ANY_TEXT, min_size=1, max_size=4))
def test_a_row_of_markdown_has_as_many_cells_as_the_table(cells: list[str]) -> None:
    line = "| " + " | ".join(map(escape.for_markdown, cells)) + " |"
    unescaped = re.sub(r"\\.", "", line)
    assert "\n" not in line
    assert unescaped.count("|") == len(cells) + 1
    assert "<" not in line


@given(ANY_TEXT)
def test_an_error_is_one_message_whatever_it_quotes(text: str) -> None:
    more = escape.for_error(f"{text}: no such file").split("\n")[1:]
    assert all(line[:1] in ("", " ", "\t") for line in more)


@given(st.dictionaries(ANY_TEXT, ANY_TEXT), st.sampled_from(["utf-8", "ascii", "latin-1"]))
def test_json_for_any_encoding_has_the_same_values(values: dict[str, str], encoding: str) -> None:
    text = escape.for_json(json.dumps(values, ensure_ascii=False), encoding)
    assert json.loads(text.encode(encoding).decode(encoding)) == values
