"""What commands print about numbers, names and decisions: the words fit what is meant, and lines fit the window."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from comp import config as configs
from comp.cli import console
from comp.cli.console import output
from comp.results import leaderboard, runs
from comp.results.run_metrics import Decision, RunMetrics, Score, SplitScores, WeightScores
from comp.runtime.errors import nearest, plural
from tests.support.commands import Result, assert_refused

Comp = Callable[..., Result]


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Return what is printed to a window of 80 columns."""
    text = io.StringIO()
    window = Console(file=text, width=80, **output._VERBATIM)
    monkeypatch.setattr(output, "out", window)
    monkeypatch.setattr(output, "err", window)
    return text


def scores(task: str, metric: str, **fields: object) -> RunMetrics:
    return RunMetrics(
        run="a", competition="c", metric=metric, task=task, model="m", parameters=1, **fields
    )  # fmt: skip


@given(st.integers(0, 10**7), st.sampled_from(["image", "row", "fold"]))
def test_one_is_counted_without_an_s(count: int, noun: str) -> None:
    number, word = plural(count, noun).split(" ")
    assert int(number.replace(",", "")) == count
    assert (word == noun) == (count == 1)
    assert plural(count, "class", "classes").split(" ")[1] == ("class" if count == 1 else "classes")


@given(st.lists(st.text("abc_1", min_size=1, max_size=6), min_size=1), st.data())
def test_no_name_is_suggested_in_its_own_place(names: list[str], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(names))
    assert f"'{name}'" not in nearest(name, names)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("f1_macro", "macro_f1"), ("Log Loss", "log_loss"), ("accuracy", ""), ("logloss", "log_loss")],
)
def test_the_same_words_in_another_order_or_case_are_suggested(name: str, expected: str) -> None:
    hint = nearest(name, ["accuracy", "log_loss", "macro_f1", "micro_f1"])
    assert hint == (f" (did you mean '{expected}'?)" if expected else "")


@pytest.mark.parametrize(
    ("task", "metric", "tried", "plain"),
    [
        ("single_label", "macro_f1", "thresholds", "argmax"),
        ("multi_label", "macro_f1", "thresholds", "0.5 for each class"),
        ("ordinal", "quadratic_weighted_kappa", "cut_points", "the nearest level"),
        ("regression", "quadratic_weighted_kappa", "cut_points", "rounding"),
    ],
)
def test_the_way_that_is_kept_has_the_name_of_what_the_task_does(
    printed: io.StringIO, task: str, metric: str, tried: str, plain: str
) -> None:
    kept = Decision(tried=tried, reason="too few images")
    console.print_decision(scores(task, metric, decision=kept))
    assert printed.getvalue() == f"decision    {plain}, not {tried}: too few images\n"


@pytest.mark.parametrize(
    ("gain", "kind", "warned"), [(-0.01, "thresholds", 1), (0.01, "thresholds", 0), (-0.01, "argmax", 0)]
)
def test_a_decision_that_makes_the_metric_worse_is_warned_of(
    printed: io.StringIO, gain: float, kind: str, warned: int
) -> None:
    decision = Decision(kind=kind, tried="thresholds", gain=gain, low=gain - 0.01, high=gain + 0.01)
    console.print_decision(scores("single_label", "macro_f1", decision=decision))
    assert printed.getvalue().count("warning: thresholds made macro_f1 worse") == warned
    assert printed.getvalue().count("predict.decide=auto") == warned
    assert max(map(len, printed.getvalue().splitlines())) <= 80


def test_an_evaluation_of_numbers_fits_the_window_and_keeps_the_metric(printed: io.StringIO) -> None:
    numbers = {"rmse": 12345.6789, "mae": 12345.6789, "r2": -12345.6789, "bias": -12345.6789, "p90": 12345.6789}
    for metric, value in (("quadratic_weighted_kappa", 0.4321), ("r2", -12345.6789), ("mae", 12345.6789)):
        start = len(printed.getvalue())
        console.print_evaluation(
            {"val": {"images": 1000, "numbers": numbers, "metric": {"name": metric, "value": value}}}
        )
        text = printed.getvalue()[start:]
        assert max(map(len, text.splitlines())) <= 80
        head, row = [line for line in text.splitlines() if line.startswith(("┃", "│"))]
        assert metric in head
        assert f" {value:.4f} " in row


def test_a_note_breaks_between_words_and_keeps_them(printed: io.StringIO) -> None:
    path = "/".join(["a-folder-with-a-long-name"] * 5)
    note = f"note: {'some words ' * 30}{path} and more words"
    console.print_note(note)
    assert printed.getvalue().split() == note.split()
    assert all(len(line) <= 80 or path in line for line in printed.getvalue().splitlines())


