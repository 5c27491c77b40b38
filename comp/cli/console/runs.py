"""Print the results of runs: scores, predictions, evaluations."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from comp.results.predictions import Predictions
    from comp.results.run_metrics import AccuracyEstimate, RunMetrics, SplitScores
    from comp.results.runs import Run
    from comp.workflows.rehearse import Stage

from comp.cli.console.output import print_json, print_line, print_note, print_table, print_text, print_written
from comp.runtime.errors import RunError, UserError, plural

# Columns of an evaluation that are left out in a narrow window, the first one first; never the competition's metric.
_DROPPED = (
    "p90",
    "bias",
    "r2",
    "mae",
    "rmse",
    "micro F1",
    "macro F1",
    "top 5",
    "recall",
    "precision",
    "images",
    "groups",
    "ECE",
    "F1",
)
# How a task decides where nothing is fitted: `TaskRow.decision` -> its name.
_PLAIN = {
    "arg_max": "argmax",
    "expected_level": "the nearest level",
    "thresholds": "0.5 for each class",
    "values": "rounding",
}

_MAX_ANSWERS, _MAX_COLUMNS = 20, 8  # of a table of predicted images


def print_run_json(run: "Run", **more: Any) -> None:
    """Print a run's folder and metrics.json as one JSON object, and more values if there are any."""
    print_json({"folder": str(run.path), **run.metrics().to_json(), **more})


def print_summary(run: "Run", scores: "RunMetrics") -> None:
    """Print a run's scores, its accuracy by severity, its training time, and its files."""
    scored = {name for _, split in _split_rows(scores) if split for name in (*split.scores, *(split.undefined or ()))}
    columns = [name for name in ("accuracy", "log_loss", "rmse", "mae", "r2", scores.metric) if name in scored]
    columns = list(dict.fromkeys(columns))
    headings = ("loss" if name == "log_loss" and name != scores.metric else name for name in columns)
    rows = [
        [name, f"{split.images:,}", *(_score(split.value(column)) for column in columns)]
        for name, split in _split_rows(scores)
        if split
    ]
    if rows:
        title = f"{scores.competition}: {scores.model}"
        counted = "groups" if scores.group_answer else "images"
        print_table(["split", counted, *headings], rows, title=title, folded={"split": 16}, drop=(counted,))
    _print_undefined({name: split.undefined for name, split in _split_rows(scores) if split and split.undefined})
    if scores.stopped:
        print_text(f"stopped early: {scores.stopped}")
    print_decision(scores)
    if scores.averaged.missing:
        print_text(f"no averaged weights: the training {scores.averaged.missing}")
    suite = scores.split_scores("suite")
    shifted = suite or scores.best_or_final.ood_val
    if shifted and shifted.by_block:
        title = f"suite{scores.variant}" if suite else "shifted validation"
        _print_severities(shifted, title)
    marks = f", test-like augmentation ({', '.join(scores.test_like)})" if scores.test_like else ""
    trained = f"trained {plural(scores.epochs, 'epoch')}" if scores.kind == "run" else f"{scores.model}, made"
    print_line(f"{trained} in {scores.train_seconds:.1f} s on {scores.device}{marks}")
    print_line(f"run         {run.path}")
    for variant, path in {variant: path for path, variant in scores.written().items()}.items():
        print_submission(path, variant)
    _print_tracked(run)


def print_decision(scores: "RunMetrics") -> None:
    """Print how outputs become decisions, and the gain of that, or of what was tried, with its interval."""
    from comp.config.tasks import TASKS

    decision = scores.decision
    if decision is None:
        return
    way = TASKS[scores.task].decision
    if decision.kind == "argmax":
        print_line(f"decision    {_PLAIN[way]}, not {decision.tried}: {decision.reason}")
    else:
        print_line(f"decision    {decision.kind}{f', though {decision.reason}' if decision.reason else ''}")
    if decision.gain is None:
        return
    interval = f"95 % {decision.low:+.4f} to {decision.high:+.4f}"
    print_line(f"            gain in {scores.metric} {decision.gain:+.4f} ({interval})")
    if decision.kind != "argmax" and decision.gain < 0:
        better = "argmax" if way == "thresholds" else "auto"
        print_note(f"warning: {decision.kind} made {scores.metric} worse on validation; set predict.decide={better}")


def print_submission(path: str, variant: str = "") -> None:
    """Print where a submission lies, how its predictions were made, and what `comp check` doubts about its answers;
    nothing without one.
    """
    if path:
        print_line(f"submission  {path}{f' (suite{variant})' if variant else ''}")
        print_doubts(path)


