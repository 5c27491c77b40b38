"""Arrays on disk: `.npy` headers and `.npz` archives, checked before memory is asked for. Torch-free.

All readers of arrays share this module, whether comp wrote the file or a stranger did: a header of a hundred bytes can
claim any shape and a member of an archive any size.
"""

import contextlib
import io
import math
import tokenize
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from comp.results import files

_MAGIC, _ARCHIVE = b"\x93NUMPY", b"PK\x03\x04"
_MAX_HEADER = 10_000  # bytes, as NumPy limits them: the text is parsed
# Version -> bytes of the header's length, and NumPy's parser. Version 3 only holds records with odd field names.
_FORMATS = {
    (1, 0): (2, np.lib.format.read_array_header_1_0),
    (2, 0): (4, np.lib.format.read_array_header_2_0),
}
# All that NumPy raises on a header's text, a Python literal: `((((` exhausts the parser, `'` its tokens.
_HEADER_ERRORS = (ValueError, TypeError, KeyError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError)


class ArrayError(ValueError):
    """Bytes that are no plain array, or not the one that their header promises.

    Attributes:
        cure: how to fix it, as the end of a message.
    """

    def __init__(self, what: str, cure: str = "fetch it again") -> None:
        super().__init__(what)
        self.cure = cure


class Header(NamedTuple):
    """What a `.npy` says of its array.

    Attributes:
        shape: no number is below 0.
        fortran: whether the first axis varies fastest.
        dtype: plain numbers or text.
        start: bytes before the values.
    """

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    start: int

    @property
    def end(self) -> int:
        """Bytes of the whole file."""
        return self.start + math.prod(self.shape) * self.dtype.itemsize


def read_header(file: IO[bytes], size: int) -> Header:
    """Return the header of a `.npy` of `size` bytes.

    Raises:
        ArrayError: another format, objects or records, or more values than the file has bytes.
    """
    truncated = ArrayError(f"is truncated ({size:,} bytes are fewer than its header promises)")
    magic = file.read(len(_MAGIC) + 2)
    if magic.startswith(_ARCHIVE):
        raise ArrayError("expected one array (.npy), found an archive", "rename it to .npz")
    if magic[:6] != _MAGIC[: len(magic)]:
        raise ArrayError("is not a NumPy .npy file", "save it with numpy.save")
    if len(magic) < len(_MAGIC) + 2:
        raise truncated
    if (magic[6], magic[7]) not in _FORMATS:
        raise ArrayError(f"is a .npy of version {magic[6]}.{magic[7]}, expected 1.0 or 2.0", "save it with numpy.save")
    width, parse = _FORMATS[magic[6], magic[7]]
    prefix = file.read(width)
    length = int.from_bytes(prefix, "little")
    if length > _MAX_HEADER:
        raise ArrayError(f"is damaged: its header has {length:,} bytes, expected at most {_MAX_HEADER:,}")
    text = file.read(length)
    if len(prefix) + len(text) < width + length:
        raise truncated
    try:
        shape, fortran, dtype = parse(io.BytesIO(prefix + text))
    except _HEADER_ERRORS as error:
        reason = str(error).partition("\n")[0][:120] or type(error).__name__
        raise ArrayError(f"is damaged: its header cannot be read ({reason})") from None
    _check_type(dtype)
    header = Header(shape, fortran, dtype, len(magic) + width + length)
    if any(number < 0 for number in shape):
        raise ArrayError(f"is damaged: its header has the shape {list(shape)}, expected no number below 0")
    if header.end > size or (not dtype.itemsize and math.prod(shape) > size):
        raise truncated
    return header


def _check_type(dtype: np.dtype[Any]) -> None:
    if dtype.hasobject:
        raise ArrayError(
            "holds pickled Python objects, which are refused since they can run code", "save a plain uint8 array"
        )
    if dtype.kind == "V" or dtype.subdtype:
        described = f"records with the fields {', '.join(dtype.names)}" if dtype.names else f"values of type {dtype}"
        raise ArrayError(f"holds {described}, expected plain numbers or text", "save each field as an array of its own")


