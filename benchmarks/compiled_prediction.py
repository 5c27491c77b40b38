"""Time what compiled and frozen graphs bring a prediction, and what building them costs.

    python -m benchmarks.compiled_prediction [--networks fastnet residual_cnn] [--graphs compiled frozen traced]

The network is folded, as predictions have it. A graph of it and the network itself, eager, take turns over the same
batch (A B A B ...), each graph in a process of its own that has built nothing before. `compiled` is torch.compile,
`frozen` the same with its constants frozen in, `traced` TorchScript's frozen trace, deprecated in torch 2.14. Seconds
are of CPU, compilers included, so that a busy machine shows less; one thread; the least of some rounds. The last
columns: from how many images on building has paid for itself, and how far logits are apart, as a share of the largest.
Prints Markdown.
"""

import argparse
import math
import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from comp.config import ModelConfig
from comp.inference.fuse_bn import BatchNormFuser
from comp.models import zoo
from comp.runtime.device import Execution

Forward = Callable[[Tensor], Tensor]
NETWORKS: dict[str, dict[str, Any]] = {
    "fastnet": {"args": {"size": "M", "patch": 3, "filters": 16, "bias": False, "scale": 0.10826}},
    "residual_cnn": {},
    "tf_efficientnet_lite0": {"pretrained": True},
    "resnet18": {"stem": "cifar"},
}
WAYS = {
    f"{precision} {layout}": Execution("cpu", precision, channels_last=layout == "channels_last", threads=1)  # type: ignore[arg-type]
    for precision in ("bf16", "fp32")
    for layout in ("channels_last", "channels_first")
}
BATCH = 500


def traced(network: nn.Module, images: Tensor) -> Forward:
    """Return TorchScript's frozen trace; its warning that it is deprecated is not repeated here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.freeze(torch.jit.trace(network, images, check_trace=False))  # type: ignore[no-any-return]


GRAPHS: dict[str, Callable[[nn.Module, Tensor], Forward]] = {
    "compiled": lambda network, images: torch.compile(network, dynamic=False),
    "frozen": lambda network, images: torch.compile(network, dynamic=False, options={"freezing": True}),
    "traced": traced,
}


@torch.inference_mode()
def measure(name: str, way: str, graph: str, rounds: int, weights: Path) -> None:
    """Print one graph's row."""
    execution = WAYS[way]
    config = ModelConfig(name=name, **NETWORKS[name])
    model = zoo.build(
        config, classes=10, image_shape=(3, 32, 32), mean=[0.5] * 3, std=[0.25] * 3, seed=0, weights_folder=weights
    )
    execution.place(model.eval())
    drawn = torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = execution.layout(drawn)
    with execution.autocast():
        network: Forward = BatchNormFuser(changes=False).fuse(model, images)
        reference = network(images).float()
        began, wall = _cpu_seconds(), time.perf_counter()
        built = GRAPHS[graph](network, images)  # type: ignore[arg-type]
        for _ in range(2):  # TorchScript builds at the second pass
            logits = built(images).float()
        building, wall = _cpu_seconds() - began, time.perf_counter() - wall
        seconds = {network: math.inf, built: math.inf}
        for _ in range(rounds):
            for forward in seconds:
                start = time.process_time()
                forward(images)
                seconds[forward] = min(seconds[forward], time.process_time() - start)
    cost = building - 2 * seconds[built]
    saved = (seconds[network] - seconds[built]) / BATCH
    apart = float((logits - reference).abs().max() / reference.abs().max())
    print(
        f"| {name} | {way} | {graph} | {BATCH / seconds[network]:,.0f} | {BATCH / seconds[built]:,.0f} | {cost:.1f} | "
        f"{f'{cost / saved:,.0f}' if saved > 0 else 'never'} | {apart:.0e} |",
        flush=True,
    )


def _cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])


def main() -> None:
    """Print a row for each network, way and graph."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[way for way in WAYS if "last" in way])
    parser.add_argument("--graphs", nargs="+", choices=GRAPHS, default=list(GRAPHS))
    parser.add_argument("--weights", type=Path, default=Path("data/weights"))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, 1 thread, batches of {BATCH} at 32 px\n")
    print("| network | how | graph | eager, images/s | graph, images/s | to build, s | pays from, images | apart |")
    print("|---|---|---|---:|---:|---:|---:|---:|", flush=True)
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # compilers are children that end, and so are counted
    for name in arguments.networks:
        for way in arguments.ways:
            for graph in arguments.graphs:
                with tempfile.TemporaryDirectory() as cache:
                    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
                    given = (name, way, graph, arguments.rounds, arguments.weights)
                    process = multiprocessing.get_context("spawn").Process(target=measure, args=given)
                    process.start()
                    process.join()


if __name__ == "__main__":
    main()
