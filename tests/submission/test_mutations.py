"""Random mutations of a valid CSV, compared with an independent regular expression."""

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from comp.results import blocks
from comp.runtime.errors import SubmissionError
from comp.submission import check_format
from comp.submission.format import SubmissionFormat

FORMAT = SubmissionFormat(blocks.block_grid(range(2), range(1, 3), 3), texts=tuple(map(str, range(12))))
IDS = [f"distortion{d:02d}_{s}_{i}" for d in range(2) for s in range(1, 3) for i in range(3)]


def cell(text: bytes) -> bytes:
    """Return a pattern of a cell, bare or quoted."""
    return b'(?:%s|"%s")' % (text, text)


HEADER = re.compile(cell(b"id") + b"," + cell(b"label"))
ROW = re.compile(b'(?:("?)(distortion[0-9_]+)\\1),' + cell(b"(?:[0-9]|1[01])"))


def is_valid(content: bytes) -> bool:
    """Return whether a file is valid by regular expressions: the same line endings, every id once, in any order."""
    for end in (b"\n", b"\r\n"):
        lines = content.removesuffix(end).split(end)
        rows = [ROW.fullmatch(line) for line in lines[1:]]
        if HEADER.fullmatch(lines[0]) and all(rows):
            return sorted(row[2].decode() for row in rows if row) == sorted(IDS)
    return False


def is_accepted(path: Path, content: bytes) -> bool:
    """Return whether the checker finds no problem."""
    path.write_bytes(content)
    try:
        return not check_format.check_file(path, FORMAT)
    except SubmissionError:
        return False


Mutation = Callable[[random.Random, bytes], bytes]


def change_byte(draw: random.Random, content: bytes) -> bytes:
    """Replace, insert or delete a byte."""
    position = draw.randrange(len(content) + 1)
    replacement = draw.choice(
        [b"", *[bytes([b]) for b in b'\x00\t\n\r ",0123456789;_aA.-+\x80\xa0\xc3\xff\xfe'], b"\r\n", b'""']
    )
    return content[:position] + replacement + content[position + draw.randrange(2) :]


def change_line(draw: random.Random, content: bytes) -> bytes:
    """Drop, repeat, swap or cut a line, or insert an empty one."""
    lines = content.split(b"\n")
    line = draw.randrange(len(lines))
    kind = draw.choice(["drop", "repeat", "swap", "empty", "cut"])
    if kind == "drop":
        del lines[line]
    elif kind == "repeat":
        lines.insert(draw.randrange(len(lines) + 1), lines[line])
    elif kind == "swap":
        other = draw.randrange(len(lines))
        lines[line], lines[other] = lines[other], lines[line]
    elif kind == "empty":
        lines.insert(line, b"")
    else:
        lines[line] = lines[line].partition(b",")[0]
    return b"\n".join(lines)


LABELS = ["0", "11", "12", "-1", "-0", "+1", "01", "1.0", "1e0", "", "nan", "NaN", "None", " 3", "3 ", "cat", "٣", "３",
          "0x1", "1_0", "99999999999999999999", "True", "=1", "'3'"]  # fmt: skip


def change_label(draw: random.Random, content: bytes) -> bytes:
    """Give a row another label, valid or invalid."""
    lines = content.split(b"\n")
    line = draw.randrange(len(lines))
    label = draw.choice([*LABELS, *[str(draw.randrange(14)) for _ in LABELS]])
    lines[line] = lines[line].partition(b",")[0] + b"," + label.encode()
    return b"\n".join(lines)


def quote_line(line: bytes) -> bytes:
    """Quote the first two cells."""
    return b'"%s","%s"' % tuple(line.split(b",")[:2]) if line.count(b",") else line


def change_all(draw: random.Random, content: bytes) -> bytes:
    """Change every line as other programs might."""
    changes: list[Callable[[bytes], bytes]] = [
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: text.replace(b"\n", b"\r"),
        lambda text: b"\n".join(map(quote_line, text.split(b"\n"))),
        lambda text: re.sub(rb"distortion\d+_\d_\d", lambda match: b'"%s"' % match[0], text),
        lambda text: text.replace(b"\n", b",\n"),
        lambda text: text.replace(b",", b";"),
        lambda text: text.replace(b",", b", "),
        lambda text: text.replace(b"\n", b"\n\n"),
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text.decode("latin-1").encode("utf-16"),
        lambda text: text.decode("latin-1").encode("utf-16-le"),
        lambda text: text.rstrip(b"\n"),
        lambda text: text + b"\n",
        lambda text: text.upper(),
        lambda text: b"\n".join([text.split(b"\n")[0], *sorted(text.split(b"\n")[1:])]),
        lambda text: b"\n".join(b",".join(reversed(line.split(b","))) for line in text.split(b"\n")),
        lambda text: b"\n".join(b"%d,%s" % row for row in enumerate(text.split(b"\n"))),
        lambda text: text + text,
        lambda text: text + text.partition(b"\n")[2],
        lambda text: text[: draw.randrange(len(text) + 1)],
    ]
    return draw.choice(changes)(content)


MUTATORS: tuple[Mutation, ...] = (change_byte, change_line, change_label, change_all)


@pytest.mark.parametrize("mutations", [2_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_random_mutations_are_accepted_exactly_if_they_are_valid(tmp_path: Path, mutations: int) -> None:
    draw = random.Random(7)
    valid = 0
    for number in range(mutations):
        rows = [f"{key},{draw.randrange(12)}" for key in IDS]
        content = "\n".join(["id,label", *rows, ""]).encode()
        for _ in range(draw.choice([0, 1, 1, 1, 2, 3])):
            content = draw.choice(MUTATORS)(draw, content)
        expected = is_valid(content)
        valid += expected
        assert is_accepted(tmp_path / "a.csv", content) == expected, (number, content)
    assert 0.2 < valid / mutations < 0.5  # both cases are frequent
