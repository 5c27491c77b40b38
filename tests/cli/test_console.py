"""Printed progress fits a window of 80 columns, with no cell cut off."""

import contextlib
import io
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from comp.cli import app, console
from comp.cli.console import output, training
from comp.models.surgery import TrainableRow
from comp.results.runs import Run
from comp.runtime import bars
from comp.runtime.errors import Interrupted
from comp.training.loop import Epoch

LAYER = "stages.2.blocks.11.conv_depthwise_with_a_long_name.weight"
EPOCH = Epoch(
    number=12,
    lr=1e-3,
    train_loss=4.6051,
    train_accuracy=0.0123,
    val_loss=4.5,
    val_accuracy=0.02,
    val_metric=0.015,
    ood_accuracy=0.01,
    ood_metric=0.011,
    ood_by_severity={},
    averaged=None,
    seconds=1234.5,
    images_per_second=123456.0,
    note="",
)


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Return what is printed to a window of 80 columns."""
    text = io.StringIO()
    window = Console(file=text, width=80, **output._VERBATIM)
    monkeypatch.setattr(output, "out", window)
    for module in (output, training):
        monkeypatch.setattr(module, "err", window)
    return text


def test_an_epoch_fits_the_window_and_keeps_every_number(printed: io.StringIO) -> None:
    console.print_epoch(EPOCH)
    lines = printed.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    numbers = ("12", "4.6051", "0.0123", "4.5000", "0.0150", "0.0110", "1.00e-03", "123,456 images/s", "1234.5 s")
    assert all(number in printed.getvalue() for number in numbers)


def test_a_trainings_tables_fit_the_window_and_name_every_layer_in_full(printed: io.StringIO) -> None:
    source = f"weights/resnet18.safetensors (sha256 {'0123456789abcdef' * 4})"
    console.print_start(Run(Path("runs/a")), [TrainableRow(LAYER, 10**8, 10**8, "partly kept")], source)
    row = {"epoch": "1", "layer": LAYER, "parameters": "100000000", "gradient_norm": "0.1", "weight_norm": "0.2"}
    console.print_norms([row])
    lines = printed.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    first_cells = "".join(line.split("│")[1].strip() for line in lines if line.startswith("│"))
    assert first_cells.count(LAYER) == 2


def test_progress_in_a_file_never_tells_a_speed_of_zero(monkeypatch: pytest.MonkeyPatch, printed: io.StringIO) -> None:
    clock = iter((0.0, 0.0, 20.0, 100.0, 100.0, 120.0, 140.0))
    monkeypatch.setattr(bars.time, "perf_counter", lambda: next(clock))
    with console.bars() as progress:
        progress("suite", 40, 40)  # all at once: nothing shows how fast
        progress("folds", 1, 3, "folds")
        progress("folds", 2, 3, "folds")
    assert printed.getvalue().splitlines() == ["suite: 40 of 40 images", "folds: 2 of 3 folds, 0.05/s, 20 s left"]


@pytest.mark.parametrize(
    ("words", "folder", "command"),
    [
        (["cv", "my c.yaml", "--workers", "2"], "runs/a/cv-1", "comp cv 'my c.yaml' --workers 2"),
        (["run", "c.yaml"], "runs/a/x", "comp run --resume runs/a/x"),
        (["train", "c.yaml"], "runs/a/x", "comp train --resume runs/a/x"),
        (["run", "--resume", "runs/a/x", "data.root=d"], "runs/a/x", "comp run --resume runs/a/x data.root=d"),
        (["tune", "c.yaml", "tune.storage=postgresql://me:secret@host/x"], "", "postgresql://me@host/x"),
    ],
)
def test_a_stopped_command_says_how_it_continues(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], words: list[str], folder: str, command: str
) -> None:
    def stop(*arguments: object, **options: object) -> None:
        stopped = Interrupted(signal.SIGINT)
        stopped.folder = folder
        raise stopped

    monkeypatch.setattr(app, "app", stop)
    with pytest.raises(SystemExit) as exit_:
        app.main(words)
    assert exit_.value.code == 128 + signal.SIGINT
    err = capfd.readouterr().err
    assert command in err
    assert folder in err
    assert "secret" not in err


HOSTILE = ("a" * 300, "绵" * 90, "\x1b[2J\u202eoverride\n", "runs/a name/with spaces and [red]markup[/red]" * 4, "")


def drawn(printed: io.StringIO) -> list[list[str]]:
    """Return the cells of each line of a table."""
    lines = [line for line in printed.getvalue().splitlines() if line.startswith(("┃", "│"))]
    return [[cell.strip() for cell in re.split("[┃│]", line)[1:-1]] for line in lines]


@pytest.mark.parametrize("name", HOSTILE, ids=["long", "wide", "escapes", "path", "empty"])
def test_a_table_fits_whatever_names_hold_and_cuts_no_number(printed: io.StringIO, name: str) -> None:
    numbers = ["0.12345678", "1,234,567,890", "12.5%"]
    console.print_table(
        ["run", "class", "score", "parameters", "share", "note"],
        [[name, name, *numbers, name], ["b", "c", *numbers, "d"]],
        folded={"class": 10, "note": 10},
        shortened={"run": 12},
        drop=("note", "share"),
    )
    text = printed.getvalue()
    assert max(map(cell_len, text.splitlines())) <= 80
    head, *rows = drawn(printed)
    assert {"run", "class", "score", "parameters"} <= set(head)
    kept = numbers[: 2 + ("share" in head)]
    for cells in (rows[0], rows[-1]):
        assert [cell for cell in cells if cell in numbers] == kept
    assert sum(bool(cells[0]) for cells in rows) == 1 + bool(name)  # a path has one line
    assert "\x1b" not in text


def test_columns_go_in_the_order_of_their_priority(printed: io.StringIO) -> None:
    row = ["x" * 20] * 5
    console.print_table(["a", "b", "c", "d", "e"], [row], drop=("d", "b", "e"), full_table="--csv")
    assert drawn(printed)[0] == ["a", "c", "e"]
    assert "hidden columns: b, d (use a wider window or --csv)" in printed.getvalue()


def test_a_shortened_path_keeps_both_ends(printed: io.StringIO) -> None:
    path = "runs/competition/20260131-120000-" + "x" * 80 + "/end.csv"
    console.print_table(["run", "score"], [[path, "0.5"]], shortened={"run": 20})
    shown = drawn(printed)[1][0]
    start, end = shown.split("...")
    assert path.startswith(start)
    assert path.endswith(end)
    assert "20260131-120000" in start


def test_numbers_end_on_the_right_and_words_begin_on_the_left(printed: io.StringIO) -> None:
    console.print_table(["name", "score"], [["a", "1,234.5"], ["bcd", "-0.5"], ["e", ""], ["f", "-"]])
    lines = [line for line in printed.getvalue().splitlines() if line.startswith("│")]
    assert [line.split("│")[2] for line in lines] == [" 1,234.5 ", "    -0.5 ", "         ", "       - "]
    assert all(line.startswith("│ ") and line[2] != " " for line in lines)


def test_a_command_in_a_sentence_is_never_broken(printed: io.StringIO) -> None:
    command = f"comp run --resume runs/competition/20260131-120000-{'x' * 60} data.root=there"
    console.print_note(f"note: the training was stopped some time ago by a signal; continue with: {command}")
    assert f"  {command}" in printed.getvalue().splitlines()


@pytest.mark.parametrize(
    ("variables", "coloured"),
    [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_colours_are_for_terminals_without_no_color(variables: dict[str, str], coloured: bool) -> None:
    names = ("NO_COLOR", "FORCE_COLOR", "TERM", "CLICOLOR_FORCE")
    environment = {**{name: value for name, value in os.environ.items() if name not in names}, **variables}
    inside, outside = pty.openpty()
    command = [sys.executable, "-m", "comp", "check", "--help"]
    process = subprocess.Popen(command, stdout=outside, stderr=outside, env=environment)
    os.close(outside)
    text = b""
    with open(inside, "rb", buffering=0) as stream, contextlib.suppress(OSError):  # the terminal is gone
        while part := stream.read(4096):
            text += part
    assert process.wait() == 0
    assert b"check" in text
    assert bool(re.search(rb"\x1b\[[0-9;]*3[0-7]", text)) == coloured
