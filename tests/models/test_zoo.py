"""Any timm model at 32 px: its stem, its carried-over weights, its kind, and what the catalogue says of it."""

import fnmatch
from pathlib import Path

import pytest
import timm
import torch

from comp.config import ModelConfig
from comp.models import stems, surgery, timm_models, weights, zoo
from comp.models.classifier import Classifier
from comp.runtime.errors import ModelError
from tests.support.parameters import slow_except

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
REAL_WEIGHTS = Path("data/weights/tf_efficientnet_lite0.safetensors")

# With SLOW, a member of every family with a cifar stem.
QUICK = [
    "convnext_atto", "test_convnext", "cs3darknet_focus_s", "cspnext_tiny", "densenet121", "dla46x_c",
    "dpn48b", "tf_efficientnet_lite0", "tf_efficientnetv2_b0", "test_efficientnet", "mnasnet_050",
    "mobilenetv2_035", "fasternet_t0", "ghostnet_050", "hardcorenas_b", "hgnetv2_b0", "hrnet_w18_small",
    "inception_next_atto", "lcnetv2_small", "test_mambaout", "mobilenetv3_small_050", "mobilenetv4_conv_small",
    "test_nfnet", "regnetx_002", "regnety_002", "repghostnet_050", "repvit_m0_9", "resnest14d", "resnet10t", "resnet18",
    "resnet18d", "seresnext26t_32x4d", "resnetv2_18", "rexnet_100",
    "selecsls42", "legacy_seresnet18", "skresnet18", "starnet_s050", "test_byobnet", "repvgg_a0", "mobileone_s0",
    "gernet_s", "ese_vovnet19b_slim_dw", "cpubone_nano", "edgenext_xx_small", "efficientvit_b0", "efficientvit_m0",
    "fastvit_t8", "iformer_t", "mobilevit_xxs", "pvt_v2_b0", "swiftformer_xs", "poolformerv2_s12", "cait_xxs24_224",
    "convit_tiny", "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "eva02_tiny_patch14_224", "test_vit",
    "vit_tiny_patch16_224", "test_vit_relpos",
]  # fmt: skip
# Large or slow: run with `pytest -m slow`.
SLOW = [
    "beit_base_patch16_224", "convmixer_768_32", "davit_tiny", "focalnet_tiny_srf", "inception_resnet_v2",
    "inception_v3", "inception_v4", "lowformer_b0", "nasnetalarge", "nextvit_small", "pnasnet5large", "rdnet_tiny",
    "res2next50", "resnext50_32x4d", "wide_resnet50_2", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256",
    "swinv2_cr_tiny_ns_224", "vgg11_bn", "legacy_xception", "xception41p", "resnet50",
    "resnetblur50", "cspresnet50", "mixnet_s", "efficientnet_b0", "ecaresnet26t",
]  # fmt: skip

EVERY_MODEL = pytest.mark.parametrize("name", slow_except([*QUICK, *SLOW], *QUICK))


def built(name: str, *, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10, **model: object) -> Classifier:
    config = ModelConfig.model_validate({"name": name, **model})
    return zoo.build(config, classes=classes, image_shape=shape, mean=MEAN[: shape[0]], std=STD[: shape[0]], seed=0)


@EVERY_MODEL
def test_cifar_stem_keeps_a_4x4_map_and_trains(name: str) -> None:
    model = built(name, stem="cifar")
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    logits = model.train()(images)  # [2, 10]
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()
    logits.logsumexp(1).sum().backward()
    first = next(p for p in model.parameters() if p.ndim == 4)
    assert first.grad is not None
    assert first.grad.isfinite().all()
    with torch.no_grad():
        assert min(zoo.feature_map(model.eval().inner, model.prepare(images))) >= 4


@EVERY_MODEL
def test_layer_decay_reaches_every_family(name: str) -> None:
    model = Classifier(timm_models.meta_model(name), mean=MEAN, std=STD)
    groups = surgery.parameter_groups(model, 0.05, 0.9)
    scales = sorted({group["lr_scale"] for group in groups})
    assert len(scales) >= 4
    assert scales[-1] == 1.0
    assert groups[0]["lr_scale"] == scales[0]  # the stem comes first and is the slowest


def test_every_family_with_a_stem_is_built_above() -> None:
    covered = {timm_models.architecture(name) for name in QUICK + SLOW}
    assert covered == {module for module, row in stems.FAMILIES.items() if row.has_cifar_stem}


