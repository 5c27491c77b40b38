"""Surroundings: odd terminals, environments, disks, clocks and systems change what is shown, not what is done."""

import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from comp.results import runs
from tests.support.commands import REPOSITORY, Result
from tests.support.configs import QUICK, small_config, write_config
from tests.support.faults import INTERNAL, assert_clean, assert_fault, assert_unchanged, snapshot
from tests.support.frozen_runs import PLAIN, thawed
from tests.support.runs import the_run

Comp = Callable[..., Result]
COMP = f"{sys.executable} -m comp"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with frozen runs."""
    monkeypatch.chdir(thawed(tmp_path))
    return tmp_path


def shell(command: str, **environment: str | None) -> Result:
    """Run a line of shell; an environment variable of None is unset."""
    given = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
    given = {name: value for name, value in given.items() if value is not None}
    ended = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=300, check=False, env=given,
        encoding="utf-8", errors="replace",
    )  # fmt: skip
    for words in INTERNAL:
        assert words not in ended.stdout + ended.stderr, ended.stdout + ended.stderr
    return Result(ended.returncode, ended.stdout, ended.stderr)


@pytest.mark.parametrize("columns", ["0", "1", "-5", "abc", "", "007", "²", "99999999999", "9999"])
@pytest.mark.parametrize("words", [("leaderboard",), ("--help",)])
def test_a_window_of_any_width_shows_a_table(
    place: Path, comp: Comp, monkeypatch: pytest.MonkeyPatch, columns: str, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    result = comp(*words)
    assert_clean(result)
    assert result.code == 0
    assert len(result.out) < 10**6


@pytest.mark.parametrize("terminal", ["dumb", "", "unknown", "\x1b[31m"])
def test_any_terminal_gets_the_same_text(
    place: Path, comp: Comp, monkeypatch: pytest.MonkeyPatch, terminal: str
) -> None:
    expected = comp("leaderboard").out
    monkeypatch.setenv("TERM", terminal)
    assert comp("leaderboard") == Result(0, expected, "")


STREAMS: dict[str, tuple[str, int]] = {
    "no stdout": ("leaderboard >&-", 0),
    "no stderr": ("leaderboard 2>&-", 0),
    "no stdin": ("leaderboard <&-", 0),
    "no stream at all": ("leaderboard <&- >&- 2>&-", 0),
    "no stdout, JSON": ("leaderboard --json >&-", 0),
    "no stderr, an error": ("report missing 2>&-", 2),
    "full stdout": ("leaderboard >/dev/full", 2),
    "full stdout, JSON": ("leaderboard --json >/dev/full", 2),
    "full stdout, CSV": ("leaderboard --csv >/dev/full", 2),
    "full stdout, help": ("--help >/dev/full", 2),
    "full stdout, config": ("config schema >/dev/full", 2),
    "full stderr": ("leaderboard 2>/dev/full", 0),
    "full stderr, an error": ("report missing 2>/dev/full", 2),
    "both full": ("leaderboard >/dev/full 2>/dev/full", 2),
    "a reader that leaves": ("leaderboard | true", 141),
    "a reader that leaves, JSON": ("leaderboard --json | true", 141),
    "a reader that leaves, CSV": ("leaderboard --csv | true", 141),
    "a reader of one line": ("leaderboard --top 0 | head -1", 0),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", STREAMS)
def test_streams_that_are_closed_full_or_broken(place: Path, what: str) -> None:
    words, code = STREAMS[what]
    before = snapshot(place)
    wait = words.replace("| true", "| (sleep 0; exec <&-; sleep 3)")
    result = shell(f"set -o pipefail; {COMP} {wait}")
    assert result.code in ((0, 141) if "head" in words else (code,)), result.err
    if code == 2 and "2>" not in words:
        assert_fault(result, "cannot be printed: No space left on device", "> FILE")
    else:
        assert "error" not in result.err
    assert_unchanged(before, place)


@pytest.mark.slow
def test_a_training_goes_on_when_nobody_can_read_its_notes(workplace: Path) -> None:
    result = shell(f"{COMP} train small.yaml train.epochs=1 2>/dev/full")
    assert result.code == 0
    assert the_run().is_complete()


ENVIRONMENTS: dict[str, dict[str, str | None]] = {
    "LANG=C": {"LANG": "C", "LC_ALL": "C"},
    "POSIX without UTF-8": {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "ascii, strict": {"PYTHONIOENCODING": "ascii:strict"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "no home": {"HOME": None},
    "a home that is missing": {"HOME": "/nonexistent/home"},
    "a home that is a file": {"HOME": "/etc/passwd"},
    "no temporary folder": {"TMPDIR": "/nonexistent/tmp"},
    "an empty environment": dict.fromkeys(os.environ) | {"PATH": os.defpath},
}


@pytest.mark.slow
@pytest.mark.parametrize("what", ENVIRONMENTS)
def test_environments_that_lack_something(place: Path, what: str) -> None:
    for number, path in enumerate(sorted(Path("runs/frozen").iterdir())):
        values = json.loads((path / "metrics.json").read_text())
        named = {**values, "model": "Ünïcode-🐈", "device": f"Ünïcode-🐈-{number}"}
        (path / "metrics.json").write_text(json.dumps(named))
    environment = {**ENVIRONMENTS[what], "COMP_CACHE": None}
    lines = [f"{COMP} leaderboard --json >rows.json", f"{COMP} leaderboard", f"{COMP} report runs/frozen -o page.html"]
    result = shell(" && ".join(lines), **environment)
    assert result.code == 0, result.err
    printed = Path("rows.json").read_text("latin-1" if what == "latin-1" else "utf-8")
    assert all(row["device"].startswith("Ünïcode-🐈") for row in json.loads(printed))
    assert "Ünïcode-🐈" in Path("page.html").read_text(encoding="utf-8")


@contextlib.contextmanager
def files_of(most: int) -> Iterator[None]:
    """Let this process write files of so many bytes at most, as a full disk does in the middle of one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("path", "most"),
    [("runs/frozen", 20_000), *(pytest.param(PLAIN, most, marks=pytest.mark.slow) for most in (5_000, 60_000, 10**6))],
)
def test_a_page_that_does_not_fit_leaves_the_page_before(place: Path, comp: Comp, path: str, most: int) -> None:
    Path("report.html").write_text("the page before")
    with files_of(most):
        result = comp("report", path)
    assert_clean(result)
    if result.code:
        assert_fault(result, "File too large", "folder")
    assert (Path("report.html").read_text() == "the page before") == (result.code == 2)
    assert not list(place.rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("most", [4_096, 6_000, 12_000, 30_000, 60_000, 200_000, 1_000_000])
def test_a_training_that_does_not_fit_is_refused_and_can_be_resumed(workplace: Path, comp: Comp, most: int) -> None:
    with files_of(most):
        result = comp("run", "small.yaml", *QUICK)
    assert_clean(result)
    assert not list(workplace.rglob("*.tmp"))
    listed = runs.list_runs(Path("runs"))
    if result.code:
        assert_fault(result, "File too large", "folder")
        assert not [run for run in listed if run.is_complete() and not run.weights_path().is_file()]
    for run in listed:
        if (run.path / "execution.json").is_file():
            assert comp("run", "--resume", run.path).code == 0


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Return a function that mounts a disk of so many kilobytes."""
    mounted: list[Path] = []

    def mount(kilobytes: int) -> Path:
        folder = tmp_path / f"disk{kilobytes}"
        folder.mkdir()
        options = ["-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
        if subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
            pytest.skip("only root may mount a disk here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", folder], check=False)


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [4, 16, 64, 256, 1024])
def test_a_full_disk_is_one_message_and_what_was_written_can_be_read(
    workplace: Path, comp: Comp, tiny_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch, kilobytes: int
) -> None:
    disk = tiny_disk(kilobytes)
    assert_fault(comp("train", "small.yaml", "--runs", disk / "runs"), "needs about", "make room")
    much = SimpleNamespace(total=10**12, used=0, free=10**12)
    monkeypatch.setattr("shutil.disk_usage", lambda path: much)  # something else fills the disk after the check
    result = comp("run", "small.yaml", *QUICK, "--runs", disk / "runs")
    assert_clean(result)
    if result.code:
        assert_fault(result, "No space left on device", "free space or choose another folder")
    assert comp("leaderboard", "--runs", disk / "runs").code == 0
    assert not list(disk.rglob("*.tmp"))


@pytest.mark.slow
def test_a_full_disk_below_a_study_is_one_message(
    workplace: Path, comp: Comp, tiny_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tiny_disk(64)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=10**12, used=0, free=10**12))
    values = small_config(Path("data"))
    values["tune"] = {"space": {"optim.lr": {"float": [1e-4, 1e-1], "log": True}}, "trials": 2, "confirm": {"top": 0}}
    write_config(Path("tuned.yaml"), values)
    result = comp("tune", "tuned.yaml", "train.epochs=1", "--runs", disk / "runs")
    assert_fault(result, "No space left on device")


@pytest.mark.slow
def test_read_only_data_and_a_read_only_folder_are_read(workplace: Path, comp: Comp) -> None:
    comp("run", "small.yaml", *QUICK)
    outer = Path(tempfile.mkdtemp())
    if subprocess.run(["mount", "--bind", "-o", "ro", workplace, outer], capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a folder here")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", outer], capture_output=True, check=False)
        run = f"runs/small/{the_run().path.name}"
        lines = {
            "leaderboard": 0,
            "data show small.yaml data.root=data": 2,
            f"evaluate {run} data.root=data": 2,
            f"report {run} -o {workplace}/page.html": 0,
            f"report {run}": 2,
            "train small.yaml": 2,
            f"train small.yaml data.root={outer}/data train.epochs=1 --runs {workplace}/new": 0,
            f"run --resume {run}": 0,
        }
        for line, code in lines.items():
            result = shell(f"cd {outer} && {COMP} {line}")
            assert result.code == code, (line, result.err)
            assert result.err.count("error: ") == (code == 2), (line, result.err)
    finally:
        subprocess.run(["umount", outer], check=False)
        outer.rmdir()


@pytest.mark.slow
@pytest.mark.parametrize("hours", [-48, -1, 24 * 400])
def test_a_clock_that_jumps_changes_no_result(
    workplace: Path, comp: Comp, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    real, calls = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: real() + (3600 * hours if next(calls) > 3 else 0))
    result = comp("train", "small.yaml", "train.epochs=1", "train.budget=1s")
    assert_clean(result)
    assert result.code == 0
    row = the_run().history()[-1]
    assert float(row["seconds"]) >= 0


OLD_SYSTEM = """
import importlib.abc, sys
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in ("fcntl", "resource", "pwd", "grp", "termios"):
            raise ImportError(f"no module {name}")
sys.meta_path.insert(0, Missing())
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules.pop(name, None)
from comp.cli import app
for words in eval(sys.argv[1]):
    try:
        app.main(words)
    except SystemExit as ended:
        print("code", ended.code, " ".join(words), file=sys.stderr, flush=True)
"""


@pytest.mark.slow
def test_commands_that_read_work_without_the_modules_of_unix(place: Path) -> None:
    commands = [
        ["leaderboard"],
        ["leaderboard", "--json"],
        ["check", "submissions/frozen.csv"],
        ["diff", "submissions/frozen.csv", "submissions/frozen-2.csv"],
        ["report", "runs/frozen", "-o", "page.html"],
        ["config", "show", str(REPOSITORY / "configs/quickstart.yaml")],
        ["clean", "runs", "--dry-run"],
    ]
    ended = subprocess.run(
        [sys.executable, "-c", OLD_SYSTEM, repr(commands)], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert "Traceback" not in ended.stderr, ended.stderr
    codes = [line.split()[1] for line in ended.stderr.splitlines() if line.startswith("code ")]
    assert codes == ["0"] * len(commands), ended.stderr


NAMELESS = """
import pwd, sys
def getpwuid(number):
    raise KeyError(f"getpwuid(): uid not found: {number}")
pwd.getpwuid = getpwuid
from comp.cli import app
app.main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    ["leaderboard", "report runs/frozen", "train small.yaml train.epochs=1", "train small.yaml track.wandb=offline"],
)
def test_a_user_without_a_name_and_a_home_works_like_any_other(workplace: Path, words: str) -> None:
    """As in a container that is started with a number for a user."""
    thawed(workplace)
    Path("nameless.py").write_text(NAMELESS)
    lacking: dict[str, str | None] = dict.fromkeys(("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "COMP_CACHE"))
    result = shell(f"{sys.executable} nameless.py {words}", **lacking)
    assert_clean(result)
    assert result.code == 0, result.err


SPAWNING = """
import multiprocessing, sys
if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    from comp.cli import app
    app.main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["loaders", "trials"])
def test_processes_that_are_spawned_as_on_macos_do_the_same(workplace: Path, what: str) -> None:
    Path("main.py").write_text(SPAWNING)
    if what == "loaders":
        for number in range(48):
            path = Path(f"photos/train/class{number % 3}/{number}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (24, 24, 3), np.uint8)
            Image.fromarray(pixels).save(path)
        values = small_config(Path("photos"))
        values["data"] |= {"source": "image_folder", "workers": 2, "loading": "streamed"}
        write_config(Path("small.yaml"), values)
        words = ["train", "small.yaml", "train.epochs=1"]
    else:
        values = small_config(Path("data"))
        values["tune"] = {"space": {"optim.lr": {"choice": [0.01, 0.02]}}, "trials": 2, "confirm": {"top": 0}}
        write_config(Path("small.yaml"), values)
        words = ["tune", "small.yaml", "train.epochs=1", "--workers", "2"]
    result = shell(f"{sys.executable} main.py {' '.join(words)}")
    assert result.code == 0, result.err
    assert all(run.is_complete() for run in runs.list_runs(Path("runs")))
