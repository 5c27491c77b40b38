"""`comp check`, `comp diff` and `comp submit`, of a CSV or a notebook."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comp.cli.commands.options import RUNS, AsJson, Overrides, RunsRoot, expand_path, find_config
from comp.runtime.errors import plural

if TYPE_CHECKING:
    from comp.submission.validate import SubmissionReport


def find_submission(path: Path | None) -> Path | None:
    """Return a submission's path, at which its CSV lies if a kill came between two renames."""
    from comp.submission.write import finish_interrupted

    if path is not None:
        finish_interrupted(path)
    return path


_CSV = typer.Argument(metavar="CSV", help="Submission file.", callback=find_submission)
CSVPath = Annotated[Path, _CSV]
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
    path: Annotated[Path | None, _CSV] = None,
    overrides: Overrides = None,
    *,
    competition: Annotated[
        str | None, typer.Option("--competition", metavar="SLUG", help="Name in the competition's Kaggle URL.")
    ] = None,
    message: Annotated[str | None, typer.Option("-m", "--message", help="Description shown on Kaggle.")] = None,
    form: Format = None,
    against: Against = None,
    kernel: Annotated[
        Path | None,
        typer.Option("--kernel", metavar="DIR", help="Push a package of `comp export --kaggle`.", callback=expand_path),
    ] = None,
    no_submit: Annotated[bool, typer.Option("--no-submit", help="With --kernel: only run the notebook.")] = False,
    wait: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long to wait. Default: 10min; 9h with --kernel.")
    ] = None,
    runs: RunsRoot = RUNS,
    force: Annotated[bool, typer.Option("--force", help="Send despite warnings, or send again.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check a submission, send it to Kaggle and record its score.

    With --kernel, uploads the package's dataset, pushes its notebook, waits
    until it has run, submits its output and fetches log and score.

    Example: comp submit submissions/quickstart.csv --competition digit-recognizer --message "first try"
    """
    from comp.cli import console
    from comp.runtime.errors import SubmissionError
    from comp.submission import kaggle, kaggle_client

    if kernel is not None:
        given = {"CSV": path, "--competition": competition, "--format": form, "--against": against}
        if extra := [name for name, value in given.items() if value is not None]:
            raise SubmissionError(f"--kernel {kernel}: names all that is sent; leave {extra[0]} out")
        _submit_kernel(kernel, _read_wait(wait or "9h"), runs, message or "", not no_submit, force, as_json)
        return
    if path is None or competition is None or message is None or no_submit:
        raise SubmissionError(
            "expected a CSV, --competition SLUG and --message TEXT, or a package: --kernel DIR, maybe with --no-submit"
        )
    seconds = _read_wait(wait or "10min")
    verdict = _validate(path, form, overrides or [], against)
    if not force or verdict.problems:
        verdict.raise_if_invalid(hint="\n  send it anyway with --force")
    with console.bars() as progress:
        client, waiting = kaggle_client.KaggleClient, kaggle.Wait(seconds, progress)
        record = kaggle.submit(path, client, competition=competition, message=message, wait=waiting, again=force)
    if as_json:
        console.print_json(record)
        return
    console.print_line(f"{path}: {_describe_score(record)}")
    console.print_next("leaderboard", "--sort", "public_score")


def _describe_score(record: dict[str, Any]) -> str:
    private = "" if record["private"] is None else f", private {record['private']}"
    return f"submission {record['reference']}, public score {record['public']}{private}"


def _submit_kernel(
    folder: Path, seconds: float, runs: Path, message: str, submit: bool, force: bool, as_json: bool
) -> None:
    from comp.cli import console
    from comp.submission import check_package, kaggle, kaggle_kernel
    from comp.submission.kaggle_client import KaggleClient

    package = check_package.read_package(folder)
    if not package.verified:
        console.print_note(f"{folder}: not verified: comp export --verify tries the notebook before Kaggle does")
    with console.bars() as progress:
        record = kaggle_kernel.submit_kernel(
            package,
            lambda: KaggleClient(f"comp submit --kernel {folder}", "the package is kept"),
            wait=kaggle.Wait(seconds, progress),
            runs_root=runs,
            message=message or Path(package.run_path).name,
            submit=submit,
            again=force,
        )
    if as_json:
        console.print_json(record)
        return
    console.print_line(f"{folder}: notebook version {record['kernel']['version']} has run: {record['kernel']['url']}")
    if record["submission"] is None:
        console.print_written(folder / kaggle_kernel.CSV)
        console.print_next("submit", "--kernel", folder)
        return
    console.print_line(f"{folder}: {_describe_score(record['submission'])}")
    if not record["run"]:
        console.print_note(
            f"no run in {runs} is the exported one: its score is in {folder / kaggle_kernel.STATE} alone"
        )
    console.print_next("leaderboard", "--sort", "public_score")


def _read_wait(text: str) -> float:
    from comp.config import parse_duration
    from comp.runtime.errors import ConfigError

    try:
        return float(text) if text.replace(".", "", 1).isdecimal() else parse_duration(text)
    except ValueError as error:
        raise ConfigError(f"--wait: expected seconds, or {error}; found '{text}'") from None


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
