"""The leaderboard's advice names submissions that are there, by estimates of their own, and compares like with like."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from comp.results import analysis, leaderboard
from comp.results.final_submissions import read_sidecar
from tests.support.commands import Result, comp_process
from tests.support.frozen_runs import ENSEMBLE, FLIPPED, PLAIN, thawed

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to a folder with frozen runs; see `thawed`."""
    monkeypatch.chdir(thawed(tmp_path))
    return tmp_path


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}, indent=2))


def advised(comp: Callable[..., Result]) -> dict[str, str]:
    """Return the final submissions that `comp leaderboard` suggests: CSV -> the text after it."""
    result = comp("leaderboard")
    assert result.code == 0, result.err
    return dict(re.findall(r"^ *[12]\. (\S+): (.*)$", result.out, re.MULTILINE))


def unscored(*paths: str) -> None:
    """Forget what was recorded of the runs' submissions."""
    for path in paths or (PLAIN, FLIPPED, ENSEMBLE):
        change(Path(path) / "metrics.json", leaderboard_scores=[], public_score=None)


def test_a_csv_made_with_views_has_the_estimate_of_those_views(comp: Callable[..., Result]) -> None:
    unscored()
    Path("submissions/frozen-3.csv").unlink()
    assert comp("predict", PLAIN, "--views", "flip", "-o", "flip.csv").code == 0
    rows = {row.variant: row for row in leaderboard.read_rows(Path("runs")) if row.run == PLAIN}
    assert {variant: row.submission for variant, row in rows.items()} == {
        "": "submissions/frozen.csv", "+flip": "flip.csv",
    }  # fmt: skip
    assert set(rows[""].estimates) == {"", "+flip"}
    plain, flipped = (rows[""].estimates[variant]["expected_accuracy"] for variant in ("", "+flip"))
    assert plain != flipped  # else this test could not tell them apart
    assert {variant: row.expected_accuracy for variant, row in rows.items()} == {"": plain, "+flip": flipped}
    assert f"{flipped:.4f}" in advised(comp)["flip.csv"]


def test_a_csv_without_an_estimate_of_its_variant_is_not_suggested(
    comp: Callable[..., Result],
) -> None:
    unscored()
    beside = Path("submissions/frozen.json")
    made_by = {**json.loads(beside.read_text())["made_by"], "views": "shift"}
    change(beside, made_by=made_by)
    assert "submissions/frozen.csv" not in advised(comp)


def test_a_csv_of_another_suite_is_not_suggested(comp: Callable[..., Result]) -> None:
    unscored()
    beside = Path("submissions/frozen.json")
    change(beside, made_by={**json.loads(beside.read_text())["made_by"], "images": "0123456789abcdef"})
    assert "submissions/frozen.csv" not in advised(comp)


def test_a_missing_or_replaced_csv_is_not_suggested(comp: Callable[..., Result]) -> None:
    assert "submissions/frozen.csv" in advised(comp)
    Path("submissions/frozen.csv").unlink()
    assert "submissions/frozen.csv" not in advised(comp)
    shutil.copy("submissions/frozen-3.csv", "submissions/frozen-2.csv")
    shutil.copy("submissions/frozen-3.json", "submissions/frozen-2.json")
    assert list(advised(comp)) == ["submissions/frozen-3.csv"]
    shutil.rmtree("submissions")
    assert advised(comp) == {}
    (line,) = [line for line in comp("leaderboard").out.splitlines() if "final submissions" in line]
    assert "all 3" in line


def test_an_identical_csv_is_no_second_final_submission(comp: Callable[..., Result]) -> None:
    first, second = advised(comp)
    Path(second).write_bytes(Path(first).read_bytes())
    sidecar = Path(second).with_suffix(".json")
    change(sidecar, sha256=json.loads(Path(first).with_suffix(".json").read_text())["sha256"])
    assert second not in advised(comp)


def test_a_rewritten_csv_loses_its_recorded_score(comp: Callable[..., Result]) -> None:
    assert "public score 0.5000" in advised(comp)["submissions/frozen.csv"]
    assert comp("predict", PLAIN, "-o", "submissions/frozen.csv", "--force").code == 0
    assert "estimated accuracy" in advised(comp)["submissions/frozen.csv"]


@pytest.mark.parametrize("other", ["classes", "metric", "task"])
def test_runs_of_another_kind_are_listed_and_not_compared(comp: Callable[..., Result], other: str) -> None:
    assert comp("leaderboard").out.count(" ~ │") == 2
    if other == "classes":
        provenance = Path(ENSEMBLE) / "provenance.json"
        change(provenance, classes=[*json.loads(provenance.read_text())["classes"][:-1], "ten"])
    elif other == "metric":
        text = (Path(ENSEMBLE) / "metrics.json").read_text()
        (Path(ENSEMBLE) / "metrics.json").write_text(text.replace('"metric": "accuracy"', '"metric": "log_loss"'))
    else:
        change(Path(ENSEMBLE) / "metrics.json", task="multi_label")
    result = comp("leaderboard")
    assert result.code == 0, result.err
    (line,) = [line for line in result.out.splitlines() if line.startswith("compared: ")]
    assert re.findall(r"\d+", line) == ["2", "10", "1"]
    assert "frozen-3.csv" not in "".join(advised(comp))
    rows = leaderboard.read_rows(Path("runs"))
    above = analysis.analyze_leaderboard(rows, "auto").above
    place = [row.run for row in rows].index(ENSEMBLE)
    assert [above[near] for near in (place, place + 1) if near < 3] == [None] * min(2, 3 - place)
    if other != "classes":
        assert place == 2  # the others stand together, best first


