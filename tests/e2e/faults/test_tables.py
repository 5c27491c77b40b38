"""Tables that are none: refused in one message before they fill memory, however large."""

import gzip
import os
import resource
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.commands import Result, assert_refused
from tests.support.configs import small_config, write_config

Comp = Callable[..., Result]
Write = Callable[[Path], object]
SAMPLE = "id,label\n" + "".join(f"{row}.png,{row % 3}\n" for row in range(30))
_MIB = 1 << 20


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a sample submission, 30 images with a table, and `table.yaml`, which reads them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sample.csv").write_text(SAMPLE)
    (tmp_path / "data" / "train").mkdir(parents=True)
    for row in range(30):
        Image.fromarray(np.full((32, 32, 3), row, np.uint8)).save(tmp_path / "data" / "train" / f"{row}.png")
    (tmp_path / "data" / "train.csv").write_text(SAMPLE)
    values = small_config(tmp_path / "data")
    values["data"]["source"] = "csv_images"
    values["competition"] = {"name": "table", "suite": {"source": "none"}}
    write_config(tmp_path / "table.yaml", values)
    return tmp_path


def content(text: str | bytes) -> Write:
    """Return a writer of a file's bytes."""
    return lambda path: path.write_bytes(text.encode() if isinstance(text, str) else text)


def sparse(start: bytes, size: int) -> Write:
    """Return a writer of a file that takes no room on the disk: some bytes and NULs up to a size."""

    def write(path: Path) -> None:
        path.write_bytes(start)
        os.truncate(path, size)

    return write


# What a table holds -> what is said of it, whoever reads it.
TABLES: dict[str, tuple[Write, str]] = {
    "a header of a million columns": (
        content(",".join(f"column{number}" for number in range(10**6)) + "\n" + "1," * 10),
        "the header has 1,000,000 columns, expected at most 300,000",
    ),
    "a header of a million tabs": (content("\t" * 10**6 + "\n"), "the header has 1,000,001 columns"),
    "a million columns in one line": (content("7," * 10**6), "the header has 1,000,001 columns"),
    "one line of 1 GB": (sparse(b"id,label", 1 << 30), "the line from byte 0 on is longer than 16 MiB"),
    "a second line of 1 GB": (sparse(b"id,label\n", 1 << 30), "the line from byte 9 on is longer than 16 MiB"),
    "a line of 20 MB": (content(SAMPLE + "x" * (20 * _MIB)), "is longer than 16 MiB; expected one row on each line"),
    "a byte order mark in the middle": (
        content(SAMPLE + "\ufeff" + SAMPLE), "line 32 starts with a byte order mark, as where two files were joined",
    ),
    "a NUL": (content(SAMPLE.replace("7", "\0")), "contains NUL bytes"),
    "UTF-16 without a mark": (content(SAMPLE.encode("utf-16-le")), "NUL bytes"),
    "Latin-1": (content(SAMPLE.encode() + b"caf\xe9.png,1\n"), "not UTF-8 text (byte 272)"),
    "nothing": (content(""), "is empty; expected a header line"),
    "spaces": (content(" \n \n"), "is empty; expected a header line"),
}  # fmt: skip
# The same of a submission, whose form is strict.
SUBMISSIONS: dict[str, tuple[Write, str]] = {
    "an open quote": (content(SAMPLE + '"30.png,1\n'), "not a CSV from line 32 on: unexpected end of data; is a quote"),
    "an open quote before 200 kB": (
        content(SAMPLE.replace("2.png", '"2.png', 1) + "x,1\n" * 50_000), "not a CSV from line 4 on: field larger than",
    ),
    "text after a quote": (content('id,label\n"a"b,1\n'), "not a CSV from line 2 on: ',' expected after"),
    "a column that is there twice": (content(SAMPLE.replace("id,label", "id,id")), "header: expected 'id,label'"),
    "mixed line ends": (content(SAMPLE.replace("\n", "\r\n", 3)), "mixed line endings (CR, LF, CRLF)"),
    "old line ends": (content(SAMPLE.replace("\n", "\r")), "mixed line endings (CR, LF, CRLF)"),
    "a mark at the start": (content("\ufeff" + SAMPLE), "starts with a byte order mark"),
    "UTF-16": (content(SAMPLE.encode("utf-16")), "found a UTF-16 byte order mark"),
    "a row that is too long": (content(SAMPLE + "30.png,1,2\n"), "line 32 has 3 cells, the header 2"),
    "a row that is too short": (content(SAMPLE + "30.png\n"), "line 32 has 1 cells, the header 2"),
}  # fmt: skip
# And of a training table, which is read as pandas reads it.
TRAINING: dict[str, tuple[Write, str]] = {
    "an open quote": (content(SAMPLE + '"30.png,1\n'), "a quote is opened and not closed; close it"),
    "a row that is too long": (
        content(SAMPLE + "30.png,1,2\n"),
        "as many cells in every row as in the header",
    ),
    "a pixel that is there twice": (
        content(",".join(["label", *(f"pixel{number % 64}" for number in range(65))]) + "\n" + "1," * 65 + "1\n"),
        "the column 'pixel0' is there twice; remove one of them",
    ),
}


