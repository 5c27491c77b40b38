"""What share of this CPU's matrix speed a training step of `fastnet` reaches, and which operations take its time.

    python -m benchmarks.matrix_peak [--size M] [--batch 1000] [--rounds 5] [--threads 2]

The peak is the best of square bfloat16 products, measured in turn with the steps (A B C A B C ...); medians of the
processor's speed in GFLOP/s. A step's arithmetic is its convolutions' and last layer's: twice their multiplications
forward, twice that backward, where an input or a weight needs a gradient. Prints Markdown.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from comp.config import ModelConfig
from comp.models import zoo

SIDES = (18, 22, 32)
PRODUCTS = (1024, 2048, 4096)


def product(side: int) -> tuple[Callable[[], object], float]:
    """Return a product of two square matrices, and its GFLOP."""
    left, right = (torch.randn(side, side).bfloat16() for _ in range(2))
    return lambda: left @ right, 2 * side**3 / 1e9


def step(size: str, batch: int, side: int) -> tuple[Callable[[], object], float]:
    """Return a training step without its optimizer, and its GFLOP."""
    config = ModelConfig(name="fastnet", args={"size": size, "patch": 3, "filters": 16, "bias": False})
    model = zoo.build(config, classes=10, image_shape=(3, 32, 32), mean=[0.5] * 3, std=[0.25] * 3, seed=0)
    model.to(memory_format=torch.channels_last)
    images = torch.rand(batch, 3, side, side).to(memory_format=torch.channels_last)
    labels = torch.arange(batch) % 10
    counted: list[float] = []
    first = True

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal first
        if not isinstance(module, nn.Conv2d | nn.Linear):
            return
        forward = 2 * module.weight.numel() * output.numel() / module.weight.shape[0]
        trained = module.weight.requires_grad
        # Of the frozen first layer nothing flows back; the next needs no gradient of its input.
        counted.append(forward * (1 if not trained else 2 if first else 3))
        first = first and not trained

    hooks = [module.register_forward_hook(count) for module in model.modules()]

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()

    run()
    for hook in hooks:
        hook.remove()
    return run, sum(counted) / 1e9


def main() -> None:
    """Print both tables."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--size", default="M")
    options.add_argument("--batch", type=int, default=1000)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--threads", type=int, default=2)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {given.threads} threads\n")
    jobs = {f"product of {side} x {side}": product(side) for side in PRODUCTS}
    jobs |= {f"step at {side} px": step(given.size, given.batch, side) for side in SIDES}
    speeds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(given.rounds):
        for name, (run, work) in jobs.items():
            began = time.perf_counter()
            run()
            speeds[name].append(work / (time.perf_counter() - began))
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    peak = max(value for name, value in medians.items() if name.startswith("product"))
    print("| | GFLOP | GFLOP/s | of the fastest product |\n|---|---|---|---|")
    for name, value in medians.items():
        print(f"| {name} | {jobs[name][1]:,.1f} | {value:,.0f} | {value / peak:.0%} |")
    run, _ = jobs[f"step at {SIDES[-1]} px"]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    rows = sorted(profile.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in rows)
    print(f"\n| operation at {SIDES[-1]} px | share of the time |\n|---|---|")
    for row in rows[:10]:
        print(f"| {row.key} | {row.self_cpu_time_total / total:.1%} |")


if __name__ == "__main__":
    main()
