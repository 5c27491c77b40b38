"""Kill `comp` at random points, go on, and compare with a command that nobody disturbed.

    python -m benchmarks.kills [--kills 1000] [--jobs 2] [--seed 0] [--only train predict ...] [--seconds 900]

Each round copies a workplace with data, two trained runs and a submission, and starts one of five commands on it:
`run`, `tune`, `predict`, `ensemble`, `cv`. It is killed (SIGKILL, one time in five SIGTERM or SIGINT) at a random
moment of the undisturbed command's duration, or before or after a random one of its file operations (each opening to
write, fsync, rename, link, removal, new folder). Then the user's next command follows (`--resume`, or the same again),
which is killed too, up to four times in all, until one ends by itself.

After every kill: what existed before has its bytes, every file with its final name can be read, a submission's CSV is
the one its sidecar names, and `comp leaderboard` works. At the end: exit code 0, and weights, predictions, curves,
scores and CSV are those of the undisturbed command, bit for bit.

Commands are forked from a process that has imported torch and comp, so a kill costs about a second. Prints Markdown,
and writes the last result to benchmarks/results/kills.json. All draws follow from `--seed`; where a moment falls
depends on the machine.
"""

import argparse
import collections
import csv
import hashlib
import json
import os
import platform
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import yaml

from benchmarks import forked
from benchmarks.forked import Command, Kill
from comp.results import files, runs
from comp.submission.write import sidecar_path
from tests.support.configs import small_config, write_arrays, write_config

RESULT = Path(__file__).parent / "results" / "kills.json"
MOST_KILLS = 4  # of a round
_AGAIN = 0.9  # probability that a command is killed
_SIGNALS = (signal.SIGKILL,) * 8 + (signal.SIGTERM, signal.SIGINT)
_KILLED = {-signum for signum in _SIGNALS} | {128 + signum for signum in _SIGNALS} | {0}
_CLOCK = {"train_seconds", "time", "seconds", "images_per_second", "argv", "git", "run", "run_path", "weights_sha256"}
_NAMED_BY_TIME = re.compile(r"\d{8}-\d{6}-[a-z0-9-]+?(-\d+)?(?=$|[^a-z0-9-])")
_SHORT = [
    "train.epochs=2", "train.checkpoint_seconds=0", "competition.suite.files=2", "competition.suite.severities=2",
    "competition.ood_validation.per_block=4", "train.average=ema",
]  # fmt: skip
Digests = dict[str, str]


@dataclass(frozen=True)
class Scenario:
    """A command that is killed.

    Attributes:
        arguments: of the first command.
        again: workplace -> arguments of the command after a kill.
        changes: pattern of files of the workplace that the command may change.
    """

    arguments: tuple[str, ...]
    again: Callable[[Path], tuple[str, ...]] | None = None
    changes: str = r"^$"

    def next(self, folder: Path) -> tuple[str, ...]:
        """Return what a user types after a kill."""
        return self.arguments if self.again is None else self.again(folder)


def _resumed(folder: Path) -> tuple[str, ...]:
    begun = [run for run in runs.list_runs(folder / "new") if (run.path / "split.npz").is_file()]
    if not begun:
        return SCENARIOS["train"].arguments
    return ("run", "--resume", str(begun[-1].path.relative_to(folder)), "-o", "out.csv")


_CV = ("data.folds=2", "train.epochs=1", "train.average=none")
SCENARIOS: dict[str, Scenario] = {
    "train": Scenario(("run", "small.yaml", "--runs", "new", "-o", "out.csv"), _resumed),
    "predict": Scenario(
        ("predict", "runs/small/first", "--views", "flip", "-o", "out.csv", "--force"),
        changes=r"^runs/small/first/(metrics\.json|predictions/)|^out\.",
    ),
    "ensemble": Scenario(
        ("ensemble", "runs/small/first", "runs/small/second", "--runs", "new", "-o", "out.csv", "--force"),
        changes=r"^out\.",
    ),
    "tune": Scenario(("tune", "tune.yaml", "--study", "search", "--runs", "new")),
    "cv": Scenario(("cv", "small.yaml", *_CV, "--runs", "new", "-o", "out.csv")),
}
_ORDER = ("train", "predict", "ensemble", "cv", "train", "predict", "tune", "ensemble")


