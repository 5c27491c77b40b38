"""The GPUs of this machine: which of them this build of torch can use, and what to record of them."""

import contextlib
import os
import re
from pathlib import Path
from typing import Any

import torch

_DRIVER = Path("/proc/driver/nvidia")
# The oldest driver that a major version of CUDA runs on.
_OLDEST_DRIVER = {12: 525, 13: 580}
# Builds of torch 2.10 and later: those for CUDA 12.6 reach from Maxwell to Hopper and end with torch 2.14, the others
# start at Turing.
_MAXWELL, _TURING = (5, 0), (7, 5)


def cuda_problem(index: int | None = None) -> str:
    """Return why a GPU of NVIDIA cannot be used, and what to install; empty if it can, or if there is none.

    Args:
        index: of the GPU; None: the current one.
    """
    if not torch.cuda.is_available():
        return _driver_problem()
    capability, built_for = torch.cuda.get_device_capability(index), torch.cuda.get_arch_list()
    if torch.version.cuda is None or not built_for or any(_runs_on(target, capability) for target in built_for):
        return ""  # without a CUDA version it is AMD's
    return (
        f"{name(index)} has compute capability {_dotted(capability)}, and torch {torch.__version__} is built for "
        f"{', '.join(built_for)}; {_fitting_build(capability)}"
    )


def _runs_on(target: str, capability: tuple[int, int]) -> bool:
    """Return whether code for a target (`sm_80`, `sm_90a`, `compute_70`) runs on a GPU.

    Machine code (sm) runs within its major version, on the same or a later minor one; with an `a` on exactly one.
    PTX (compute) is compiled at its first use, for any later GPU.
    """
    kind, _, number = target.partition("_")
    digits = number.rstrip("af")
    version = int(digits[:-1]), int(digits[-1])
    if number.endswith("a"):
        return version == capability
    return version <= capability and (version[0] == capability[0] or (kind == "compute" and not number.endswith("f")))


def _fitting_build(capability: tuple[int, int]) -> str:
    if capability < _MAXWELL:
        return "no build of torch 2.10 or later supports it"
    if capability < _TURING:
        return "install torch 2.14 or older, built for CUDA 12.6"
    return "install torch built for CUDA 13.0 or later"


def _driver_problem() -> str:
    """Return why CUDA is not available although NVIDIA's driver is loaded; empty if it is not, or GPUs are hidden."""
    if not _DRIVER.exists() or os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return ""
    cuda, driver = torch.version.cuda, driver_version()
    if cuda is None:
        return f"torch {torch.__version__} is built without CUDA, and this machine has a GPU; install torch with CUDA"
    oldest = _OLDEST_DRIVER.get(int(cuda.partition(".")[0]), 0)
    if driver and int(driver.partition(".")[0]) < oldest:
        return (
            f"the GPU's driver {driver} is too old for torch {torch.__version__}: CUDA {cuda} needs driver {oldest} or "
            "later; update it, or install torch built for an older CUDA"
        )
    return (
        f"the GPU's driver {driver or '(unknown version)'} is loaded, but torch {torch.__version__} for CUDA {cuda} "
        "finds no GPU; a container must be started with access to it"
    )


def driver_version() -> str:
    """Return the version of NVIDIA's driver, such as `580.65.06`; empty without one."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        match = re.search(r"\s(\d{3,}\.\d+(\.\d+)?)\s", (_DRIVER / "version").read_text())
        return match.group(1) if match else ""
    return ""


def name(index: int | None = None) -> str:
    """Return the name of a CUDA GPU; None: the current one."""
    return torch.cuda.get_device_name(index)


def describe(device: str) -> dict[str, Any]:
    """Return what provenance records of the GPU that a training runs on.

    Args:
        device: `cpu`, `cuda` or `mps`.

    Returns:
        gpu (name, compute capability, MiB of memory), driver, cuda and cudnn; None or empty on the CPU.
    """
    facts: dict[str, Any] = {"gpu": None, "driver": "", "cuda": "", "cudnn": None}
    if device == "cuda":
        memory = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        capability = _dotted(torch.cuda.get_device_capability())
        facts |= {"gpu": {"name": name(), "capability": capability, "memory_mib": memory >> 20}}
        facts |= {"driver": driver_version(), "cuda": torch.version.cuda or "", "cudnn": _cudnn_version()}
    elif device == "mps":
        memory = torch.mps.recommended_max_memory()
        facts["gpu"] = {"name": torch.backends.mps.get_name(), "capability": "", "memory_mib": memory >> 20}
    return facts


def _cudnn_version() -> int | None:
    with contextlib.suppress(RuntimeError):  # another cuDNN than torch was built with
        return torch.backends.cudnn.version()
    return None


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
