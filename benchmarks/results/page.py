"""docs/RESULTS.md and the configs' headers, written from the runs: no number of ours is typed by hand."""

import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.results import pictures
from benchmarks.results.finding import CONFIGS, Outcome, Runs, within_noise
from benchmarks.results.rows import ROWS, Row
from comp.results import files, runs
from comp.runtime.errors import RunError

PAGE = Path("docs/RESULTS.md")
PICTURES = Path("docs/pictures")
_OURS = re.compile(r"^# Ours: .*$", re.MULTILINE)
_INTRODUCTION = """# Results

The coursework's experiments: published numbers, ours with the published recipe (`comp run
configs/coursework/NAME.yaml`), and our recipe for the same network in no more epochs. `python -m benchmarks.results`
writes this page from the runs' metrics; `python -m benchmarks.results run` trains what is missing. The publications
leave some settings open; the head of each config says how we read them.

Accuracies are on the test split, with the weights that were best on validation; means over seeds. "Against" is
`above`, `within noise` (less than two standard errors of the difference below) or `below`. A run of fewer epochs than
its config asks for is `partial` and compared to nothing. Minutes are wall clock of the training, mostly on one thread
beside other work, so they compare only roughly.
"""


def write(root: Path) -> None:
    """Write the page, its pictures and every header from the runs below a folder.

    Raises:
        RunError: no row has a complete run there; what was written before stays.
    """
    matched = Runs(root)
    outcomes = {row: matched.outcome(row) for row in ROWS if not row.missing}
    if not any(outcomes.values()):
        raise RunError(f"{root}: holds no complete run of any row; make some: python -m benchmarks.results run")
    best = {row: matched.outcome(row, row.best) for row in ROWS if row.best}
    parts = [_INTRODUCTION, _main_table(outcomes, best), _first_principles(matched), _pictures(outcomes, best), _away()]
    PAGE.parent.mkdir(exist_ok=True)
    files.write_atomically(PAGE, "\n".join(part for part in parts if part).encode())
    for row, outcome in outcomes.items():
        if not row.start:
            _write_header(row.config, outcome)
    for row, outcome in best.items():
        _write_header(row.best, outcome)


def _main_table(outcomes: dict[Row, Outcome | None], best: dict[Row, Outcome | None]) -> str:
    header = ["System", "Published", "Ours, published recipe", "Against", "Epochs, min", "Our recipe", "Epochs, min"]
    lines = ["## On real data\n", _line(header), "|---" * len(header) + "|"]
    for row, outcome in outcomes.items():
        precision = f", weighted precision {outcome.precision:.2%}" if outcome and row.precision else ""
        ours = [_score(outcome) + precision, _against(row, outcome), _cost(outcome)]
        recipe = best.get(row)
        beside = [_score(recipe) if row.best else "", _cost(recipe)]
        lines.append(_line([row.system, row.published, *ours, *beside]))
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _score(outcome: Outcome | None) -> str:
    if outcome is None:
        return "not run yet"
    partial = "" if outcome.whole else ", partial"
    if len(outcome.seeds) == 1:
        return f"{outcome.accuracy:.2%}{partial}"
    spread = statistics.stdev(outcome.accuracies)
    return f"{outcome.accuracy:.2%} ± {100 * spread:.2f} ({len(outcome.seeds)} seeds){partial}"


def _against(row: Row, outcome: Outcome | None) -> str:
    if row.accuracy is None or outcome is None or not outcome.whole:
        return ""
    if outcome.accuracy >= row.accuracy:
        return "above"
    return "within noise" if within_noise(outcome.accuracies, row.accuracy) else "below"


def _cost(outcome: Outcome | None) -> str:
    if outcome is None or not any(outcome.epochs):  # a probe has none
        return ""
    return f"{_range(outcome.epochs)}, {_minutes(outcome)}"


def _range(counts: Sequence[int]) -> str:
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _minutes(outcome: Outcome) -> str:
    return f"{outcome.seconds / 60:.2g}"


def _first_principles(matched: Runs) -> str:
    counts = matched.first_principles()
    if counts is None:
        return ""
    passed, asked, seconds, date = counts
    return (
        "## Convolution from first principles\n\n"
        f"Published: 12 groups of tests, all pass, in 4,373 s. Ours: {passed} of {asked} tests pass in {seconds:.0f} s "
        f"({date}): `tests/models/test_convolution.py`, the whole grid of 7,749 layers in one of them.\n"
    )


def _pictures(outcomes: dict[Row, Outcome | None], best: dict[Row, Outcome | None]) -> str:
    by_config = {row.config: (row, outcome) for row, outcome in outcomes.items()}
    parts = ["## Pictures\n"]
    parts += _by_depth(by_config)
    parts += _by_frozen(by_config)
    parts += _by_recipe(outcomes, best)
    parts += _by_layer(by_config)
    return "\n".join(parts) + "\n" if len(parts) > 1 else ""


Known = dict[str, tuple[Row, Outcome | None]]


