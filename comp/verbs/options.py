"""Arguments and options that several verbs share."""

from pathlib import Path
from typing import Annotated, Any

import typer


def expanded(param: typer.CallbackParam, value: Any) -> Any:
    """Return a path, or several, with `~` and `${NAME}` replaced, which no shell does in `--runs=~/x`."""
    from comp.yaml_files import user_path

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

RunPath = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run's folder: runs/COMPETITION/TIME-NAME.", callback=expanded)
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
