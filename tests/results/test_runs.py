"""Run folders and predictions on disk: whole files or none, one writer, nothing that could run code."""

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from comp.config import Config
from comp.results import files, prediction_files, predictions, runs
from comp.runtime.errors import RunError


def test_a_failed_write_leaves_the_existing_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_atomically(path, b"before")

    def fail(file: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_atomically(path, fail)
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be written"):
        files.write_atomically(tmp_path / "gone" / "a.json", b"")


def test_an_existing_file_is_kept_if_replacing_is_off(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        files.write_atomically(tmp_path / "a", b"yours", replace=False)
    assert (tmp_path / "a").read_bytes() == b"mine"


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    path, seen = tmp_path / "a", set()
    files.write_atomically(path, b"0" * 100_000)
    writer = threading.Thread(
        target=lambda: [files.write_atomically(path, str(i).encode() * 100_000) for i in range(10)]
    )
    writer.start()
    while writer.is_alive():
        content = path.read_bytes()
        seen.add((len(content), len(set(content))))
    writer.join()
    assert seen <= {(100_000, 1)}


def test_runs_created_in_the_same_second_get_different_names(tmp_path: Path) -> None:
    made = {runs.create(tmp_path, Config(), "same", {}).path for _ in range(5)}
    assert len(made) == 5
    assert {run.path for run in runs.list_runs(tmp_path)} == made


def example(labels: bool = True) -> predictions.Predictions:
    """Return predictions of two blocks."""
    logits = np.random.default_rng(0).normal(0, 3, (6, 4)).astype(np.float32)
    return predictions.from_outputs(
        logits,
        task="single_label",
        ids=np.array([f"é{i}" for i in range(6)]),
        classes=["a", "b", "c", "d"],
        targets=np.array([0, 1, 2, 3, 0, 1]) if labels else None,
        made_by={"run": "x"},
        blocks=[("distortion00_1", 2), ("distortion00_2", 4)],
    )


@pytest.mark.parametrize("labels", [True, False])
def test_predictions_survive_a_round_trip(tmp_path: Path, labels: bool) -> None:
    saved = example(labels)
    prediction_files.save(tmp_path / "a.npz", saved)
    loaded = prediction_files.load(tmp_path / "a.npz")
    assert loaded.classes == saved.classes
    assert loaded.made_by == saved.made_by
    assert loaded.blocks() == saved.blocks()
    for name in ("ids", "outputs", "top1"):
        assert np.array_equal(getattr(loaded, name), getattr(saved, name))
    assert (loaded.targets is None) != labels


@given(
    hnp.arrays(
        np.float32, st.tuples(st.integers(1, 8), st.integers(2, 6)), elements=st.floats(-(2.0**99), 2.0**99, width=32)
    )
)
def test_top1_is_the_argmax_of_the_raw_logits_however_large(logits: np.ndarray) -> None:
    ids = np.array([str(i) for i in range(len(logits))])
    made = predictions.from_outputs(
        logits, task="single_label", ids=ids, classes=list("abcdef")[: logits.shape[1]], targets=None, made_by={}
    )
    assert (made.top1 == logits.argmax(1)).all()
    assert np.isfinite(made.outputs).all()
    assert (made.outputs.max(1) == 0).all()


def test_logits_that_are_not_finite_are_named() -> None:
    logits = np.zeros((3, 2), np.float32)
    logits[1, 0] = np.nan
    with pytest.raises(RunError, match="1 of 3 rows are not finite, first b"):
        predictions.from_outputs(
            logits, task="single_label", ids=np.array(["a", "b", "c"]), classes="xy", targets=None, made_by={}
        )


def test_damaged_predictions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    prediction_files.save(path, example())
    content = path.read_bytes()
    for cut in range(0, len(content), 97):
        path.write_bytes(content[:cut])
        with pytest.raises(RunError):
            prediction_files.load(path)
    np.savez(path, ids=np.array([print], object))
    with pytest.raises(RunError, match="lacks"):
        prediction_files.load(path)
    np.savez(
        path,
        **dict.fromkeys(
            ["ids", "classes", "logits", "top1", "labels", "block_names", "block_sizes", "made_by"],
            np.array([print], object),
        ),
    )
    with pytest.raises(RunError, match="damaged"):
        prediction_files.load(path)
    with pytest.raises(RunError, match="no such predictions"):
        prediction_files.load(tmp_path / "none.npz")
