"""Images a second of training and prediction beside busy processes, as shares of the quiet machine's.

    python -m benchmarks.busy_machine [--rounds 2] [--windows 2] [--plain]

A fastnet M (bfloat16, channels_last) trains on random 32-px images with the policy `robust`, and predicts them, in
processes set up as the command line sets up its own, with the threads that it takes by default. Beside them run as many
processes that only count as the row says: none, one, one for every core. The rows take turns; the first passes of each
process are not counted, and the medians of all windows count. A quiet window in which other processes took more than a
tenth of a core is left out and counted. `--plain` leaves the setting up away and takes a thread a core, for comparison.
Prints Markdown; about five minutes on two cores.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

IMAGES, BATCH = 1500, 500
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_FOREIGN = 0.1  # of a core
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def busy_seconds() -> float:
    """Return the CPU seconds of all processes of this machine since its start (Linux)."""
    fields = [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / _TICKS


def child(what: str, windows: int, plain: bool) -> None:
    """Print images a second and other processes' cores, a line a window."""
    if not plain:
        from comp.runtime import cores

        cores.limit_spinning()
    own, busy, began = 0.0, 0.0, 0.0

    def start() -> None:
        nonlocal own, busy, began
        own, busy, began = time.process_time(), busy_seconds(), time.perf_counter()

    def stop(images: int) -> None:
        seconds = time.perf_counter() - began
        foreign = (busy_seconds() - busy - time.process_time() + own) / seconds
        print(f"{images / seconds:.1f} {foreign:.3f}", flush=True)

    from comp.runtime import device

    execution = device.Execution("cpu", "bf16", True, CORES if plain else cores.default_threads())
    work = (training if what == "train" else prediction)(execution)
    passes = 2 if what == "train" else 8
    work(passes)
    for _ in range(windows):
        start()
        stop(work(passes))


def training(execution: Any) -> Callable[[int], int]:
    """Return what takes so many passes of training steps over the images, and returns how many it saw."""
    import torch

    from comp.augment import engine, policies
    from comp.runtime import rng

    model, images = network(), torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8)
    execution.place(model)
    labels = torch.randint(0, 10, (IMAGES,))
    policy = policies.resolve(["mirrored_crop", "robust"])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    epoch = 0

    def work(passes: int) -> int:
        nonlocal epoch
        for _ in range(passes):
            epoch += 1
            for rows in torch.arange(IMAGES).split(BATCH):
                keys = rng.keys(0, epoch, rows)
                flip_mask = engine.alternating_flip_mask(0, epoch, rows)
                seen = engine.augment(images[rows], policy, keys, flip_mask=flip_mask)
                with execution.autocast():
                    loss = torch.nn.functional.cross_entropy(model(execution.layout(seen)).float(), labels[rows])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
        return passes * IMAGES

    model.train()
    return work


def prediction(execution: Any) -> Callable[[int], int]:
    """Return what predicts the images so many times, and returns how many it saw."""
    import torch

    model, images = network().eval(), torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8)
    execution.place(model)

    @torch.inference_mode()
    def work(passes: int) -> int:
        for _ in range(passes):
            for batch in images.split(BATCH):
                with execution.autocast():
                    model(execution.layout(batch))
        return passes * IMAGES

    return work


def network() -> Any:
    """Return the network of configs/cifar10/robust.yaml."""
    from comp import config as configs
    from comp.models import zoo

    section = configs.load(Path("configs/cifar10/robust.yaml")).model
    return zoo.build(section, classes=10, image_shape=(3, 32, 32), mean=(0.5,) * 3, std=(0.25,) * 3, seed=0)


def measured(what: str, loops: int, windows: int, plain: bool) -> list[tuple[float, float]]:
    """Return each window's images a second and foreign cores, beside so many busy processes."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)]
    try:
        command = [sys.executable, "-m", "benchmarks.busy_machine", "--child", what, "--windows", str(windows)]
        printed = subprocess.run([*command, *["--plain"] * plain], check=True, stdout=subprocess.PIPE, text=True).stdout
    finally:
        for process in busy:
            process.kill()
            process.wait()
    rows = [line.split() for line in printed.splitlines()]
    return [(float(speed), float(foreign)) for speed, foreign in rows]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--child", choices=["train", "predict"])
    given = parser.parse_args()
    if given.child:
        child(given.child, given.windows, given.plain)
        return
    loads = sorted({0, 1, CORES})
    print(f"{platform.processor() or platform.machine()}, {CORES} cores, {time.strftime('%Y-%m-%d')}\n")
    print("| what | busy processes | images/s | lowest | highest | of quiet |\n|---|---|---|---|---|---|")
    for what in ("train", "predict"):
        speeds_beside: dict[int, list[float]] = {loops: [] for loops in loads}
        left_out = 0
        for _ in range(given.rounds):
            for loops in loads:
                for speed, foreign in measured(what, loops, given.windows, given.plain):
                    if loops == 0 and foreign > _FOREIGN:
                        left_out += 1
                    else:
                        speeds_beside[loops].append(speed)
        quiet = statistics.median(speeds_beside[0]) if speeds_beside[0] else float("nan")
        for loops, speeds in speeds_beside.items():
            if speeds:
                median = statistics.median(speeds)
                spread = f"{min(speeds):,.0f} | {max(speeds):,.0f}"
                print(f"| {what} | {loops} | {median:,.0f} | {spread} | {median / quiet:.2f} |")
        if left_out:
            print(f"\n{left_out} windows of the quiet machine were left out: others were busy.\n")


if __name__ == "__main__":
    main()