def print_doubts(path: str) -> None:
    """Print a line for each reason not to trust a submission; its file may have been moved away."""
    from comp.submission import validate  # loads NumPy, which other output does not need

    try:
        doubts = validate.find_doubts(Path(path))
    except UserError:
        return
    for doubt in doubts:
        print_line(f"{doubt.verdict}: {doubt.what}")


def _split_rows(scores: "RunMetrics") -> "Iterator[tuple[str, SplitScores | None]]":
    yield "validation", scores.best_or_final.val
    if scores.best_or_final is scores.best:
        yield "validation, last epoch", scores.final.val
    yield "validation, averaged", scores.averaged.val
    yield "validation, shifted", scores.best_or_final.ood_val
    yield "test", scores.test
    yield "suite", scores.suite
    yield from sorted(scores.variants.items())


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _print_undefined(undefined: Mapping[str, Mapping[str, str]]) -> None:
    """Print why metrics are undefined: split -> metric -> reason."""
    for split, reasons in undefined.items():
        for metric, reason in reasons.items():
            print_line(f"{metric} of {split} is undefined: {reason}")


def _print_tracked(run: "Run") -> None:
    from comp.tracking import state

    try:
        tracked = state.read(run)
    except RunError as error:  # the results above are complete
        print_note(f"note: {error}")
        return
    if tracked is not None:
        is_uploaded = state.is_logged(run) and not state.waiting(run)
        status = "uploaded" if is_uploaded else "saved offline; upload with comp leaderboard --sync"
        print_line(f"W&B         {tracked.project}/{tracked.id}: {status}")


def print_prediction(
    run: "Run",
    predictions: "Predictions",
    result: "str | SplitScores | None",
    estimate: "AccuracyEstimate | None",
) -> None:
    """Print a prediction's CSV, or its scores; and its estimated accuracy."""
    adapt = predictions.made_by["adapt"]
    if adapt != "none" and not predictions.made_by["adapted_layers"]:
        print_line(f"note: this network has no layers for {adapt} to adapt, so it changed nothing")
    if undone := predictions.made_by.get("rolled_back"):
        print_line(f"note: {adapt} is undone in {', '.join(undone)}: predictions collapsed there; the plain ones stand")
    if forwards := predictions.made_by.get("forward_passes"):
        print_line(f"{adapt} took {forwards:.1f} forward passes an image, a pass with gradients counted as three")
    mark = " (transductive)" if predictions.made_by["transductive"] else ""
    if decision := predictions.made_by.get("decision"):
        mark += f" (decision: {decision['kind']})"
    if isinstance(result, str):
        print_line(f"{run.path}: {plural(len(predictions), 'row')} in {result}{mark}")
        print_doubts(result)
    else:
        values = {name: score.value for name, score in result.scores.items()} if result else {}
        scores = [f"{'loss' if name == 'log_loss' else name} {value:.4f}" for name, value in values.items()]
        undefined = (result.undefined or {}) if result else {}
        scores += [f"{name} undefined ({reason})" for name, reason in undefined.items()]
        counted = "group" if "group_answer" in predictions.made_by else "image"
        print_line(
            f"{run.path}: {plural(len(predictions), counted)}, "
            f"{', '.join(scores) or 'no labels to score them by'}{mark}"
        )
    if estimate:
        before = f"; {estimate.before:.4f} before adapting" if estimate.before is not None else ""
        print_line(
            f"estimated accuracy (no labels) {estimate.accuracy:.4f}, {estimate.low:.4f} to {estimate.high:.4f}; "
            f"90 % intervals for a block of an unseen corruption are {estimate.width:.4f} wide on average{before}"
        )


def print_answers(header: Sequence[str], rows: Sequence[Sequence[str]], path: Path, *, numeric: bool) -> None:
    """Print a table of the first predicted images, and the files with all of them; `numeric`: they are numbers."""
    cells = [row[:_MAX_COLUMNS] for row in rows[:_MAX_ANSWERS]]
    drop = header[2:_MAX_COLUMNS] if len(header) > 3 else ()
    print_table(
        header[:_MAX_COLUMNS], cells, shortened={"id": 16}, folded={"labels": 16}, drop=drop[::-1], full_table="the CSV"
    )
    first = f", the first {_MAX_ANSWERS} above" if len(rows) > _MAX_ANSWERS else ""
    outputs = "unrounded numbers" if numeric else "all probabilities"
    print_line(f"{plural(len(rows), 'image')}{first}; the .npz has {outputs}")
    print_written(path, path.with_suffix(".npz"))


