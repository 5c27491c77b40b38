"""The documentation's site: every row of every dict has a description, every page its place, and no link is broken."""

import importlib.util
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import comp
from comp.workflows.plugin_rows import REGISTRIES as EXTENSIBLE
from docs import python_api, reference
from tests.e2e.test_readme import assert_is_taken
from tests.support.commands import GROUP, REPOSITORY, Result, commands

DOCS = REPOSITORY / "docs"
TUTORIAL = (DOCS / "tutorial.md").read_text()
LINES = [
    line.removeprefix("$ ")
    for page in (DOCS / "index.md", DOCS / "tutorial.md", *sorted((DOCS / "howto").glob("*.md")))
    for block in re.findall(r"^```console\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
    if line.startswith(("comp ", "$ comp "))
]
ROWS = [(registry, name) for registry in reference.REGISTRIES for name in registry.rows]


@pytest.mark.parametrize(("registry", "row"), ROWS, ids=[f"{registry.path}-{name}" for registry, name in ROWS])
def test_a_row_has_a_description(registry: reference.Registry, row: str) -> None:
    assert len(registry.description(row).split()) > 1


def test_no_description_is_of_a_row_that_is_gone() -> None:
    for registry in reference.REGISTRIES:
        assert set(registry.lines()) <= set(registry.rows), registry.path


def test_every_dict_that_plug_ins_extend_is_in_the_reference() -> None:
    listed = {registry.path.rpartition(".")[2] for registry in reference.REGISTRIES}
    assert {name for name, registry in EXTENSIBLE.items() if registry.what} <= listed


def test_every_command_and_option_is_in_the_reference() -> None:
    pages = reference.pages()["reference/commands.md"]
    for words in commands(GROUP):
        assert f"## comp {' '.join(words)} " in pages
    assert "`--select-on SELECT_ON`" in pages


@pytest.mark.parametrize("path", python_api.items())
def test_everything_in_the_python_api_is_described_with_all_its_arguments(path: str) -> None:
    item = python_api.items()[path]
    text = python_api.sections(item)
    assert len(text[""].split()) > 1
    described = python_api.entries(text.get("Args", text.get("Attributes", "")))
    parameters = [name for name in inspect.signature(item).parameters if name != "self"]
    if item is not comp.quiet:  # a `Progress`, which nobody calls
        assert list(described) == parameters
    assert f"## {path} " in reference.pages()[python_api.ADDRESS]


def test_a_docstrings_parts_are_told_apart() -> None:
    item = type("Item", (), {"__doc__": "Predict.\n\n    Args:\n        run: its folder,\n            a path.\n    "})
    text = python_api.sections(item)
    assert (text[""], python_api.entries(text["Args"])) == ("Predict.", {"run": "its folder, a path."})


def test_every_generated_page_is_in_the_navigation_and_has_the_anchors_that_lead_to_it() -> None:
    pages = reference.pages()
    listed = re.findall(r"reference/\S+\.md", (REPOSITORY / "mkdocs.yml").read_text())
    assert sorted(listed) == sorted(pages)
    for target in reference.targets().values():
        page, _, anchor = target.partition("#")
        assert f"{{ #{anchor} }}" in pages[page], target


def test_links_to_files_lead_to_pages_of_the_site_or_are_text() -> None:
    text = "[a](../CHANGELOG.md) [b](../configs/quickstart.yaml) [c](lab/README.md#x) [d](https://example.org)"
    assert reference.moved(text, "VERSIONS.md") == "[a](CHANGELOG.md) b [c](lab/README.md#x) [d](https://example.org)"
    assert reference.moved("[a](docs/VERSIONS.md)", "CHANGELOG.md") == "[a](VERSIONS.md)"


def test_keys_and_commands_in_code_font_are_links_but_not_in_code_blocks() -> None:
    block = "```\n`optim.lr`\n```"
    assert reference.linked(f"`optim.lr=3e-4` `other`\n{block}", "howto/folds.md") == (
        f"[`optim.lr=3e-4`](../reference/config/optim.md#optim.lr) `other`\n{block}"
    )
    assert reference.linked("`comp cv`", "index.md") == "[`comp cv`](reference/commands.md#comp-cv)"


@pytest.mark.parametrize("line", LINES)
def test_every_command_of_the_tutorial_and_the_how_to_pages_is_taken(line: str) -> None:
    assert_is_taken(line)


def test_the_tutorials_data_get_the_config_that_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comp: Callable[..., Result]
) -> None:
    monkeypatch.chdir(tmp_path)
    script, shown = (re.findall(rf"^```{kind}\n(.*?)^```", TUTORIAL, re.M | re.S)[0] for kind in ("python", "yaml"))
    exec(compile(script, "make_data.py", "exec"), {})
    (line,) = [line for line in LINES if line.startswith("comp init data/postcodes")]
    assert comp(*line.split()[1:]).code == 0
    config = (tmp_path / "postcodes.yaml").read_text()
    data = slice(shown.index("competition:"), shown.index("model:"))  # the model depends on the machine
    assert shown[data] in config
    assert comp("config", "check", "postcodes.yaml", "--data").code == 0


@pytest.mark.slow  # half a minute
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed: make docs")
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 60
    for page in pages:
        assert not re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(?:https?:)?//', page.read_text()), page
    for style in tmp_path.rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//", style.read_text()), style
