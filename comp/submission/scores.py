"""Record scores from a competition's own leaderboard, which cannot be computed locally. Torch-free."""

import math
import time
from pathlib import Path

from comp.results import files, metrics, records, runs
from comp.results.run_metrics import LeaderboardScore
from comp.results.runs import Run
from comp.runtime.errors import SubmissionError

_ANY_METRIC = metrics.Metric(metrics.accuracy, low=-math.inf, high=math.inf)  # for its limits alone
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
    """Record a leaderboard score with a run; return the record.

    metrics.json then holds it as `public_score` and `private_score`, and at the end of `leaderboard_scores`, because a
    run may be submitted several times, with other views or adapted.

    Args:
        run: a complete run.
        public: score on the public leaderboard; None if it is not shown.
        private: score on the private leaderboard; None if it is not shown.
        submission: the CSV.
        reference: the submission's id on the competition's site; replaces a record with the same one.
        source: where the score comes from.
        rows: number of rows that the public score counts; None if unknown.

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
    with run.write_lock(runs.RECORD_SECONDS):
        scores = run.metrics()
        before = [row for row in scores.leaderboard_scores if not reference or row.reference != reference]
        updates = {"public_score": public, "private_score": private, "leaderboard_scores": [*before, record]}
        run.write_metrics(scores.model_copy(update=updates))
    return record


def record_manual_score(
    path: Path, *, public: float | None = None, private: float | None = None, public_share: float = 1.0
) -> LeaderboardScore:
    """Record a score by hand, in a submission's sidecar and with its run; return the record.

    An earlier score is kept unless a new one is given, so you can add the private score later.

    Args:
        path: the CSV; its sidecar names the run.
        public: score on the public leaderboard.
        private: score on the private leaderboard.
        public_share: share of the rows that the public leaderboard counts, in (0, 1].

    Raises:
        SubmissionError: the submission or its sidecar is missing or damaged, they do not match, or a score is
            impossible.
        RunError: the run is missing, incomplete, or being written.
    """
    sidecar_path = runs.sidecar_path(path)
    if public is None and private is None:
        raise SubmissionError(f"{path}: no score given; for example: --public 0.573")
    if not 0 < public_share <= 1:
        raise SubmissionError(f"--public-share: expected a share of the rows above 0 and up to 1, found {public_share}")
    if not path.is_file():
        raise SubmissionError(f"{path}: no such submission")
    if not sidecar_path.is_file():
        raise SubmissionError(f"{path}: no sidecar {sidecar_path.name}, which names its run")
    sidecar = records.read_sidecar(sidecar_path)
    if sidecar.get("sha256") != files.sha256_file(path):
        raise SubmissionError(
            f"{path}: the file has changed since {sidecar_path.name} was written; record the score of the original file"
        )
    rows, folder = sidecar.get("rows"), sidecar.get("run_path")
    if not isinstance(rows, int) or isinstance(rows, bool) or rows < 1:
        raise SubmissionError(f"{sidecar_path}: rows: expected a whole number above 0, found {rows!r}; {_WRITE_AGAIN}")
    if not isinstance(folder, str) or not folder:
        raise SubmissionError(f"{sidecar_path}: run_path: expected a run's folder, found {folder!r}; {_WRITE_AGAIN}")
    files.check_writable(sidecar_path)  # the run's record comes first, and neither is written without the other
    run = runs.open_run(Path(folder))
    run_metrics = run.metrics()
    # A plug-in's metric is not loaded: only its direction is recorded, not its limits.
    metric = metrics.METRICS.get(run_metrics.metric, _ANY_METRIC)
    for option, score in (("--public", public), ("--private", private)):
        if score is not None and not (math.isfinite(score) and metric.low <= score <= metric.high):
            hint = f"; did you mean {score / 100:g}?" if 1 < score <= 100 and metric.high == 1 else ""
            limits = f"from {metric.low:g} to {metric.high:g}"
            raise SubmissionError(f"{option}: expected a score ({run_metrics.metric}) {limits}, found {score:g}{hint}")
    reference = f"by hand: {path.absolute()}"
    earlier = (row for row in run_metrics.leaderboard_scores if row.reference == reference)
    previous = next(earlier, LeaderboardScore())
    record = record_score(
        run,
        public=previous.public if public is None else public,
        private=previous.private if private is None else private,
        submission=str(path),
        reference=reference,
        rows=max(1, round(public_share * rows)),
    )
    with files.hold_folder(sidecar_path.parent):
        sidecar = files.read_json(sidecar_path)  # another score may have been recorded since
        files.write_atomically(sidecar_path, files.to_json({**sidecar, "scores": record.model_dump()}))
    return record
