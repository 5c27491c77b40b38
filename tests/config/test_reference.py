"""Every config key says what it means, and shows an example that works."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from comp import config as configs
from comp.config import Config, reference
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


def choices(annotation: Any) -> set[str]:
    """Return the words of all Literals in a type."""
    values = get_args(annotation)
    if get_origin(annotation) is Literal:
        return {value for value in values if isinstance(value, str)}
    return set().union(*(choices(value) for value in values))


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.path)
def test_a_meaning_names_every_choice(key: reference.Key) -> None:
    section: Any = Config
    *parents, name = key.path.split(".")
    for parent in parents:
        section = section.model_fields[parent].annotation
    assert all(choice in key.meaning for choice in choices(section.model_fields[name].annotation))


@pytest.mark.parametrize(
    "path", ["", "competition.suite", "data.csv", "data.pseudo", "optim.lookahead", "train.teacher"]
)
def test_a_section_has_a_heading_and_all_of_its_keys(path: str) -> None:
    assert reference.heading(path)
    assert reference.keys_in(path) == [key for key in KEYS if key.path.startswith(path)]


def test_explain_prints_one_key(comp: Callable[..., Result]) -> None:
    assert comp("config", "explain", "optim.clip").out == (
        "optim.clip\n"
        "  Gradient clipping: `norm`: by total norm; `value`: by value; `adaptive`: each\n"
        "  unit relative to its weights' norm (Brock et al. 2021, arXiv:2102.06171);\n"
        "  `none`: off.\n"
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
        ("optim.lrr", "did you mean 'optim.lr'?"),
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
