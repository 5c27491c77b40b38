"""Measurements on part of a split use a stratified sample, which the run records and reads back."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comp import config as configs
from comp.config import Config
from comp.data.dataset import open_dataset
from comp.results import files, prediction_files, runs
from comp.runtime.errors import Interrupted
from comp.training import context
from comp.workflows import train
from comp.workflows.load import load_run
from comp.workflows.predict import predict_split
from comp.workflows.rehearse import rehearse
from tests.support.commands import Result, interrupt_at
from tests.support.configs import QUICK, small_config, write_arrays, write_config

Comp = Callable[..., Result]
CLASSES, BLOCK = 4, 12


@pytest.fixture(scope="module")
def sorted_data(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The config of data sorted by class."""
    folder = tmp_path_factory.mktemp("sorted")
    write_arrays(folder / "data")
    for name in ("train", "test"):
        labels, images = folder / f"data/{name}_labels.npy", folder / f"data/{name}_images.npy"
        order = np.argsort(np.load(labels), kind="stable")
        np.save(labels, np.load(labels)[order])
        np.save(images, np.load(images)[order])
    return configs.load(
        write_config(folder / "small.yaml", small_config(folder / "data")),
        [*QUICK, f"competition.suite.images_per_block={BLOCK}"],
    )


@pytest.fixture(scope="module")
def trained(sorted_data: Config, tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    """A run on sorted data with all its predictions; only to be read."""
    run = train.train(sorted_data, runs_root=tmp_path_factory.mktemp("trained"))
    predict_split(load_run(run), "suite")
    return run


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty directory."""
    monkeypatch.chdir(tmp_path)


def fast_config(data: Config, *overrides: str) -> Config:
    """Return a config of a network whose first layer is set from training images."""
    values = {**small_config(Path(data.data.root)), "model": {"name": "fastnet", "args": {"size": "S"}}}
    return configs.load(write_config(Path("fast.yaml"), values), [*QUICK, *overrides])


def targets(run: runs.Run, name: str) -> np.ndarray[Any, Any]:
    """Return the labels of each block [blocks, images], as predicted."""
    labels = prediction_files.load(run.predictions_path(name)).targets
    assert labels is not None
    return labels.reshape(-1, BLOCK)


def delete_samples(run: runs.Run) -> None:
    """Make a run as older versions wrote it, without samples."""
    with np.load(run.path / "split.npz") as kept:
        files.write_arrays(run.path / "split.npz", {name: kept[name] for name in ("train", "val")})


def test_blocks_of_sorted_data_hold_every_class_in_its_share(sorted_data: Config, trained: runs.Run) -> None:
    data = open_dataset(sorted_data)
    with np.load(trained.path / "split.npz") as kept:
        rows = {name: kept[f"rows_{name}"] for name in ("ood_val", "suite")}
    for name, clean in (("ood_val", data.val), ("suite", data.test)):
        assert clean is not None
        assert clean.labels is not None
        blocks = targets(trained, name)
        assert (blocks == clean.labels[rows[name]]).all()
        assert (np.bincount(blocks[0], minlength=CLASSES) == BLOCK // CLASSES).all()


def test_a_run_without_samples_predicts_the_first_images_and_reuses_no_sampled_blocks(
    sorted_data: Config, trained: runs.Run, comp: Comp
) -> None:
    run = runs.open_run(Path(shutil.copytree(trained.path, "run")))
    drawn = prediction_files.read_made_by(run.predictions_path("suite"))
    delete_samples(run)
    for split in ("suite", "ood_val"):
        assert comp("predict", run.path, "--split", split).code == 0
    data = open_dataset(sorted_data)
    for name, clean in (("ood_val", data.val), ("suite", data.test)):
        assert clean is not None
        assert clean.labels is not None
        assert (targets(run, name) == clean.labels[:BLOCK]).all()
    first = prediction_files.read_made_by(run.predictions_path("suite"))
    assert drawn is not None
    assert first is not None
    assert drawn["images"] != first["images"]  # so that an interrupted prediction cannot continue the other one


def test_a_resumed_training_measures_on_the_recorded_samples(sorted_data: Config) -> None:
    with pytest.raises(Interrupted):
        train.train(sorted_data, runs_root=Path("runs"), progress=interrupt_at(1))
    (run,) = runs.list_runs(Path("runs"))
    delete_samples(run)
    train.resume(run)
    assert np.ptp(targets(run, "ood_val")[0][: BLOCK // 2]) == 0  # the first in storage order


def test_an_image_is_corrupted_identically_in_a_sample_and_in_the_whole_suite(sorted_data: Config) -> None:
    whole = sorted_data.competition.suite.model_copy(update={"images_per_block": 0})
    full_suite = open_dataset(
        sorted_data.model_copy(update={"competition": sorted_data.competition.model_copy(update={"suite": whole})})
    ).suite
    data = open_dataset(sorted_data)
    assert data.suite is not None
    assert full_suite is not None
    for part, block in zip(data.suite.blocks, full_suite.blocks, strict=True):
        images = np.asarray(full_suite.open(block).images)[data.samples["suite"]]
        assert np.array_equal(data.suite.open(part).images, images)


def test_samples_for_initialisation_and_statistics_are_drawn_and_recorded(sorted_data: Config) -> None:
    config = fast_config(
        sorted_data, "train.average=ema", "train.batch_size=30", "competition.ood_validation.severities=[]"
    )
    run = train.train(config, runs_root=Path("runs"))
    data = open_dataset(config)
    with np.load(run.path / "split.npz") as kept:
        assert len(kept["rows_initialise"]) == len(data.train)
        rows = kept["rows_statistics"]
    assert len(rows) == 120  # of 128 images, whole batches
    assert data.train.labels is not None
    assert (np.bincount(data.train.labels[rows]) == 30).all()


def test_whitening_sees_every_class_of_sorted_data(sorted_data: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "_INITIALISE_IMAGES", 8)
    config = fast_config(sorted_data)
    data = open_dataset(config)
    rows = context.training_samples(config, data, train.build_model(config, data))["initialise"]
    assert data.train.labels is not None
    assert np.bincount(data.train.labels[rows]).tolist() == [2] * CLASSES


def test_a_rehearsal_has_images_of_every_class(sorted_data: Config) -> None:
    small = open_dataset(sorted_data).limited(8, 8)
    for split in (small.train, small.val, small.test):
        assert split is not None
        assert split.class_counts(CLASSES).tolist() == [2] * CLASSES
    assert small.ood_val is not None
    assert small.ood_val.open(small.ood_val.blocks[0]).class_counts(CLASSES).tolist() == [2] * CLASSES
    assert [stage.name for stage in rehearse(sorted_data)][-1] == "leaderboard"


def test_a_rehearsed_test_keeps_ids_and_sample_rows_together(sorted_data: Config) -> None:
    suite = sorted_data.competition.suite.model_copy(update={"source": "test"})
    config = sorted_data.model_copy(update={"competition": sorted_data.competition.model_copy(update={"suite": suite})})
    small = open_dataset(config).limited(8, 8)
    assert small.suite is not None
    assert not hasattr(small.suite, "blocks")
    assert small.suite.ids.tolist() == list(small.competition.test_ids)
