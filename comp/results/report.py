"""HTML report of one run, or of several side by side: a single file that loads nothing from the network. Torch-free.

Numbers come from the run's files; `data-value` holds all digits.
"""

import base64
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comp import config as configs
from comp.config import Config
from comp.results import diagnostics, files, plots, runs
from comp.results.run_metrics import RunMetrics, SplitScores
from comp.results.runs import Run
from comp.runtime import escape
from comp.runtime.errors import RunError, plural

_MAX_RUNS = 40  # side by side; more would be unreadable

_STYLE = """
:root { color-scheme: light; font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; }
body { margin: 0 auto; max-width: 70rem; padding: 1rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .25rem .6rem; border: 1px solid #d0d7de; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; } td.text { text-align: left; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; } figure { margin: .5rem 0; } figcaption { font-size: .85rem; color: #57606a; }
.cards { display: flex; flex-wrap: wrap; gap: .6rem; } .card { border: 1px solid #d0d7de; border-radius: .4rem;
padding: .5rem .8rem; min-width: 8rem; } .card b { display: block; font-size: 1.35rem; } .card span { font-size: .8rem;
color: #57606a; } .pictures { display: flex; flex-wrap: wrap; gap: 1rem; } .pictures figure { flex: 1 1 20rem; }
.note { color: #57606a; font-size: .85rem; } pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem; }
@media print { body { max-width: none; padding: 0; } h2 { break-after: avoid; }
figure, tr, .card { break-inside: avoid; } .scroll { overflow: visible; } table { font-size: .7rem; } }
"""


@dataclass(frozen=True)
class _Headline:
    """A number of metrics.json: a card on a run's page, a column in a comparison."""

    title: str
    value: Callable[[RunMetrics], float | None]
    form: str = "{:.4f}"


_SPLITS: dict[str, Callable[[RunMetrics], SplitScores | None]] = {
    "validation": lambda scores: scores.best_or_final.val,
    "shifted validation": lambda scores: scores.best_or_final.ood_val,
    "test": lambda scores: scores.split_scores("test"),
    "suite": lambda scores: scores.split_scores("suite"),
}
_COSTS = (
    _Headline("parameters", lambda scores: scores.parameters, "{:,.0f}"),
    _Headline("epochs", lambda scores: scores.epochs or None, "{:.0f}"),  # an ensemble trains none
    _Headline("training minutes", lambda scores: scores.train_seconds / 60, "{:.1f}"),
)


def _headlines(runs_scores: Sequence[RunMetrics]) -> list[_Headline]:
    """Return the headlines with a value in any run: metrics first, then accuracies, then costs."""
    names = dict.fromkeys([*(scores.metric for scores in runs_scores), "accuracy"])
    headlines = [_score_headline(split, name) for name in names for split in _SPLITS]
    return [row for row in (*headlines, *_COSTS) if any(row.value(scores) is not None for scores in runs_scores)]


def _score_headline(split: str, metric: str) -> _Headline:
    def value(scores: RunMetrics) -> float | None:
        split_scores = _SPLITS[split](scores)
        return split_scores.value(metric) if split_scores else None

    return _Headline(f"{split} {metric}", value)


def find_runs(paths: Sequence[Path]) -> list[Run]:
    """Return the complete runs in paths: run folders, or folders of runs such as a competition's or a study's.

    At most 40, the best by validation.

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
    distinct = list({run.path.resolve(): run for run in all_complete}.values())
    return sorted(distinct, key=_by_validation)[:_MAX_RUNS] if len(distinct) > _MAX_RUNS else distinct


def _by_validation(run: Run) -> float:
    """Return a sort key, best first: the metric on shifted validation if there is one, else on clean validation."""
    metrics = run.metrics()
    validation = metrics.best_or_final.ood_val or metrics.best_or_final.val or SplitScores()
    score = validation.scores.get(metrics.metric)
    return -score.as_maximize if score else math.inf


def render_page(compared: Sequence[Run], *, baseline: Config | None = None) -> str:
    """Return the HTML page of one run, or of several side by side.

    Args:
        compared: complete runs.
        baseline: the config to compare with; None: the defaults, or with several runs the first run's.

    Raises:
        RunError: a file of a run is damaged.
    """
    if len(compared) == 1:
        return _document(compared[0].name, _run_sections(compared[0], baseline))
    return _document(f"{len(compared)} runs", _comparison_sections(compared, baseline))


def _document(title: str, parts: Iterable[str]) -> str:
    # The policy forbids loading anything: the page holds all it shows.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    body = "\n".join(part for part in parts if part)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}"><link rel="icon" href="data:,">
<meta name="generator" content="comp"><title>{_text(title)}</title><style>{_STYLE}</style></head>
<body>
<h1>{_text(title)}</h1>
{body}
</body></html>
"""


