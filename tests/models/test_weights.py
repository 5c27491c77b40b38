"""Weights files: what is written is read back, and nothing else than whole, finite tensors is."""

import pickle
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from comp.config import ModelConfig
from comp.models import weights, zoo
from comp.models.classifier import Classifier
from comp.runtime.errors import ModelError


class Harmful:
    """A pickle that would run code when loaded."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("code ran",))


@pytest.fixture
def state() -> weights.State:
    torch.manual_seed(0)
    tied = torch.randn(4, 3)
    last = torch.randn(2, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    return {"a.weight": tied, "b.weight": tied, "c": last, "d": torch.tensor(7), "e": torch.randn(3).bfloat16()}


def test_tensors_and_metadata_come_back(state: weights.State, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(weights.to_bytes(state, {"model": "resnet18"}))
    found, metadata = weights.read(path)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) and found[name].dtype == state[name].dtype for name in state)
    assert metadata["model"] == "resnet18"
    assert len(metadata["sha256"]) == 64


def test_same_weights_give_the_same_bytes(state: weights.State) -> None:
    assert weights.to_bytes(state, {"a": "b"}) == weights.to_bytes(dict(reversed(state.items())), {"a": "b"})


@pytest.mark.parametrize("nested", [None, "state_dict", "model", "model_ema"])
def test_plain_pickles_of_tensors_are_read(state: weights.State, tmp_path: Path, nested: str | None) -> None:
    path = tmp_path / "w.pth"
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save(wrapped if nested is None else {nested: wrapped, "epoch": 3}, path)
    assert weights.read(path)[0].keys() == state.keys()


def test_a_hash_is_demanded_whole_or_by_its_beginning(state: weights.State, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(weights.to_bytes(state, {}))
    digest = weights.read(path)[1]["sha256"]
    weights.read(path, sha256=digest[:8].upper())
    with pytest.raises(ModelError, match=f"expected 0000000000, found {digest}"):
        weights.read(path, sha256="0000000000")


@pytest.mark.parametrize("kept", [0, 7, 30, -1])
def test_truncated_files_are_refused(state: weights.State, tmp_path: Path, kept: int) -> None:
    content = weights.to_bytes(state, {})
    for name in ("w.safetensors", "w.pth"):
        path = tmp_path / name
        torch.save(state, path)
        whole = content if path.suffix == ".safetensors" else path.read_bytes()
        path.write_bytes(whole[:kept])
        with pytest.raises(ModelError, match=re.escape(str(path))):
            weights.read(path)


def test_a_header_that_promises_too_much_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(ModelError, match=r"w\.safetensors: .* 10 bytes"):
        weights.read(path)


def test_pickles_with_code_are_refused_and_do_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved, raw = tmp_path / "saved.pth", tmp_path / "raw.pth"
    torch.save({"weight": Harmful()}, saved)
    raw.write_bytes(pickle.dumps(Harmful()))
    for path in (saved, raw):
        with pytest.raises(ModelError, match=r"\.pth: "):
            weights.read(path)
    assert capsys.readouterr().out == ""


def test_anything_but_named_finite_tensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    for content, message in [
        ([torch.zeros(1)], "expected a state dict"),
        ({"a": torch.zeros(1), "lr": 0.1}, "expected only named tensors, found lr"),
        ({"a": torch.tensor([1.0, float("nan")])}, "NaN or infinity in a"),
    ]:
        torch.save(content, path)
        with pytest.raises(ModelError, match=message):
            weights.read(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such weights file"):
        weights.read(tmp_path / "none.safetensors")
    with pytest.raises(ModelError, match="cannot be read"):
        weights.read(tmp_path)


def test_mismatch_lists_missing_unexpected_and_other_shapes(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(weights.to_bytes({"weight": torch.zeros(2, 3), "more": torch.zeros(1)}, {}))
    model = nn.Linear(4, 2)
    before = model.weight.clone()
    expected = r"missing: bias; unexpected: more; other shape: weight \(expected \[2, 4\], found \[2, 3\]\)"
    with pytest.raises(ModelError, match=expected):
        weights.load_weights(model, path)
    assert torch.equal(model.weight, before)


def test_a_runs_weights_start_another_run_with_its_normalization(tmp_path: Path) -> None:
    def built(classes: int, seed: int, mean: float, **model: object) -> Classifier:
        config = ModelConfig.model_validate({"name": "resnet10t", "stem": "cifar", **model})
        return zoo.build(config, classes=classes, image_shape=(3, 32, 32), mean=[mean] * 3, std=[0.2] * 3, seed=seed)

    path = tmp_path / "best.safetensors"
    run = built(10, 0, 0.4)
    path.write_bytes(weights.to_bytes(run.state_dict(), {}))
    follower = built(100, 1, 0.7, pretrained=str(path))
    assert torch.equal(follower.inner.layer1[0].conv1.weight, run.inner.layer1[0].conv1.weight)
    assert torch.equal(follower.normalize.mean, run.normalize.mean)
    assert follower.inner.fc.weight.shape[0] == 100
    assert str(path) in follower.weights_source
    own = built(100, 1, 0.7, pretrained=str(path), normalize="dataset")
    assert own.normalize.mean.flatten()[0] == pytest.approx(0.7)
