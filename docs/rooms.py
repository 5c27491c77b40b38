"""Draw docs/pictures/rooms.svg: the rooms of `comp` in the order in which imports may go, as .importlinter holds it.

python docs/rooms.py            # write the picture
python docs/rooms.py --check    # exit 1 if the picture on disk differs
"""

import configparser
import html
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PICTURE = REPOSITORY / "docs" / "pictures" / "rooms.svg"
HOLDS = {
    "cli": "commands, console",
    "api": "comp.train, comp.predict ...",
    "tuning": "Optuna studies",
    "ensembles": "methods, cross-fitted gain, soups",
    "workflows": "what each command does; all config checks",
    "training": "the loop and its parts",
    "inference": "predict, views, adaptation",
    "data": "sources, splits, loading, corruptions",
    "models": "zoo, stems, surgery, weights",
    "submission": "format, write, check, Kaggle",
    "tracking": "W&B",
    "results": "run folders, predictions, metrics, leaderboard, report",
    "augment": "policies, batch engine, kernels",
    "config": "every key; YAML; tasks",
    "runtime": "errors, progress, signals, device, rng",
}
WIDTH, ROW, GAP = 880, 46, 10


def layers() -> list[list[str]]:
    """Return the rooms from the top, those of one layer together."""
    parser = configparser.ConfigParser()
    parser.read(REPOSITORY / ".importlinter")
    lines = parser["importlinter:contract:layers"]["layers"].split("\n")
    return [[room.strip() for room in line.split("|")] for line in lines if line.strip()]


def svg() -> str:
    """Return the picture: a row for each layer, a box for each room."""
    rows = layers()
    height = len(rows) * (ROW + GAP) + GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for number, rooms in enumerate(rows):
        width = (WIDTH - GAP * (len(rooms) + 1)) / len(rooms)
        for column, room in enumerate(rooms):
            x, y = GAP + column * (width + GAP), GAP + number * (ROW + GAP)
            parts.append(
                f'<rect x="{x:.0f}" y="{y}" width="{width:.0f}" height="{ROW}" rx="6" fill="#eef3f8" stroke="#4a6785"/>'
            )
            parts.append(
                f'<text x="{x + 12:.0f}" y="{y + 19}" font-size="15" font-weight="bold" fill="#1d2b3a">{room}</text>'
            )
            parts.append(
                f'<text x="{x + 12:.0f}" y="{y + 36}" font-size="12" fill="#3a4a5a">{html.escape(HOLDS[room])}</text>'
            )
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(PICTURE.read_text(encoding="utf-8") != svg())
    PICTURE.write_text(svg(), encoding="utf-8")
