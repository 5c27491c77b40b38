"""Paths: whatever is named, a command answers in one message, and removes nothing that is not its own."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import comp as api
from comp import config as configs
from comp.results import files, runs
from comp.runtime.errors import RunError
from comp.tuning.trial import resumable_run
from tests.support.commands import REPOSITORY, Result
from tests.support.configs import QUICK, small_config, write_config
from tests.support.faults import assert_clean, assert_fault, assert_unchanged, snapshot
from tests.support.frozen_runs import PLAIN, thawed

Comp = Callable[..., Result]
LONG = "x" * 300
DEEP = "a/" * 3000 + "b"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with runs, submissions, a config, and links that lead nowhere or to themselves."""
    thawed(tmp_path)
    monkeypatch.chdir(tmp_path)
    write_config(Path("small.yaml"), small_config(Path("data")))
    for ending in ("", ".csv", ".yaml"):
        os.symlink(f"loop{ending}", f"loop{ending}")
        os.symlink("nowhere", f"dangling{ending}")
    Path("-x.csv").write_text("id,label\n")
    return tmp_path


WRONG_PATHS: dict[str, tuple[tuple[object, ...], tuple[str, ...]]] = {
    "report: name too long": (("report", LONG), ("File name too long", "shorter name")),
    "report: path too deep": (("report", DEEP), ("File name too long", "characters)")),
    "report: empty": (("report", ""), ("argument after 'report' is empty", "name a file")),
    "report: a file": (("report", "submissions/frozen.csv"), ("submissions/frozen.csv: expected a complete run",)),
    "report: circular link": (("report", "loop"), ("loop: ", "expected a complete run")),
    "report: dangling link": (("report", "dangling"), ("dangling: ", "expected a complete run")),
    "report: onto a folder": (("report", PLAIN, "-o", "runs"), ("runs: is a folder", "-o")),
    "report: below a file": (
        ("report", PLAIN, "-o", "submissions/frozen.csv/page.html"), ("frozen.csv is not a folder", "-o"),
    ),
    "report: onto a name too long": (("report", PLAIN, "-o", LONG), ("name is too long", "shorter", "-o")),
    "report: into a folder too long": (("report", PLAIN, "-o", f"{LONG}/page.html"), ("File name too long",)),
    "report: into /proc": (("report", "runs/frozen", "-o", "/proc/page.html"), ("/proc/page.html: cannot be written",)),
    "report: into /sys": (("report", "runs/frozen", "-o", "/sys/page.html"), ("/sys/page.html: ",)),
    "report: onto a name that is empty": (("report", PLAIN, "-o", ""), ("argument after '-o' is empty",)),
    "report: baseline too long": (("report", PLAIN, "--baseline", LONG), ("File name too long",)),
    "check: a folder": (("check", "runs"), ("runs: is a folder", "name a submission")),
    "check: missing": (("check", "missing.csv"), ("missing.csv: no such submission",)),
    "check: name too long": (("check", f"{LONG}.csv"), ("File name too long", "shorter name")),
    "check: circular link": (("check", "loop.csv"), ("loop.csv: ",)),
    "check: empty": (("check", ""), ("is empty",)),
    "check: form is a shipped config": (
        ("check", "submissions/frozen.csv", "--format", "quickstart"), ("frozen.csv: not a valid submission", "rows"),
    ),
    "check: form is a folder": (("check", "submissions/frozen.csv", "--format", "runs"), ("runs: ",)),
    "check: like a folder": (("check", "submissions/frozen.csv", "--against", "runs"), ("runs: ",)),
    "diff: a folder": (("diff", "submissions/frozen.csv", "runs"), ("runs: ", "directory")),
    "diff: circular link": (("diff", "submissions/frozen.csv", "loop.csv"), ("loop.csv: ", "symbolic links")),
    "diff: dangling link": (("diff", "submissions/frozen.csv", "dangling.csv"), ("dangling.csv: ",)),
    "diff: name too long": (("diff", "submissions/frozen.csv", LONG), ("File name too long",)),
    "config check: a folder": (("config", "check", "runs"), ("runs: ",)),
    "config check: name too long": (("config", "check", f"{LONG}.yaml"), ("File name too long",)),
    "config check: circular link": (("config", "check", "loop.yaml"), ("loop.yaml: ",)),
    "config check: dangling link": (("config", "check", "dangling.yaml"), ("dangling.yaml: ",)),
    "config show: empty": (("config", "show", ""), ("argument after 'show' is empty",)),
    "config show: a folder": (("config", "show", "submissions"), ("submissions: ",)),
    "predict: name too long": (("predict", LONG), ("File name too long",)),
    "predict: a file": (("predict", "submissions/frozen.csv"), ("submissions/frozen.csv: ",)),
    "predict: circular link": (("predict", "loop"), ("loop: ",)),
    "predict: onto a folder": (("predict", PLAIN, "-o", "folder.csv"), ("folder.csv: is a folder",)),
    "evaluate: empty": (("evaluate", ""), ("argument after 'evaluate' is empty",)),
    "ensemble: name too long": (("ensemble", LONG, PLAIN), ("File name too long",)),
    "clean: name too long": (("clean", LONG), ("File name too long",)),
    "clean: a file": (("clean", "small.yaml"), ("small.yaml: is a file", "comp clean RUNS")),
    "clean: no runs": (("clean", "submissions"), ("submissions: not a folder of runs",)),
    "clean: empty": (("clean", ""), ("argument after 'clean' is empty",)),
    "record: a folder": (("leaderboard", "record", "runs", "--public", "0.5"), ("runs",)),
    "record: name too long": (("leaderboard", "record", LONG, "--public", "0.5"), ("File name too long",)),
    "study: name too long": (("tune", "--show", LONG), ("",)),
    "run: runs are a file": (("train", "small.yaml", "--runs", "small.yaml"), ("small.yaml",)),
    "run: runs too long": (("train", "small.yaml", "--runs", LONG), ("at most 255 bytes",)),
    "run: data are a file": (("train", "small.yaml", "data.root=small.yaml"), ("small.yaml",)),
    "run: data too long": (("train", "small.yaml", f"data.root={LONG}"), ("",)),
    "run: data in a circle": (("train", "small.yaml", "data.root=loop"), ("loop",)),
    "a name with a newline": (("report", "no\nerror: fake"), ("no error: fake: expected a complete run",)),
    "a name with an escape code": (("report", "\x1b[31mred"), (r"\x1b[31mred: expected a complete run",)),
    "a name that turns the direction": (("check", "a\u202evsc.csv"), (r"a\u202evsc.csv: no such submission",)),
    "a name that is no text": (("check", "\udcff.csv"), (r"'\udcff.csv' holds bytes that", "rename")),
    "a name of a config that is no text": (("run", "g\udcff.yaml"), (r"'g\udcff.yaml' holds bytes that", "rename")),
    "an output that is no text": (("run", "small.yaml", "-o", "y\udcff.csv"), (r"'y\udcff.csv' holds", "rename")),
    "a root that is no text": (("init", "fo\udcff"), (r"'fo\udcff' holds bytes that are no UTF-8", "rename")),
    "a name like an option": (("report", "-o\x1b[2J"), ("",)),
    "a name with a dash": (("check", "--", "-x.csv"), ("-x.csv: ",)),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_PATHS)
