"""Fetch a file over HTTP so that an interrupted fetch goes on where it stopped and a bad file never gets its name;
published datasets come through torchvision.
"""

import contextlib
import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from comp.results.files import make_folder
from comp.runtime.errors import DataError
from comp.runtime.progress import Progress

_CHUNK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 30
_ATTEMPTS = 4  # each goes on from the byte that the one before reached


def fetch(address: str, target: Path, check: Callable[[Path], object], progress: Progress) -> None:
    """Download `address` to `target`, by way of `target.part`.

    Args:
        address: http(s) address of the file.
        target: gets its name only when the size is what the server promised and `check` is content.
        check: raises DataError on a file that is not what was wanted.
        progress: in bytes.

    Raises:
        DataError: the server cannot be reached, has no such file, breaks off, or sends something else.
    """
    part = target.with_name(target.name + ".part")
    make_folder(target.parent)
    mend = f"put it in place: curl -L -C - -o '{target}' '{address}'"
    for attempt in range(_ATTEMPTS):
        try:
            total = _continue(address, part, progress)
        except urllib.error.HTTPError as error:
            error.close()
            raise DataError(f"{target.name}: {address} answered {error.code} {error.reason}; {mend}") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if attempt + 1 == _ATTEMPTS or not part.exists():
                raise DataError(f"{target.name}: could not be downloaded from {address} ({reason}); {mend}") from None
            continue
        if not total or part.stat().st_size == total:
            break
    size = part.stat().st_size
    if total and size != total:
        raise DataError(f"{target.name}: expected {total:,} bytes from {address}, got {size:,}; run again to go on")
    try:
        check(part)
    except DataError as error:
        part.unlink()  # going on from a wrong file would never mend it
        raise DataError(f"{error} (downloaded from {address})") from None
    part.replace(target)


def _continue(address: str, part: Path, progress: Progress) -> int:
    """Append what is missing of `part`; return the whole file's size, 0 where the server does not tell."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is left to send, or the file is another now
            error.close()
            whole = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
            if whole and int(whole[1]) == have:
                return have
            part.unlink()
            return _continue(address, part, progress)
        raise
    with contextlib.closing(response):
        resumed = response.status == 206
        length = int(response.headers.get("Content-Length", 0))
        done = have if resumed else 0
        total = done + length if length else 0
        with part.open("ab" if resumed else "wb") as file:
            while chunk := response.read(_CHUNK_BYTES):
                file.write(chunk)
                done += len(chunk)
                progress(part.name.removesuffix(".part"), done, total, "bytes")
    return total


def through_torchvision(name: str, root: Path, target: Path, allowed: bool) -> None:
    """Fetch and verify a published dataset through torchvision, which knows its addresses and checksums.

    Args:
        name: torchvision's class: `CIFAR10`, `MNIST`, ...
        root: where torchvision puts it.
        target: the folder or file that is missing, for the message.
        allowed: `data.download`.

    Raises:
        DataError: not allowed or not possible, with the command that puts it in place.
    """
    from torchvision import datasets

    dataset = getattr(datasets, name)
    if not allowed:
        raise DataError(f"{target}: {name} is missing and data.download is false; {_by_hand(dataset, root, target)}")
    try:
        dataset(str(root), download=True)
    except (OSError, RuntimeError) as error:
        mend = _by_hand(dataset, root, target)
        raise DataError(f"{target}: {name} is missing and could not be downloaded ({error}); {mend}") from None


def _by_hand(dataset: Any, root: Path, target: Path) -> str:
    if hasattr(dataset, "url"):
        return f"put it in place: curl -L '{dataset.url}' | tar -xz -C '{root}'"
    name = target.name + ".gz"
    return (
        f"put it in place, and its three companions: curl -L -o '{target.parent / name}' '{dataset.mirrors[0]}{name}'"
    )