def render_pictures(title: str, head: Sequence[str], pictures: Sequence[bytes], rows: Sequence[Sequence[str]]) -> str:
    """Return an HTML page with a table of PNG pictures, each with cells of text beside it under the headings."""
    cells = [[_image(png, row[0]), *map(_text, row)] for png, row in zip(pictures, rows, strict=True)]
    return _document(title, [_table(("picture", *head), cells)])


def _run_sections(run: Run, baseline: Config | None) -> Iterable[str]:
    scores, provenance = run.metrics(), run.provenance()
    summary = ", ".join((scores.competition, scores.model, str(provenance.get("time") or "")))
    yield f'<p class="note">{_text(summary)}</p>'
    cards = [
        f'<div class="card"><b{_data(value)}>{row.form.format(value)}</b><span>{_text(row.title)}</span></div>'
        for row in _headlines([scores])
        if (value := row.value(scores)) is not None
    ]
    yield f'<div class="cards">{"".join(cards)}</div>'
    for name, split_of in _SPLITS.items():
        for metric, reason in ((split_of(scores) or SplitScores()).undefined or {}).items():
            yield f'<p class="note">{_text(f"{name} {metric} is undefined: {reason}")}</p>'
    if scores.test_like:
        yield f'<p class="note">test-like augmentation: {_text(", ".join(scores.test_like))}</p>'
    if scores.group_answer:
        yield f'<p class="note">one answer a group of images (data.group_answer): {_text(scores.group_answer)}</p>'
    if scores.lessons:
        pseudo = f"pseudo-labels: {plural(scores.pseudo_labels, 'image')}" if scores.pseudo_labels else ""
        taught = f"teacher: {', '.join(scores.teachers or ())}" if scores.teachers else ""
        yield f'<p class="note">{_text("; ".join(filter(None, (taught, pseudo))))}</p>'
    yield _estimates(scores)
    yield _section("Curves", _picture(run, "curves", "losses, accuracies and learning rate by epoch"))
    yield _section("Layers", _picture(run, "norms", "gradient and weight norms by layer"))
    evaluation = run.path / diagnostics.FILE
    if evaluation.is_file():
        try:
            for name, values in files.read_json(evaluation).items():
                if "metric" in values or "classes" in values:
                    yield "\n".join(_diagnosis(run, name, values))
        except (RunError, TypeError, KeyError, IndexError, ValueError, AttributeError) as error:
            raise RunError(
                f"{evaluation}: damaged ({files.error_text(error)}); create it again: comp evaluate {run.path}"
            ) from None
    yield _section("What was trained", _trainable(scores))
    yield _section("Config", _differences(run.config(), baseline or Config(), "baseline" if baseline else "default"))
    yield _section("Provenance", f"<pre>{_text(json.dumps(provenance, indent=2, ensure_ascii=False))}</pre>")


def _estimates(scores: RunMetrics) -> str:
    rows = [
        [_text(name), _number(estimate.accuracy), f"{estimate.low:.4f} to {estimate.high:.4f}"]
        for name, estimate in scores.expected.items()
    ]
    table = _table(("predictions", "accuracy", "interval"), rows) if rows else ""
    return _section("Estimated accuracy (no labels)", table)


