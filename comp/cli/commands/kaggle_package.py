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
    from comp.results import files
    from comp.runtime.errors import ConfigError, Interrupted, plural
    from comp.workflows import kaggle_package, kaggle_verify

    if rows is not None and not verify:
        raise ConfigError("--rows: is what --verify extrapolates to; add --verify, or leave it out")
    names, image, limit_seconds = kaggle_verify.check_request(
        run,
        folder,
        competition=competition,
        owner=owner,
        title=title,
        image_packages=image_packages,
        limit=limit,
        verify=verify,
    )
    with console.bars() as progress:
        record = kaggle_package.write_package(folder, run, names, image, progress=progress)
    if not as_json:
        size = f"{plural(len(record['wheels']), 'wheel')}, {record['bytes'] / 1e6:.1f} MB"
        console.print_line(f"packed      {record['run']} and {size}, for {names.id} and competition {competition}")
        if image.note:
            console.print_note(image.note)
    if verify:
        try:
            with console.bars() as progress:
                measured = kaggle_verify.verify(
                    folder, run, image, limit_seconds=limit_seconds, rows=rows, progress=progress
                )
        except Interrupted:  # the same command packs and verifies again
            files.remove(folder, inside=folder.parent, marks=(kaggle_package.RECORD,))
            raise
    if as_json:
        console.print_json(files.read_json(folder / kaggle_package.RECORD))
        return
    if verify:
        console.print_text(
            f"verified    the notebook writes the CSV of comp predict: {plural(measured['rows'], 'row')} in "
            f"{measured['seconds']:.1f} s and {measured['peak_bytes'] / 1e6:,.0f} MB (network: {measured['network']}); "
            f"{plural(measured['hidden_rows'], 'row')} would take {measured['hidden_seconds']:,.0f} s of "
            f"{limit_seconds:,.0f}"
        )
    console.print_written(folder)
    console.print_next("submit", "--kernel", folder)
