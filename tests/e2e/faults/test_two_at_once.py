"""Two or more commands at once: nothing is lost or half-read, and each ends with exit 0, or 2 and one message.

Commands are forked from a clean process. Each round draws from its seed how much later the others begin. The first
round of the quickest kinds runs always, four of each kind with `-m slow`, and 20 with `COMP_ROUNDS=20`.
"""

import functools
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from comp import config as configs
from comp.results import files, runs
from comp.runtime import cores
from comp.runtime.errors import Interrupted
from comp.submission.write import is_submission_of, sidecar_path
from comp.training import autotune
from comp.workflows import train
from tests.support import forks
from tests.support.commands import Result, interrupt_at
from tests.support.configs import QUICK, tuned, write_arrays, write_config
from tests.support.downloads import cifar100_archive, publish_cifar100, serving, write_challenge
from tests.support.faults import assert_clean, assert_unchanged, snapshot
from tests.support.photographs import photographs_config, write_folders
from tests.support.runs import assert_same_weights, history_without_clock

ROUNDS = int(os.environ.get("COMP_ROUNDS", "4"))  # of each kind, in the slow tests
LATER_SECONDS = 0.4  # by which the second command begins later, at most


class Round:
    """One round: its folder, its draws, and the commands that it runs at once."""

    def __init__(self, folder: Path, kind: str, number: int) -> None:
        self.folder, self.draws, self.number = folder, random.Random(f"{kind}-{number}"), number

    def at_once(
        self,
        *commands: tuple[object, ...],
        later: float = LATER_SECONDS,
        before: Callable[[], None] | None = None,
    ) -> list[Result]:
        """Start commands in a random order within a short time; return how each ended, all of them cleanly.

        Args:
            commands: their arguments.
            later: seconds between two starts, at most.
            before: what the process that they are forked from does first.
        """
        order = list(range(len(commands)))
        self.draws.shuffle(order)
        pauses = [self.draws.uniform(0, later) for _ in order[1:]]
        ended = forks.call(forks.commands, self.folder, [commands[index] for index in order], pauses, None, before)
        for result in ended:
            assert_clean(result)
        return [ended[order.index(index)] for index in range(len(commands))]


