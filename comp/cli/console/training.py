"""Print a training as it runs."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from comp.models.surgery import TrainableRow
    from comp.results.runs import Run
    from comp.training.autotune import ExecutionChoice
    from comp.training.cost import Cost
    from comp.training.loop import Epoch
    from comp.training.lr_find import LRFindResult

from comp.cli.console.output import err, print_note, print_table, print_text, print_written
from comp.runtime.errors import plural
from comp.runtime.progress import duration


def print_start(run: "Run", rows: "Sequence[TrainableRow]", weights_source: str) -> None:
    """Print a run's folder, and for each block of its model how many parameters are trained."""
    err.print(f"run {run.path}")
    cells = [[row.name, f"{row.parameters:,}", f"{row.trainable:,}", row.statistics] for row in rows]
    cells.append(["all", f"{sum(r.parameters for r in rows):,}", f"{sum(r.trainable for r in rows):,}", ""])
    print_table(
        ("block", "parameters", "trained", "batch norm statistics"),
        cells,
        title=f"weights: {weights_source}",
        folded={"block": 16},
        drop=("batch norm statistics",),
        full_table="metrics.json",
        has_total=True,
        console=err,
    )


def print_choice(choice: "ExecutionChoice") -> None:
    """Print notes on the choice, and the precision, layout, threads and workers of a training, if they were timed."""
    for note in choice.notes:
        print_note(note)
    if not choice.seconds_a_step:
        return
    execution, timing = choice.execution, f"timed in {choice.timing_seconds:.1f} s"
    layout = "channels_last" if execution.channels_last else "channels_first"
    compiled = ", compiled" if execution.compiled else ""
    if choice.timed_before:
        timing = f"timed before on this machine, {choice.timed_before}"
    err.print(
        f"computes in {execution.precision} {layout}{compiled} with {plural(execution.threads, 'thread')} and "
        f"{plural(execution.workers, 'worker')} ({timing})"
    )


def print_cost(cost: "Cost") -> None:
    """Print what a long training will take, in two lines."""
    parts = {"validation": cost.validation_seconds, "prediction": cost.prediction_seconds}
    shares = ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts.items() if seconds >= 1)
    err.print(f"takes about {duration(cost.seconds)}{f' ({shares} of it)' if shares else ''}")
    needs = [_share("memory", cost.host_bytes, cost.host_total), _share("disk", cost.disk_bytes, cost.disk_free)]
    if cost.gpu_bytes:
        needs.insert(1, _share("GPU", cost.gpu_bytes, cost.gpu_total))
    err.print(f"needs about {', '.join(needs)}")


def _share(what: str, needed: int, available: int) -> str:
    return f"{what} {_gigabytes(needed)}{f' of {_gigabytes(available)}' if available else ''} GB"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f}" if count < 1e11 else f"{count / 1e9:,.0f}"


def print_epoch(epoch: "Epoch") -> None:
    """Print the line of an epoch that has ended, or several lines in a narrow window."""
    validation = "" if epoch.val_loss is None else f"val loss {epoch.val_loss:.4f}{_accuracy(epoch.val_accuracy)}"
    shifted = "" if epoch.ood_metric is None and epoch.ood_accuracy is None else "shifted"
    shifted += "" if epoch.ood_accuracy is None else f" {epoch.ood_accuracy:.4f}"
    if epoch.val_metric not in (None, epoch.val_accuracy, epoch.val_loss):
        validation += f" metric {epoch.val_metric:.4f}"
    if epoch.ood_metric not in (None, epoch.ood_accuracy):
        shifted += f" metric {epoch.ood_metric:.4f}"
    training = f"loss {epoch.train_loss:.4f}{_accuracy(epoch.train_accuracy)}"
    speed = f"{epoch.images_per_second:,.0f} images/s  {epoch.seconds:.1f} s"
    name = f"epoch {epoch.number:>3}"
    lines = [name]
    for part in filter(None, (training, validation, shifted, f"lr {epoch.lr:.2e}", speed)):
        if len(lines[-1]) + 2 + len(part) > err.width:
            lines.append(" " * len(name))
        lines[-1] += f"  {part}"
    err.print("\n".join(lines))
    if epoch.note:
        err.print(f"{name}  {epoch.note}")


def _accuracy(value: float | None) -> str:
    return "" if value is None else f" accuracy {value:.4f}"


def print_norms(rows: Sequence[Mapping[str, str]]) -> None:
    """Print the last epoch's rows of norms.csv, if there are any."""
    if not rows:
        return
    last = rows[-1]["epoch"]
    cells = []
    for row in rows:
        if row["epoch"] == last:
            norms = [f"{float(row[name]):.3g}" for name in ("gradient_norm", "weight_norm")]
            cells.append([row["layer"], f"{int(row['parameters']):,}", *norms])
    heads = ("layer", "parameters", "gradient norm", "weight norm")
    print_table(heads, cells, title=f"norms in epoch {last}", folded={"layer": 16}, full_table="norms.csv")


def print_lr_find(result: "LRFindResult", picture: Any) -> None:
    """Print the result of a learning rate range test, and which rate to set."""
    rows = [
        ["steepest descent", f"{result.steepest:.2e}"],
        ["loss diverges", "not in this range" if result.diverged is None else f"{result.diverged:.2e}"],
        ["a tenth of that", "" if result.tenth is None else f"{result.tenth:.2e}"],
    ]
    print_table(["point", "learning rate"], rows, title="learning rate range test")
    print_text(f"suggestion: optim.lr={result.suggestion:.1e} ({result.reason})")
    print_written(picture)
