"""The command line's face: help is quick to import, every command shows an example."""

import subprocess
import sys
from collections.abc import Callable

import pytest
from rich.cells import cell_len

from tests.support.commands import GROUP, Result, commands


@pytest.mark.parametrize("words", commands(GROUP), ids=" ".join)
def test_every_command_shows_an_example_in_80_columns(
    words: tuple[str, ...], comp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = comp(*words, "--help")
    assert result.code == 0
    assert max(map(cell_len, result.out.splitlines())) <= 80
    assert f"Example: comp {' '.join(words)}" in result.out


def test_help_never_loads_what_is_heavy() -> None:
    program = (
        "import sys; from comp.cli import app\n"
        "try: app.main(['--help'])\n"
        "except SystemExit as left: code = left.code\n"
        "heavy = {'torch', 'torchvision', 'timm', 'pandas', 'numpy', 'pydantic', 'matplotlib', 'sklearn', 'wandb'}\n"
        "print(sorted(heavy & set(sys.modules)), code, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[] 0"
    assert "leaderboard" in done.stdout


def test_an_unknown_command_is_the_users_mistake(comp: Callable[..., Result]) -> None:
    assert comp("rnu").code == 2
    assert comp("run", "--nosuch").code == 2


def test_the_version_is_told(comp: Callable[..., Result]) -> None:
    assert comp("--version").out.startswith("comp 0.")
