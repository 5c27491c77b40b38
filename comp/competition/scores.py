"""What a competition's own leaderboard has said of a run: the scores that no machine here can compute. Torch-free."""

import time
from typing import Any

from comp.runs import Run


def record_score(
    run: Run,
    *,
    public: float | None,
    private: float | None = None,
    submission: str = "",
    reference: str = "",
    source: str = "by hand",
) -> dict[str, Any]:
    """Note a score with a run; return the record.

    metrics.json then has it as `public_score` and `private_score`, and at the end of `scores`, a list of all records:
    a run may be submitted in several ways, with views or adapted.

    Args:
        run: complete.
        public: what the public leaderboard shows; None where it shows nothing.
        private: likewise of the private one.
        submission: the CSV.
        reference: what the competition's site calls the submission; a record with the same one is replaced.
        source: who said it.

    Raises:
        RunError: the run is not complete, or another process is writing it.
    """
    record = {
        "public": public,
        "private": private,
        "submission": submission,
        "reference": reference,
        "source": source,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    with run.writing():
        scores = run.metrics()
        before = [row for row in scores.get("scores", ()) if not reference or row["reference"] != reference]
        noted = {"public_score": public, "private_score": private, "scores": [*before, record]}
        run.write_json("metrics.json", {**scores, **noted})
    return record
