"""How long `comp --help` takes, warm, beside a bare Python start: medians of interleaved runs.

python -m benchmarks.startup [--runs 21]
"""

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "comp --help": [sys.executable, "-m", "comp", "--help"],
    "comp --version": [sys.executable, "-m", "comp", "--version"],
}


def seconds(command: list[str]) -> float:
    """Return the wall seconds of one run."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=21)
    count = parser.parse_args().runs
    for command in COMMANDS.values():
        seconds(command)  # warms the file cache
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(count):
        for name, command in COMMANDS.items():
            taken[name].append(seconds(command))
    print("| command | median s | lowest | highest |\n|---|---|---|---|")
    for name, values in taken.items():
        print(f"| `{name}` | {statistics.median(values):.3f} | {min(values):.3f} | {max(values):.3f} |")


if __name__ == "__main__":
    main()
