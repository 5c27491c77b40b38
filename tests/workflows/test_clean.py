"""`comp clean`, and the disk that a complete run takes: what is not needed goes, and nothing else ever does."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from comp import config as configs
from comp.results import runs
from comp.runtime.errors import Interrupted
from comp.runtime.progress import quiet
from comp.training import checkpoint
from comp.workflows import clean, train
from comp.workflows.load import load_run
from comp.workflows.run import finish
from tests.support import forks
from tests.support.commands import Result, comp_process, interrupt_at
from tests.support.configs import QUICK, small_config, write_arrays, write_config
from tests.support.runs import assert_same_weights

Comp = Callable[..., Result]
DAY = 86400.0
OLD = 2 * clean.SETTLED_SECONDS


@pytest.fixture(scope="session")
def trained_of_before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a config and a complete run that still has its state, as runs of before do."""
    folder = tmp_path_factory.mktemp("before")
    config = write_config(folder / "small.yaml", small_config(write_arrays(folder / "data")))
    wanted = configs.load(config, [*QUICK, "train.keep_state=true"])
    run = train.train(wanted, name="before", runs_root=folder / "runs")
    loaded = load_run(run)
    finish(run, dataset=loaded.dataset, output=folder / "before.csv", force=False, progress=quiet)
    assert (run.path / "state.pt").is_file()
    forget_to_keep(run)
    return folder


@pytest.fixture
def place(trained_of_before: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a copy of that run."""
    shutil.copytree(trained_of_before / "runs", tmp_path / "runs")
    shutil.copy(trained_of_before / "small.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def forget_to_keep(run: runs.Run) -> None:
    """Let a run's config be one that does not keep the state."""
    path = run.path / "config.yaml"
    text = path.read_text()
    assert "keep_state: true" in text
    path.write_text(text.replace("keep_state: true", "keep_state: false"))


def only_run() -> runs.Run:
    """Return the one run in runs/."""
    (run,) = runs.list_runs(Path("runs"))
    return run


def everything(root: Path = Path()) -> dict[str, tuple[int, int]]:
    """Return every file and link below a folder, locks aside, with its size and time."""
    found = sorted(path for path in root.rglob("*") if path.name != ".lock" and (path.is_symlink() or path.is_file()))
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in found}


def age(path: Path, seconds: float) -> None:
    """Let a file, or all of a folder's, be as old as that."""
    then = time.time() - seconds
    for file in [path, *path.rglob("*")]:
        os.utime(file, (then, then), follow_symlinks=False)


def write(path: Path, content: str = "x" * 1000, *, old: bool = True) -> Path:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    if old:
        age(path, OLD)
    return path


def begin_and_die(name: str) -> None:
    """Train, and die before the first step."""
    config = configs.load("small.yaml", QUICK)
    train.train(config, name=name, progress=lambda what, *a, **k: die() if "epoch" in what else None)


def unbegun_run(name: str = "begun") -> runs.Run:
    """Return the run of a training that was killed before its first step."""
    known = set(runs.list_runs(Path("runs")))

    assert killed(begin_and_die, name) == -signal.SIGKILL
    (run,) = set(runs.list_runs(Path("runs"))) - known
    return run


