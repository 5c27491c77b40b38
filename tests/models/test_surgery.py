"""What is frozen stays, what is released moves, and layers have their own rates through the wrapper."""

import copy

import pytest
import torch
import yaml
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from torch import nn

from comp import config
from comp.config import ModelConfig
from comp.models import surgery, timm_models, weights, zoo
from comp.models.classifier import Classifier
from comp.models.coursework.networks import NETWORKS
from comp.runtime.errors import ModelError

# Stock ResNets start with branches multiplied by zero, so that one step would leave most of them unmoved.
BRANCHES_AWAKE = {"zero_init_last": False}


def built(name: str = "resnet10t", classes: int = 10, **model: object) -> Classifier:
    stem = "stock" if name in NETWORKS else "cifar"
    section = ModelConfig.model_validate({"name": name, "stem": stem, **model})
    return zoo.build(section, classes=classes, image_shape=(3, 32, 32), mean=[0.5] * 3, std=[0.25] * 3, seed=0)


def trained_names(model: Classifier) -> set[str]:
    return {name for name, parameter in model.inner.named_parameters() if parameter.requires_grad}


def changed_after_a_step(model: Classifier) -> set[str]:
    """Return the inner model's tensors (with buffers) that one training step changes."""
    before = copy.deepcopy(model.inner.state_dict())
    optimizer = torch.optim.SGD(surgery.parameter_groups(model, 0.1), lr=0.5)
    model.train()
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    nn.functional.cross_entropy(model(images), torch.arange(4)).backward()
    optimizer.step()
    return {name for name, tensor in model.inner.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize(
    ("patterns", "held"),
    [
        (["conv1", "bn1", "*layer1*"], ("conv1.", "bn1.", "layer1.")),
        (["layer2.0.conv1"], ("layer2.0.conv1.",)),
        (["all_but_head"], ("conv1.", "bn1.", "layer")),
    ],
)
def test_frozen_blocks_do_not_change_and_the_rest_does(patterns: list[str], held: tuple[str, ...]) -> None:
    model = built(freeze=patterns, timm=BRANCHES_AWAKE)
    changed = changed_after_a_step(model)
    frozen = {name for name in model.inner.state_dict() if name.startswith(held)}
    assert frozen
    assert not changed & frozen
    assert trained_names(model) <= changed


@pytest.mark.parametrize(
    ("options", "moving", "training"),
    [
        ({}, False, False),
        ({"freeze_bn_stats": False}, True, False),
        ({"unfreeze_bn": True}, True, True),
    ],
)
def test_frozen_batch_norm_does_as_it_is_told(options: dict[str, bool], moving: bool, training: bool) -> None:
    model = built(freeze=["all_but_head"], timm=BRANCHES_AWAKE, **options)
    changed = changed_after_a_step(model)
    assert any("running_mean" in name for name in changed) is moving
    assert ("layer1.0.bn1.weight" in changed) is training
    assert "layer1.0.conv1.weight" not in changed


def test_frozen_statistics_survive_a_change_of_mode() -> None:
    model = built(freeze=["bn1"])
    assert not model.train().inner.bn1.training
    assert model.inner.layer1[0].bn1.training
    assert not model.eval().inner.layer1[0].bn1.training
    assert not copy.deepcopy(model).train().inner.bn1.training


def test_blocks_thaw_by_epoch_whatever_came_before() -> None:
    section = ModelConfig.model_validate({"freeze": ["all_but_head"], "unfreeze": {"2": ["layer4"], "4": ["*"]}})
    model = built()
    tops = []
    for epoch in (1, 2, 3, 4, 1):
        zoo.apply_freezing(model, section, epoch=epoch)
        tops.append({name.partition(".")[0] for name in trained_names(model)})
    assert tops[:3] == [{"fc"}, {"fc", "layer4"}, {"fc", "layer4"}]
    assert {"conv1", "layer1", "layer4", "fc"} <= tops[3]
    assert tops[4] == {"fc"}
    assert model.frozen_bn_layers


def test_released_blocks_follow_from_the_epoch_alone() -> None:
    schedule = {3: ("layer4",), 5: ("layer3", "layer2")}
    assert surgery.released_at(2, schedule) == ()
    assert surgery.released_at(4, schedule) == ("layer4",)
    assert surgery.released_at(9, schedule) == ("layer4", "layer3", "layer2")


def test_a_name_that_names_nothing_is_refused() -> None:
    with pytest.raises(ModelError, match=r"'layer11' names nothing.*did you mean 'layer1'"):
        built(freeze=["layer11"])
    with pytest.raises(ModelError, match="'laier4' names nothing"):
        built(freeze=["conv1"], unfreeze={"2": ["laier4"]})


def test_the_table_says_what_is_trained() -> None:
    model = built(freeze=["conv1", "bn1", "layer1.0.bn1"])
    rows = {row.name: row for row in surgery.trainable_table(model)}
    assert rows["conv1"].trainable == 0
    assert rows["bn1"].statistics == "kept"
    assert rows["layer1"].statistics == "partly kept"
    assert rows["layer2"] == surgery.TrainableRow(
        "layer2", rows["layer2"].parameters, rows["layer2"].parameters, "move"
    )
    assert sum(row.parameters for row in rows.values()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", [*NETWORKS, "resnet18", "densenet121", "efficientnet_b0", "convnext_atto", "test_vit",
                                  "vgg11_bn", "regnety_002", "mobilenetv3_small_050", "repvgg_a0"])  # fmt: skip
