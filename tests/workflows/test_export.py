"""`comp export`: what leaves a run answers as the run does, without comp; what cannot leave is refused."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from torch import Tensor, nn

import comp as api
from comp.config.yaml_io import merge
from comp.models import int8, portable
from comp.results import files
from comp.runtime.errors import ModelError
from comp.workflows import model_card
from tests.support.commands import assert_refused
from tests.support.configs import QUICK, small_config, write_config
from tests.support.patients import patients_config, write_patients
from tests.support.plugins import forget
from tests.support.plugins import fresh as fresh
from tests.support.runs import Comp, made, members

OUTPUT = Path("exported")


def exported(comp: Comp, *arguments: object) -> dict[str, Any]:
    """Run `comp export` and return model.json."""
    result = comp("export", *arguments, "-o", OUTPUT, "--json")
    assert result.code == 0, result.err
    card: dict[str, Any] = json.loads((OUTPUT / "model.json").read_text())
    assert json.loads(result.out) == card
    assert {path.name for path in OUTPUT.iterdir()} == {card["file"], "model.json", "README.md"}
    return card


def pixels() -> Any:
    """Return the test's images [N, H, W, C]."""
    root = Path(yaml.safe_load(Path("small.yaml").read_text())["data"]["root"])
    return np.load(root / "test_images.npy")


def probabilities(logits: Any) -> Any:
    return torch.from_numpy(np.asarray(logits, np.float32)).softmax(1).numpy()


def test_an_ensemble_is_one_onnx_network_that_answers_as_comp_predict(three_runs: Path, comp: Comp) -> None:
    run, _ = made(comp, *members(), "--method", "weighted")
    card = exported(comp, run.path)
    assert card["check"]["agreement"] == card["check"]["agreement_predict"] == 1
    assert card["check"]["exported"] == card["check"]["predict"]
    images = pixels()
    session = onnxruntime.InferenceSession(OUTPUT / card["file"])
    (outputs,) = session.run(None, {"images": images.transpose(0, 3, 1, 2)})
    assert np.allclose(probabilities(outputs), api.predict(run, images=images).probabilities(), atol=0.005)
    page = (OUTPUT / "README.md").read_text()
    assert "opset 18" in page
    assert "[B, 3, 32, 32], RGB, uint8" in page
    named = model_card.page_bytes(
        {**card, "classes": ["a|b", "new\nline", "<b>", "\x1b[31m", "``` [x](http://y)"]}
    ).decode()
    (row,) = [line for line in named.splitlines() if line.startswith("| classes")]
    assert row == r"| classes, in order | 5: a\|b, new\\nline, &lt;b&gt;, \\x1b\[31m, \`\`\` \[x\](http://y) |"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mean", "geometric", "greedy", "stack"])
def test_every_method_that_needs_one_image_at_a_time_is_exported(three_runs: Path, comp: Comp, method: str) -> None:
    inner, _ = made(comp, *members()[:2], "--method", method)
    outer, _ = made(comp, inner.path, members()[2], "--name", "outer")
    card = exported(comp, outer.path, "--format", "torch", "--input", "float")
    assert card["check"]["agreement_predict"] == 1


def test_an_ensemble_by_rank_and_weights_of_several_networks_are_refused(three_runs: Path, comp: Comp) -> None:
    run, _ = made(comp, *members(), "--method", "rank")
    assert_refused(comp("export", run.path, "-o", OUTPUT), "rank", "sees one batch", "--method mean")
    other, _ = made(comp, *members()[:2], "--name", "mean")
    assert_refused(comp("export", other.path, "--format", "timm", "-o", OUTPUT), "several networks", "onnx or torch")
    assert not OUTPUT.exists()


@pytest.mark.parametrize("option", ["adapt=bn", "prior=uniform", "pool=blocks"])
def test_a_run_that_needs_its_whole_test_is_refused_unless_plain(three_runs: Path, comp: Comp, option: str) -> None:
    path, (key, value) = members()[0] / "config.yaml", option.split("=")
    path.write_text(yaml.safe_dump(merge(yaml.safe_load(path.read_text()), {"predict": {key: value}})))
    refused = comp("export", members()[0], "-o", OUTPUT)
    assert_refused(refused, f"predict.{option}", "all images of a test", "--plain")


