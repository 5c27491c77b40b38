"""Terminal output: bars while a command works, tables after it.

Bars and epoch lines go to stderr, results to stdout: `comp run --json > result.json` writes the result alone.
"""

# The imports below are this package's names.
# ruff: noqa: F401
# mypy: implicit-reexport

from comp.cli.console.leaderboard import board_cells, metric_heads, print_groups, print_leaderboard, print_rows
from comp.cli.console.models_and_data import (
    MOST_COUNTED_MODELS,
    print_contents,
    print_dataset,
    print_findings,
    print_models,
    print_notes,
)
from comp.cli.console.output import Bars, bars, print_json, print_line, print_note, print_table
from comp.cli.console.runs import print_answers, print_evaluation, print_prediction, print_stages, print_summary
from comp.cli.console.training import print_choice, print_epoch, print_lr_find, print_norms, print_start
from comp.cli.console.tuning import print_study, print_trial
