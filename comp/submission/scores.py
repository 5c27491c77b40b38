"""What a competition's own leaderboard has said of a run: the scores that no machine here can compute. Torch-free."""

import math
import time
from pathlib import Path

from comp.results import files, metrics, runs
from comp.results.run_metrics import LeaderboardScore
from comp.results.runs import Run
from comp.runtime.errors import SubmissionError

_WRITE_AGAIN = "write the submission again: comp predict RUN -o CSV --force"


def record_score(
    run: Run,
    *,
    public: float | None,
    private: float | None = None,
    submission: str = "",
    reference: str = "",
    source: str = "by hand",
    rows: int | None = None,
) -> LeaderboardScore:
    """Note a score with a run; return the record.

    metrics.json then has it as `public_score` and `private_score`, and at the end of `leaderboard_scores`, all records:
    a run may be submitted in several ways, with views or adapted.

    Args:
        run: complete.
        public: what the public leaderboard shows; None where it shows nothing.
        private: likewise of the private one.
        submission: the CSV.
        reference: what the competition's site calls the submission; a record with the same one is replaced.
        source: who said it.
        rows: how many rows of the submission the public score counts; None where that is not known.

    Raises:
        RunError: the run is not complete, or another process is writing it.
    """
    record = LeaderboardScore(
        public=public,
        private=private,
        submission=submission,
        reference=reference,
        source=source,
        rows=rows,
        time=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    )
    with run.write_lock():
        scores = run.metrics()
        before = [row for row in scores.leaderboard_scores if not reference or row.reference != reference]
        noted = {"public_score": public, "private_score": private, "leaderboard_scores": [*before, record]}
        run.write_metrics(scores.model_copy(update=noted))
    return record


def record_submission(
    path: Path, *, public: float | None = None, private: float | None = None, public_share: float = 1.0
) -> LeaderboardScore:
    """Note by hand what a submission has scored, in its sidecar and with its run; return the record.

    A score that was recorded before stays where none is given now, so that the private one can be added later.

    Args:
        path: of the CSV; its sidecar says which run wrote it.
        public: what the public leaderboard shows.
        private: likewise of the private one.
        public_share: share of the rows that the public leaderboard counts, in (0, 1].

    Raises:
        SubmissionError: no such submission or no sidecar, another file than the sidecar tells of, or no such score.
        RunError: its run is gone, not complete, or being written.
    """
    beside = runs.sidecar_path(path)
    if public is None and private is None:
        raise SubmissionError(f"{path}: no score is given; for example: --public 0.573")
    if not 0 < public_share <= 1:
        raise SubmissionError(f"--public-share: expected a share of the rows above 0 and up to 1, found {public_share}")
    if not path.is_file():
        raise SubmissionError(f"{path}: no such submission")
    if not beside.is_file():
        raise SubmissionError(f"{path}: has no sidecar {beside.name}, so that nothing tells which run it is of")
    sidecar = files.read_json(beside)
    if sidecar.get("sha256") != files.sha256_file(path):
        raise SubmissionError(f"{path}: is not the file that {beside.name} tells of; record the score of that one")
    rows, folder = sidecar.get("rows"), sidecar.get("run_path")
    if not isinstance(rows, int) or isinstance(rows, bool) or rows < 1:
        raise SubmissionError(f"{beside}: rows: expected a whole number above 0, found {rows!r}; {_WRITE_AGAIN}")
    if not isinstance(folder, str) or not folder:
        raise SubmissionError(f"{beside}: run_path: expected the folder of a run, found {folder!r}; {_WRITE_AGAIN}")
    run = runs.open_run(Path(folder))
    known = run.metrics()
    for name, score in (("--public", public), ("--private", private)):
        _check_score(name, score, known.metric)
    reference = f"by hand: {path.absolute()}"
    earlier = (row for row in known.leaderboard_scores if row.reference == reference)
    before = next(earlier, LeaderboardScore())
    record = record_score(
        run,
        public=before.public if public is None else public,
        private=before.private if private is None else private,
        submission=str(path),
        reference=reference,
        rows=max(1, round(public_share * rows)),
    )
    files.write_atomically(beside, files.to_json({**sidecar, "scores": record.model_dump()}))
    return record


def _check_score(name: str, score: float | None, metric: str) -> None:
    """Refuse what the metric can never be."""
    if score is None:
        return
    low, high = metrics.metric(metric).low, metrics.metric(metric).high
    if not (math.isfinite(score) and low <= score <= high):
        hint = f"; did you mean {score / 100:g}?" if 1 < score <= 100 and high == 1 else ""
        raise SubmissionError(f"{name}: expected a {metric} from {low:g} to {high:g}, found {score:g}{hint}")
