"""A copy of frozen runs to work on."""

import shutil
from pathlib import Path

FROZEN = Path(__file__).parents[1] / "frozen" / "version-2"
PLAIN, FLIPPED, ENSEMBLE = (
    f"runs/frozen/{name}"
    for name in ("20261126-204842-small", "20261126-204854-small", "20261126-204904-mean-ensemble")
)


def thawed(folder: Path) -> Path:
    """Put two trained runs, the second predicted with flips by its config, and their ensemble into a folder."""
    shutil.copytree(FROZEN / "competition", folder / "runs" / "frozen")
    shutil.copytree(FROZEN / "submissions", folder / "submissions")
    return folder