def die() -> None:
    """End this process at once, as the kernel does where memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def killed(work: Callable[..., None], *arguments: object) -> int | None:
    """Do something in a process of its own and return how that ended."""
    process = forks.start(work, *arguments)
    process.join()
    return process.exitcode


# What a complete run keeps.


@pytest.mark.parametrize("keep", [False, True])
def test_the_state_of_a_complete_run_goes_unless_it_is_kept(workplace: Path, keep: bool) -> None:
    config = configs.load("small.yaml", [*QUICK, f"train.keep_state={str(keep).lower()}"])
    run = train.train(config)
    assert (run.path / "state.pt").exists() == keep
    assert run.config().train.keep_state == keep
    assert run.config_hash() == configs.fingerprint(configs.load("small.yaml", QUICK))


def test_an_interrupted_run_keeps_its_state_until_it_is_complete(workplace: Path) -> None:
    with pytest.raises(Interrupted):
        train.train(configs.load("small.yaml"), progress=interrupt_at(3))
    assert (only_run().path / "state.pt").is_file()
    assert not (train.resume(only_run()).path / "state.pt").exists()


def train_and_die_at_the_end(moment: str) -> None:
    """Train, and die as the run becomes complete."""
    written = runs.Run.write

    def write_or_die(run: runs.Run, name: str, content: Any) -> None:
        if moment == f"before {name}":
            die()
        written(run, name, content)

    runs.Run.write = write_or_die
    if moment == "before state.pt goes":
        checkpoint.remove = lambda run: die()
    train.train(configs.load("small.yaml", QUICK))


@pytest.mark.parametrize("moment", ["before final.safetensors", "before metrics.json", "before state.pt goes"])
def test_a_run_killed_at_its_end_can_be_resumed_or_is_complete(workplace: Path, comp: Comp, moment: str) -> None:
    whole = train.train(configs.load("small.yaml", QUICK), runs_root=Path("whole"))
    assert killed(train_and_die_at_the_end, moment) == -signal.SIGKILL
    run = only_run()
    assert (run.path / "state.pt").is_file()
    assert run.is_complete() == (moment == "before state.pt goes")
    if run.is_complete():
        assert [item.path.name for item in clean.clean(Path("runs")).removed] == ["state.pt"]
    else:
        train.resume(run)
    assert not (run.path / "state.pt").exists()
    assert_same_weights(whole, run)
    assert run.metrics().best == whole.metrics().best


def test_a_run_that_was_complete_and_lost_its_scores_is_not_trained_over(workplace: Path, comp: Comp) -> None:
    comp("train", "small.yaml", *QUICK)
    run = only_run()
    (run.path / "metrics.json").unlink()
    before = everything(run.path)
    for verb in ("run", "train"):
        result = comp(verb, "--resume", run.path)
        assert result.code == 2
        assert "metrics.json" in result.err
        assert f"comp run {run.path}/config.yaml" in result.err
    assert everything(run.path) == before


def test_resuming_a_finished_run_writes_nothing_and_says_so(workplace: Path, comp: Comp) -> None:
    comp("run", "small.yaml", *QUICK)
    run = only_run()
    Path("data").rename("moved")  # they are not opened either
    before = everything()
    for verb in ("run", "train"):
        result = comp(verb, "--resume", run.path)
        assert result.code == 0, result.err
        assert str(run.path) in result.err
        assert f"model.from_run={run.path}" in result.err
        assert "submissions/small.csv" in result.out
    assert json.loads(comp("run", "--resume", run.path, "--json").out)["submission"] == "submissions/small.csv"
    assert everything() == before
    Path("moved").rename("data")
    assert comp("run", "--resume", run.path, "-o", "asked.csv").code == 0
    assert Path("asked.csv").read_bytes() == Path("submissions/small.csv").read_bytes()


@pytest.mark.parametrize("lost", ["removed", "changed", "not made"])
def test_a_run_without_its_submission_is_finished_by_resume(workplace: Path, comp: Comp, lost: str) -> None:
    comp("train" if lost == "not made" else "run", "small.yaml", *QUICK)
    if lost == "removed":
        Path("submissions/small.csv").unlink()
        Path("submissions/small.json").unlink()
    if lost == "changed":
        with Path("submissions/small.csv").open("a") as file:
            file.write("x")
    result = comp("run", "--resume", only_run().path)
    assert result.code == 0, result.err
    assert only_run().metrics().submission == f"submissions/small{'-2' * (lost == 'changed')}.csv"
    assert comp("check", only_run().metrics().submission).code == 0


# What `comp clean` removes.


def test_the_state_of_a_complete_run_of_before_goes_and_all_else_stays(place: Path, comp: Comp) -> None:
    state = only_run().path / "state.pt"
    size, before = state.stat().st_size, everything()
    result = comp("clean")
    assert result.code == 0, result.err
    assert f"{size / 2**20:,.1f} MiB" in result.out
    assert before.keys() - everything().keys() == {str(state)}
    assert everything() == {name: known for name, known in before.items() if name != str(state)}
    assert "nothing to clean" in comp("clean").out


def test_a_dry_run_tells_the_same_and_removes_nothing(place: Path, comp: Comp) -> None:
    write(only_run().path / ".history.csv.77.tmp")
    write(only_run().path / "wandb/offline-run-1-a/run-a.wandb.synced", "")
    (only_run().path / ".lock").unlink(missing_ok=True)
    before = sorted(Path().rglob("*"))
    told = json.loads(comp("clean", "--dry-run", "--json").out)
    assert "nothing is removed" in comp("clean", "--dry-run").out
    assert sorted(Path().rglob("*")) == before
    done = json.loads(comp("clean", "--json").out)
    assert done == {**told, "dry_run": False}
    assert len(done["removed"]) == 3
    assert not any(Path(item["path"]).exists() for item in done["removed"])
    assert done["bytes"] == sum(item["bytes"] for item in done["removed"]) > 1000


def test_the_table_fits_eighty_columns(place: Path) -> None:
    for number in range(3):
        write(only_run().path / f"wandb/offline-run-{number}-a/run-a.wandb.synced")
        write(only_run().path / f"predictions/.suite.npz.{number}.tmp")
    result = comp_process("clean", cwd=place, env={**os.environ, "COLUMNS": "80"})
    assert result.returncode == 0, result.stderr
    assert max(map(len, (result.stdout + result.stderr).splitlines())) <= 80
    for what in (clean.STATE, clean.UPLOADED, clean.TEMPORARY):
        assert what in result.stdout


def test_a_cleaned_run_does_all_that_it_did_before(three_runs: Path, trained_of_before: Path, comp: Comp) -> None:
    shutil.copytree(trained_of_before / "runs/small", "runs/small", dirs_exist_ok=True)
    first, second, _, before = runs.list_runs(Path("runs"))
    rows = json.loads(comp("leaderboard", "--json").out)
    assert comp("predict", before.path, "-o", "whole.csv").code == 0
    assert json.loads(comp("clean", "--json").out)["removed"]
    assert not list(Path("runs").rglob("state.pt"))
    assert [row["run"] for row in json.loads(comp("leaderboard", "--json").out)] == [row["run"] for row in rows]
    assert comp("predict", before.path, "-o", "cleaned.csv").code == 0
    assert Path("cleaned.csv").read_bytes() == Path("whole.csv").read_bytes()
    assert comp("evaluate", before.path).code == 0
    assert comp("run", "--resume", before.path).code == 0
    assert comp("report", before.path).code == 0
    assert comp("ensemble", first.path, second.path, "-o", "both.csv").code == 0
    assert comp("check", "cleaned.csv").code == 0
    assert "--competition" in comp("submit", "cleaned.csv").err
    assert comp("run", "--as", before.path, "--runs", "again", "-o", "again.csv").code == 0
    assert_same_weights(before, runs.list_runs(Path("again"))[0])


def test_temporary_files_go_when_nobody_can_be_writing_them(place: Path) -> None:
    run = only_run().path
    (run / "state.pt").unlink()
    gone = [write(run / name) for name in (".state.pt.12.tmp", "predictions/.suite.npz.3.tmp", "plots/.a.png.4.tmp")]
    left_by_clean = write(run / "wandb/.offline-run-1-a.55.tmp/files/config.yaml").parents[1]
    stay = [
        write(run / ".split.npz.12.tmp", old=False), write(run / "notes.tmp"), write(run / ".notes.tmp"),
        write(Path("runs/.mine.12.tmp")), write(Path("runs/small/.mine.12.tmp")),
    ]  # fmt: skip
    study = write(Path("runs/small/tune/study.json"), "{}").parent
    gone.append(write(study / ".trials.csv.9.tmp"))
    clean.clean(Path("runs"))
    assert not any(path.exists() for path in [*gone, left_by_clean])
    assert all(path.exists() for path in stay)


def test_only_blocks_of_predictions_that_are_stored_whole_go(place: Path) -> None:
    stored = only_run().path / "predictions/suite.npz"
    whole = write(stored.with_name("suite.parts") / "distortion00_1.npz").parent
    age(stored, OLD - 60)
    begun = write(stored.with_name("suite+flip.parts") / "distortion00_1.npz").parent
    age(begun, OLD)
    again = write(stored.with_name("test.parts") / "distortion00_1.npz").parent
    age(stored.with_name("test.npz"), 2 * OLD)  # another prediction has been begun since
    clean.clean(Path("runs"))
    assert (whole.exists(), begun.exists(), again.exists()) == (False, True, True)
    assert stored.exists()


def test_only_uploaded_segments_go(place: Path) -> None:
    write(Path("runs/small/tune/study.json"), "{}")
    write(Path("runs/wandb/leaderboards.json"), "{}")
    for folder in (only_run().path, Path("runs/small/tune"), Path("runs")):
        for name, mark in (("offline-run-1-a", True), ("offline-run-2-a", False), ("run-3-a", True)):
            segment = folder / "wandb" / name
            write(segment / "run-a.wandb")
            if mark:
                write(segment / "run-a.wandb.synced", "")
        write(folder / "wandb/tracking.json", "{}")
        write(folder / "wandb/offline-run-4-a/run-a.wandb.synced", "", old=False)
        clean.clean(Path("runs"))
        assert {path.name for path in (folder / "wandb").iterdir()} == {
            "offline-run-2-a", "run-3-a", "offline-run-4-a", "tracking.json",
        } | ({"leaderboards.json"} if folder == Path("runs") else set())  # fmt: skip


def test_runs_that_ended_before_their_first_epoch_go_where_an_age_is_given(place: Path, comp: Comp) -> None:
    run, young = unbegun_run(), unbegun_run("young")
    age(run.path, 8 * DAY)
    result = comp("clean")
    assert run.path.exists()
    assert "1 run ended before" in result.err
    assert "--older 7d" in result.err
    assert comp("clean", "--older", "7d").code == 0
    assert not run.path.exists()
    assert young.path.exists()
    comp("clean", "--older", "1s")
    assert young.path.exists()  # it may be about to begin


@pytest.mark.parametrize("name", ["history.csv", "best.safetensors", "state.pt", "predictions/val.npz", "notes.md"])
def test_a_run_that_holds_anything_more_stays(place: Path, comp: Comp, name: str) -> None:
    run = unbegun_run()
    write(run.path / name)
    age(run.path, 8 * DAY)
    before = everything(run.path)
    result = comp("clean", "--older", "7d")
    assert result.code == 0
    assert f"comp run --resume {run.path}" in result.err
    assert everything(run.path) == before


def clean_and_die(calls: int) -> None:
    """Clean, and die at the removal of that number."""
    unlink, made = Path.unlink, itertools.count(1)

    def unlink_or_die(path: Path, missing_ok: bool = False) -> None:
        if next(made) == calls:
            die()
        unlink(path, missing_ok)

    Path.unlink = unlink_or_die
    clean.clean(Path("runs"), older=7 * DAY)


@pytest.mark.parametrize("calls", [1, 2, 3, 4, 5])
def test_a_clean_that_is_killed_is_finished_by_the_next(place: Path, calls: int) -> None:
    run = unbegun_run()
    age(run.path, 8 * DAY)
    (only_other,) = [other for other in runs.list_runs(Path("runs")) if other != run]
    age(only_other.path, 8 * DAY)
    assert killed(clean_and_die, calls) == -signal.SIGKILL
    clean.clean(Path("runs"), older=7 * DAY)
    assert not run.path.exists()
    assert not (only_other.path / "state.pt").exists()
    assert only_other.metrics()


@pytest.mark.parametrize(("older", "goes"), [(7 * DAY - 60, True), (7 * DAY + 60, False)])
def test_older_goes_by_the_last_change_of_any_file(place: Path, comp: Comp, older: float, goes: bool) -> None:
    run = only_run().path
    age(run, 30 * DAY)
    age(run / "history.csv", 7 * DAY)
    (run / ".lock").touch()  # to look is no change
    clean.clean(Path("runs"), older=older)
    assert (run / "state.pt").exists() != goes


@pytest.mark.parametrize(("text", "goes"), [("6d", True), ("8d", False), ("160h", True), ("170 h", False)])
def test_older_takes_times_as_configs_do(place: Path, comp: Comp, text: str, goes: bool) -> None:
    age(only_run().path, 7 * DAY)
    assert comp("clean", "--older", text).code == 0
    assert (only_run().path / "state.pt").exists() != goes


@pytest.mark.parametrize("text", ["", "7", "0d", "-1d", "week"])
def test_another_time_is_refused(place: Path, comp: Comp, text: str) -> None:
    result = comp("clean", f"--older={text}")
    assert result.code == 2
    assert f"found '{text}'" in result.err
    assert "--older" in result.err
    assert (only_run().path / "state.pt").exists()


# What it leaves alone.


def test_a_run_that_keeps_its_state_keeps_it(place: Path) -> None:
    path = only_run().path / "config.yaml"
    path.write_text(path.read_text().replace("keep_state: false", "keep_state: true"))
    assert not clean.clean(Path("runs")).removed
    assert (only_run().path / "state.pt").exists()


def test_a_run_of_a_version_without_the_key_is_cleaned(place: Path) -> None:
    path = only_run().path / "config.yaml"
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if "keep_state" not in line))
    assert [item.path.name for item in clean.clean(Path("runs")).removed] == ["state.pt"]


def test_links_are_not_followed(place: Path, comp: Comp) -> None:
    run = only_run()
    elsewhere = Path("elsewhere")
    shutil.copytree(run.path, elsewhere / "run")
    Path("runs/small/linked").symlink_to(elsewhere.absolute() / "run")
    (run.path / "state.pt").unlink()
    (run.path / "state.pt").symlink_to(elsewhere.absolute() / "run/state.pt")
    write(elsewhere / "wandb/offline-run-1-a/run-a.wandb.synced", "")
    (run.path / "wandb").symlink_to(elsewhere.absolute() / "wandb")
    write(elsewhere / "file")
    (run.path / ".notes.1.tmp").symlink_to(elsewhere.absolute() / "file")
    before = everything()
    assert comp("clean").code == 0
    assert everything() == before
    Path("shortcut").symlink_to("elsewhere")  # but the folder that is named may be a link
    assert comp("clean", "shortcut").code == 0
    assert not (elsewhere / "run/state.pt").exists()


def test_files_beside_runs_are_the_users(place: Path) -> None:
    for folder in ("runs", "runs/small", "runs/notes", "runs/small/mine"):
        for name in ("state.pt", "metrics.json", "config.yaml", ".x.npz.1.tmp", "wandb/offline-run-1-a/r.wandb.synced"):
            write(Path(folder, name))
    (only_run().path / "state.pt").unlink()
    write(only_run().path / "my-state.pt")
    before = everything()
    clean.clean(Path("runs"), older=1)
    assert everything() == before


@pytest.mark.parametrize("name", ["metrics.json", "provenance.json", "config.yaml"])
def test_a_run_with_a_damaged_file_is_left_alone(place: Path, comp: Comp, name: str) -> None:
    path = only_run().path / name
    path.write_text(path.read_text()[:40])
    before = everything()
    result = comp("clean")
    assert result.code == 0
    assert f"{path}: " in result.err
    assert everything() == before


def test_a_complete_run_without_weights_keeps_its_state(place: Path) -> None:
    for path in only_run().path.glob("*.safetensors"):
        path.unlink()
    assert not clean.clean(Path("runs")).removed


def test_a_run_that_is_being_trained_is_not_told_to_go_on(place: Path, comp: Comp) -> None:
    run = only_run()
    (run.path / "metrics.json").unlink()
    assert comp("clean").err.count("comp run --resume") == 1
    with run.write_lock():
        told = comp("clean", "--json")
    assert json.loads(told.out)["unfinished"] == []


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_run_that_is_being_written_is_left_alone(place: Path, comp: Comp, more: list[str]) -> None:
    run = only_run()
    program = f"from comp.results import runs; w = runs.Run({str(run.path)!r}).write_lock(); w.__enter__(); "
    program += "print(1, flush=True); "
    with subprocess.Popen([sys.executable, "-c", program + "input()"], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "1\n"
        result = comp("clean", *more)
        assert result.code == 0
        assert f"{run.path}: another process" in result.err
        other.communicate("\n")
    assert (run.path / "state.pt").exists()


def clean_without_permission(run: runs.Run) -> None:
    """Clean, as a user who may not write the run, and assert that it is left."""
    clean.clean(Path("runs"), dry_run=True)  # imports what that user may not read
    if os.geteuid() == 0:
        os.setuid(65534)  # root may write everywhere
    done = clean.clean(Path("runs"))
    assert [path for path, _ in done.left] == [run.path]
    assert not done.removed


def test_a_run_that_may_not_be_written_is_left_alone(place: Path) -> None:
    run = only_run()
    for path in (place, *place.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert killed(clean_without_permission, run) == 0
        assert (run.path / "state.pt").exists()
    finally:
        for path in (place, *place.rglob("*")):
            path.chmod(0o755)


@pytest.mark.parametrize("name", ["nowhere", "small.yaml", "empty", "others"])
def test_a_folder_without_runs_is_refused(place: Path, comp: Comp, name: str) -> None:
    Path("empty").mkdir()
    write(Path("others/state.pt"))
    write(Path("others/a/provenance.json"), "{}")
    result = comp("clean", name)
    assert result.code == 2
    assert result.err.startswith(f"error: {name}: ")
    assert Path("others/state.pt").exists()


def test_what_lies_deeper_than_a_folder_of_runs_is_not_looked_for(place: Path, comp: Comp) -> None:
    """So that `comp clean /` is no accident."""
    deep = place / "everything" / "of" / "mine"
    deep.parent.mkdir(parents=True)
    Path("runs").rename(deep)
    age(deep, OLD)
    before = everything()
    refused = comp("clean", "everything")
    assert (refused.code, everything()) == (2, before)
    assert "everything" in refused.err
    assert comp("clean", deep).code == 0
    assert everything() != before


def test_one_run_can_be_named(place: Path, comp: Comp) -> None:
    shutil.copytree(only_run().path, "runs/small/other")
    assert comp("clean", "runs/small/other").code == 0
    assert [path.parent.name == "other" for path in Path("runs").rglob("state.pt")] == [False]


@pytest.mark.parametrize("words", [["clean"], ["run", "--resume"], ["train", "--resume"]], ids=" ".join)
def test_neither_clean_nor_resuming_a_finished_run_loads_torch(place: Path, comp: Comp, words: list[str]) -> None:
    if "--resume" in words:
        comp("predict", only_run().path)
        words = [*words, str(only_run().path)]
    program = (
        f"import sys; from comp.cli import app\n"
        f"try: app.main({words!r})\n"
        "except SystemExit as left: code = left.code\n"
        "print(sorted({'torch', 'sklearn', 'wandb', 'optuna'} & set(sys.modules)), code, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[] 0", done.stderr
