"""The process that tells W&B of a leaderboard.

    python -m comp.tracking.board < JSON

Standard input holds a `Board` as JSON. The table becomes a W&B run of its own, which later boards of the same folder
go on with; each run that is tracked gets a segment with its rank. What was begun is printed as JSON.
"""

import json
import sys
from pathlib import Path
from typing import Any

import wandb

from comp.runs import Run
from comp.tracking import state, told
from comp.tracking.writer import SETTINGS, open_segment


def main() -> None:
    """Write the segments."""
    board = json.load(sys.stdin)
    _tell_board(board)
    for path, rank in board["ranks"]:
        _tell_rank(Run(Path(path)), rank, board["sort"], len(board["rows"]))


def _tell_board(board: dict[str, Any]) -> None:
    segment = wandb.init(
        mode="offline", dir=board["folder"], id=board["id"], resume="allow", project=board["project"],
        entity=board["entity"] or None, name="leaderboard", job_type="leaderboard", settings=SETTINGS,
    )  # fmt: skip
    segment.log({"leaderboard": wandb.Table(columns=board["columns"], data=board["rows"])}, step=board["number"])
    segment.summary.update({"runs": len(board["rows"]), "sorted_by": board["sort"]})
    segment.finish()


def _tell_rank(run: Run, rank: int, sort: str, count: int) -> None:
    known = state.read(run)
    assert known is not None
    segment = open_segment(run, known)
    # The summary of a segment takes the place of an earlier one's, so that it is told whole.
    segment.summary.update(
        told.scores(run.metrics())
        | told.summaries(run.history())
        | {"rank": rank, "ranked_by": sort, "ranked_among": count}
    )
    segment.finish()


if __name__ == "__main__":
    main()
