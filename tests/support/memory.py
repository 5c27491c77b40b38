"""Networks that run out of memory above so many images, as real allocators say it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from comp.models.classifier import Classifier

MakeError = Callable[[], Exception]

# What the libraries raise, by allocator; the texts are theirs.
ERRORS: dict[str, MakeError] = {
    "CUDA": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "CPU": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
    "oneDNN": lambda: RuntimeError("could not create a primitive"),
    "CPU on Windows": lambda: RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    "Python": MemoryError,
    "MPS": lambda: RuntimeError("MPS backend out of memory (MPS allocated: 5.00 GB, max allowed: 9.07 GB)."),
    "cuDNN": lambda: RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "cuDNN's engines": lambda: RuntimeError("GET was unable to find an engine to execute this computation"),
    "cuDNN's algorithms": lambda: RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
    "cuBLAS": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "NCCL": lambda: torch.distributed.DistBackendError("NCCL error: Last error: Cuda failure 2 'out of memory'"),
    "the runtime": lambda: RuntimeError("cudaErrorMemoryAllocation: the API call was unable to allocate"),
}


class _Log(list[int]):
    """A list that copies of a network share."""

    def __deepcopy__(self, memo: object) -> "_Log":
        return self


class Limited(nn.Module):
    """A network that runs out of memory above `most` images.

    Args:
        network: images -> logits.
        most: images at a time.
        error: makes what it raises then.
    """

    def __init__(self, network: nn.Module, most: int, error: MakeError = MemoryError) -> None:
        super().__init__()
        self.inner, self.most, self.error = network, most, error
        self.sizes = _Log()
        """Images of every call of this network and its copies, in order."""

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        self.sizes.append(len(images))
        if len(images) > self.most:
            raise self.error()
        logits: Tensor = self.inner(images)
        return logits


def limit_classifiers(
    monkeypatch: pytest.MonkeyPatch, *, training: int = 10**9, evaluation: int = 10**9, error: MakeError = MemoryError
) -> None:
    """Let every model that is built from here on run out of memory above so many images, in either mode."""
    forward = Classifier.forward

    def limited(self: Classifier, images: Tensor) -> Tensor:
        if len(images) > (training if self.training else evaluation):
            raise error()
        return forward(self, images)

    monkeypatch.setattr(Classifier, "forward", limited)


# A process of its own for each: what one leaves behind in its addresses, the next one lacks.
_BEGIN = """
import resource, sys
from pathlib import Path
import matplotlib.backends.backend_agg, matplotlib.figure, scipy.stats, sklearn.metrics, torch  # not within the limit
from comp.results import plots
from comp.workflows import load, predict, train

torch.nn.Conv2d(3, 8, 3)(torch.zeros(2, 3, 8, 8)).sum().backward()
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (MEGABYTES << 20), resource.RLIM_INFINITY))
"""
COMMAND = """
from comp.cli import app
app.main(sys.argv[1:])
"""


def in_megabytes(megabytes: int, folder: Path, program: str, *arguments: object) -> str:
    """Return what a Python program prints that has so many megabytes of addresses beside torch's own.

    Args:
        megabytes: more than it uses once it has loaded torch, SciPy, scikit-learn and matplotlib.
        folder: the working directory.
        program: its text, such as `COMMAND`; `sys` is imported.
        arguments: as `sys.argv[1:]`.
    """
    command = [sys.executable, "-c", _BEGIN.replace("MEGABYTES", str(megabytes)) + program, *map(str, arguments)]
    # Each thread that allocates may reserve 64 megabytes of addresses for itself, depending on the moment.
    environment = os.environ | {"MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
