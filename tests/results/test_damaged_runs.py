"""Damaged and unusual run folders: one message that names the file and a cure that works, never a traceback."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comp.results import prediction_files, run_metrics, runs
from comp.runtime.errors import RunError
from tests.support.commands import Result
from tests.support.frozen_runs import ENSEMBLE, FLIPPED, FROZEN, PLAIN, thawed

NOISE = np.random.default_rng(0).integers(0, 256, 400, np.uint8).tobytes()

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to a folder with frozen runs; see `thawed`."""
    monkeypatch.chdir(thawed(tmp_path))
    return tmp_path


def refused(comp: Callable[..., Result], *words: object) -> str:
    """Return the one message of a command that ends with exit code 2."""
    result = comp(*words)
    assert result.code == 2, result.err
    assert result.err.startswith("error: ")
    assert len(result.err.strip().splitlines()) == 1
    return result.err.strip()


def cure(message: str) -> list[str]:
    """Return the words of the command that a message ends with."""
    found = re.search(r": comp (.*)$", message)
    assert found, message
    return shlex.split(found[1])


def change(path: Path, **values: Any) -> None:
    """Lay values on a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}, indent=2))


def change_arrays(path: Path, **arrays: Any) -> None:
    """Lay arrays on a .npz."""
    with np.load(path) as kept:
        np.savez(path, **{**dict(kept), **arrays})


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def empty(content: bytes) -> bytes:
    return b""


def noise(content: bytes) -> bytes:
    return NOISE


def braces(content: bytes) -> bytes:
    return b"{}"


def test_a_non_finite_score_counts_as_damage(comp: Callable[..., Result]) -> None:
    path = Path(PLAIN) / "metrics.json"
    path.write_text(re.sub(r'"value": [\d.]+', '"value": NaN', path.read_text(), count=1))
    message = refused(comp, "evaluate", PLAIN)
    assert str(path) in message
    assert "best.val.scores.accuracy.value: Input should be a finite number" in message
    Path("elsewhere").mkdir()
    shutil.move(PLAIN, "elsewhere")
    result = comp("leaderboard", "--json")
    assert (len(json.loads(result.out)), result.err) == (2, "")


def test_a_truncated_metrics_file_is_described_and_the_message_says_what_to_do(comp: Callable[..., Result]) -> None:
    path = Path(PLAIN) / "metrics.json"
    path.write_bytes(half(path.read_bytes()))
    message = refused(comp, "evaluate", PLAIN)
    assert f"{path}: damaged (Invalid JSON: " in message
    assert f"restore the file, or move {PLAIN} away" in message


def test_an_ensemble_is_not_repeated_as_a_training(comp: Callable[..., Result]) -> None:
    assert f"--as {ENSEMBLE}: repeats a training, and this is an ensemble" in refused(comp, "run", "--as", ENSEMBLE)
    assert not list(Path("runs").glob("*/*-ensemble-2"))


def test_a_non_finite_score_cannot_be_created() -> None:
    with pytest.raises(ValueError, match="finite number"):
        run_metrics.Score(value=float("nan"))


def test_an_empty_block_has_no_accuracy() -> None:
    found = prediction_files.load(Path(PLAIN) / "predictions" / "val.npz")
    sizes, names = np.array([len(found), 0]), np.array(["distortion00_1", "distortion01_1"])
    change_arrays(Path(PLAIN) / "predictions" / "val.npz", block_sizes=sizes, block_names=names)
    assert list(prediction_files.load(Path(PLAIN) / "predictions" / "val.npz").block_accuracy()) == ["distortion00_1"]


@pytest.mark.parametrize(
    ("run", "name", "damage"),
    [(PLAIN, "val", half), (PLAIN, "ood_val", empty), (FLIPPED, "val", noise), (FLIPPED, "suite+flip", half)],
)
def test_the_command_in_the_message_recreates_damaged_predictions(
    comp: Callable[..., Result], run: str, name: str, damage: Callable[[bytes], bytes]
) -> None:
    path = Path(run) / "predictions" / f"{name}.npz"
    before = prediction_files.load(path)
    path.write_bytes(damage(path.read_bytes()))
    if name.startswith("suite"):  # its labels are not looked at: what is submitted is all that it is for
        with pytest.raises(ValueError, match=re.escape(str(path))) as error:
            prediction_files.load(path)
        message = str(error.value)
    else:
        message = refused(comp, "evaluate", run)
    assert str(path) in message
    assert re.search(r"damaged predictions file \(.+\)", message)
    result = comp(*cure(message))
    assert result.code == 0, result.err
    again = prediction_files.load(path)
    assert np.allclose(again.outputs, before.outputs, atol=0.02)  # stored in float16, by another machine
    assert np.array_equal(again.block_sizes, before.block_sizes)
    assert comp("evaluate", run).code == 0


def test_damaged_shifted_validation_does_not_stop_a_submission(comp: Callable[..., Result]) -> None:
    path = Path(PLAIN) / "predictions" / "ood_val.npz"
    before = prediction_files.load(path)
    path.write_bytes(NOISE)
    result = comp("predict", PLAIN, "-o", "new.csv")
    assert result.code == 0, result.err
    assert Path("new.csv").read_bytes() == (FROZEN / "submissions" / "frozen.csv").read_bytes()
    assert np.allclose(prediction_files.load(path).outputs, before.outputs, atol=0.02)


def test_an_ensemble_with_damaged_predictions_can_be_created_again(comp: Callable[..., Result]) -> None:
    (Path(ENSEMBLE) / "predictions" / "val.npz").write_bytes(b"")
    message = refused(comp, "evaluate", ENSEMBLE)
    assert "empty" in message
    assert f"{ENSEMBLE} has no weights" in message
    assert comp("ensemble", PLAIN, FLIPPED, "-o", "again.csv").code == 0


@pytest.mark.parametrize(
    "sizes", [[-1] + [13] * 17 + [8], [11] * 19, [12.0] * 19], ids=["below 0", "too few", "no int"]
)
def test_blocks_that_do_not_divide_the_rows_count_as_damage(sizes: list[float]) -> None:
    path = Path(PLAIN) / "predictions" / "ood_val.npz"
    change_arrays(path, block_sizes=np.array(sizes))
    for read in (prediction_files.load, prediction_files.load_correctness):
        with pytest.raises(RunError, match=r"block_sizes.*: comp predict \S+ --split ood_val$"):
            read(path)


def test_thresholds_of_other_classes_count_as_damage(comp: Callable[..., Result]) -> None:
    path = Path(PLAIN) / "metrics.json"
    before = path.read_bytes()
    change(path, thresholds=[0.5, 0.5])
    message = refused(comp, "predict", PLAIN)
    assert f"{path}: damaged: 2 thresholds, expected one for each of 10 classes" in message
    path.write_bytes(before)
    assert comp("predict", PLAIN).code == 0


@pytest.mark.parametrize(
    ("decision", "part"),
    [
        ({"kind": "temperature", "values": [0.0]}, "1 temperature, expected what suits 10 classes"),
        ({"kind": "cut_points", "values": [0.5]}, "1 cut_points, expected what suits 10 classes"),
        ({"kind": "prior", "shift": [0.5]}, "expected what suits 10 classes"),
        ({"kind": "magic"}, "0 magic, expected what suits 10 classes"),
        ({"kind": "temperature", "values": ["hot"]}, "decision.values.0"),
    ],
)
def test_a_decision_that_suits_no_prediction_counts_as_damage(
    comp: Callable[..., Result], decision: dict[str, object], part: str
) -> None:
    path = Path(PLAIN) / "metrics.json"
    change(path, decision=decision)
    message = refused(comp, "predict", PLAIN)
    assert f"{path}: damaged" in message
    assert part in message


@pytest.mark.parametrize("damage", [half, empty, noise, braces])
def test_a_damaged_split_stops_an_ensemble_and_leaves_nothing_behind(
    comp: Callable[..., Result], damage: Callable[[bytes], bytes]
) -> None:
    path = Path(PLAIN) / "split.npz"
    path.write_bytes(damage(path.read_bytes()))
    before = sorted(Path("runs").rglob("*"))
    message = refused(comp, "ensemble", PLAIN, FLIPPED, "-o", "new.csv")
    assert f"{path}: missing or damaged" in message
    assert sorted(Path("runs").rglob("*")) == before
    assert not Path("new.csv").exists()
    if damage is half:
        assert comp(*cure(message), "train.epochs=1").code == 0
        (new,) = {run.path for run in runs.list_runs(Path("runs"))} - {Path(PLAIN), Path(FLIPPED), Path(ENSEMBLE)}
        assert comp("evaluate", new).code == 0


def test_an_ensemble_that_fails_at_its_submission_leaves_no_run(comp: Callable[..., Result]) -> None:
    Path("file").write_text("no folder")
    before = sorted(Path("runs").rglob("*"))
    message = refused(comp, "ensemble", PLAIN, FLIPPED, "-o", "file/new.csv")
    assert "file" in message
    assert sorted(Path("runs").rglob("*")) == before


@pytest.mark.parametrize("field", [{"rows": "many"}, {"rows": None}, {"rows": True}, {"run_path": 7}], ids=str)
def test_a_sidecar_with_missing_fields_is_named(comp: Callable[..., Result], field: dict[str, Any]) -> None:
    beside = Path("submissions/frozen.json")
    change(beside, **field)
    message = refused(comp, "leaderboard", "record", "submissions/frozen.csv", "--public", "0.5")
    assert f"{beside}: {next(iter(field))}: expected" in message
    assert comp("predict", PLAIN, "-o", "submissions/frozen.csv", "--force").code == 0
    assert comp("leaderboard", "record", "submissions/frozen.csv", "--public", "0.5").code == 0


@pytest.mark.parametrize("every", ["1", "end"])
@pytest.mark.parametrize("select", ["ood_metric", "ood_accuracy"])
def test_selecting_by_shifted_validation_needs_severities(comp: Callable[..., Result], select: str, every: str) -> None:
    words = [f"train.select={select}", f"competition.ood_validation.every={every}"]
    config = FROZEN / "small.yaml"
    message = refused(comp, "train", config, *words, "competition.ood_validation.severities=[]")
    assert f"train.select: {select}" in message
    assert "severities is empty" in message
    assert not (set(runs.list_runs(Path("runs"))) - {runs.Run(Path(p)) for p in (PLAIN, FLIPPED, ENSEMBLE)})


def test_runs_without_histories_are_reported_side_by_side(comp: Callable[..., Result]) -> None:
    assert comp("ensemble", PLAIN, FLIPPED, "--method", "rank", "-o", "rank.csv").code == 0
    (other,) = Path("runs/frozen").glob("*-rank-ensemble")
    result = comp("report", ENSEMBLE, other, "-o", "page.html")
    assert result.code == 0, result.err
    page = Path("page.html").read_text()
    assert "<h2>Curves</h2>" not in page
    assert "<h2>Scores</h2>" in page


@pytest.mark.parametrize("verb", ["evaluate", "predict", "report"])
def test_an_empty_provenance_is_named(comp: Callable[..., Result], verb: str) -> None:
    path = Path(PLAIN) / "provenance.json"
    path.write_text("{}")
    result = comp(verb, PLAIN)
    assert "Traceback" not in result.err
    assert f"{path}: damaged: classes: expected a list of text, found null" in result.err
    assert comp("leaderboard").code == 0


def test_a_truncated_config_is_not_filled_with_defaults(comp: Callable[..., Result]) -> None:
    path = Path(FLIPPED) / "config.yaml"
    text = path.read_text()
    path.write_text(text[: text.index("predict:")])
    message = refused(comp, "predict", FLIPPED, "-o", "new.csv")
    assert f"{path}: damaged: it lacks predict, track" in message
    assert not Path("new.csv").exists()
    path.write_text(text)
    assert comp("predict", FLIPPED, "-o", "new.csv").code == 0


def test_a_report_works_without_a_damaged_history(comp: Callable[..., Result]) -> None:
    path = Path(PLAIN) / "history.csv"
    path.write_bytes(NOISE)
    message = refused(comp, "report", PLAIN, FLIPPED, "-o", "page.html")
    assert f"{path}: damaged" in message
    path.unlink()
    assert comp("report", PLAIN, FLIPPED, "-o", "page.html").code == 0


def test_names_are_printed_literally(comp: Callable[..., Result]) -> None:
    """What rich would take for a colour, a closing tag or a picture is a name like any other."""
    name = "[red]n[/b] :cat:"
    for path in (PLAIN, FLIPPED, ENSEMBLE):
        change(Path(path) / "metrics.json", model=name, device="[bold]cpu[/]")
    odd = Path(PLAIN).with_name("20261126-204842-[red]small :cat:")
    Path(PLAIN).rename(odd)
    for words in (["leaderboard"], ["leaderboard", "--group-by", "model"], ["evaluate", odd]):
        result = comp(*words)
        assert result.code == 0, result.err
        assert name in result.out
    assert str(odd) in comp("evaluate", odd).out
    assert "[red]" in comp("leaderboard").out.replace(name, "")
    change(Path(FLIPPED) / "metrics.json", model="$x_$", metric="accuracy")
    odd.rename(odd.with_name("$x_{$ ensemble"))
    assert comp("report", "runs/frozen", "-o", "page.html").code == 0


VERBS = {
    "leaderboard": ("leaderboard",),
    "report": ("report", PLAIN, ENSEMBLE, "-o", "page.html"),
    "evaluate": ("evaluate", PLAIN),
    "predict": ("predict", PLAIN, "-o", "new.csv"),
    "ensemble": ("ensemble", PLAIN, FLIPPED, "-o", "new.csv"),
}
DAMAGES = (half, empty, noise, braces, lambda content: b"[7]")


@pytest.mark.parametrize(
    "verb", [pytest.param(verb, marks=pytest.mark.slow) if verb in ("evaluate", "ensemble") else verb for verb in VERBS]
)
def test_no_damaged_file_gives_a_traceback(folder: Path, comp: Callable[..., Result], verb: str) -> None:
    """Every file of a run sees every damage, under one verb each; what is refused is named."""
    files = sorted(path for path in Path(PLAIN).rglob("*") if path.is_file())
    assert len(files) == 12
    for number, path in enumerate(files):
        shutil.rmtree("runs")
        shutil.copytree(FROZEN / "competition", "runs/frozen")
        damage = DAMAGES[(number + list(VERBS).index(verb)) % len(DAMAGES)]
        path.write_bytes(damage(path.read_bytes()))
        kept = sorted(run.path for run in runs.list_runs(Path("runs")))
        result = comp(*VERBS[verb], *(["--force"] if "new.csv" in VERBS[verb] else []))
        assert result.code in (0, 2), result.err
        assert "Traceback" not in result.err
        if result.code == 2:
            (message,) = result.err.strip().splitlines()
            assert message.startswith(f"error: {path}"), message
            assert sorted(run.path for run in runs.list_runs(Path("runs"))) == kept


def test_a_soup_of_different_splits_names_the_setting_that_differs(comp: Callable[..., Result]) -> None:
    path = Path(FLIPPED) / "config.yaml"
    path.write_text(path.read_text().replace("split_seed: 0", "split_seed: 1"))
    message = refused(comp, "ensemble", PLAIN, FLIPPED, "--method", "soup", "-o", "new.csv")
    assert "data.split_seed: found 1, expected 0" in message
    assert "package" not in message
    path.write_text(path.read_text().replace("split_seed: 1", "split_seed: 0"))
    assert comp("ensemble", PLAIN, FLIPPED, "--method", "soup", "-o", "new.csv").code == 0


def test_the_command_in_the_message_recreates_a_damaged_evaluation(
    comp: Callable[..., Result],
) -> None:
    assert comp("evaluate", ENSEMBLE).code == 0
    path = Path(ENSEMBLE) / "evaluation.json"
    path.write_text('{"val": {"classes": 7}}')
    message = refused(comp, "report", ENSEMBLE, "-o", "page.html")
    assert str(path) in message
    assert comp(*cure(message)).code == 0
    assert comp("report", ENSEMBLE, "-o", "page.html").code == 0
