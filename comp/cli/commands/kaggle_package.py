"""Pack a run for a code competition: the work of `comp export --kaggle`."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comp.results.runs import Run


def package(
    run: "Run",
    folder: Path,
    *,
    competition: str,
    owner: str,
    title: str = "",
    image_packages: Path | None = None,
    verify: bool = False,
    rows: int | None = None,
    limit: str = "9h",
    as_json: bool = False,
) -> None:
    """Write the package, verify it if asked to, and print what it holds."""
    from comp.cli import console
    from comp.config import parse_duration
    from comp.results import files
    from comp.runtime.errors import ConfigError, Interrupted
    from comp.workflows import kaggle_package, kaggle_verify, kaggle_wheels

    if rows is not None and not verify:
        raise ConfigError("--rows: is what --verify extrapolates to; add --verify, or leave it out")
    try:
        limit_seconds = parse_duration(limit)
    except ValueError:
        raise ConfigError(f"--limit: expected a time such as 90s, 15min or 9h, found '{limit}'") from None
    names = kaggle_package.check_names(run, competition=competition, owner=owner, title=title)
    files.check_new_folder(folder)
    image = kaggle_wheels.read_image(image_packages)
    if verify:
        kaggle_verify.check_tools(image)
    with console.bars() as progress:
        record = kaggle_package.write_package(folder, run, names, image, progress=progress)
        if not as_json:
            size = f"{len(record['wheels'])} wheels, {record['bytes'] / 1e6:.1f} MB"
            console.print_line(f"{folder}: {record['run']} and {size}, for {names.id} and competition {competition}")
        if image.note and not as_json:
            console.print_note(image.note)
        if verify:
            try:
                measured = kaggle_verify.verify(
                    folder, run, image, limit_seconds=limit_seconds, rows=rows, progress=progress
                )
            except Interrupted:  # the same command packs and verifies again
                files.remove(folder, inside=folder.parent, marks=(kaggle_package.RECORD,))
                raise
    if as_json:
        console.print_json(files.read_json(folder / kaggle_package.RECORD))
    elif verify:
        console.print_line(
            f"verified: the notebook writes the CSV of comp predict: {measured['rows']:,} rows in "
            f"{measured['seconds']:.1f} s and {measured['peak_bytes'] / 1e6:,.0f} MB (network: {measured['network']}); "
            f"{measured['hidden_rows']:,} rows would take {measured['hidden_seconds']:,.0f} s of {limit_seconds:,.0f}"
        )
