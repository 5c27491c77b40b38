"""Every coursework config trains end to end, on small images in the layout that it reads."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import pytest
import timm
from sklearn.metrics import precision_score

from benchmarks.results import page, running
from benchmarks.results.finding import CONFIGS, Runs
from benchmarks.results.rows import ROWS, Row
from comp import config as configs
from comp.models import weights
from comp.results import prediction_files, runs
from comp.runtime.errors import ConfigError, RunError
from tests.support.commands import REPOSITORY, Result
from tests.support.layouts import write_challenge_test, write_cifar10, write_cifar100, write_idx
from tests.support.parameters import slow_except
from tests.support.photographs import write_folders

Comp = Callable[..., Result]
FILES = sorted(path.stem for path in (REPOSITORY / CONFIGS).glob("*.yaml") if path.stem != "base")
# Overrides for a small training; everything else is the config's.
SMALL = ("train.epochs=1", "train.batch_size=16", "train.device=cpu", "train.threads=1", "train.precision=fp32",
         "train.channels_last=false", "train.compile=false", "data.workers=0", "data.download=false")  # fmt: skip
WRITERS: dict[str, Callable[[Path], object]] = {
    "mnist": partial(write_idx, count=60),
    "cifar10": partial(write_cifar10, layout="py", count=12),
    "cifar100": partial(write_cifar100, layout="python", count=30),
}


@cache
def random_weights(name: str) -> bytes:
    """Return random weights of a timm model as the hub's file has them."""
    return weights.to_bytes(timm.create_model(name, num_classes=1000).state_dict(), {"model": name})


def write_data(root: Path, config: configs.Config) -> tuple[str, ...]:
    """Write the data that a config reads, as small as possible; return the overrides that this needs."""
    if config.data.source == "image_folder":
        write_folders(root, train=8, val=2)
        return ("data.image_size=64",)
    WRITERS[config.data.source](root)
    more = ["data.validation=10", "data.stratify=false"]
    if config.model.input_size is not None:
        more.append("model.input_size=64")
    if config.competition.suite.source == "distortion_files":
        write_challenge_test(root, images_per_block=1)
        more += ["competition.suite.images_per_block=1", "competition.ood_validation={per_block: 1, severities: [3]}"]
    return tuple(more)


def write_weights(root: Path, name: str) -> None:
    (root / "weights").mkdir()
    (root / "weights" / f"{name}.safetensors").write_bytes(random_weights(name))


# One of each kind of network and data.
QUICK = (
    "best_mnist_residual_mlp",
    "best_cifar10_convnet",
    "cifar10_residual_cnn_2",
    "cifar10_lite0_frozen_4",
    "cifar100_finetuned",
    "hymenoptera_resnet18_frozen_bn",
    "imagenette_cnn_all",
    "challenge_part3",
)


