"""What a prediction is expected to score, told without labels."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comp.inference import accuracy_estimate
from comp.results import predictions
from comp.results.blocks import Block, block_grid
from comp.results.diagnostics import confidences
from comp.results.predictions import Predictions
from tests.support.commands import Result
from tests.support.configs import small
from tests.support.runs import the_run


def drawn(layout: tuple[Block, ...], seed: int, spread: float) -> Predictions:
    """Return predictions that are nearly calibrated: each block is off in its own way."""
    generator = np.random.default_rng(seed)
    logits, labels = [], []
    for block in layout:
        scale = generator.uniform(0.2, 2.5)
        values = generator.normal(0, scale, (block.count, 5))
        # What is said is surer or less sure than what is true, by a factor of the block's own.
        truth = np.exp(values * np.exp(generator.normal(0, spread)))
        truth /= truth.sum(1, keepdims=True)
        labels.append([generator.choice(5, p=row) for row in truth])
        logits.append(values)
    return predictions.from_outputs(
        np.concatenate(logits).astype(np.float32),
        task="single_label",
        ids=np.concatenate([block.ids() for block in layout]),
        classes="abcde",
        targets=np.concatenate(labels),
        made_by={},
        blocks=[(block.name, block.count) for block in layout],
    )


ALL = block_grid(range(19), (1, 3, 5), 60)
THREE_FAMILIES = tuple(block for block in ALL if block.distortion not in (7, 8, 9, 10, 17))  # all but the weather


@given(seed=st.integers(0, 1000))
def test_the_estimate_on_what_it_was_calibrated_on_is_its_accuracy(seed: int) -> None:
    found = drawn(block_grid(range(4), (1, 5), 40), seed, 0.3)
    calibration = accuracy_estimate.calibrate(found)
    assert calibration is not None
    assert found.targets is not None
    pooled = (confidences(found) >= calibration.threshold).mean()
    assert pooled == pytest.approx((found.top1 == found.targets).mean(), abs=2 / len(found))


def test_the_interval_covers_nine_in_ten_blocks_of_a_family_that_it_has_not_seen() -> None:
    covered = []
    for seed in range(8):
        found = drawn(ALL, seed, 0.2)
        calibration = accuracy_estimate.calibrate(drawn(THREE_FAMILIES, 100 + seed, 0.2))
        assert calibration is not None
        estimates = accuracy_estimate.estimate_accuracy(found, calibration).by_block
        truth = found.block_accuracy()
        weather = {block.name for block in ALL} - {block.name for block in THREE_FAMILIES}
        covered += [abs(estimates[name] - truth[name]) <= calibration.margin for name in weather]
    assert np.mean(covered) >= 0.88  # 120 blocks: a standard deviation is 0.03


def test_one_family_alone_says_nothing_of_others() -> None:
    assert accuracy_estimate.calibrate(drawn(block_grid(range(3), (1,), 20), 0, 0.2)) is None


def test_predict_prints_what_a_folder_of_distortions_should_score_before_and_after(
    workplace: Path, comp: Callable[..., Result]
) -> None:
    assert comp("train", small({"name": "fastnet", "args": {"size": "S"}})).code == 0
    run = the_run()
    folder = Path("strange")
    folder.mkdir()
    for number in (0, 7, 42):
        pixels = np.random.default_rng(number).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
        np.save(folder / f"distortion{number:02d}.npy", pixels)
    assert comp("predict", run.path, "--suite", folder, "--severities", 2).code == 0
    result = comp("predict", run.path, "--suite", folder, "--severities", 2, "--adapt", "bn", "-o", "strange.csv")
    assert result.code == 0, result.err
    assert "estimated accuracy" in result.out
    assert "before adapting" in result.out
    lines = Path("strange.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines[1:5]] == [
        "distortion00_1_0", "distortion00_1_1", "distortion00_1_2", "distortion00_2_0",
    ]  # fmt: skip
    assert len(lines) == 1 + 18
    assert lines[-1].startswith("distortion42_2_2,")
    (plain,) = [p.stem for p in (run.path / "predictions").glob("suite-strange-????????.npz")]
    assert (run.path / "predictions" / f"{plain}+bn.npz").exists()
    expected = run.metrics().expected
    assert expected[f"{plain}+bn"].before == expected[plain].accuracy
    np.save(folder / "distortion42.npy", pixels[:4])
    assert comp("predict", run.path, "--suite", folder, "--severities", 2).code == 2  # files of two lengths
    for number in (0, 7):
        np.save(folder / f"distortion{number:02d}.npy", pixels[:4])
    assert comp("predict", run.path, "--suite", folder, "--severities", 2).code == 0
    assert len(list((run.path / "predictions").glob("suite-strange-????????.npz"))) == 2  # neither replaces the other
    refused = comp("predict", run.path, "--suite", folder, "--severities", 3)
    assert refused.code == 2
    assert "multiple of 3" in refused.err