def test_a_wrong_path_is_refused_in_one_message(place: Path, comp: Comp, name: str) -> None:
    words, parts = WRONG_PATHS[name]
    Path("folder.csv").mkdir()
    before = snapshot(place)
    result = comp(*words)
    assert_fault(result, *parts, longest=900)
    assert "\x1b" not in result.err
    assert "\u202e" not in result.err
    assert_unchanged(before, place)


@pytest.mark.parametrize("name", ["train/a/\udcff.png", "train/\udcff/0.png", "test/\udcff.png"])
def test_an_image_whose_path_is_no_text_is_refused_by_name(place: Path, comp: Comp, name: str) -> None:
    for path in ("train/a/0.png", "train/b/0.png", "test/0.png", name):
        file = place / "images" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(file)
    values = {"data": {"source": "image_folder", "root": "images"}}
    Path("images.yaml").write_text(json.dumps({**values, "competition": {"name": "images"}}))
    shown = name.replace("\udcff", r"\udcff")
    images = ("predict", PLAIN, "--images", "images", "-o", "new.csv")
    for words in (("init", "images"), ("config", "check", "--data", "images.yaml"), ("train", "images.yaml"), images):
        assert_fault(comp(*words), f"images/{shown}: expected a path of UTF-8 text", "rename")


