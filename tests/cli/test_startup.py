"""What a command loads: a library is imported where it is used, and not by everybody."""

import json
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from timm.models import group_parameters

from comp import config as configs
from comp.config import ModelConfig
from comp.data import splitting
from comp.data.sources.published import digits
from comp.models import surgery, zoo
from comp.models.coursework.networks import NETWORKS
from tests.support.commands import REPOSITORY
from tests.support.parameters import slow_except

HEAVY = {"torchvision", "timm", "sklearn", "scipy", "matplotlib", "albumentations", "cv2", "pandas", "wandb", "sympy"}

COMMAND = """
import json, sys
from comp.cli import app
try:
    app.main(sys.argv[1:])
finally:
    print(json.dumps(sorted(sys.modules)))
"""

# The first step ends the process: what it has loaded by then is told.
FIRST_STEP = """
import json, sys
from comp.cli import app
from comp.runtime import signals
def stop():
    if stepped():
        print(json.dumps(sorted(sys.modules)), flush=True)
        import os
        os._exit(0)
def stepped():
    frame = sys._getframe()
    while frame:
        if frame.f_code.co_name == "_train_epoch":
            return True
        frame = frame.f_back
signals.raise_if_interrupted = stop
app.main(sys.argv[1:])
"""


def loaded(script: str, *arguments: object, cwd: Path) -> set[str]:
    """Return the modules that a command has loaded in a process of its own."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    ended = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    return set(json.loads(ended.stdout.splitlines()[-1]))


@pytest.mark.parametrize("signal_is", ["default", "ignore"])  # as on a terminal, and by a shell's `&`
def test_ctrl_c_while_comp_is_imported_says_nothing(tmp_path: Path, signal_is: str) -> None:
    (tmp_path / "typer.py").write_text(
        "import time; print('importing', flush=True); time.sleep(2); raise SystemExit(7)"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}
    command = ["env", f"--{signal_is}-signal=INT", sys.executable, "-m", "comp", "--version"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == (7 if signal_is == "ignore" else -signal.SIGINT)


def test_the_installed_command_starts_there_too() -> None:
    scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"comp": "comp.__main__:main"}


def test_checking_a_config_of_ours_loads_torch_alone() -> None:
    modules = loaded(COMMAND, "config", "check", "configs/quickstart.yaml", cwd=REPOSITORY)
    assert "torch" in modules
    assert not modules & HEAVY
    assert "torch._dynamo" not in modules


@pytest.mark.parametrize(
    "command", [("diff", "a.csv", "b.csv"), ("check", "a.csv", "--format", "b.csv"), ("leaderboard",)]
)
def test_what_looks_at_files_never_loads_torch(tmp_path: Path, command: tuple[str, ...]) -> None:
    for name, label in (("a.csv", "cat"), ("b.csv", "dog")):
        rows = "".join(f"{number},{label if number % 3 else 'cow'}\n" for number in range(100))
        (tmp_path / name).write_text(f"id,label\n{rows}")
    modules = loaded(COMMAND, *command, cwd=tmp_path)
    assert not modules & {"torch", "timm", "sklearn", "scipy", "matplotlib"}


@pytest.mark.parametrize(
    "optimizer", slow_except(["adamw", "adam", "sgd", "muon", "sgd optim.lookahead.k=2"], "sgd", "muon")
)
def test_the_first_step_of_a_network_of_ours_loads_torch_alone(workplace: Path, optimizer: str) -> None:
    more = ["augment.mixup=0", *f"optim.name={optimizer}".split(), "train.precision=auto", "train.compile=auto"]
    modules = loaded(FIRST_STEP, "train", "small.yaml", *more, cwd=workplace)
    assert "torch" in modules
    assert not modules & HEAVY
    assert "torch._dynamo" not in modules


@given(
    labels=st.lists(st.integers(0, 7), min_size=4, max_size=200), share=st.floats(0.01, 0.99),
    seed=st.integers(0, 1000), counted=st.booleans(),
)  # fmt: skip
def test_images_are_held_out_as_scikit_learn_holds_them_out(
    labels: list[int], share: float, seed: int, counted: bool
) -> None:
    """Runs of before were divided by it, and must go on with the same images."""
    classes, rows = np.array(labels), np.arange(len(labels))
    size = max(1, int(share * len(labels))) if counted else share
    by_class, plainly = splitting.STRATIFIERS["classes"], splitting.STRATIFIERS["none"]
    try:
        expected = train_test_split(rows, test_size=size, random_state=seed, stratify=classes)[1]
    except ValueError:  # classes too rare for it: `test_splits.py`
        pass
    else:
        assert by_class.hold(classes, size, seed, None).tolist() == sorted(expected)
    if np.ceil(share * len(labels)) < len(labels):
        expected = train_test_split(rows, test_size=size, random_state=seed)[1]
        assert plainly.hold(classes, size, seed, None).tolist() == sorted(expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_of_our_networks_are_numbered_as_timm_numbers_them(name: str) -> None:
    side = 64 if name == "imagenette_cnn" else 32
    model = zoo.build_on_meta(ModelConfig(name=name), classes=5, image_shape=(3, side, side))
    expected = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    assert surgery.layer_numbers(model) == expected


def test_digits_are_those_of_scikit_learn() -> None:
    source, shipped = digits(configs.Config().data, lambda *args: None), load_digits()
    assert source.train.labels is not None
    assert source.train.labels.tolist() == shipped.target.tolist()
    corners = np.round(shipped.images[:, 0, 0] * (255 / 16))
    assert np.asarray(source.train.images)[:, 0, 0, 0].tolist() == corners.tolist()
