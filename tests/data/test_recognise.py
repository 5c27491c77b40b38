"""Which corruption a block of images shows: each of the suite's, none, or a mixture; never with certainty."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images

from comp.data.corruptions.recognise import CLEAN, MIXTURE, NONE, Recogniser, statistics
from comp.data.corruptions.suite import COLOURED, NAMES, corrupt
from tests.support.commands import REPOSITORY

CIFAR10 = REPOSITORY / "data/cifar-10-batches-bin"
# Gaussian blur at severity 1 and defocus blur at 1 have nearly the same kernel.
TWINS = ({"gaussian_blur", "defocus_blur"},)


def photographs(count: int, seed: int, side: int = 16) -> NDArray[np.uint8]:
    """Return random patches of scikit-learn's two photographs at a third of their size, [count, side, side, 3]."""
    draw = np.random.default_rng(seed)
    pictures = [Image.fromarray(image).reduce(3) for image in load_sample_images().images]
    patches = []
    for number in range(count):
        picture = pictures[number % 2]
        left, top = draw.integers(0, picture.width - side), draw.integers(0, picture.height - side)
        patches.append(np.asarray(picture)[top : top + side, left : left + side])
    return np.stack(patches)


def corrupted(images: NDArray[np.uint8], name: str, severity: int, seed: int = 5) -> NDArray[np.uint8]:
    batch = torch.from_numpy(images.copy()).permute(0, 3, 1, 2)
    return corrupt(batch, name, severity, seed=seed, indices=torch.arange(len(images))).permute(0, 2, 3, 1).numpy()


def names_agree(first: str, second: str) -> bool:
    return first == second or {first, second} in TWINS


@pytest.fixture(scope="module")
def recogniser() -> Recogniser:
    return Recogniser(photographs(60, seed=1), seed=1)


@pytest.fixture(scope="module")
def fresh() -> NDArray[np.uint8]:
    return photographs(100, seed=2)


def test_most_corruptions_of_other_images_are_named(recogniser: Recogniser, fresh: NDArray[np.uint8]) -> None:
    verdicts = {name: recogniser.judge(corrupted(fresh, name, 4)) for name in NAMES}
    right = [name for name, verdict in verdicts.items() if names_agree(name, verdict.name)]
    assert len(right) >= 18
    assert sum(verdicts[name].severity == 4 for name in right) >= 13
    assert 0 < max(verdict.share for verdict in verdicts.values()) < 1


def test_clean_images_are_clean_even_upside_down(recogniser: Recogniser, fresh: NDArray[np.uint8]) -> None:
    for images in (fresh, fresh[:, ::-1]):
        verdict = recogniser.judge(images)
        assert (verdict.name, verdict.severity, verdict.is_corruption) == (CLEAN, 0, False), verdict
        assert 0 < verdict.share < 1


def test_what_no_corruption_explains_is_none_of_them(recogniser: Recogniser, fresh: NDArray[np.uint8]) -> None:
    board = (np.indices(fresh.shape[1:3]).sum(0) % 2 == 0)[..., None]
    for images in (np.where(board, fresh, 255 - fresh), fresh // 64 * 64, np.full_like(fresh, 90)):
        verdict = recogniser.judge(images)
        assert verdict.name == NONE
        assert verdict.share == 0


def test_a_mixture_is_told_with_its_parts(recogniser: Recogniser, fresh: NDArray[np.uint8]) -> None:
    images = fresh.copy()
    images[:60] = corrupted(fresh[:60], "gaussian_noise", 5)
    verdict = recogniser.judge(images)
    assert verdict.name == MIXTURE
    assert verdict.mixture["gaussian_noise"] == pytest.approx(0.6, abs=0.2)
    assert sum(verdict.mixture.values()) <= 1 + 1e-9


def test_the_held_out_blocks_are_counted(recogniser: Recogniser) -> None:
    assert recogniser.held_out == 96
    assert 80 <= recogniser.right <= 96


@pytest.mark.parametrize(("channels", "left_out"), [(1, ("saturate",)), (4, COLOURED)])
def test_images_of_other_channels_have_the_corruptions_they_can_have(channels: int, left_out: tuple[str, ...]) -> None:
    images = np.repeat(photographs(12, seed=3, side=8)[..., :1], channels, 3)
    recogniser = Recogniser(images, seed=0)
    assert set(recogniser.names) == {CLEAN, *NAMES} - set(left_out)
    assert recogniser.judge(images).name in {*recogniser.names, NONE, MIXTURE}


@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 13, 3), (20, 11, 4), (120, 100, 3)])
def test_statistics_of_an_image_do_not_depend_on_the_others(shape: tuple[int, int, int]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, *shape), dtype=np.uint8)
    together = statistics(images)
    alone = np.concatenate([statistics(images[row : row + 1]) for row in range(7)])
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=0.01)
    assert np.isfinite(statistics(np.zeros_like(images))).all()


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR10.is_dir(), reason="CIFAR-10 is not in data/")
def test_blocks_of_a_hundred_cifar_10_test_images_are_right_nearly_always() -> None:
    train, test = (
        np.fromfile(CIFAR10 / f"{name}.bin", np.uint8).reshape(-1, 3073)[:, 1:].reshape(-1, 3, 32, 32)
        for name in ("data_batch_1", "test_batch")
    )
    recogniser = Recogniser(train[:120].transpose(0, 2, 3, 1), seed=1)
    images = np.ascontiguousarray(test[:100].transpose(0, 2, 3, 1))
    assert recogniser.judge(images).name == CLEAN
    blocks = [(name, severity) for name in NAMES for severity in (1, 2, 4)]
    wrong = [block for block in blocks if not names_agree(recogniser.judge(corrupted(images, *block)).name, block[0])]
    assert len(wrong) <= 2, wrong
