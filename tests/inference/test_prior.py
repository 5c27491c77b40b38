"""Known class shares: posteriors scaled to them, in whose files the result lies, and where they are refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from comp.inference import prior
from comp.results import leaderboard, prediction_files
from comp.results.predictions import log_softmax
from comp.runtime.errors import ConfigError
from comp.submission.class_shares import read_prior
from tests.support.commands import Result, assert_refused
from tests.support.configs import QUICK
from tests.support.predictions import predicted
from tests.support.runs import the_run

DECLARED = "competition.balance=declared"


def block(seed: int, rows: int, classes: int, sharpness: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return log posteriors [N, K] that favour some classes, and shares [K] that favour others."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(rows, classes)) * sharpness + generator.normal(size=classes) * sharpness
    shares = generator.dirichlet(np.ones(classes)) + 1e-3
    return log_softmax(logits), shares / shares.sum()


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 80), st.integers(2, 12), st.sampled_from([0.1, 1.0, 8.0, 60.0]))
def test_means_are_the_shares_and_rows_sum_to_one(seed: int, rows: int, classes: int, sharpness: float) -> None:
    posteriors, shares = block(seed, rows, classes, sharpness)
    scaled = np.exp(prior.scale(posteriors, shares, "a block"))
    assert np.abs(scaled.mean(0) - shares).max() <= prior.TOLERANCE
    assert np.allclose(scaled.sum(1), 1)


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_the_order_of_rows_and_of_classes_changes_nothing_else(seed: int) -> None:
    posteriors, shares = block(seed, 30, 5, 2.0)
    generator = np.random.default_rng(seed)
    rows, columns = generator.permutation(30), generator.permutation(5)
    plain = prior.scale(posteriors, shares, "a block")
    permuted = prior.scale(posteriors[rows][:, columns], shares[columns], "a block")
    assert np.allclose(np.exp(plain[rows][:, columns]), np.exp(permuted), atol=1e-5)


def test_it_is_the_fixed_point_of_sinkhorns_alternation() -> None:
    posteriors, shares = block(0, 50, 4, 2.0)
    scaled = np.exp(posteriors)
    for _ in range(2000):
        scaled = scaled * (shares / scaled.mean(0))
        scaled /= scaled.sum(1, keepdims=True)
    assert np.allclose(np.exp(prior.scale(posteriors, shares, "a block")), scaled, atol=1e-5)


def test_shares_that_are_those_of_the_posteriors_change_nothing() -> None:
    posteriors, _ = block(1, 50, 4, 2.0)
    assert np.allclose(prior.scale(posteriors, np.exp(posteriors).mean(0), "a block"), posteriors, atol=1e-6)


def test_a_doubtful_image_goes_to_the_class_that_lacks_one() -> None:
    shares = np.array([[0.98, 0.02], [0.9, 0.1], [0.55, 0.45], [0.03, 0.97]])
    one = predicted(np.array([0, 0, 1, 1]), np.log(shares).astype(np.float32))
    assert one.correct().tolist() == [True, True, False, True]
    assert prior.assign(one, np.array([0.5, 0.5])).correct().all()


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("class,share\n0,0.5\n1,0.2\n", ("sum to 1", "0.7")),
        ("class,share\n0,0.5\n0,0.5\n", ("twice", "'0'")),
        ("class,share\n0,half\n1,0.5\n", ("from 0 to 1", "'half'")),
        ("class,share\n0,nan\n1,0.5\n", ("from 0 to 1", "'nan'")),
        ("name,share\n0,0.5\n1,0.5\n", ("columns class,share", "name,share")),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, content: str, parts: tuple[str, ...]) -> None:
    (tmp_path / "shares.csv").write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_prior(str(tmp_path / "shares.csv"))
    assert all(part in str(caught.value) for part in ("shares.csv", *parts))


def test_a_known_balance_is_scored_marked_and_recorded(workplace: Path, comp: Callable[..., Result]) -> None:
    assert comp("run", "small.yaml", *QUICK).code == 0
    run = the_run()
    assert_refused(comp("predict", run.path, "--prior", "uniform"), "competition.balance", "declared")
    result = comp("predict", run.path, DECLARED, "--prior", "uniform", "--json")
    assert result.code == 0, result.err
    stored = prediction_files.load(run.path / "predictions/suite+prior-uniform.npz")
    for _, rows in stored.blocks():
        assert np.allclose(stored.probabilities(rows).mean(0), 0.25, atol=1e-3)  # outputs are float16
    assert run.metrics().variants["suite+prior-uniform"].transductive
    (csv,) = json.loads(result.out).values()
    sidecar = json.loads(Path(csv).with_suffix(".json").read_text())
    assert sidecar["transductive"]
    assert sidecar["made_by"]["prior"] == "uniform"
    rows_of = {row.variant: row for row in leaderboard.read_rows(Path("runs"))}
    assert rows_of[""].suite_accuracy == run.metrics().suite.accuracy
    assert rows_of["+prior-uniform"].transductive
    Path("shares.csv").write_text("class,share\n0,0.7\n1,0.1\n2,0.1\n3,0.1\n")
    assert comp("predict", run.path, DECLARED, "--prior", "shares.csv", "--split", "test").code == 0
    (path,) = (run.path / "predictions").glob("test+prior-file-*.npz")
    listed = prediction_files.load(path)
    assert np.allclose(listed.probabilities().mean(0), [0.7, 0.1, 0.1, 0.1], atol=1e-3)
    assert listed.made_by["prior"] == {"0": 0.7, "1": 0.1, "2": 0.1, "3": 0.1}
    Path("shares.csv").write_text("class,share\ncat,1\n")
    assert_refused(comp("predict", run.path, DECLARED, "--prior", "shares.csv"), "predict.prior", "no share of 0")
    np.save("images.npy", np.zeros((2, 32, 32, 3), np.uint8))
    assert_refused(comp("predict", run.path, DECLARED, "--prior", "train", "--images", "images.npy"), "--prior")


def test_a_run_keeps_the_shares_that_its_config_names(workplace: Path, comp: Callable[..., Result]) -> None:
    shares = Path("shares.csv")
    shares.write_text("class,share\n0,0.7\n1,0.1\n2,0.1\n3,0.1\n")
    assert comp("run", "small.yaml", *QUICK, DECLARED, "predict.prior=shares.csv").code == 0
    shares.unlink()
    run = the_run()
    assert comp("predict", run.path).code == 0
    assert len(list((run.path / "predictions").glob("suite+prior-file-*.npz"))) == 1
    assert comp("predict", run.path, "--prior", "none").code == 0
    assert (run.path / "predictions/suite.npz").is_file()


def test_shares_of_other_classes_are_refused_before_training(workplace: Path, comp: Callable[..., Result]) -> None:
    Path("shares.csv").write_text("class,share\ncat,1\n")
    assert_refused(comp("train", "small.yaml", DECLARED, "predict.prior=shares.csv"), "predict.prior", "no share of 0")
    assert not list(Path("runs").rglob("config.yaml"))


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["predict.prior=uniform"], ("predict.prior", "competition.balance")),
        (["predict.prior=evenly", DECLARED], ("predict.prior", "uniform", "evenly")),
        (["predict.prior=train", DECLARED, "competition.rules.transductive=false"], ("predict.prior", "transductive")),
        (["predict.prior=train", DECLARED, "competition.task=ordinal"], ("predict.prior", "ordinal")),
        (
            ["predict.prior=train", DECLARED, "competition.test_shares={0: 0.7, 1: 0.1, 2: 0.1, 3: 0.1}"],
            ("predict.prior", "competition.test_shares"),
        ),
    ],
)
def test_configs_that_contradict_a_prior_are_refused(
    workplace: Path, comp: Callable[..., Result], overrides: list[str], parts: tuple[str, ...]
) -> None:
    assert_refused(comp("train", "small.yaml", *overrides), *parts)
