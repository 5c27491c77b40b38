"""All that is asked of a GPU, in one call of at most nine minutes, as one table.

    python -m benchmarks.gpu [--out gpu.md] [--data data] [--only accuracy training ...]
    python -m benchmarks.gpu --quick --device cpu     # every part at a tiny size: shows that the script works

- accuracy: configs/cifar10/fastnet.yaml, three seeds after a warm-up; 94 % within 4 s of training;
- training: ResNet-18 with AutoAugment, against the tutorial's loop (`benchmarks.training_peers`) and a bare step;
- prediction: 950,000 images by ResNet-18, blocks stored, within 60 s;
- suite: 19 x 5 blocks of 10,000 images corrupted within 3 s, copied back to the host;
- pixels: policies and corruptions on the GPU against the CPU, within one grey level;
- launches: kernels launched, waits and copies to the host of a training step, by torch's profiler.

Every part is a process of its own with a time limit: one that fails or hangs costs no other, and what it had measured
stays. The table is written after each. Real CIFAR-10 is read from DATA/cifar-10-batches-bin; without it pixels are
random, which changes no speed, and the table says so.
"""

import argparse
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.prediction import CLASSES, built
from benchmarks.training_overhead import write_images
from comp import config as configs
from comp.augment import engine, policies
from comp.augment.policies import POLICIES
from comp.config import Config
from comp.data import suites
from comp.data.corruptions.suite import NAMES, corrupt
from comp.data.splits import Split, Suite
from comp.inference.predict import predict
from comp.results import prediction_files, runs
from comp.results.blocks import block_grid
from comp.runtime import cores, rng
from comp.runtime.device import Execution
from comp.training import autotune, loop, optimizers
from comp.training.context import TrainContext, build_context
from comp.workflows import build, train
from comp.workflows.load import load_run
from comp.workflows.predict import predict_split

FASTNET = "configs/cifar10/fastnet.yaml"
RICH = ["basic", "autoaugment_cifar10"]
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


@dataclass(frozen=True)
class Setting:
    """What a part runs on, and how much of it."""

    device: str
    quick: bool
    data: Path

    @property
    def is_real(self) -> bool:
        return not self.quick and (self.data / "cifar-10-batches-bin" / "test_batch.bin").is_file()

    @property
    def pixels(self) -> str:
        return "CIFAR-10" if self.is_real else "random pixels"

    @property
    def network(self) -> str:
        return "simple_cnn" if self.quick else "resnet18"

    def size(self, whole: int, quick: int) -> int:
        return quick if self.quick else whole

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Row:
    """A row of the table; `met` is None where nothing was asked, or not on this machine."""

    asked: str
    measured: str
    met: bool | None = None


Part = Callable[[Setting, Path], Iterator[Row]]


def accuracy(setting: Setting, folder: Path) -> Iterator[Row]:
    count = setting.size(50_000, 256)
    overrides = [f"train.device={setting.device}", f"data.root={setting.data}", "track.wandb=disabled"]
    if not setting.is_real:
        write_images(folder, count)
        overrides += ["data.source=arrays", f"data.root={folder}", "competition.suite.source=none"]
    if setting.quick:
        overrides += ["train.batch_size=64", "train.epochs=2", "train.sizes={1: 22, 2: 32}"]
    warm = configs.load(FASTNET, [*overrides, "train.epochs=2", "train.sizes={1: 22, 2: 32}"])
    train.train(warm, runs_root=folder / "warm")
    seconds, shares = [], []
    for seed in range(setting.size(3, 1)):
        run = train.train(configs.load(FASTNET, [*overrides, f"seed={seed}"]), runs_root=folder / "runs")
        seconds.append(run.metrics().train_seconds)
        if setting.is_real:
            predicted = predict_split(load_run(run), "test")
            shares.append(100 * float((predicted.top1 == predicted.targets).mean()))
    took = ", ".join(f"{value:.2f}" for value in seconds)
    right = f"{', '.join(f'{share:.2f}' for share in shares)} %" if shares else "accuracy not measured"
    met = statistics.mean(shares) >= 94 and statistics.median(seconds) <= 4 if shares else None
    yield Row("94 % on CIFAR-10 within 4 s", f"{right} in {took} s ({setting.pixels})", met)


