"""A study's pictures: PNGs by Optuna's own drawing, and one HTML page that holds them and needs no network."""

import base64
import html
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.trial import TrialState

from comp.results import files
from comp.tuning import confirm, objectives

if TYPE_CHECKING:
    from comp.tuning.study import Study

_CONTOUR_KNOBS = 4  # the most important: a picture for each pair of them


def draw(
    study: "Study", importance: Mapping[str, float], pareto: Sequence[int], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Draw what the trials can show so far, into plots/ and study.html."""
    folder = study.folder / "plots"
    files.make_folder(folder)
    drawn = {name: folder / f"{name}.png" for name in _drawings(study, importance)}
    for name, path in drawn.items():
        _save(_drawings(study, importance)[name], path)
    files.write_atomically(study.folder / "study.html", _page(study, importance, pareto, rows, drawn).encode())


def _drawings(study: "Study", importance: Mapping[str, float]) -> dict[str, Callable[[], Any]]:
    """Return what can be drawn: name -> a function that draws it and returns its axes."""
    from optuna.visualization import matplotlib as optuna_plots

    whole = confirm.ranked(study)
    if not whole:
        return {}
    first = objectives.names(study.config)[0]
    of_first: dict[str, Any] = {"target": lambda trial: trial.values[0], "target_name": first}
    shared = [path for path in study.config.tune.space if all(path in trial.params for trial in whole)]
    knobs = [*importance, *(path for path in shared if path not in importance)]
    found: dict[str, Callable[[], Any]] = {
        "history": partial(optuna_plots.plot_optimization_history, study.optuna, **of_first)
    }
    if knobs:
        found["slice"] = partial(optuna_plots.plot_slice, study.optuna, params=knobs, **of_first)
        found["parallel"] = partial(optuna_plots.plot_parallel_coordinate, study.optuna, params=knobs, **of_first)
    varied = [path for path in knobs if len({repr(trial.params[path]) for trial in whole}) > 1]
    if len(varied) > 1:
        found["contour"] = partial(optuna_plots.plot_contour, study.optuna, params=varied[:_CONTOUR_KNOBS], **of_first)
    if any(trial.intermediate_values for trial in study.trials()):
        found["epochs"] = partial(optuna_plots.plot_intermediate_values, study.optuna)
    if len(objectives.names(study.config)) == 2:
        found["pareto"] = partial(
            optuna_plots.plot_pareto_front, study.optuna, target_names=list(objectives.names(study.config))
        )
    return found


def _save(drawing: Callable[[], Any], path: Path) -> None:
    import matplotlib as mpl

    before = mpl.get_backend()
    mpl.use("agg")  # Optuna draws through pyplot, which would open a window where there is one
    from matplotlib import pyplot

    with warnings.catch_warnings(), mpl.rc_context():
        warnings.simplefilter("ignore")  # experimental; and few points make flat contours
        axes = np.ravel(drawing())
        figure = axes[0].figure
        figure.set_size_inches(max(7.0, 3.2 * len(axes) if len(axes) < 9 else 12.0), 5.0 if len(axes) < 9 else 10.0)
        files.write_atomically(path, partial(figure.savefig, format="png", dpi=110, bbox_inches="tight"))
    pyplot.close("all")
    mpl.use(before)


def _page(
    study: "Study", importance: Mapping[str, float], pareto: Sequence[int], rows: Sequence[Mapping[str, Any]],
    drawn: Mapping[str, Path],
) -> str:  # fmt: skip
    title = html.escape(f"{study.name}: {', '.join(objectives.names(study.config))}")
    pictures = "".join(
        f"<h2>{name}</h2><img alt='{name}' src='data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}'>"
        for name, path in drawn.items()
    )
    shares = "".join(f"<tr><td>{html.escape(path)}</td><td>{share:.3f}</td></tr>" for path, share in importance.items())
    head = "".join(f"<th>{html.escape(name)}</th>" for name in (rows[0] if rows else ()))
    table = "".join(
        f"<tr{' class=best' if row['trial'] in pareto else ''}>"
        + "".join(f"<td>{html.escape('' if cell is None else str(cell))}</td>" for cell in row.values())
        + "</tr>"
        for row in rows
    )
    ended = sum(trial.state == TrialState.COMPLETE for trial in study.trials())
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
        "<style>body{font:14px sans-serif;margin:2em}table{border-collapse:collapse}"
        "td,th{padding:.2em .6em;border-bottom:1px solid #ccc;text-align:left}img{max-width:100%}.best{background:#efe}"
        f"</style><h1>{title}</h1><p>{ended} whole trials of {len(rows)}.</p>{pictures}"
        f"<h2>importance</h2><table>{shares}</table><h2>trials</h2><table><tr>{head}</tr>{table}</table></html>\n"
    )