def _diagnosis(run: Run, name: str, values: Mapping[str, Any]) -> Iterable[str]:
    counted = "group" if run.metrics().group_answer else "image"
    metric = values.get("metric", {"name": "accuracy"})  # missing in evaluations of earlier versions
    rows = [] if metric["name"] in ("accuracy", "log_loss") else [[_text(metric["name"]), _number(metric["value"])]]
    rows += [[key, _number(values[key])] for key in ("accuracy", "top5", "loss") if key in values]
    rows += [
        [f"{average} {key}", _number(values[average][key])]
        for average in ("weighted", "macro", "micro")
        if average in values
        for key in ("precision", "recall", "f1")
    ]
    if fixed := values.get("fixed"):
        rows.append([_text(f"{metric['name']} with the labels of data.fixes"), _number(fixed["metric"]["value"])])
    rows += [[key, _number(value)] for key, value in values.get("numbers", {}).items() if key != metric["name"]]
    if "calibration" in values:
        rows.append(["expected calibration error", _number(values["calibration"]["ece"])])
    yield _section(f"{name}: {plural(values['images'], counted)}", _table(("score", "value"), rows))
    if "by_block" in values:
        yield _heat_map(values["by_block"])
    pictures = (
        ("confusion", f"share of each true class's {counted}s by predicted class"),
        ("reliability", "accuracy by confidence"),
        ("numbers", "predicted by true number"),
        (
            "mistakes",
            "most confident mistakes: true class, predicted class, confidence; multi-label: -missed +added; numbers: "
            "true, predicted",
        ),
    )
    drawn = "".join(_picture(run, f"{kind}-{name}", caption) for kind, caption in pictures)
    yield f'<div class="pictures">{drawn}</div>'
    pairs = [[_text(true), _text(predicted), str(count)] for true, predicted, count in values.get("confused", ())]
    yield _table(("true class", "predicted class", f"{counted}s"), pairs) if pairs else ""
    if "classes" not in values:
        return
    columns = [key for key in diagnostics.CLASS_SCORES if key in values["classes"][0]]
    classes = [
        [_text(row["name"]), f"{row['images']:,}", *(_number(row[key]) for key in columns)] for row in values["classes"]
    ]
    table = _table(("class", f"{counted}s", *(diagnostics.CLASS_SCORES[key] for key in columns)), classes)
    yield f"<details><summary>by class</summary>{table}</details>"


def _heat_map(by_block: Mapping[str, float]) -> str:
    names, columns, table = diagnostics.accuracy_grid(by_block)
    rows = [
        [_text(name), *(_heat_cell(value) for value in row), _heat_cell(_mean(row))]
        for name, row in zip(names, table, strict=True)
    ]
    rows.append(["mean", *(_heat_cell(_mean(column)) for column in table.T), _heat_cell(_mean(table.ravel()))])
    return _table(("distortion", *(f"severity {column}" for column in columns), "mean"), rows)


def _mean(values: Iterable[float]) -> float:
    present = [float(value) for value in values if value == value]  # without NaN
    return sum(present) / len(present)


def _trainable(scores: RunMetrics) -> str:
    rows = [
        [_text(row["name"]), f"{row['parameters']:,}", f"{row['trainable']:,}", _text(row["statistics"])]
        for row in scores.trainable
    ]
    return _table(("block", "parameters", "trained", "batch norm statistics"), rows) if rows else ""


def _differences(config: Config, baseline: Config, title: str) -> str:
    values, baseline_values = configs.flatten(config), configs.flatten(baseline)
    rows = [
        [_text(key), _code(values.get(key)), _code(baseline_values.get(key))]
        for key in {**values, **baseline_values}
        if values.get(key) != baseline_values.get(key)
    ]
    return _table(("key", "run", title), rows) if rows else f'<p class="note">same as the {_text(title)}</p>'


