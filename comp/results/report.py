"""HTML report of one run: a single file that loads nothing from the network. Torch-free.

Numbers come from the run's files; `data-value` holds all digits. Several runs: `comparison`.
"""

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from comp import config as configs
from comp.config import Config
from comp.results import charts, curves, diagnostics, files, page, prediction_files, runs, stats
from comp.results.page import Section
from comp.results.run_metrics import RunMetrics, Score, SplitScores
from comp.results.runs import Run
from comp.results.stats import ScoreDifference
from comp.runtime.errors import RunError, plural
from comp.runtime.progress import duration

_MAX_CLASSES = 100  # of a confusion table; of more classes, those with the most mistakes are drawn
_MAX_BESIDE = 12  # classes of a confusion table that leaves room beside it
_TOP = 5  # of fewer classes, all are among the top 5
_NAMES = {
    "top5": "top-5 accuracy",
    "f1": "F1",
    "r2": "R²",
    "bias": "mean error (bias)",
    "p90": "error that 9 of 10 stay below",
}
_LARGEST_PNG = 64  # pixels of a side, above which a picture is a JPEG in the page


@dataclass(frozen=True)
class Headline:
    """A number of metrics.json: a card on a run's page, a column in a comparison.

    Attributes:
        title: of the card or the column.
        score: its value and interval; None if the run has none.
        form: writes its value.
        split: the split that it scores; empty for a cost.
        metric: the metric; empty for a cost.
    """

    title: str
    score: Callable[[RunMetrics], Score | None]
    form: Callable[[float], str] = "{:.4f}".format
    split: str = ""
    metric: str = ""


SPLITS: dict[str, Callable[[RunMetrics], SplitScores | None]] = {
    "validation": lambda scores: scores.best_or_final.val,
    "shifted validation": lambda scores: scores.best_or_final.ood_val,
    "test": lambda scores: scores.split_scores("test"),
    "suite": lambda scores: scores.split_scores("suite"),
}
# A split -> the file of its predictions, without the suffix of views and adaptation, which test and suite have.
_FILES = {"validation": "val", "shifted validation": "ood_val", "test": "test", "suite": "suite"}
_COSTS = (
    Headline("parameters", lambda scores: Score(value=scores.parameters), "{:,.0f}".format),
    Headline("epochs", lambda scores: Score(value=scores.epochs) if scores.epochs else None, "{:.0f}".format),
    Headline("training time", lambda scores: Score(value=scores.train_seconds), duration),
)


def headlines(runs_scores: Sequence[RunMetrics]) -> list[Headline]:
    """Return the headlines with a value in any run: metrics first, then accuracies, then costs."""
    names = dict.fromkeys([*(scores.metric for scores in runs_scores), "accuracy"])
    rows = [_score_headline(split, name) for name in names for split in SPLITS]
    return [row for row in (*rows, *_COSTS) if any(row.score(scores) for scores in runs_scores)]


def _score_headline(split: str, metric: str) -> Headline:
    def score(scores: RunMetrics) -> Score | None:
        return (SPLITS[split](scores) or SplitScores()).scores.get(metric)

    return Headline(f"{split} {metric}", score, split=split, metric=metric)


def find_runs(paths: Sequence[Path]) -> list[Run]:
    """Return the complete runs in paths: run folders, or folders of runs such as a competition's or a study's.

    Raises:
        RunError: a path holds no complete run.
    """
    all_complete: list[Run] = []
    for path in paths:
        is_run = (path / "config.yaml").is_file()
        candidates = [runs.open_run(path)] if is_run else runs.list_runs(path)
        complete = [run for run in candidates if run.is_complete()]
        if not complete and candidates:
            candidates[-1].metrics()  # raises, and says how to finish it
        if not complete:
            raise RunError(f"{path}: expected a complete run or a folder of runs, found none; see `comp leaderboard`")
        all_complete += complete
    return list({run.path.resolve(): run for run in all_complete}.values())


def difference(run: Run, other: Run, headline: Headline) -> tuple[float, ScoreDifference | None] | None:
    """Return how far a run's score is above another one's, and for accuracies on the same images the interval.

    None if one of them has no such score.
    """
    scores, other_scores = headline.score(run.metrics()), headline.score(other.metrics())
    if scores is None or other_scores is None:
        return None
    if headline.metric != "accuracy":
        return scores.value - other_scores.value, None
    answers = []
    for each in (run, other):
        suffix = each.metrics().variant if headline.split in ("test", "suite") else ""
        name = f"{_FILES[headline.split]}{suffix}.npz"
        answers.append(prediction_files.find_correctness(each.path / "predictions" / name))
    first, second = answers
    measured = None
    if first and second and first.has_same_rows(second):
        assert first.correct is not None
        assert second.correct is not None
        measured = stats.paired_difference(first.correct, second.correct, first.images)
    return scores.value - other_scores.value, measured


