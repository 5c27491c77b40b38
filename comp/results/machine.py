"""What a result was made with: command, code, package versions and machine. Torch-free."""

import contextlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_VERSIONS = ("comp", "torch", "torchvision", "timm", "numpy", "albumentations", "optuna", "pandas", "scikit-learn")


def describe_machine(accelerator: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return argv, git commit, versions, machine and time for provenance and sidecars.

    Args:
        accelerator: more values for `machine`, where something was computed: see `comp.runtime.gpu.describe`.
    """
    machine = {"system": platform.platform(), "processor": cpu_model(), "cpus": os.cpu_count()}
    return {
        "argv": [hide_passwords(word) for word in sys.argv[1:]],
        "git": git_commit(),
        "versions": package_versions(),
        "machine": {**machine, **(accelerator or {})},
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def hide_passwords(text: str) -> str:
    """Return a text without the passwords in its URLs: records are shared."""
    return re.sub(r"(://[^:/@\s]*):[^/\s]*@", r"\1@", text)


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    installed = {"python": platform.python_version()}
    for name in _VERSIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return installed


def git_commit() -> str:
    """Return the working directory's commit, with `-dirty` if files differ; empty outside a repository."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def cpu_model() -> str:
    """Return the processor's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
