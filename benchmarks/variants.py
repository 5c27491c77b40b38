"""Score runs on variants of the suite: distortions that no policy and no config was chosen by.

    python -m benchmarks.variants write data/variants [--count 500]
    python -m benchmarks.variants score data/variants RUN [RUN ...] [--views flip_shift] [--adapt bn]

`write` takes a seeded sample of CIFAR-10's test and writes two suites of 19 x 5 blocks. `other` has each distortion in
another implementation (`benchmarks.other_corruptions`), as strong as the published one at each severity: strengths are
bisected until the root mean square change of 100 images is equal, so the images differ but not how much. `between` has
the suite's own functions with parameters halfway between the five severities and beyond the last. `score` prints the
accuracy of each, over all 19 and over the first 15, which other papers report. Use neither to choose a config.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

import comp
from benchmarks.other_corruptions import FUNCTIONS, Picture
from comp.data.corruptions.blurs import NUDGE
from comp.data.corruptions.suite import CORRUPTIONS, NAMES, SEVERITIES, corrupt
from comp.runtime import rng

_RECORD = 1 + 3 * 32 * 32  # bytes of an image in CIFAR-10's binary files: label, red, green, blue
_SEED = 20_261_128
_MEASURED = 100  # images by which a strength is chosen
_HIGHEST = dict.fromkeys(NAMES, 4.0) | {
    "jpeg_compression": 100.0,
    "snow": 1.0,
    "spatter": 2.0,
    "brightness": 1.5,
    "motion_blur": 8.0,
}
_STANDARD = 15  # of the 19 come first


def read_test(path: Path, count: int) -> tuple[Picture, Picture]:
    """Return a sample of images, uint8 [count, 32, 32, 3], and their labels [count]."""
    records = np.fromfile(path, np.uint8).reshape(-1, _RECORD)
    records = records[np.sort(np.random.default_rng(_SEED).choice(len(records), count, replace=False))]
    return np.ascontiguousarray(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), records[:, 0]


def distort(images: Picture, name: str, strength: float, seed: int) -> Picture:
    """Apply another implementation to each image, with draws of its own."""
    changed = [FUNCTIONS[name](x, strength, np.random.default_rng((seed, row))) for row, x in enumerate(images)]
    return np.uint8(np.clip(np.stack(changed) + 0.5, 0, 255))


def change(before: Picture, after: Picture) -> float:
    """Root mean square change in grey levels."""
    return float(np.sqrt(np.mean((np.float32(after) - np.float32(before)) ** 2)))


def published(images: Picture, name: str, severity: int) -> Picture:
    batch = torch.from_numpy(images).permute(0, 3, 1, 2)
    return corrupt(batch, name, severity, seed=0, indices=torch.arange(len(batch))).permute(0, 2, 3, 1).numpy()


def strength_of(images: Picture, name: str, severity: int) -> float:
    """Return the strength that changes images as much as the suite's severity does."""
    wanted = change(images, published(images, name, severity))
    low, high = 0.0, _HIGHEST[name]
    for _ in range(14):
        middle = (low + high) / 2
        low, high = (middle, high) if change(images, distort(images, name, middle, 0)) < wanted else (low, middle)
    return high


def between(images: Picture, name: str, severity: int) -> Picture:
    """Apply the suite's function with parameters half a severity further."""
    row = CORRUPTIONS[name]
    here = row.parameters[severity - 1]
    there, step = (row.parameters[severity], 0.5) if severity < 5 else (row.parameters[3], -0.5)
    parameters = [a + step * (b - a) for a, b in zip(here, there, strict=True)]
    keys = rng.keys(_SEED, rng.key(NAMES.index(name), severity), torch.arange(len(images)))
    levels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(torch.float32)
    changed = (row.function(levels, keys, 1.0, *parameters) + NUDGE).clamp_(0, 255).to(torch.uint8)
    return changed.permute(0, 2, 3, 1).numpy()


def write(folder: Path, data: Path, count: int) -> None:
    """Write both suites, and how strong each variant is."""
    images, labels = read_test(data, count)
    table = []
    for suite in ("other", "between"):
        (folder / suite).mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(NAMES):
        others, halves = [], []
        for severity in SEVERITIES:
            strength = strength_of(images[:_MEASURED], name, severity)
            others.append(distort(images, name, strength, severity))
            halves.append(between(images, name, severity))
            row = {"distortion": name, "severity": severity, "strength": round(strength, 4)}
            row["change"] = round(change(images, others[-1]), 2)
            row["published"] = round(change(images, published(images, name, severity)), 2)
            row["between"] = round(change(images, halves[-1]), 2)
            table.append(row)
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        for suite, blocks in (("other", others), ("between", halves)):
            np.save(folder / suite / f"distortion{number:02d}.npy", np.concatenate(blocks))
    np.save(folder / "labels.npy", labels)
    (folder / "strengths.json").write_text(json.dumps(table, indent=1))


def score(folder: Path, run: str, views: str | None, adapt: str | None) -> None:
    """Print a row of a run's accuracy on both suites, and the worst distortions."""
    labels = np.load(folder / "labels.npy")
    cells, worst = [], []
    for suite in ("other", "between"):
        predictions = comp.predict(run, suite=folder / suite, views=views, adapt=adapt)
        right = predictions.top1.reshape(len(NAMES), len(SEVERITIES), len(labels)) == labels
        by_name = 100 * right.mean((1, 2))
        cells += [f"{by_name.mean():.2f}", f"{by_name[:_STANDARD].mean():.2f}"]
        cells.append(", ".join(f"{value:.1f}" for value in 100 * right.mean((0, 2))))
        worst += [f"{suite} {NAMES[i]} {by_name[i]:.1f}" for i in np.argsort(by_name)[:3]]
    print("| " + " | ".join((run, views or "", adapt or "", *cells, "; ".join(worst))) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Variants of the suite, kept out of selection")
    commands = parser.add_subparsers(dest="command", required=True)
    writes = commands.add_parser("write")
    writes.add_argument("folder", type=Path)
    writes.add_argument("--data", type=Path, default=Path("data/cifar-10-batches-bin/test_batch.bin"))
    writes.add_argument("--count", type=int, default=500)
    scores = commands.add_parser("score")
    scores.add_argument("folder", type=Path)
    scores.add_argument("runs", nargs="+")
    scores.add_argument("--views")
    scores.add_argument("--adapt")
    options = parser.parse_args()
    if options.command == "write":
        write(options.folder, options.data, options.count)
        return
    print("| run | views | adapt | other, 19 | 15 | by severity | between, 19 | 15 | by severity | worst |")
    print("|" + "---|" * 10)
    for run in options.runs:
        score(options.folder, run, options.views, options.adapt)


if __name__ == "__main__":
    main()
