"""`comp export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from comp.cli.commands.options import AllowPlugins, AsJson, RunWords, expand_path, open_one_run

if TYPE_CHECKING:
    from comp.results.runs import Run
    from comp.runtime.progress import Progress
    from comp.workflows.export import Exportable


def export(
    words: RunWords,
    file_format: Annotated[
        Literal["onnx", "torch", "timm", "safetensors"],
        typer.Option("--format", help="onnx; torch (a torch.export program); timm or safetensors (weights alone)."),
    ] = "onnx",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="A new folder.", callback=expand_path)
    ] = None,
    input_type: Annotated[
        Literal["uint8", "float"], typer.Option("--input", help="Pixels of onnx and torch: 0 to 255, or 0 to 1.")
    ] = "uint8",
    quantize: Annotated[
        Literal["int8"] | None,
        typer.Option(help="Quantize an ONNX network, calibrated on training images; its speed and loss are measured."),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Export the network of a run that adapts to its test, without adaptation.")
    ] = False,
    allow_plugins: AllowPlugins = False,
    as_json: AsJson = False,
) -> None:
    """Export a network as files that need no comp, with a card: README.md, model.json.

    Pre-processing is inside (onnx, torch). An ensemble becomes one network. The
    files are loaded in a fresh process without comp, and must answer as the run
    does on its validation images.

    Example: comp export runs/quickstart/20260101-120000-quickstart --format onnx -o digits-onnx
    """
    from comp.cli import console
    from comp.runtime.errors import ConfigError
    from comp.workflows import export as workflow

    if output is None:
        raise ConfigError("comp export: name the new folder: -o DIR")
    request = workflow.ExportRequest(output, file_format, input_type, quantize is not None)
    request.check()
    with console.bars() as progress:
        source = _open(open_one_run(words, allow_plugins=allow_plugins), plain, progress)
        card = workflow.export(source, request, progress)
    console.print_json(card) if as_json else _print(card, output)


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
