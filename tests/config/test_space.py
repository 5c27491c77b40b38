"""Search spaces: what a study may vary, and what is refused before its first trial."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from comp import config as configs
from comp.config import Config, space
from comp.config.space import Entry
from tests.support.commands import Result
from tests.support.configs import write_config


def searched(space: dict[str, Any], **sections: Any) -> Config:
    """Return a config with a search space."""
    return configs.from_mapping({**sections, "tune": {"space": space}}, "a.yaml")


def lowest(entry: Entry) -> Any:
    """Pick an entry's first value."""
    return entry.probes()[0]


MISTAKES = {
    "unknown path": ({"optim.lrr": {"float": [1e-4, 1e-2]}}, "unknown key 'optim.lrr' (did you mean 'lr'?)"),
    "unknown section": ({"optimm.lr": {"float": [1e-4, 1e-2]}}, "unknown key 'optimm' (did you mean 'optim'?)"),
    "other images": ({"data.validation": {"float": [0.1, 0.2]}}, "only augment, model, optim, train are tuned"),
    "a section": ({"optim.lookahead": {"choice": [1]}}, "expected the path of one value"),
    "below a value": ({"optim.lr.x": {"float": [0.1, 1.0]}}, "expected the path of one value"),
    "no kind": ({"optim.lr": {"flot": [0, 1]}}, "optim.lr: expected one of float, int, choice"),
    "two kinds": ({"optim.lr": {"float": [0.1, 1], "choice": [1]}}, "expected one of float, int, choice"),
    "unknown modifier": ({"optim.lr": {"float": [0.1, 1], "lgo": True}}, "unknown key 'lgo'; choose from"),
    "ends exchanged": ({"optim.lr": {"float": [1, 0.1]}}, "expected [lowest, highest], found [1, 0.1]"),
    "log of zero": ({"optim.weight_decay": {"float": [0, 0.1], "log": True}}, "true only above 0"),
    "log and step": ({"optim.lr": {"float": [0.1, 1], "log": True, "step": 0.1}}, "log and step exclude each other"),
    "half a step": ({"train.epochs": {"int": [1, 5], "step": 0.5}}, "expected a whole number above 0"),
    "fractions for int": ({"train.epochs": {"int": [1, 2.5]}}, "expected whole numbers"),
    "no choices": ({"augment.policy": {"choice": []}}, "expected a list of values"),
    "choice twice": ({"augment.policy": {"choice": ["basic", "basic"]}}, "'basic' stands twice"),
    "value out of bounds": ({"optim.lr": {"float": [0, 1]}}, "optim.lr=0.0 would be refused: optim.lr: expected more"),
    "wrong type": ({"train.epochs": {"float": [1, 3]}}, "train.epochs=1.0 would be refused"),
    "text for a number": ({"train.epochs": {"choice": ["three"]}}, "expected a whole number, found the text 'three'"),
    "goes with another": ({"optim.clip_at": {"float": [0.1, 1]}}, "says so: when: {other.path: value}"),
    "unknown condition": (
        {"optim.clip_at": {"float": [0.1, 1], "when": {"optim.clp": "norm"}}}, "unknown key 'optim.clp'",
    ),
    "never holds": (
        {"optim.clip_at": {"float": [0.1, 1], "when": {"optim.clip": "norm"}}},
        "optim.clip_at: never holds: its when wants optim.clip to be 'norm', which is 'none' in this config",
    ),
    "not offered": (
        {
            "optim.clip": {"choice": ["none", "value"]},
            "optim.clip_at": {"float": [0.1, 1], "when": {"optim.clip": "norm"}},
        },
        "which its entry does not offer",
    ),
    "a circle": (
        {
            "optim.lr": {"float": [0.1, 1], "when": {"optim.momentum": 0.5}},
            "optim.momentum": {"choice": [0.5], "when": {"optim.lr": 0.5}},
        },
        "each waits for another by its when",
    ),
    "unknown name": ({"augment.policy": {"choice": ["basic", "robustt"]}}, "unknown policy 'robustt'"),
}  # fmt: skip


@pytest.mark.parametrize(("entries", "message"), MISTAKES.values(), ids=MISTAKES)
def test_what_no_config_would_accept_is_refused_before_the_first_trial(
    entries: dict[str, Any], message: str, workplace: Path, comp: Callable[..., Result]
) -> None:
    values = yaml.safe_load((workplace / "small.yaml").read_text())
    write_config(workplace / "tuned.yaml", {**values, "tune": {"space": entries}})
    for command in (("config", "check"), ("tune",)):
        result = comp(*command, "tuned.yaml")
        assert result.code == 2
        assert message in result.err
        assert "tune.space" in result.err
    assert not list((workplace / "runs").glob("*/*/*"))  # no study, no run


def test_a_knob_that_belongs_to_a_value_of_another_is_tuned_with_it_alone() -> None:
    config = searched(
        {
            "optim.clip_at": {"float": [0.1, 1.0], "when": {"optim.clip": ["norm", "value"]}},
            "optim.clip": {"choice": ["none", "norm", "value"]},
        }
    )
    entries = space.entries(config.tune)
    assert [entry.path for entry in entries] == ["optim.clip", "optim.clip_at"]  # what is waited for comes first

    def clipping(kind: str) -> dict[str, Any]:
        return space.assemble(entries, config, lambda entry: kind if entry.path == "optim.clip" else 0.5)

    assert clipping("none") == {"optim.clip": "none"}
    assert clipping("norm") == {"optim.clip": "norm", "optim.clip_at": 0.5}
    assert space.lay(config, clipping("value")).optim.clip_at == 0.5
    assert len(list(space.probes(config))) == 5


def test_a_trials_config_is_the_studys_with_its_values_and_nothing_of_the_study() -> None:
    config = searched(
        {"model.args.depth": {"int": [1, 3]}, "optim.lr": {"float": [1e-4, 1e-2]}},
        model={"args": {"dropout": 0.1}},
        seed=5,
    )
    laid = space.lay(config, space.assemble(space.entries(config.tune), config, lowest))
    assert laid.model.args == {"depth": 1, "dropout": 0.1}
    assert (laid.optim.lr, laid.seed, laid.tune.space) == (1e-4, 5, {})
    assert space.lay(config, {}, seed=6).seed == 6


@given(low=st.floats(-10, 10), width=st.floats(0.01, 10), place=st.floats(0, 1))
def test_a_drawn_float_stays_in_its_range_and_short(low: float, width: float, place: float) -> None:
    entry = Entry("optim.lr", "float", low, low + width)
    value = entry.tidy(low + place * width)
    assert entry.holds(value)
    assert value in (low, low + width) or value == float(f"{value:.6g}")


def test_truth_values_and_numbers_are_told_apart() -> None:
    entry = Entry("model.pretrained", "choice", choices=(True, "weights.pth"))
    assert entry.holds(True)
    assert not entry.holds(1)
    assert not Entry("train.epochs", "int", 0, 5).holds(True)
