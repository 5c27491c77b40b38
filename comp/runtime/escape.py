r"""Text from files, folders and the command line, made harmless where it is shown; one function for each place.

Names of classes, files, runs and studies come from others: they may hold escape codes, characters that turn the reading
direction (CVE-2021-42574), tags, or formulas. What cannot be seen is written as Python writes it: `\x1b`, `\u202e`.
Text without such characters stays as it is.
"""

import html
import json
import re

# Controls without tab and newline, marks and overrides of direction, line separators, surrogates of undecodable bytes.
_UNSEEN = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff"
_HIDDEN = re.compile(f"[{_UNSEEN}]")
_HIDDEN_IN_LINE = re.compile(f"[\t\n{_UNSEEN}]")
_MARKDOWN = re.compile(r"([\\`|\[\]])")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_LONGEST_PATH = 200  # characters of a path in a message


def _visible(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape", "surrogatepass").decode("ascii")


def is_text(name: str) -> bool:
    """Return whether a file's name is text; bytes of it that are no UTF-8 are half surrogate pairs in Python."""
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def for_terminal(text: str) -> str:
    """Return text to print; it may have several lines."""
    return _HIDDEN.sub(_visible, text)


def one_line(text: str) -> str:
    """Return text for a cell or a caption, with line ends and tabs made visible too."""
    return _HIDDEN_IN_LINE.sub(_visible, text)


def for_error(text: str) -> str:
    """Return an error's message, with every line but the first indented: no name in it can begin a message."""
    first, *more = for_terminal(text).split("\n")
    return "\n".join([first, *(line if line[:1] in ("", " ", "\t") else f"  {line}" for line in more)])


def for_html(value: object) -> str:
    """Return a value's text for HTML, also within a quoted attribute."""
    return html.escape(for_terminal(str(value)))


def for_markdown(text: str) -> str:
    """Return a cell of a Markdown table: no other cell, link, code or HTML can begin in it."""
    return html.escape(_MARKDOWN.sub(r"\\\1", one_line(text)), quote=False)


def for_spreadsheet(cell: object) -> object:
    """Return a cell of a CSV that people open in a spreadsheet: text that would be a formula gets an apostrophe.

    Numbers stay, as numbers and as text. Not for files that are read back or sent away: their cells are exact.
    """
    if not isinstance(cell, str):
        return cell
    if cell.startswith(_FORMULA) and not _is_number(cell):
        cell = f"'{cell}"
    return for_terminal(cell)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def for_json(text: str, encoding: str = "utf-8") -> str:
    r"""Return JSON with hidden characters, and all that an encoding lacks, as `\uXXXX`: the same values."""
    text = _HIDDEN.sub(lambda match: json.dumps(match[0])[1:-1], text)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return re.sub(r"[^\x00-\x7f]", lambda match: json.dumps(match[0])[1:-1], text)
    return text


def short_path(path: object) -> str:
    """Return a path for a message, its middle left out if it is longer than a screen's lines."""
    text = str(path)
    half = _LONGEST_PATH // 2
    return text if len(text) <= _LONGEST_PATH else f"{text[:half]}...{text[-half:]} ({len(text):,} characters)"
