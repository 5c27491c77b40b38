"""The promises about the GPUs of a machine: told apart by what this build of torch can run on. No test needs one."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from comp.runtime import device, gpu
from comp.runtime.errors import ConfigError

TURING_AND_LATER = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
MAXWELL_TO_HOPPER = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]


@dataclass(frozen=True)
class Card:
    """A GPU as torch describes it."""

    name: str
    capability: tuple[int, int]
    total_memory: int = 16 << 30


P100, V100, T4 = Card("Tesla P100-PCIE-16GB", (6, 0)), Card("Tesla V100-SXM2-16GB", (7, 0)), Card("Tesla T4", (7, 5))
A100, H100 = Card("NVIDIA A100-SXM4-40GB", (8, 0)), Card("NVIDIA H100", (9, 0))
RTX_5090, GTX_780 = Card("NVIDIA GeForce RTX 5090", (12, 0)), Card("NVIDIA GeForce GTX 780", (3, 5))
GPUs = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> GPUs:
    """Give torch a machine with GPUs and, if `driver` is given, NVIDIA's driver without a usable GPU."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def install(*cards: Card, built_for: list[str] | None = None, cuda: str | None = "13.0", driver: str = "") -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cards))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=None: cards[index or 0].name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: cards[index or 0].capability)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index=None: cards[index or 0])
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built_for or TURING_AND_LATER)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        folder = tmp_path / "nvidia"
        if driver:
            folder.mkdir()
            (folder / "version").write_text(
                f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver}  Sat Aug  5 13:59:57 UTC 2023\n"
                "GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)\n"
            )
        monkeypatch.setattr(gpu, "_DRIVER", folder)

    return install


@pytest.mark.parametrize(
    ("card", "built_for"),
    [
        (T4, TURING_AND_LATER),
        (A100, TURING_AND_LATER),
        (RTX_5090, TURING_AND_LATER),
        (Card("RTX 4090", (8, 9)), TURING_AND_LATER),  # code for 8.6 runs on 8.9
        (P100, MAXWELL_TO_HOPPER),
        (Card("GTX 1080 Ti", (6, 1)), MAXWELL_TO_HOPPER),  # code for 6.0 runs on 6.1
        (RTX_5090, ["sm_80", "compute_80"]),  # PTX is compiled for later GPUs
        (H100, ["sm_90a"]),
    ],
)
def test_a_gpu_that_this_build_of_torch_has_code_for_is_used(machine: GPUs, card: Card, built_for: list[str]) -> None:
    machine(card, built_for=built_for)
    assert gpu.cuda_problem() == ""


@pytest.mark.parametrize(
    ("card", "built_for", "cure"),
    [
        (P100, TURING_AND_LATER, "torch 2.14 or older, built for CUDA 12.6"),
        (V100, TURING_AND_LATER, "torch 2.14 or older, built for CUDA 12.6"),
        (RTX_5090, MAXWELL_TO_HOPPER, "torch built for CUDA 13.0 or later"),
        (RTX_5090, ["sm_90a", "compute_90a"], "torch built for CUDA 13.0 or later"),
        (GTX_780, TURING_AND_LATER, "no build of torch 2.10 or later"),
        (T4, ["sm_80", "compute_80"], "torch built for CUDA 13.0 or later"),  # code for a later GPU
    ],
)
def test_a_gpu_without_code_is_named_with_the_build_that_has_it(
    machine: GPUs, card: Card, built_for: list[str], cure: str
) -> None:
    machine(card, built_for=built_for)
    problem = gpu.cuda_problem()
    capability = f"{card.capability[0]}.{card.capability[1]}"
    for part in (card.name, capability, torch.__version__, built_for[0], cure):
        assert part in problem
    assert "http" not in problem


def test_every_process_of_torchrun_gets_a_gpu_of_its_own(machine: GPUs, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(T4, T4)
    assert [device.local_gpu(rank) for rank in range(2)] == [0, 1]
    with pytest.raises(ConfigError, match=r"LOCAL_RANK below 2, the number of GPUs, found 2; use --nproc-per-node 2"):
        device.local_gpu(2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    machine(T4)
    with pytest.raises(ConfigError, match=r"below 1, the number of GPUs \(CUDA_VISIBLE_DEVICES=0\)"):
        device.local_gpu(1)
    machine(T4, P100)
    with pytest.raises(ConfigError, match=r"GPU 1 cannot be used: Tesla P100-PCIE-16GB has compute capability 6\.0"):
        device.local_gpu(1)
