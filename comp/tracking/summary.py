"""The process that tells W&B of a study.

    python -m comp.tracking.summary < JSON

Standard input holds a `studies.Digest` as JSON, with the folder, project, entity and tags of its W&B run. A study that
is continued goes on with the same run.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import wandb

from comp.tracking.writer import SETTINGS

_MOST_LETTERS = 120  # of an artifact's name; W&B takes 128


def main() -> None:
    """Write the segment."""
    told = json.load(sys.stdin)
    segment = wandb.init(
        mode="offline", dir=told["folder"], id=told["id"], resume="allow", project=told["project"],
        entity=told["entity"] or None, name=told["name"], group=told["group"], job_type="study",
        tags=told["tags"] or None, config=told["config"], settings=SETTINGS,
    )  # fmt: skip
    shown: dict[str, Any] = {
        # A knob may choose among numbers and words.
        name: wandb.Table(columns=table["columns"], data=table["rows"], allow_mixed_types=True)
        for name, table in told["tables"].items()
    }
    shown |= {f"plots/{Path(path).stem}": wandb.Image(path) for path in told["pictures"]}
    segment.log(shown, step=told["number"], commit=True)
    if told["best"]:
        artifact = wandb.Artifact(f"{re.sub(r'[^A-Za-z0-9_.-]', '_', told['name'])[:_MOST_LETTERS]}-best", "config")
        artifact.add_file(told["best"])  # copied: the next end of the study replaces the file
        segment.log_artifact(artifact)
    segment.summary.update(told["summary"])
    segment.finish()


if __name__ == "__main__":
    main()
