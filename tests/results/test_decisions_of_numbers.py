"""Predicted numbers become whole ones for kappa: by cut points fitted on other rows, else by rounding."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score

from comp.results import decisions, metrics, prediction_files, predictions
from comp.results.predictions import Predictions
from comp.submission.answers import ANSWERS
from comp.submission.format import SubmissionFormat

KAPPA = "quadratic_weighted_kappa"


def numbers(values: NDArray[np.floating], targets: NDArray[np.integer]) -> Predictions:
    return predictions.from_outputs(
        values.astype(np.float32)[:, None],
        task="regression",
        ids=np.arange(len(values)).astype(np.str_),
        classes=("grade",),
        targets=targets.astype(np.float32),
        made_by={},
    )


@pytest.fixture
def timid() -> Predictions:
    """Predictions that are drawn to the mean, as a squared error makes them; the lowest grade is 2."""
    draw = np.random.default_rng(0)
    targets = draw.integers(2, 7, 400)
    return numbers(4 + 0.4 * (targets - 4) + draw.normal(0, 0.15, 400), targets)


def test_cut_points_raise_the_kappa_of_timid_numbers_and_decide_new_ones(timid: Predictions) -> None:
    plain = metrics.quadratic_weighted_kappa(timid)
    scored, decision = decisions.decide(timid, KAPPA)
    assert decision is not None
    assert decision.kind == "cut_points"
    assert decision.values[0] == 2
    assert len(decision.values) == 5
    assert decision.gain == pytest.approx(metrics.quadratic_weighted_kappa(scored) - plain)
    assert decision.low is not None
    assert decision.low > 0.05
    assert metrics.quadratic_weighted_kappa(scored) == pytest.approx(
        cohen_kappa_score(timid.target_values().astype(int), scored.whole_values().astype(int), weights="quadratic")
    )
    decided = decisions.apply(decision, timid)
    # By a plain loop: a number's grade is the lowest one and one more for each cut point that it reaches.
    low, *cuts = decision.values
    assert decided.whole_values().tolist() == [low + sum(value >= cut for cut in cuts) for value in timid.values()]
    assert metrics.rmse(decided) == metrics.rmse(timid)
    assert decisions.is_sound(decision, 1, numeric=True)


def test_a_fold_does_not_see_its_own_rows(timid: Predictions) -> None:
    noise = np.random.default_rng(1).permutation(timid.target_values().astype(int))
    scored, decision = decisions.decide(numbers(timid.values(), noise), KAPPA)
    assert decision is not None
    assert decision.kind == "argmax"
    assert scored.thresholds is None


def test_cut_numbers_survive_the_disk_and_are_joined_with_rounded_ones(timid: Predictions, tmp_path: Path) -> None:
    scored, decision = decisions.decide(timid, KAPPA)
    assert decision is not None
    prediction_files.save(tmp_path / "p.npz", scored)
    loaded = prediction_files.load(tmp_path / "p.npz")
    assert loaded.whole_values().tolist() == scored.whole_values().tolist()
    assert loaded.targets is not None
    assert loaded.targets.dtype == np.float32
    joined = predictions.concatenate([scored, timid, decisions.apply(decision, timid).take(slice(0, 3))])
    expected = [*scored.whole_values(), *timid.whole_values(), *decisions.apply(decision, timid).whole_values()[:3]]
    assert joined.whole_values().tolist() == expected
    assert joined.take(slice(390, 410)).whole_values().tolist() == expected[390:410]
    assert prediction_files.load_correctness(tmp_path / "p.npz").correct is None


def test_only_a_metric_of_whole_numbers_writes_them(timid: Predictions) -> None:
    decided = decisions.apply(decisions.decide(timid, KAPPA)[1], timid)  # type: ignore[arg-type]
    for whole, values in ((True, decided.whole_values()), (False, timid.values())):
        (cells,) = ANSWERS["value"].write(decided, SubmissionFormat(answer="value", whole=whole))
        assert [float(cell) for cell in cells] == pytest.approx(values.tolist(), rel=1e-7)


def test_few_rows_and_endless_levels_are_rounded() -> None:
    draw = np.random.default_rng(0)
    for targets in (draw.integers(0, 3, 60), draw.integers(0, 5000, 400)):
        scored, decision = decisions.decide(numbers(targets + 0.2, targets), KAPPA)
        assert decision is not None
        assert decision.reason
        assert metrics.quadratic_weighted_kappa(scored) == 1