def test_layer_decay_gives_layers_their_own_rates(name: str) -> None:
    if name == "vgg11_bn":  # 130 million parameters, but for one row of this table the stock sketch will do
        inner = timm_models.meta_model(name)
        model = Classifier(inner, mean=[0.5] * 3, std=[0.25] * 3)
    else:
        model = built(name)
    groups = surgery.parameter_groups(model, 0.05, 0.5)
    scales = {group["lr_scale"] for group in groups}
    assert len(scales) >= 2
    assert max(scales) == 1.0
    head = {id(parameter) for parameter in model.get_classifier().parameters()}
    assert all(group["lr_scale"] == 1.0 for group in groups if head & {id(p) for p in group["params"]})
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped)) == len(list(model.parameters())) - len(model.non_trainable)
    for group in groups:
        for parameter in group["params"]:
            assert (group["weight_decay"] == 0.0) or parameter.ndim > 1


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "test_vit", "densenet121", "convnext_atto"])
def test_layers_are_those_of_the_model_without_its_wrapper(name: str) -> None:
    model = built(name)
    bare = group_parameters(model.inner, model.inner.group_matcher(), reverse=True)
    assert surgery.layer_numbers(model) == {f"inner.{name}": layer for name, layer in bare.items()}


def test_timms_own_optimizer_factory_sees_the_layers() -> None:
    optimizer = create_optimizer_v2(built("resnet18"), "adamw", lr=1e-3, layer_decay=0.5)
    assert len({group["lr_scale"] for group in optimizer.param_groups}) > 5


def test_networks_may_name_parameters_without_weight_decay() -> None:
    model = built("test_vit")
    exempt = [group for group in surgery.parameter_groups(model, 0.05) if group["weight_decay"] == 0]
    held = {id(parameter) for group in exempt for parameter in group["params"]}
    assert id(model.inner.pos_embed) in held
    everything = surgery.parameter_groups(model, 0.05, decay_all=True)
    assert {group["weight_decay"] for group in everything} == {0.05}


def test_discriminative_rates_multiply_by_name() -> None:
    model = built()
    groups = surgery.parameter_groups(model, 0.0, multipliers={"layer1": 0.1, "fc": 10})
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert scales[id(model.inner.layer1[0].conv1.weight)] == pytest.approx(0.1)
    assert scales[id(model.inner.fc.weight)] == 10
    assert scales[id(model.inner.layer2[0].conv1.weight)] == 1


def test_head_swap_keeps_the_body_and_a_fresh_head() -> None:
    ten, hundred = built(), built(classes=100)
    fresh_head = hundred.inner.fc.weight.clone()
    left = surgery.load_from_run(hundred, ten.state_dict(), where="a run")
    assert set(left) == {"inner.fc.weight", "inner.fc.bias"}
    assert torch.equal(hundred.inner.fc.weight, fresh_head)
    assert torch.equal(hundred.inner.layer4[0].conv1.weight, ten.inner.layer4[0].conv1.weight)
    same = built()
    assert surgery.load_from_run(same, ten.state_dict(), where="a run") == ()
    assert weights.mismatch(same, ten.state_dict()) == ""


def test_head_swap_from_another_network_is_refused() -> None:
    with pytest.raises(ModelError, match="a run: these weights belong to another network"):
        surgery.load_from_run(built(), built("simple_cnn").state_dict(), where="a run")


def test_an_unfreezing_schedule_comes_back_from_its_yaml() -> None:
    written = {"model": {"name": "resnet10t", "freeze": ["all_but_head"], "unfreeze": {"2": ["layer4"]}}}
    loaded = config.from_mapping(written, "a test")
    assert loaded.model.unfreeze == {2: ("layer4",)}
    again = config.from_mapping(yaml.safe_load(config.dump(loaded)), "a test")
    assert again == loaded
