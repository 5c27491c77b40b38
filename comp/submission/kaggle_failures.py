"""What Kaggle's short failure messages mean, and what to try. Torch-free.

The texts are Kaggle's own: of its page on debugging code competitions, of notebooks' logs and of its API's refusals.
"""

import re

_LOG_LINES = 100  # at the end of a log, where what stopped the notebook is
_COLORS = re.compile(r"\x1b\[[0-9;]*m")
_ERROR_LINE = re.compile(r"^(?:ERROR: |[\w.]*(?:Error|Exception)\b).*", re.MULTILINE)

_SMALLER = "predict in smaller batches (predict.batch_size) or with fewer members"
_PIP = "no matching distribution|could not find a version|ResolutionImpossible|not a supported wheel"
# What Kaggle or a log says -> what happened, what to try. The first row that matches counts: a timeout, too, may end
# with exit code 137.
FAILURES = {
    r"max allowed execution duration|notebook timeout|timeout exceeded": (
        "the notebook ran longer than the competition allows",
        "use a GPU (enable_gpu), fewer views or members; comp export --kaggle DIR --verify estimates the time"),
    r"more disk space than is available|no space left on device": (
        "the notebook filled the disk", "write only submission.csv to /kaggle/working, and copy no data"),
    r"more memory than is available|out of memory|OutOfMemoryError|MemoryError|exit code:? 137": (
        "the notebook ran out of memory", _SMALLER),
    r"exceeded allowed compute": (
        "the rerun broke a limit on memory, disk or inputs, as the hidden test may be much larger", _SMALLER),
    r"submission csv not found": (
        "the rerun on the hidden test ended without submission.csv",
        "an error stopped it, often a file that only the public test has: read what is there, not what was there"),
    r"scoring error|evaluation exception|submission must have": (
        "submission.csv has the wrong rows, columns or values for the hidden test",
        "take the ids from the test that the notebook finds; compare with the sample: comp check CSV --format SAMPLE"),
    r"threw exception": (
        "the notebook fails on the hidden test, which may be larger, smaller or different",
        "assume neither ids nor counts, and set data.skip_bad=true against damaged images"),
    rf"{_PIP}|ModuleNotFoundError": (
        "a package is missing on Kaggle, or its wheel does not fit Kaggle's Python",
        "export again, and name what Kaggle's image really has with --image-packages FILE"),
    r"name resolution|failed to establish a new connection|max retries exceeded|URLError|network is unreachable": (
        "the notebook wants the internet, which code competitions turn off",
        "put all that it loads into the dataset folder"),
    r"enableInternet|phone verification|verify your phone": (
        "your account is not verified by phone, as GPUs, the internet and public notebooks need",
        "verify it in Kaggle's settings"),
    r"accept.*rules|competitions\.participate": (
        "you have not joined the competition, or its name is misspelled",
        "accept its rules on its page, and compare the name with the page's address"),
    r"weekly \w+ quota": (
        "this week's hours of GPU are used up", "wait for the reset, or turn enable_gpu off in kernel-metadata.json"),
    r"session count": ("too many of your notebooks are running", "wait for one to end, or stop one on Kaggle"),
    r"submission allowance": ("no submission is left today", "run the same command after midnight UTC"),
    r"only accepts submissions from notebooks": (
        "this is a code competition", "comp export RUN --kaggle DIR, then comp submit --kernel DIR"),
    r"(?:notebook|kernel) not found": (
        "Kaggle has no such notebook of yours and makes none of this name",
        "begin the id with your user name, and let its slug be the title in lower case with hyphens, a letter first"),
    r"^canceled$|requested cancel": ("the notebook was stopped on Kaggle", "push it again with --force"),
}  # fmt: skip


def explain(message: str, log: str = "") -> str:
    """Return what a failure means and what to try; empty if no row has it. The log counts if the message is in none."""
    for text in (message, last_lines(log)):
        for pattern, (meaning, advice) in FAILURES.items():
            if re.search(pattern, text, re.IGNORECASE):
                return f"{meaning}; {advice}"
    return ""


def last_error(log: str) -> str:
    """Return the last line of a log that names an error; empty if none does."""
    lines = _ERROR_LINE.findall(last_lines(log))
    return str(lines[-1]).strip() if lines else ""


def last_lines(log: str, count: int = _LOG_LINES) -> str:
    """Return the last lines of a log that are not empty, without colors."""
    return "\n".join([line for line in _COLORS.sub("", log).splitlines() if line.strip()][-count:])
