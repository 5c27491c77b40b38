"""Draw docs/pictures/overview.svg for README.md: a report's heat map and the leaderboard, of three runs on the digits.

python docs/overview.py WORK    # trains in the folder WORK, about two minutes on a core, and writes the picture

Both are what comp prints: the heat map comes from `comp report`, the table from `comp leaderboard` in a narrow window.
"""

import html
import os
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PICTURE = REPOSITORY / "docs" / "pictures" / "overview.svg"
RUNS = {
    "plain": (),
    "robust": ("augment.policy=robust",),
    "batch-norm": ("model={name: convnet, args: {batch_norm: true}}",),
}
COLUMNS, LETTER, LINE = 66, 7.3, 18.0  # of the leaderboard's text: letters in a line; px
TOP, EDGE = 56.0, 22.0  # px
STYLE = """
svg { --page: #fff; --ink: #1b1f24; --soft: #57606a; --edge: #d0d7de; }
@media (prefers-color-scheme: dark) { svg { --page: #0f1317; --ink: #e6e9ed; --soft: #a2abb5; --edge: #343c45; } }
text { font: 12px system-ui, sans-serif; fill: var(--ink); } .head { font-weight: 600; font-size: 14px; }
.title { fill: var(--soft); }
.screen text { font: 12px ui-monospace, monospace; white-space: pre; } .rule { stroke: var(--edge); }
"""


def comp(work: Path, *words: str) -> str:
    """Run a command in a folder; return what it prints."""
    environment = {**os.environ, "COLUMNS": str(COLUMNS), "PYTHONPATH": str(REPOSITORY), "WANDB_MODE": "disabled"}
    command = [sys.executable, "-m", "comp", *words]
    return subprocess.run(command, cwd=work, env=environment, check=True, capture_output=True, text=True).stdout


def train(work: Path) -> tuple[str, str]:
    """Train what has no run yet; return the best one's report, and the leaderboard."""
    for name, overrides in RUNS.items():
        if not list(work.glob(f"runs/quickstart/*-{name}")):
            comp(work, "run", "quickstart", *overrides, "--name", name, "-o", f"{name}.csv")
    (adapted,) = work.glob("runs/quickstart/*-batch-norm")
    comp(work, "predict", str(adapted.relative_to(work)), "--adapt", "bn", "-o", "adapted.csv", "--force")
    board = comp(work, "leaderboard")
    best = board.rpartition("next        comp report ")[2].strip()
    comp(work, "report", best, "-o", "report.html")
    return (work / "report.html").read_text(), board


def heat_map(report: str) -> tuple[str, float, float]:
    """Return the heat map of the report's last block of scores, the test, as parts of an SVG; its width and height."""
    pattern = r'viewBox="0 0 (\d+) (\d+)"[^>]*aria-label="accuracy by distortion and severity"[^>]*>(.*?)</svg>'
    *_, (width, height, parts) = re.findall(pattern, report, re.DOTALL)
    parts = re.sub(r"<title>.*?</title>| data-value=\"[^\"]*\"", "", parts)
    # An attribute has no say against the style of all text.
    return re.sub(r'fill="(#fff|#111)"', r'style="fill: \1"', parts), float(width), float(height)


def screen(board: str) -> tuple[str, float]:
    """Return the leaderboard's lines as parts of an SVG, and their height."""
    parts, y = [], 0.0
    for line in board.rstrip().split("\n"):
        if line[:1] in "┏┡├└":
            parts.append(f'<line class="rule" x1="0" x2="{COLUMNS * LETTER}" y1="{y + 5}" y2="{y + 5}"/>')
            y += LINE / 2
            continue
        y += LINE
        text = re.sub("[┃│]", " ", line).rstrip()
        for word in re.finditer(r"\S+(?: \S+)*", text):  # each at its column, whatever the font's letters are wide
            length = len(word[0]) * LETTER
            at = f'x="{word.start() * LETTER:.1f}" y="{y - 4:.1f}" textLength="{length:.1f}"'
            parts.append(f'<text {at} lengthAdjust="spacingAndGlyphs">{html.escape(word[0])}</text>')
    return "".join(parts), y


def compose(report: str, board: str) -> str:
    """Return the picture: on a page of its own colour, light or dark as the reader's system is."""
    (heat, heat_width, heat_height), (lines, lines_height) = heat_map(report), screen(board)
    left = EDGE + heat_width + 2 * EDGE
    width, height = left + COLUMNS * LETTER + EDGE, TOP + max(heat_height, lines_height) + EDGE
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'aria-label="The heat map of comp report, and comp leaderboard"><style>{STYLE}</style>'
        f'<rect x="0.5" y="0.5" width="{width - 1:.0f}" height="{height - 1:.0f}" rx="8" fill="var(--page)" '
        f'stroke="var(--edge)"/><text class="head" x="{EDGE}" y="30">comp report</text>'
        f'<text class="head" x="{left}" y="30">comp leaderboard</text>'
        f'<g transform="translate({EDGE} {TOP - 8})">{heat}</g>'
        f'<g class="screen" transform="translate({left} {TOP - 8})">{lines}</g></svg>\n'
    )


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    PICTURE.write_text(compose(*train(folder)), encoding="utf-8")
