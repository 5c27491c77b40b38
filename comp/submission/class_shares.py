"""`predict.prior`: a name, or a CSV of the classes' shares. Torch-free."""

from collections.abc import Mapping
from pathlib import Path

from comp.runtime.errors import ConfigError
from comp.submission import csv_io

Prior = str | Mapping[str, float]  # `none`, `uniform`, `train`, or each class's share
_NAMES = ("none", "uniform", "train")
_COLUMNS = ["class", "share"]
_SUM_TOLERANCE = 0.01  # of shares that were rounded


def read_prior(setting: str) -> Prior:
    """Return `predict.prior`, with the content of a file in place of its path.

    Raises:
        ConfigError: neither a name nor a CSV of each class once with a share from 0 to 1, with a sum of 1.
    """
    if setting in _NAMES:
        return setting
    path = Path(setting)
    if path.suffix != ".csv":
        raise ConfigError(
            f"predict.prior: expected {', '.join(_NAMES)}, or a .csv with the columns class and share; found "
            f"'{setting}'"
        )
    import pandas as pd  # slow to import

    table = csv_io.read_table(path, ConfigError)
    columns = [str(column).strip() for column in table.columns]
    if columns != _COLUMNS:
        raise ConfigError(f"{path} (predict.prior): expected the columns class,share, found {','.join(columns)}")
    names, shares = table.iloc[:, 0].tolist(), pd.to_numeric(table.iloc[:, 1], errors="coerce")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{path} (predict.prior): classes that occur twice: {csv_io.list_some(twice)}")
    if wrong := table.iloc[:, 1][~shares.between(0, 1)].tolist():
        raise ConfigError(f"{path} (predict.prior): expected shares from 0 to 1, found {csv_io.list_some(wrong)}")
    total = shares.sum()
    if abs(total - 1) > _SUM_TOLERANCE:
        raise ConfigError(f"{path} (predict.prior): expected shares that sum to 1, found {total:g}; list every class")
    return dict(zip(names, shares.tolist(), strict=True))
