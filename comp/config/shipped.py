"""The configs that come with comp, found by name from any folder.

They lie in a checkout's `configs/`, or beside the installed package in `comp_configs/` (see setup.py).
"""

import os
import re
from pathlib import Path

from comp.runtime.errors import ConfigError, nearest


def folder() -> Path:
    """Return the folder of the shipped configs."""
    beside = Path(__file__).parents[2]
    installed = beside / "comp_configs"
    return installed if installed.is_dir() else beside / "configs"


def names() -> list[str]:
    """Return the names of all shipped configs, such as `quickstart` and `cifar10/fastnet`."""
    return sorted(path.relative_to(folder()).with_suffix("").as_posix() for path in folder().rglob("*.yaml"))


def find(path: Path) -> Path:
    """Return the file that a config's path or name means.

    A file is itself. The name of a shipped config, with or without `.yaml`, is a local file of that name, else the
    shipped one. Anything else is returned unchanged.
    """
    local = Path(f"{path.as_posix().removesuffix('.yaml')}.yaml")
    if os.path.isfile(path) or local.with_suffix("").as_posix() not in names():
        return path
    return local if local.is_file() else folder() / local


def example_files(name: str) -> list[Path]:
    """Return the files of a shipped config, or of a family such as `cifar10`, with those that they extend.

    Paths are relative to `folder()`.

    Raises:
        ConfigError: an unknown name.
    """
    every, name = names(), name.removesuffix(".yaml").rstrip("/")
    pending = [Path(f"{config}.yaml") for config in every if config == name or config.startswith(f"{name}/")]
    if not pending:
        families = sorted({config.partition("/")[0] for config in every})
        raise ConfigError(
            f"--example: unknown config '{name}'; choose from {', '.join(families)}, or one of a family, such as "
            f"cifar10/fastnet{nearest(name, [*families, *every])}"
        )
    files: set[Path] = set()
    while pending:
        path = pending.pop()
        files.add(path)
        bases = re.findall(r"^extends: *(\S+)", (folder() / path).read_text(encoding="utf-8"), re.MULTILINE)
        pending += [Path(os.path.normpath(path.parent / base)) for base in bases]
    return sorted(files)