def session_of(setting: Setting, folder: Path, policy: list[str], batch: int, steps: int, epochs: int) -> TrainContext:
    """Return a training on random pixels."""
    folder.mkdir(exist_ok=True)
    write_images(folder, batch * steps)
    values = {
        "competition": {"name": "gpu", "suite": {"source": "none"}, "ood_validation": {"severities": []}},
        "data": {"source": "arrays", "root": str(folder), "validation": "none"},
        "model": {"name": setting.network, **({} if setting.quick else {"stem": "cifar"})},
        "augment": {"policy": policy},
        "train": {"epochs": epochs, "batch_size": batch, "compile": False, "device": setting.device},
    }
    config: Config = configs.from_mapping(values, "gpu")
    dataset = build.prepare(config, folder)
    model = build.build_model(config, dataset)
    run = runs.create(folder, config, "run", {})
    execution = autotune.choose_execution(model, dataset, config).execution
    return build_context(config, dataset, run, model, execution, fresh=True)


def training(setting: Setting, folder: Path) -> Iterator[Row]:
    batch, steps = setting.size(512, 4), setting.size(40, 1)
    ratios, rate = whole_against_bare(
        setting, session_of(setting, folder / "bare", RICH, batch, steps, setting.size(5, 2))
    )
    ratio = statistics.median(ratios)
    spread = f"{100 * (min(ratios) - 1):+.1f} to {100 * (max(ratios) - 1):+.1f} %"
    yield Row(
        "ResNet-18, AutoAugment: within 10 % of a bare step",
        f"{100 * (ratio - 1):+.1f} % ({spread}); bare {rate:,.0f} images/s, batch {batch}",
        ratio <= 1.1,
    )
    from benchmarks import training_peers as peers

    peer_folder = folder / "peers"
    peer_folder.mkdir()
    write_images(peer_folder, batch * steps)
    theirs, _ = peers.tutorial(peer_folder, batch, True)
    ours, how = peers.with_comp(peer_folder, batch, True)
    yield Row(
        "ResNet-18, AutoAugment and ColorJitter: at least 3 times the tutorial's loop",
        f"{theirs / ours:.1f} times: {batch * steps / ours:,.0f} images/s ({how}) against "
        f"{batch * steps / theirs:,.0f} with {peers.WORKERS} workers",
        theirs / ours >= 3,
    )


def whole_against_bare(setting: Setting, session: TrainContext) -> tuple[list[float], float]:
    """Return each epoch's seconds over those of as many bare steps, and the bare steps' images a second."""
    model = copy.deepcopy(session.model)
    optimizer = optimizers.for_model(model, session.config.optim)
    order = torch.arange(session.batch_size, device=session.execution.torch_device)
    batch = next(session.train.batches(order, session.batch_size, epoch=0))
    images = session.execution.layout(model.prepare(batch.images))
    whole: list[float] = []
    bare: list[float] = []
    mark = time.perf_counter()

    def bare_step() -> None:
        with session.execution.autocast():
            logits = model.inner(images)
        loss = nn.functional.cross_entropy(logits.float(), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def on_epoch(epoch: loop.Epoch) -> None:
        nonlocal mark
        setting.wait()
        now = time.perf_counter()
        whole.append(now - mark)
        for _ in range(session.steps_per_epoch):
            bare_step()
        setting.wait()
        mark = time.perf_counter()
        bare.append(mark - now)

    loop.fit(session, on_epoch=on_epoch)
    ratios = [ours / theirs for ours, theirs in zip(whole[1:], bare[1:], strict=True)]  # the first warms up
    return ratios, session.steps_per_epoch * session.batch_size / statistics.median(bare[1:])


def execution_of(setting: Setting) -> Execution:
    return Execution(setting.device, "bf16", channels_last=True, threads=cores.default_threads())


def prediction(setting: Setting, folder: Path) -> Iterator[Row]:
    count = setting.size(10_000, 4)
    blocks = block_grid(range(19), range(1, 6), count)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)
    suite = Suite("suite", blocks, lambda block: Split(block.name, pixels, block.ids(), None))
    execution, model = execution_of(setting), built(setting.network)
    execution.place(model)

    def work(images: Split | Suite, parts: Path) -> float:
        began = time.perf_counter()
        stored = predict(
            model, images, classes=CLASSES, task="single_label", execution=execution,
            batch_size=setting.size(1000, 4), made_by={}, parts=parts,
        )  # fmt: skip
        prediction_files.save(folder / "suite.npz", stored)
        return time.perf_counter() - began

    work(suite.open(blocks[0]), folder / "warm.parts")
    seconds, rows = work(suite, folder / "suite.parts"), len(suite)
    yield Row(
        "950,000 predictions of ResNet-18 within 60 s",
        f"{rows:,} in {seconds:.1f} s, {rows / seconds:,.0f} images/s",
        seconds <= 60 and rows >= 950_000,
    )


