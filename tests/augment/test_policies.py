"""Policies as data, and what the engine makes of them."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import AutoAugment, AutoAugmentPolicy

from comp.augment.engine import alternating_flip_mask, augment
from comp.augment.ops import OPS, WORKER_OPS, Mixture, OneOf, Op, Policy
from comp.augment.policies import POLICIES, resolve
from comp.config import load
from comp.data.corruptions import suite
from comp.runtime import rng
from comp.runtime.errors import ConfigError
from tests.support.commands import Result
from tests.support.images import pictures
from tests.support.parameters import slow_except


def run(policy: Policy, images: torch.Tensor, epoch: int = 0, first: int = 0) -> torch.Tensor:
    indices = torch.arange(first, first + len(images))
    return augment(images, policy, rng.keys(0, epoch, indices), flip_mask=alternating_flip_mask(0, epoch, indices))


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(("side", "channels"), [(32, 3), (28, 1)])
def test_every_policy_runs_on_tensors(name: str, side: int, channels: int) -> None:
    images = pictures(64, side, channels)
    before = images.clone()
    done = run(resolve(name), images)
    assert done.shape == images.shape
    assert done.dtype == torch.uint8
    assert done.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)
    assert torch.equal(done, images) == (name == "none")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", POLICIES)
def test_a_cuda_device_gives_the_same_pixels(name: str) -> None:
    images, keys, flip_mask = pictures(512), rng.keys(0, 0, torch.arange(512)), torch.arange(512) % 2 == 0
    here = augment(images, resolve(name), keys, flip_mask=flip_mask)
    there = augment(images.cuda(), resolve(name), keys.cuda(), flip_mask=flip_mask.cuda()).cpu()
    assert (here.int() - there.int()).abs().max() <= 1


def test_policies_are_known_without_torch() -> None:
    code = "import sys, comp.augment.policies; sys.exit('torch' in sys.modules or 'albumentations' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


_SHARE = """
import sys, numpy as np, torch
from comp.augment.engine import alternating_flip_mask, augment
from comp.augment.policies import resolve
from comp.runtime import rng
name, rank, ranks, path = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
images = torch.from_numpy(np.load(path))
order = rng.order(5, 2, len(images))
mine = torch.cat([order[start : start + 4] for start in range(4 * rank, len(order), 4 * ranks)])  # batches in turn
flip_mask = alternating_flip_mask(5, 2, mine)
batch = augment(images[mine].permute(0, 3, 1, 2), resolve(name), rng.keys(5, 2, mine), flip_mask=flip_mask)
pixels = batch.permute(0, 2, 3, 1).numpy()
np.savez(f"{path}.{name}.{rank}of{ranks}.npz", mine=mine.numpy(), batch=pixels)
"""


@pytest.mark.parametrize("name", slow_except(["mirrored_crop", "robust"], "mirrored_crop"))
def test_a_samples_pixels_do_not_depend_on_how_many_processes_share_the_epoch(name: str, tmp_path: Path) -> None:
    path = tmp_path / "images.npy"
    np.save(path, pictures(64).permute(0, 2, 3, 1).numpy())
    found = []
    for ranks in (1, 2):
        commands = [[sys.executable, "-c", _SHARE, name, str(rank), str(ranks), str(path)] for rank in range(ranks)]
        workers = [subprocess.Popen(command) for command in commands]
        assert [worker.wait(timeout=120) for worker in workers] == [0] * ranks
        parts = [np.load(f"{path}.{name}.{rank}of{ranks}.npz") for rank in range(ranks)]
        place = np.argsort(np.concatenate([part["mine"] for part in parts]))
        found.append(np.concatenate([part["batch"] for part in parts])[place])
    alone, together = found
    assert len(alone) == 64
    assert np.array_equal(alone, together)


@pytest.mark.parametrize("name", POLICIES)
def test_a_samples_pixels_do_not_depend_on_the_batch(name: str) -> None:
    policy, images = resolve(name), pictures(97)
    whole = run(policy, images, epoch=1)
    for size in (1, 13, 64):
        starts = range(0, 26 if size == 1 else 97, size)
        pieces = torch.cat([run(policy, images[start : start + size], 1, start) for start in starts])
        assert torch.equal(whole[: len(pieces)], pieces)


def test_epochs_and_samples_draw_anew() -> None:
    policy, images = resolve(["basic", "color_jitter"]), pictures(1).expand(64, 3, 32, 32)
    first, second = run(policy, images), run(policy, images, epoch=1)
    assert len(first.flatten(1).unique(dim=0)) == 64
    assert not (first == second).flatten(1).all(1).any()


def test_unknown_policies_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"augment.policy: unknown policy 'basics'.*did you mean 'basic'"):
        resolve(["cutout", "basics"])


def test_policies_in_turn_are_one_policy() -> None:
    both = resolve(["basic", "color_jitter"])
    assert both.stages == POLICIES["basic"].stages + POLICIES["color_jitter"].stages
    assert both.imitates == {"brightness", "contrast", "saturate"}
    assert resolve("none") == POLICIES["none"]


@pytest.mark.parametrize("name", POLICIES)
def test_policies_are_well_formed(name: str) -> None:
    policy = POLICIES[name]
    assert bool(policy.paper) == (name != "none")
    assert hash(policy) == hash(resolve(name))
    assert {op.name for op in policy.ops} <= set(OPS | WORKER_OPS)
    for op in policy.ops:
        assert 0 <= op.probability <= 1


@pytest.mark.parametrize("name", ["cifar10", "imagenet"])
def test_the_published_subpolicies_are_torchvisions(name: str) -> None:
    """Same ops, probabilities and strengths; a level of 10 is a share of the op's range."""
    theirs = AutoAugment(AutoAugmentPolicy(name))
    renamed = {"Color": "saturation", "ShearX": "shear_x", "ShearY": "shear_y"}
    renamed |= {"TranslateX": "translate_x", "TranslateY": "translate_y"}
    ends = theirs._augmentation_space(10, (331, 331))
    (choice,) = POLICIES[f"autoaugment_{name}"].stages
    assert isinstance(choice, OneOf)
    assert len(choice.branches) == len(theirs.policies) == 25
    for branch, pair in zip(choice.branches, theirs.policies, strict=True):
        for op, (their_name, probability, level) in zip(branch, pair, strict=True):
            assert isinstance(op, Op)
            assert (op.name, op.probability) == (renamed.get(their_name, their_name.lower()), probability)
            magnitudes, signed = ends[their_name]
            magnitude = 0.0 if level is None else float(magnitudes[level])
            magnitude /= 331 if their_name.startswith("Translate") else 1
            ours = round(op.low) if op.name == "posterize" else op.low
            assert op.signed == signed
            assert ours == pytest.approx(magnitude, abs=1e-4)


