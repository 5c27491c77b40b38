"""Our convolution equals torch's in values and gradients over the coursework's grid.

Inputs: batch 2, padding 1, float32; images are as large as the spread kernel plus 2 rows and 3 columns, so that with
stride 1 every case has 5 x 6 windows. Blurs see 2 x 3 x 16 x 20 px.
"""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from comp.models.coursework import convolution as own
from comp.runtime.errors import ModelError

CHANNELS = [
    *((2**k, 3**k) for k in range(5)),
    *((3**k, 2 ** (k - 1)) for k in range(1, 6)),
    *((2**k, 2**k) for k in range(8)),
]
KERNELS = [kernel for n in range(1, 8) for kernel in ((n, n), (n, n + 2), (n + 2, n))]
GROUPS = [4, 8, 16, 32, 64]

Case = dict[str, object]


def grid() -> Iterator[Case]:
    """Channels x kernels x strides x dilations x bias; grouped ones with 128 -> 128 channels."""
    for (before, after), kernel, stride, dilation, bias in product(
        CHANNELS, KERNELS, (1, 2, 3), (1, 2, 3), (True, False)
    ):
        yield {"in_channels": before, "out_channels": after, "kernel_size": kernel, "stride": stride,
               "dilation": dilation, "bias": bias, "padding": 1}  # fmt: skip
    for groups, kernel, stride, dilation in product(GROUPS, KERNELS, (1, 2, 3), (1, 2, 3)):
        yield {"in_channels": 128, "out_channels": 128, "kernel_size": kernel, "stride": stride,
               "dilation": dilation, "groups": groups, "padding": 1}  # fmt: skip


def check(case: Case) -> None:
    ours, theirs = own.Conv2d(**case), nn.Conv2d(**case)
    theirs.load_state_dict(ours.state_dict())
    height, width = ((taps - 1) * case["dilation"] + 1 for taps in case["kernel_size"])
    image = torch.randn(2, case["in_channels"], height + 2, width + 3)
    outcome, expected = values_and_gradients(ours, image), values_and_gradients(theirs, image)
    for found, wanted in zip(outcome, expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5, msg=lambda text: f"{case}: {text}")


def values_and_gradients(layer: nn.Module, image: Tensor) -> list[Tensor]:
    """Return the output and its gradients by image, kernel and bias, for one fixed direction."""
    leaf = image.clone().requires_grad_()
    output = layer(leaf)
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    return [output.detach(), *torch.autograd.grad(output, [leaf, *layer.parameters()], direction)]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# Every 37th case: coprime to every axis of the grid, so each value of each axis is met.
@pytest.mark.parametrize("case", [*grid()][::37], ids=lambda case: "-".join(str(value) for value in case.values()))
def test_equals_torch(case: Case) -> None:
    check(case)


def check_part(first: int) -> int:
    """Check every second case from `first` on, in a process of its own; return how many."""
    torch.set_num_threads(1)  # these tensors are too small to share out
    torch.manual_seed(0)
    part = [*grid()][first::2]
    for case in part:
        check(case)
    return len(part)


@pytest.mark.slow
def test_equals_torch_on_the_whole_grid() -> None:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        cases = sum(pool.map(check_part, (0, 1)))
    assert cases == 18 * 21 * 9 * 2 + 5 * 21 * 9


def test_bias_of_zero_adds_nothing() -> None:
    layer = own.Conv2d(3, 4, 3)
    without = own.Conv2d(3, 4, 3, bias=False)
    without.weight = layer.weight
    nn.init.zeros_(layer.bias)
    image = torch.randn(2, 3, 8, 8)
    assert torch.equal(layer(image), without(image))


@pytest.mark.parametrize("radius", range(1, 7))
@pytest.mark.parametrize("kernel", [own.box_kernel, own.gaussian_kernel])
def test_blurs_equal_a_depthwise_convolution_of_torch(kernel: object, radius: int) -> None:
    blur = own.Filter2d(kernel(radius))
    image = torch.randn(2, 3, 16, 20)
    theirs = nn.Conv2d(3, 3, 2 * radius + 1, padding=radius, groups=3, bias=False)
    theirs.weight = nn.Parameter(blur.kernel.expand(3, 1, -1, -1).clone())
    torch.testing.assert_close(blur(image), theirs(image), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel", [own.box_kernel(2), own.gaussian_kernel(3), own.gaussian_kernel(2, 0.5)])
def test_blurs_keep_flat_images_flat(kernel: Tensor) -> None:
    flat = torch.full((1, 2, 15, 15), 0.5)
    inside = own.Filter2d(kernel)(flat)[..., 4:-4, 4:-4]
    torch.testing.assert_close(inside, torch.full_like(inside, 0.5))


def test_initial_weights_are_torchs() -> None:
    torch.manual_seed(3)
    ours = own.Conv2d(6, 8, (3, 5), groups=2)
    torch.manual_seed(3)
    theirs = nn.Conv2d(6, 8, (3, 5), groups=2)
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


def test_impossible_layers_are_refused() -> None:
    with pytest.raises(ModelError, match="multiples of 4 groups, found 6 -> 8"):
        own.Conv2d(6, 8, 3, groups=4)
    with pytest.raises(ModelError, match="at least 5x5 px"):
        own.Conv2d(3, 4, 3, dilation=2)(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ModelError, match="odd kernel sides"):
        own.Filter2d(torch.ones(2, 3))