def test_every_timm_module_has_a_kind() -> None:
    modules = {timm_models.architecture(name) for name in timm.list_models()}
    assert modules <= set(stems.FAMILIES)


@pytest.mark.parametrize("name", ["crossvit_tiny_240", "maxvit_tiny_tf_224", "tresnet_m"])
def test_a_family_without_a_stem_is_refused_with_those_that_have_one(name: str) -> None:
    with pytest.raises(ModelError, match=r"model.stem: .*stem: resize.* beit.*resnet"):
        built(name, stem="cifar")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("resnet18", "convolutional"),
        ("resnet18.a1_in1k", "convolutional"),
        ("vit_tiny_patch16_224", "transformer"),
        ("swin_tiny_patch4_window7_224", "transformer"),
        ("mobilenetv4_hybrid_medium", "transformer"),
        ("mobilenetv4_conv_small", "convolutional"),
        ("mixer_b16_224", "mlp"),
        ("simple_cnn", "convolutional"),
        ("residual_mlp", "mlp"),
    ],
)
def test_rules_know_a_models_kind(name: str, kind: str) -> None:
    assert zoo.family(name) == kind
    zoo.check_family_allowed(name, ["state_space"])
    with pytest.raises(ModelError, match="the rules ban"):
        zoo.check_family_allowed(name, [kind])


def test_rules_may_ban_one_architecture_and_name_it_rightly() -> None:
    zoo.check_family_allowed("resnet18", ["densenet"])
    with pytest.raises(ModelError, match="resnet18 is convolutional"):
        zoo.check_family_allowed("resnet18", ["resnet"])
    with pytest.raises(ModelError, match="did you mean 'transformer'"):
        zoo.check_family_allowed("resnet18", ["transformers"])


@pytest.mark.parametrize(("taps", "wanted"), [(7, 3), (4, 3), (2, 3), (3, 3), (11, 3)])
def test_resampled_kernels_keep_their_sums(taps: int, wanted: int) -> None:
    kernels = torch.randn(8, 3, taps, taps, generator=torch.Generator().manual_seed(0))
    resampled = stems.resample_kernel(kernels, wanted)
    torch.testing.assert_close(resampled.sum((-2, -1)), kernels.sum((-2, -1)), atol=1e-4, rtol=1e-4)


def test_pretrained_first_convolution_is_carried_over(tmp_path: Path) -> None:
    published = timm.create_model("resnet18", num_classes=1000)
    file = tmp_path / "resnet18.safetensors"
    file.write_bytes(weights.to_bytes(published.state_dict(), {}))
    model = built("resnet18", stem="cifar", pretrained=str(file))
    expected = stems.resample_kernel(published.conv1.weight.detach(), 3)
    assert torch.equal(model.inner.conv1.weight, expected)
    assert torch.equal(model.inner.layer1[0].conv1.weight, published.layer1[0].conv1.weight)
    assert model.normalize.mean.flatten().tolist() == pytest.approx(published.pretrained_cfg["mean"])


def test_grey_images_keep_channel_sums(tmp_path: Path) -> None:
    published = timm.create_model("resnet18", num_classes=1000)
    file = tmp_path / "w.safetensors"
    file.write_bytes(weights.to_bytes(published.state_dict(), {}))
    model = built("resnet18", shape=(1, 32, 32), pretrained=str(file))
    expected = published.conv1.weight.sum(1, keepdim=True)
    torch.testing.assert_close(model.inner.conv1.weight, expected)


def test_patch_weights_are_resampled(tmp_path: Path) -> None:
    published = timm.create_model("test_vit", num_classes=1000)
    file = tmp_path / "w.safetensors"
    file.write_bytes(weights.to_bytes(published.state_dict(), {}))
    model = built("test_vit", stem="cifar", pretrained=str(file))
    assert model.inner.patch_embed.proj.weight.shape[-1] == 4
    block = model.inner.blocks[0].attn.qkv.weight
    assert torch.equal(block, published.blocks[0].attn.qkv.weight)


def test_a_head_of_another_width_in_the_file_is_replaced(tmp_path: Path) -> None:
    trained = timm.create_model("resnet10t", num_classes=7)
    file = tmp_path / "w.safetensors"
    file.write_bytes(weights.to_bytes(trained.state_dict(), {}))
    model = built("resnet10t", classes=100, pretrained=str(file))
    assert model.inner.fc.weight.shape == (100, 512)
    assert torch.equal(model.inner.layer4[0].conv1.weight, trained.layer4[0].conv1.weight)