def test_what_is_imitated_is_the_suites_and_nothing_of_it_is_left_out() -> None:
    imitated = [row.imitates for row in OPS.values()]
    assert frozenset().union(*imitated) == set(suite.NAMES)


# Held to this list, so that an op that comes in has to be judged.
GENERIC = {
    "crop", "crop_mirrored", "flip", "alternating_flip", "cutout", "random_erasing", "shear_x", "shear_y",
    "shear_x_bilinear", "shear_y_bilinear", "translate_x", "translate_y", "rotate", "rotate_bilinear", "hue",
    "posterize", "solarize", "autocontrast", "equalize", "invert", "fractal", "random_filter", "random_colour",
}  # fmt: skip


def test_robust_has_seen_every_kind_of_corruption_and_the_strict_one_none() -> None:
    assert POLICIES["robust"].imitates == set(suite.NAMES)
    assert POLICIES["robust_strict"].imitates == frozenset()


def test_only_generic_ops_imitate_nothing() -> None:
    assert {name for name, row in OPS.items() if not row.imitates} == GENERIC


def test_every_op_can_be_asked_for_in_yaml(tmp_path: Path) -> None:
    rows = "".join(f"\n    - {{name: {name}, p: 0.9, magnitude: [0.1, 0.3]}}" for name in OPS)
    (tmp_path / "all.yaml").write_text(f"augment:\n  policy: none\n  ops:{rows}\n")
    read = load(tmp_path / "all.yaml").augment
    policy = resolve(read.policy, read.ops)
    assert policy.imitates == set(suite.NAMES)
    images = pictures(16)
    done = run(policy, images)
    assert done.shape == images.shape
    assert not torch.equal(done, images)


