"""Printed progress fits a window of 80 columns, with no cell cut off."""

import io
import signal
from pathlib import Path

import pytest
from rich.console import Console

from comp.cli import app, console
from comp.cli.console import output, training
from comp.models.surgery import TrainableRow
from comp.results.runs import Run
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
    for module in (output, training):
        monkeypatch.setattr(module, "out", window)
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
    monkeypatch.setattr(output.time, "perf_counter", lambda: next(clock))
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