def signed(value: float, measured: ScoreDifference | None) -> str:
    """Return a difference with its interval, as text."""
    if measured is None:
        return f"{value:+.4f}"
    return f"{value:+.4f} ({measured.interval.low:+.4f} to {measured.interval.high:+.4f})"


def render_page(run: Run, *, baseline: Config | None = None, compared: Run | None = None) -> str:
    """Return the HTML page of a run.

    Args:
        run: complete.
        baseline: the config to compare with; None: the defaults.
        compared: the run to compare scores with; None: none.

    Raises:
        RunError: a file of the run is damaged.
    """
    return page.render(run.name, sections(run, baseline, compared))


def sections(run: Run, baseline: Config | None = None, compared: Run | None = None) -> Iterator[Section]:
    """Yield the sections of `render_page`."""
    scores, provenance = run.metrics(), run.provenance()
    time = str(provenance.get("time") or "")[:16].replace("T", " ")
    summary = ", ".join(filter(None, (scores.competition, scores.model, time and f"{time} UTC")))
    cards = [_card(row, run, score, compared) for row in headlines([scores]) if (score := row.score(scores))]
    against = page.note(f"differences to {compared.name}, with 95 % intervals") if compared else ""
    shown = "".join(map(page.note, _notes(scores)))
    yield Section("", f"{page.note(summary)}{page.cards(cards)}{against}{shown}")
    yield Section("Estimated accuracy (no labels)", _estimates(scores))
    yield from curve_sections(run, scores.metric, scores.best_epoch)
    evaluation = run.path / diagnostics.FILE
    if evaluation.is_file():
        try:
            for name, values in files.read_json(evaluation).items():
                if "metric" in values or "classes" in values:
                    counted = plural(values["images"], "group" if scores.group_answer else "image")
                    yield Section(f"{_split_title(name)}: {counted}", "\n".join(_diagnosis(run, scores, name, values)))
        except (RunError, TypeError, KeyError, IndexError, ValueError, AttributeError, OSError, SyntaxError) as error:
            raise RunError(
                f"{evaluation}: damaged ({files.error_text(error)}); create it again: comp evaluate {run.path}"
            ) from None
    # A probe's network was trained by another run.
    yield Section("What was trained", "" if scores.kind == "probe" else _trainable(scores))
    yield from origins(run, baseline)


def curve_sections(run: Run, metric: str, best_epoch: int | None) -> Iterator[Section]:
    """Yield a run's curves so far, with a line at the epoch of its best weights, and its norms by layer."""
    yield Section("Curves", curves.draw(run.history(), metric, best_epoch))
    yield Section("Layers", curves.draw_norms(run.table("norms.csv")))


def origins(run: Run, baseline: Config | None = None) -> Iterator[Section]:
    """Yield what a run was started with: how its config differs from a baseline, else the defaults, and provenance."""
    yield Section("Config", _differences(run.config(), baseline or Config(), "baseline" if baseline else "default"))
    recorded = f"<pre>{page.text(json.dumps(run.provenance(), indent=2, ensure_ascii=False))}</pre>"
    yield Section("Provenance", f"<details><summary>command, versions, machine, data</summary>{recorded}</details>")


def _split_title(name: str) -> str:
    """Return the title of predictions such as `ood_val` or `test+flip`."""
    split = name.partition("+")[0]
    title = next((title for title, file in _FILES.items() if file == split), split)
    return title.capitalize() + name.removeprefix(split)


def _card(row: Headline, run: Run, score: Score, compared: Run | None) -> str:
    lines = [f"95 %: {score.low:.4f} to {score.high:.4f}"] if score.low is not None else []
    if compared and row.metric and (found := difference(run, compared, row)):
        lines.append(signed(*found))
    return page.card(row.title, f"<b{page.data(score.value)}>{row.form(score.value)}</b>", lines)


def _notes(scores: RunMetrics) -> Iterator[str]:
    for name, split_of in SPLITS.items():
        for metric, reason in ((split_of(scores) or SplitScores()).undefined or {}).items():
            yield f"{name} {metric} is undefined: {reason}"
    if scores.test_like:
        yield f"test-like augmentation: {', '.join(scores.test_like)}"
    if scores.group_answer:
        yield f"one answer a group of images (data.group_answer): {scores.group_answer}"
    if scores.lessons:
        pseudo = f"pseudo-labels: {plural(scores.pseudo_labels, 'image')}" if scores.pseudo_labels else ""
        taught = f"teacher: {', '.join(scores.teachers or ())}" if scores.teachers else ""
        yield "; ".join(filter(None, (taught, pseudo)))