def _print_severities(shifted: "SplitScores", title: str) -> None:
    """Print accuracy by distortion and severity, with means in the last row and column."""
    severities, blocks = list(shifted.by_severity), list(shifted.by_block.values())
    rows = []
    for row, (name, mean) in enumerate(shifted.by_distortion.items()):
        cells = blocks[row * len(severities) : (row + 1) * len(severities)]
        rows.append([name, *(f"{cell:.3f}" for cell in cells), f"{mean:.3f}"])
    overall = "" if shifted.accuracy is None else f"{shifted.accuracy:.3f}"
    rows.append(["mean", *(f"{value:.3f}" for value in shifted.by_severity.values()), overall])
    heading = f"{title}: accuracy by distortion and severity"
    print_table(["distortion", *severities, "mean"], rows, title=heading, has_total=True)


def print_evaluation(values: Mapping[str, Any], *, grouped: bool = False) -> None:
    """Print evaluation.json: a row for each split, then the classes and confusions of the last clean split.

    Args:
        values: the file's content.
        grouped: whether a row is a group of images with one answer, not an image.
    """
    counted = "groups" if grouped else "images"
    splits = {name: split for name, split in values.items() if "metric" in split}
    rows = [_evaluation_cells(name, split, counted) for name, split in splits.items()]
    cells = [list(row.values()) for row in rows]
    title = (
        f"precision, recall and F1 weighted by {counted}" if "classes" in next(iter(splits.values())) else "evaluation"
    )
    drop = [heading for heading in _DROPPED if heading != next(iter(splits.values()))["metric"]["name"]]
    print_table(list(rows[0]), cells, title=title, folded={"split": 12}, drop=drop)
    scores = {name: split["metric"] for name, split in splits.items()}
    _print_undefined({name: {score["name"]: why} for name, score in scores.items() if (why := score.get("undefined"))})
    for name, split in splits.items():
        if fixed := split.get("fixed"):
            score, given = fixed["metric"], split["metric"]
            left_out = f", without {fixed['dropped']:,} it drops" if fixed["dropped"] else ""
            print_line(
                f"{name} with the labels of {fixed['file']}{left_out}: {score['name']} {_score(score['value'])}, on "
                f"the given labels {_score(given['value'])}"
            )
    (name,) = [name for name in splits if "by_block" not in splits[name]][-1:] or list(splits)[-1:]
    if "classes" in splits[name]:
        _print_classes(name, splits[name]["classes"], counted)
    for label, predicted, count in splits[name].get("confused", ()):
        print_line(f"true {label}, predicted {predicted}: {count:,}")
    if error := values.get("mean_corruption_error"):
        print_text(f"mean corruption error on {error['split']}: {error['value']:.1f} % of {error['baseline']}'s")


def _evaluation_cells(name: str, split: Mapping[str, Any], counted: str) -> dict[str, str]:
    metric = split["metric"]
    if "classes" not in split:
        scores = {metric["name"]: metric["value"], **split["numbers"]}
        cells = {key: _score(value) for key, value in scores.items()}
        return {"split": name, counted: f"{split['images']:,}", **cells}
    weighted = split["weighted"]
    own = {metric["name"]: _score(metric["value"])} if metric["name"] not in ("accuracy", "log_loss") else {}
    scores = {"accuracy": split["accuracy"], "top 5": split.get("top5"), "loss": split["loss"]}
    scores |= {"precision": weighted["precision"], "recall": weighted["recall"], "F1": weighted["f1"]}
    scores |= {f"{average} F1": split[average]["f1"] for average in ("macro", "micro") if average in split}
    scores["ECE"] = split["calibration"]["ece"]
    cells = {heading: _score(score) for heading, score in scores.items() if score is not None}
    return {"split": name, counted: f"{split['images']:,}", **own, **cells}


def _print_classes(name: str, classes: Sequence[Mapping[str, Any]], counted: str) -> None:
    from comp.results.diagnostics import CLASS_SCORES  # loads NumPy, which other output does not need

    columns = [key for key in CLASS_SCORES if key in classes[0]]
    headings = ["class", counted, *(CLASS_SCORES[key] for key in columns)]
    rows = [[row["name"], f"{row['images']:,}", *(_score(row[key]) for key in columns)] for row in classes]
    drop = ("threshold", "recall", "precision")
    print_table(headings, rows, title=f"{name}, by class", folded={"class": 16}, drop=drop)


def print_stages(stages: "Sequence[Stage]") -> None:
    """Print a rehearsal."""
    rows = [[stage.name, f"{stage.seconds:.1f}", stage.found] for stage in stages]
    print_table(["stage", "seconds", "result"], rows, title="rehearsal: all stages passed", folded={"result": 20})
