"""`comp models`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from comp.cli.commands.options import AsJson

if TYPE_CHECKING:
    from comp.models.zoo import Costs, ModelSummary


def models(
    pattern: Annotated[str, typer.Argument(help="Part of a name or family, or a glob of names.")] = "*",
    size: Annotated[int, typer.Option(help="Image side in pixels, for the costs.")] = 32,
    channels: Annotated[int, typer.Option(help="Image channels: 3 for colour, 1 for grey.")] = 3,
    weights: Annotated[Path, typer.Option(help="Folder of weights files, searched before data/weights.")] = Path(
        "data/weights"
    ),
    as_json: AsJson = False,
) -> None:
    """List models for `model.name` and their costs.

    Costs are counted with the CIFAR stem if the family has one.

    Example: comp models 'resnet1*' --size 32
    """
    from comp.cli import console
    from comp.models import zoo

    rows = zoo.list_models(pattern, weights_folder=weights)
    costs = {}
    if len(rows) <= console.MOST_COUNTED_MODELS:
        with console.bars() as progress:
            for row in rows:
                costs[row.name] = _costs(row, (channels, size, size))
                progress("counting", len(costs), len(rows), "models")
    console.print_models(rows, costs, as_json)
    if not as_json:
        console.print_next(*("run", "CONFIG", f"model.name={rows[0].name}") if rows else ("models", "resnet"))


def _costs(row: "ModelSummary", image_shape: tuple[int, int, int]) -> "Costs | None":
    """Return a model's costs; None if it is too deep for such images."""
    from comp.models import zoo

    try:
        return zoo.measure_costs(row.name, image_shape, stem="cifar" if row.cifar_stem else "stock")
    except (RuntimeError, ValueError, AssertionError):
        return None
