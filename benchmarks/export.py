"""Do exported networks answer as `comp predict` does, and how fast are they beside it?

    python -m benchmarks.export [--networks fastnet resnet18 lite0 vit ensemble] [--repeats 9] [--threads 2]

Each network is trained for a moment on 1,500 real CIFAR-10 images (lite0 from real ImageNet weights), exported as ONNX,
as a torch.export program and as int8 ONNX, and loaded in a fresh process without comp, which `comp export` itself
checks on 256 validation images. Then `comp predict` and the files predict batches of 64 in turns (A B C A B C) in one
process; medians count. The ensemble is the mean of two fastnets. Prints Markdown and writes the last result to
benchmarks/results/export.json.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.stems import read_cifar10
from comp import config as configs
from comp.ensembles import combine, network
from comp.models import int8, portable
from comp.results.machine import cpu_model
from comp.results.runs import Run
from comp.workflows import export, export_check
from comp.workflows.train import train

RESULT = Path(__file__).parent / "results" / "export.json"
NETWORKS = {
    "fastnet": ["model.name=fastnet", "model.args.size=S", "train.epochs=4", "optim.lr=4e-3"],
    "resnet18": ["model.name=resnet18", "model.stem=cifar"],
    "lite0": ["model.name=tf_efficientnet_lite0", "model.stem=resize", "model.input_size=96", "model.pretrained=true"],
    "vit": ["model.name=vit_tiny_patch16_224", "model.stem=cifar", "train.epochs=2"],
    "ensemble": [],
}
CONFIG = {
    "competition": {"name": "export", "suite": {"source": "none"}, "ood_validation": {"severities": []}},
    "data": {"source": "arrays", "validation": 256},
    "augment": {"policy": "basic"},
    "optim": {"name": "adamw", "lr": 1e-3},
    "train": {"epochs": 1, "batch_size": 64, "device": "cpu", "compile": False},
}
TRAINING, BATCH = 1500, 64  # images


def write_data(source: Path, folder: Path) -> None:
    """Write `arrays` data: the first images of CIFAR-10."""
    folder.mkdir()
    for name, file, count in (("train", "data_batch_1.bin", TRAINING + 256), ("test", "test_batch.bin", 256)):
        images, labels = read_cifar10(source / file, count)
        np.save(folder / f"{name}_images.npy", images.permute(0, 2, 3, 1).contiguous().numpy())
        np.save(folder / f"{name}_labels.npy", labels.numpy())


def trained(name: str, folder: Path, threads: int) -> Run:
    """Return a run of a network; of `ensemble`, the mean of two fastnets with different seeds."""
    if name == "ensemble":
        members = [make(f"member{seed}", [*NETWORKS["fastnet"], f"seed={seed}"], folder, threads) for seed in (0, 1)]
        return combine.ensemble(members, runs_root=folder / "runs")
    return make(name, NETWORKS[name], folder, threads)


def make(name: str, settings: list[str], folder: Path, threads: int) -> Run:
    path = folder / "config.json"  # YAML reads JSON
    values = {**CONFIG, "data": {**CONFIG["data"], "root": str(folder / "data")}}
    path.write_text(json.dumps(values))
    return train(configs.load(path, [*settings, f"train.threads={threads}"]), name=name, runs_root=folder / "runs")


def measured(name: str, folder: Path, repeats: int, threads: int) -> dict[str, Any]:
    """Return a network's parity and images a second in every form."""
    run = trained(name, folder, threads)
    source = network.open_ensemble(run) if name == "ensemble" else export.open_run(run)
    cards = {}
    for form, quantize in (("onnx", False), ("torch", False), ("int8", True)):
        request = export.ExportRequest(folder / name / form, "torch" if form == "torch" else "onnx", "uint8", quantize)
        cards[form] = export.export(source, request)
    images = source.dataset.train.head(BATCH)
    pixels = portable.to_input(np.asarray(images.images), "uint8")
    sessions = {form: int8.session(folder / name / form / "model.onnx", threads) for form in ("onnx", "int8")}
    program = torch.export.load(folder / name / "torch" / "model.pt2").module()

    def run_program() -> None:
        with torch.no_grad():
            program(torch.from_numpy(pixels))

    contestants: dict[str, Callable[[], Any]] = {
        "comp predict": lambda: [export_check.predict_plainly(part, images) for part in source.parts],
        "onnx": lambda: int8.run(sessions["onnx"], pixels),
        "torch": run_program,
        "int8": lambda: int8.run(sessions["int8"], pixels),
    }
    seconds = export_check.measure(contestants, repeats)
    return {
        "precision": source.precision,
        "images_per_second": {who: round(BATCH / median, 1) for who, median in seconds.items()},
        "check": {form: card["check"] for form, card in cards.items()},
        "int8": cards["int8"]["quantization"]["method"],
    }


def print_table(results: dict[str, dict[str, Any]]) -> None:
    head = ["network", "difference, ONNX", "torch", "answers of comp predict, ONNX", "int8 of float"]
    rates = ["comp predict images/s", "ONNX", "torch", "int8"]
    print("| " + " | ".join(head + rates) + " |\n|---|" + "---:|" * 8)
    for name, result in results.items():
        checks, speed = result["check"], result["images_per_second"]
        cells = [f"{checks[form]['difference']:.1e}" for form in ("onnx", "torch")]
        cells += [f"{checks['onnx']['agreement_predict']:.1%}", f"{checks['int8']['agreement']:.1%}"]
        cells += [f"{speed[who]:,.0f}" for who in ("comp predict", "onnx", "torch", "int8")]
        print(f"| {name} ({result['precision']}) | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", type=Path, default=Path("data/cifar-10-batches-bin"))
    arguments = parser.parse_args()
    start, results = time.monotonic(), {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_data(arguments.data, folder / "data")
        for name in arguments.networks:
            results[name] = measured(name, folder, arguments.repeats, arguments.threads)
    print_table(results)
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": cpu_model(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": arguments.threads,
        "repeats": arguments.repeats,
        "seconds": round(time.monotonic() - start),
    }
    RESULT.write_text(json.dumps({**facts, "networks": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
