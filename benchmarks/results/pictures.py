"""Pictures of the comparison: plain against residual by depth, recipes, frozen stages."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from comp.results import files

Bars = Mapping[str, Sequence[float | None]]  # label -> a value for each group, None where there is none


def bars(path: Path, title: str, groups: Sequence[str], values: Bars, *, lowest: float, label: str = "") -> None:
    """Draw groups of bars with their percentages on top.

    Args:
        path: the PNG, replaced.
        title: above.
        groups: names below the groups of bars.
        values: series -> a share in [0, 1] for each group; None leaves a gap.
        lowest: where the axis begins.
        label: of the groups' axis.
    """
    figure = Figure((max(7.0, 1.1 * len(groups) * len(values) ** 0.5 + 2), 4.2), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(values)
    for number, (name, series) in enumerate(values.items()):
        positions = [index - 0.4 + (number + 0.5) * width for index, value in enumerate(series) if value is not None]
        heights = [100 * value for value in series if value is not None]
        drawn = axes.bar(positions, heights, width * 0.92, label=name)
        axes.bar_label(drawn, fmt="%.1f", fontsize=7, padding=1)
    axes.set_xticks(range(len(groups)), groups, fontsize=8)
    axes.set_xlabel(label)
    axes.set_ylabel("test accuracy, %")
    axes.set_ylim(100 * lowest, None)
    axes.margins(y=0.08)
    axes.set_title(title, fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    if len(values) > 1:
        figure.legend(loc="outside lower center", ncols=len(values), fontsize=8)
    _save(figure, path)


def norms(path: Path, tables: Mapping[str, Sequence[Mapping[str, str]]]) -> None:
    """Draw runs' gradient and weight norms of the last epoch, from input (0) to output (1); `tables`: of norms.csv."""
    figure = Figure((11.0, 4.5), layout="constrained")
    for axes, column in zip(figure.subplots(1, 2), ("gradient_norm", "weight_norm"), strict=True):
        for name, rows in tables.items():
            values = [float(row[column]) for row in rows if row["epoch"] == rows[-1]["epoch"]]
            axes.plot(np.linspace(0, 1, len(values)), values, marker="o", markersize=3, label=name)
        axes.set_title(column.replace("_", " "))
        axes.set_xlabel("depth")
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120, metadata={"Software": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(path, content.getvalue())