def test_a_folder_that_is_no_text_in_the_environment_is_refused(
    place: Path, comp: Comp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLACE", "a\udcffb")
    assert_fault(comp("train", "small.yaml", "data.root=${PLACE}"), r"data.root: a\udcffb holds bytes", "rename")


def test_a_file_that_begins_with_a_dash_is_a_file_after_two_dashes(place: Path, comp: Comp) -> None:
    shutil.copy("submissions/frozen.csv", "-y.csv")
    assert_clean(result := comp("diff", "--", "-y.csv", "submissions/frozen.csv"))
    assert result.code == 0


@pytest.mark.parametrize("command", [("report",), ("leaderboard", "--runs"), ("clean",)])
def test_a_whole_disk_is_not_searched_for_runs(
    place: Path, comp: Comp, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setattr(runs, "_MAX_OTHER_FOLDERS", 40)
    for number in range(60):
        Path(f"disk/folder{number}/inner").mkdir(parents=True)
    if command == ("clean",):  # it looks three folders deep
        assert_fault(comp(*command, "disk"), "disk: not a folder of runs")
    else:
        assert_fault(comp(*command, "disk"), "disk: is no folder of runs", "40 folders", "such as runs")


@pytest.mark.slow
def test_the_disk_of_this_machine_is_not_searched(place: Path, comp: Comp) -> None:
    assert_fault(comp("report", "/"), "/: is no folder of runs")


def outside(place: Path) -> Path:
    """Return a folder of somebody else that looks like a run of ours."""
    shutil.copytree(place / PLAIN, place / "precious")
    return place / "precious"


NOT_OURS: dict[str, Callable[[Path], Path]] = {
    "elsewhere": outside,
    "the folder itself": lambda place: place / "runs/frozen",
    "up and elsewhere": lambda place: outside(place) and place / "runs/frozen/../../precious",
    "the parent": lambda place: place / "runs/frozen/..",
    "a name that begins alike": lambda place: Path(shutil.copytree(place / PLAIN, place / "runs/frozen-2")),
    "the root": lambda place: Path("/"),
}


@pytest.mark.parametrize("kind", NOT_OURS)
def test_only_what_lies_in_the_folder_is_removed(place: Path, kind: str) -> None:
    path = NOT_OURS[kind](place)
    before = snapshot(place)
    with pytest.raises(RunError, match="does not lie in"):
        files.remove(path, inside=place / "runs/frozen", marks=("config.yaml",))
    assert_unchanged(before, place)


def test_a_link_is_removed_and_never_followed(place: Path) -> None:
    precious = outside(place)
    link = place / "runs/frozen/link"
    link.symlink_to(precious)
    before = snapshot(precious)
    with pytest.raises(RunError, match="is a link"):
        files.remove(link, inside=place / "runs/frozen", marks=("config.yaml",))
    files.remove(link, inside=place / "runs/frozen")
    assert not link.is_symlink()
    (place / "runs/frozen/way").symlink_to(place)
    with pytest.raises(RunError, match="does not lie in"):
        files.remove(place / "runs/frozen/way/precious", inside=place / "runs/frozen")
    assert_unchanged(before, precious)


def test_a_folder_without_our_marks_is_kept(place: Path) -> None:
    folder = place / "runs/frozen/photographs"
    folder.mkdir()
    (folder / "wedding.jpg").write_bytes(b"once")
    with pytest.raises(RunError, match=r"has no config\.yaml"):
        files.remove(folder, inside=place / "runs/frozen", marks=("config.yaml",))
    assert (folder / "wedding.jpg").read_bytes() == b"once"


@pytest.mark.parametrize("path", ["precious", "runs/frozen/../../precious", "runs/frozen/way/precious", "/", 7, None])
def test_a_shared_storage_cannot_name_a_folder_to_remove_or_to_write(place: Path, path: object) -> None:
    (outside(place) / "execution.json").unlink()  # as of a training that stopped before its first step
    (place / "runs/frozen/way").symlink_to(place)
    before = snapshot(place)
    assert resumable_run(path, Path("runs/frozen")) is None  # type: ignore[arg-type]  # storages hold anything
    assert not (place / "precious/.lock").exists()
    assert_unchanged(before, place)


def test_a_removed_folder_of_ours_is_gone(place: Path) -> None:
    (place / PLAIN / "execution.json").unlink()
    assert resumable_run(str(PLAIN), Path("runs/frozen")) is None
    assert not (place / PLAIN).exists()


COMMANDS = """
import sys
from comp.cli import app
for words in eval(sys.argv[1]):
    try:
        app.main(words)
    except SystemExit as ended:
        print("code", ended.code, file=sys.stderr, flush=True)
"""
# Root may do all until it gives these up: then it is an owner like any other.
POWERLESS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() == 0 and not shutil.which("setpriv"), reason="root needs setpriv to lose its powers")
def test_without_permission_what_can_be_read_is_shown_and_the_rest_is_refused(place: Path) -> None:
    Path("secret").mkdir()
    Path("secret/a.csv").write_text("id,label\n")
    Path("unreadable.csv").write_text("id,label\n")
    before = snapshot(place)
    closed = ["secret", "unreadable.csv", "submissions", "runs/frozen"]
    for name, mode in zip(closed, (0, 0, 0o555, 0o555), strict=True):
        Path(name).chmod(mode)
    commands: list[tuple[list[str], int]] = [
        (["leaderboard"], 0),
        (["diff", "submissions/frozen.csv", "submissions/frozen-2.csv"], 0),
        (["report", "runs/frozen", "-o", "submissions/page.html"], 2),
        (["report", "secret"], 2),
        (["leaderboard", "--runs", "secret"], 2),
        (["diff", "submissions/frozen.csv", "secret/a.csv"], 2),
        (["diff", "submissions/frozen.csv", "unreadable.csv"], 2),
        (["check", "secret/a.csv"], 2),
        (["check", "unreadable.csv"], 2),
        (["config", "check", "secret/a.yaml"], 2),
        (["leaderboard", "record", "submissions/frozen.csv", "--public", "0.5"], 2),
        (["clean", "secret"], 2),
    ]
    words = [
        *(POWERLESS if os.getuid() == 0 else ()),
        sys.executable,
        "-c",
        COMMANDS,
        repr([one for one, _ in commands]),
    ]
    try:
        ended = subprocess.run(
            words, capture_output=True, text=True, timeout=120, check=False,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip
    finally:
        for name in closed:
            Path(name).chmod(0o755)
    assert "Traceback" not in ended.stderr, ended.stderr
    codes = [int(line.split()[1]) for line in ended.stderr.splitlines() if line.startswith("code ")]
    assert codes == [code for _, code in commands], ended.stderr
    messages = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(messages) == codes.count(2), ended.stderr
    assert "free space" not in ended.stderr
    assert_unchanged(before, place)


NAMES = {"half a surrogate pair": "a\ud800", "bytes that are no text": os.fsdecode(b"caf\xe9"), "a NUL": "a\0b"}


@pytest.mark.parametrize("what", NAMES)
@pytest.mark.parametrize("key", ["name", "competition.name"])
def test_a_name_from_python_that_no_record_can_hold_is_refused_before_a_folder_is_made(
    workplace: Path, key: str, what: str
) -> None:
    config, name = configs.load("small.yaml", QUICK), NAMES[what]
    if key == "competition.name":
        competition = config.competition.model_copy(update={"name": name})
        config, name = config.model_copy(update={"competition": competition}), "run"
    with pytest.raises(RunError, match=r"expected text in UTF-8 that a folder can have, found .*; choose another"):
        api.train(config, name=name)
    assert not Path("runs").exists()
