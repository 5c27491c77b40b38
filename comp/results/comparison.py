"""HTML page of several runs side by side: the best, how sure that is, scores, curves and configs. Torch-free."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from comp import config as configs
from comp.config import Config
from comp.results import charts, page, plots, report
from comp.results.page import Section
from comp.results.report import Headline
from comp.results.run_metrics import RunMetrics, Score, SplitScores
from comp.results.runs import Run
from comp.results.stats import ScoreDifference


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
        compared: complete runs, sorted.
        baseline: the config to compare with; None: the best run's.

    Raises:
        RunError: a file of a run is damaged.
    """
    ranked = [_Ranked(number, run, run.metrics()) for number, run in enumerate(compared, 1)]
    return page.render(f"{len(compared)} runs", _sections(ranked, baseline))


def _sections(ranked: Sequence[_Ranked], baseline: Config | None) -> Iterator[Section]:
    columns = report.headlines([row.scores for row in ranked])
    yield Section("Scores", _scores(ranked, columns))
    yield Section("Curves", _curves(ranked))
    yield Section("Layers", _norms(ranked))
    yield from _distortions(ranked)
    flat = [configs.flatten(row.run.config()) for row in ranked]
    reference = configs.flatten(baseline) if baseline else flat[0]
    all_keys = dict.fromkeys(key for values in flat for key in values)
    keys = [key for key in all_keys if any(values.get(key) != reference.get(key) for values in flat)]
    cells = [[page.text(key), *(report.code(values.get(key)) for values in flat)] for key in keys]
    head = ("key", *(row.label for row in ranked))
    title = "Config differences from the baseline" if baseline else "Config differences"
    yield Section(title, page.table(head, cells) if cells else page.note("none"))


def _deciding(ranked: Sequence[_Ranked], columns: Sequence[Headline]) -> Headline | None:
    """Return what the runs are ranked by: one metric that all have, on shifted validation if possible."""
    metrics = {row.scores.metric for row in ranked}
    for split in ("shifted validation", "validation"):
        for column in columns:
            if {column.metric} == metrics and column.split == split and all(column.score(row.scores) for row in ranked):
                return column
    return None


def _scores(ranked: Sequence[_Ranked], columns: Sequence[Headline]) -> str:
    deciding, best = _deciding(ranked, columns), ranked[0]
    behind = {row.number: report.difference(row.run, best.run, deciding) for row in ranked[1:]} if deciding else {}
    rows = []
    for row in ranked:
        gap = behind.get(row.number)
        rows.append(
            [
                f"<td>{row.number} {charts.swatch(row.number - 1)}</td>",
                f'<td class="text">{page.text(row.name)}</td>',
                f'<td class="text">{page.text(row.scores.model)}</td>',
                *([page.text(report.signed(*gap)) if gap else "-"] if deciding else []),
                *(_cell(column, row.scores) for column in columns),
            ]
        )
    head = ("run", "folder", "model", *(["difference to the best"] if deciding else []), *(c.title for c in columns))
    table = page.table(head, rows, best=[0])
    if deciding is None:
        return page.note("No winner: the runs have no validation by one metric in common.") + table
    return _winner(ranked, deciding, behind) + page.grid([_intervals(ranked, deciding)]) + table


def _winner(
    ranked: Sequence[_Ranked], deciding: Headline, behind: dict[int, tuple[float, ScoreDifference | None] | None]
) -> str:
    """Return the sentence that says which run is best, and how sure that is."""
    best = ranked[0]
    score = deciding.score(best.scores)
    assert score is not None
    close = [str(number) for number, gap in behind.items() if gap and gap[1] and not gap[1].is_real]
    unknown = any(gap is None or gap[1] is None for gap in behind.values())
    if close:
        sure = f"It is not significantly better than run {', '.join(close)} (95 %)."
    elif unknown:
        sure = "How sure that is, is unknown: intervals need accuracies on the same images."
    else:
        sure = "It is significantly better than all others (95 %)."
    return (
        f'<p class="winner">Best by {page.text(deciding.title)}: <b>{page.text(best.name)}</b>, '
        f"<b{page.data(score.value)}>{score.value:.4f}</b>. {sure}</p>"
    )


def _intervals(ranked: Sequence[_Ranked], deciding: Headline) -> str:
    scores = [(row, score) for row in ranked if (score := deciding.score(row.scores))]
    ends = [end for _, score in scores for end in (score.value, score.low, score.high) if end is not None]
    axis = charts.category_axis("", [str(row.number) for row in reversed(ranked)])
    plot = charts.Plot(charts.number_axis(deciding.title, ends), axis, height=26.0 * len(ranked) + 48)
    for row, score in scores:
        interval = "" if score.low is None else f"\n95 %: {score.low:.4f} to {score.high:.4f}"
        tip = f"{row.label}\n{deciding.title} {score.value:.4f}{interval}"
        plot.whisker(len(ranked) - row.number, score.value, score.low, score.high, tip, row.number - 1)
    return plot.svg()


def _cell(column: Headline, scores: RunMetrics) -> str:
    score: Score | None = column.score(scores)
    return "-" if score is None else f"<span{page.data(score.value)}>{column.form.format(score.value)}</span>"


def _curves(ranked: Sequence[_Ranked]) -> str:
    # Ensembles have no training.
    all_rows = {row.label: row.run.history() for row in ranked}
    histories = {label: rows for label, rows in all_rows.items() if any(row.get("train_loss") for row in rows)}
    styles = {row.label: row.number - 1 for row in ranked}
    drawn = []
    for column, title in plots.compared_columns(histories).items():
        series = {label: points for label, rows in histories.items() if (points := plots.points(rows, column))}
        drawn.append(charts.lines(title, series, "epoch", styles=styles).svg())
    return page.grid(drawn) + charts.legend(styles) if drawn else ""


def _norms(ranked: Sequence[_Ranked]) -> str:
    tables = {row.label: rows for row in ranked if (rows := row.run.table("norms.csv"))}
    styles = {row.label: row.number - 1 for row in ranked}
    drawn = []
    for column in ("gradient_norm", "weight_norm") if tables else ():
        series = {label: report.norms_by_layer(rows, column, int(rows[-1]["epoch"])) for label, rows in tables.items()}
        title = f"{column.replace('_', ' ')}, last epoch"
        drawn.append(charts.lines(title, series, "layer", log=True, styles=styles).svg())
    return page.grid(drawn)


def _distortions(ranked: Sequence[_Ranked]) -> Iterator[Section]:
    """Yield accuracy by distortion: of the suite if all runs scored it, else of shifted validation."""
    title, tables = "Suite by distortion", _by_distortion("suite", ranked)
    if not all(tables):
        title, tables = "Shifted validation by distortion", _by_distortion("shifted validation", ranked)
    rows = list(dict.fromkeys(key for table in tables for key in table))
    if not rows:
        return
    values = np.array([[table.get(key, np.nan) for table in tables] for key in rows])

    def tip(row: int, column: int) -> str:
        return f"{rows[row]}\n{ranked[column].label}: {values[row, column]:.4f}"

    numbers = [str(row.number) for row in ranked]
    yield Section(title, charts.heat_map(rows, numbers, values, tip, title="accuracy by distortion and run"))


def _by_distortion(split: str, ranked: Sequence[_Ranked]) -> list[dict[str, float]]:
    return [(report.SPLITS[split](row.scores) or SplitScores()).by_distortion for row in ranked]
