"""Shipped configs: found by name from any folder, and copied."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path
from shutil import copy, copytree, ignore_patterns

import pytest

from comp import config as configs
from comp.config import shipped
from tests.support.commands import REPOSITORY, Result, assert_refused, comp_process

Comp = Callable[..., Result]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["quickstart", "quickstart.yaml", "cifar10/fastnet", "coursework/imagenette_cnn_bn"])
def test_a_shipped_config_is_found_by_its_name_from_any_folder(name: str, comp: Comp) -> None:
    shown = comp("config", "show", name)
    assert shown.code == 0, shown.err
    path = REPOSITORY / "configs" / f"{name.removesuffix('.yaml')}.yaml"
    assert shown.out == configs.dump(configs.load(path))
    assert f"{name} is shipped with comp, {path}" in shown.err


@pytest.mark.parametrize("local", ["quickstart", "quickstart.yaml"])
def test_a_local_file_of_the_name_wins(local: str, comp: Comp) -> None:
    Path(local).write_text("seed: 77\n")
    shown = comp("config", "show", "quickstart")
    assert "seed: 77" in shown.out
    assert not shown.err


def test_a_nearly_right_name_is_suggested(comp: Comp) -> None:
    assert_refused(comp("config", "show", "cifar10/fastnett"), "no such config file", "cifar10/fastnet")


def test_an_example_is_copied_with_what_it_extends(comp: Comp) -> None:
    result = comp("init", "--example", "coursework/imagenette_cnn_bn", "-o", "mine", "--json")
    assert result.code == 0, result.err
    names = ("base", "imagenette_cnn", "imagenette_cnn_bn")
    assert sorted(json.loads(result.out)["written"]) == [f"mine/coursework/{name}.yaml" for name in names]
    copied = configs.load("mine/coursework/imagenette_cnn_bn.yaml")
    assert copied == configs.load(REPOSITORY / "configs" / "coursework" / "imagenette_cnn_bn.yaml")


@pytest.mark.parametrize("family", sorted({name.partition("/")[0] for name in shipped.names()}))
def test_every_config_of_a_copied_family_loads(family: str, comp: Comp) -> None:
    assert comp("init", "--example", family, "-o", "mine").code == 0
    copied = sorted(path.relative_to("mine").with_suffix("").as_posix() for path in Path("mine").rglob("*.yaml"))
    assert set(copied) >= {name for name in shipped.names() if name == family or name.startswith(f"{family}/")}
    for name in copied:
        configs.load(f"mine/{name}.yaml")


def test_a_changed_copy_is_kept(comp: Comp) -> None:
    assert comp("init", "--example", "cifar10", "-o", "mine").code == 0
    assert comp("init", "--example", "cifar10", "-o", "mine").code == 0
    changed = Path("mine/cifar10/robust.yaml")
    changed.write_text("seed: 1\n")
    Path("mine/cifar10/fastnet.yaml").unlink()
    assert_refused(comp("init", "--example", "cifar10", "-o", "mine"), "robust.yaml", "--force")
    assert not Path("mine/cifar10/fastnet.yaml").exists()
    assert comp("init", "--example", "cifar10", "-o", "mine", "--force").code == 0
    assert changed.read_text() != "seed: 1\n"


def test_what_cannot_be_copied_is_refused_with_one_message(comp: Comp) -> None:
    assert_refused(comp("init", "--example", "cifar11"), "cifar10", "quickstart", "coursework")
    assert_refused(comp("init", "--example", "../secrets"), "quickstart")
    assert_refused(comp("init", "d", "--example", "quickstart"), "--example")
    assert_refused(comp("init", "--example", "quickstart", "-o", "my.yaml"), "-o my.yaml: expected a folder")
    assert_refused(comp("init"), "--example", "DIR")
    assert not list(Path().iterdir())


@pytest.mark.slow
def test_a_run_records_the_shipped_file(elsewhere: Path) -> None:
    done = comp_process("train", "quickstart", "train.epochs=1", "train.device=cpu", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    (provenance,) = Path("runs").glob("*/*-quickstart/provenance.json")
    assert str(REPOSITORY / "configs" / "quickstart.yaml") in json.loads(provenance.read_text())["argv"]


@pytest.mark.slow
@pytest.mark.parametrize("editable", [False, True], ids=["wheel", "editable"])
def test_an_installed_comp_brings_its_configs(editable: bool, elsewhere: Path) -> None:
    source, environment, used = elsewhere / "source", elsewhere / "environment", elsewhere / "used"
    source.mkdir()
    used.mkdir()
    for name in ("comp", "configs"):
        copytree(REPOSITORY / name, source / name, ignore=ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        copy(REPOSITORY / name, source)
    venv.create(environment, symlinks=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))  # torch and the build's tools
    python = environment / "bin" / "python"
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    install += ["--no-build-isolation", *["-e"] * editable, source]
    done = subprocess.run(install, capture_output=True, text=True, env=plain, check=False)
    assert done.returncode == 0, done.stderr
    root = source / "configs" if editable else packages / "comp_configs"
    for words in (["config", "check", "cifar10/fastnet"], ["init", "--example", "coursework", "-o", "mine"]):
        done = subprocess.run(
            [environment / "bin" / "comp", *words], cwd=used, capture_output=True, text=True, env=plain, check=False
        )
        assert done.returncode == 0, done.stderr
        assert str(root) in done.stdout or "mine/coursework/base.yaml" in done.stdout
    originals = [path.name for path in (REPOSITORY / "configs" / "coursework").glob("*.yaml")]
    assert sorted(path.name for path in (used / "mine" / "coursework").iterdir()) == sorted(originals)