def write_workplace(folder: Path) -> None:
    """Write the workplace that each round copies: data, two configs, two trained runs, a submission.

    Raises:
        RuntimeError: a command fails that nobody has killed.
    """
    write_arrays(folder / "data", train=80, test=16)
    values = small_config(Path("data"))
    for setting in _SHORT:
        key, _, value = setting.partition("=")
        _set(values, key.split("."), yaml.safe_load(value))
    write_config(folder / "small.yaml", values)
    space = {"optim.lr": {"choice": [0.001, 0.003, 0.01]}}
    tune = {"space": space, "sampler": "grid", "pruner": "none", "trials": 3, "confirm": {"top": 0}}
    trial = {**values, "train": {**values["train"], "epochs": 1, "average": "none"}, "tune": tune}
    trial["competition"] = {**values["competition"], "ood_validation": {"severities": []}}
    write_config(folder / "tune.yaml", trial)
    for seed, name in enumerate(("first", "second")):
        arguments = ("run", "small.yaml", f"seed={seed}", "--name", name, "-o", f"{name}.csv")
        undisturbed(arguments, folder)
        (made,) = (folder / "runs" / "small").glob(f"*-{name}")
        made.rename(made.with_name(name))


def _set(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
    tree[keys[-1]] = value


def undisturbed(arguments: tuple[str, ...], folder: Path) -> Command:
    """Run a command that must end well.

    Raises:
        RuntimeError: it does not.
    """
    done = forked.run(arguments, folder, folder / ".log")
    if done.code:
        raise RuntimeError(f"comp {' '.join(arguments)}: exit code {done.code}\n{done.out}{done.err}")
    return done


def digests_of(folder: Path) -> Digests:
    """Return file -> hash of what does not depend on the clock, of all that a scenario has made."""
    digests: Digests = {}
    complete = [run for run in runs.list_runs(folder / "new") if run.is_complete()]
    complete += [run for run in runs.list_runs(folder / "runs") if run.path.name == "first"]
    for run in complete:
        name = str(_NAMED_BY_TIME.sub("TIME-" + _last_part(run), str(run.path.relative_to(folder))))
        for part, content in _contents(run):
            digests[f"{name}/{part}"] = hashlib.sha256(content).hexdigest()
    out = folder / "out.csv"
    if out.exists():
        digests["out.csv"] = files.sha256_file(out)
        sidecar = json.loads(sidecar_path(out).read_bytes())
        digests["out.json"] = "names the CSV" if sidecar["sha256"] == digests["out.csv"] else "names another CSV"
    return digests


def _last_part(run: runs.Run) -> str:
    """Return what tells a study's trials apart: their values; a retried trial has another number."""
    config = run.config()
    return f"{config.optim.lr:g}-{config.data.fold}-{'members' in run.provenance()}"


def _contents(run: runs.Run) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of each of a run's results."""
    yield "metrics.json", json.dumps(_plain(run.metrics().to_json()), sort_keys=True).encode()
    rows = [{key: cell for key, cell in row.items() if key not in _CLOCK} for row in run.history()]
    yield "history.csv", repr(rows).encode()
    for path in sorted(run.path.glob("*.safetensors")):
        tensors = safetensors.numpy.load(path.read_bytes())
        yield path.name, b"".join(name.encode() + tensors[name].tobytes() for name in sorted(tensors))
    for path in sorted(run.path.glob("predictions/*.npz")):
        with np.load(path) as archive:
            names = sorted(set(archive.files) - {"made_by"})
            yield f"predictions/{path.name}", b"".join(name.encode() + archive[name].tobytes() for name in names)


def _plain(value: Any) -> Any:
    """Return values without what the clock writes."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items() if key not in _CLOCK}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return _NAMED_BY_TIME.sub("TIME", value) if isinstance(value, str) else value


def unreadable(folder: Path) -> list[str]:
    """Return what cannot be read, of the files with their final names, and submissions whose CSV and sidecar differ."""
    wrong = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
        try:
            _READERS.get(path.suffix, Path.read_bytes)(path)
        except Exception as error:
            wrong.append(f"{path.relative_to(folder)}: {type(error).__name__}: {error}")
    for path in (folder / "out.csv", folder / "first.csv"):
        if sidecar_path(path).exists():
            expected = json.loads(sidecar_path(path).read_bytes())["sha256"]
            held = [file for file in (path, *files.staged_for(path)) if file.exists()]
            if expected not in map(files.sha256_file, held):
                wrong.append(f"{path.name}: neither the CSV nor a temporary file is the one its sidecar names")
        elif path.exists():
            wrong.append(f"{path.name}: has no sidecar")
    return wrong


def _read_npz(path: Path) -> None:
    with np.load(path) as archive:
        for name in archive.files:
            archive[name]


def _read_csv(path: Path) -> None:
    with path.open(newline="") as file:
        if len({len(row) for row in csv.reader(file, strict=True)}) > 1:
            raise ValueError("rows of several lengths")


def _read_state(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise ValueError(f"damaged: {damaged}")


def _read_png(path: Path) -> None:
    content = path.read_bytes()
    if not content.startswith(b"\x89PNG") or content[-8:-4] != b"IEND":
        raise ValueError("half a picture")


_READERS: dict[str, Callable[[Path], Any]] = {
    ".json": lambda path: json.loads(path.read_bytes()),
    ".yaml": lambda path: yaml.safe_load(path.read_bytes()),
    ".log": lambda path: [json.loads(line) for line in path.read_bytes().splitlines()],
    ".npz": _read_npz,
    ".npy": np.load,
    ".csv": _read_csv,
    ".pt": _read_state,
    ".png": _read_png,
    ".safetensors": lambda path: safetensors.numpy.load(path.read_bytes()),
}


@dataclass(frozen=True)
class Reference:
    """An undisturbed scenario: how long it takes, how many file operations, and its results."""

    seconds: float
    operations: int
    digests: Digests


def measure(scenario: Scenario, template: Path, folder: Path) -> Reference:
    """Run a scenario undisturbed, twice, and return the second one's measures.

    Raises:
        RuntimeError: it fails, or its results differ.
    """
    seen: list[Reference] = []
    for number in range(2):
        place = folder / f"whole{number}"
        shutil.copytree(template, place)
        began = time.monotonic()
        done = undisturbed(scenario.arguments, place)
        seen.append(Reference(time.monotonic() - began, done.operations, digests_of(place)))
        shutil.rmtree(place)
    if differences := compare(seen[0].digests, seen[1].digests):
        raise RuntimeError(f"comp {' '.join(scenario.arguments)}: undisturbed results differ: {differences}")
    return seen[1]


def compare(expected: Digests, found: Digests) -> list[str]:
    """Return the names of results that differ, or are missing on one side."""
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def hashes(folder: Path, without: str) -> Digests:
    """Return path -> SHA-256 of a folder's files, without locks, temporary files and those that match a pattern."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    kept = [name for name in names if not re.search(r"(^|/)\.[^/]*$", name) and not re.search(without, name)]
    return {name: files.sha256_file(folder / name) for name in sorted(kept)}


@dataclass
class Round:
    """What one round has shown.

    Attributes:
        scenario: its name.
        kills: how each one was made: signal, and `moment` or `operation`.
        faults: what was wrong.
        commands: how many were run.
    """

    scenario: str
    kills: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    commands: int = 0


def draw_kill(draws: random.Random, reference: Reference) -> Kill:
    """Return a random kill of a command."""
    signum = draws.choice(_SIGNALS)
    if draws.random() < 0.5:
        return Kill(signum, seconds=draws.uniform(0, reference.seconds))
    return Kill(signum, operation=draws.randint(1, reference.operations), after=draws.random() < 0.5)


def play(name: str, reference: Reference, template: Path, folder: Path, draws: random.Random) -> Round:
    """Play one round in a new folder and return what it has shown."""
    scenario, played = SCENARIOS[name], Round(name)
    shutil.copytree(template, folder)
    if name in ("predict", "ensemble") and draws.random() < 0.5:  # a submission that is replaced
        for suffix in (".csv", ".json"):
            shutil.copy(folder / f"first{suffix}", folder / f"out{suffix}")
    before = hashes(folder, scenario.changes)
    arguments = scenario.arguments
    while True:
        kills = len(played.kills) < MOST_KILLS and draws.random() < _AGAIN
        kill = draw_kill(draws, reference) if kills else None
        done = forked.run(arguments, folder, folder / ".log", kill)
        played.commands += 1
        told = f"comp {' '.join(arguments)}, {kill}: exit code {done.code}"
        if "Traceback" in done.err or "internal error" in done.err or (done.code not in _KILLED if kill else done.code):
            played.faults.append(f"{told}\n{done.err[-3000:]}")
            break
        if kill is not None and done.code:
            where = "moment" if kill.seconds is not None else "operation"
            played.kills.append(f"{signal.Signals(kill.signum).name} {where}")
        lost = [f"{path} has changed" for path in compare(before, hashes(folder, scenario.changes)) if path in before]
        if wrong := lost + unreadable(folder) + list_runs_problem(folder):
            played.faults.append(f"{told}\n" + "\n".join(wrong))
            break
        if done.code == 0:
            if differing := compare(reference.digests, digests_of(folder)):
                played.faults.append(f"{told} after {played.kills}\nnot as undisturbed: {differing}")
            break
        arguments = scenario.next(folder)
    if not played.faults:
        shutil.rmtree(folder)
    return played


def list_runs_problem(folder: Path) -> list[str]:
    """Return how `comp leaderboard` fails in a folder."""
    done = forked.run(("leaderboard", "--json"), folder, folder / ".list")
    return (
        [f"comp leaderboard: exit code {done.code}: {done.err[-1000:]}"] if done.code or "damaged" in done.err else []
    )


def work(lane: int, arguments: argparse.Namespace, template: Path, references: dict[str, Reference], out: Path) -> None:
    """Play rounds until this lane has its share of the kills; write them to a file, a line each."""
    began, kills, number = time.monotonic(), 0, lane
    order = [name for name in _ORDER if name in references]
    share = arguments.kills // arguments.jobs + (lane < arguments.kills % arguments.jobs)
    with out.open("w") as file:
        while kills < share and time.monotonic() - began < arguments.seconds:
            draws = random.Random(f"{arguments.seed}-{number}")
            name = order[(number // arguments.jobs) % len(order)]
            played = play(name, references[name], template, template.parent / f"round{number}", draws)
            kills += len(played.kills)
            number += arguments.jobs
            print(json.dumps(vars(played)), file=file, flush=True)
            for fault in played.faults:
                print(f"round {number - arguments.jobs}, {name}: {fault}\n", file=sys.stderr, flush=True)


def summarize(rounds: list[Round], arguments: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Return the counts, and where they were made."""
    commands = {}
    for name in dict.fromkeys(played.scenario for played in rounds):
        of_it = [played for played in rounds if played.scenario == name]
        kills = collections.Counter(kill for played in of_it for kill in played.kills)
        commands[name] = {
            "rounds": len(of_it),
            "commands": sum(played.commands for played in of_it),
            "kills": sum(kills.values()),
            "by": dict(sorted(kills.items())),
            "faults": sum(len(played.faults) for played in of_it),
        }
    machine = {"processor": runs.cpu_model(), "cores": os.cpu_count(), "system": platform.platform()}
    return {
        "kills": sum(row["kills"] for row in commands.values()),
        "faults": sum(row["faults"] for row in commands.values()),
        "date": time.strftime("%Y-%m-%d"),
        "seed": arguments.seed,
        "seconds": round(seconds),
        "commands": commands,
        "machine": machine,
        "versions": runs.package_versions(),
    }


def print_table(summary: dict[str, Any]) -> None:
    """Print the counts as Markdown."""
    machine = summary["machine"]
    print(f"{machine['processor']}, {machine['cores']} cores, {summary['date']}, {summary['seconds']} s\n")
    print("| command | rounds | kills | at a moment | at a file operation | by SIGTERM or SIGINT | faults |")
    print("|---|---|---|---|---|---|---|")
    for name, row in summary["commands"].items():
        of = {key: sum(count for kind, count in row["by"].items() if key in kind) for key in ("moment", "operation")}
        soft = sum(count for kind, count in row["by"].items() if "SIGKILL" not in kind)
        cells = (name, row["rounds"], row["kills"], of["moment"], of["operation"], soft, row["faults"])
        print("| " + " | ".join(map(str, cells)) + " |")
    print(f"\n{summary['kills']:,} kills, {summary['faults']} faults")


def play_all(arguments: argparse.Namespace, root: Path) -> list[Round]:
    """Measure the undisturbed commands, and play rounds in several forked processes."""
    template = root / "template"
    template.mkdir()
    write_workplace(template)
    references = {name: measure(SCENARIOS[name], template, root) for name in arguments.only}
    for name, reference in references.items():
        print(f"{name}: {reference.seconds:.1f} s, {reference.operations} file operations", file=sys.stderr)
    lanes = []
    for lane in range(arguments.jobs):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                work(lane, arguments, template, references, root / f"lane{lane}.jsonl")
                code = 0
            finally:
                sys.stderr.flush()
                os._exit(code)
        lanes.append(pid)
    failed = [pid for pid in lanes if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(lanes)} processes failed; see the lines above")
    lines = [line for lane in range(arguments.jobs) for line in (root / f"lane{lane}.jsonl").read_text().splitlines()]
    return [Round(**json.loads(line)) for line in lines]


def main() -> None:
    """Print a table, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=2, help="Rounds at a time.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(SCENARIOS), default=list(SCENARIOS))
    parser.add_argument("--seconds", type=float, default=3600, help="Begin no round after this time.")
    parser.add_argument("--keep", type=Path, help="An empty folder for the workplaces; those of faults stay.")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    forked.prepare()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="comp-kills-") as folder:
        rounds = play_all(given, (given.keep or Path(folder)).absolute())
    summary = summarize(rounds, given, time.monotonic() - began)
    print_table(summary)
    files.write_atomically(given.out, files.to_json(summary))
    sys.exit(summary["faults"] > 0)


if __name__ == "__main__":
    main()
