"""Which of the best trials noise tells apart, and which of them is recommended."""

from hypothesis import given
from hypothesis import strategies as st

from comp.tuning.confirm import ConfirmedTrial, mark_within_noise, recommended


def again(
    trial: int, *scores: float, seconds: float = 10.0, parameters: int = 100, epochs: float = 100
) -> ConfirmedTrial:
    """Return a trial's scores with new seeds."""
    return ConfirmedTrial(trial, max(scores), scores, sum(scores) / len(scores), None, seconds, parameters, epochs)


def near(*rows: ConfirmedTrial) -> list[int]:
    """Return the trials within noise of the first."""
    return [row.trial for row in mark_within_noise(rows) if row.within_noise]


def test_scores_that_overlap_are_within_noise_and_clear_losers_are_not() -> None:
    assert near(again(0, 0.90, 0.92, 0.91), again(1, 0.89, 0.91, 0.92), again(2, 0.70, 0.71, 0.69)) == [0, 1]


def test_a_small_difference_tells_where_noise_is_smaller() -> None:
    assert near(again(0, 0.900, 0.901, 0.899), again(1, 0.890, 0.891, 0.889)) == [0]


def test_single_scores_tell_nothing_of_noise() -> None:
    assert near(again(0, 0.9), again(1, 0.9), again(2, 0.1)) == [0]


def test_less_is_better_works_the_same() -> None:
    assert near(again(0, 0.30, 0.32, 0.31), again(1, 0.31, 0.32, 0.30), again(2, 0.50, 0.51, 0.52)) == [0, 1]


def test_the_cheaper_of_equals_is_recommended_and_the_best_where_none_is_clearly_cheaper() -> None:
    scores = (0.90, 0.92, 0.91)
    found = mark_within_noise([again(0, *scores), again(1, *scores, epochs=95), again(2, 0.1, 0.1, 0.1, epochs=10)])
    assert recommended(found, budgeted=False).trial == 0
    found = mark_within_noise([again(0, *scores), again(1, *scores, epochs=50), again(2, 0.1, 0.1, 0.1, epochs=10)])
    assert recommended(found, budgeted=False).trial == 1
    found = mark_within_noise([again(0, *scores), again(1, *scores, parameters=50)])
    assert recommended(found, budgeted=True).trial == 1


def test_what_few_scores_cannot_tell_from_the_best_is_not_taken_where_it_may_be_much_worse() -> None:
    """Of a study of the digits: trial 9 took a quarter less."""
    found = mark_within_noise(
        [again(7, 0.9722, 0.9722, 0.9792, epochs=14), again(9, 0.9514, 0.9028, 0.9722, epochs=11)]
    )
    assert [row.within_noise for row in found] == [True, True]
    assert recommended(found, budgeted=False).trial == 7


@given(st.lists(st.floats(0.01, 100), min_size=3, max_size=3), st.booleans())
def test_seconds_never_decide(seconds: list[float], budgeted: bool) -> None:
    scores = (0.90, 0.92, 0.91)
    rows = [again(number, *scores, seconds=value, epochs=100 - number) for number, value in enumerate(seconds)]
    assert recommended(mark_within_noise(rows), budgeted=budgeted).trial == 0


@given(st.lists(st.lists(st.floats(0, 1), min_size=2, max_size=4), min_size=1, max_size=4))
def test_the_best_is_always_within_noise_of_itself(scores: list[list[float]]) -> None:
    rows = sorted((again(number, *row) for number, row in enumerate(scores)), key=lambda row: -row.mean)
    assert near(*rows)[0] == rows[0].trial
