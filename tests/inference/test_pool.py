"""Cross-block pooling: what proves that rows are the same photographs, what is combined, and where it is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from comp.data.splits import Split, Suite
from comp.inference import pool
from comp.results import leaderboard, prediction_files, predictions
from comp.results.blocks import Block
from comp.results.predictions import Predictions
from comp.runtime.errors import ConfigError
from tests.support.commands import Result, assert_refused
from tests.support.images import photographs
from tests.support.runs import the_run

CONFIG = (
    "small.yaml",
    "train.epochs=1",
    "competition.suite.files=3",
    "competition.suite.severities=2",
    "competition.suite.images_per_block=24",
)


def split(name: str, pixels: NDArray[np.uint8]) -> Split:
    """Return a block."""
    return Split(name, pixels, np.arange(len(pixels)).astype(np.str_), None)


def noisy(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return copies under strong noise, half as bright."""
    noise = np.random.default_rng(0).normal(0, 40, pixels.shape)
    return np.clip(pixels * 0.5 + 30 + noise, 0, 255).astype(np.uint8)


def blocks(*parts: NDArray[np.float32]) -> Predictions:
    """Return predictions of equal blocks from their logits."""
    outputs = np.concatenate(parts)
    return predictions.from_outputs(
        outputs,
        task="single_label",
        ids=np.arange(len(outputs)).astype(np.str_),
        classes="abc",
        targets=None,
        made_by={},
        blocks=[(f"distortion{number:02d}_1", len(part)) for number, part in enumerate(parts)],
    )


def test_distorted_copies_are_proved_to_be_the_same_photographs() -> None:
    matcher, pixels = pool.PhotographMatcher(), photographs(40)
    for number, block in enumerate((pixels, noisy(pixels))):
        matcher.add(split(f"distortion{number:02d}_1", block))


@pytest.mark.parametrize("moved", [40, 20])
def test_rows_in_another_order_are_refused(moved: int) -> None:
    matcher, pixels = pool.PhotographMatcher(), photographs(40)
    matcher.add(split("distortion00_1", pixels))
    order = np.arange(40)
    order[:moved] = np.roll(order[:moved], 1)
    with pytest.raises(ConfigError, match=r"predict.pool.*distortion01_1.*--pool none"):
        matcher.add(split("distortion01_1", noisy(pixels)[order]))


def test_blocks_of_other_sizes_too_few_rows_and_no_blocks_are_refused() -> None:
    def suite(*counts: int) -> Suite:
        blocks = tuple(Block(number, 1, count) for number, count in enumerate(counts))
        return Suite("suite", blocks, lambda block: split(block.name, photographs(block.count)))

    pool.check_blocks(suite(40, 40))
    for images, problem in (
        (suite(40, 30), "40 images in distortion00_1 and 30 in distortion01_1"),
        (suite(4, 4), "16 images or more"),
        (split("suite", photographs(40)), "no blocks"),
        (None, "no blocks"),
    ):
        with pytest.raises(ConfigError, match=problem):
            pool.check_blocks(images)


def test_a_sure_block_outweighs_a_doubtful_one() -> None:
    sure, doubtful = np.array([[9, 0, 0]], np.float32), np.array([[0, 0.2, 0]], np.float32)
    pooled = pool.combine_blocks(blocks(sure, doubtful, doubtful))
    assert pooled.top1 is not None
    assert pooled.top1.tolist() == [0, 0, 0]


def test_blocks_that_agree_keep_their_probabilities() -> None:
    one = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    plain = blocks(one, one)
    pooled = pool.combine_blocks(plain)
    assert np.allclose(pooled.probabilities(), plain.probabilities(), atol=1e-3)
    assert np.array_equal(pooled.ids, plain.ids)


def test_permuted_rows_are_pooled_alike() -> None:
    generator = np.random.default_rng(0)
    first, second = (generator.normal(size=(6, 3)).astype(np.float32) for _ in range(2))
    order = generator.permutation(6)
    plain, permuted = (pool.combine_blocks(blocks(first[rows], second[rows])) for rows in (np.arange(6), order))
    assert np.array_equal(permuted.outputs[:6], plain.outputs[:6][order])