def test_no_bar_is_drawn_into_a_pipe_even_in_colour() -> None:
    program = (
        "from comp.cli import console\n"
        "with console.bars() as progress:\n"
        "    for step in range(50): progress('epoch 1', step, 50)\n"
        "console.print_note('done')"
    )
    environment = {**os.environ, "FORCE_COLOR": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert (done.stdout, done.stderr) == ("", "done\n")


@pytest.mark.parametrize(("ids", "names"), [(["x", "y"], ["all"]), (["a_0", "a_1", "b_0", "b_1"], ["a", "b", "all"])])
def test_a_difference_has_each_sum_once(tmp_path: Path, comp: Comp, ids: list[str], names: list[str]) -> None:
    (tmp_path / "a.csv").write_text("id,label\n" + "".join(f"{key},1\n" for key in ids))
    (tmp_path / "b.csv").write_text("id,label\n" + "".join(f"{key},2\n" for key in ids))
    table = comp("diff", tmp_path / "a.csv", tmp_path / "b.csv").out
    assert [line.split("│")[1].strip() for line in table.splitlines() if line.startswith("│")] == names


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with runs of two competitions, three metrics and two models."""
    monkeypatch.chdir(tmp_path)
    rows = [("one", "accuracy", 0.9), ("one", "accuracy", 0.8), ("one", "log_loss", 0.3)]
    rows += [("two", "rmse", 17.0), ("two", "rmse", 5.0)]
    for number, (name, metric, value) in enumerate(rows):
        config = configs.from_mapping({"competition": {"name": name}}, "here")
        run = runs.create(Path("runs"), config, f"run{number}", {"classes": ["a", "b"]})
        higher = metric == "accuracy"
        val = SplitScores(images=50, scores={metric: Score(value=value, higher_is_better=higher)})
        run.write_metrics(
            RunMetrics(
                run=run.name, competition=name, metric=metric, higher_is_better=higher,
                task="regression" if metric == "rmse" else "single_label", model=f"net{number % 2}",
                parameters=1, best=WeightScores(val=val),
            )
        )  # fmt: skip


@pytest.mark.parametrize("sort", ["auto", "val_metric"])
def test_ranks_begin_anew_for_each_metric(board: None, comp: Comp, sort: str) -> None:
    out = comp("leaderboard", "--sort", sort).out
    lines = [[cell.strip() for cell in line.split("│")[1:3]] for line in out.splitlines() if line.startswith("│")]
    lines = [line for line in lines if line[0]]  # a folded name takes several lines
    assert [rank for rank, _ in lines] == ["1", "2", "1", "1", "2"]
    ordered = leaderboard.read_rows(Path("runs"), sort=sort)
    assert [row.val_metric for row in ordered] == [0.9, 0.8, 0.3, 5.0, 17.0]
    assert [len(group) for group in leaderboard.comparable_groups(ordered, sort)] == [2, 1, 2]
    assert [len(group) for group in leaderboard.comparable_groups(ordered, "started")] == [5]


def test_groups_of_several_metrics_have_no_common_mean(board: None, comp: Comp) -> None:
    by_model = {row["value"]: row for row in json.loads(comp("leaderboard", "--group-by", "model", "--json").out)}
    assert [(row["runs"], row["best"], row["mean"]) for row in by_model.values()] == [(3, None, None), (2, None, None)]
    groups = json.loads(comp("leaderboard", "--group-by", "metric", "--json").out)
    by_metric = {row["value"]: row["mean"] for row in groups}
    assert by_metric == {"accuracy": pytest.approx(0.85), "log_loss": 0.3, "rmse": 11.0}
    assert "--group-by metric" in comp("leaderboard", "--group-by", "model").out


def test_an_empty_board_has_no_table(tmp_path: Path, comp: Comp) -> None:
    for words in ([], ["--group-by", "model"]):
        result = comp("leaderboard", "--runs", tmp_path, *words)
        assert (result.code, "┃" in result.out, "no complete runs" in result.out) == (0, False, True)


def test_a_wrong_metric_is_answered_with_the_nearest(tmp_path: Path, comp: Comp) -> None:
    (tmp_path / "c.yaml").write_text("competition: {metric: f1_macro}\ndata: {source: digits}\n")
    assert_refused(comp("config", "check", tmp_path / "c.yaml"), "f1_macro", "did you mean 'macro_f1'?")
