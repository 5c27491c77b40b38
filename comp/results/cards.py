"""What a notebook shows for runs, folds and studies: small HTML without scripts, all text escaped. Torch-free."""

from collections.abc import Iterable, Sequence

from comp.results import page
from comp.results.report import headlines
from comp.results.runs import Run
from comp.runtime.errors import RunError


def run_card(run: Run) -> str:
    """Return a run's scores with their 95 % intervals, or what is wrong with it, as HTML."""
    try:
        scores = run.metrics()
    except RunError as error:
        return page.note(str(error))
    rows = []
    for row in headlines([scores]):
        if score := row.score(scores):
            low, high = (None if end is None else row.form(end) for end in (score.low, score.high))
            rows.append([page.text(row.title), row.form(score.value), f"{low} to {high}" if low else ""])
    kind = "" if scores.kind == "run" else f"{scores.kind.replace('_', ' ')}, "
    return page.note(f"{run.path} ({kind}{scores.model})") + page.table(("score", "value", "95 % interval"), rows)


def rows_card(summary: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a line of text and a table of texts and numbers, as HTML."""
    cells = [
        [f"{cell:.4g}" if isinstance(cell, float) else page.text("" if cell is None else cell) for cell in row]
        for row in rows
    ]
    return page.note(summary) + page.table(head, cells)
