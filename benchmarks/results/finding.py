"""Which runs belong to a row: those whose config is the row's file as it stands now."""

import re
import statistics
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.results.rows import Row
from comp import config as configs
from comp.config import Config
from comp.results import diagnostics, files, prediction_files, runs
from comp.results.run_metrics import RunMetrics
from comp.results.runs import Run
from comp.runtime.errors import UserError

CONFIGS = Path("configs/coursework")
FIRST_PRINCIPLES = Path("first-principles/junit.xml")  # below the folder of the runs

# What a run may have otherwise than its file: where it ran and which of several equals it is, how far it got, and
# whose weights it started from.
_FREE = {
    "seed", "data.root", "model.from_run", "train.device", "train.epochs", "train.threads", "train.precision",
    "train.channels_last", "train.compile", "train.checkpoint_seconds",
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What the complete runs of a row found.

    Attributes:
        seeds: in order.
        accuracies: on the test split (validation where there is no test), seed by seed.
        precision: on the test split, weighted by class, the mean over seeds.
        epochs: seed by seed.
        seconds: of training, their mean.
        whole: whether every run went through all the file's epochs, or stopped early by its own rule.
        where: processor and threads of the first.
        date: of the last.
        paths: of the runs.
    """

    seeds: tuple[int, ...]
    accuracies: tuple[float, ...]
    precision: float
    epochs: tuple[int, ...]
    seconds: float
    whole: bool
    where: str
    date: str
    paths: tuple[Path, ...]

    @property
    def accuracy(self) -> float:
        """The mean over seeds."""
        return statistics.fmean(self.accuracies)


class Runs:
    """All runs below a folder, matched to config files.

    Args:
        root: usually `runs`.
        folder: of the config files.
    """

    def __init__(self, root: Path, folder: Path = CONFIGS) -> None:
        self._root, self._folder = root, folder
        self._found: list[tuple[Run, Config, str]] = []
        for run in runs.list_runs(root):
            try:
                self._found.append((run, run.config(), self._probe(run)))
            except UserError:
                continue  # of an older version, or damaged: it counts for nothing

    def of(self, row: Row, config: str = "") -> list[tuple[int, Run]]:
        """Return a row's runs with their seeds, complete or not, by seed; of equals the newest last.

        Args:
            row: says where first weights come from and whether features are probed.
            config: another file's stem than the row's own: its best recipe.
        """
        wanted = _fixed(configs.load(self._folder / f"{config or row.config}.yaml"))
        started = bool(row.start) and not row.probe and not config
        probe = "" if config else row.probe
        found = [
            (has.seed, run)
            for run, has, by in self._found
            if by == probe and bool(has.model.from_run) == started and _fixed(has) == wanted
        ]
        return sorted(found, key=lambda pair: (pair[0], pair[1].path.name))

    def outcome(self, row: Row, config: str = "") -> Outcome | None:
        """Return what a row's complete runs found, the newest of each seed; None without one.

        Partial ones count where none is whole, and those of more epochs than the file asks for never: their schedule is
        another one.
        """
        asked = self._epochs(row, config)
        found = self.of(row, config)
        complete = [pair for pair in found if pair[1].is_complete() and pair[1].config().train.epochs <= asked]
        whole = [pair for pair in complete if self.is_whole(pair[1], row, config)]
        by_seed = dict(whole or complete)
        if not by_seed:
            return None
        chosen = list(by_seed.values())
        metrics = [run.metrics() for run in chosen]
        provenance = [run.provenance() for run in chosen]
        threads = _threads(chosen[0])
        return Outcome(
            seeds=tuple(by_seed),
            accuracies=tuple(_accuracy(found) for found in metrics),
            precision=statistics.fmean(_precision(run) for run in chosen),
            epochs=tuple(found.epochs for found in metrics),
            seconds=statistics.fmean(found.train_seconds for found in metrics),
            whole=bool(whole),
            where=f"{provenance[0]['machine']['processor']}{threads}",
            date=max(found["time"] for found in provenance)[:10],
            paths=tuple(run.path for run in chosen),
        )

    def is_whole(self, run: Run, row: Row, config: str = "") -> bool:
        """Tell whether a run is complete and went through all the file's epochs, or stopped early by its own rule."""
        return run.is_complete() and (bool(row.probe) or run.config().train.epochs == self._epochs(row, config))

    def _epochs(self, row: Row, config: str) -> int:
        return configs.load(self._folder / f"{config or row.config}.yaml").train.epochs

    def first_principles(self) -> tuple[int, int, float, str] | None:
        """Return how many tests of the convolution passed, how many there were, their seconds, and the date."""
        path = self._root / FIRST_PRINCIPLES
        if not path.is_file():
            return None
        (suite,) = ElementTree.parse(path).getroot().iter("testsuite")
        asked = int(suite.attrib["tests"])
        bad = sum(int(suite.attrib[kind]) for kind in ("failures", "errors", "skipped"))
        return asked - bad, asked, float(suite.attrib["time"]), suite.attrib["timestamp"][:10]

    @staticmethod
    def _probe(run: Run) -> str:
        """Return the classifier of a probe's run, which its folder's name tells; empty for a training."""
        found = re.search(r"-(\w+)-probe(-\d+)?$", run.path.name)
        return found[1] if found else ""


def _fixed(config: Config) -> dict[str, object]:
    return {name: value for name, value in configs.flat(config).items() if name not in _FREE}


def _accuracy(metrics: RunMetrics) -> float:
    scores = metrics.test or metrics.best_or_final.val
    assert scores is not None
    return scores.scores["accuracy"].value


def _precision(run: Run) -> float:
    found = diagnostics.diagnose(prediction_files.load(run.predictions_path("test")))
    return float(found["weighted"]["precision"])


def _threads(run: Run) -> str:
    if not (run.path / "execution.json").is_file():
        return ""
    count = files.read_json(run.path / "execution.json")["threads"]
    return f", {count} thread" if count == 1 else f", {count} threads"


def within_noise(accuracies: Sequence[float], published: float, images: int = 10_000) -> bool:
    """Tell whether a mean lies less than two standard errors, of a difference of two such tests, below a number."""
    mean = statistics.fmean(accuracies)
    error = (published * (1 - published) / images * (1 + 1 / len(accuracies))) ** 0.5
    return mean >= published - 2 * error
