"""The documentation agrees with the code: rooms, files, dicts, links."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import REPOSITORY

ARCHITECTURE = (REPOSITORY / "docs/ARCHITECTURE.md").read_text()
PAGES = [REPOSITORY / "README.md", REPOSITORY / "benchmarks/README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
NEW_THINGS = re.findall(r"^\| [^|]+ \| `([\w/]+\.py)`[^|]* \| `(\w+)`", ARCHITECTURE, re.MULTILINE)


def test_the_picture_of_the_rooms_is_the_contracts() -> None:
    assert subprocess.run([sys.executable, REPOSITORY / "docs/rooms.py", "--check"], check=False).returncode == 0


def test_every_room_has_its_line_and_there_are_no_others() -> None:
    folders = {path.name for path in (REPOSITORY / "comp").iterdir() if (path / "__init__.py").is_file()}
    assert set(re.findall(r"^\| `(\w+)/` \|", ARCHITECTURE, re.MULTILINE)) == folders
    assert len(folders) == 15


def test_what_can_be_added_has_a_file_and_a_dict() -> None:
    assert len(NEW_THINGS) == 13


@pytest.mark.parametrize(("file", "name"), NEW_THINGS, ids=[name for _, name in NEW_THINGS])
def test_what_one_adds_has_its_file_and_its_dict(file: str, name: str) -> None:
    names: set[str] = set()
    for node in ast.parse((REPOSITORY / "comp" / file).read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.ClassDef):
            names.add(node.name)
    assert name in names


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(REPOSITORY)) for page in PAGES])
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert "://" in link or (page.parent / link).exists(), link


@pytest.mark.parametrize("page", [page for page in PAGES if "lab" not in page.parts], ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    for name in re.findall(r"`((?:comp/)?[a-z_]+/[\w/]+\.(?:py|yaml))`", page.read_text()):
        assert any((REPOSITORY / root / name).is_file() for root in ("", "comp")), name
