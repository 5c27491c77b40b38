"""`comp init`."""

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from comp.cli.commands import importing
from comp.cli.commands.options import AsJson, expand_path

_CONFIG, _EXAMPLES = Path("comp.yaml"), Path("configs")


def init(
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="Folder of a competition's download.", callback=expand_path)
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Set what is detected wrongly: `data.csv.label_column=target`."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Config to write. Default: comp.yaml.", callback=expand_path),
    ] = None,
    metric: Annotated[str, typer.Option(help="The competition's metric, such as log_loss.")] = "auto",
    budget: Annotated[str, typer.Option(help="Training time of all folds, such as 15min. Default: the preset's.")] = "",
    preset: Annotated[str, typer.Option(help="How much to spend: fast, good or best.")] = "good",
    example: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Instead copy a shipped config, or a family such as cifar10, to -o DIR."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing config.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a config for a download: its data, its submission, and a model that fits your machine.

    Opens the data with every check of a training. Prints what it found, what it
    guessed, and the next command.

    Example: comp init data/my-competition --metric log_loss -o comp.yaml
    """
    from comp.runtime.errors import ConfigError

    if example is not None:
        if folder or metric != "auto" or budget or preset != "good":
            raise ConfigError("--example copies shipped configs as they are; leave DIR and the other options out")
        _copy_example(example, output or _EXAMPLES, force=force, as_json=as_json)
        return
    if folder is None:
        raise ConfigError("expected the folder of a download: comp init DIR; or a shipped config: --example NAME")
    with importing():
        from comp.cli import console
        from comp.workflows import init as workflow

    output = output or _CONFIG
    workflow.check_output(output, force=force)
    with console.bars() as progress:
        draft = workflow.draft_config(
            folder, metric=metric, budget=budget, preset=preset, overrides=overrides or [], progress=progress
        )
    workflow.write_config(draft, output, force=force)
    next_command, all_folds = f"comp run {output}", f"comp cv {output}" if draft.config.data.folds else ""
    if as_json:
        written = {"config": str(output), "found": draft.findings, "guessed": draft.guesses, "advice": draft.advice}
        console.print_json({**written, "next": next_command, **({"then": all_folds} if all_folds else {})})
        return
    for finding in draft.findings:
        console.print_text(f"found       {finding}")
    for guess in draft.guesses:
        console.print_text(f"guessed     {guess}")
    for advice in draft.advice:
        console.print_text(f"advice      {advice}")
    console.print_written(output)
    folds = draft.config.data.folds
    console.print_line(f"next        {next_command}" + (f"  # one fold of {folds}" if folds else ""))
    if all_folds:
        console.print_line(f"then        {all_folds}  # all {folds} folds and their mean")


def _copy_example(name: str, folder: Path, *, force: bool, as_json: bool) -> None:
    """Copy a shipped config or family, with what it extends, into a folder.

    Raises:
        ConfigError: an unknown name, or a file that exists with other text; nothing is written then.
    """
    from comp.cli import console
    from comp.config import shipped
    from comp.results import files
    from comp.runtime.errors import ConfigError

    if folder.suffix in {".yaml", ".yml"} or folder.is_file():
        raise ConfigError(f"-o {folder}: expected a folder, which gets the configs under their own names")
    contents = {folder / path: (shipped.folder() / path).read_bytes() for path in shipped.example_files(name)}
    different = [path for path, content in contents.items() if path.is_file() and path.read_bytes() != content]
    if different and not force:
        raise ConfigError(f"{different[0]}: exists; choose another folder with -o, or replace it with --force")
    for path, content in contents.items():
        files.make_folder(path.parent)
        with contextlib.suppress(FileExistsError):  # with the same text
            files.write_atomically(path, content, replace=force)
    written = [str(path) for path in contents]
    named = folder / f"{name.removesuffix('.yaml')}.yaml"
    own = [path for path in written if Path(path).is_relative_to(folder / name)] or written
    next_command = f"comp run {named if named in contents else own[0]}"
    if as_json:
        console.print_json({"written": written, "next": next_command})
        return
    console.print_written(*written)
    console.print_line(f"next        {next_command}")