@pytest.mark.parametrize("name", slow_except(FILES, *QUICK))
def test_a_config_trains_on_its_layout(name: str, tmp_path: Path, comp: Comp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = REPOSITORY / CONFIGS / f"{name}.yaml"
    config = configs.load(path)
    more = write_data(tmp_path / "data", config)
    if config.model.pretrained is True:
        write_weights(tmp_path / "data", config.model.name)
    result = comp("run", path, *SMALL, "data.root=data", *more, "--json")
    assert result.code == 0, result.err
    (run,) = runs.list_runs(Path("runs"))
    assert run.metrics().epochs == 1
    assert run.config().model.freeze == config.model.freeze
    if config.model.pretrained is True:
        assert f"{config.model.name}.safetensors (sha256 " in run.metrics().first_weights
    submissions = list(Path("submissions").glob("*.csv")) if Path("submissions").is_dir() else []
    assert len(submissions) == (config.competition.suite.source != "none")


def test_every_row_has_its_configs_and_every_config_its_row() -> None:
    named = {row.config for row in ROWS} | {row.best for row in ROWS} - {""}
    assert named == set(FILES)


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with small MNIST and CIFAR-10 and a copy of the coursework's configs."""
    monkeypatch.chdir(tmp_path)
    WRITERS["mnist"](tmp_path / "data")
    WRITERS["cifar10"](tmp_path / "data")
    CONFIGS.mkdir(parents=True)
    for name in ("base", *FILES):
        path = CONFIGS / f"{name}.yaml"
        text = (REPOSITORY / path).read_text()
        path.write_text(text.replace("extends: ../cifar100-ood/transfer.yaml", "extends: base.yaml"))
    return tmp_path


def row_of(config: str) -> Row:
    return next(row for row in ROWS if row.config == config)


def weighted_precision() -> float:
    """Return the mean over the first two runs, by scikit-learn."""
    pair = [prediction_files.load(run.predictions_path("test")) for run in runs.list_runs(Path("runs"))[:2]]
    return sum(precision_score(p.targets, p.top1, average="weighted", zero_division=0) for p in pair) / 2


def test_the_page_shows_the_runs_results(workshop: Path, comp: Comp) -> None:
    path, row = CONFIGS / "mnist_mlp.yaml", row_of("mnist_mlp")
    path.write_text(path.read_text().replace("validation: 0.1", "validation: 0.5").replace("epochs: 50", "epochs: 2"))
    for seed in (0, 1):
        assert comp("run", path, "train.threads=1", f"seed={seed}").code == 0
    assert comp("run", path, "optim.lr=0.5").code == 0  # another experiment
    assert comp("run", path, "train.epochs=3").code == 0  # another one too: its schedule is longer
    page.write(Path("runs"))
    outcome = Runs(Path("runs")).outcome(row)
    assert outcome is not None
    assert outcome.seeds == (0, 1)
    scores = [run.metrics().test.accuracy for run in runs.list_runs(Path("runs"))]
    assert list(outcome.accuracies) == scores[:2]
    mean = f"{sum(scores[:2]) / 2:.2%}"
    line = next(line for line in page.PAGE.read_text().splitlines() if line.startswith(f"| {row.system} |"))
    assert mean in line
    assert "97.39%" in line
    assert f"weighted precision {weighted_precision():.2%} | " in line
    assert f"# Ours: test {mean}, mean of seeds 0, 1, 2 epochs in" in path.read_text()
    assert "not run yet" in (CONFIGS / "mnist_residual_mlp.yaml").read_text()


def test_a_run_of_fewer_epochs_is_partial_and_not_compared(workshop: Path, comp: Comp) -> None:
    path, row = CONFIGS / "mnist_mlp.yaml", row_of("mnist_mlp")
    path.write_text(path.read_text().replace("validation: 0.1", "validation: 0.5"))
    assert comp("run", path, "train.epochs=1").code == 0
    page.write(Path("runs"))
    line = next(line for line in page.PAGE.read_text().splitlines() if line.startswith(f"| {row.system} |"))
    assert "partial" in line
    collected = Runs(Path("runs"))
    assert not any(collected.is_whole(run, row) for run in runs.list_runs(Path("runs")))  # so it is run again
    assert not any(word in line for word in ("above", "below", "within noise"))


@pytest.mark.slow
def test_missing_experiments_run_once_and_in_the_order_of_their_dependencies(workshop: Path) -> None:
    path = CONFIGS / "cifar10_residual_cnn_3.yaml"  # the others extend it
    small = "train: {epochs: 1, batch_size: 8, precision: fp32, channels_last: false, compile: false}"
    text = path.read_text().replace("validation: 0.1", "validation: 10, stratify: false, download: false")
    path.write_text(text[: text.index("train:")] + small)
    halves = ("cifar10_first_five", "cifar10_last_five")
    assert running.run_all(Path("runs"), 2, halves) == 0
    made = runs.list_runs(Path("runs"))
    assert len(made) == 5  # one of the first five classes; of the last: from scratch, fine-tuned, two probes
    collected = Runs(Path("runs"))
    outcomes = [collected.outcome(row) for row in ROWS if row.config in halves]
    assert {path for outcome in outcomes if outcome for path in outcome.paths} == {run.path for run in made}
    (tuned,) = [run for run in made if run.config().model.from_run]
    assert Path(tuned.config().model.from_run).name.endswith("cifar10_first_five")
    assert running.run_all(Path("runs"), 2, halves) == 0
    assert runs.list_runs(Path("runs")) == made


def test_without_runs_the_written_page_stays(workshop: Path) -> None:
    page.PAGE.parent.mkdir()
    page.PAGE.write_text("earlier")
    headers = (CONFIGS / "mnist_mlp.yaml").read_text()
    with pytest.raises(RunError, match="runs"):
        page.write(Path("runs"))
    assert page.PAGE.read_text() == "earlier"
    assert (CONFIGS / "mnist_mlp.yaml").read_text() == headers


@pytest.mark.slow
def test_a_stopped_command_resumes_its_run(workshop: Path) -> None:
    path = CONFIGS / "mnist_mlp.yaml"
    text = path.read_text().replace("validation: 0.1", "validation: 10, stratify: false")
    small = "train: {epochs: 150, batch_size: 8, precision: fp32, channels_last: false, compile: false}"
    path.write_text(text[: text.index("train:")] + small)
    best = CONFIGS / "best_mnist_mlp.yaml"
    best.write_text(best.read_text()[: best.read_text().index("augment:")])  # the same training
    command = [sys.executable, "-m", "benchmarks.results", "run", "--jobs", "1", "--only", "best_mnist_mlp"]
    path_of = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, cwd=workshop, env=path_of, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not list(Path("runs").glob("*/*/history.csv")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    (run,) = runs.list_runs(Path("runs"))
    assert not run.is_complete()
    assert (run.path / "state.pt").is_file()
    done = subprocess.run(command, cwd=workshop, env=path_of, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert runs.list_runs(Path("runs")) == [run]
    assert run.metrics().epochs == 150


def test_an_unknown_experiment_suggests_the_nearest(workshop: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'mnist_mlp'"):
        running.run_all(Path("runs"), 1, ["mnist_mpl"])
