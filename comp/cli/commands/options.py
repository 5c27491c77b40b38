"""Arguments and options that several commands share."""

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

_LONGEST_NAME = 80
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{_LONGEST_NAME - 1}}}")

if TYPE_CHECKING:
    from comp.config import Config
    from comp.results.runs import Run


def expand_path(param: typer.CallbackParam, value: Any) -> Any:
    """Return a path, or several, with `~` and `${NAME}` replaced, which no shell does in `--runs=~/x`."""
    from comp.config.yaml_io import user_path

    if isinstance(value, list | tuple):
        return [expand_path(param, path) for path in value]
    return Path(user_path(str(value), param.opts[0])) if isinstance(value, Path) else value


def check_name(value: str | None) -> str | None:
    """Return a run's name.

    Raises:
        ConfigError: it is no name of a folder.
    """
    from comp.runtime.errors import ConfigError

    if value is not None and not _NAME.fullmatch(value):
        raise ConfigError(
            f"--name: expected up to {_LONGEST_NAME} letters, digits, '.', '_' or '-', the first a letter or digit; "
            f"found '{value}'"
        )
    return value


def find_config(param: typer.CallbackParam, value: Any) -> Any:
    """Return a config's path, with a shipped config's name replaced by its file, which is printed and recorded."""
    path = expand_path(param, value)
    if not isinstance(path, Path) or os.path.isfile(path):  # unlike `is_file`, also for a name that is too long
        return path
    from comp.cli import console
    from comp.config import shipped

    file = shipped.find(path)
    if file != path and file.is_absolute():
        sys.argv = [str(file) if word == str(value) else word for word in sys.argv]  # provenance.json has it
        if "RANK" not in os.environ:  # the process that starts several has said it
            console.print_note(f"config: {path} is shipped with comp, {file}")
    return file


_CONFIG = typer.Argument(
    metavar="CONFIG", help="YAML file, or a shipped config's name: quickstart.", callback=find_config
)
ConfigPath = Annotated[Path, _CONFIG]
MaybeConfig = Annotated[Path | None, _CONFIG]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Override config values: `train.epochs=3 optim.lr=3e-4`."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value, also for an error.")]

Views = Annotated[
    str | None,
    typer.Option("--views", help="Test-time views: none, flip, shift, flip_shift, ten_crop or dihedral."),
]
ViewsFor = Annotated[
    str | None,
    typer.Option("--views-for", help="all, or uncertain:0.25 for the least confident quarter only."),
]
Adapt = Annotated[
    str | None,
    typer.Option("--adapt", help="Adapt to the images: none, bn (batch-norm statistics), tent (entropy) or roid."),
]
AdaptPer = Annotated[
    str | None, typer.Option("--adapt-per", help="Adapt to each block, to each file, or to the whole stream.")
]
Alpha = Annotated[float | None, typer.Option("--alpha", help="Share of the images' batch-norm statistics, 0 to 1.")]
Prior = Annotated[
    str | None,
    typer.Option("--prior", help="Known class shares of each block: none, uniform, train or a .csv of class, share."),
]
Pool = Annotated[
    str | None,
    typer.Option("--pool", help="blocks: combine predictions of the same photograph over the suite's blocks."),
]

RunWords = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN [KEY=VALUE]",
        help="Run folder: runs/COMPETITION/TIME-NAME. If its data have moved: data.root=DIR.",
    ),
]
Gpus = Annotated[
    int | None,
    typer.Option(
        "--gpus",
        min=1,
        metavar="N",
        help="Train on N GPUs, with a process for each; train.device=cpu shares the cores.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device", help="Predict on cpu, cuda or mps. Default: where it was trained, if this machine has that."
    ),
]
AllowPlugins = Annotated[
    bool,
    typer.Option("--allow-plugins", help="Run the Python code of the plug-ins that lie in run folders: read it first."),
]
RunsRoot = Annotated[Path, typer.Option("--runs", help="Folder of all runs.", callback=expand_path)]
MaybeRunsRoot = Annotated[
    Path | None, typer.Option("--runs", help="Folder of all runs. Default: runs.", callback=expand_path)
]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        help="Submission CSV. Default: submissions/COMPETITION.csv, numbered if taken.",
        callback=expand_path,
    ),
]
Name = Annotated[
    str | None,
    typer.Option("--name", metavar="NAME", help="Name of the run: its folder is TIME-NAME.", callback=check_name),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing submission.")]
RUNS = Path("runs")


def load_with_plugins(config: Path, overrides: list[str] | None, *, allow: bool = False) -> "Config":
    """Return a config whose plug-ins are loaded; `allow` those of runs, studies and the config's teachers too."""
    from comp import config as configs
    from comp.workflows import lineage, plugins

    loaded = configs.load(config, overrides or [])
    plugins.load(loaded, allow=allow)
    if allow:
        lineage.consent(loaded)
    return loaded


def open_runs(words: list[str], *, allow_plugins: bool = False) -> "list[Run]":
    """Return the runs that a command line names, each with the overrides beside them.

    A word with `=` is an override; write a folder with `=` in its name with its path: `./a=b`.
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
    return [runs.open_run(path, overrides, allow_plugins=allow_plugins) for path in paths]


def open_one_run(words: list[str], *, allow_plugins: bool = False) -> "Run":
    """Return the only run that a command line names; see `open_runs`."""
    from comp.runtime.errors import RunError

    runs = open_runs(words, allow_plugins=allow_plugins)
    if len(runs) > 1:
        raise RunError(f"expected one run, found {len(runs)}: {', '.join(str(run.path) for run in runs)}")
    return runs[0]