def _estimates(scores: RunMetrics) -> str:
    rows = [
        [page.text(name), page.number(estimate.accuracy), f"{estimate.low:.4f} to {estimate.high:.4f}"]
        for name, estimate in scores.expected.items()
    ]
    return page.table(("predictions", "accuracy", "interval"), rows) if rows else ""


def _diagnosis(run: Run, scores: RunMetrics, name: str, values: Mapping[str, Any]) -> Iterator[str]:
    counted = "group" if scores.group_answer else "image"
    numbers = page.table(("score", "value"), _score_rows(values))
    reliability = _reliability(values["calibration"], counted) if "calibration" in values else ""
    if "by_block" in values:
        yield page.grid([numbers + reliability, _by_block(values["by_block"])])
    else:
        yield page.grid([numbers, reliability, _points(values.get("points", ()))])
    if "confusion" in values:
        table = _confusion(values, f"{counted}s")
        pairs = [[page.text_cell(true), page.text_cell(wrong), str(count)] for true, wrong, count in values["confused"]]
        pairs_table = page.table(("true class", "predicted class", f"{counted}s"), pairs)
        confused = f"<h3>Most frequent mistakes</h3>{pairs_table}" if pairs else ""
        yield page.grid([table, confused]) if len(values["classes"]) <= _MAX_BESIDE else table + confused
    if name.partition("+")[0] in ("val", "test"):
        yield from _examples(run, name, values.get("examples", {}))
    if "classes" not in values:
        return
    columns = [key for key in diagnostics.CLASS_SCORES if key in values["classes"][0]]
    classes = [
        [page.text(row["name"]), f"{row['images']:,}", *(page.number(row[key]) for key in columns)]
        for row in values["classes"]
    ]
    head = ("class", f"{counted}s", *(diagnostics.CLASS_SCORES[key] for key in columns))
    yield f"<details><summary>by class</summary>{page.table(head, classes)}</details>"


def _score_rows(values: Mapping[str, Any]) -> list[list[str]]:
    metric = values.get("metric", {"name": "accuracy"})  # missing in evaluations of earlier versions
    rows = []
    if metric["name"] not in ("accuracy", "log_loss"):
        rows.append([page.text(metric["name"]), page.number(metric["value"])])
    shown = ("accuracy", "top5", "loss") if len(values.get("classes", ())) > _TOP else ("accuracy", "loss")
    rows += [[_NAMES.get(key, key), page.number(values[key])] for key in shown if key in values]
    rows += [
        [f"{average} {_NAMES.get(key, key)}", page.number(values[average][key])]
        for average in ("weighted", "macro", "micro")
        if average in values
        for key in ("precision", "recall", "f1")
    ]
    if fixed := values.get("fixed"):
        fixed_name = f"{metric['name']} with the labels of data.fixes"
        rows.append([page.text(fixed_name), page.number(fixed["metric"]["value"])])
    numbers = values.get("numbers", {}).items()
    rows += [[_NAMES.get(key, key), page.number(value)] for key, value in numbers if key != metric["name"]]
    if "calibration" in values:
        rows.append(["expected calibration error", page.number(values["calibration"]["ece"])])
    return rows


def _by_block(by_block: Mapping[str, float]) -> str:
    """Return the heat map of accuracy by distortion and severity, with means."""
    names, columns, table = diagnostics.accuracy_grid(by_block)
    table = np.hstack([table, np.nanmean(table, axis=1, keepdims=True)])
    table = np.vstack([table, np.nanmean(table, axis=0, keepdims=True)])
    rows, across = [*names, "mean"], [*columns, "mean"]

    def tip(row: int, column: int) -> str:
        severity = "all severities" if across[column] == "mean" else f"severity {across[column]}"
        return f"{'all distortions' if rows[row] == 'mean' else rows[row]}, {severity}: {table[row, column]:.4f}"

    return charts.heat_map(rows, across, table, tip, title="accuracy by distortion and severity")


def _reliability(calibration: Mapping[str, Any], counted: str) -> str:
    shares = charts.number_axis("confidence", (0.0, 1.0)), charts.number_axis("", (0.0, 1.0))
    plot = charts.Plot(*shares, f"accuracy by confidence (calibration error {calibration['ece']:.3f})")
    for row in calibration["bins"]:
        tip = (
            f"confidence {row['low']:.2f} to {row['high']:.2f}\n{plural(row['images'], counted)}\n"
            f"mean confidence {row['confidence']:.3f}\naccuracy {row['accuracy']:.3f}"
        )
        plot.box((row["low"], row["high"]), (0.0, row["accuracy"]), tip)
    plot.diagonal()
    return plot.svg()


