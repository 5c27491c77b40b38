"""`--json` on every command: one value on standard output, with the keys and types of docs/JSON.md, errors included."""

import json
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from comp import config as configs
from comp.cli import app
from comp.results import runs
from comp.results.run_metrics import RunMetrics
from comp.runtime import streams
from comp.runtime.errors import Interrupted
from tests.support.commands import GROUP, REPOSITORY, Result, commands
from tests.support.configs import QUICK
from tests.support.frozen_runs import PLAIN, thawed

Comp = Callable[..., Result]
ROW = re.compile(r"^\| `(.+?)`(\??) \| (.+?) \|", re.MULTILINE)
# Command, or `Errors` -> the path of each key, with `?` behind an optional one, and its type.
TABLES = {
    name: [(path + mark, kinds) for path, mark, kinds in ROW.findall(section)]
    for section in re.split(r"^## ", (REPOSITORY / "docs/JSON.md").read_text(), flags=re.MULTILINE)[1:]
    for name in re.findall(r"`([^`]+)`", section.splitlines()[0]) or [section.splitlines()[0]]
}
KINDS = {str: "string", bool: "boolean", int: "number", float: "number", list: "array", dict: "object"}
MISSING = object()

# Section -> the words of a command that takes no training; {run} is a complete run, {csv} its submission.
QUICK_COMMANDS = {
    "comp leaderboard": "leaderboard",
    "comp leaderboard --group-by": "leaderboard --group-by model",
    "comp leaderboard record": "leaderboard record {csv} --public 0.5",
    "comp check": "check {csv}",
    "comp diff": "diff {csv} submissions/frozen-2.csv",
    "comp report": "report {run} runs/frozen/20261126-204854-small",
    "comp clean": "clean --dry-run",
    "comp config show": "config show small.yaml",
    "comp config check": "config check small.yaml",
    "comp config explain": "config explain optim",
    "comp data prepare": "data prepare small.yaml",
    "comp data show": "data show small.yaml",
    "comp data check": "data check small.yaml",
    "comp data corrupt": "data corrupt small.yaml --split test --out ood --only fog --severities 1",
    "comp init": "init --example quickstart -o example",
}
SMALL = f"small.yaml {' '.join(QUICK)}"
SLOW_COMMANDS = {
    "comp models": "models simple_cnn",
    "comp run": f"run {SMALL}",
    "comp cv": f"cv {SMALL} data.folds=2",
    "comp tune": f"tune {SMALL} tune.space.optim.lr={{float:[1e-3,1e-2]}} tune.trials=1",
    "comp lr-find": f"lr-find {SMALL} --steps 20",
    "comp data shift": f"data shift {SMALL} --images 40",
}
OF_RUNS = {
    "comp evaluate": "evaluate runs/small/*seed0",
    "comp export": "export runs/small/*seed0 -o exported",
    "comp data errors": "data errors runs/small/*seed0",
    "comp predict": "predict runs/small/*seed0 --images pictures",
}


def at(value: Any, parts: list[str]) -> Iterator[Any]:
    """Yield the values at a path; MISSING where an object lacks the key."""
    if not parts:
        yield value
    elif parts[0] in ("[]", "*"):
        for element in value or [] if parts[0] == "[]" else (value or {}).values():
            yield from at(element, parts[1:])
    elif isinstance(value, dict):
        yield from at(value[parts[0]], parts[1:]) if parts[0] in value else [MISSING]


def parts_of(path: str) -> list[str]:
    return [part for part in re.split(r"\.|(\[\])", path.removesuffix("?")) if part]


def assert_documented(value: Any, rows: list[tuple[str, str]]) -> None:
    """Assert that a value has every key of the tables that is not optional, with its type, and no other key."""
    keys: dict[tuple[str, ...], set[str]] = {}
    for path, kinds in rows:
        *above, name = parts_of(path)
        keys.setdefault(tuple(above), set()).add(name)
        for entry in at(value, parts_of(path)):
            if entry is MISSING:
                assert path.endswith("?"), f"{path} is missing"
            else:
                assert (entry is None and "null" in kinds) or KINDS[type(entry)] in kinds.split(" or "), path
    for above, names in keys.items():
        for parent in at(value, list(above)):
            assert "*" in names or not isinstance(parent, dict) or set(parent) <= names, (above, set(parent) - names)


def printed(comp: Comp, *words: str) -> Any:
    """Return the one value that a command prints."""
    result = comp(*words, "--json")
    assert result.code == 0, result.err
    return json.loads(result.out)