@pytest.mark.parametrize("what", [*TABLES, *SUBMISSIONS])
def test_a_submission_that_is_no_table_is_refused(place: Path, comp: Comp, what: str) -> None:
    write, part = (TABLES | SUBMISSIONS)[what]
    write(Path("big.csv"))
    assert_refused(comp("check", "big.csv", "--format", "sample.csv"), "big.csv", part)


@pytest.mark.parametrize("what", [*TABLES, *TRAINING])
def test_a_training_table_that_is_none_is_refused(place: Path, comp: Comp, what: str) -> None:
    write, part = (TABLES | TRAINING)[what]
    write(Path("data/train.csv"))
    assert_refused(comp("config", "check", "table.yaml", "--data"), "train.csv", part)


@pytest.mark.parametrize(
    "what", ["one line of 1 GB", "a header of a million columns", "a byte order mark in the middle"]
)
def test_a_sample_submission_that_is_no_table_is_refused(place: Path, comp: Comp, what: str) -> None:
    write, part = TABLES[what]
    write(Path("sample.csv"))
    Path("big.csv").write_text(SAMPLE)
    assert_refused(comp("check", "big.csv", "--format", "sample.csv"), "sample.csv", part)


def bomb(path: Path) -> None:
    """Write 640 MiB of line ends as 40 gzip members, 640 KiB in all."""
    path.write_bytes(gzip.compress(b"\n" * (16 * _MIB)) * 40)


def archived(text: bytes) -> Write:
    """Return a writer of an archive with one table."""

    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("train.csv", text)

    return write


PACKED: dict[str, tuple[str, Write, str]] = {
    "one packed line of 320 MiB": (
        "train.csv.gz", lambda p: p.write_bytes(gzip.compress(bytes(16 * _MIB)) * 20), "is longer than 16 MiB",
    ),
    "one line of 17 MiB in an archive": ("train.csv.zip", archived(bytes(17 * _MIB)), "is longer than 16 MiB"),
    "half a packed table": ("train.csv.gz", content(gzip.compress(SAMPLE.encode())[:90]), "decompressed"),
    "text as .gz": ("train.csv.gz", content(SAMPLE), "cannot be decompressed"),
    "text as .zip": ("train.csv.zip", content(SAMPLE), "cannot be read as a ZIP archive"),
}  # fmt: skip


@pytest.mark.parametrize("what", [*PACKED, pytest.param("640 MiB of line ends", marks=pytest.mark.slow)])
def test_a_packed_table_that_is_none_is_refused(place: Path, comp: Comp, what: str) -> None:
    name, write, part = {**PACKED, "640 MiB of line ends": ("train.csv.gz", bomb, "decompression bomb")}[what]
    Path("data/train.csv").unlink()
    write(Path("data") / name)
    assert_refused(comp("config", "check", "table.yaml", "--data"), name, part)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["one line of 1 GB", "a header of a million columns"])
def test_a_check_needs_less_than_300_mb_more_than_a_good_one(place: Path, what: str) -> None:
    """A process whose address space ends 300 MB above what the check of a good file takes."""
    program = (
        "import resource, sys; from comp.cli import app\n"
        "limit = int(sys.argv.pop(1))\n"
        "if limit: resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "try: app.main(sys.argv[1:])\n"
        "finally: print(open('/proc/self/status').read().split('VmPeak:')[1].split()[0], file=sys.stderr)"
    )

    def check(path: str, limit: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, str(limit), "check", path, "--format", "sample.csv"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    good = check("sample.csv", resource.RLIM_INFINITY if resource.RLIM_INFINITY > 0 else 0)
    assert good.returncode == 0, good.stderr
    peak = int(good.stderr.split()[-1]) << 10
    write, part = TABLES[what]
    write(Path("big.csv"))
    refused = check("big.csv", peak + 300 * _MIB)
    assert refused.returncode == 2, refused.stderr
    assert part in refused.stderr