def _comparison_sections(compared: Sequence[Run], baseline: Config | None) -> Iterable[str]:
    scores = [run.metrics() for run in compared]
    names = [run.path.name for run in compared]
    headlines = _headlines(scores)
    rows = [
        [_text(name), _text(values.model), *(_cell(row, values) for row in headlines)]
        for name, values in zip(names, scores, strict=True)
    ]
    yield _section("Scores", _table(("run", "model", *(row.title for row in headlines)), rows))
    rows_of = {run.path.name: run.history() for run in compared}
    # Ensembles have no training.
    histories = {name: history for name, history in rows_of.items() if any(row.get("train_loss") for row in history)}
    if histories:
        yield _section("Curves", _draw(lambda path: plots.draw_compared_curves(path, histories), "side by side"))
    norms = {run.path.name: table for run in compared if (table := run.table("norms.csv"))}
    if norms:
        yield _section(
            "Layers", _draw(lambda path: plots.draw_compared_norms(path, norms), "last epoch, input to output")
        )
    yield _compared_distortions(names, scores)
    flat = [configs.flatten(run.config()) for run in compared]
    reference = configs.flatten(baseline) if baseline else flat[0]
    all_keys = dict.fromkeys(key for values in flat for key in values)
    keys = [key for key in all_keys if any(values.get(key) != reference.get(key) for values in flat)]
    title = "Config differences from the baseline" if baseline else "Config differences"
    cells = [[_text(key), *(_code(values.get(key)) for values in flat)] for key in keys]
    yield _section(title, _table(("key", *names), cells) if cells else '<p class="note">none</p>')


def _cell(row: _Headline, values: RunMetrics) -> str:
    value = row.value(values)
    return "-" if value is None else f"<span{_data(value)}>{row.form.format(value)}</span>"


def _compared_distortions(names: Sequence[str], scores: Sequence[RunMetrics]) -> str:
    """Return a table of accuracy by distortion: of the suite if all runs scored it, else of shifted validation."""
    title, tables = "Suite by distortion", _by_distortion("suite", scores)
    if not all(tables):
        title, tables = "Shifted validation by distortion", _by_distortion("shifted validation", scores)
    if not any(tables):
        return ""
    rows = [
        [_text(key), *(_heat_cell(table[key]) if key in table else "" for table in tables)]
        for key in dict.fromkeys(key for table in tables for key in table)
    ]
    return _section(title, _table(("distortion", *names), rows))


def _by_distortion(split: str, runs_scores: Sequence[RunMetrics]) -> list[dict[str, float]]:
    return [(_SPLITS[split](scores) or SplitScores()).by_distortion for scores in runs_scores]


def _section(title: str, content: str) -> str:
    return f"<section><h2>{_text(title)}</h2>{content}</section>" if content else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return an HTML table; cells are HTML, headings are text."""
    top = "".join(f"<th>{_text(title)}</th>" for title in head)
    cells = [[cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in row] for row in rows]
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in cells)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _heat_cell(value: float) -> str:
    """Return a cell coloured from red (0) through yellow to green (1), pale enough for black text."""
    if value != value:
        return "<td></td>"
    return f'<td style="background: hsl({120 * value:.0f} 70% 82%)"{_data(value)}>{value:.3f}</td>'


def _number(value: float | None) -> str:
    return "-" if value is None else f"<span{_data(value)}>{value:.4f}</span>"


def _data(value: float) -> str:
    return f' data-value="{float(value)!r}"'


def _code(value: Any) -> str:
    return f'<td class="text"><code>{_text(json.dumps(value, ensure_ascii=False))}</code></td>'


def _text(value: object) -> str:
    return escape.for_html(value)


def _picture(run: Run, name: str, caption: str) -> str:
    path = run.path / "plots" / f"{name}.png"
    return _figure(path.read_bytes(), caption) if path.is_file() else ""


def _draw(draw: Callable[[Path], None], caption: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plot.png"
        draw(path)
        return _figure(path.read_bytes(), caption)


def _figure(png: bytes, caption: str) -> str:
    return f"<figure>{_image(png, caption)}<figcaption>{_text(caption)}</figcaption></figure>"


def _image(png: bytes, text: str) -> str:
    return f'<img alt="{_text(text)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
