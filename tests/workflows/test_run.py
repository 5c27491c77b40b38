"""`comp run` from end to end: what it leaves, that it repeats itself, and that stopping it costs nothing."""

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from comp import config as configs
from comp.config import yaml_io
from comp.results import files, prediction_files, runs
from comp.results.blocks import DISTORTIONS
from comp.runtime import device
from comp.runtime.errors import Interrupted
from comp.training.early_stopping import Stop
from comp.workflows import train
from comp.workflows.load import load_run
from comp.workflows.predict import predict_split
from comp.workflows.run import run_config
from tests.support.commands import REPOSITORY, Result, assert_refused, comp_process, interrupt_at
from tests.support.configs import write_config
from tests.support.runs import assert_same_weights, history_without_clock, the_run, weights_of

SMALL_SUITE = ["competition.suite.files=3", "competition.suite.severities=2", "competition.ood_validation.per_block=20"]


@pytest.mark.parametrize(
    ("settings", "distortions", "severities"),
    [
        pytest.param([], len(DISTORTIONS), 5, marks=pytest.mark.slow, id="as it is"),
        pytest.param([*SMALL_SUITE, "train.epochs=8"], 3, 2, id="with a small suite"),
    ],
)
def test_quickstart_goes_from_a_config_to_a_valid_submission(
    tmp_path: Path, settings: list[str], distortions: int, severities: int
) -> None:
    done = comp_process("run", REPOSITORY / "configs/quickstart.yaml", *settings, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout)

    # The CSV, read without comp.
    content = (tmp_path / "submissions/quickstart.csv").read_bytes()
    rows = list(csv.reader(content.decode().splitlines()))
    assert rows[0] == ["id", "label"]
    per_block = 360
    blocks = [(d, s) for d in range(distortions) for s in range(1, severities + 1)]
    ids = [f"distortion{d:02d}_{s}_{i}" for d, s in blocks for i in range(per_block)]
    assert [row[0] for row in rows[1:]] == ids
    assert {row[1] for row in rows[1:]} <= {str(digit) for digit in range(10)}

    # The suite repeats the same test images in every block.
    run = the_run(tmp_path / "runs")
    labels = prediction_files.load(run.path / "predictions/test.npz").targets
    assert labels is not None
    answers = np.array([int(row[1]) for row in rows[1:]]).reshape(-1, per_block)
    accuracy = scores["suite"]["scores"]["accuracy"]["value"]
    assert (answers == labels).mean() == pytest.approx(accuracy)
    assert accuracy > 0.5
    assert scores["test"]["scores"]["accuracy"]["value"] > 0.9
    assert scores["best"]["val"]["scores"]["accuracy"]["value"] >= scores["final"]["val"]["scores"]["accuracy"]["value"]

    # The sidecar traces it.
    sidecar = json.loads((tmp_path / "submissions/quickstart.json").read_text())
    assert sidecar["sha256"] == hashlib.sha256(content).hexdigest()
    assert sidecar["run"] == run.name
    assert sidecar["config_hash"] == configs.fingerprint(run.config())
    assert sidecar["weights_sha256"] == files.sha256_file(run.path / "best.safetensors")
    assert sidecar["rows"] == len(ids)
    assert {"git", "time", "versions", "seed"} <= sidecar.keys()
    assert "torch" in sidecar["versions"]


def test_a_run_leaves_its_folder_as_designed(two_runs: Path) -> None:
    run, _ = runs.list_runs(Path("runs"))
    left = {str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()}
    assert left - {".lock"} == {
        "config.yaml", "split.npz", "execution.json", "provenance.json", "history.csv", "best.safetensors",
        "final.safetensors", "metrics.json", "predictions/val.npz", "predictions/val-final.npz",
        "predictions/ood_val.npz", "predictions/test.npz", "predictions/suite.npz",
    }  # fmt: skip
    provenance = run.provenance()
    assert provenance["classes"] == ["0", "1", "2", "3"]
    assert provenance["images"] == {"train": 128, "val": 32, "test": 40}
    assert {"argv", "git", "versions", "machine", "data_fingerprint"} <= provenance.keys()
    assert len(run.history()) == 2
    printed = Path("seed0.out").read_text()
    assert "mean" in printed  # the table by severity
    assert str(run.path) in printed
    assert "submissions/small.csv" in printed


