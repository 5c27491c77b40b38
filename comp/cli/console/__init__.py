"""Terminal output: bars while a command works, tables after it.

Bars and epoch lines go to stderr, results to stdout: `comp run --json > result.json` writes the result alone.
"""

from comp.cli.console.leaderboard import (
    board_cells,
    metric_heads,
    print_groups,
    print_leaderboard,
    print_rows,
    print_unfinished,
)
from comp.cli.console.models_and_data import (
    MOST_COUNTED_MODELS,
    print_contents,
    print_dataset,
    print_findings,
    print_label_errors,
    print_models,
    print_notes,
)
from comp.cli.console.output import (
    bars,
    print_json,
    print_line,
    print_next,
    print_note,
    print_table,
    print_text,
    print_written,
)
from comp.cli.console.runs import (
    print_answers,
    print_decision,
    print_evaluation,
    print_prediction,
    print_run_json,
    print_stages,
    print_submission,
    print_summary,
)
from comp.cli.console.shift import print_shift
from comp.cli.console.training import print_choice, print_cost, print_epoch, print_lr_find, print_norms, print_start
from comp.cli.console.tuning import print_study, print_trial, print_watch

__all__ = [
    "MOST_COUNTED_MODELS",
    "bars",
    "board_cells",
    "metric_heads",
    "print_answers",
    "print_choice",
    "print_contents",
    "print_cost",
    "print_dataset",
    "print_decision",
    "print_epoch",
    "print_evaluation",
    "print_findings",
    "print_groups",
    "print_json",
    "print_label_errors",
    "print_leaderboard",
    "print_line",
    "print_lr_find",
    "print_models",
    "print_next",
    "print_norms",
    "print_note",
    "print_notes",
    "print_prediction",
    "print_rows",
    "print_run_json",
    "print_shift",
    "print_stages",
    "print_start",
    "print_study",
    "print_submission",
    "print_summary",
    "print_table",
    "print_text",
    "print_trial",
    "print_unfinished",
    "print_watch",
    "print_written",
]