def clean_images(setting: Setting, count: int) -> np.ndarray:
    """Return [count, 32, 32, 3] test images, or random ones."""
    if setting.is_real:
        from benchmarks.corruptions import read_images

        return read_images(setting.data / "cifar-10-batches-bin/test_batch.bin", count).permute(0, 2, 3, 1).numpy()
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)


def suite(setting: Setting, folder: Path) -> Iterator[Row]:
    count = setting.size(10_000, 4)
    ids = np.arange(count).astype(np.str_)
    clean = Split("test", np.ascontiguousarray(clean_images(setting, count)), ids, None)
    made = suites.corrupted_suite("suite", clean, block_grid(range(19), range(1, 6), count), 0).on(setting.device)
    few = suites.corrupted_suite("suite", clean, block_grid(range(19), range(1, 6), 4), 0).on(setting.device)
    for block in (*few.blocks, made.blocks[0]):  # tables and textures are built once a process
        (few if block.count == 4 else made).open(block)
    began = time.perf_counter()
    for block in made.blocks:
        made.open(block)
    seconds = time.perf_counter() - began
    yield Row(
        "the suite of 19 x 5 x 10,000 images within 3 s",
        f"{len(made):,} in {seconds:.2f} s, {len(made) / seconds:,.0f} images/s ({setting.pixels})",
        seconds <= 3 and count == 10_000,
    )


def pixels(setting: Setting, folder: Path) -> Iterator[Row]:
    count = setting.size(512, 4)
    images = torch.from_numpy(np.array(clean_images(setting, count))).permute(0, 3, 1, 2)
    keys = rng.keys(0, 1, torch.arange(count))

    def augmented(where: str, name: str) -> torch.Tensor:
        policy = policies.resolve(name, (), ())
        flips = engine.alternating_flip_mask(0, 1, torch.arange(count, device=where))
        result = engine.augment(images.to(where), policy, keys.to(where), flip_mask=flips).float()
        return result.cpu() * (1 if result.max() > 1.5 else 255)  # grey levels, or their 255ths

    def corrupted(where: str, name: str) -> torch.Tensor:
        indices = torch.arange(count, device=where)
        levels = range(1, 6) if not setting.quick else (3,)
        blocks = [corrupt(images.to(where), name, level, seed=0, indices=indices).cpu() for level in levels]
        return torch.cat(blocks).float()

    for kind, names, work in (("policies", tuple(POLICIES), augmented), ("corruptions", NAMES, corrupted)):
        worst, where, beyond, total = 0.0, "", 0, 0
        for name in names:
            difference = (work("cpu", name) - work(setting.device, name)).abs()
            beyond, total = beyond + int((difference > 1.001).sum()), total + difference.numel()
            if float(difference.max()) > worst:
                worst, where = float(difference.max()), name
        yield Row(
            f"{kind}: the CPU's pixels, within one grey level",
            f"at most {worst:.2f} {f'({where})' if where else ''}; {beyond:,} of {total:,} values beyond one",
            beyond == 0,
        )


def launches(setting: Setting, folder: Path) -> Iterator[Row]:
    batch, steps = setting.size(512, 4), setting.size(20, 1)
    for name in ("basic", "autoaugment_cifar10", "robust", "augmix"):
        session = session_of(setting, folder / name, [name], batch, steps, 3)
        activities = [torch.profiler.ProfilerActivity.CPU]
        if setting.device == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        profiler = torch.profiler.profile(activities=activities)

        def on_epoch(epoch: loop.Epoch, profiler: Any = profiler) -> None:
            setting.wait()
            if epoch.number == 1:
                profiler.start()
            elif epoch.number == 2:
                profiler.stop()

        loop.fit(session, on_epoch=on_epoch)
        counts: Counter[str] = Counter()
        for event in profiler.key_averages():
            counts[event.key] += event.count
        launched = sum(number for key, number in counts.items() if "LaunchKernel" in key)
        waited = sum(counts[key] for key in WAITS)
        home = sum(number for key, number in counts.items() if key.startswith("Memcpy DtoH"))
        there = sum(number for key, number in counts.items() if key.startswith("Memcpy HtoD"))
        asked = f"a step with `{name}`: no wait, at most one copy to the GPU"
        if setting.device != "cuda":
            yield Row(asked, "profiled; only a GPU has launches")
            continue
        yield Row(
            asked,
            f"{launched / steps:,.0f} launches, {waited / steps:.1f} waits, {home / steps:.1f} copies to the host and "
            f"{there / steps:.1f} from it (an epoch of {steps} steps, its end included)",
            # An epoch's end reads its sums back: a few waits an epoch, less than one a step.
            waited < steps and home < steps and there <= steps,
        )