def test_the_same_seed_gives_the_same_history_weights_and_csv(two_runs: Path, comp: Callable[..., Result]) -> None:
    first, _ = runs.list_runs(Path("runs"))
    assert comp("run", "small.yaml", "--runs", "again", "-o", "again.csv").code == 0
    again = the_run(Path("again"))
    assert history_without_clock(first) == history_without_clock(again)
    assert_same_weights(first, again)
    assert Path("submissions/small.csv").read_bytes() == Path("again.csv").read_bytes()


def test_another_seed_gives_another_net_on_the_same_split(two_runs: Path) -> None:
    first, second = runs.list_runs(Path("runs"))
    weights = [weights_of(run) for run in (first, second)]
    assert any(not np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])
    ids = [prediction_files.load(run.path / "predictions/val.npz").ids.tolist() for run in (first, second)]
    assert ids[0] == ids[1]


def test_as_repeats_a_run_bit_for_bit(workplace: Path, comp: Callable[..., Result]) -> None:
    comp("run", "small.yaml", "train.precision=auto", "train.channels_last=auto", "--runs", "one")
    one = the_run(Path("one"))
    assert comp("run", "--as", one.path, "--runs", "two", "-o", "two.csv").code == 0
    two = the_run(Path("two"))
    assert_same_weights(one, two)
    assert Path("submissions/small.csv").read_bytes() == Path("two.csv").read_bytes()
    recorded = json.loads((one.path / "execution.json").read_text())
    repeated = json.loads((two.path / "execution.json").read_text())
    assert len(recorded["seconds_a_step"]) == 4  # two precisions in two layouts were timed
    assert repeated["seconds_a_step"] == {}  # and not again
    assert device.from_json(repeated, "two") == device.from_json(recorded, "one")


@pytest.mark.parametrize("stop_at", [1, 3, 4, 6, 8])
def test_a_run_stopped_at_any_step_ends_with_the_same_bits(workplace: Path, stop_at: int) -> None:
    config = configs.load("small.yaml")  # 4 steps an epoch, 2 epochs
    whole = train.train(config, runs_root=Path("whole"))
    with pytest.raises(Interrupted):
        train.train(config, runs_root=Path("parts"), progress=interrupt_at(stop_at))
    stopped = the_run(Path("parts"))
    assert not stopped.is_complete()
    resumed = train.resume(stopped)
    assert_same_weights(whole, resumed)
    assert history_without_clock(whole) == history_without_clock(resumed)
    assert whole.metrics().best == resumed.metrics().best


