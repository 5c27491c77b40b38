"""The promises about the GPUs of a machine: told apart by what this build of torch can run on. No test needs one."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from comp.inference.options import PLAIN
from comp.results import files, runs
from comp.runtime import device, gpu, rng
from comp.runtime.device import Execution, Precision
from comp.runtime.errors import ConfigError, RunError, UserError
from comp.training.step import seed_generators
from comp.workflows.load import load_without_data
from comp.workflows.predict import describe_prediction
from tests.support.commands import Result

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
RECORD = "runs/digits/one/execution.json"
NOTE = "probabilities may differ in their last digits"


def recorded(on: str, precision: Precision, *, compiled: bool = False) -> dict[str, Any]:
    return Execution(on, precision, channels_last=True, threads=1, compiled=compiled, workers=1).to_json()


def warned(value: Any) -> Any:
    """Return a value with a warning, as torch does of an old driver and of an old GPU; tests fail on one."""
    warnings.warn("Please update your GPU driver", stacklevel=2)
    return value


def refusal(call: Callable[[], object], kind: type[UserError] = ConfigError) -> str:
    """Return the message with which a call is refused; it names no internet address."""
    with pytest.raises(kind) as caught:
        call()
    assert "http" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> GPUs:
    """Give torch a machine with GPUs and, if `driver` is given, NVIDIA's driver without a usable GPU."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def install(
        *cards: Card,
        built_for: list[str] | None = None,
        cuda: str | None = "13.0",
        driver: str = "",
        warns: bool = True,
    ) -> None:
        reply = warned if warns else lambda value: value
        monkeypatch.setattr(torch.cuda, "is_available", lambda: reply(bool(cards)))
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=None: cards[index or 0].name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: reply(cards[index or 0].capability))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index=None: cards[index or 0])
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built_for or TURING_AND_LATER)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        folder = tmp_path / "nvidia"
        if driver:
            folder.mkdir(exist_ok=True)
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
    problem, capability = gpu.cuda_problem(), f"{card.capability[0]}.{card.capability[1]}"
    for part in (card.name, capability, torch.__version__, built_for[0], cure):
        assert part in problem
    for call, key in (
        (lambda: device.choose_device("cuda"), "train.device: "),
        (lambda: device.prediction_execution(recorded("cpu", "fp32"), RECORD, "cuda"), "--device: "),
        (lambda: device.local_gpu(0), "torchrun: GPU 0"),
    ):
        message = refusal(call)
        assert message.startswith(key)
        assert problem in message
    assert device.choose_device("auto") == "cpu"
    assert device.notes_on("auto") == [f"train.device: auto takes cpu: {problem}"]
    assert device.notes_on("cuda") == device.notes_on("cpu") == []


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


@pytest.mark.parametrize(
    ("cuda", "driver", "parts"),
    [
        ("13.0", "470.82.01", ("driver 470.82.01 is too old", "CUDA 13.0 needs driver 580 or later")),
        ("12.6", "470.82.01", ("driver 470.82.01 is too old", "CUDA 12.6 needs driver 525 or later")),
        ("12.6", "535.104.05", ("driver 535.104.05 is loaded", "finds no GPU", "container")),
        (None, "580.65.06", ("is built without CUDA", "install torch with CUDA")),
    ],
)
def test_a_driver_without_a_usable_gpu_is_noted_with_its_reason(
    machine: GPUs, monkeypatch: pytest.MonkeyPatch, cuda: str | None, driver: str, parts: tuple[str, ...]
) -> None:
    machine(cuda=cuda, driver=driver)
    assert device.choose_device("auto") == "cpu"
    (note,) = device.notes_on("auto")
    for part in ("train.device: auto takes cpu", torch.__version__, *parts):
        assert part in note
    assert all(part in refusal(lambda: device.choose_device("cuda")) for part in parts)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hidden on purpose
    assert device.notes_on("auto") == []
    assert "'cuda' is not on this machine, which has cpu" in refusal(lambda: device.choose_device("cuda"))


def test_a_machine_without_nvidia_has_nothing_to_note(machine: GPUs) -> None:
    machine()
    assert device.notes_on("auto") == []
    assert gpu.driver_version() == ""


def test_the_driver_is_read_from_both_kinds_of_kernel_module(machine: GPUs) -> None:
    machine(T4, driver="535.104.05")
    assert gpu.driver_version() == "535.104.05"
    (gpu._DRIVER / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (root@host)\nGCC"
    )
    assert gpu.driver_version() == "570.86.15"