def whole(path: Path) -> str:
    """Return the run that a submission's sidecar names; assert that it has the CSV's hash."""
    sidecar = json.loads(sidecar_path(path).read_text())
    assert sidecar["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    return str(sidecar["run"])


def trained(folder: Path) -> tuple[runs.Run, runs.Run]:
    """Return the first two of the three runs."""
    first, second, _ = sorted(runs.list_runs(folder / "runs"), key=lambda run: run.name.split("seed")[-1])
    return first, second


def names(folder: Path) -> tuple[str, str]:
    """Return the first two runs' folders as a user types them."""
    first, second = trained(folder)
    return str(first.path.relative_to(folder)), str(second.path.relative_to(folder))


def one_csv(play: Round) -> None:
    """Two runs write one CSV: the first one has it, whole, and the other is refused."""
    first, second = names(play.folder)
    results = play.at_once(("predict", first, "-o", "out.csv"), ("predict", second, "-o", "out.csv"))
    assert sorted(result.code for result in results) == [0, 2]
    winner = trained(play.folder)[[result.code for result in results].index(0)]
    assert whole(play.folder / "out.csv") == winner.name
    assert "out.csv" in next(result.err for result in results if result.code)


def one_csv_by_force(play: Round) -> None:
    """Two runs replace one CSV: it is one of theirs, with its own sidecar."""
    first, second = names(play.folder)
    commands = [("predict", run, "-o", "out.csv", "--force") for run in (first, second)]
    assert [result.code for result in play.at_once(*commands)] == [0, 0]
    assert whole(play.folder / "out.csv") in {run.name for run in trained(play.folder)}


def free_names(play: Round) -> None:
    """Two submissions without a name get two names, and each run knows its own."""
    assert [result.code for result in play.at_once(*(("predict", name) for name in names(play.folder)))] == [0, 0]
    submitted = [Path(run.metrics().submission) for run in trained(play.folder)]
    assert sorted(path.name for path in submitted) == ["small-2.csv", "small.csv"]
    for run, path in zip(trained(play.folder), submitted, strict=True):
        assert whole(play.folder / path) == run.name


def free_tables(play: Round) -> None:
    """Two tables of predicted images get two names."""
    np.save(play.folder / "more.npy", np.zeros((4, 32, 32, 3), np.uint8))
    results = play.at_once(*(("predict", name, "--images", "more.npy", "--json") for name in names(play.folder)))
    assert [result.code for result in results] == [0, 0]
    tables = {next(iter(json.loads(result.out).values()))["csv"] for result in results}
    assert tables == {"predictions/small.csv", "predictions/small-2.csv"}


def one_run(play: Round) -> None:
    """Two predictions of one run, its report and `comp clean`: what was there stays, and scores are whole."""
    first, _ = names(play.folder)
    run, _ = trained(play.folder)
    before = snapshot(
        play.folder, without=(".lock", ".tmp", ".out", ".err", ".count", "metrics.json", "evaluation.json")
    )
    results = play.at_once(
        ("predict", first, "--views", "flip", "-o", "a.csv"),
        ("predict", first, "--split", "test"),
        ("report", first, "-o", "page.html"),
        ("clean", "runs"),
    )
    assert any(result.code == 0 for result in results[:2])
    assert results[3].code == 0
    ran = {name for name in before if "/plots/" not in name}
    assert_unchanged({name: before[name] for name in ran}, play.folder)
    for result in results:
        assert result.code == 0 or "another process is writing this run" in result.err
    if results[0].code == 0:
        assert is_submission_of(run, play.folder / "a.csv")
        assert run.metrics().submission == "a.csv"


def init_into_one_file(play: Round) -> None:
    """Two configs for one file: one is written, the other refused."""
    commands = [("init", play.folder / "data", "-o", "comp.yaml", "--preset", preset) for preset in ("fast", "best")]
    results = play.at_once(*commands, later=0.1)
    assert sorted(result.code for result in results) == [0, 2]
    assert "comp.yaml: exists" in next(result.err for result in results if result.code)
    winner = ("fast", "best")[[result.code for result in results].index(0)]
    assert f"--preset {winner}" in (play.folder / "comp.yaml").read_text()
    configs.load(play.folder / "comp.yaml")


def leaderboards(play: Round) -> None:
    """Four leaderboards while two runs are predicted: each lists the three runs with whole scores."""
    first, second = names(play.folder)
    results = play.at_once(
        ("predict", first, "--views", "flip"),
        ("predict", second, "--views", "flip"),
        *[("leaderboard", "--json")] * 4,
        later=0.15,
    )
    assert [result.code for result in results] == [0] * 6
    for result in results[2:]:
        assert len(json.loads(result.out)) == 3
        assert not result.err


def resume_twice(play: Round) -> None:
    """Two resumes of one run: it ends with the bits of an undisturbed one, and with one submission."""
    settings = [*QUICK, "train.epochs=2", "train.checkpoint_seconds=0"]
    config = configs.load(play.folder / "small.yaml", settings)
    undisturbed = train.train(config, runs_root=play.folder / "whole")
    with pytest.raises(Interrupted):
        train.train(config, runs_root=play.folder / "new", progress=interrupt_at(5))
    (run,) = runs.list_runs(play.folder / "new")
    resume = ("run", "--resume", str(run.path.relative_to(play.folder)))
    results = play.at_once(resume, resume)
    assert 0 in {result.code for result in results}
    for result in results:
        assert result.code == 0 or "another process is writing this run" in result.err
    assert_same_weights(undisturbed, run)
    assert history_without_clock(undisturbed) == history_without_clock(run)
    written = sorted(path.name for path in (play.folder / "submissions").glob("*.csv"))
    assert run.metrics().submission == "submissions/small.csv"
    assert written == ["small.csv"]
    assert whole(play.folder / "submissions/small.csv") == run.name


def two_cross_validations(play: Round) -> None:
    """Two `comp cv` of one config train each fold once."""
    command = ("cv", "small.yaml", *QUICK, "data.folds=2", "--runs", "new")
    results = play.at_once(command, command)
    assert 0 in {result.code for result in results}
    for result in results:
        assert result.code == 0 or "another comp cv trains these folds" in result.err
    made = runs.list_runs(play.folder / "new")
    assert sorted(run.path.name.split("-", 2)[2] for run in made) == ["fold0", "fold1", "mean-ensemble"]
    assert all(run.is_complete() for run in made)


def two_studies(play: Round) -> None:
    """Two `comp tune` of one study, and `comp clean` beside them: its trials are trained once, and all end."""
    values = tuned({"optim.lr": {"choice": [0.001, 0.003, 0.01]}}, sampler="grid", trials=3)
    values["train"] = {**values["train"], "epochs": 1}
    values["data"]["root"] = str(play.folder / "data")
    write_config(play.folder / "tune.yaml", values)
    command = ("tune", "tune.yaml", "--study", "search", "--runs", "new")
    one, two, cleaned = play.at_once(command, command, ("clean", "new"))
    assert (one.code, two.code) == (0, 0), one.err + two.err
    assert cleaned.code == 0 or "new: no such folder" in cleaned.err or "not a folder of runs" in cleaned.err
    made = runs.list_runs(play.folder / "new")
    assert len(made) == 3
    assert len({run.config().optim.lr for run in made}) == 3
    assert all(run.is_complete() for run in made)


def time_quickly() -> None:
    """Let autotuning take two rounds of its steps, and keep its timings on a machine that is busy too."""
    autotune._ROUNDS, autotune._LEAST_SECONDS, cores.is_busy = 2, 0.2, lambda: False


def one_cache(play: Round) -> None:
    """Two trainings fill empty caches of statistics, image files and timings; a third one finds them whole."""
    photos, cache = write_folders(play.folder / "photos", test=6), play.folder / "cache"
    values = photographs_config(photos, "image_folder")
    values["train"] |= {"epochs": 1, "precision": "auto", "channels_last": "auto"}
    write_config(play.folder / "photos.yaml", values)
    command = ("train", "photos.yaml", "--runs", "new")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMP_CACHE", str(cache))
        codes = [result.code for result in play.at_once(command, command, before=time_quickly)]
        assert codes == [0, 0]
        cached = [*cache.rglob("*"), *(photos / ".comp-cache").iterdir()]
        content = {path: path.read_bytes() for path in cached if path.is_file()}
        for path in content:
            assert files.read_json(path)
        (third,) = play.at_once(("train", "photos.yaml", "--runs", "third"))
    assert third.code == 0
    (run,) = runs.list_runs(play.folder / "third")
    assert Path(files.read_json(run.path / "execution.json")["timed_before"]) in content
    assert {path: path.read_bytes() for path in content} == content
    assert len({other.provenance()["data_fingerprint"] for other in [run, *runs.list_runs(play.folder / "new")]}) == 1


def one_suite_folder(play: Round) -> None:
    """Two exports of different corruptions into one folder: it has both, and one manifest of both."""
    options = ("--split", "test", "--count", "8", "--severities", "1,3", "--out", "suite")
    commands = [("data", "corrupt", "small.yaml", *options, "--only", name) for name in ("fog", "contrast")]
    assert [result.code for result in play.at_once(*commands, later=0.2)] == [0, 0]
    manifest = files.read_json(play.folder / "suite/manifest.json")
    assert sorted(row["corruption"] for row in manifest["files"].values()) == ["contrast", "fog"]
    before = {name: (play.folder / "suite" / name).read_bytes() for name in manifest["files"]}
    assert len(set(before.values())) == 2
    shutil.rmtree(play.folder / "suite")
    for command in commands:
        assert [result.code for result in play.at_once(command)] == [0]
    assert before == {name: (play.folder / "suite" / name).read_bytes() for name in manifest["files"]}


def one_download(play: Round) -> None:
    """Two commands download one suite: each of its files is asked for once, and both find it whole."""
    with serving() as server:
        write_challenge(play.folder / "suite.yaml", write_arrays(play.folder / "fresh", train=40, test=8), server)
        command = ("data", "prepare", "suite.yaml", "--json")
        one, two = play.at_once(command, command, later=0.1)
        assert (one.code, two.code) == (0, 0)
        assert one.out == two.out
        assert server.ranges == [""] * len(server.files)
    folder = play.folder / "fresh/ood-test"
    assert {f"/{path.name}": path.read_bytes() for path in folder.iterdir()} == server.files


def one_unpacking(play: Round) -> None:
    """Two commands unpack one published archive: they see the same data, and nothing but the data is left."""
    archive, members = cifar100_archive()
    (play.folder / "fresh").mkdir()
    (play.folder / "fresh/cifar-100-python.tar.gz").write_bytes(archive)
    settings = ("data.source=cifar100", "data.root=fresh", "data.validation=100")
    command = ("data", "prepare", "small.yaml", *settings, "--json")
    one, two = play.at_once(command, command, later=0.1, before=functools.partial(publish_cifar100, archive, members))
    assert (one.code, two.code) == (0, 0)
    assert one.out == two.out
    left = {path.name: path.read_bytes() for path in (play.folder / "fresh/cifar-100-python").iterdir()}
    assert left == members
    assert {path.name for path in (play.folder / "fresh").iterdir()} - {".comp-cache"} == {
        "cifar-100-python", "cifar-100-python.tar.gz",
    }  # fmt: skip


KINDS: dict[str, Callable[[Round], None]] = {
    "two runs, one CSV": one_csv,
    "two runs replace one CSV": one_csv_by_force,
    "two submissions without a name": free_names,
    "two tables without a name": free_tables,
    "predictions, report and clean of one run": one_run,
    "two configs for one file": init_into_one_file,
    "four leaderboards": leaderboards,
    "two resumes of one run": resume_twice,
    "two cross-validations": two_cross_validations,
    "two studies and clean": two_studies,
    "two trainings with one cache": one_cache,
    "two exports into one folder": one_suite_folder,
    "two downloads of one suite": one_download,
    "two unpackings of one dataset": one_unpacking,
}
QUICK_KINDS = ("two runs replace one CSV", "two submissions without a name")


def play(kind: str, number: int, three_trained: Path, folder: Path) -> None:
    folder.mkdir()
    shutil.copytree(three_trained / "runs", folder / "runs")
    for name in ("small.yaml", "data"):
        (folder / name).symlink_to(three_trained / name)
    KINDS[kind](Round(folder, kind, number))
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    "kind", [*(pytest.param(kind, marks=() if kind in QUICK_KINDS else pytest.mark.slow) for kind in KINDS)]
)
def test_commands_at_once_lose_nothing(kind: str, three_trained: Path, tmp_path: Path) -> None:
    play(kind, 0, three_trained, tmp_path / "round")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_rounds_of_commands_at_once_lose_nothing(kind: str, three_trained: Path, tmp_path: Path) -> None:
    for number in range(1, ROUNDS):
        play(kind, number, three_trained, tmp_path / str(number))
