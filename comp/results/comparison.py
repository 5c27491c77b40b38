"""HTML page of several runs side by side: the best, how sure that is, scores, curves and configs. Torch-free."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from comp import config as configs
from comp.config import Config
from comp.results import charts, curves, page, report
from comp.results.page import Section
from comp.results.report import Headline
from comp.results.run_metrics import RunMetrics, Score, SplitScores
from comp.results.runs import Run
from comp.results.stats import ScoreDifference

_MAX_RUNS = 40  # side by side; more would be unreadable


@dataclass(frozen=True)
class _Ranked:
    """A run of the page, the best first.

    Attributes:
        number: its place, from 1, which is its name in charts.
        run: its folder.
        scores: of its metrics.json.
    """

    number: int
    run: Run
    scores: RunMetrics

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.run.path.name

    @property
    def label(self) -> str:
        """Its place and name, as lines of charts are called."""
        return f"{self.number}. {self.name}"


def render_page(compared: Sequence[Run], *, baseline: Config | None = None) -> str:
    """Return the HTML page of several runs, the best by validation first.

    Args:
        compared: complete runs; 40 are shown.
        baseline: the config to compare with; None: the best run's.

    Raises:
        RunError: a file of a run is damaged.
    """
    columns = report.headlines([run.metrics() for run in compared])
    deciding = _deciding(compared, columns)
    if deciding:
        compared = sorted(compared, key=lambda run: -_score(deciding, run).as_maximize)
    ranked = [_Ranked(number, run, run.metrics()) for number, run in enumerate(compared[:_MAX_RUNS], 1)]
    shown = "" if len(ranked) == len(compared) else f"the {'best' if deciding else 'first'} {len(ranked)} of "
    title = f"{shown}{len(compared)} runs"
    return page.render(title, _sections(ranked, columns, deciding, baseline))


def _deciding(compared: Sequence[Run], columns: Sequence[Headline]) -> Headline | None:
    """Return what the runs are ranked by: the metric that all have, on shifted validation if possible."""
    metrics = {run.metrics().metric for run in compared}
    for split in ("shifted validation", "validation"):
        for column in columns:
            is_shared = column.split == split and metrics == {column.metric}
            if is_shared and all(column.score(run.metrics()) for run in compared):
                return column
    return None


def _score(column: Headline, run: Run) -> Score:
    score = column.score(run.metrics())
    assert score is not None, "all runs have it"
    return score


def _sections(
    ranked: Sequence[_Ranked], columns: Sequence[Headline], deciding: Headline | None, baseline: Config | None
) -> Iterator[Section]:
    yield Section("Scores", _scores(ranked, columns, deciding))
    yield from _trained(ranked)
    yield from _distortions(ranked)
    flat = [configs.flatten(row.run.config()) for row in ranked]
    reference = configs.flatten(baseline) if baseline else flat[0]
    all_keys = dict.fromkeys(key for values in flat for key in values)
    keys = [key for key in all_keys if any(values.get(key) != reference.get(key) for values in flat)]
    cells = [[page.key_cell(key), *(page.code_cell(values.get(key)) for values in flat)] for key in keys]
    head = ("key", *(row.label for row in ranked))
    title = "Config differences from the baseline" if baseline else "Config differences"
    yield Section(title, page.table(head, cells) if cells else page.note("none"))


def _scores(ranked: Sequence[_Ranked], columns: Sequence[Headline], deciding: Headline | None) -> str:
    gaps = {row.number: report.difference(row.run, ranked[0].run, deciding) for row in ranked[1:]} if deciding else {}
    rows = [
        [
            f'<td><span class="whole">{row.number} {charts.swatch(row.number - 1)}</span></td>',
            f'<td class="text"><span class="name">{page.text(row.name)}</span></td>',
            *([_gap_cell(gaps.get(row.number))] if deciding else []),
            *(_cell(column, row.scores) for column in columns),
            page.text_cell(row.scores.model),
        ]
        for row in ranked
    ]
    head = ("run", "folder", *(["difference to run 1"] if deciding else []), *(c.title for c in columns), "model")
    table = page.table(head, rows, best=[0])
    if deciding is None:
        return page.note("No winner: the runs have no validation by one metric in common.") + table
    measured = {number: gap[1] for number, gap in gaps.items() if gap and gap[1]}
    return _winner(ranked, deciding, measured) + page.grid([_differences(ranked, measured, deciding)]) + table


def _gap_cell(gap: tuple[float, ScoreDifference | None] | None) -> str:
    return f'<span class="name">{page.text(report.signed(*gap))}</span>' if gap else "-"


def _winner(ranked: Sequence[_Ranked], deciding: Headline, measured: Mapping[int, ScoreDifference]) -> str:
    """Return the sentence that says which run is best, and how sure that is."""
    close = [str(number) for number, gap in measured.items() if not gap.is_real]
    if len(close) == len(ranked) - 1 > 1:
        sure = "It is not significantly better than any other (95 %)."
    elif close:
        sure = f"It is not significantly better than run{'s' if len(close) > 1 else ''} {', '.join(close)} (95 %)."
    elif len(measured) < len(ranked) - 1:
        sure = "Significance is unknown: it needs accuracies on the same images."
    else:
        sure = "It is significantly better than all others (95 %)."
    value = _score(deciding, ranked[0].run).value
    return (
        f'<p class="winner">Best by {page.text(deciding.title)}: <b>{page.text(ranked[0].name)}</b>, '
        f"<b{page.data(value)}>{value:.4f}</b>. {sure}</p>"
    )


def _differences(ranked: Sequence[_Ranked], measured: Mapping[int, ScoreDifference], deciding: Headline) -> str:
    """Return the chart of differences to the best run and their intervals, where these are known."""
    if not measured:
        return ""
    ends = [end for gap in measured.values() for end in (gap.value, gap.interval.low, gap.interval.high)]
    rows = [row for row in reversed(ranked) if row.number in measured]
    axis = charts.number_axis(f"{deciding.title}: difference to run 1, 95 %", [0.0, *ends])
    places = charts.category_axis("run", [str(row.number) for row in rows])
    plot = charts.Plot(axis, places, height=24.0 * len(rows) + 64)
    plot.guide(0.0)
    for height, row in enumerate(rows):
        gap = measured[row.number]
        tip = f"{row.label}\n{report.signed(gap.value, gap)}"
        plot.whisker(height, gap.value, gap.interval.low, gap.interval.high, tip, row.number - 1)
    return plot.svg()


def _cell(column: Headline, scores: RunMetrics) -> str:
    score: Score | None = column.score(scores)
    return "-" if score is None else f"<span{page.data(score.value)}>{column.form(score.value)}</span>"


def _trained(ranked: Sequence[_Ranked]) -> Iterator[Section]:
    """Yield the charts of the trainings."""
    styles = {row.label: row.number - 1 for row in ranked}
    all_rows = {row.label: row.run.history() for row in ranked}
    # Ensembles have no training.
    histories = {label: rows for label, rows in all_rows.items() if any(row.get("train_loss") for row in rows)}
    yield Section("Curves", curves.compare(histories, styles))
    norms = {row.label: rows for row in ranked if (rows := row.run.table("norms.csv"))}
    yield Section("Layers", curves.compare_norms(norms, styles))


def _distortions(ranked: Sequence[_Ranked]) -> Iterator[Section]:
    """Yield accuracy by distortion: of the suite if all runs scored it, else of shifted validation."""
    title, tables = "Suite by distortion", _by_distortion("suite", ranked)
    if len(tables) < len(ranked):
        title, tables = "Shifted validation by distortion", _by_distortion("shifted validation", ranked)
    rows = list(dict.fromkeys(key for table in tables.values() for key in table))
    if not rows:
        return
    values = np.array([[table.get(key, np.nan) for table in tables.values()] for key in rows])
    measured = [row for row in ranked if row.number in tables]

    def tip(row: int, column: int) -> str:
        return f"{rows[row]}\n{measured[column].label}: {values[row, column]:.4f}"

    numbers = [str(number) for number in tables]
    yield Section(title, charts.heat_map(rows, numbers, values, tip, title="accuracy by distortion and run"))


def _by_distortion(split: str, ranked: Sequence[_Ranked]) -> dict[int, dict[str, float]]:
    """Return the number of each run that scored a split's distortions -> their accuracies."""
    tables = {row.number: (report.SPLITS[split](row.scores) or SplitScores()).by_distortion for row in ranked}
    return {number: table for number, table in tables.items() if table}