@pytest.mark.parametrize(
    ("card", "record", "device_name", "precision", "reason"),
    [
        (T4, recorded("cuda", "bf16", compiled=True), "cuda", "fp16", "Tesla T4 is slow in bf16, or cannot"),
        (P100, recorded("cuda", "bf16"), "cuda", "fp32", "Tesla P100-PCIE-16GB is slow in bf16, or cannot"),
        (T4, recorded("cpu", "bf16"), "cpu", "bf16", None),  # the bits of the training's validation
        (T4, recorded("cuda", "fp16", compiled=True), "cuda", "fp16", None),
        (A100, recorded("cuda", "bf16", compiled=True), "cuda", "bf16", None),
        (H100, recorded("cuda", "fp16"), "cuda", "fp16", None),
        (None, recorded("cuda", "fp16", compiled=True), "cpu", "fp32", "'cuda' is not on this machine, which has cpu"),
        (None, recorded("mps", "fp32"), "cpu", "fp32", "'mps' is not on this machine, which has cpu"),
        (A100, recorded("mps", "fp32"), "cuda", "fp32", "'mps' is not on this machine, which has cuda, cpu"),
    ],
)
def test_a_prediction_computes_as_this_machine_does_best(
    machine: GPUs,
    monkeypatch: pytest.MonkeyPatch,
    card: Card | None,
    record: dict[str, Any],
    device_name: str,
    precision: str,
    reason: str | None,
) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")  # no compiler either
    machine(*filter(None, [card]), built_for=[*MAXWELL_TO_HOPPER])
    execution, note = device.prediction_execution(record, RECORD)
    assert (execution.device, execution.precision, execution.compiled) == (device_name, precision, False)
    if reason is None:
        assert note == ""
        return
    start = f"trained on {record['device']} in {record['precision']}, predicts on {device_name} in {precision}; {NOTE}"
    assert note.startswith(f"{start} (")
    assert reason in note


@pytest.mark.parametrize(("multiplies", "precision"), [(True, "bf16"), (False, "fp32")])
def test_bfloat16_moves_to_a_cpu_only_if_it_multiplies_it(
    machine: GPUs, monkeypatch: pytest.MonkeyPatch, multiplies: bool, precision: str
) -> None:
    machine(A100)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: multiplies)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    execution, note = device.prediction_execution(recorded("cuda", "bf16"), RECORD, "cpu")
    assert (execution.device, execution.precision) == ("cpu", precision)
    assert ("this cpu is slow in bf16" in note) != multiplies


@pytest.mark.parametrize(
    ("card", "record", "reason"),
    [
        (None, recorded("cuda", "fp32"), "its steps ran on cuda, but 'cuda' is not on this machine, which has cpu"),
        (P100, recorded("cuda", "fp32"), "its steps ran on cuda, but Tesla P100-PCIE-16GB has compute capability 6.0"),
        (T4, recorded("cuda", "bf16"), "in bf16, but Tesla T4 has compute capability 7.5, and bf16 needs 8.0"),
        (A100, recorded("cuda", "bf16", compiled=True), "its steps were compiled, and no C++ compiler was found"),
    ],
)
def test_a_resume_where_steps_cannot_be_computed_as_before_is_one_message(
    machine: GPUs, monkeypatch: pytest.MonkeyPatch, card: Card | None, record: dict[str, Any], reason: str
) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    machine(*filter(None, [card]))
    message = refusal(lambda: device.from_json(record, RECORD), RunError)
    assert message.startswith(f"{RECORD}: ")
    assert reason in message
    assert "train again: comp run runs/digits/one/config.yaml" in message


def test_half_precision_is_refused_where_it_is_slow(machine: GPUs) -> None:
    machine(T4)
    message = refusal(lambda: device.check_precision("bf16", "cuda"))
    assert message == ("train.precision: Tesla T4 has compute capability 7.5, and bf16 needs 8.0; use fp16 or auto")
    assert device.precisions_worth_trying("cuda") == ["fp32", "fp16"]
    device.check_precision("fp16", "cuda")
    assert "use bf16 or auto" in refusal(lambda: device.check_precision("fp16", "cpu"))
    assert "fp32 only; use fp32 or auto" in refusal(lambda: device.check_precision("bf16", "mps"))
    machine(A100)
    device.check_precision("bf16", "cuda")
    assert device.precisions_worth_trying("cuda") == ["fp32", "bf16"]