def test_pooled_scores_have_a_column_of_their_own(workplace: Path, comp: Callable[..., Result]) -> None:
    assert comp("run", *CONFIG).code == 0
    run = the_run()
    result = comp("predict", run.path, "--pool", "blocks", "--json")
    assert result.code == 0, result.err
    stored = prediction_files.load(run.path / "predictions/suite+pool-blocks.npz")
    first, *others = (stored.outputs[rows] for _, rows in stored.blocks())
    assert all(np.array_equal(first, other) for other in others)
    (csv,) = json.loads(result.out).values()
    sidecar = json.loads(Path(csv).with_suffix(".json").read_text())
    assert sidecar["transductive"]
    assert sidecar["made_by"]["pool"] == "blocks"
    rows_of = {row.variant: row for row in leaderboard.read_rows(Path("runs"))}
    pooled = rows_of["+pool-blocks"]
    assert pooled.pooled_accuracy == pooled.pooled_metric == run.metrics().variants["suite+pool-blocks"].accuracy
    assert pooled.suite_accuracy is pooled.suite_metric is pooled.ood_metric is pooled.expected_accuracy is None
    assert rows_of[""].suite_accuracy == run.metrics().suite.accuracy
    assert rows_of[""].pooled_accuracy is None
    assert "pooled" in comp("leaderboard").out
    for split_name in ("val", "test"):
        assert_refused(comp("predict", run.path, "--pool", "blocks", "--split", split_name), split_name, "no blocks")
    assert_refused(comp("predict", run.path, "--pool", "all"), "--pool", "'blocks'", "all")


def test_a_config_that_pools_submits_pooled_predictions(workplace: Path, comp: Callable[..., Result]) -> None:
    result = comp("run", *CONFIG, "predict.pool=blocks", "competition.ood_validation.severities=[]")
    assert result.code == 0, result.err
    (row,) = leaderboard.read_rows(Path("runs"))
    assert row.variant == "+pool-blocks"
    assert row.pooled_accuracy is not None
    assert row.suite_accuracy is None


def test_an_ensemble_of_pooled_runs_is_scored_as_pooled(workplace: Path, comp: Callable[..., Result]) -> None:
    for seed in (0, 1):
        assert comp("run", *CONFIG, "predict.pool=blocks", f"seed={seed}").code == 0
    made = comp("ensemble", *sorted(Path("runs/small").iterdir()), "--runs", "made", "--method", "mean")
    assert made.code == 0, made.err  # shifted validation shows other images in each block, so it is not pooled
    (row,) = leaderboard.read_rows(Path("made"))
    assert row.pooled_accuracy is not None
    assert row.ood_metric is not None
    assert row.suite_accuracy is row.expected_accuracy is None


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["competition.rules.cross_block=false"], ("predict.pool", "cross_block")),
        (["competition.rules.transductive=false"], ("predict.pool", "transductive")),
        (["competition.task=regression"], ("predict.pool", "regression")),
        (["competition.suite.source=test"], ("predict.pool", "no blocks")),
        (["competition.suite.images_per_block=6"], ("predict.pool", "16 images", "found 6")),
    ],
)
def test_pooling_is_refused_where_rules_or_task_forbid_it(
    workplace: Path, comp: Callable[..., Result], overrides: list[str], parts: tuple[str, ...]
) -> None:
    assert_refused(comp("train", *CONFIG, "predict.pool=blocks", *overrides), *parts)


def test_another_suite_in_another_order_is_refused_and_leaves_no_file(
    workplace: Path, comp: Callable[..., Result]
) -> None:
    assert comp("train", *CONFIG, "competition.ood_validation.severities=[]").code == 0
    pixels = np.load("data/test_images.npy")[:32]
    Path("shuffled").mkdir()
    for number in range(2):
        order = np.random.default_rng(number).permutation(32)
        np.save(f"shuffled/distortion{number:02d}.npy", pixels[order])
    options = ("--suite", "shuffled", "--severities", "1")
    refused = comp("predict", the_run().path, "--pool", "blocks", *options)
    assert_refused(refused, "predict.pool", "distortion01_1")
    assert not list((the_run().path / "predictions").glob("*pool*.npz"))
    assert comp("predict", the_run().path, *options).code == 0
