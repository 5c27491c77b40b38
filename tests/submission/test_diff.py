"""`comp diff`: columns matched by name, numbers compared by value, in seconds for a full suite."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from comp.submission import diff
from tests.support.commands import Result

Comp = Callable[..., Result]


def write(path: Path, *lines: str) -> Path:
    """Write a CSV."""
    path.write_text("\n".join(lines) + "\n")
    return path


def differing(tmp_path: Path, one: str, two: str) -> int:
    """Return the number of differing rows of two submissions with one answer cell each."""
    first, second = write(tmp_path / "a.csv", "id,label", f"x,{one}"), write(tmp_path / "b.csv", "id,label", f"x,{two}")
    return diff.compare_submissions(first, second).total.differing


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("1", "1.0"),
        ("0.50", "0.5"),
        ("1e3", "1000"),
        ("-0", "0"),
        ("+2", "2"),
        ("9007199254740993.0", "9007199254740993"),
    ],
)
def test_numbers_of_the_same_value_are_equal(tmp_path: Path, one: str, two: str) -> None:
    assert differing(tmp_path, one, two) == 0


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("1", "2"),
        ("0.5", "0.5000001"),
        ("cat", "dog"),
        ("nan", "NaN"),
        ("", "0"),
        ("1", "cat"),
        ("a b", "b a"),
        ("9007199254740993", "9007199254740992"),
    ],
)
def test_different_values_and_texts_differ(tmp_path: Path, one: str, two: str) -> None:
    assert differing(tmp_path, one, two) == 1


def test_columns_are_matched_by_name(tmp_path: Path, comp: Comp) -> None:
    one = write(tmp_path / "a.csv", "id,cat,dog,owl", "x,0.1,0.2,0.7", "y,0.5,0.2,0.3")
    two = write(tmp_path / "b.csv", "id,owl,cat,dog", "x,0.70,0.1,0.2", "y,0.3,0.4,0.2")
    values = json.loads(comp("diff", one, two, "--json").out)
    assert values["total"] == {"block": "all", "rows": 2, "differing": 1}
    assert values["columns_moved"]
    assert "another order" in comp("diff", one, two).out
    assert "another order" not in comp("diff", one, one).out


@pytest.mark.parametrize("header", ["id,cat,dog,emu", "id,cat,dog", "key,cat,dog,owl"])
def test_other_columns_are_refused(tmp_path: Path, comp: Comp, header: str) -> None:
    one = write(tmp_path / "a.csv", "id,cat,dog,owl", "x,1,0,0")
    two = write(tmp_path / "b.csv", header, ",".join("x100"[: header.count(",") + 1]))
    result = comp("diff", one, two)
    assert result.code == 2
    assert "expected the columns 'id', 'cat', 'dog', 'owl'" in result.err


def test_a_row_with_several_differing_cells_counts_once(tmp_path: Path) -> None:
    one = write(tmp_path / "a.csv", "id,a,b", "x,1,2", "y,1,2")
    two = write(tmp_path / "b.csv", "id,a,b", "x,2,1", "y,1.0,2.0")
    assert diff.compare_submissions(one, two).total.differing == 1


def test_numbers_are_compared_by_size_too_and_whole_ones_are_not(tmp_path: Path, comp: Comp) -> None:
    draw = np.random.default_rng(0)
    first, noise = draw.normal(40, 9, 30), draw.normal(0, 2, 30)
    rows = [f"x{n},{value}" for n, value in enumerate(first)]
    other = [f"x{n},{value}" for n, value in enumerate(first + noise)]
    one, two = write(tmp_path / "a.csv", "id,age", *rows), write(tmp_path / "b.csv", "id,age", *other[::-1], "y,1.5")
    sizes = json.loads(comp("diff", one, two, "--json").out)["sizes"]
    apart, correlation = np.abs(noise), np.corrcoef(first, first + noise)[0, 1]
    assert sizes == pytest.approx({"median": np.median(apart), "greatest": apart.max(), "correlation": correlation})
    assert f"numbers differ by {np.median(apart):.4g} (median), {apart.max():.4g} at most" in comp("diff", one, two).out
    same = write(tmp_path / "c.csv", "id,age", *[f"x{n},2.5" for n in range(30)])
    assert json.loads(comp("diff", one, same, "--json").out)["sizes"]["correlation"] is None
    whole = [write(tmp_path / f"{n}.csv", "id,label", "x,1", f"y,{n}") for n in (3, 4)]
    assert json.loads(comp("diff", *whole, "--json").out)["sizes"] is None
    texts = [write(tmp_path / f"{n}.csv", "id,label", f"x,{n}", "y,0.5") for n in ("cat", "dog")]
    assert json.loads(comp("diff", *texts, "--json").out)["sizes"] is None


@pytest.mark.slow
def test_a_full_suite_in_another_spelling_is_compared_in_seconds(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 100, 950_000).tolist()
    one = write(tmp_path / "a.csv", "id,label", *(f"i{row},{label}" for row, label in enumerate(labels)))
    two = write(tmp_path / "b.csv", "id,label", *(f"i{row},{label}.0" for row, label in enumerate(labels)))
    start = time.monotonic()
    assert diff.compare_submissions(one, two).total.differing == 0
    assert time.monotonic() - start < 60  # 4 s on two idle cores