def map_array(path: Path) -> NDArray[Any]:
    """Return a memory map of a `.npy`.

    Raises:
        OSError: missing or not readable.
        ArrayError: see `read_header`.
    """
    with path.open("rb") as file:
        header = read_header(file, path.stat().st_size)
    return _map(path, header, header.start)


def _map(path: Path, header: Header, start: int) -> NDArray[Any]:
    return np.memmap(path, header.dtype, "r", start, header.shape, "F" if header.fortran else "C")


class ArrayArchive(Mapping[str, NDArray[Any]]):
    """The arrays of an open `.npz` by name. Each is read, and its checksum compared, when it is asked for."""

    def __init__(self, opened: zipfile.ZipFile, path: Path) -> None:
        self._opened, self._path, self._size = opened, path, path.stat().st_size
        self._members = {entry.filename.removesuffix(".npy"): entry for entry in opened.infolist()}
        if len(self._members) < len(opened.infolist()):
            raise ArrayError("holds two arrays of the same name")

    @property
    def file_names(self) -> list[str]:
        """The members as the archive names them: `.npy` files, unless a stranger wrote it."""
        return self._opened.namelist()

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, name: object) -> bool:  # the inherited one would read the array
        return name in self._members

    def __getitem__(self, name: str) -> NDArray[Any]:
        try:
            self._check(name)
            with self._opened.open(self._members[name]) as file:
                array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        except ArrayError as error:
            raise ArrayError(f"{name} {error}", error.cure) from None
        return array

    def _check(self, name: str) -> Header:
        entry = self._members[name]
        check_member(entry, self._size)
        with self._opened.open(entry) as file:
            header = read_header(file, entry.file_size)
        if header.end != entry.file_size:
            raise ArrayError(f"has {entry.file_size:,} bytes, expected the {header.end:,} that its header promises")
        return header

    def open(self, name: str) -> NDArray[Any]:
        """Return an array: a memory map if it is not compressed; its checksum is not compared."""
        header, entry = self._check(name), self._members[name]
        if entry.compress_type != zipfile.ZIP_STORED:
            return self[name]
        with self._path.open("rb") as raw:  # the local header's two lengths may differ from the directory's
            raw.seek(entry.header_offset + 26)
            name_bytes = sum(int.from_bytes(raw.read(2), "little") for _ in range(2))
        start = entry.header_offset + 30 + name_bytes
        if start + header.end > self._size:
            raise ArrayError("is truncated")
        return _map(self._path, header, start + header.start)

    def check_members(self) -> None:
        """Check the sizes of all members, then their checksums.

        Raises:
            ArrayError: naming the first that is damaged.
        """
        for entry in self._members.values():
            check_member(entry, self._size)
        if broken := self._opened.testzip():
            raise ArrayError(f"is damaged: member {broken} fails its checksum")


def check_member(entry: zipfile.ZipInfo, archive_bytes: int) -> None:
    """Check the size that a member of an archive claims, before it is unpacked.

    Raises:
        ArrayError: it cannot be, or is that of a decompression bomb.
    """
    packed = min(entry.compress_size, archive_bytes)
    if entry.compress_type == zipfile.ZIP_STORED and entry.file_size > packed:
        raise ArrayError(f"is damaged: claims {entry.file_size:,} bytes, and has {packed:,}")
    if problem := files.unpacking_problem(entry.file_size, packed):
        raise ArrayError(problem, "unpack it yourself if you trust it")


@contextlib.contextmanager
def open_arrays(path: Path) -> Iterator[ArrayArchive]:
    """Open a `.npz` to read its arrays by name; the caller handles `files.READ_ERRORS`."""
    with path.open("rb") as file:
        start = file.read(4)
        if start != _ARCHIVE:
            raise ArrayError("not a .npz file" if start else "empty file")
        with zipfile.ZipFile(file) as opened:
            yield ArrayArchive(opened, path)
