"""`comp export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from comp.cli.commands.options import AllowPlugins, AsJson, RunWords, expand_path, open_one_run

if TYPE_CHECKING:
    from comp.results.runs import Run
    from comp.runtime.progress import Progress
    from comp.workflows.export import Exportable

_NETWORK, _PACKAGE = "A network", "A package for a code competition"  # panels of the help


def export(
    words: RunWords,
    file_format: Annotated[
        Literal["onnx", "torch", "timm", "safetensors"] | None,
        typer.Option(
            "--format",
            help="onnx (default); torch (a torch.export program); timm or safetensors (weights alone).",
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="DIR", help="A new folder.", callback=expand_path, rich_help_panel=_NETWORK
        ),
    ] = None,
    input_type: Annotated[
        Literal["uint8", "float"] | None,
        typer.Option(
            "--input", help="Pixels of onnx and torch: 0 to 255 (default), or 0 to 1.", rich_help_panel=_NETWORK
        ),
    ] = None,
    quantize: Annotated[
        Literal["int8"] | None,
        typer.Option(
            help="Quantize an ONNX network, calibrated on training images; its speed and loss are measured.",
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    plain: Annotated[
        bool,
        typer.Option(
            "--plain",
            help="Export the network of a run that adapts to its test, without adaptation.",
            rich_help_panel=_NETWORK,
        ),
    ] = False,
    kaggle: Annotated[
        Path | None,
        typer.Option("--kaggle", metavar="DIR", help="A new folder.", callback=expand_path, rich_help_panel=_PACKAGE),
    ] = None,
    competition: Annotated[
        str | None,
        typer.Option(metavar="SLUG", help="Name in the competition's Kaggle URL.", rich_help_panel=_PACKAGE),
    ] = None,
    owner: Annotated[
        str | None, typer.Option(metavar="USER", help="Your Kaggle user name.", rich_help_panel=_PACKAGE)
    ] = None,
    title: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="Of dataset and notebook. Default: competition and run.", rich_help_panel=_PACKAGE
        ),
    ] = None,
    image_packages: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Packages of Kaggle's image, as `pip list --format=freeze` prints them there; `# python 3.11` in it.",
            callback=expand_path,
            rich_help_panel=_PACKAGE,
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Run the notebook without network and compare its CSV with comp predict's.",
            rich_help_panel=_PACKAGE,
        ),
    ] = False,
    rows: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="With --verify: rows of the hidden test, to extrapolate to.",
            rich_help_panel=_PACKAGE,
        ),
    ] = None,
    limit: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="With --verify: time that the notebook may take (default: 9h).",
            rich_help_panel=_PACKAGE,
        ),
    ] = None,
    allow_plugins: AllowPlugins = False,
    as_json: AsJson = False,
) -> None:
    """Export a network as files that need no comp, or a package for a code competition.

    A network comes with a card (README.md, model.json); an ensemble becomes one.
    Pre-processing is inside (onnx, torch). The files are loaded in a fresh process
    without comp, and must answer as the run does on its validation images.

    A package is a notebook with what it installs and predicts by, without network.

    Example: comp export runs/quickstart/20260101-120000-quickstart --format onnx -o digits-onnx
    """
    network = {
        "--format": file_format,
        "-o": output,
        "--input": input_type,
        "--quantize": quantize,
        "--plain": plain or None,
    }
    package: dict[str, Any] = {
        "competition": competition,
        "owner": owner,
        "title": title,
        "image_packages": image_packages,
        "verify": verify or None,
        "rows": rows,
        "limit": limit,
    }
    given = {name: value for name, value in package.items() if value is not None}
    _check_options(kaggle, network, given)
    if kaggle is not None:
        from comp.cli.commands import kaggle_package

        kaggle_package.package(open_one_run(words, allow_plugins=allow_plugins), kaggle, **given, as_json=as_json)
        return
    from comp.cli import console
    from comp.workflows import export as workflow

    assert output is not None  # see `_check_options`
    request = workflow.ExportRequest(output, file_format or "onnx", input_type or "uint8", quantize is not None)
    request.check()
    with console.bars() as progress:
        source = _open(open_one_run(words, allow_plugins=allow_plugins), plain, progress)
        card = workflow.export(source, request, progress)
    console.print_json(card) if as_json else _print(card, output)


def _check_options(kaggle: Path | None, network: dict[str, Any], package: dict[str, Any]) -> None:
    """Refuse options of the other kind of export, and one that lacks what it needs."""
    from comp.runtime.errors import ConfigError

    if kaggle is None:
        if package:
            name = next(iter(package)).replace("_", "-")
            raise ConfigError(f"--{name}: is for a package; add --kaggle DIR, or leave it out")
        if network["-o"] is None:
            raise ConfigError("comp export: name the new folder: -o DIR, or --kaggle DIR for a code competition")
        return
    if wrong := [name for name, value in network.items() if value is not None]:
        raise ConfigError(f"{wrong[0]}: is for a network; leave it out, or leave out --kaggle")
    if missing := [name for name in ("competition", "owner") if name not in package]:
        raise ConfigError(f"comp export --kaggle: needs --{missing[0]} too")


def _open(run: "Run", plain: bool, progress: "Progress") -> "Exportable":
    """Return a run's network, or an ensemble's as one."""
    from comp.ensembles import network, new_images
    from comp.workflows import export as workflow

    if new_images.is_ensemble(run):
        return network.open_ensemble(run, progress)
    return workflow.open_run(run, plain=plain, progress=progress)


def _print(card: dict[str, Any], folder: Path) -> None:
    from comp.cli import console
    from comp.workflows import model_card

    console.print_line(f"exported    {folder} ({', '.join((card['file'], model_card.PAGE, model_card.JSON))})")
    for line in model_card.check_lines(card["check"]):
        console.print_line(f"checked     {line}")
    for row in card.get("quantization", {}).get("compared", ()):
        score = "undefined" if row["score"] is None else f"{row['score']:.4f}"
        console.print_line(f"measured    {row['network']}: {row['images_per_second']:,.0f} images/s, {score}")
    for warning in card.get("quantization", {}).get("warnings", ()):
        console.print_note(f"warning: {warning}")
    for note in card["not_inside"]:
        console.print_note(f"not inside: {note}")
