"""Resumable, validated downloads over HTTP, and published datasets through torchvision."""

import contextlib
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from comp.results.files import hold_folder, make_folder, remove
from comp.runtime.errors import DataError
from comp.runtime.progress import Progress

_CHUNK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 30
_ATTEMPTS = 4  # each resumes where the last one stopped


def fetch(address: str, target: Path, validate: Callable[[Path], object], progress: Progress) -> None:
    """Download `address` to `target`, via `target.part`.

    Args:
        address: http(s) address of the file.
        target: exists only once the size is right and `validate` passes.
        validate: raises DataError on a wrong file.
        progress: in bytes.

    Raises:
        DataError: the server cannot be reached, has no such file, breaks off, or sends a wrong file.
    """
    make_folder(target.parent)
    waiting = partial(progress, f"{target.name}, which another process downloads", 0, 0, "bytes")
    with hold_folder(target.parent, waiting):
        if not target.exists():
            _fetch(address, target, validate, progress)


def _fetch(address: str, target: Path, validate: Callable[[Path], object], progress: Progress) -> None:
    part = target.with_name(target.name + ".part")
    hint = f"download it yourself: curl -L -C - -o '{target}' '{address}'"
    for attempt in range(_ATTEMPTS):
        try:
            total = _resume(address, part, progress)
        except urllib.error.HTTPError as error:
            error.close()
            raise DataError(f"{target.name}: {address} answered {error.code} {error.reason}; {hint}") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if attempt + 1 == _ATTEMPTS or not part.exists():
                raise DataError(f"{target.name}: could not be downloaded from {address} ({reason}); {hint}") from None
            continue
        if not total or part.stat().st_size == total:
            break
    size = part.stat().st_size
    if total and size != total:
        raise DataError(f"{target.name}: expected {total:,} bytes from {address}, got {size:,}; run again to resume")
    try:
        validate(part)
    except DataError as error:
        remove(part, inside=part.parent)  # a wrong file cannot be resumed
        raise DataError(f"{error} (downloaded from {address})") from None
    part.replace(target)


def _resume(address: str, part: Path, progress: Progress) -> int:
    """Download the rest of `part`; return the complete file's size, 0 if the server does not send it."""
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing left to send, or the file changed
            error.close()
            size = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
            if size and int(size[1]) == start:
                return start
            remove(part, inside=part.parent)
            return _resume(address, part, progress)
        raise
    with contextlib.closing(response):
        resumed = response.status == 206
        length = int(response.headers.get("Content-Length", 0))
        done = start if resumed else 0
        total = done + length if length else 0
        with part.open("ab" if resumed else "wb") as file:
            while chunk := response.read(_CHUNK_BYTES):
                file.write(chunk)
                done += len(chunk)
                progress(part.name.removesuffix(".part"), done, total, "bytes")
    return total


def download_with_torchvision(name: str, root: Path, target: Path, allowed: bool) -> None:
    """Download a published dataset through torchvision, which has its addresses and checksums.

    Args:
        name: torchvision class: `CIFAR10`, `MNIST`, ...
        root: torchvision's data folder.
        target: the missing folder or file, for the message.
        allowed: `data.download`.

    Raises:
        DataError: not allowed or failed, with a command that downloads it.
    """
    from torchvision import datasets

    dataset = getattr(datasets, name)
    if not allowed:
        raise DataError(
            f"{target}: {name} is missing and data.download is false; {_manual_command(dataset, root, target)}"
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
        with hold_folder(root):
            if not target.exists():  # else another process has just downloaded it
                _download_aside(dataset, root, target)
    except (OSError, RuntimeError) as error:
        hint = _manual_command(dataset, root, target)
        raise DataError(f"{target}: {name} is missing and could not be downloaded ({error}); {hint}") from None


def _download_aside(dataset: Any, root: Path, target: Path) -> None:
    """Download and unpack a dataset in a folder of its own, then move its files: `target` last, so that it is whole."""
    staging, inner = root / f".{dataset.__name__}.download", target.relative_to(root)
    staging.mkdir(exist_ok=True)
    if archive := getattr(dataset, "filename", ""):  # one that was downloaded by hand is only unpacked
        with contextlib.suppress(OSError):
            os.link(root / archive, staging / archive)
    dataset(str(staging), download=True)
    for path in sorted(path for path in staging.rglob("*") if path.is_file()):
        name = path.relative_to(staging)
        if inner not in (name, *name.parents):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            path.replace(root / name)
    target.parent.mkdir(parents=True, exist_ok=True)
    (staging / inner).replace(target)
    remove(staging, inside=root)


def _manual_command(dataset: Any, root: Path, target: Path) -> str:
    if hasattr(dataset, "url"):
        return f"download it yourself: curl -L '{dataset.url}' | tar -xz -C '{root}'"
    name = target.name + ".gz"
    command = f"curl -L -o '{target.parent / name}' '{dataset.mirrors[0]}{name}'"
    return f"download it and its three companions yourself: {command}"