def _by_depth(outcomes: Known) -> list[str]:
    depths = ("2", "3", "6")
    series: dict[str, list[float | None]] = {}
    for net, name in (("simple_cnn", "plain"), ("residual_cnn", "residual")):
        rows = [outcomes[f"cifar10_{net}_{depth}"] for depth in depths]
        series[f"{name}, published"] = [row.accuracy for row, _ in rows]
        series[f"{name}, ours"] = [outcome and outcome.accuracy for _, outcome in rows]
    if not any(value for name in series if "ours" in name for value in series[name]):
        return []
    path = PICTURES / "depth.png"
    pictures.bars(path, "CIFAR-10, plain against residual", depths, series, lowest=0.6, label="depth")
    return [f"![Accuracy of plain and residual convnets by depth]({path.relative_to(PAGE.parent)})\n"]


def _by_frozen(outcomes: Known) -> list[str]:
    rows = [(row, outcome) for name, (row, outcome) in outcomes.items() if "_lite0_frozen_" in name and outcome]
    if len(rows) < 2:  # nothing to compare
        return []
    path = PICTURES / "frozen.png"
    names = [row.system.split("frozen: ")[1] for row, _ in rows]
    title = "CIFAR-10 in one epoch by ImageNet's EfficientNet-lite0 at 96 px, what is frozen"
    pictures.bars(path, title, names, {"ours": [outcome.accuracy for _, outcome in rows if outcome]}, lowest=0.5)
    return [f"![Accuracy by what is frozen]({path.relative_to(PAGE.parent)})\n"]


def _by_recipe(outcomes: dict[Row, Outcome | None], best: dict[Row, Outcome | None]) -> list[str]:
    rows = [row for row in best if best[row] and outcomes[row] and row.config.startswith("cifar10")]
    if not rows:
        return []
    path = PICTURES / "recipes.png"
    ours = {
        "published": [row.accuracy for row in rows],
        "ours, published recipe": [_mean(outcomes[row]) for row in rows],
        "our recipe": [_mean(best[row]) for row in rows],
    }
    names = [row.config.removeprefix("cifar10_").replace("_", "\n") for row in rows]
    pictures.bars(path, "CIFAR-10, the same networks by two recipes", names, ours, lowest=0.4)
    return [f"![Published and our recipes for the same networks]({path.relative_to(PAGE.parent)})\n"]


def _mean(outcome: Outcome | None) -> float | None:
    return outcome and outcome.accuracy


def _by_layer(outcomes: Known) -> list[str]:
    """Draw the gradient norms of the plain and the residual MLP, and say how their first layers compare."""
    tables = {}
    for config in ("mnist_mlp", "mnist_residual_mlp"):
        outcome = outcomes[config][1]
        if outcome is None:
            return []
        tables[config] = runs.Run(outcome.paths[0]).table("norms.csv")
    path = PICTURES / "norms.png"
    pictures.norms(path, tables)
    first = {name: _first_layer(rows) for name, rows in tables.items()}
    norms = ", ".join(f"{name} {norm:.3f}" for name, norm in first.items())
    larger = "larger" if first["mnist_residual_mlp"] > first["mnist_mlp"] else "not larger"
    return [
        f"![Gradient norms by layer]({path.relative_to(PAGE.parent)})\n",
        f"Gradient norms of the first layer, mean over the first 5 epochs: {norms}. Published: larger in the "
        f"residual net's early layers than in the plain net's; here they are {larger}.\n",
    ]


def _first_layer(rows: list[dict[str, str]]) -> float:
    name = rows[0]["layer"]
    return statistics.fmean(
        float(row["gradient_norm"]) for row in rows if row["layer"] == name and int(row["epoch"]) <= 5
    )


def _away() -> str:
    lines = [
        "## Complete configs without their data\n",
        "What these need cannot be had on the machine that this page is written on. Each config is trained, end to "
        "end, by `tests/e2e/test_coursework.py` on small images in exactly the layout on disk that it reads.\n",
        _line(["System", "Published", "Config", "Missing"]),
        "|---" * 4 + "|",
    ]
    lines += [_line([row.system, row.published, row.config, row.missing]) for row in ROWS if row.missing]
    return "\n".join(lines) + "\n"


def _write_header(config: str, outcome: Outcome | None) -> None:
    """Put what we found into a config's line `# Ours:`."""
    path = CONFIGS / f"{config}.yaml"
    text = path.read_text(encoding="utf-8")
    sentence = "not run yet." if outcome is None else _sentence(outcome)
    replaced = _OURS.sub(f"# Ours: {sentence}", text, count=1)
    if replaced != text:
        files.write_atomically(path, replaced.encode())


def _sentence(outcome: Outcome) -> str:
    seeds = f"seed {outcome.seeds[0]}" if len(outcome.seeds) == 1 else f"mean of seeds {_listed(outcome.seeds)}"
    epochs = f"{_range(outcome.epochs)} epoch{'s' * (max(outcome.epochs) > 1)}{'' if outcome.whole else ' (partial)'}"
    where = f"{_minutes(outcome)} min on {outcome.where}, {outcome.date}"
    return f"test {outcome.accuracy:.2%}, {seeds}, {epochs} in {where}."


def _listed(seeds: tuple[int, ...]) -> str:
    return ", ".join(map(str, seeds))
