"""The command: see the package."""

import argparse
import sys
from pathlib import Path

import benchmarks.results
from benchmarks.results import page, running
from comp.runtime.cores import default_threads
from comp.runtime.errors import UserError


def main() -> int:
    """Write the page, or run what is missing first."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.results", description=benchmarks.results.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    options.add_argument("what", nargs="?", choices=["run", "page"], default="page")
    options.add_argument("--runs", type=Path, default=Path("runs"), help="where run folders are")
    options.add_argument("--jobs", type=int, default=default_threads(), help="trainings at a time")
    options.add_argument(
        "--only", nargs="*", default=[], metavar="CONFIG", help="stems of configs/coursework, or first_principles"
    )
    given = options.parse_args()
    try:
        failed = running.run_all(given.runs, given.jobs, given.only) if given.what == "run" else 0
        page.write(given.runs)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