@pytest.mark.parametrize("words", commands(GROUP), ids=" ".join)
def test_every_command_has_the_option_and_a_section(words: tuple[str, ...]) -> None:
    command: Any = GROUP
    for word in words:
        command = command.commands[word]
    assert any("--json" in parameter.opts for parameter in command.params)
    assert f"comp {' '.join(words)}" in TABLES


@pytest.mark.parametrize("section", QUICK_COMMANDS)
def test_a_command_prints_what_is_documented(section: str, workplace: Path, comp: Comp) -> None:
    thawed(workplace)
    words = QUICK_COMMANDS[section].format(run=PLAIN, csv="submissions/frozen.csv").split()
    value = printed(comp, *words)
    assert value
    assert_documented(value, TABLES[section])


@pytest.mark.slow  # trainings
@pytest.mark.parametrize("section", SLOW_COMMANDS)
def test_a_training_prints_what_is_documented(section: str, workplace: Path, comp: Comp) -> None:
    assert_documented(printed(comp, *SLOW_COMMANDS[section].split()), TABLES[section])


@pytest.mark.slow  # three trainings
@pytest.mark.parametrize("section", OF_RUNS)
def test_a_command_on_a_run_prints_what_is_documented(section: str, three_runs: Path, comp: Comp) -> None:
    import numpy as np
    from PIL import Image

    (three_runs / "pictures").mkdir()
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(three_runs / "pictures" / "a.png")
    words = [str(next(three_runs.glob(word))) if "*" in word else word for word in OF_RUNS[section].split()]
    assert_documented(printed(comp, *words), TABLES[section])


def test_the_keys_of_a_run_are_those_of_its_metrics_file() -> None:
    names = {path.removesuffix("?") for path, _ in TABLES["comp run"]}
    assert names == {*RunMetrics.model_fields, "folder", "evaluation"}


def test_unfinished_runs_follow_the_complete_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comp: Comp) -> None:
    monkeypatch.chdir(thawed(tmp_path))
    runs.create(
        Path("runs"), configs.from_mapping({"competition": {"name": "frozen"}}, "here"), "a", {"classes": ["x"]}
    )
    everything = printed(comp, "leaderboard", "--all")
    assert everything[:-1] == printed(comp, "leaderboard")
    assert everything[-1]["state"] == "interrupted"
    assert_documented(everything[-1:], TABLES["comp leaderboard --all"])


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        (["check", "nosuch.csv"], "SubmissionError", "nosuch.csv: no such submission"),
        (["config", "check", "nosuch.yaml"], "ConfigError", "nosuch.yaml"),
        (["evaluate", "nosuch"], "RunError", "nosuch"),
        (["run", "--nosuch"], "UsageError", "--nosuch"),
        (["chekc"], "UsageError", "check"),
        (["export", "run", "--format", "onxx"], "UsageError", "'onxx' is not one of 'onnx'"),
        (["report", ""], "UserError", "empty"),
        (["data", "check"], "UsageError", "CONFIG"),
    ],
)
def test_an_error_is_one_object(words: list[str], kind: str, message: str, comp: Comp) -> None:
    result = comp(*words, "--json")
    value = json.loads(result.out)
    assert_documented(value, TABLES["Errors"])
    assert (result.code, value["error"]["exit_code"], value["error"]["kind"]) == (2, 2, kind)
    assert message in value["error"]["message"]
    assert result.err.startswith("error: ")
    assert message in result.err  # people read it too
    assert comp(*words).out == ""


@pytest.mark.parametrize(("raised", "code"), [(RuntimeError("odd"), 1), (Interrupted(signal.SIGTERM), 143)])
def test_what_ends_a_command_is_an_object_too(
    monkeypatch: pytest.MonkeyPatch, comp: Comp, raised: BaseException, code: int
) -> None:
    def stop(*arguments: object, **options: object) -> None:
        raise raised

    monkeypatch.setattr(app, "app", stop)
    result = comp("run", "c.yaml", "--json")
    assert (result.code, json.loads(result.out)["error"]["exit_code"]) == (code, code)
    assert not streams.awaits_json()


def test_findings_are_printed_once_where_they_are_the_error(tmp_path: Path, comp: Comp) -> None:
    csv = tmp_path / "constant.csv"
    csv.write_text("id,label\n" + "".join(f"{row},1\n" for row in range(50)))
    (tmp_path / "sample.csv").write_text("id,label\n" + "".join(f"{row},0\n" for row in range(50)))
    result = comp("check", csv, "--format", tmp_path / "sample.csv", "--json")
    assert result.code == 2
    value = json.loads(result.out)
    assert_documented(value, TABLES["comp check"])
    assert value["valid"]
    assert [doubt["verdict"] for doubt in value["doubts"]]
