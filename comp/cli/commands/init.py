"""`comp init`."""

from pathlib import Path
from typing import Annotated

import typer

from comp.cli.commands import importing
from comp.cli.commands.options import AsJson, expand_path

_CONFIG = Path("comp.yaml")


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of a competition's download.", callback=expand_path)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Set what is detected wrongly: `data.csv.label_column=target`."),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Config to write.", callback=expand_path)] = _CONFIG,
    metric: Annotated[str, typer.Option(help="The competition's metric, such as log_loss.")] = "auto",
    budget: Annotated[str, typer.Option(help="Training time of all folds, such as 15min. Default: the preset's.")] = "",
    preset: Annotated[str, typer.Option(help="How much to spend: fast, good or best.")] = "good",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing config.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a config for a download: its data, its submission, and a model that fits your machine.

    Opens the data with every check of a training. Prints what it found, what it
    guessed, and the next command.

    Example: comp init data/my-competition --metric log_loss -o comp.yaml
    """
    with importing():
        from comp.cli import console
        from comp.workflows import init as workflow

    with console.bars() as progress:
        draft = workflow.draft_config(
            folder, metric=metric, budget=budget, preset=preset, overrides=overrides or [], progress=progress
        )
    workflow.write_config(draft, output, force=force)
    next_command = f"comp run {output}"
    if as_json:
        written = {"config": str(output), "found": draft.findings, "guessed": draft.guesses, "next": next_command}
        console.print_json(written)
        return
    for finding in draft.findings:
        console.print_line(f"found    {finding}")
    for guess in draft.guesses:
        console.print_line(f"guessed  {guess}")
    console.print_line(f"wrote    {output}")
    console.print_line(f"next     {next_command}")
