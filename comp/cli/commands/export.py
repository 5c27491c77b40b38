"""`comp export`."""

from pathlib import Path
from typing import Annotated

import typer

from comp.cli.commands.options import AllowPlugins, AsJson, RunWords, expand_path, open_one_run


def export(
    words: RunWords,
    *,
    kaggle: Annotated[
        Path,
        typer.Option("--kaggle", metavar="DIR", help="New folder of the offline package.", callback=expand_path),
    ],
    competition: Annotated[
        str, typer.Option("--competition", metavar="SLUG", help="Name in the competition's Kaggle URL.")
    ],
    owner: Annotated[str, typer.Option("--owner", metavar="USER", help="Your Kaggle user name.")],
    title: Annotated[
        str, typer.Option(metavar="TEXT", help="Of dataset and notebook. Default: competition and run.")
    ] = "",
    image_packages: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Packages of Kaggle's image, as `pip list --format=freeze` prints them there; `# python 3.11` in it.",
            callback=expand_path,
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Run the notebook without network and compare its CSV with comp predict's.")
    ] = False,
    rows: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="With --verify: rows of the hidden test, to extrapolate to.")
    ] = None,
    limit: Annotated[str, typer.Option(metavar="TIME", help="With --verify: time that the notebook may take.")] = "9h",
    allow_plugins: AllowPlugins = False,
    as_json: AsJson = False,
) -> None:
    """Pack a run or an ensemble with a notebook for a code competition.

    Example: comp export runs/quickstart/20260101-120000-quickstart --kaggle package --competition NAME --owner USER
    """
    from comp.cli.commands import kaggle_package

    kaggle_package.package(
        open_one_run(words, allow_plugins=allow_plugins),
        kaggle,
        competition=competition,
        owner=owner,
        title=title,
        image_packages=image_packages,
        verify=verify,
        rows=rows,
        limit=limit,
        as_json=as_json,
    )
