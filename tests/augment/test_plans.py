"""Plans of many steps: the pixels of single batches, whatever the window, padding or compiler."""

import pytest
import torch

from comp.augment import compiled, engine, mixing, plans, policies
from comp.augment.ops import OneOf, Op, Policy
from comp.runtime import rng
from tests.support.images import as_images, photographs, pictures

SHAPE = (3, 32, 32)
NAMES = [
    ["basic", "autoaugment_cifar10"], ["mirrored_crop", "augmix"], ["robust"], ["robust_strict", "random_erasing"],
    ["photo", "trivialaugment_wide", "cutout"],
]  # fmt: skip


def draws(steps: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return keys and flip mask of some batches, [S, B] each."""
    indices = torch.arange(steps * batch).view(steps, batch)
    return rng.keys(5, 2, indices), engine.alternating_flip_mask(5, 2, indices)


@pytest.mark.parametrize("names", NAMES)
def test_a_window_of_steps_has_the_pixels_of_batches_planned_one_by_one(names: list[str]) -> None:
    policy, (keys, flip_mask), images = policies.resolve(names), draws(3, 40), pictures(40)
    plan = engine.plan_policy(policy, keys, SHAPE, flip_mask=flip_mask)
    for step in range(3):
        alone = engine.augment(images, policy, keys[step], flip_mask=flip_mask[step])
        assert torch.equal(plan.run(images, step), alone)


@pytest.mark.parametrize("batch", [1, 40])
@pytest.mark.parametrize("names", NAMES)
def test_padding_groups_to_fixed_sizes_changes_no_pixel(names: list[str], batch: int) -> None:
    policy, (keys, flip_mask), images = policies.resolve(names), draws(3, batch), pictures(batch)
    plain = engine.plan_policy(policy, keys, SHAPE, flip_mask=flip_mask)
    padded = compiled.plan_compiled(policy, keys, SHAPE, flip_mask=flip_mask)
    padded.prepare(images)
    sizes = [[tensor.shape for tensor in tensors(plans.at_step(padded.parts, step))] for step in range(3)]
    assert sizes[0] == sizes[1] == sizes[2]
    for step in range(3):
        assert torch.equal(padded.run_with(compiled.run_parts, images, step), plain.run(images, step))


def tensors(parts: object) -> list[torch.Tensor]:
    """Return the tensors of a nest of tuples."""
    if isinstance(parts, torch.Tensor):
        return [parts]
    return [tensor for part in parts for tensor in tensors(part)] if isinstance(parts, tuple) else []


def test_a_batch_in_which_too_many_draw_an_op_runs_eagerly() -> None:
    policy = Policy((OneOf(((Op("invert", 0.02),),)),))
    keys = rng.keys(5, 2, torch.arange(200_000))
    acts = (
        engine.augment(torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(200_000, -1, -1, -1), policy, keys) > 0
    ).view(-1)
    crowded = torch.cat((keys[acts][:300], keys[~acts][:300])).view(2, 300)  # the first batch: all of them
    plan = compiled.plan_compiled(policy, crowded, SHAPE)
    assert list(plan.eager) == [0]
    images = pictures(300)
    for step in (0, 1):
        expected = engine.augment(images, policy, crowded[step])
        assert torch.equal(plan.run_with(compiled.run_parts, images, step), expected)


def test_mixing_a_window_equals_mixing_its_batches() -> None:
    settings, (keys, _), images, labels = mixing.Mixing(0.4, 1.0), draws(3, 9), pictures(9), torch.arange(9) % 4
    plan = mixing.plan_mixing(settings, keys, 32, 32)
    for step in range(3):
        together = mixing.mix_planned(images, labels, plan, step, classes=4, label_smoothing=0.0)
        alone = mixing.mix(images, labels, keys[step], classes=4, mixing=settings)
        assert all(torch.equal(*pair) for pair in zip(together, alone, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("names", [["basic"], ["autoaugment_cifar10"], ["robust"]])
def test_a_compiled_stage_is_one_graph_of_few_kernels_and_the_same_pixels(names: list[str]) -> None:
    from torch._inductor import metrics

    policy, (keys, flip_mask), images = policies.resolve(names), draws(2, 256), as_images(photographs(256))
    plain = engine.plan_policy(policy, keys, SHAPE, flip_mask=flip_mask)
    padded = compiled.plan_compiled(policy, keys, SHAPE, flip_mask=flip_mask)
    padded.prepare(images)
    metrics.reset()
    torch.compiler.reset()
    graph = torch.compile(compiled.run_parts, dynamic=False, fullgraph=True)  # a graph break is an error
    for step in range(2):
        assert torch.equal(padded.run_with(graph, images, step), plain.run(images, step))
    assert 0 < metrics.generated_kernel_count <= 150
