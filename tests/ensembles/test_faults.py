"""Files that were damaged, altered or cut off on their way into an ensemble or a submission."""

import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from comp.results import blocks, prediction_files, predictions, runs
from comp.results.predictions import Predictions
from comp.runtime.errors import RunError, UserError
from comp.submission import write
from comp.submission.format import SubmissionFormat
from tests.support.commands import Result
from tests.support.runs import Comp, made, members


def npz(path: Path, **arrays: np.ndarray) -> None:
    """Put other arrays into a .npz."""
    with np.load(path, allow_pickle=False) as archive:
        kept = {name: archive[name] for name in archive.files}
    np.savez(path, **{**kept, **arrays})


def hostile_header(path: Path, shape: str = "(1000000000000, 4)") -> None:
    """Claim that the outputs are larger than any memory."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    header = f"{{'descr': '<f2', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    contents["outputs.npy"] = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


class Bomb:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        """Write a file."""
        return Path.touch, (Path("exploded"),)


def pickled(path: Path) -> None:
    """Put a pickle in the place of the ids."""
    npz(path, ids=np.array([Bomb()] * 24, object))


def truncated(path: Path) -> None:
    """Cut a file in half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path: Path) -> None:
    """Change a bit of the outputs, or in the middle of weights."""
    content = bytearray(path.read_bytes())
    header = content.find(b"outputs.npy")
    content[header + 200 if header > 0 else len(content) // 2] ^= 1
    path.write_bytes(content)


def other(path: Path, change: Callable[[Predictions], dict[str, object]]) -> None:
    """Rewrite predictions with other fields."""
    found = prediction_files.load(path)
    values: dict[str, object] = {
        "task": found.task,
        "ids": found.ids,
        "classes": found.classes,
        "targets": found.targets,
        "made_by": found.made_by,
        "blocks": [(name, rows.stop - rows.start) for name, rows in found.blocks()],
        **change(found),
    }
    outputs = values.pop("outputs", found.outputs.astype(np.float32))
    prediction_files.save(path, predictions.from_outputs(outputs, **values))  # type: ignore[arg-type]


def shorter(path: Path) -> None:
    """Leave rows out."""
    other(
        path,
        lambda found: {
            "ids": found.ids[:20],
            "targets": found.targets[:20],
            "blocks": (),  # type: ignore[index]
            "outputs": found.outputs[:20].astype(np.float32),
        },
    )


def reclassed(path: Path) -> None:
    """Give a class another name."""
    other(path, lambda found: {"classes": (*found.classes[:-1], "x")})


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "flipped byte": (flipped, "damaged predictions file"),
    "hostile header": (hostile_header, "damaged predictions file"),
    "header that is no shape": (lambda path: hostile_header(path, "__import__('os')"), "damaged predictions file"),
    "pickle": (pickled, "damaged predictions file"),
    "other length": (shorter, "have 20 rows, expected 24"),
    "other classes": (reclassed, "have other classes than"),
    "a class that there is not": (
        lambda path: npz(path, top1=np.full(24, 9)),
        "top1: a class index is out of range",
    ),
    "negative class": (lambda path: npz(path, top1=np.full(24, -1)), "top1: a class index is out of range"),
    "rows that do not belong together": (lambda path: npz(path, top1=np.zeros(3, int)), "damaged predictions file"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_damaged_member_predictions_are_named_and_nothing_is_submitted(three_runs: Path, comp: Comp, name: str) -> None:
    first, second, _ = members()
    spoil, message = FAULTS[name]
    spoil(second / "predictions/suite.npz")
    result = comp("ensemble", first, second, "--runs", "again")
    assert result.code == 2, result.err
    assert message in result.err
    assert "Traceback" not in result.err
    assert not Path("submissions").exists()
    assert json.loads(comp("leaderboard", "--runs", "again", "--json").out) == []
    assert not Path("exploded").exists()


def test_truncated_predictions_are_recreated_for_a_run_and_refused_for_an_ensemble(
    three_runs: Path, comp: Comp
) -> None:
    first, second, third = members()
    inner, _ = made(comp, first, second)
    path = second / "predictions/suite.npz"
    before = path.read_bytes()
    truncated(path)
    made(comp, first, second)
    assert path.read_bytes() == before
    truncated(inner.predictions_path("suite"))
    result = comp("ensemble", inner.path, third)
    assert result.code == 2
    assert "damaged predictions file" in result.err


@pytest.mark.parametrize("spoil", [truncated, flipped, lambda path: path.write_bytes(b"\xff" * 8 + b"{}")])
@pytest.mark.parametrize("method", ["mean", "soup"])
def test_damaged_weights_are_named(three_runs: Path, comp: Comp, spoil: Callable[[Path], None], method: str) -> None:
    first, second, _ = members()
    spoil(second / "best.safetensors")
    result = comp("ensemble", first, second, "--method", method)
    assert result.code == 2
    assert "best.safetensors" in result.err
    assert not Path("submissions").exists()


def a_prediction() -> Predictions:
    """Return predictions of two blocks."""
    logits = np.random.default_rng(0).normal(0, 3, (6, 4)).astype(np.float32)
    return predictions.from_outputs(
        logits,
        task="single_label",
        ids=np.array([f"é{i}" for i in range(6)]),
        classes=["a", "b", "c", "d"],
        targets=np.arange(6) % 4,
        made_by={"run": "x"},
        blocks=[("distortion00_1", 2), ("distortion00_2", 4)],
    )


def test_no_flipped_bit_changes_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    prediction_files.save(path, a_prediction())
    whole, content = prediction_files.load(path), path.read_bytes()
    refused = 0
    positions = range(0, len(content), 11)
    for number in positions:
        spoilt = bytearray(content)
        spoilt[number] ^= 1 << number % 8
        path.write_bytes(spoilt)
        try:
            found = prediction_files.load(path)
        except RunError:
            refused += 1
        else:  # a time stamp, padding, or another thing of the container that no array depends on
            assert predictions_equal(found, whole)
    assert refused > len(positions) / 2


def predictions_equal(one: Predictions, two: Predictions) -> bool:
    """Tell whether two predictions say the same."""
    same = all(np.array_equal(getattr(one, name), getattr(two, name)) for name in ("ids", "outputs", "top1", "targets"))
    return same and (one.classes, one.made_by, one.blocks()) == (two.classes, two.made_by, two.blocks())


def test_no_truncation_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    prediction_files.save(path, a_prediction())
    content = path.read_bytes()
    for length in range(0, len(content), 37):
        path.write_bytes(content[:length])
        with pytest.raises(RunError):
            prediction_files.load(path)


WRITER = """
import sys; from pathlib import Path; import numpy as np
from comp.results import predictions; from comp.results.blocks import block_grid
from comp.submission.write import write_submission; from comp.submission.format import SubmissionFormat
wanted = SubmissionFormat(block_grid(range(2), range(1, 3), 5000), texts=tuple("0123"))
for number in range(10**9):
    labels = np.full(20000, number % 4)
    found = predictions.from_outputs(np.eye(4, dtype=np.float32)[labels], ids=wanted.ids(), task="single_label",
                                     classes="abcd", targets=None, made_by={})
    write_submission(Path("a.csv"), found, wanted, {"number": number}, force=True)
    print(number, flush=True)
"""


def test_a_kill_at_any_moment_leaves_a_whole_submission(tmp_path: Path) -> None:
    header = "id,label\n"
    ids = [f"distortion{d:02d}_{s}_{i}" for d in range(2) for s in (1, 2) for i in range(5000)]
    whole = {header + "".join(f"{key},{label}\n" for key in ids) for label in range(4)}
    for delay in (0.004, 0.023):
        writer = subprocess.Popen([sys.executable, "-c", WRITER], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        for _ in range(3):
            writer.stdout.readline()
        time.sleep(delay)
        writer.kill()
        writer.wait()
        writer.stdout.close()
        assert (tmp_path / "a.csv").read_text() in whole
        assert isinstance(json.loads((tmp_path / "a.json").read_text())["number"], int)


@pytest.mark.slow  # 4 s
def test_an_ensemble_killed_while_it_is_written_is_not_listed_and_can_be_made_again(
    three_runs: Path, comp: Comp
) -> None:
    command = [sys.executable, "-m", "comp", "ensemble", *map(str, members()[:2]), "--runs", "made"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list(Path("made").glob("*/*/predictions/*")):
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (killed,) = runs.list_runs(Path("made"))
    listed = json.loads(comp("leaderboard", "--runs", "made", "--json").out)
    assert len(listed) == killed.is_complete()
    made(comp, *members()[:2])
    assert len(json.loads(comp("leaderboard", "--runs", "made", "--json").out)) == 1 + len(listed)


LIMITED = """
import resource, sys
limit = int(sys.argv[1]); resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from comp.cli import app; app.main(sys.argv[2:])
"""


def limited(limit: int, *arguments: object) -> Result:
    """Run the command line where no file may grow beyond a limit, as on a disk that is full."""
    command = [sys.executable, "-c", LIMITED, str(limit), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    return Result(done.returncode, done.stdout, done.stderr)


def test_a_full_disk_ends_an_ensemble_with_a_message_and_keeps_what_was_there(three_runs: Path, comp: Comp) -> None:
    first, second, _ = members()
    Path("a.csv").write_text("mine")
    Path("a.json").write_text("mine too")
    before = {path: path.read_bytes() for path in (Path("a.csv"), Path("a.json"))}
    kept = {path: path.read_bytes() for path in Path("runs").glob("*/*/*.json")}
    result = limited(6000, "ensemble", first, second, "-o", "a.csv", "--force", "--runs", "full")
    assert result.code == 2, result.err
    assert "cannot be written" in result.err
    assert {path: path.read_bytes() for path in before} == before
    assert {path: path.read_bytes() for path in kept} == kept
    assert json.loads(comp("leaderboard", "--runs", "full", "--json").out) == []
    assert not list(Path().glob(".*.tmp"))


def test_a_disk_that_fills_between_the_sidecar_and_the_csv_changes_neither(tmp_path: Path) -> None:
    wanted = SubmissionFormat(blocks.block_grid(range(1), range(1, 2), 5000), texts=tuple("0123"))
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"  # the CSV takes 95 kB
        "import sys; from pathlib import Path; from comp.results import prediction_files\n"
        "from comp.submission import write; from comp.submission.format import SubmissionFormat\n"
        "from comp.results.blocks import block_grid\n"
        "wanted = SubmissionFormat(block_grid(range(1), range(1, 2), 5000), texts=tuple('0123'))\n"
        "try: write.write_submission(Path('a.csv'), prediction_files.load(Path('p.npz')), wanted, {}, force=True)\n"
        "except ValueError as error: print(error); sys.exit(2)"
    )
    found = predictions.from_outputs(
        np.zeros((5000, 4), np.float32), ids=wanted.ids(), task="single_label", classes="abcd", targets=None, made_by={}
    )
    prediction_files.save(tmp_path / "p.npz", found)
    (tmp_path / "a.csv").write_text("mine")
    (tmp_path / "a.json").write_text("mine too")
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "a.csv: cannot be written" in done.stdout
    assert (tmp_path / "a.csv").read_text() == "mine"
    assert (tmp_path / "a.json").read_text() == "mine too"
    assert sorted(os.listdir(tmp_path)) == ["a.csv", "a.json", "p.npz"]


def test_a_members_damaged_split_file_is_named(three_runs: Path, comp: Comp) -> None:
    first, second, _ = members()
    (second / "split.npz").write_bytes(b"PK")
    result = comp("ensemble", first, second, "--runs", "again")
    assert result.code == 2
    assert "split.npz: missing or damaged" in result.err


def test_an_unreadable_predictions_file_is_a_user_error(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for size in (0, 1, 4, 30, 500):
        (tmp_path / "a.npz").write_bytes(generator.bytes(size))
        with pytest.raises(UserError):
            prediction_files.load(tmp_path / "a.npz")
    content = io.BytesIO()
    np.save(content, np.zeros(3))
    (tmp_path / "a.npz").write_bytes(content.getvalue())
    with pytest.raises(UserError):
        prediction_files.load(tmp_path / "a.npz")


def test_a_submission_is_never_replaced_by_a_race(tmp_path: Path) -> None:
    wanted = SubmissionFormat(blocks.block_grid(range(1), range(1, 2), 4), texts=tuple("0123"))
    found = predictions.from_outputs(
        np.eye(4, dtype=np.float32), ids=wanted.ids(), task="single_label", classes="abcd", targets=None, made_by={}
    )
    write.write_submission(tmp_path / "a.csv", found, wanted, {"by": "first"})
    shutil.move(tmp_path / "a.csv", tmp_path / "kept.csv")
    with pytest.raises(UserError, match="already exists"):  # the sidecar alone holds the name
        write.write_submission(tmp_path / "a.csv", found, wanted, {"by": "second"})
    assert json.loads((tmp_path / "a.json").read_text())["by"] == "first"