def test_what_cannot_be_is_refused_before_any_work(
    three_runs: Path, comp: Comp, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = members()[0]
    assert_refused(comp("export", run), "-o DIR")
    assert comp("export", run, "-o", OUTPUT, "--format", "onix").code == 2
    assert_refused(comp("export", run, "-o", OUTPUT, "--format", "torch", "--quantize", "int8"), "needs --format onnx")
    assert_refused(comp("export", run, "-o", OUTPUT, "--format", "timm", "--input", "float"), "weights alone")
    assert_refused(comp("export", run, "-o", OUTPUT, "--format", "timm"), "simple_cnn", "onnx, torch or safetensors")
    assert_refused(comp("export", run, "-o", "small.yaml"), "exists already")
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as if it were not installed
    assert_refused(comp("export", run, "-o", OUTPUT), "onnxscript is not installed", "pip install 'comp[onnx]'")
    assert not OUTPUT.exists()


class Bessel(nn.Module):
    """A network with an operation that ONNX lacks."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.special.bessel_j0(images.float()).flatten(1)


class Branch(nn.Module):
    """A network whose operations depend on the images."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).float() * (1 if images.sum() > 0 else 2)


def test_the_operation_that_stops_an_export_is_named() -> None:
    with pytest.raises(ModelError, match=r"torch.export: the operation aten.item\S* stops it"):
        portable.to_program(Branch(), (3, 4, 4), "uint8")
    program = portable.to_program(Bessel(), (3, 4, 4), "uint8")
    with pytest.raises(ModelError, match=r"bessel_j0 stops it; --format torch may work"):
        portable.onnx_bytes(program)


def test_int8_is_refused_where_every_layer_would_stay_float(tmp_path: Path) -> None:
    network = portable.plain_copy(nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 2)))
    (tmp_path / "float.onnx").write_bytes(portable.onnx_bytes(portable.to_program(network, (3, 4, 4), "float")))
    images = np.zeros((8, 3, 4, 4), np.float32)
    with pytest.raises(ModelError, match=r"2 layers .* nothing to quantize; leave --quantize out"):
        int8.quantize(tmp_path / "float.onnx", images, lambda one, other: 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("images", [1, 2])
def test_a_run_with_hardly_any_validation_is_exported(workplace: Path, comp: Comp, images: int) -> None:
    assert (
        comp("train", "small.yaml", f"data.validation={images}", "competition.ood_validation.severities=[]").code == 0
    )
    (run,) = Path("runs/small").iterdir()
    assert exported(comp, run, "--format", "torch")["check"]["images"] == images


@pytest.mark.slow
def test_scores_of_groups_are_not_called_scores_of_images(tmp_path: Path, comp: Comp) -> None:
    write_patients(tmp_path / "patients")
    config = write_config(tmp_path / "patients.yaml", patients_config(tmp_path / "patients"))
    assert comp("train", config, "--runs", tmp_path / "runs").code == 0
    (run,) = (tmp_path / "runs/patients").iterdir()
    assert comp("export", run, "--format", "safetensors", "-o", tmp_path / "made").code == 0
    assert "| split | groups | metric | value |" in (tmp_path / "made/README.md").read_text()


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def fill(path: Path, problem: Exception | None) -> None:
        with files.new_folder(path) as folder:
            (folder / "half").write_text("x")
            if problem:
                raise problem

    with pytest.raises(KeyError):
        fill(tmp_path / "new", KeyError())
    assert not list(tmp_path.iterdir())
    fill(tmp_path / "new", None)
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "half"]


PLUGIN = """
import torch
from torch.nn import functional as F
from comp.models.coursework.networks import NETWORKS as OURS

def restless(shape, classes):
    network = OURS["simple_cnn"](shape, classes, depth=2)
    plain = network.forward
    network.forward = lambda images: F.dropout(plain(images), 0.5, training=True)
    return network

NETWORKS = {"restless": restless}
"""


@pytest.mark.slow
def test_an_export_that_answers_otherwise_is_refused_and_leaves_nothing(workplace: Path, comp: Comp) -> None:
    Path("restless.py").write_text(PLUGIN)
    values = merge(small_config(Path("data")), {"plugins": ["restless.py"], "model": {"name": "restless"}})
    values["model"]["args"] = {}
    assert comp("train", write_config(Path("restless.yaml"), values), *QUICK).code == 0
    (run,) = Path("runs/small").iterdir()
    forget()
    assert_refused(comp("export", run, "-o", OUTPUT), "--allow-plugins")
    refused = comp("export", run, "-o", OUTPUT, "--allow-plugins", "--format", "torch")
    assert_refused(refused, "computes other outputs", "nothing is written")
    assert not [path for path in Path().iterdir() if "exported" in path.name]


NETWORKS = {
    "fastnet": ({"name": "fastnet", "args": {"size": "S"}}, ("onnx", "torch", "safetensors")),
    "resnet18": ({"name": "resnet18", "stem": "cifar"}, ("onnx", "torch", "timm", "safetensors")),
    "lite0": (
        {"name": "tf_efficientnet_lite0", "stem": "resize", "input_size": 48, "normalize": "per_image"},
        ("onnx", "timm"),
    ),
    "vit": ({"name": "vit_tiny_patch16_224", "stem": "cifar", "timm": {"depth": 3}}, ("onnx", "torch", "timm")),
}


@pytest.mark.slow
def test_images_that_other_folds_trained_on_give_no_score(workplace: Path, comp: Comp) -> None:
    assert comp("cv", "small.yaml", *QUICK, "data.folds=2").code == 0
    (group,) = Path("runs/small").glob("cv-*/*ensemble*")
    card = exported(comp, group)
    assert card["check"]["trained_on"] == 1  # of two networks: the other holds these images out
    assert "too high for a score: 1 network in it trained on these images" in (OUTPUT / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_leave_in_every_format(workplace: Path, comp: Comp, name: str) -> None:
    model, formats = NETWORKS[name]
    values = {**small_config(Path("data")), "model": model}
    assert comp("train", write_config(Path("other.yaml"), values), *QUICK).code == 0
    (run,) = Path("runs/small").iterdir()
    for number, each in enumerate(formats):
        result = comp("export", run, "--format", each, "-o", f"made/{number}", "--json")
        assert result.code == 0, result.err
        check = json.loads(result.out)["check"]
        assert "tensors" in check or check["agreement"] == 1


@pytest.mark.slow
def test_int8_is_measured_beside_float_and_comp_predict(three_runs: Path, comp: Comp) -> None:
    card = exported(comp, members()[0], "--quantize", "int8")
    facts = card["quantization"]
    assert [row["network"] for row in facts["compared"]] == ["float ONNX", "int8 ONNX", "comp predict, fp32"]
    assert card["check"]["agreement"] > 0.9
    rates = [row["images_per_second"] for row in facts["compared"]]
    assert any("slower" in warning for warning in facts["warnings"]) == (rates[1] < max(rates))
    assert "## int8" in (OUTPUT / "README.md").read_text()