def _points(points: Sequence[tuple[float, float]]) -> str:
    if not points:
        return ""
    ends = [value for point in points for value in point]
    axes = charts.number_axis("true", ends), charts.number_axis("predicted", ends)
    plot = charts.Plot(*axes, f"{len(points)} predicted numbers")
    plot.dots((true, value, f"true {true:.6g}\npredicted {value:.6g}", charts.colour(0)) for true, value in points)
    plot.diagonal()
    return plot.svg()


def _confusion(values: Mapping[str, Any], counted: str) -> str:
    table, classes = np.array(values["confusion"]), values["classes"]
    order = values.get("order", range(len(classes)))  # missing in evaluations of earlier versions
    note = "" if sorted(order) == [*order] else "Classes that are confused with each other are neighbours. "
    if len(order) > _MAX_CLASSES:
        wrong = table.sum(0) + table.sum(1) - 2 * table.diagonal()
        most = set(np.argsort(-wrong, kind="stable")[:_MAX_CLASSES].tolist())
        order = [row for row in order if row in most]
        note += f"Of {len(classes)} classes, the {_MAX_CLASSES} with the most mistakes. "
    names = [str(classes[row]["name"]) for row in order]
    # A row's share is of all its answers, also of those that the drawn classes leave out.
    drawn = charts.confusion(table[np.ix_(order, order)], table.sum(1)[order], names, counted)
    note += f"Blue is correct, orange a mistake; a number counts {counted}."
    return f"<h3>Confusion</h3>{page.note(note)}{drawn}"


def _examples(run: Run, name: str, values: Mapping[str, Any]) -> Iterator[str]:
    """Yield the pictures of mistakes and of correct answers, each beside what the network looked at."""
    drawn = run.path / "plots" / f"examples-{name}.png"
    if not values or not drawn.is_file():
        if run.has_weights():  # ensembles and probes have no network to look with
            yield page.note(f"No pictures of mistakes yet: comp evaluate {run.path} draws them from the run's data.")
        return
    shown, looked = values["shown"], values["method"]
    cells = _cut(drawn, len(shown), 2 if looked else 1)
    parts: dict[bool, list[str]] = {False: [], True: []}
    for each, column in zip(shown, cells, strict=True):
        sure = "" if each["confidence"] is None else f" ({each['confidence']:.0%})"
        text = f"true {each['true']}, predicted {each['predicted']}{sure}"
        pictures = "".join(page.image(cell, text) for cell in column)
        true = "" if each["right"] else f"true <b>{page.text(each['true'])}</b><br>"
        caption = f"{true}predicted <b>{page.text(each['predicted'])}</b>{sure}"
        parts[each["right"]].append(
            f'<figure><div class="pair">{pictures}</div><figcaption>{caption}</figcaption></figure>'
        )
    lit = f"Right of each picture: what the network looked at ({looked}). Bright parts count most." if looked else ""
    yield page.note(lit or f"What the network looked at is not shown: {values['reason']}.")
    most = "Largest" if shown[0]["confidence"] is None else "Most confident"
    for right, title in ((False, f"{most} mistakes"), (True, "Correct answers")):
        if parts[right]:
            yield f'<h3>{title}</h3><div class="looks">{"".join(parts[right])}</div>'


def _cut(path: Path, columns: int, rows: int) -> Iterable[list[bytes]]:
    """Yield each column's pictures of a PNG of equal cells."""
    from PIL import Image

    with Image.open(path) as opened:
        sheet = opened.convert("RGB")
    width, height = sheet.width // columns, sheet.height // rows
    kind = "JPEG" if max(width, height) > _LARGEST_PNG else "PNG"
    for column in range(columns):
        cells = []
        for row in range(rows):
            content = io.BytesIO()
            place = (column * width, row * height, (column + 1) * width, (row + 1) * height)
            sheet.crop(place).save(content, kind, **({"quality": 85} if kind == "JPEG" else {}))
            cells.append(content.getvalue())
        yield cells


def _trainable(scores: RunMetrics) -> str:
    head = ["block", "parameters", "trained", "batch norm statistics"]
    rows = [
        [page.text(row["name"]), f"{row['parameters']:,}", f"{row['trainable']:,}", page.text(row["statistics"])]
        for row in scores.trainable
    ]
    shown = 4 if any(row[3] for row in rows) else 3
    return page.table(head[:shown], [row[:shown] for row in rows]) if rows else ""


def _differences(config: Config, baseline: Config, title: str) -> str:
    values, baseline_values = configs.flatten(config), configs.flatten(baseline)
    rows = [
        [page.key_cell(key), page.code_cell(values.get(key)), page.code_cell(baseline_values.get(key))]
        for key in {**values, **baseline_values}
        if values.get(key) != baseline_values.get(key)
    ]
    return page.table(("key", "run", title), rows) if rows else page.note(f"same as the {title}")
