"""The command line: which verbs there are, and how a command ends. `comp --help` never imports torch."""

import atexit
import gc
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, NoReturn

import typer

from comp.cli.commands import (  # fmt: skip
    clean,
    config,
    data,
    ensemble,
    leaderboard,
    models,
    predict,
    report,
    submission,
    train,
    tune,
)
from comp.runtime import cores, signals
from comp.runtime.errors import Interrupted, UserError

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False,
)  # fmt: skip
config_app = typer.Typer(no_args_is_help=True, help="Look at configs: `show`, `check`, `schema`.")
leaderboard_app = typer.Typer(invoke_without_command=True)
data_app = typer.Typer(no_args_is_help=True, help="Bring and look at data: `prepare`, `show`, `check`, `corrupt`.")


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit code.

    0 done; 2 the user's input is wrong, told in one message; 1 a fault of ours; 128 + signal interrupted, resumable.

    Args:
        arguments: instead of the process's own.
    """
    cores.limit_spinning()
    atexit.register(gc.freeze)  # memory goes back with the process: no last search for garbage among all of torch
    sys.exit(_guarded(arguments))


def _guarded(arguments: list[str] | None) -> int:
    try:
        with signals.catch_stop_signals():
            app(arguments)  # leaves by SystemExit: 0, or 2 with a message of its own where the command line is wrong
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except Interrupted as stop:
        print(
            "interrupted: a training goes on with comp run --resume RUN, the folder named above, all else with the "
            "same command again",
            file=sys.stderr,
        )
        return stop.exit_code
    except Exception:
        traceback.print_exc()
        print("this is a fault of comp, not of your input; please report it with the lines above", file=sys.stderr)
        return 1
    return 0


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """From a competition's data to a scored, valid submission.csv. Begin with: comp run configs/quickstart.yaml"""
    if show:
        from comp import __version__

        print(f"comp {__version__}")
        raise typer.Exit


_VERBS: dict[typer.Typer, tuple[Callable[..., None], ...]] = {
    app: (
        train.run, train.train, train.lr_find, tune.tune, predict.predict, predict.evaluate,
        predict.probe, ensemble.ensemble, submission.check, submission.diff, submission.submit, report.report,
        clean.clean, models.models,
    ),
    leaderboard_app: (leaderboard.record,),
    config_app: (config.show, config.check, config.schema),
    data_app: (data.prepare, data.show, data.check, data.corrupt),
}  # fmt: skip
for group, verbs in _VERBS.items():
    for verb in verbs:
        group.command()(verb)
leaderboard_app.callback()(leaderboard.leaderboard)
app.add_typer(leaderboard_app, name="leaderboard")
app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")
