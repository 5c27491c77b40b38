"""What is refused before the first step: `comp config check` says the same of a config as `comp run`."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from comp import config as configs
from comp.results import runs
from comp.tracking import tracker
from comp.workflows import build
from tests.support.commands import Result, assert_refused
from tests.support.configs import small_config, write_arrays, write_config
from tests.support.frozen_runs import PLAIN, thawed

Comp = Callable[..., Result]

TIMM = ["model.args={}", "model.name=resnet18"]
VIT = ["model.args={}", "model.name=vit_tiny_patch16_224"]

# Overrides of small.yaml -> parts of the message.
OF_THE_CONFIG: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "unknown model": (["model.name=resnet81"], ("override 'model.name': model.name", "resnet81")),
    "a hub's prefix": (["model.args={}", "model.name=timm/resnet18.a1_in1k"], ("did you mean 'resnet18.a1_in1k'",)),
    "arguments of ours": ([*TIMM[1:]], ("model.args: expected nothing for resnet18",)),
    "depth": (["model.args.depth=100"], ("override 'model.args.depth': model.args.depth: expected 2, 3 or 6",)),
    "drop rate of ours": (["model.args={drop_rate: 1.5}"], ("model.args.drop_rate: expected a share from 0",)),
    "drop rate of timm's": (
        [*VIT, "model.timm={attn_drop_rate: 2}"], ("model.timm.attn_drop_rate: expected a share from 0",),
    ),
    "negative width": ([*VIT, "model.timm={embed_dim: -5}"], ("model.timm: vit_tiny_patch16_224 cannot be built",)),
    "no heads": ([*VIT, "model.timm={num_heads: 0}"], ("model.timm: vit_tiny_patch16_224 cannot be built",)),
    "no such layer": ([*TIMM, "model.timm={act_layer: foo}"], ("model.timm: resnet18 cannot be built",)),
    "too small": (
        ["model.args={}", "model.name=vgg11", "model.stem=resize", "model.input_size=8"],
        ("vgg11 with stem resize cannot take 8x8 px", "choose a larger input_size"),
    ),
    "one image at a time": (
        [*TIMM, "model.stem=resize", "model.input_size=32", "train.batch_size=1"],
        ("override 'train.batch_size': train.batch_size: batch norm of resnet18", "set it to 2 or more"),
    ),
    "freeze": (["model.freeze=[nothing]"], ("override 'model.freeze': model.freeze", "'nothing' names nothing")),
    "multipliers": (
        ["optim.multipliers={nothing: 2}"],
        ("override 'optim.multipliers': optim.multipliers", "'nothing' names nothing"),
    ),
    "files": (["competition.suite.files=20"], ("competition.suite.files: corrupt_test has 19",)),
    "swa in a budget": (["train.average=swa", "train.budget=1min"], ("train.average: swa averages the last",)),
    "project": (
        ["track.project=me/mine"], ("track.project: W&B refuses /", "track.entity=me track.project=mine"),
    ),
    "long project": ([f"track.project={'x' * 129}"], ("track.project: W&B takes 128 letters at most, found 129",)),
    "tag": (["track.tags=['']"], ("track.tags: W&B takes tags of 1 to 64 letters",)),
    "several": (
        ["optim.name=adamv", "data.source=array", "augment.policy=basc"],
        (
            "override 'data.source': data.source: unknown source 'array'", "did you mean 'arrays'",
            "override 'optim.name': optim.name", "did you mean 'adam'", "override 'augment.policy'", "'basic'",
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OF_THE_CONFIG)
def test_what_a_config_shows_is_refused_by_check_and_by_run_in_the_same_words(
    workplace: Path, comp: Comp, name: str
) -> None:
    overrides, parts = OF_THE_CONFIG[name]
    checked = comp("config", "check", "small.yaml", *overrides)
    assert_refused(checked, *parts)
    assert len(set(checked.err.splitlines())) == len(checked.err.splitlines())  # each mistake once
    assert comp("run", "small.yaml", *overrides).err == checked.err
    assert not Path("runs").exists()


def test_a_search_is_checked_too(workplace: Path, comp: Comp) -> None:
    space = "tune.space={optim.lr: {float: [0.001, 0.1]}}"
    assert comp("config", "check", "small.yaml", space).code == 0
    assert_refused(comp("config", "check", "small.yaml", space, "tune.sampler=foo"), "tune.sampler", "foo")
    wrong = "tune.space={optim.name: {choice: [adam, adamv]}}"
    assert_refused(comp("config", "check", "small.yaml", wrong), "adamv", "did you mean 'adam'")


OF_THE_DATA: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "too small": (
        ["model.args={}", "model.name=halonet26t"],
        ("halonet26t with stem stock cannot take 32x32 px images; use stem: resize", "the 256 px"),
    ),
    "one image at a time": ([*TIMM, "train.batch_size=1"], ("train.batch_size: batch norm of resnet18",)),
    "folds": (["data.validation=0.1", "data.folds=500"], ("500",)),
    "held out": (["data.validation=1000"], ("cannot hold out 1000 of 160 images",)),
    "sizes": (["train.sizes={1: 8}", "model.name=mlp", "model.args={}"], ("train.sizes: the network cannot take",)),
}  # fmt: skip


@pytest.mark.parametrize("name", OF_THE_DATA)
def test_what_the_data_show_is_refused_with_data_and_by_run_in_the_same_words(
    workplace: Path, comp: Comp, name: str
) -> None:
    overrides, parts = OF_THE_DATA[name]
    assert comp("config", "check", "small.yaml", *overrides).code == 0
    checked = comp("config", "check", "small.yaml", *overrides, "--data")
    assert_refused(checked, *parts)
    ran = comp("run", "small.yaml", *overrides)
    assert_refused(ran, *parts)
    assert not Path("runs").exists()


def test_check_with_data_tells_the_notes_that_a_run_tells(workplace: Path, comp: Comp) -> None:
    checked = comp("config", "check", "small.yaml", "--data")
    assert checked.code == 0, checked.err
    notes = [line for line in (checked.out + checked.err).splitlines() if "submission" in line]
    ran = comp("run", "small.yaml", "train.epochs=1", "competition.suite.files=1")
    assert notes
    assert all(line in ran.out + ran.err for line in notes if "rows" not in line)


def test_a_batch_of_odd_size_is_trained_in_pairs(workplace: Path, comp: Comp) -> None:
    write_arrays(Path("data"), train=21)
    result = comp(
        "train", "small.yaml", *TIMM, "train.batch_size=17", "train.micro_batch=2", "train.epochs=1",
        "augment.mixup=0", "competition.suite.source=none", "competition.ood_validation.severities=[]",
    )  # fmt: skip
    assert result.code == 0, result.err


OUTPUTS = {
    "is there": ("there.csv", "there.csv: already exists"),
    "no csv": ("sub.txt", "must end in .csv"),
    "below a file": ("small.yaml/sub.csv", "small.yaml is not a folder"),
    "a folder": ("folder.csv", "folder.csv: is a folder"),
    "not writable": ("closed/sub.csv", "closed may not be written"),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_that_cannot_be_written_is_refused_before_training(workplace: Path, comp: Comp, name: str) -> None:
    path, message = OUTPUTS[name]
    Path("there.csv").write_text("precious")
    Path("folder.csv").mkdir()
    Path("closed").mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
    if name == "not writable" and os.access("closed", os.W_OK):
        pytest.skip("this user may write everywhere")
    for more in ([], ["--rehearse"]):
        assert_refused(comp("run", "small.yaml", "-o", path, *more), message)
    assert not Path("runs").exists()
    assert Path("there.csv").read_text() == "precious"


def test_a_folder_is_no_output_even_with_force(workplace: Path, comp: Comp) -> None:
    Path("folder.csv").mkdir()
    assert_refused(comp("run", "small.yaml", "-o", "folder.csv", "--force"), "folder.csv: is a folder")
    assert_refused(comp("lr-find", "small.yaml", "-o", "folder.csv"), "expected a name that ends in .png")
    thawed(workplace)
    assert_refused(comp("report", PLAIN, "-o", "small.yaml/page.html"), "small.yaml is not a folder")
    assert_refused(comp("run", "small.yaml", "--runs", "small.yaml/runs"), "small.yaml is not a folder", "--runs")


CONTRADICTIONS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "resume and an override": (
        ["run", "--resume", "R", "train.epochs=20"],
        ("train.epochs=20 would change it", "comp run R/config.yaml model.pretrained=false model.from_run=R train."),
    ),
    "train, likewise": (["train", "--resume", "R", "train.epochs=20"], ("comp run R/config.yaml",)),
    "as and an override": (["run", "--as", "R", "seed=2"], ("comp run R/config.yaml seed=2",)),
    "resume and runs": (["run", "--resume", "R", "--runs", "x"], ("leave --runs out",)),
    "resume and a config": (["run", "small.yaml", "--resume", "R"], ("expected one of CONFIG, --resume, --as",)),
    "no config": (["run", "train.epochs=3"], ("expected one of CONFIG",)),
    "rehearse and resume": (["run", "--resume", "R", "--rehearse"], ("--rehearse", "leave --resume")),
    "nothing to submit": (
        ["run", "small.yaml", "competition.suite.source=none", "-o", "x.csv"], ("nothing is submitted",),
    ),
    "show and a config": (["tune", "small.yaml", "--show", "s"], ("--show trains nothing", "CONFIG")),
    "show and trials": (["tune", "--show", "s", "--trials", "3"], ("--trials would change nothing",)),
    "neighbours of no knn": (["probe", "R", "--k", "3"], ("--k", "linear_svm")),
    "folds of a soup": (["ensemble", "R", "R", "--method", "soup", "--folds", "3"], ("--folds", "soup")),
    "a variable in a path": (["run", "small.yaml", "--runs", "${NOWHERE}/x"], ("--runs: ${NOWHERE} is not set",)),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_options_that_contradict_each_other_are_refused_by_name(workplace: Path, comp: Comp, name: str) -> None:
    arguments, parts = CONTRADICTIONS[name]
    assert_refused(comp(*arguments), *parts)
    assert not Path("runs").exists()


def test_what_a_refused_resume_advises_works(workplace: Path, comp: Comp) -> None:
    few = ["competition.suite.source=none", "competition.ood_validation.severities=[]", "train.epochs=1"]
    assert comp("train", "small.yaml", *few).code == 0
    (first,) = runs.list_runs(Path("runs"))
    refused = comp("run", "--resume", first.path, "train.epochs=2")
    assert_refused(refused, "optimizer, schedule and averages start anew: comp run ")
    advised = refused.err.rpartition("comp ")[2].split()
    assert comp(*advised).code == 0
    second = max(runs.list_runs(Path("runs")), key=lambda run: run.path.stat().st_mtime)
    assert second.config().train.epochs == 2
    assert second.config().model.from_run == str(first.path)
    assert second.metrics().first_weights.startswith(str(first.path))


def test_a_rehearsal_rehearses_with_the_options_that_it_is_given(workplace: Path, comp: Comp) -> None:
    forbidden = "competition.rules.transductive=false"
    assert_refused(comp("run", "small.yaml", forbidden, "--adapt", "bn", "--rehearse"), "override 'predict.adapt'")
    assert_refused(comp("run", "small.yaml", "--views", "flp", "--rehearse"), "did you mean 'flip'")
    assert_refused(comp("run", "small.yaml", "--runs", "small.yaml/x", "--rehearse"), "small.yaml is not a folder")


def test_paths_of_options_begin_with_a_tilde_too(workplace: Path, comp: Comp, monkeypatch: pytest.MonkeyPatch) -> None:
    (workplace / "home").mkdir()
    monkeypatch.setenv("HOME", str(workplace / "home"))
    few = ["competition.suite.source=none", "competition.ood_validation.severities=[]", "train.epochs=1"]
    assert comp("train", "small.yaml", *few, "data.root=~/../data", "--runs", "~/mine").code == 0
    (run,) = runs.list_runs(workplace / "home/mine")
    assert run.config().data.root == f"{workplace}/home/../data"
    assert not Path("~").exists()


def test_without_a_home_folder_nobody_is_logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "NETRC", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")  # what pathlib says to a user without a name

    monkeypatch.setattr(Path, "home", homeless)
    assert not tracker.is_logged_in()


def test_one_training_image_is_refused_before_batch_norm(workplace: Path, comp: Comp) -> None:
    values = small_config(write_arrays(Path("data"), train=2, classes=2))
    values["data"] |= {"validation": 1, "stratify": False}
    write_config(Path("one.yaml"), values)
    config = configs.load("one.yaml", TIMM)
    with pytest.raises(ValueError, match="one training image"):
        build.ready_model(config, build.prepare(config))
