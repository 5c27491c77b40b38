"""`comp watch`."""

import platform
import sys
from pathlib import Path
from typing import Annotated

import typer

from comp.cli.commands.options import RUNS, AsJson, expand_path


def watch(
    runs: Annotated[Path, typer.Argument(metavar="RUNS", help="Folder of runs.", callback=expand_path)] = RUNS,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port. Default: the first free one from 8765 on.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show runs and studies in the browser while they train.

    The leaderboard, each run's curves so far or its report, and each study's
    progress, on pages that refresh themselves. Only this machine can open them,
    with the token in the address. Nothing is changed. Ctrl-C ends it.

    Example: comp watch runs
    """
    from comp.cli import console
    from comp.cli.watch.pages import Pages, snapshot
    from comp.cli.watch.server import listen
    from comp.runtime import signals
    from comp.runtime.errors import Interrupted, RunError

    if not runs.is_dir():
        raise RunError(f"{runs}: no such folder of runs; name one, or begin a training first: comp run quickstart")
    if (runs / "provenance.json").is_file():
        raise RunError(f"{runs}: is one run; name the folder that holds it: comp watch {runs.parent}")
    snapshot(runs)  # refuses a whole disk
    with listen(lambda token: Pages(runs, f"/{token}").answer, port) as server:
        try:
            signals.interrupt_at_once()
            if as_json:
                console.print_json({"url": server.url, "token": server.token, "port": server.port}, indent=None)
            else:
                console.print_line(f"watching    {runs}")
                console.print_line(f"open        {server.url}")
                console.print_text("Ctrl-C ends it. To open it on another machine, first run there:")
                console.print_line(f"            ssh -L {server.port}:127.0.0.1:{server.port} {platform.node()}")
            sys.stdout.flush()
            server.serve_forever()
        except Interrupted as stop:
            raise typer.Exit(stop.exit_code) from None
