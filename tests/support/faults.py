"""What every fault must end with: exit code 0 or 2, one message, and nothing lost."""

import hashlib
from pathlib import Path

from tests.support.commands import Result, comp_process

INTERNAL = ("Traceback", "internal error", "Exception in thread", "Exception ignored")


def run_process(*arguments: object, cwd: Path, code: int | None = None, **options: object) -> Result:
    """Run `comp` in a process of its own; assert its exit code if one is given, and the rest as `assert_clean`."""
    done = comp_process(*arguments, cwd=cwd, **options)
    result = Result(done.returncode, done.stdout, done.stderr)
    assert_clean(result)
    assert code is None or result.code == code, f"exit code {result.code}, expected {code}:\n{result.out}{result.err}"
    return result


def assert_clean(result: Result) -> None:
    """Assert exit code 0 without an error, or exit code 2 with exactly one; no traceback either way."""
    printed = result.out + result.err
    for words in INTERNAL:
        assert words not in printed, printed
    assert result.code in (0, 2), f"exit code {result.code}:\n{printed}"
    assert count_messages(result) == (1 if result.code else 0), printed


def count_messages(result: Result) -> int:
    """Return how many errors a command printed: its own, or one of typer's boxes."""
    lines = result.err.splitlines()
    return sum(line.startswith(("error: ", "╭─ Error", "+- Error")) for line in lines)


def assert_fault(result: Result, *parts: str, longest: int = 800) -> None:
    """Assert that a command was refused in one message that has every part.

    Args:
        result: of the command.
        parts: what is wrong, where, and how to fix it, as words of the message; lines are joined before the search.
        longest: characters that a message may have.
    """
    assert_clean(result)
    assert result.code == 2, f"exit code {result.code}:\n{result.out}{result.err}"
    message = " ".join(result.err.split())
    for part in parts:
        assert part in message, f"expected {part!r} in:\n{result.err}"
    start = message.find("error: ")
    assert len(message) - max(start, 0) <= longest, result.err


def snapshot(*folders: Path, without: tuple[str, ...] = (".lock", ".tmp")) -> dict[str, str]:
    """Return path -> SHA-256 of every file below folders, or of a file itself.

    Args:
        folders: folders and files; a missing one has no files.
        without: endings of names that do not count: locks are made anew, temporary files are no result.
    """
    files = [path for folder in folders for path in ([folder] if folder.is_file() else sorted(folder.rglob("*")))]
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.is_file() and not path.name.endswith(without)
    }


def assert_unchanged(before: dict[str, str], *folders: Path, without: tuple[str, ...] = (".lock", ".tmp")) -> None:
    """Assert that every file of a snapshot still has its bytes; new files are allowed."""
    after = snapshot(*folders, without=without)
    lost = sorted(before.keys() - after.keys())
    changed = sorted(path for path in before.keys() & after.keys() if before[path] != after[path])
    assert not lost, f"lost: {lost}"
    assert not changed, f"changed: {changed}"
