"""Plots of a study: PNGs drawn by Optuna, and one self-contained HTML page."""

import base64
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from comp.results import files
from comp.runtime import escape
from comp.tuning import objectives

if TYPE_CHECKING:
    from comp.tuning.study import Study

_CONTOUR_KNOBS = 4  # the most important ones; each pair gets a panel


def draw(
    study: "Study", importance: Mapping[str, float], pareto: Sequence[int], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Write the plots that the trials so far allow to plots/ and study.html."""
    folder = study.folder / "plots"
    files.make_folder(folder)
    paths = {}
    for name, drawing in _drawings(study, importance).items():
        paths[name] = folder / f"{name}.png"
        _save(drawing, paths[name])
    files.write_atomically(study.folder / "study.html", _page(study, importance, pareto, rows, paths).encode())


def _drawings(study: "Study", importance: Mapping[str, float]) -> dict[str, Callable[[], Any]]:
    """Return the possible plots: name -> a function that draws it and returns its axes."""
    from optuna.visualization import matplotlib as optuna_plots

    complete = study.ranked()
    if not complete:
        return {}
    first = objectives.names(study.config)[0]
    of_first: dict[str, Any] = {"target": lambda trial: trial.values[0], "target_name": first}
    shared = [path for path in study.config.tune.space if all(path in trial.params for trial in complete)]
    knobs = [*importance, *(path for path in shared if path not in importance)]
    history = partial(optuna_plots.plot_optimization_history, study.optuna, **of_first)
    drawings: dict[str, Callable[[], Any]] = {"history": history}
    if knobs:
        drawings["slice"] = partial(optuna_plots.plot_slice, study.optuna, params=knobs, **of_first)
        drawings["parallel"] = partial(optuna_plots.plot_parallel_coordinate, study.optuna, params=knobs, **of_first)
    varied = [path for path in knobs if len({repr(trial.params[path]) for trial in complete}) > 1]
    if len(varied) > 1:
        drawings["contour"] = partial(
            optuna_plots.plot_contour, study.optuna, params=varied[:_CONTOUR_KNOBS], **of_first
        )
    if any(trial.intermediate_values for trial in study.trials()):
        drawings["epochs"] = partial(optuna_plots.plot_intermediate_values, study.optuna)
    if len(objectives.names(study.config)) == 2:
        drawings["pareto"] = partial(
            optuna_plots.plot_pareto_front, study.optuna, target_names=list(objectives.names(study.config))
        )
    return drawings


def _save(drawing: Callable[[], Any], path: Path) -> None:
    import matplotlib as mpl

    before = mpl.get_backend()
    mpl.use("agg")  # Optuna draws through pyplot, which would open a window where there is one
    from matplotlib import pyplot

    with warnings.catch_warnings(), mpl.rc_context():
        warnings.simplefilter("ignore")  # experimental functions, and flat contours of few points
        axes = np.ravel(drawing())
        figure = axes[0].figure
        figure.set_size_inches(max(7.0, 3.2 * len(axes) if len(axes) < 9 else 12.0), 5.0 if len(axes) < 9 else 10.0)
        files.write_atomically(path, partial(figure.savefig, format="png", dpi=110, bbox_inches="tight"))
    pyplot.close("all")
    mpl.use(before)


def _page(
    study: "Study",
    importance: Mapping[str, float],
    pareto: Sequence[int],
    rows: Sequence[Mapping[str, Any]],
    plots: Mapping[str, Path],
) -> str:
    title = escape.for_html(f"{study.name}: {', '.join(objectives.names(study.config))}")
    pictures = "".join(
        f"<h2>{name}</h2><img alt='{name}' src='data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}'>"
        for name, path in plots.items()
    )
    shares = "".join(
        f"<tr><td>{escape.for_html(path)}</td><td>{share:.3f}</td></tr>" for path, share in importance.items()
    )
    head = "".join(f"<th>{escape.for_html(name)}</th>" for name in (rows[0] if rows else ()))
    table = "".join(
        f"<tr{' class=best' if row['trial'] in pareto else ''}>"
        + "".join(f"<td>{escape.for_html('' if cell is None else cell)}</td>" for cell in row.values())
        + "</tr>"
        for row in rows
    )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
        "<style>body{font:14px sans-serif;margin:2em}table{border-collapse:collapse}"
        "td,th{padding:.2em .6em;border-bottom:1px solid #ccc;text-align:left}img{max-width:100%}.best{background:#efe}"
        f"</style><h1>{title}</h1><p>{len(study.ranked())} complete trials of {len(rows)}.</p>{pictures}"
        f"<h2>importance</h2><table>{shares}</table><h2>trials</h2><table><tr>{head}</tr>{table}</table></html>\n"
    )