def test_one_run_without_shifted_validation_does_not_change_the_sort_column(
    comp: Callable[..., Result],
) -> None:
    path = Path(FLIPPED) / "metrics.json"
    best = json.loads(path.read_text())["best"]
    change(path, best={**best, "ood_val": None})
    rows = leaderboard.read_rows(Path("runs"))
    assert [row.run for row in rows] == [PLAIN, ENSEMBLE, FLIPPED]
    told = "sorted by ood_metric (the competition's metric on shifted validation); 1 of 3 runs have none and come last"
    assert told in comp("leaderboard").out
    change(
        Path(PLAIN) / "metrics.json",
        best={**json.loads((Path(PLAIN) / "metrics.json").read_text())["best"], "ood_val": None},
    )
    assert "sorted by val_metric (the competition's metric on clean validation)\n" in comp("leaderboard").out


@pytest.mark.parametrize(("sort", "told"), [("val_accuracy", "accuracy on clean"), ("parameters", ""), ("run", "")])
def test_the_sort_column_is_named(comp: Callable[..., Result], sort: str, told: str) -> None:
    for words in ([], ["--group-by", "model"]):
        assert (
            f"sorted by {sort}{f' ({told} validation)' if told else ''}\n"
            in comp("leaderboard", "--sort", sort, *words).out
        )


def test_a_metric_without_intervals_or_estimates_says_so_in_one_line(comp: Callable[..., Result]) -> None:
    for path in (PLAIN, FLIPPED, ENSEMBLE):
        text = (Path(path) / "metrics.json").read_text()
        (Path(path) / "metrics.json").write_text(text.replace('"metric": "accuracy"', '"metric": "log_loss"'))
    lines = [line for line in comp("leaderboard").out.splitlines() if "log_loss has no intervals" in line]
    assert len(lines) == 1
    assert lines[0].endswith("comp leaderboard record")
    assert "log_loss has no intervals" not in comp("leaderboard", "--sort", "ood_accuracy").out


def test_an_invalid_sidecar_is_ignored() -> None:
    (row,) = [row for row in leaderboard.read_rows(Path("runs")) if row.run == PLAIN]
    beside = Path("submissions/frozen.json")
    good = json.loads(beside.read_text())
    assert read_sidecar(row, "submissions/frozen.csv") is not None
    for made_by in (7, ["x"], {"views": "flip", "views_share": "much"}, {"adapt": "bn", "alpha": None}):
        beside.write_text(json.dumps({**good, "made_by": made_by}))
        assert read_sidecar(row, "submissions/frozen.csv") is None
    for text in ("", "[]", "{}", "{"):
        beside.write_text(text)
        assert read_sidecar(row, "submissions/frozen.csv") is None


def cells(table: str) -> Iterator[list[str]]:
    """Yield a printed table's lines of cells."""
    for line in table.splitlines():
        if line.startswith(("│", "┃")):
            yield [cell.strip() for cell in line[1:-1].split(line[0])]


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_the_leaderboard_fits_the_window_with_names_in_one_line(folder: Path, columns: int) -> None:
    result = comp_process("leaderboard", cwd=folder, env={**os.environ, "COLUMNS": str(columns)})
    assert result.returncode == 0, result.stderr
    table = result.stdout[: result.stdout.index("└")]
    assert max(map(len, table.splitlines())) <= columns
    head, *lines = cells(table)
    assert {"#", "run", "shifted"} <= set(head)
    assert table.startswith("runs in runs/frozen\n")
    assert columns < 80 or "variant" in head  # it tells rows of one run apart
    names = {line[head.index("run")] for line in lines}
    assert names == {Path(run).name for run in (PLAIN, FLIPPED, ENSEMBLE)}
    absent = re.search(r"^hidden columns: ([^()]*) \([^()]*--csv\)$", result.stdout, re.MULTILINE)
    everything = {
        "model",
        "parameters",
        "val",
        "estimated",
        "estimated range",
        "public",
        "test",
        "suite",
        "minutes",
        "device",
        "submission",
        "variant",
    }
    assert absent
    assert set(" ".join(absent[1].split()).split(", ")) == everything - set(head)


def test_an_evaluation_fits_80_columns_and_has_the_competitions_metric(folder: Path) -> None:
    path = folder / ENSEMBLE / "metrics.json"
    path.write_text(path.read_text().replace('"metric": "accuracy"', '"metric": "macro_f1"'))
    result = comp_process("evaluate", ENSEMBLE, cwd=folder, env={**os.environ, "COLUMNS": "80"})
    assert result.returncode == 0, result.stderr
    drawn = [line for line in result.stdout.splitlines() if line[:1] in "│┃┏┡└├"]
    assert max(map(len, drawn)) <= 80
    assert "…" not in result.stdout
    values = json.loads((folder / ENSEMBLE / "evaluation.json").read_text())["test"]
    assert values["metric"] == {"name": "macro_f1", "value": pytest.approx(values["macro"]["f1"])}
    table = result.stdout[result.stdout.index("precision, recall and F1 weighted") :]
    head, *lines = cells(table[: table.index("└")])
    (row,) = [line for line in lines if line[0] == "test"]
    assert row[head.index("macro_f1")] == f"{values['macro']['f1']:.4f}"
