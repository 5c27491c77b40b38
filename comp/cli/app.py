"""The command line: its commands and exit codes. `comp --help` never imports torch."""

import atexit
import gc
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, NoReturn

import typer

from comp.cli.commands import (
    clean,
    config,
    cross_validate,
    data,
    ensemble,
    init,
    leaderboard,
    models,
    predict,
    report,
    submission,
    train,
    tune,
)
from comp.runtime import cores, memory, signals
from comp.runtime.errors import Interrupted, UserError, readable

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
config_app = typer.Typer(no_args_is_help=True, help="Show and check configs.")
leaderboard_app = typer.Typer(invoke_without_command=True)
data_app = typer.Typer(no_args_is_help=True, help="Prepare, show, check, corrupt and compare data.")


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 1 internal error, 2 wrong input, 128 + signal interrupted.

    Args:
        arguments: in place of the process's own.
    """
    cores.limit_spinning()
    atexit.register(gc.freeze)  # skips the last garbage collection, which would walk all of torch
    code = 0
    try:
        with signals.catch_stop_signals():
            app(arguments, obj=arguments or sys.argv[1:])  # exits by SystemExit: 0, or 2 with typer's message
    except UserError as error:
        print(f"error: {readable(error)}", file=sys.stderr)
        code = error.exit_code
    except Interrupted as stop:
        print(
            "Stopped. Continue a training with: comp run --resume RUN (its folder is printed above); repeat any other "
            "command to continue it.",
            file=sys.stderr,
        )
        code = stop.exit_code
    except Exception as error:
        if memory.is_out_of_memory(error):
            print(f"error: out of memory ({memory.reason_of(error)}); {memory.ADVICE}", file=sys.stderr)
            code = UserError.exit_code
        elif "comp.workflows.plugins" in sys.modules and (
            reason := sys.modules["comp.workflows.plugins"].raised_in(error)
        ):
            print(f"error: a plug-in fails: {reason}", file=sys.stderr)
            code = UserError.exit_code
        else:
            traceback.print_exc()
            print("internal error (a bug in comp); please report it with the lines above", file=sys.stderr)
            code = 1
    sys.exit(code)


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """From a competition's data to a scored, valid submission.csv.

    Start with: comp run configs/quickstart.yaml
    """
    if show:
        from comp import __version__

        print(f"comp {__version__}")
        raise typer.Exit


_RUNS = (
    init.init,
    cross_validate.cv,
    train.run,
    train.train,
    train.lr_find,
    tune.tune,
    predict.predict,
    predict.evaluate,
    predict.probe,
)
_FILES = (submission.check, submission.diff, submission.submit, report.report, clean.clean, models.models)
_COMMANDS: dict[typer.Typer, tuple[Callable[..., None], ...]] = {
    app: (*_RUNS, ensemble.ensemble, *_FILES),
    leaderboard_app: (leaderboard.record,),
    config_app: (config.show, config.check, config.schema),
    data_app: (data.prepare, data.show, data.check, data.errors, data.shift, data.corrupt),
}
for group, commands in _COMMANDS.items():
    for command in commands:
        group.command()(command)
leaderboard_app.callback()(leaderboard.leaderboard)
app.add_typer(leaderboard_app, name="leaderboard")
app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")
