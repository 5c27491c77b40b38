"""`comp data corrupt`: the challenge's layout, the pixels of the lazy suite, and files that survive a stop."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from comp import config as configs
from comp.data.corruptions import export
from comp.data.corruptions.suite import CORRUPTIONS, FAMILIES
from comp.data.dataset import open_dataset
from comp.results import prediction_files, runs
from comp.results.blocks import DISTORTIONS
from comp.runtime.errors import DataError, Interrupted
from tests.support.commands import Result
from tests.support.configs import small_config, write_config

Comp = Callable[..., Result]
OUT = Path("data/ood")
COUNT = 4  # as small.yaml's suite


@pytest.fixture
def written(workplace: Path, comp: Comp) -> Path:
    """The whole suite of small.yaml on disk."""
    result = comp("data", "corrupt", "small.yaml", "--split", "test", "--out", OUT, "--count", COUNT, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["files"] == [str(OUT / f"distortion{n:02d}.npy") for n in range(19)]
    return OUT


def file_config() -> Path:
    """Write a config whose suite is the folder."""
    values = small_config(Path("data"))
    values["competition"]["suite"] = {"source": "distortion_files", "path": "ood", "images_per_block": COUNT}
    return write_config(Path("files.yaml"), values)


def test_the_files_are_the_suite_that_is_made_lazily(written: Path) -> None:
    lazy = open_dataset(configs.load("small.yaml")).suite
    read = open_dataset(configs.load(file_config())).suite
    assert lazy is not None
    assert read is not None
    assert read.blocks == lazy.blocks
    for block in lazy.blocks:
        assert np.array_equal(read.open(block).images, lazy.open(block).images)


def test_a_validation_written_is_the_shifted_validation(workplace: Path, comp: Comp) -> None:
    assert comp("data", "corrupt", "small.yaml", "--split", "val", "--out", OUT, "--count", 4).code == 0
    suite = open_dataset(configs.load("small.yaml")).ood_val
    assert suite is not None
    for block in suite.blocks:
        stacked = np.load(OUT / f"distortion{block.distortion:02d}.npy")
        start = (block.severity - 1) * COUNT
        assert np.array_equal(stacked[start : start + COUNT], suite.open(block).images)


def test_the_files_give_the_same_submission_as_the_lazy_suite(written: Path, comp: Comp) -> None:
    assert comp("run", "small.yaml", "-o", "lazy.csv").code == 0
    assert comp("run", file_config(), "-o", "files.csv").code == 0
    assert Path("lazy.csv").read_bytes() == Path("files.csv").read_bytes()
    (run,) = [run for run in runs.list_runs(Path("runs")) if "files" in run.name]
    assert prediction_files.load(run.predictions_path("suite")).targets is None  # a hidden test has none


def test_the_manifest_says_what_made_the_files(written: Path) -> None:
    manifest = json.loads((written / "manifest.json").read_text())
    assert manifest["source"]["split"] == "test"
    assert manifest["ids"] == [f"test_{row}" for row in manifest["indices"]]
    labels = np.load("data/test_labels.npy")[manifest["indices"]]
    assert sorted(labels) == [0, 1, 2, 3]  # a sample that has every class in its share
    assert manifest["severities"] == [1, 2, 3, 4, 5]
    assert manifest["images_per_block"] == COUNT
    assert "torch" in manifest["versions"]
    for number, name in enumerate(DISTORTIONS):
        row = manifest["files"][f"distortion{number:02d}.npy"]
        assert row["corruption"] == name
        assert row["parameters"] == [list(values) for values in CORRUPTIONS[name].parameters]
    assert (written / "corruptions.png").read_bytes().startswith(b"\x89PNG")


def test_families_and_names_choose_files_that_keep_their_numbers(workplace: Path, comp: Comp) -> None:
    choice = ["--only", "noise", "--only", "fog", "--severities", "2,4"]
    assert comp("data", "corrupt", "small.yaml", "--split", "test", "--out", OUT, "--count", 3, *choice).code == 0
    wanted = {f"distortion{DISTORTIONS.index(name):02d}.npy" for name in (*FAMILIES["noise"], "fog")}
    assert {path.name for path in OUT.glob("*.npy")} == wanted
    assert np.load(OUT / "distortion09.npy").shape == (2 * 3, 32, 32, 3)
    # More of the same suite may follow.
    rest = ["--only", "snow", "--severities", "2,4"]
    assert comp("data", "corrupt", "small.yaml", "--split", "test", "--out", OUT, "--count", 3, *rest).code == 0
    assert set(json.loads((OUT / "manifest.json").read_text())["files"]) == {*wanted, "distortion07.npy"}


def test_a_folder_of_chosen_severities_is_not_read_under_wrong_names(workplace: Path, comp: Comp) -> None:
    comp("data", "corrupt", "small.yaml", "--split", "test", "--out", OUT, "--count", COUNT, "--severities", "2,4")
    result = comp("run", file_config(), "competition.suite.severities=2")
    assert result.code == 2
    assert "expected severities [1, 2]" in result.err


def test_what_was_stopped_goes_on_and_whole_files_are_kept(workplace: Path) -> None:
    split = open_dataset(configs.load("small.yaml")).test
    assert split is not None

    def stop(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        if what == "distortion02.npy" and done > COUNT:
            raise Interrupted(2)

    with pytest.raises(Interrupted):
        export.write_suite(split, OUT, seed=0, made_of={}, count=COUNT, progress=stop)
    assert sorted(os.listdir(OUT)) == ["distortion00.npy", "distortion01.npy", "manifest.json"]
    kept = (OUT / "distortion00.npy").stat().st_mtime_ns
    (OUT / "distortion01.npy").write_bytes(b"spoilt since")
    export.write_suite(split, OUT, seed=0, made_of={}, count=COUNT)
    assert (OUT / "distortion00.npy").stat().st_mtime_ns == kept
    export.write_suite(split, Path("whole"), seed=0, made_of={}, count=COUNT)
    for number in range(19):
        name = f"distortion{number:02d}.npy"
        assert (OUT / name).read_bytes() == Path("whole", name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "3"], "differs in source, images_per_block, indices, ids"),
        (["--count", str(COUNT), "--severities", "1-3"], "differs in severities"),
        (["--count", str(COUNT), "data.split_seed=7"], "differs in seed"),
    ],
)
def test_another_suite_in_the_folder_is_refused(written: Path, comp: Comp, arguments: list[str], message: str) -> None:
    before = (written / "distortion00.npy").read_bytes()
    overrides = [text for text in arguments if "=" in text]
    options = [text for text in arguments if "=" not in text]
    result = comp("data", "corrupt", "small.yaml", *overrides, "--split", "test", "--out", written, *options)
    assert result.code == 2
    assert message in result.err
    assert (written / "distortion00.npy").read_bytes() == before


def test_a_folder_with_something_else_is_refused_and_left_alone(workplace: Path, comp: Comp) -> None:
    Path("mine").mkdir()
    Path("mine/distortion00.npy").write_text("precious")
    result = comp("data", "corrupt", "small.yaml", "--split", "test", "--out", "mine")
    assert result.code == 2
    assert "holds something else already (distortion00.npy)" in result.err
    assert os.listdir("mine") == ["distortion00.npy"]
    assert Path("mine/distortion00.npy").read_text() == "precious"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "test", "--count", "41"], "--count: expected at most 40"),
        (["--split", "test", "--severities", "0-5"], "--severities: expected numbers from 1 to 5"),
        (["--split", "test", "--severities", "5-1"], "--severities: expected numbers from 1 to 5"),
        (["--split", "test", "--only", "frg"], "did you mean 'fog'"),
        (["data.validation=none", "--split", "val"], "set data.validation"),
    ],
)
def test_a_bad_request_is_told(workplace: Path, comp: Comp, arguments: list[str], message: str) -> None:
    result = comp("data", "corrupt", "small.yaml", "--out", OUT, *arguments)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err
    assert not OUT.exists()


@pytest.mark.parametrize(
    ("text", "wanted"), [("1-5", (1, 2, 3, 4, 5)), ("5,1", (1, 5)), ("2", (2,)), ("1-2,2-3", (1, 2, 3))]
)
def test_severities_are_ranges_and_lists(text: str, wanted: tuple[int, ...]) -> None:
    assert export.parse_severities(text) == wanted


@pytest.mark.parametrize("text", ["", "6", "1-", "a", "1;2"])
def test_other_severities_are_refused(text: str) -> None:
    with pytest.raises(DataError, match="--severities"):
        export.parse_severities(text)