PARTS: dict[str, tuple[Part, int]] = {  # and the most seconds
    "accuracy": (accuracy, 120),
    "training": (training, 110),
    "prediction": (prediction, 90),
    "suite": (suite, 50),
    "pixels": (pixels, 60),
    "launches": (launches, 90),
}


def heading(setting: Setting) -> str:
    """Return the date, the machine and the versions."""
    date, versions = datetime.now(UTC).date().isoformat(), f"torch {torch.__version__}"
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    if setting.device != "cuda":
        warning = "**on a CPU, at tiny sizes: no GPU's numbers, they show that the script works**"
        return f"{date}: {warning}; {machine}, {versions}"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.CalledProcessError):
        driver = "unknown"
    cudnn = torch.backends.cudnn.version()
    return (
        f"{date}: {torch.cuda.get_device_name()}, driver {driver}, CUDA {torch.version.cuda}, cuDNN {cudnn}, "
        f"{versions}; {machine}"
    )


def run_part(name: str, setting: Setting, out: Path) -> None:
    """Run a part in this process, and add each row to a file as soon as it is measured."""
    part, _ = PARTS[name]
    with tempfile.TemporaryDirectory() as folder, out.open("a") as file:
        os.environ["COMP_CACHE"] = str(Path(folder) / "cache")
        for row in part(setting, Path(folder)):
            file.write(json.dumps([row.asked, row.measured, row.met]) + "\n")
            file.flush()


def rows_of(name: str, arguments: list[str], device: str, limit: float) -> list[Row]:
    """Run a part in a process of its own; return its rows, the last one saying why it ended early if it did."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows"
        out.touch()
        command = [sys.executable, "-m", "benchmarks.gpu", *arguments, "--part", name, "--rows", str(out)]
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
        log = Path(folder) / "log"
        with log.open("w") as errors:
            try:
                code = subprocess.run(
                    command, env={**os.environ, **hidden}, stdout=errors, stderr=errors, timeout=limit, check=False
                ).returncode
                ended = f"failed with code {code}" if code else ""
            except subprocess.TimeoutExpired:
                ended = f"stopped after {limit:.0f} s"
        rows = [Row(*json.loads(line)) for line in out.read_text().splitlines()]
        if ended:
            print(f"\n{name}: {ended}\n{log.read_text()[-3000:]}", file=sys.stderr, flush=True)
            last = (log.read_text().strip().splitlines() or [""])[-1][:200].replace("|", "/")
            rows.append(Row(name, f"{ended}: {last}", met=False))
    return rows


def table(setting: Setting, lines: list[str]) -> str:
    return "\n".join([heading(setting), "", "| asked | measured | met | s |", "|---|---|---|---|", *lines, ""])


def main() -> None:
    """Run every part in turn, and write the table after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="a tiny size of everything")
    parser.add_argument("--data", type=Path, default=Path("data"), help="holds cifar-10-batches-bin")
    parser.add_argument("--out", type=Path, default=Path("gpu.md"))
    parser.add_argument("--seconds", type=float, default=530, help="of all parts together")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    setting = Setting(given.device, given.quick, given.data)
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device is here; --quick --device cpu shows that the script works")
    if given.part:
        run_part(given.part, setting, given.rows)
        return
    arguments = ["--device", given.device, "--data", str(given.data), *(["--quick"] if given.quick else [])]
    deadline = time.monotonic() + given.seconds
    lines: list[str] = []
    for name in given.only:
        began = time.monotonic()
        limit = min(given.seconds if given.quick else PARTS[name][1], deadline - began)
        rows = rows_of(name, arguments, given.device, limit) if limit > 1 else [Row(name, "no time was left")]
        for number, row in enumerate(rows):
            met = "-" if row.met is None or given.device == "cpu" else "yes" if row.met else "**no**"
            seconds = "" if number else f"{time.monotonic() - began:.0f}"
            lines.append(f"| {row.asked} | {row.measured} | {met} | {seconds} |")
        given.out.write_text(table(setting, lines))
    print(table(setting, lines))
    if any("failed with code" in line or "stopped after" in line for line in lines):
        sys.exit(1)


if __name__ == "__main__":
    main()
