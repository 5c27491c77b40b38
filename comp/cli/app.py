"""The command line: its commands and exit codes. `comp --help` never imports torch."""

import atexit
import contextlib
import gc
import itertools
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Annotated, Any, NoReturn

import typer
import typer.core

from comp.cli.commands import (
    clean,
    config,
    cross_validate,
    data,
    ensemble,
    export,
    init,
    leaderboard,
    models,
    predict,
    report,
    submission,
    train,
    tune,
    watch,
)
from comp.runtime import cores, escape, memory, signals, streams
from comp.runtime.errors import Interrupted, UsageError, UserError, describe_system_error, readable

_BROKEN_PIPE = 128 + 13  # SIGPIPE, as of other commands
_UNPRINTED = "the results cannot be printed: {}; send them elsewhere (> FILE)"
_UsageError: Any = typer.BadParameter.__base__


@contextlib.contextmanager
def _plain_usage_errors() -> Iterator[None]:
    """Turn typer's errors, which print a frame, into one message as of other errors."""
    try:
        yield
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
            _print_json_error("UsageError", "expected a command; see comp --help", UserError.exit_code)
            raise
        error.message = (error.message or "").removeprefix("Value error, ")
        command = error.ctx.command_path if error.ctx else "comp"
        raise UsageError(f"{escape.one_line(error.format_message())} (see {command} --help)") from None


class _Commands(typer.core.TyperGroup):
    """All commands, whose errors are printed by `main`."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        with _plain_usage_errors():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        with _plain_usage_errors():
            return super().invoke(ctx)


app = typer.Typer(cls=_Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
config_app = typer.Typer(no_args_is_help=True, help="Show, check and explain configs.")
leaderboard_app = typer.Typer(invoke_without_command=True)
data_app = typer.Typer(no_args_is_help=True, help="Prepare, show, check, corrupt and compare data.")


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 1 internal error, 2 wrong input, 128 + signal interrupted.

    With `--json`, standard output holds one JSON value: the result, or what ended the command before there was one.

    Args:
        arguments: in place of the process's own.
    """
    words = sys.argv[1:] if arguments is None else arguments
    streams.prepare()
    streams.await_json("--json" in words and os.environ.get("RANK", "0") == "0")  # torchrun's main process prints
    cores.limit_spinning()
    atexit.register(gc.freeze)  # skips the last garbage collection, which would walk all of torch
    code = 0
    try:
        _check_words(words)
        with signals.catch_stop_signals():
            app(arguments, obj=arguments or sys.argv[1:])  # exits by SystemExit: 0, or 2 with typer's message
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0
    except UserError as error:
        code = _refuse(readable(error), error.exit_code, type(error).__name__)
    except Interrupted as stop:
        way = f"Stopped. {_way_to_continue(stop.folder, words)}"
        _say(way)
        code = stop.exit_code
        _print_json_error("Interrupted", way, code)
    except Exception as error:
        code = _explain(error)
    failure = streams.flush_stdout()
    if isinstance(failure, BrokenPipeError):
        code = _BROKEN_PIPE  # no message: after `| head`, the reader has seen enough
    elif failure is not None and not code:
        code = _refuse(_UNPRINTED.format(failure.strerror))
    elif streams.is_given_up() and failure is None:
        code = _refuse("a process that this command works with has ended (broken pipe); run the command again")
    sys.exit(code)


def _way_to_continue(folder: str, words: list[str]) -> str:
    """Return how to continue a command that a signal stopped; `folder` holds what it had begun, if that is known."""
    from comp.results.machine import hide_passwords

    if words[0] in ("run", "train") and not any(word.partition("=")[0] == "--resume" for word in words):
        return f"Continue a training with: comp {words[0]} --resume {folder or 'RUN (its folder is printed above)'}"
    kept = f"What is done stays in {folder}. " if folder else ""
    return f"{kept}Continue with: {hide_passwords(shlex.join(['comp', *words]))}"


def _check_words(words: list[str]) -> None:
    """Refuse an empty argument, which would count as the current folder, and one that no file of a run can hold."""
    for before, word in itertools.pairwise(["comp", *words]):
        if not word and before not in ("-m", "--message", "--name"):
            raise UserError(
                f"the argument after '{before}' is empty, as an unset variable in quotes is; name a file, a folder or "
                "a value, or leave it out"
            )
        if not escape.is_text(word):
            raise UserError(
                f"the argument '{word}' holds bytes that are no UTF-8 text, which no config and no record of a run can "
                "name; rename the file or folder"
            )


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it, but the exit code tells
        print(escape.for_terminal(text), file=sys.stderr)


def _refuse(message: str, code: int = UserError.exit_code, kind: str = "UserError") -> int:
    """Print a user's error, and return its exit code."""
    text = f"error: {escape.for_error(message)}"
    if sys.stderr.isatty():
        from comp.cli.console import output

        text = output.fill(text, output.err)
    _say(text)
    _print_json_error(kind, message, code)
    return code


def _print_json_error(kind: str, message: str, code: int) -> None:
    """Print an error in the place of a result that `--json` awaits."""
    if streams.awaits_json():
        from comp.cli import console

        with contextlib.suppress(OSError):
            console.print_json({"error": {"kind": kind, "message": message, "exit_code": code}})


def _explain(error: Exception) -> int:
    """Print what ended the command, one message for what the user can mend; return the exit code."""
    if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
        error = error.__context__  # pathlib and torch hide the system's reason: a circle of links, a full disk
    if isinstance(error, OSError) and error.filename is None and streams.flush_stdout() is not None:
        return _refuse(_UNPRINTED.format(error.strerror))
    if memory.is_out_of_memory(error):
        return _refuse(f"out of memory ({memory.reason_of(error)}); {memory.ADVICE}")
    plugins = sys.modules.get("comp.workflows.plugins")
    if plugins and (reason := plugins.raised_in(error)):
        return _refuse(f"a plug-in fails: {reason}")
    if isinstance(error, OSError) and (message := describe_system_error(error)):
        return _refuse(message)
    _say(traceback.format_exc().rstrip())
    _say("internal error (a bug in comp); please report it with the lines above")
    _print_json_error("InternalError", f"{type(error).__name__}: {error}", 1)
    return 1


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
_FILES = (
    export.export,
    submission.check,
    submission.diff,
    submission.submit,
    report.report,
    watch.watch,
    clean.clean,
    models.models,
)
_COMMANDS: dict[typer.Typer, tuple[Callable[..., None], ...]] = {
    app: (*_RUNS, ensemble.ensemble, *_FILES),
    leaderboard_app: (leaderboard.record,),
    config_app: (config.show, config.check, config.explain, config.schema),
    data_app: (data.prepare, data.show, data.check, data.errors, data.shift, data.corrupt),
}
for group, commands in _COMMANDS.items():
    for command in commands:
        group.command()(command)
leaderboard_app.callback()(leaderboard.leaderboard)
app.add_typer(leaderboard_app, name="leaderboard")
app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")
