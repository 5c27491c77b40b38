"""Starting from a trained run: its weights under a new head, its layers frozen, its features probed."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from comp import config as configs
from comp.results import prediction_files, runs
from comp.runtime.errors import Interrupted
from comp.workflows import train
from tests.support.commands import Result
from tests.support.configs import small_config, write_arrays, write_config

Comp = Callable[..., Result]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run trained on four classes; `other.yaml` has data of six."""
    folder = tmp_path_factory.mktemp("source")
    small = write_config(folder / "small.yaml", small_config(write_arrays(folder / "data")))
    values = small_config(write_arrays(folder / "other", train=240, test=60, classes=6))
    values["competition"]["name"] = "other"
    write_config(folder / "other.yaml", values)
    train.train(configs.load(small), runs_root=folder / "runs")
    return folder


@pytest.fixture
def source(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> runs.Run:
    """A copy of that run in a working directory."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    for name in ("small.yaml", "other.yaml"):
        shutil.copy(trained / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    (run,) = runs.list_runs(Path("runs"))
    return run


def tensors(run: runs.Run, name: str) -> dict[str, np.ndarray]:
    """Return a run's weights."""
    return safetensors.numpy.load((run.path / name).read_bytes())


def test_weights_of_a_run_go_under_a_new_head(source: runs.Run, comp: Comp) -> None:
    result = comp(
        "train", "other.yaml", f"model.from_run={source.path}", "model.freeze=[all_but_head]", "optim.lr=1e-2"
    )
    assert result.code == 0, result.err
    (run,) = runs.list_runs(Path("runs/other"))
    before, after = tensors(source, "best.safetensors"), tensors(run, "final.safetensors")
    moved = [name for name in before if not np.array_equal(before[name], after[name])]
    assert moved == [name for name in before if before[name].shape != after[name].shape]
    assert len(moved) == 2  # weight and bias of the head: 4 classes before, 6 now
    assert source.path.name in run.metrics().first_weights


def test_a_resume_does_without_the_first_weights(source: runs.Run) -> None:
    """A notebook that goes on from an attached folder need not have the pretrained file again."""
    config = configs.load("other.yaml", [f"model.from_run={source.path}"])

    def stop(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        if unit == "steps":
            raise Interrupted(signal.SIGTERM)

    with pytest.raises(Interrupted):
        train.train(config, progress=stop)
    (stopped,) = runs.list_runs(Path("runs/other"))
    whole = train.train(config, runs_root=Path("whole"))
    shutil.rmtree(source.path)
    resumed = train.resume(stopped)
    assert source.path.name in resumed.metrics().first_weights
    before, after = tensors(whole, "final.safetensors"), tensors(resumed, "final.safetensors")
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_what_is_trained_is_shown_before_training(source: runs.Run, comp: Comp) -> None:
    result = comp("train", "other.yaml", f"model.from_run={source.path}", "model.freeze=[all_but_head]")
    assert "batch norm statistics" in result.err
    total, trained = (int(cell.replace(",", "")) for cell in result.err.split("│ all")[1].split("│")[1:3])
    assert 0 < trained < total


def test_weights_of_another_competition_count_as_external(source: runs.Run, comp: Comp) -> None:
    rules = "competition.rules.external_weights=false"
    result = comp("train", "other.yaml", f"model.from_run={source.path}", rules)
    assert result.code == 2
    assert "external_weights" in result.err
    assert comp("train", "small.yaml", f"model.from_run={source.path}", rules, "train.epochs=1").code == 0


def test_two_origins_of_weights_are_refused(source: runs.Run, comp: Comp) -> None:
    result = comp("train", "other.yaml", f"model.from_run={source.path}", "model.pretrained=true")
    assert result.code == 2
    assert "from_run and pretrained" in result.err


@pytest.mark.parametrize("classifier", ["linear_svm", "knn", "logistic"])
@pytest.mark.parametrize("config", [None, "other.yaml"])
def test_a_probe_is_scored_and_stored_like_a_run(
    source: runs.Run, comp: Comp, classifier: str, config: str | None
) -> None:
    more = ["--config", config] if config else []
    result = comp("probe", source.path, "--classifier", classifier, "--json", *more)
    assert result.code == 0, result.err
    scores = json.loads(result.out)
    stored = prediction_files.load(Path("runs") / scores["run"] / "predictions/test.npz")
    assert stored.targets is not None
    assert (stored.top1 == stored.targets).mean() == pytest.approx(scores["test"]["scores"]["accuracy"]["value"])
    assert stored.made_by["run"] == source.name
    assert scores["test"]["scores"]["accuracy"]["value"] > 0.5  # colours are easy
    assert scores["model"] in comp("leaderboard").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--classifier", "svm"], "unknown classifier 'svm'"),
        (["--classifier", "knn", "--k", "0"], "--k: expected at least 1, found 0"),
        (["--classifier", "knn", "--k", "100000"], "--k: expected at most 128"),
    ],
)
def test_a_bad_probe_is_refused(source: runs.Run, comp: Comp, arguments: list[str], message: str) -> None:
    result = comp("probe", source.path, *arguments)
    assert result.code == 2
    assert message in result.err
    assert len(runs.list_runs(Path("runs"))) == 1


@pytest.mark.slow
def test_layer_decay_and_multipliers_hold_layers_back(workplace: Path, comp: Comp) -> None:
    slow = ["optim.layer_decay=0.3", "optim.name=sgd", "optim.lr=1e-2", "model.name=resnet18", "model.stem=cifar"]
    plain = ["model.args={}", "train.epochs=1", "train.precision=fp32", "competition.ood_validation.severities=[]"]
    for name, more in (("whole", []), ("decayed", slow[:1]), ("fixed", ["optim.multipliers={'layer*': 0}"])):
        assert comp("train", "small.yaml", *slow[1:], *plain, *more, "--runs", name).code == 0
    weights = {
        name: tensors(runs.list_runs(Path(name))[0], "final.safetensors") for name in ("whole", "decayed", "fixed")
    }

    def moved(name: str, tensor: str) -> float:
        """Return how far a tensor is from that of the run whose layers stood still."""
        return float(np.abs(weights[name][tensor] - weights["fixed"][tensor]).max())

    assert moved("whole", "inner.layer1.0.conv1.weight") > 100 * moved("decayed", "inner.layer1.0.conv1.weight") > 0
