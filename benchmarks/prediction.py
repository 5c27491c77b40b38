"""Time predictions against a bare forward loop, and views for the uncertain against their arithmetic.

    python -m benchmarks.prediction [--model resnet18] [--images 2000] [--rounds 5] [--threads 2]
    python -m benchmarks.prediction --rows 950000     # the memory of a whole submission's worth, by a small network

The bare loop runs the same network, unfolded, in the same precision and layout over batches that lie ready. What is
timed beside it is `comp.inference.predict.predict` over a suite of ten blocks, which stores them as it goes, then the
whole file. All take turns (A B C A B C ...); medians of images a second. Prints Markdown.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from comp.config import ModelConfig
from comp.data.splits import Split, Suite
from comp.inference.options import PredictOptions
from comp.inference.predict import delete_partial_blocks, predict
from comp.models import zoo
from comp.models.classifier import Classifier
from comp.results import prediction_files
from comp.results.blocks import Block
from comp.runtime.device import Execution

CLASSES = [f"class{number}" for number in range(100)]
VARIANTS = {
    "ours, plain": PredictOptions(),
    "ours, flip": PredictOptions("flip"),
    "ours, flip_shift": PredictOptions("flip_shift"),
    "ours, ten_crop": PredictOptions("ten_crop"),
    "ours, ten_crop, uncertain:0.25": PredictOptions("ten_crop", 0.25),
}
PASSES = {"ours, flip": 2, "ours, flip_shift": 6, "ours, ten_crop": 10, "ours, ten_crop, uncertain:0.25": 1 + 9 / 4}


def built(name: str) -> Classifier:
    stem = "cifar" if zoo.list_models(name)[0].cifar_stem else "stock"
    config = ModelConfig(name=name, stem=stem)
    model = zoo.build(config, classes=100, image_shape=(3, 32, 32), mean=[0.5] * 3, std=[0.25] * 3, seed=0)
    return model.eval()


def suite_of(rows: int, blocks: int) -> Suite:
    """Return a suite whose blocks are drawn when they are opened, as a folder's are read."""
    count = rows // blocks
    names = [Block(number // 5, number % 5 + 1, count) for number in range(blocks)]

    def open_block(block: Block) -> Split:
        generator = np.random.default_rng(block.distortion * 5 + block.severity)
        images = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        return Split(block.name, images, block.ids(), None)

    return Suite("suite", tuple(names), open_block)


def contest(
    model: Classifier, suite: Suite, execution: Execution, folder: Path, batch: int
) -> dict[str, Callable[[], None]]:
    ready = [torch.from_numpy(suite.open(block).images).permute(0, 3, 1, 2) for block in suite.blocks]

    @torch.inference_mode()
    def bare() -> None:
        for images in ready:
            for part in images.split(batch):
                with execution.autocast():
                    model(execution.layout(part))

    def ours(variant: PredictOptions) -> Callable[[], None]:
        def work() -> None:
            parts = folder / "suite.parts"
            stored = predict(
                model,
                suite,
                classes=CLASSES,
                task="single_label",
                execution=execution,
                batch_size=batch,
                made_by={},
                options=variant,
                parts=parts,
            )
            prediction_files.save(folder / "suite.npz", stored)
            delete_partial_blocks(parts)

        return work

    return {"bare loop": bare, **{name: ours(variant) for name, variant in VARIANTS.items()}}


def report(contestants: dict[str, Callable[[], None]], rows: int, rounds: int) -> None:
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, work in contestants.items():
            start = time.perf_counter()
            work()
            if turn:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    print("| who | images/s | of the bare loop | of the bare loop, by passes |\n|---|---:|---:|---:|")
    for name, seconds in medians.items():
        share = medians["bare loop"] / seconds
        print(f"| {name} | {rows / seconds:,.0f} | {share:.3f} | {share * PASSES.get(name, 1):.3f} |")


def report_memory(rows: int, execution: Execution) -> None:
    """Print how much anonymous memory a whole submission's worth of predictions takes."""
    model = built("simple_cnn")
    execution.place(model)
    seen = [anonymous_megabytes()]

    def look(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        if done % 50_000 == 0 or done == total:
            seen.append(anonymous_megabytes())

    with tempfile.TemporaryDirectory() as folder:
        parts = Path(folder) / "suite.parts"
        stored = predict(
            model,
            suite_of(rows, 95),
            classes=CLASSES,
            task="single_label",
            execution=execution,
            batch_size=500,
            made_by={},
            parts=parts,
            progress=look,
        )
        seen.append(anonymous_megabytes())
        prediction_files.save(Path(folder) / "suite.npz", stored)
        seen.append(anonymous_megabytes())
    print(f"{len(stored):,} rows of {len(CLASSES)} classes: {seen[0]:,.0f} MB of anonymous memory before, at most "
          f"{max(seen):,.0f} MB on the way")  # fmt: skip


def anonymous_megabytes() -> float:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=0, help="measure memory over so many rows instead")
    arguments = parser.parse_args()
    execution = Execution("cpu", arguments.precision, channels_last=True, threads=arguments.threads)
    if arguments.rows:
        report_memory(arguments.rows, execution)
        return
    model = built(arguments.model)
    execution.place(model)
    print(f"{arguments.model}, {arguments.precision}, {arguments.threads} threads, batches of {arguments.batch}\n")
    with tempfile.TemporaryDirectory() as folder:
        suite = suite_of(arguments.images, 10)
        report(contest(model, suite, execution, Path(folder), arguments.batch), arguments.images, arguments.rounds)


if __name__ == "__main__":
    main()
