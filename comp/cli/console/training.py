"""What a training prints as it goes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from comp.models.surgery import TrainableRow
    from comp.results.runs import Run
    from comp.training.autotune import ExecutionChoice
    from comp.training.loop import Epoch
    from comp.training.lr_find import LRFindResult

from comp.cli.console.output import err, out, print_line


def print_start(run: "Run", rows: "Sequence[TrainableRow]", origin: str) -> None:
    """Print a training's folder and what of its model is trained, block by block, before the first step."""
    err.print(f"run {run.path}")
    table = Table("block", "parameters", "trained", "batch norm statistics", title=f"weights: {origin}")
    for row in rows:
        table.add_row(row.name, f"{row.parameters:,}", f"{row.trainable:,}", row.statistics)
    table.add_section()
    table.add_row("all", f"{sum(r.parameters for r in rows):,}", f"{sum(r.trainable for r in rows):,}", "")
    err.print(table)


def print_choice(choice: "ExecutionChoice") -> None:
    """Print how steps are computed where that was timed, now or before."""
    if not choice.seconds_a_step:
        return
    execution, took = choice.execution, f"timed in {choice.timing_seconds:.1f} s"
    layout = "channels_last" if execution.channels_last else "channels_first"
    compiled = ", compiled" if execution.compiled else ""
    why = f"timed before on this machine, {choice.timed_before}" if choice.timed_before else took
    err.print(
        f"computes in {execution.precision} {layout}{compiled} with {execution.threads} threads and "
        f"{execution.workers} workers ({why})"
    )


def print_epoch(epoch: "Epoch") -> None:
    """Print an epoch's line as it ends."""
    validation = "" if epoch.val_loss is None else f"  val loss {epoch.val_loss:.4f} accuracy {epoch.val_accuracy:.4f}"
    shifted = "" if epoch.ood_accuracy is None else f"  shifted {epoch.ood_accuracy:.4f}"
    if epoch.val_metric not in (epoch.val_accuracy, epoch.val_loss):
        validation += f" metric {epoch.val_metric:.4f}"
    if epoch.ood_metric != epoch.ood_accuracy:
        shifted += f" metric {epoch.ood_metric:.4f}"
    err.print(
        f"epoch {epoch.number:>3}  loss {epoch.train_loss:.4f} accuracy {epoch.train_accuracy:.4f}{validation}{shifted}"
        f"  lr {epoch.lr:.2e}  {epoch.images_per_second:,.0f} images/s  {epoch.seconds:.1f} s"
    )
    if epoch.note:
        err.print(f"epoch {epoch.number:>3}  {epoch.note}")


def print_norms(rows: Sequence[Mapping[str, str]]) -> None:
    """Print the last epoch's rows of norms.csv; nothing where there are none."""
    if not rows:
        return
    last = rows[-1]["epoch"]
    table = Table("layer", "parameters", "gradient norm", "weight norm", title=f"norms in epoch {last}")
    for row in rows:
        if row["epoch"] == last:
            norms = (f"{float(row[name]):.3g}" for name in ("gradient_norm", "weight_norm"))
            table.add_row(row["layer"], f"{int(row['parameters']):,}", *norms)
    out.print(table)


def print_rate_search(found: "LRFindResult", picture: Any) -> None:
    """Print the rates that a rising rate has shown, and which of them to set."""
    table = Table("found", "learning rate", title="a rising learning rate")
    table.add_row("steepest descent", f"{found.steepest:.2e}")
    table.add_row("the loss diverges", "not in this range" if found.diverged is None else f"{found.diverged:.2e}")
    table.add_row("a tenth of that", "" if found.tenth is None else f"{found.tenth:.2e}")
    out.print(table)
    print_line(f"suggestion: optim.lr={found.suggestion:.1e} ({found.reason})")
    print_line(f"picture     {picture}")
