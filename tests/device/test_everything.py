"""Everything that computes runs on a GPU that is not here, and agrees with the CPU.

Parametrised over what the registries hold: a new op, policy, optimizer, average, view or corruption arrives checked.
"""

import pytest

from tests.support.on_device import Outcomes, augmentation, parts, trainings

pytestmark = pytest.mark.slow

_AUGMENTATION, _PARTS, _TRAININGS = list(augmentation.checks()), list(parts.checks()), list(trainings.checks())
# On Apple's MPS images are augmented on the CPU, so the ops themselves need not run there; and precision is float32.
_ON_MPS_TRAININGS = [*(f"training/{name}" for name in trainings.ON_MPS), "predictions"]


@pytest.mark.parametrize("name", _AUGMENTATION)
def test_pixels_on_cuda_equal_the_cpus(outcomes: Outcomes, name: str) -> None:
    outcome = outcomes("cuda", _AUGMENTATION)[name]
    assert not outcome.error, outcome.error


@pytest.mark.parametrize("name", _PARTS)
def test_parts_of_a_training_compute_on_cuda_what_they_do_on_the_cpu(outcomes: Outcomes, name: str) -> None:
    outcome = outcomes("cuda", _PARTS)[name]
    assert not outcome.error, outcome.error


@pytest.mark.parametrize("name", _TRAININGS)
def test_runs_on_cuda_end_with_the_cpus_weights_and_scores(outcomes: Outcomes, name: str) -> None:
    outcome = outcomes("cuda", _TRAININGS)[name]
    assert not outcome.error, outcome.error


@pytest.mark.parametrize("name", _PARTS)
def test_parts_of_a_training_do_without_doubles_on_mps(outcomes: Outcomes, name: str) -> None:
    outcome = outcomes("mps", _PARTS)[name]
    assert not outcome.error, outcome.error


@pytest.mark.parametrize("name", _ON_MPS_TRAININGS)
def test_runs_on_mps_do_without_doubles_and_end_as_on_the_cpu(outcomes: Outcomes, name: str) -> None:
    outcome = outcomes("mps", _ON_MPS_TRAININGS)[name]
    assert not outcome.error, outcome.error
