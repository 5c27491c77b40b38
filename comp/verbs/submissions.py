"""`comp check`: what can be said of a submission's file."""

from pathlib import Path
from typing import Annotated

import typer

from comp.verbs.options import AsJson


def check(
    path: Annotated[Path, typer.Argument(metavar="CSV", help="A submission.")],
    wanted: Annotated[
        Path | None, typer.Option("--format", metavar="CONFIG", help="By default the sidecar's format.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a submission's header, ids, order and labels.

    Example: comp check submissions/quickstart.csv
    """
    from comp import config as configs
    from comp import console, runs
    from comp.competition import submission
    from comp.errors import SubmissionError

    sidecar = submission.sidecar_path(path)
    if not path.is_file():
        raise SubmissionError(f"{path}: no such submission")
    if wanted:
        from comp.data.dataset import open_dataset

        expected = submission.format_of(open_dataset(configs.load(wanted)).competition)
    elif sidecar.exists():
        expected = submission.format_from_json(runs.read_json(sidecar).get("format", {}), sidecar)
    else:
        raise SubmissionError(f"{path}: has no sidecar {sidecar.name} that tells its format; give --format CONFIG")
    problems = submission.check(path, expected)
    if as_json:
        console.print_json({"submission": str(path), "valid": not problems, "problems": problems})
    elif not problems:
        console.print_line(f"{path}: valid")
    if problems:
        raise SubmissionError(f"{path}: not a valid submission\n  " + "\n  ".join(problems))
