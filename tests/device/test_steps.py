"""What a training step may ask of a GPU: never to be waited for, one copy from the host, and few launches.

An eager step is bound by its launches long before it is bound by arithmetic: each costs the host 5 to 10 microseconds.
"""

from typing import NamedTuple

import pytest

from tests.support.on_device import Outcomes
from tests.support.on_device.steps import BATCH, SETTINGS

pytestmark = pytest.mark.slow


class Ceiling(NamedTuple):
    """The most that a step may ask for; launches beyond those of the same step without augmentation."""

    launches: int
    waits: int = 0
    copies: int = 1


# Exempt, for neither is ours: what torch's GradScaler reads back in fp16 (whether to skip the step), and what
# torch's optimizers copy or read.
EXEMPT = {"basic, fp16": ("_local_scalar_dense at training/step.py", "_to_copy at training/step.py")}

CEILINGS: dict[str, Ceiling] = {
    "none": Ceiling(0),
    "basic": Ceiling(80),
    "alternating_flip": Ceiling(80),
    "mirrored_crop": Ceiling(80),
    "cutout": Ceiling(40),
    "random_erasing": Ceiling(80),
    "color_jitter": Ceiling(600),
    "photo": Ceiling(240),
    "rotation": Ceiling(40),
    "autoaugment_cifar10": Ceiling(400),
    "autoaugment_imagenet": Ceiling(330),
    "randaugment": Ceiling(450),
    "trivialaugment_wide": Ceiling(240),
    "augmix": Ceiling(500),
    "robust": Ceiling(800),
    "robust_strict": Ceiling(250),
    "basic+robust": Ceiling(800),
    "basic+augmix": Ceiling(550),
    "basic, mixup and cutmix": Ceiling(80),
    "basic, ema, norms and clipping": Ceiling(90),
    "basic, muon": Ceiling(100),
    "basic, bf16": Ceiling(60),
    "basic, fp16": Ceiling(80),
    "basic, cross_entropy and class weights": Ceiling(90),
    "basic, focal and class weights": Ceiling(90),
    "basic, bce and class weights": Ceiling(90),
    "basic, poly and class weights": Ceiling(90),
}
_STEPS = ["steps", *(f"step/{name}" for name in SETTINGS)]


def test_every_policy_has_a_ceiling() -> None:
    assert CEILINGS.keys() == SETTINGS.keys()


@pytest.mark.parametrize("name", SETTINGS)
def test_a_step_stays_under_its_ceiling(outcomes: Outcomes, name: str) -> None:
    done = outcomes("cuda", _STEPS)
    outcome, plain = done[f"step/{name}"], done["step/none"]
    assert not outcome.error, outcome.error
    values, ceiling = outcome.values, CEILINGS[name]
    waits, copies = (_counted(values[f"{kind}_at"], name) for kind in ("waits", "copies"))
    assert sum(waits.values()) <= ceiling.waits, f"the host waits {sum(waits.values())} times in a step: {waits}"
    assert sum(copies.values()) <= ceiling.copies, f"{sum(copies.values())} copies in a step: {copies}"
    launches = values["launches"] - plain.values["launches"]
    assert launches <= ceiling.launches, f"{launches} launches, expected at most {ceiling.launches}"


def test_no_step_waits_and_none_copies_more_than_once_where_draws_are_planned_ahead(outcomes: Outcomes) -> None:
    outcome = outcomes("cuda", _STEPS)["steps"]
    assert not outcome.error, outcome.error
    assert outcome.values["most"]["waits"] == 0
    assert outcome.values["most"]["copies"] <= 1


def _counted(places: dict[str, int], name: str) -> dict[str, int]:
    exempt = EXEMPT.get(name, ())
    return {place: count for place, count in places.items() if not place.startswith(exempt)}


def test_the_counts_are_printed_as_a_table(outcomes: Outcomes, capsys: pytest.CaptureFixture[str]) -> None:
    done = outcomes("cuda", _STEPS)
    lines = [
        f"A training step on the pretend device, batch {BATCH}; launches: the step's, and beyond policy none's.",
        f"{'step':32} {'waits':>6} {'copies':>7} {'launches':>9} {'beyond':>7} {'at most':>8}",
    ]
    plain = done["step/none"].values["launches"]
    for name, ceiling in CEILINGS.items():
        values = done[f"step/{name}"].values
        beyond = values["launches"] - plain
        counts = f"{values['waits']:6} {values['copies']:7} {values['launches']:9} {beyond:7} {ceiling.launches:8}"
        lines.append(f"{name:32} {counts}")
    with capsys.disabled():
        print("\n" + "\n".join(lines))
    assert plain > 0
