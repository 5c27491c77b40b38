"""Every config key says what it means, and shows an example that works."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from comp import config as configs
from comp.config import reference
from tests.cli.test_startup import COMMAND, loaded
from tests.support.commands import Result, assert_refused

KEYS, DEFAULTS = reference.keys_in(), configs.flatten(configs.Config())


def test_every_key_of_the_resolved_config_is_explained() -> None:
    assert [key.path for key in KEYS] == list(DEFAULTS)


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.path)
def test_a_key_has_a_meaning_and_an_example_that_is_valid_and_changes_it(key: reference.Key) -> None:
    assert len(key.meaning.split()) > 1
    assert key.type
    values = configs.flatten(configs.from_mapping({}, "example", shlex.split(key.example)))
    assert values[key.path] != DEFAULTS[key.path]


@pytest.mark.parametrize(
    "path", ["", "competition.suite", "data.csv", "data.pseudo", "optim.lookahead", "train.teacher"]
)
def test_a_section_has_a_heading_and_all_of_its_keys(path: str) -> None:
    assert reference.heading(path)
    assert reference.keys_in(path) == [key for key in KEYS if key.path.startswith(path)]


def test_explain_prints_one_key(comp: Callable[..., Result]) -> None:
    assert comp("config", "explain", "optim.clip").out == (
        "optim.clip\n"
        "  Gradient clipping: by total norm, by value, or adaptive (each unit relative to\n"
        "  its weights' norm).\n"
        "  type     none, norm, value or adaptive\n"
        "  default  none\n"
        "  example  optim.clip=norm\n"
    )


def test_explain_prints_a_section_a_mapping_and_everything(comp: Callable[..., Result]) -> None:
    section = comp("config", "explain", "optim.lookahead").out
    assert section.startswith("Lookahead: slow weights")
    assert "optim.lookahead.k\n" in section
    assert "optim.lookahead.alpha\n" in section
    assert comp("config", "explain", "model.args.depth").out.startswith("model.args\n")
    assert comp("config", "explain").out.count("  example  ") == len(KEYS)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("optim.lrr", "did you mean 'lr'?"),
        ("epochs", "did you mean 'train.epochs'?"),
        ("optim.lr.peak", "optim.lr is a single value without keys"),
    ],
)
def test_explain_refuses_an_unknown_key(comp: Callable[..., Result], key: str, expected: str) -> None:
    assert_refused(comp("config", "explain", key), expected)


def test_explain_never_loads_what_is_heavy(tmp_path: Path) -> None:
    assert not loaded(COMMAND, "config", "explain", "optim.schedule", cwd=tmp_path) & {"torch", "numpy", "pandas"}


def test_editors_show_meaning_and_example() -> None:
    assert "Example: optim.lr=3e-4" in configs.schema()["$defs"]["OptimConfig"]["properties"]["lr"]["description"]