def test_a_killed_run_goes_on_from_its_last_checkpoint(workplace: Path, comp: Callable[..., Result]) -> None:
    settings = ["train.epochs=10", "competition.ood_validation.severities=[]"]
    command = [
        sys.executable,
        "-m",
        "comp",
        "train",
        "small.yaml",
        *settings,
        "train.checkpoint_seconds=0",
        "--runs",
        "killed",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _wait_for(lambda: bool(list(Path("killed").glob("*/*/state.pt"))), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed = the_run(Path("killed"))
    assert comp("train", "--resume", killed.path).code == 0
    assert comp("train", "small.yaml", *settings, "--runs", "whole").code == 0
    whole = the_run(Path("whole"))
    assert_same_weights(whole, killed)
    assert history_without_clock(whole) == history_without_clock(killed)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_resumable_run(
    workplace: Path, comp: Callable[..., Result], signum: signal.Signals, code: int
) -> None:
    command = [sys.executable, "-m", "comp", "run", "small.yaml", "train.epochs=100000", "--runs", "stopped"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    _wait_for(lambda: bool(list(Path("stopped").glob("*/*/history.csv"))), process)
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "comp run --resume" in err
    stopped = the_run(Path("stopped"))
    assert (stopped.path / "state.pt").exists()
    assert not stopped.is_complete()


def _wait_for(condition: Callable[[], bool], process: "subprocess.Popen[Any]") -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, "the process ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_stop_asked_for_at_an_epochs_end_ends_the_training_and_stays_asked_for(workplace: Path) -> None:
    config = configs.load("small.yaml", ["train.epochs=5"])

    def interrupt_scoring(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        if what == "ood_val":
            raise Interrupted(signal.SIGTERM)

    with pytest.raises(Interrupted):
        train.train(config, on_epoch=lambda epoch: Stop("enough"), progress=interrupt_scoring)
    resumed = train.resume(the_run())
    assert len(resumed.history()) == 1
    assert resumed.metrics().stopped == "enough"


@pytest.mark.parametrize("damage", ["a bit at 3/10", "a bit at 7/10", "half", "noise"])
def test_a_damaged_checkpoint_is_never_gone_on_from(workplace: Path, comp: Callable[..., Result], damage: str) -> None:
    """By itself torch reads one with a changed bit without a word, and the training would end in other weights."""

    def stop(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        if what.startswith("epoch 2"):
            raise Interrupted(signal.SIGINT)

    with pytest.raises(Interrupted):
        train.train(configs.load("small.yaml"), progress=stop)
    state = the_run().path / "state.pt"
    content = bytearray(state.read_bytes())
    if damage == "half":
        content = content[: len(content) // 2]
    elif damage == "noise":
        content = bytearray(b"noise")
    else:
        content[len(content) * int(damage[9]) // 10] ^= 0x40
    state.write_bytes(content)
    result = comp("train", "--resume", the_run().path)
    assert result.code == 2
    assert f"{state}: damaged" in result.err
    assert state.read_bytes() == content


def test_an_interrupted_run_is_finished_by_resume(workplace: Path, comp: Callable[..., Result]) -> None:
    def stop(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        if what.startswith("epoch 2"):
            raise Interrupted(signal.SIGINT)

    with pytest.raises(Interrupted):
        train.train(configs.load("small.yaml"), progress=stop)
    run = the_run()
    Path("data").rename("moved")
    result = comp("run", "--resume", run.path)
    assert result.code == 2
    result = comp("run", "--resume", run.path, "data.root=moved")
    assert result.code == 0, result.err
    assert run.metrics().submission == "submissions/small.csv"
    assert Path(run.config().data.root).name == "data"  # as it was trained


def test_a_rehearsal_goes_through_every_stage_and_leaves_nothing(workplace: Path, comp: Callable[..., Result]) -> None:
    before = sorted(os.listdir())
    result = comp("run", "small.yaml", "--rehearse", "--json")
    assert result.code == 0, result.err
    stages = json.loads(result.out)
    names = [stage["name"] for stage in stages]
    assert names == ["data", "train", "resume", "evaluate", "predict", "check", "leaderboard"]
    assert stages[-2]["found"] == "valid"
    assert sorted(os.listdir()) == before


def test_training_on_everything_submits_the_final_weights(workplace: Path, comp: Callable[..., Result]) -> None:
    result = comp("run", "small.yaml", "data.validation=none", "--json")
    assert result.code == 0, result.err
    run = the_run()
    assert run.provenance()["images"] == {"train": 160, "val": 0, "test": 40}
    assert not (run.path / "best.safetensors").exists()
    sidecar = json.loads(Path("submissions/small.json").read_text())
    assert sidecar["weights_sha256"] == files.sha256_file(run.path / "final.safetensors")


def test_the_leaderboard_lists_complete_runs_best_first(two_runs: Path, comp: Callable[..., Result]) -> None:
    rows = json.loads(comp("leaderboard", "--sort", "val_accuracy", "--json").out)
    assert len(rows) == 2
    assert rows[0]["val_accuracy"] >= rows[1]["val_accuracy"]
    assert {row["submission"] for row in rows} == {"submissions/small.csv", "submissions/small-2.csv"}
    assert json.loads(comp("leaderboard", "--competition", "other", "--json").out) == []
    assert "small.csv" in comp("leaderboard").out


def test_predict_writes_a_csv_for_each_run_and_the_same_bytes_again(
    two_runs: Path, comp: Callable[..., Result]
) -> None:
    first, second = runs.list_runs(Path("runs"))
    result = comp("predict", first.path, second.path, "--json")
    assert json.loads(result.out) == {
        str(first.path): "submissions/small-3.csv",
        str(second.path): "submissions/small-4.csv",
    }
    assert Path("submissions/small-3.csv").read_bytes() == Path("submissions/small.csv").read_bytes()


def test_predictions_do_not_depend_on_the_batch_size(two_runs: Path) -> None:
    run, _ = runs.list_runs(Path("runs"))
    loaded = load_run(run)
    small = prediction_files.load(run.path / "predictions/suite.npz")
    config = loaded.config.model_copy(update={"predict": loaded.config.predict.model_copy(update={"batch_size": 3})})
    again = predict_split(replace(loaded, config=config), "suite")
    assert np.allclose(small.outputs.astype(np.float32), again.outputs.astype(np.float32), atol=0.02)
    assert (small.top1 == again.top1).mean() > 0.99


SHIFTED_EVERY_2 = {
    "competition": {"ood_validation": {"severities": [3], "per_block": 8, "every": 2}},
    "train": {"epochs": 5, "select": "ood_accuracy"},
}


@pytest.fixture
def shifted(workplace: Path) -> Path:
    """A config that selects by shifted accuracy, measured every second epoch."""
    values = yaml_io.merge(yaml.safe_load(Path("small.yaml").read_text()), SHIFTED_EVERY_2)
    return write_config(Path("shifted.yaml"), values)


def test_shifted_accuracy_is_measured_every_n_epochs_and_selects(shifted: Path, comp: Callable[..., Result]) -> None:
    result = comp("train", shifted)
    assert result.code == 0, result.err
    run = the_run()
    history = [row["ood_accuracy"] for row in run.history()]
    assert [bool(value) for value in history] == [False, True, False, True, True]
    measured = {number: float(value) for number, value in enumerate(history, 1) if value}
    scores = run.metrics()
    losses = {number: float(row["val_loss"]) for number, row in enumerate(run.history(), 1)}
    # Of equal accuracies the lower validation loss wins.
    assert scores.best_epoch == max(measured, key=lambda number: (measured[number], -losses[number]))
    assert scores.best.ood_val.accuracy == pytest.approx(max(measured.values()))
    assert "shifted 0." in result.err


@pytest.mark.parametrize("stop_in", ["val", "ood_val"])
def test_a_run_stopped_while_it_is_validated_ends_with_the_same_bits(shifted: Path, stop_in: str) -> None:
    config = configs.load(shifted)
    whole = train.train(config, runs_root=Path("whole"))
    seen = 0

    def stop(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        nonlocal seen
        seen += what == stop_in
        if seen == 2:
            raise Interrupted(signal.SIGTERM)

    with pytest.raises(Interrupted):
        train.train(config, runs_root=Path("parts"), progress=stop)
    resumed = train.resume(the_run(Path("parts")))
    assert_same_weights(whole, resumed)
    assert weights_of(whole, "best").keys() == weights_of(resumed, "best").keys()
    assert history_without_clock(whole) == history_without_clock(resumed)
    assert whole.metrics().best_epoch == resumed.metrics().best_epoch


def test_a_shifted_validation_leaves_out_families_and_names(workplace: Path, comp: Callable[..., Result]) -> None:
    leave_out = "competition.ood_validation.leave_out=[noise, fog]"
    result = comp("train", "small.yaml", leave_out, "--json")
    assert result.code == 0, result.err
    names = json.loads(result.out)["best"]["ood_val"]["by_distortion"]
    left_out = {"gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "fog"}
    assert list(names) == [name for name in DISTORTIONS if name not in left_out]
    blocks = prediction_files.load(the_run().predictions_path("ood_val")).block_names
    assert [DISTORTIONS[int(name[10:12])] for name in blocks] == list(names)


@pytest.mark.slow  # 5 s
def test_the_last_epoch_is_mixed_unless_asked_otherwise(workplace: Path, comp: Callable[..., Result]) -> None:
    mixed = ["augment.policy=none", "augment.mixup=10", "train.label_smoothing=0", "train.epochs=12"]
    for name, more in (("mixed", []), ("clean_end", ["augment.mix_off_epochs=1"])):
        assert comp("train", "small.yaml", *mixed, *more, "--runs", name).code == 0
    rows = {name: the_run(Path(name)).history() for name in ("mixed", "clean_end")}
    # MixUp's targets share their mass between two classes, so that even a perfect net cannot answer them all.
    assert float(rows["mixed"][-1]["train_accuracy"]) < 0.8 < float(rows["clean_end"][-1]["train_accuracy"])


def test_a_resume_writes_the_submission_that_the_first_command_named(
    workplace: Path, comp: Callable[..., Result]
) -> None:
    Path("old.csv").write_text("id,label\n")
    config = configs.load("small.yaml")
    with pytest.raises(Interrupted):
        run_config(config, output=Path("old.csv"), force=True, progress=interrupt_at(3))
    result = comp("run", "--resume", the_run().path)
    assert result.code == 0, result.err
    assert the_run().metrics().submission == "old.csv"
    assert Path("old.csv").read_text().count("\n") > 1
    assert not Path("submissions").exists()
    # Another name is still possible, and a submission that is gone is written again, over its own sidecar.
    content = Path("old.csv").read_bytes()
    Path("old.csv").unlink()
    assert comp("run", "--resume", the_run().path).code == 0
    assert Path("old.csv").read_bytes() == content
    Path("old.csv").unlink()
    refused = comp("run", "small.yaml", "-o", "old.csv")
    assert_refused(refused, "old.json: already exists, without old.csv that it describes", "--force")
    assert comp("run", "--resume", the_run().path, "-o", "new.csv").code == 0
    assert Path("new.csv").read_bytes() == content