def test_weights_of_another_network_are_refused_with_their_keys(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(weights.to_bytes(timm.create_model("resnet10t", num_classes=10).state_dict(), {}))
    with pytest.raises(ModelError, match=r"do not fit resnet18.*layer1\.1\.conv1\.weight"):
        built("resnet18", pretrained=str(file))


def test_without_file_and_network_the_wanted_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    # A closed port on this machine stands for a machine without a network.
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for proxy in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    config = ModelConfig(name="resnet26", pretrained=True)
    with pytest.raises(ModelError, match=r"model.safetensors of timm/resnet26.*/resnet26.safetensors"):
        zoo.build(config, classes=10, image_shape=(3, 32, 32), mean=MEAN, std=STD, seed=0, weights_folder=tmp_path)


def test_local_folder_is_looked_in_first(tmp_path: Path) -> None:
    published = timm.create_model("test_resnet", num_classes=1000)
    (tmp_path / "test_resnet.safetensors").write_bytes(weights.to_bytes(published.state_dict(), {}))
    config = ModelConfig(name="test_resnet.r160_in1k", pretrained=True)
    model = zoo.build(
        config, classes=10, image_shape=(3, 32, 32), mean=MEAN, std=STD, seed=0, weights_folder=tmp_path
    )  # fmt: skip
    assert torch.equal(model.inner.layer1[0].conv1.weight, published.layer1[0].conv1.weight)
    listed = zoo.list_models("test_resnet", weights_folder=tmp_path)
    assert [row.weights for row in listed] == ["file"]


def test_random_weights_are_described_by_their_seed() -> None:
    options = {"classes": 3, "image_shape": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.2,) * 3}
    assert "seed" in zoo.build(ModelConfig(name="simple_cnn"), seed=7, **options).weights_source


def test_listing_a_pattern_names_all_that_fit() -> None:
    rows = zoo.list_models("resne*t*")
    assert {"resnet18", "resnext50_32x4d"} <= {row.name for row in rows}
    assert all(fnmatch.fnmatchcase(row.name, "resne*t*") for row in rows)
    assert [row.architecture for row in zoo.list_models("simple_*")] == ["ours"]


def test_a_part_of_a_name_or_a_family_lists_all_that_have_it() -> None:
    every = zoo.list_models()
    for part in ("efficientnet", "MLP", "test_res"):
        places = {row.name: [row.name, row.family] + [row.architecture] * (row.architecture != "ours") for row in every}
        expected = [name for name, texts in places.items() if any(part.lower() in text for text in texts)]
        assert [row.name for row in zoo.list_models(part)] == expected != []
    assert {"efficientnet_b0", "tf_efficientnet_lite0"} <= {row.name for row in zoo.list_models("efficientnet")}
    assert [row.name for row in zoo.list_models("resnet18")] == ["resnet18"]
    assert zoo.list_models("nosuchnet") == []


def test_costs_are_those_published() -> None:
    stock = zoo.measure_costs("resnet18", (3, 224, 224), classes=1000)
    assert stock.parameters == 11_689_512
    assert stock.gmacs == pytest.approx(1.82, abs=0.01)
    assert stock.feature_map == (7, 7)
    small = zoo.measure_costs("resnet18", (3, 32, 32), stem="cifar")
    assert small.gmacs == pytest.approx(0.556, abs=0.003)
    assert small.feature_map == (4, 4)
    assert zoo.measure_costs("mlp", (1, 28, 28)).parameters == 109_386


@pytest.mark.slow
@pytest.mark.skipif(not REAL_WEIGHTS.is_file(), reason=f"needs {REAL_WEIGHTS}")
@pytest.mark.parametrize("stem", ["stock", "cifar"])
def test_real_published_weights_are_taken(stem: str) -> None:
    published, metadata = weights.read(REAL_WEIGHTS)
    model = built(REAL_WEIGHTS.stem, stem=stem, pretrained=str(REAL_WEIGHTS), sha256=metadata["sha256"][:12])
    own = model.inner.state_dict()
    changed = {name for name in own if own[name].shape != published[name].shape or not own[name].equal(published[name])}
    assert changed == {"classifier.weight", "classifier.bias"}  # 3x3 already, so the first convolution is as published
    assert model.normalize.mean.flatten().tolist() == [0.5] * 3
    assert metadata["sha256"] in model.weights_source
