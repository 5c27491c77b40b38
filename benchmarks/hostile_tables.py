"""What it costs `comp check` to refuse a table that is none: CPU seconds and memory, beside a check of a good one.

    python -m benchmarks.hostile_tables [--runs 3]

Each check is a process of its own. Counted are its CPU seconds, of user and system, and the most memory that it held;
medians count. The promise is 2 seconds and 300 MB more than a good file of 30 rows. Prints Markdown.
"""

import argparse
import gzip
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

SAMPLE = "id,label\n" + "".join(f"{row}.png,{row % 3}\n" for row in range(30))
GOOD = "a good table"
_MIB = 1 << 20


def _sparse(path: Path, start: str) -> None:
    """Write a text, and NULs up to 1 GiB that take no room on the disk."""
    path.write_text(start)
    os.truncate(path, 1 << 30)


TABLES: dict[str, tuple[str, Callable[[Path], object]]] = {
    GOOD: ("good.csv", lambda path: path.write_text(SAMPLE)),
    "a header of a million columns": ("wide.csv", lambda path: path.write_text("column," * 10**6 + "x\n1,1\n")),
    "a first line of 1 GiB": ("line.csv", lambda path: _sparse(path, "id,label")),
    "a second line of 1 GiB": ("second.csv", lambda path: _sparse(path, "id,label\n")),
    "a line of 20 MB": ("long.csv", lambda path: path.write_text(SAMPLE + "x" * (20 * _MIB))),
    "a byte order mark in the middle": ("joined.csv", lambda path: path.write_text(SAMPLE + "\ufeff" + SAMPLE)),
    "a million rows, the last too long": ("ragged.csv", lambda path: path.write_text("id,label\n" * 10**6 + "1,2,3\n")),
    "640 MiB of line ends, packed": (
        "bomb.csv.gz", lambda path: path.write_bytes(gzip.compress(b"\n" * (16 * _MIB)) * 40),
    ),
}  # fmt: skip


def check(folder: Path, name: str) -> tuple[int, float, float]:
    """Return exit code, CPU seconds and MB of a check; a packed table is the sample, since no submission is packed."""
    words = [str(folder / name), "--format", str(folder / "sample.csv")]
    if name.endswith(".gz"):
        words = [str(folder / "good.csv"), "--format", str(folder / name)]
    pid = os.fork()
    if pid == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os.execv(sys.executable, [sys.executable, "-m", "comp", "check", *words])
    _, status, usage = os.wait4(pid, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6


def main() -> None:
    """Measure all tables and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="checks of each table")
    runs = parser.parse_args().runs
    rows: dict[str, tuple[int, float, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "sample.csv").write_text(SAMPLE)
        for what, (name, write) in TABLES.items():
            write(folder / name)
            results = [check(folder, name) for _ in range(runs)]
            codes, seconds, megabytes = zip(*results, strict=True)
            rows[what] = (max(codes), statistics.median(seconds), statistics.median(megabytes))
    _, seconds, megabytes = rows[GOOD]
    print(f"A good table: {seconds:.2f} CPU seconds, {megabytes:,.0f} MB.\n")
    print("| table | exit code | CPU seconds more | MB more |\n|---|---|---|---|")
    for what, (code, taken, held) in rows.items():
        if what != GOOD:
            print(f"| {what} | {code} | {taken - seconds:+.2f} | {held - megabytes:+,.0f} |")


if __name__ == "__main__":
    main()
