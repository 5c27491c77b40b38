"""`comp export`."""

import functools
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from comp.cli.commands.options import AllowPlugins, AsJson, RunWords, expand_path, open_one_run

_network = functools.partial(typer.Option, rich_help_panel="A network")
_package = functools.partial(typer.Option, rich_help_panel="A package for a code competition")


def export(
    words: RunWords,
    file_format: Annotated[
        Literal["onnx", "torch", "timm", "safetensors"] | None,
        _network("--format", help="onnx (default); torch (a torch.export program); timm or safetensors (weights)."),
    ] = None,
    output: Annotated[
        Path | None, _network("-o", "--output", metavar="DIR", help="A new folder.", callback=expand_path)
    ] = None,
    input_type: Annotated[
        Literal["uint8", "float"] | None,
        _network("--input", help="Pixels of onnx and torch: 0 to 255 (default), or 0 to 1."),
    ] = None,
    quantize: Annotated[
        Literal["int8"] | None,
        _network(help="Quantize an ONNX network, calibrated on training images; its speed and loss are measured."),
    ] = None,
    plain: Annotated[
        bool, _network("--plain", help="Export the network of a run that adapts to its test, without adaptation.")
    ] = False,
    kaggle: Annotated[
        Path | None, _package("--kaggle", metavar="DIR", help="A new folder.", callback=expand_path)
    ] = None,
    competition: Annotated[str | None, _package(metavar="SLUG", help="Name in the competition's Kaggle URL.")] = None,
    owner: Annotated[str | None, _package(metavar="USER", help="Your Kaggle user name.")] = None,
    title: Annotated[
        str | None, _package(metavar="TEXT", help="Of dataset and notebook. Default: competition and run.")
    ] = None,
    image_packages: Annotated[
        Path | None,
        _package(
            metavar="FILE",
            help="Packages of Kaggle's image, as `pip list --format=freeze` prints them there; `# python 3.11` in it.",
            callback=expand_path,
        ),
    ] = None,
    verify: Annotated[
        bool, _package("--verify", help="Run the notebook without network and compare its CSV with comp predict's.")
    ] = False,
    rows: Annotated[
        int | None, _package(min=1, metavar="N", help="With --verify: rows of the hidden test, to extrapolate to.")
    ] = None,
    limit: Annotated[
        str | None, _package(metavar="TIME", help="With --verify: time that the notebook may take (default: 9h).")
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
    of_network = {
        "--format": file_format, "-o": output, "--input": input_type, "--quantize": quantize, "--plain": plain or None,
    }  # fmt: skip
    package = {
        "competition": competition, "owner": owner, "title": title, "image_packages": image_packages,
        "verify": verify or None, "rows": rows, "limit": limit,
    }  # fmt: skip
    given: dict[str, Any] = {name: value for name, value in package.items() if value is not None}
    _check_options(kaggle, of_network, given)
    if kaggle is not None:
        from comp.cli.commands import kaggle_package

        kaggle_package.package(open_one_run(words, allow_plugins=allow_plugins), kaggle, **given, as_json=as_json)
        return
    from comp.cli import console
    from comp.ensembles import network, new_images
    from comp.workflows import export as workflow

    assert output is not None  # see `_check_options`
    request = workflow.ExportRequest(output, file_format or "onnx", input_type or "uint8", quantize is not None)
    request.check()
    run = open_one_run(words, allow_plugins=allow_plugins)
    with console.bars() as progress:
        is_ensemble = new_images.is_ensemble(run)
        source = network.open_ensemble(run, progress) if is_ensemble else workflow.open_run(run, plain, progress)
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


def _print(card: dict[str, Any], folder: Path) -> None:
    from comp.cli import console
    from comp.workflows import model_card

    console.print_line(f"exported    {folder} ({', '.join((card['file'], model_card.PAGE, model_card.JSON))})")
    for line in model_card.check_lines(card["check"]):
        console.print_line(f"checked     {line}")
    measured = card.get("quantization", {"compared": (), "warnings": ()})
    for row in measured["compared"]:
        score = "undefined" if row["score"] is None else f"{row['score']:.4f}"
        console.print_line(f"measured    {row['network']}: {row['images_per_second']:,.0f} images/s, {score}")
    for warning in measured["warnings"]:
        console.print_note(f"warning: {warning}")
    for note in card["not_inside"]:
        console.print_note(f"not inside: {note}")
