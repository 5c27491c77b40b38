"""`comp check`, `comp diff` and `comp submit`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from comp.cli.commands.options import AsJson, Overrides, find_config
from comp.runtime.errors import plural

if TYPE_CHECKING:
    from comp.submission.validate import SubmissionReport


def find_submission(path: Path | None) -> Path | None:
    """Return a submission's path, at which its CSV lies if a kill came between two renames."""
    from comp.submission.write import finish_interrupted

    if path is not None:
        finish_interrupted(path)
    return path


CSVPath = Annotated[Path, typer.Argument(metavar="CSV", help="Submission file.", callback=find_submission)]
Format = Annotated[
    Path | None,
    typer.Option(
        "--format",
        metavar="CONFIG|SAMPLE",
        callback=find_config,
        help="Take the format from a config or a sample .csv. Default: the sidecar.",
    ),
]
Against = Annotated[
    Path | None,
    typer.Option(
        "--against", metavar="CSV", help="Earlier submission that it should resemble.", callback=find_submission
    ),
]


def check(
    path: CSVPath, overrides: Overrides = None, form: Format = None, against: Against = None, as_json: AsJson = False
) -> None:
    """Check a submission before you send it.

    Checks header, ids, order and labels, and whether the predictions are better
    than chance.

    Example: comp check submissions/quickstart.csv
    """
    from comp.cli import console

    verdict = _validate(path, form, overrides or [], against)
    if as_json:
        console.print_json(verdict.to_json())
    else:
        for doubt in verdict.findings:
            console.print_text(f"{doubt.verdict}: {doubt.what}")
    if not verdict.problems and not as_json:
        agreement = "" if verdict.agreement is None else f", agrees with {against} on {verdict.agreement:.2%} of rows"
        console.print_line(f"{path}: valid, {plural(verdict.rows, 'row')}{agreement}")
    verdict.raise_if_invalid()
    if not as_json:
        console.print_next("submit", path, "--competition", "SLUG", "--message", "TEXT")


def diff(
    first: CSVPath,
    second: Annotated[
        Path, typer.Argument(metavar="OTHER", help="Submission to compare with.", callback=find_submission)
    ],
    as_json: AsJson = False,
) -> None:
    """Count the rows in which two submissions differ.

    Example: comp diff submissions/quickstart.csv submissions/quickstart-2.csv
    """
    from comp.cli import console
    from comp.submission import diff as differences

    difference = differences.compare_submissions(first, second)
    if as_json:
        console.print_json(difference.to_json())
        return
    rows = [
        (row.block, f"{row.rows:,}", f"{row.differing:,}", _share(row.differing, row.rows)) for row in difference.blocks
    ]
    if len(rows) != 1:  # of one block the row above is the sum
        total = difference.total
        rows.append(("all", f"{total.rows:,}", f"{total.differing:,}", _share(total.differing, total.rows)))
    console.print_table(
        ("block", "rows", "differing", "share"),
        rows,
        title=f"{first} and {second}",
        shortened={"block": 16},
        has_total=len(rows) > 1,
    )
    if sizes := difference.sizes:
        correlation = "" if sizes.correlation is None else f"; correlation {sizes.correlation:.4f}"
        console.print_line(f"numbers differ by {sizes.median:.4g} (median), {sizes.greatest:.4g} at most{correlation}")
    for path, count in ((first, difference.only_first), (second, difference.only_second)):
        if count:
            console.print_line(f"{plural(count, 'id is', 'ids are')} only in {path}")
    if difference.moved:
        console.print_line("common ids are in another order")
    if difference.columns_moved:
        console.print_line("columns are in another order")
    console.print_next("check", second, "--against", first)


def _share(count: int, rows: int) -> str:
    return f"{count / rows:.2%}" if rows else ""


def submit(
    path: CSVPath,
    overrides: Overrides = None,
    *,
    competition: Annotated[
        str, typer.Option("--competition", metavar="SLUG", help="Name in the competition's Kaggle URL.")
    ],
    message: Annotated[str, typer.Option("-m", "--message", help="Description shown on Kaggle.")],
    form: Format = None,
    against: Against = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for the score.")] = 600.0,
    force: Annotated[bool, typer.Option("--force", help="Send despite warnings, or send again.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check a submission, send it to Kaggle and record its score.

    Example: comp submit submissions/quickstart.csv --competition digit-recognizer --message "first try"
    """
    from comp.cli import console
    from comp.submission import kaggle, kaggle_client

    verdict = _validate(path, form, overrides or [], against)
    if not force or verdict.problems:
        verdict.raise_if_invalid(hint="\n  send it anyway with --force")
    with console.bars() as progress:
        client = kaggle_client.KaggleClient
        record = kaggle.submit(
            path, client, competition=competition, message=message, wait_seconds=wait, again=force, progress=progress
        )
    if as_json:
        console.print_json(record)
        return
    private = "" if record["private"] is None else f", private {record['private']}"
    console.print_line(f"{path}: submission {record['reference']}, public score {record['public']}{private}")
    console.print_next("leaderboard", "--sort", "public_score")


def _validate(path: Path, form: Path | None, overrides: list[str], against: Path | None) -> "SubmissionReport":
    from comp.runtime.errors import ConfigError, SubmissionError
    from comp.submission import check_content, derive_format, derive_from_sample, validate

    if path.is_dir():
        raise SubmissionError(f"{path}: is a folder; name a submission in it")
    if not path.is_file():
        raise SubmissionError(f"{path}: no such submission")
    is_config = form is not None and form.suffix.lower() not in (".csv", ".zip")
    if overrides and not is_config:
        raise ConfigError(f"override '{overrides[0]}': needs a config; add --format CONFIG")
    training: list[int] = []
    notes: tuple[str, ...] = ()
    if form is None:
        expected = validate.read_sidecar_format(path)
    elif not is_config:
        derived = derive_from_sample.derive_from_sample(form, path)
        expected, notes = derived.format, derived.assumptions
    else:
        from comp import config as configs
        from comp.data.dataset import open_dataset

        loaded = configs.load(form, overrides)
        if loaded.plugins:
            raise ConfigError(
                f"--format {form}: has plug-ins, and checking a submission runs no code; leave --format out to take "
                "the format from the sidecar, or name the sample submission"
            )
        dataset = open_dataset(loaded)
        derived = derive_format.derive_format(dataset.competition)
        expected, notes = derived.format, derived.assumptions
        training = check_content.count_classes(dataset.train.labels, len(dataset.competition.classes))
    return validate.validate_submission(path, expected, training=training, against=against, notes=notes)