def test_what_imitates_the_suite_says_so() -> None:
    assert POLICIES["augmix"].imitates == POLICIES["basic"].imitates == frozenset()
    assert "brightness" in POLICIES["autoaugment_cifar10"].imitates
    never = Policy((OneOf(((Op("contrast", 0.0),),)),))
    assert never.imitates == frozenset()


def test_branches_and_probabilities_are_drawn_as_stated() -> None:
    """Each op leaves a mark of its own on a grey image: how often each mark is seen is the op's frequency."""
    branches = ((Op("invert", 0.5),), (Op("brightness", 0.8, -1.0, -1.0),), (Op("solarize", 1.0, 90.0, 90.0),), ())
    count = 40_000
    images = torch.full((count, 1, 1, 1), 100, dtype=torch.uint8)
    levels = run(Policy((OneOf(branches),)), images).flatten()
    seen = [int((levels == level).sum()) for level in (0, 100, 155)]  # black, untouched, inverted either way
    expected = [0.25 * 0.8, 0.25 * 0.5 + 0.25 * 0.2 + 0.25, 0.25 * 0.5 + 0.25]
    assert stats.chisquare(seen, [count * share for share in expected]).pvalue > 1e-3


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (5.0, 1.0, 3.0, 1.0)])
def test_branches_are_as_likely_as_their_weights(weights: tuple[float, ...]) -> None:
    branches = tuple((Op("brightness", 1.0, change, change),) for change in (-0.75, -0.5, -0.25, 0.25))
    count = 40_000
    images = torch.full((count, 1, 1, 1), 100, dtype=torch.uint8)
    levels = run(Policy((OneOf(branches, weights),)), images).flatten()
    seen = [int((levels == level).sum()) for level in (25, 50, 75, 125)]
    expected = [count * weight / sum(weights) for weight in weights]
    assert stats.chisquare(seen, expected).pvalue > 1e-3


