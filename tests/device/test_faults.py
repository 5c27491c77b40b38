"""The pretend device catches what it exists for; and a short selection of the checks, for every run of the suite."""

import pytest

from tests.support.on_device import Outcome, Outcomes
from tests.support.on_device.faults import PLANTS

_NAMES = [
    "fault", "fault without float64", "policy/basic", "policy/cutout", "mixing/both", "view/flip_shift",
    "optimizer/sgd", "loss/cross_entropy", "training/plain",
]  # fmt: skip


@pytest.fixture
def short(outcomes: Outcomes) -> dict[str, Outcome]:
    return outcomes("cuda", _NAMES)


def test_a_tensor_of_the_host_among_those_of_the_device_is_an_error(short: dict[str, Outcome]) -> None:
    error = short["fault/a tensor of the host"].error
    assert "expected all tensors on one device" in error
    assert "cuda:0 and cpu" in error
    assert "augment/" in error  # the line of ours


@pytest.mark.parametrize("plant", ["an item", "a mask"])
def test_a_read_back_is_counted_as_a_wait(short: dict[str, Outcome], plant: str) -> None:
    outcome = short[f"fault/{plant}"]
    assert not outcome.error
    assert outcome.values["waits"] >= 1
    assert outcome.values["copies"] == 0


def test_a_copy_from_the_host_is_counted_as_a_copy_and_not_as_a_wait(short: dict[str, Outcome]) -> None:
    outcome = short["fault/a copy"]
    assert not outcome.error
    assert (outcome.values["waits"], outcome.values["copies"]) == (0, 1)


def test_doubles_are_an_error_where_the_device_knows_none(short: dict[str, Outcome]) -> None:
    assert not short["fault/a double"].error
    assert short["fault/a double"].values["launches"] >= 2
    assert "no torch.float64" in short["fault without float64/a double"].error


def test_a_sound_op_is_neither_an_error_nor_counted_twice(short: dict[str, Outcome]) -> None:
    for name in ("fault/none", "fault without float64/none"):
        assert short[name] == Outcome(values={"waits": 0, "copies": 0, "launches": 0})
    assert set(PLANTS) == {name.partition("/")[2] for name in short if name.startswith("fault/")}


def test_a_short_selection_of_the_checks_passes_as_cuda(short: dict[str, Outcome]) -> None:
    failed = {name: outcome.error for name, outcome in short.items() if outcome.error and not name.startswith("fault")}
    assert not failed, "\n".join(failed.values())