@pytest.mark.skipif(bool(device.missing_compiler("cpu")), reason="no C++ compiler")
def test_a_gpu_older_than_volta_cannot_compile(machine: GPUs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    machine(P100)
    assert device.missing_compiler("cuda") == ("Tesla P100-PCIE-16GB has compute capability 6.0, and Triton needs 7.0")
    machine(V100)
    assert device.missing_compiler("cuda") == ""


@pytest.fixture
def mac(machine: GPUs, monkeypatch: pytest.MonkeyPatch) -> None:
    machine()
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


@pytest.mark.usefixtures("mac")
def test_auto_takes_a_macs_gpu_and_says_that_it_is_untried() -> None:
    assert device.choose_device("auto") == device.choose_device("mps") == "mps"
    (note,) = device.notes_on("auto")
    assert "train.device=cpu" in note
    assert device.notes_on("mps") == []
    assert device.prediction_execution(recorded("cuda", "bf16"), RECORD)[0].device == "mps"


@pytest.mark.usefixtures("mac")
def test_a_mac_computes_in_fp32_and_uncompiled() -> None:
    assert device.precisions_worth_trying("mps") == ["fp32"]
    assert device.missing_compiler("mps") == "torch.compile is untested on MPS"
    for record in (recorded("cuda", "bf16", compiled=True), recorded("cuda", "fp16"), recorded("mps", "bf16")):
        execution, note = device.prediction_execution(record, RECORD, "mps")
        assert (execution.device, execution.precision, execution.compiled) == ("mps", "fp32", False)
        assert f"predicts on mps in fp32; {NOTE}" in note


def test_the_generator_of_a_mac_is_seeded_for_a_step_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its generator is one of the CPU here: `torch.mps` has the same three functions around its own."""
    generator = torch.Generator().manual_seed(5)
    monkeypatch.setattr(torch.mps, "manual_seed", generator.manual_seed)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda device: generator.get_state())
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state, device: generator.set_state(state))
    mps, before = torch.device("mps"), generator.get_state()
    with rng.preserve_rng_state(mps):
        seed_generators(7, mps)
        draws = [torch.rand(3, generator=generator)]
        seed_generators(7, mps)
        draws.append(torch.rand(3, generator=generator))
        assert torch.equal(*draws)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_timing_waits_for_a_gpu(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    waits = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append("cuda"))
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waits.append("mps"))
    Execution(name, "fp32", channels_last=False, threads=1).synchronize()
    Execution("cpu", "fp32", channels_last=False, threads=1).synchronize()
    assert waits == [name]


def test_cudnn_times_its_kernels_in_a_training_that_need_not_be_deterministic() -> None:
    for mine in (False, True):
        torch.backends.cudnn.benchmark = mine
        try:
            with device.kernel_choice(deterministic=False):
                assert torch.backends.cudnn.benchmark
            assert torch.backends.cudnn.benchmark == mine
            with device.kernel_choice(deterministic=True):
                assert not torch.backends.cudnn.benchmark
            assert torch.backends.cudnn.benchmark == mine
        finally:
            torch.backends.cudnn.benchmark = False


def test_settings_of_a_librarys_user_survive_a_training() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        for deterministic in (True, False):
            with device.kernel_choice(deterministic=deterministic):
                pass
            assert torch.are_deterministic_algorithms_enabled()
            assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_provenance_names_the_gpu_its_driver_and_libraries(machine: GPUs, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(A100, driver="580.65.06")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    facts = gpu.describe("cuda")
    assert facts == {
        "gpu": {"name": "NVIDIA A100-SXM4-40GB", "capability": "8.0", "memory_mib": 16384},
        "driver": "580.65.06",
        "cuda": "13.0",
        "cudnn": 91002,
    }
    machine_facts = runs.describe_machine(facts)["machine"]
    assert machine_facts == {**runs.describe_machine()["machine"], **facts}
    assert gpu.describe("cpu") == {"gpu": None, "driver": "", "cuda": "", "cudnn": None}


def test_a_driver_that_only_its_tool_shows_is_recorded(
    machine: GPUs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(A100)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu.describe("cuda")["driver"] == ""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 581.15\n")
    tool.chmod(0o755)
    assert gpu.describe("cuda")["driver"] == "581.15"


@pytest.mark.usefixtures("workplace")
def test_a_training_says_and_records_its_choice_of_a_device(machine: GPUs, comp: Callable[..., Result]) -> None:
    machine(cuda="13.0", driver="470.82.01", warns=False)  # torch itself asks for GPUs, too
    refused = comp("train", "small.yaml", "train.device=cuda")
    assert refused.code == 2
    assert "train.device: the GPU's driver 470.82.01 is too old" in " ".join(refused.err.split())
    trained = comp("train", "small.yaml", "train.device=auto", "train.epochs=1")
    assert trained.code == 0, trained.err
    (note,) = device.notes_on("auto")
    assert " ".join(trained.err.split()).count(note) == 1
    (run,) = runs.list_runs(Path("runs"))
    assert note in files.read_json(run.path / "execution.json")["notes"]
    described = run.provenance()["machine"]
    assert (described["gpu"], described["driver"], described["cuda"], described["cudnn"]) == (None, "", "", None)
    loaded = load_without_data(run)
    assert "gpu" not in describe_prediction(loaded, "best", PLAIN)
    machine(T4, warns=False)
    on_gpu = replace(loaded, execution=replace(loaded.execution, device="cuda"))
    assert describe_prediction(on_gpu, "best", PLAIN)["gpu"] == "Tesla T4"
