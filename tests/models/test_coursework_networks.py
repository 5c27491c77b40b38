"""The coursework's networks have the layers they were published with; ours starts as it says."""

from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional

from comp.config import ModelConfig
from comp.models import fastnet, stems, surgery, zoo
from comp.models.classifier import Classifier
from comp.models.coursework.layout import ACTIVATIONS
from comp.models.coursework.networks import NETWORKS
from comp.runtime.errors import ModelError

Shape = tuple[int, int, int]


def built(name: str, shape: Shape = (3, 32, 32), classes: int = 10, **args: object) -> Classifier:
    config = ModelConfig.model_validate({"name": name, "args": args})
    channels = shape[0]
    return zoo.build(config, classes=classes, image_shape=shape, mean=[0.5] * channels, std=[0.25] * channels, seed=0)


def layers(model: Classifier, kind: type[nn.Module]) -> list[tuple[int, ...]]:
    """Return (out, in) of each layer of a kind, in order."""
    return [tuple(module.weight.shape[:2]) for module in model.modules() if type(module) is kind]


SHAPES: list[Shape] = [(1, 28, 28), (3, 32, 32), (3, 24, 40), (3, 160, 160)]


@pytest.mark.parametrize(
    ("name", "shape"),
    # Flattened at 160 px, this one has 200 million parameters.
    [pair for pair in product(NETWORKS, SHAPES) if pair != ("challenge_cnn", (3, 160, 160))],
)
def test_every_network_takes_every_size(name: str, shape: Shape) -> None:
    model = built(name, shape, classes=7)
    images = torch.randint(0, 256, (2, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model.initialise(images)
    logits = model.train()(images)
    assert logits.shape == (2, 7)
    logits.logsumexp(1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_every_network_has_a_kind() -> None:
    assert set(stems.OWN_KINDS) == set(NETWORKS)


@pytest.mark.parametrize(
    ("name", "shape", "classes", "args", "parameters"),
    [
        # Counted by hand: each linear layer n_in n_out + n_out, each 3x3 convolution 9 n_in n_out + n_out.
        ("fully_connected", (1, 28, 28), 10, {}, 101_770),
        ("mlp", (1, 28, 28), 10, {}, 109_386),
        ("residual_mlp", (1, 28, 28), 10, {}, 136_300),
        ("challenge_cnn", (3, 32, 32), 100, {}, 8_828_836),
        ("convnet", (3, 32, 32), 10, {}, 63_402),
        ("imagenette_cnn", (3, 160, 160), 10, {}, 439_178),
    ],
)
def test_parameters_are_those_published(
    name: str, shape: Shape, classes: int, args: dict[str, object], parameters: int
) -> None:
    model = built(name, shape, classes, **args)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_fully_connected_has_the_hidden_layers_asked_for() -> None:
    model = built("fully_connected", (1, 8, 8), hidden=[32, 16], activation="tanh")
    assert layers(model, nn.Linear) == [(32, 64), (16, 32), (10, 16)]
    assert sum(isinstance(module, nn.Tanh) for module in model.modules()) == 2


def test_mlp_drops_after_its_second_hidden_layer() -> None:
    names = [type(module).__name__ for module in built("mlp", (1, 28, 28)).inner.neck]
    assert names == ["Linear", "ReLU", "Linear", "ReLU", "Dropout"]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_convnet_takes_any_activation(activation: str) -> None:
    model = built("convnet", activation=activation)
    assert layers(model, nn.Conv2d) == [(12, 3), (24, 12), (48, 24)]
    assert layers(model, nn.Linear) == [(64, 768), (10, 64)]


@pytest.mark.parametrize(("depth", "flat"), [(2, 32 * 256), (3, 64 * 256), (6, 512 * 16)])
def test_simple_cnn_doubles_channels_and_pools_every_second_layer(depth: int, flat: int) -> None:
    model = built("simple_cnn", depth=depth)
    assert [out for out, _ in layers(model, nn.Conv2d)] == [16 * 2**layer for layer in range(depth)]
    assert layers(model, nn.Linear) == [(128, flat), (10, 128)]


def test_simple_cnn_from_first_principles_is_the_same_network() -> None:
    torch_made, own = built("simple_cnn"), built("simple_cnn", conv="first_principles")
    own.load_state_dict(torch_made.state_dict())
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(own(images), torch_made(images), atol=1e-5, rtol=1e-5)


def test_challenge_cnn_flattens_to_16384() -> None:
    model = built("challenge_cnn", classes=100)
    assert layers(model, nn.Conv2d) == [(32, 3), (64, 32), (128, 64), (256, 128)]
    assert layers(model, nn.Linear) == [(512, 16384), (100, 512)]


@pytest.mark.parametrize("batch_norm", [True, False])
def test_imagenette_cnn_strides_three_times(batch_norm: bool) -> None:
    model = built("imagenette_cnn", (3, 160, 160), batch_norm=batch_norm)
    assert layers(model, nn.Conv2d) == [(64, 3), (128, 64), (256, 128)]
    assert model.inner.forward_features(torch.zeros(2, 3, 160, 160)).shape == (2, 256, 20, 20)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == (3 if batch_norm else 0)


@pytest.mark.parametrize(("blocks_per_stage", "features"), [(1, 32), (2, 16), (3, 8)])
def test_residual_cnn_doubles_its_channels_with_every_stage(blocks_per_stage: int, features: int) -> None:
    model = built("residual_cnn", blocks=3, width=8, blocks_per_stage=blocks_per_stage)
    assert model.get_classifier().in_features == features


def test_residual_cnn_has_the_blocks_asked_for() -> None:
    model = built("residual_cnn", blocks=6, width=8)
    assert len(model.inner.body) == 1 + 6
    assert model.inner.forward_features(torch.zeros(2, 3, 32, 32)).shape == (2, 32, 8, 8)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("simple_cnn", {"depth": 4}, "expected 2, 3 or 6"),
        ("simple_cnn", {"conv": "first_principle"}, "did you mean 'first_principles'"),
        ("convnet", {"activation": "rleu"}, "did you mean 'relu'"),
        ("fully_connected", {"hidden": [0]}, "model.args.hidden: .*0"),
        ("residual_cnn", {"blocks_per_stage": 0}, "model.args.blocks_per_stage: .*0"),
        ("fastnet", {"size": "XL"}, "choose from L, M, S"),
        ("fastnet", {"patch": 9}, "expected a side of 1 to 5 pixels, found 9"),
        ("fastnet", {"patch": 3, "filters": 28}, "expected 1 to 27 for patches of 3 px, found 28"),
    ],
)
def test_wrong_arguments_are_named(name: str, args: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        built(name, **args)


def test_images_that_would_vanish_are_refused() -> None:
    with pytest.raises(ModelError, match="expected at least 8 px, found 6"):
        built("convnet", (3, 6, 6))


@pytest.mark.parametrize("size", ["S", "M", "L"])
def test_fastnet_whitens_patches_and_never_trains_its_first_layer(size: str) -> None:
    generator = torch.Generator().manual_seed(0)
    # Neighbouring pixels of real images agree; blurred noise does too.
    noise = torch.rand(64, 3, 34, 34, generator=generator)
    images = (nn.functional.avg_pool2d(noise, 3, 1) * 255).to(torch.uint8)
    model = built("fastnet", size=size)
    model.initialise(images)
    first = model.inner.body[0]
    patches = nn.functional.conv2d(model.prepare(images), first.weight)[:, :12]  # [N, 12, H', W']
    covariance = torch.cov(patches.transpose(0, 1).flatten(1))
    loud = covariance.diagonal() > 0.5  # directions well above the noise floor
    assert loud.sum() >= 6
    torch.testing.assert_close(covariance, torch.diag(covariance.diagonal()), atol=1e-3, rtol=0)
    surgery.freeze(model, ())
    assert not first.weight.requires_grad


def test_fastnet_keeps_the_directions_in_which_patches_vary_most() -> None:
    noise = torch.rand(64, 3, 36, 36, generator=torch.Generator().manual_seed(0))
    images = (nn.functional.avg_pool2d(noise, 3, 1) * 255).to(torch.uint8)
    every, some = built("fastnet", patch=3), built("fastnet", patch=3, filters=16, bias=False)
    for model in (every, some):
        model.initialise(images)
    kernels, kept = (model.inner.body[0].weight for model in (every, some))
    assert kernels.shape == (54, 3, 3, 3)
    torch.testing.assert_close(kept, torch.cat((kernels[11:27], -kernels[11:27])))
    power = nn.functional.conv2d(every.prepare(images), kernels[:27]).var((0, 2, 3))
    assert power[11:].mean() > power[:11].mean()  # what was left out is what the floor already had put down
    logits = some(images[:4])
    logits.sum().backward()
    assert some.inner.body[0].weight.grad is None


def test_fastnet_whitens_by_the_covariance_of_all_patches_however_many_it_takes_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = torch.rand(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    layers = []
    for elements in (fastnet._BLOCK_ELEMENTS, 1):
        monkeypatch.setattr(fastnet, "_BLOCK_ELEMENTS", elements)
        layers.append(fastnet.Whitening(3, patch=3, filters=20, bias=False, smallest=1e-3))
        layers[-1].initialise(images)
    patches = nn.functional.unfold(images.double(), 3).transpose(0, 1).flatten(1)  # [27, patches]
    variances, directions = torch.linalg.eigh(torch.cov(patches))
    expected = (directions / (variances + 1e-3).sqrt()).T[-20:].reshape(20, 3, 3, 3).float()
    for layer in layers:
        torch.testing.assert_close(layer.weight[:20], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fastnet_pools_with_the_bits_of_adaptive_max_pool_ties_included(
    layout: torch.memory_format, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-3, 4, (8, 24, 3, 5), generator=generator).to(dtype, memory_format=layout)
    weights = torch.randn(8, 24, generator=generator).to(dtype)
    results = []
    for pool in (fastnet.GlobalMaxPool(), nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten())):
        features = values.clone().requires_grad_()
        pooled = pool(features)
        pooled.backward(weights)
        assert features.grad is not None
        assert features.grad.is_contiguous(memory_format=layout)
        results.append((pooled, features.grad))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


# Layers whose backward pass on CUDA torch refuses under `train.deterministic` (docs of use_deterministic_algorithms).
NONDETERMINISTIC = (
    nn.AdaptiveMaxPool2d,
    nn.FractionalMaxPool2d,
    nn.MaxUnpool2d,
    nn.ReflectionPad2d,
    nn.Upsample,
    nn.EmbeddingBag,
)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_network_has_a_layer_without_a_deterministic_backward_pass_on_cuda(name: str) -> None:
    for layer in built(name).modules():
        assert not isinstance(layer, NONDETERMINISTIC)
        # torch computes a single average as a mean, whose backward pass is deterministic
        assert not isinstance(layer, nn.AdaptiveAvgPool2d) or layer.output_size in (1, (1, 1))


def test_fastnet_amplifies_noise_less_with_a_higher_floor() -> None:
    noise = torch.rand(64, 3, 36, 36, generator=torch.Generator().manual_seed(0))
    images = (nn.functional.avg_pool2d(noise, 5, 1) * 255).to(torch.uint8)
    gains = []
    for smallest in (5e-4, 0.05):
        model = built("fastnet", smallest=smallest)
        model.initialise(images)
        gains.append(float(model.inner.body[0].weight.square().sum()))
    assert gains[1] < gains[0] / 2


def test_fastnet_convolutions_begin_as_the_identity() -> None:
    convolution = built("fastnet").inner.body[2][4]
    channels = convolution.in_channels
    features = torch.rand(1, channels, 6, 6)
    torch.testing.assert_close(convolution(features)[:, :channels], features)


@pytest.mark.parametrize("sides", [(30, 30), (15, 15), (7, 7), (5, 4), (8, 15)])
def test_what_a_pool_drops_is_not_computed_and_the_rest_has_the_same_bits(sides: tuple[int, int]) -> None:
    torch.manual_seed(0)
    short = fastnet.PooledConvolution(4, 6, 3, padding=1, bias=False)
    features = torch.randn(2, 4, *sides).to(memory_format=torch.channels_last)
    found, whole = short(features), functional.conv2d(features, short.weight, padding=1)
    assert list(found.shape[2:]) == [side - side % 2 for side in sides]
    assert torch.equal(functional.max_pool2d(found, 2), functional.max_pool2d(whole, 2))
