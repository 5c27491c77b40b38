"""Search spaces: which keys a study can tune, and which mistakes are refused before the first trial."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from comp import config as configs
from comp.config import Config, space
from comp.config.space import Entry
from tests.support.commands import Result
from tests.support.configs import write_config


def config_with_space(space: dict[str, Any], **sections: Any) -> Config:
    """Return a config with a search space."""
    return configs.from_mapping({**sections, "tune": {"space": space}}, "a.yaml")


def lowest(entry: Entry) -> Any:
    """Pick an entry's first value."""
    return entry.representatives()[0]


MISTAKES = {
    "unknown path": ({"optim.lrr": {"float": [1e-4, 1e-2]}}, "unknown key 'optim.lrr' (did you mean 'optim.lr'?)"),
    "unknown section": ({"optimm.lr": {"float": [1e-4, 1e-2]}}, "unknown key 'optimm' (did you mean 'optim'?)"),
    "other images": (
        {"data.validation": {"float": [0.1, 0.2]}},
        "data.validation: only keys in augment, model, optim, train",
    ),
    "a section": ({"optim.lookahead": {"choice": [1]}}, "expected the path of one value"),
    "below a value": ({"optim.lr.x": {"float": [0.1, 1.0]}}, "expected the path of one value"),
    "no kind": ({"optim.lr": {"flot": [0, 1]}}, "optim.lr: expected one of float, int, choice"),
    "two kinds": ({"optim.lr": {"float": [0.1, 1], "choice": [1]}}, "expected one of float, int, choice"),
    "unknown modifier": ({"optim.lr": {"float": [0.1, 1], "lgo": True}}, "unknown key 'lgo'; choose from"),
    "ends exchanged": ({"optim.lr": {"float": [1, 0.1]}}, "expected [lowest, highest], found [1, 0.1]"),
    "log of zero": ({"optim.weight_decay": {"float": [0, 0.1], "log": True}}, "true only above 0"),
    "log and step": ({"optim.lr": {"float": [0.1, 1], "log": True, "step": 0.1}}, "optim.lr: log and step"),
    "half a step": ({"train.epochs": {"int": [1, 5], "step": 0.5}}, "expected a whole number above 0"),
    "fractions for int": ({"train.epochs": {"int": [1, 2.5]}}, "expected whole numbers"),
    "no choices": ({"augment.policy": {"choice": []}}, "expected a list of values"),
    "choice twice": ({"augment.policy": {"choice": ["basic", "basic"]}}, "duplicate value 'basic'"),
    "value out of bounds": ({"optim.lr": {"float": [0, 1]}}, "optim.lr=0.0 would be invalid: optim.lr: expected at"),
    "wrong type": ({"train.epochs": {"float": [1, 3]}}, "train.epochs=1.0 would be invalid"),
    "text for a number": ({"train.epochs": {"choice": ["three"]}}, "expected a whole number, found the text 'three'"),
    "goes with another": ({"optim.clip_at": {"float": [0.1, 1]}}, "when: {other.path: value}"),
    "unknown condition": (
        {"optim.clip_at": {"float": [0.1, 1], "when": {"optim.clp": "norm"}}},
        "unknown key 'optim.clp'",
    ),
    "never true": (
        {"optim.clip_at": {"float": [0.1, 1], "when": {"optim.clip": "norm"}}},
        "requires optim.clip to be 'norm', which is 'none' in this config",
    ),
    "not in the space": (
        {
            "optim.clip": {"choice": ["none", "value"]},
            "optim.clip_at": {"float": [0.1, 1], "when": {"optim.clip": "norm"}},
        },
        "requires optim.clip to be 'norm', which its entry does not include",
    ),
    "a cycle": (
        {
            "optim.lr": {"float": [0.1, 1], "when": {"optim.momentum": 0.5}},
            "optim.momentum": {"choice": [0.5], "when": {"optim.lr": 0.5}},
        },
        "tune.space: optim.lr, optim.momentum: ",
    ),
    "unknown name": ({"augment.policy": {"choice": ["basic", "robustt"]}}, "unknown policy 'robustt'"),
}


@pytest.mark.parametrize(("entries", "message"), MISTAKES.values(), ids=MISTAKES)
def test_an_invalid_space_is_refused_before_the_first_trial(
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


def test_a_key_with_a_condition_is_tuned_only_while_it_is_true() -> None:
    config = config_with_space(
        {
            "optim.clip_at": {"float": [0.1, 1.0], "when": {"optim.clip": ["norm", "value"]}},
            "optim.clip": {"choice": ["none", "norm", "value"]},
        }
    )
    entries = space.parse_space(config.tune)
    assert [entry.path for entry in entries] == ["optim.clip", "optim.clip_at"]  # conditions come first

    def clipping(kind: str) -> dict[str, Any]:
        return space.pick_values(entries, config, lambda entry: kind if entry.path == "optim.clip" else 0.5)

    assert clipping("none") == {"optim.clip": "none"}
    assert clipping("norm") == {"optim.clip": "norm", "optim.clip_at": 0.5}
    assert space.apply_values(config, clipping("value")).optim.clip_at == 0.5
    assert len(list(space.probe_configs(config))) == 5


def test_a_trials_config_holds_its_values_and_no_search_space() -> None:
    config = config_with_space(
        {"model.args.depth": {"int": [1, 3]}, "optim.lr": {"float": [1e-4, 1e-2]}},
        model={"args": {"dropout": 0.1}},
        seed=5,
    )
    trial = space.apply_values(config, space.pick_values(space.parse_space(config.tune), config, lowest))
    assert trial.model.args == {"depth": 1, "dropout": 0.1}
    assert (trial.optim.lr, trial.seed, trial.tune.space) == (1e-4, 5, {})
    assert space.apply_values(config, {}, seed=6).seed == 6


@settings(max_examples=25)
@given(low=st.floats(-10, 10), width=st.floats(0.01, 10), position=st.floats(0, 1))
def test_a_drawn_float_stays_short_and_in_its_range(low: float, width: float, position: float) -> None:
    entry = Entry("optim.lr", "float", low, low + width)
    value = entry.rounded(low + position * width)
    assert entry.contains(value)
    assert value in (low, low + width) or value == float(f"{value:.6g}")


def test_booleans_and_numbers_are_different_values() -> None:
    entry = Entry("model.pretrained", "choice", choices=(True, "weights.pth"))
    assert entry.contains(True)
    assert not entry.contains(1)
    assert not Entry("train.epochs", "int", 0, 5).contains(True)