def test_ops_draw_independently_of_each_other() -> None:
    policy = Policy((OneOf(((Op("flip", 0.5), Op("invert", 0.5)),)), OneOf(((Op("brightness", 0.5, -0.5, -0.5),),))))
    images = torch.tensor([40, 60], dtype=torch.uint8).view(1, 1, 1, 2).expand(4000, 1, 1, 2)
    kinds = run(policy, images).flatten(1).unique(dim=0, return_counts=True)[1]
    assert len(kinds) == 8
    assert stats.chisquare(kinds.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("steps", [0, 5])
def test_magnitudes_are_uniform_and_signs_are_fair(steps: int) -> None:
    policy = Policy((OneOf(((Op("translate_x", 1.0, 0.0, 0.5, True, steps),),)),))
    images = torch.zeros(20_000, 1, 1, 64, dtype=torch.uint8)
    images[..., 32] = 255
    places = run(policy, images).flatten(1).int().argmax(1) - 32
    places = places[places.abs() < 32]  # +32 takes the dot out
    if steps:
        assert set(places.tolist()) == {-24, -16, -8, 0, 8, 16, 24}
        counts = np.array([int((places == -8).sum()), int((places == 8).sum()), int((places == 24).sum())])
        assert stats.chisquare(counts).pvalue > 1e-3
    else:
        counts = np.bincount((places + 32).numpy(), minlength=64)[1:]
        counts = np.delete(counts, 31)  # nought gathers both signs
        assert stats.chisquare(counts).pvalue > 1e-3


def test_alternating_flip_shows_each_side_every_other_epoch() -> None:
    policy = Policy((OneOf(((Op("alternating_flip"),),)),))
    images = pictures(500)
    epochs = [run(policy, images, epoch) for epoch in range(3)]
    assert torch.equal(epochs[0], epochs[2])
    assert torch.equal(epochs[0], epochs[1].flip(3))
    mirrored = (epochs[0] == images.flip(3)).flatten(1).all(1)
    assert mirrored.float().mean() == pytest.approx(0.5, abs=0.1)


def test_color_jitter_draws_every_order() -> None:
    (choice,) = POLICIES["color_jitter"].stages
    assert isinstance(choice, OneOf)
    assert len({tuple(op.name for op in branch) for branch in choice.branches}) == 24


def test_a_mixture_of_idle_chains_is_the_image() -> None:
    images = pictures(50)
    done = run(Policy((Mixture((Op("invert", 0.0),), 3, 3, 1.0),)), images)
    assert (done.int() - images.int()).abs().max() <= 1


def test_a_mixture_blends_by_beta() -> None:
    images = torch.zeros(20_000, 1, 1, 1, dtype=torch.uint8)
    done = run(Policy((Mixture((Op("invert"),), 3, 1, 1.0),)), images).flatten().double().numpy()
    # Every chain is white, so what is seen is 255 times the chains' share, uniform for alpha 1.
    shares = (done + np.random.default_rng(0).random(len(done)) - 0.5) / 255
    assert stats.kstest(shares, stats.uniform.cdf).pvalue > 1e-3


def test_free_ops_follow_the_policy() -> None:
    policy = resolve(
        "basic", [{"name": "invert"}, {"name": "contrast", "p": 0.5, "magnitude": [-0.4, -0.2], "signed": True}]
    )
    assert policy.stages[-1] == OneOf(((Op("invert"), Op("contrast", 0.5, -0.4, -0.2, True)),))
    assert policy.imitates == {"contrast"}
    images = pictures(8)
    assert torch.equal(run(resolve("none", [{"name": "invert"}]), images), ~images)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"p": 0.5}, r"augment.ops\[0\]: expected `name`"),
        ({"name": "brightnes"}, r"augment.ops\[0\].name: unknown op 'brightnes'.*did you mean 'brightness'"),
        ({"name": "brightness", "p": 2}, r"augment.ops\[0\].p: expected a probability"),
        ({"name": "brightness", "magnitude": "much"}, r"augment.ops\[0\].magnitude: expected a number"),
        ({"name": "brightness", "strength": 1}, "check strength"),
        ({"name": "GaussNoise"}, r"augment.ops\[0\]: GaussNoise .*augment.albumentations"),
        ({"name": "random_resized_crop", "magnitude": [0, 2]}, r"augment.ops\[0\].magnitude: .*0.0, 2.0"),
    ],
)
def test_wrong_free_ops_are_named(row: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve("none", [row])


def test_a_competition_may_forbid_what_imitates_its_test(comp: Callable[..., Result], workplace: Path) -> None:
    rule = "competition.rules.test_like_augmentation=false"
    found = comp("config", "check", "small.yaml", rule, "augment.policy=robust")
    assert found.code == 2
    assert "augment.policy: imitates brightness, contrast, defocus_blur" in found.err
    assert comp("config", "check", "small.yaml", rule, "augment.policy=[mirrored_crop,robust_strict]").code == 0


def test_the_leaderboard_marks_what_trained_on_the_tests_corruptions(
    comp: Callable[..., Result], workplace: Path
) -> None:
    short = ("train.epochs=1", "competition.ood_validation.severities=[]")
    assert comp("run", "small.yaml", *short, "augment.policy=robust_strict").code == 0
    assert "test-like" not in comp("leaderboard").out
    assert comp("run", "small.yaml", *short, "augment.policy=robust").code == 0
    assert "test-like" in comp("leaderboard").out.replace("\n", "")
