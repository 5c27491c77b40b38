"""Arguments and options that several verbs share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from comp.results.runs import Run


def expanded(param: typer.CallbackParam, value: Any) -> Any:
    """Return a path, or several, with `~` and `${NAME}` replaced, which no shell does in `--runs=~/x`."""
    from comp.config.yaml_io import user_path

    if isinstance(value, list | tuple):
        return [expanded(param, each) for each in value]
    return Path(user_path(str(value), param.opts[0])) if isinstance(value, Path) else value


ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file; see configs/.", callback=expanded)]
MaybeConfig = Annotated[
    Path | None, typer.Argument(metavar="CONFIG", help="A YAML file; see configs/.", callback=expanded)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Laid on the config: `train.epochs=3 optim.lr=3e-4`."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]

Views = Annotated[
    str | None, typer.Option("--views", help="none, flip, shift, flip_shift, ten_crop or dihedral; else the config's.")
]
ViewsFor = Annotated[
    str | None, typer.Option("--views-for", help="all, or uncertain:0.25: views for the least confident quarter alone.")
]
Adapt = Annotated[
    str | None,
    typer.Option("--adapt", help="none, bn (batch-norm statistics) or tent (entropy): to the images at hand."),
]
AdaptPer = Annotated[str | None, typer.Option("--adapt-per", help="block, file or stream: what is adapted to at once.")]
Alpha = Annotated[float | None, typer.Option("--alpha", help="Share of the images' own batch-norm statistics, 0 to 1.")]

RunWords = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN [KEY=VALUE]",
        help="A run's folder: runs/COMPETITION/TIME-NAME; then where its data lie now: data.root=DIR.",
    ),
]
Device = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda or mps: predict there; by default where it was trained.")
]
RunsRoot = Annotated[Path, typer.Option("--runs", help="Where run folders are.", callback=expanded)]
MaybeRunsRoot = Annotated[
    Path | None, typer.Option("--runs", help="Where run folders are made.", show_default="runs", callback=expanded)
]
Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", help="The submission's CSV; a free name by default.", callback=expanded),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing submission.")]
RUNS = Path("runs")


def opened_runs(words: list[str]) -> "list[Run]":
    """Return the runs that a command line names, each with the overrides that stand beside them.

    A word with `=` is an override; a folder with `=` in its name is written with its path: `./a=b`.
    """
    from comp.config.yaml_io import user_path
    from comp.results import runs
    from comp.runtime.errors import RunError

    overrides = [word for word in words if "=" in word and "/" not in word.partition("=")[0]]
    paths = [Path(user_path(word, "RUN")) for word in words if word not in overrides]
    if not paths:
        raise RunError(
            f"expected a run, found only {' '.join(overrides)}; a folder with = in its name: ./{overrides[0]}"
        )
    return [runs.open_run(path, overrides) for path in paths]


def opened_run(words: list[str]) -> "Run":
    """Return the one run that a command line names; see `opened_runs`."""
    from comp.runtime.errors import RunError

    found = opened_runs(words)
    if len(found) > 1:
        raise RunError(f"expected one run, found {len(found)}: {', '.join(str(run.path) for run in found)}")
    return found[0]
