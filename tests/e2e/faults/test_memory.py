"""Commands with 300 MB of addresses left do what they do with more, with fewer images at a time where they must."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from comp import config as configs
from comp.results import prediction_files
from comp.workflows import train
from tests.support.commands import Result
from tests.support.configs import small_config, write_arrays, write_config
from tests.support.memory import COMMAND, in_megabytes
from tests.support.runs import the_run

pytestmark = pytest.mark.slow
MEGABYTES = 300
IMAGES = 800


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, `big.yaml`, and a run whose predictions of a block at once need more than 300 MB."""
    folder = tmp_path_factory.mktemp("big")
    values = small_config(write_arrays(folder / "data", train=200, test=IMAGES))
    values["competition"] |= {"ood_validation": {"severities": []}}
    values["competition"]["suite"] = {"files": 1, "severities": 1, "images_per_block": IMAGES}
    values["model"] = {"name": "residual_cnn"}
    values["train"]["epochs"] = 1
    values["predict"] = {"batch_size": IMAGES}
    train.train(configs.load(write_config(folder / "big.yaml", values)), runs_root=folder / "runs")
    return folder


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a copy of that run."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    shutil.copy(trained / "big.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("words", [(), ("--views", "flip")], ids=" ".join)
def test_suites_and_views_are_predicted_in_parts(
    place: Path, comp: Callable[..., Result], words: tuple[str, ...]
) -> None:
    run = the_run()
    in_megabytes(MEGABYTES, place, COMMAND, "predict", run.path, *words)
    (path,) = [path for path in (run.path / "predictions").glob("*.npz") if not path.name.startswith("val")]
    short = prediction_files.load(path)
    assert short.made_by["micro_batch"] < IMAGES
    path.unlink()
    assert comp("predict", run.path, *words).code == 0
    whole = prediction_files.load(path)
    assert "micro_batch" not in whole.made_by
    assert np.allclose(short.outputs, whole.outputs, atol=5e-3)


@pytest.mark.parametrize("of_a_run", [False, True])
def test_the_test_is_compared_with_the_training_images(
    place: Path, comp: Callable[..., Result], of_a_run: bool
) -> None:
    words = ("data", "shift", the_run().path if of_a_run else "big.yaml", "--json")
    short = json.loads(in_megabytes(MEGABYTES, place, COMMAND, *words))
    whole = json.loads(comp(*words).out)
    assert short["auc"] == pytest.approx(whole["auc"], abs=0.02)
    assert short.keys() == whole.keys()
    assert short["counts"] == whole["counts"]


def test_a_report_is_drawn(place: Path, comp: Callable[..., Result]) -> None:
    run = the_run()
    in_megabytes(MEGABYTES, place, COMMAND, "report", run.path, "-o", "short.html")
    assert comp("report", run.path, "-o", "whole.html").code == 0
    assert len(Path("short.html").read_bytes()) == pytest.approx(len(Path("whole.html").read_bytes()), rel=0.01)
