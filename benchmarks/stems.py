"""Does a pretrained first convolution, carried over to the CIFAR stem, beat a fresh one after one epoch?

    python -m benchmarks.stems --weights data/weights/tf_efficientnet_lite0.safetensors

Real CIFAR-10, one epoch over a fixed subset, AdamW with OneCycle (peak 1e-3), float32 channels_last, no
augmentation; everything but a fresh first convolution, and the head, keeps its ImageNet weights in every arm.
"""

import argparse
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from comp.config import ModelConfig
from comp.models import zoo
from comp.models.classifier import Classifier

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
MODEL = "tf_efficientnet_lite0"
FIRST_CONVOLUTION = "conv_stem"
ARMS: dict[str, dict[str, Any]] = {
    "carried": {"stem": "cifar"},
    "fresh": {"stem": "cifar"},
    "stock": {"stem": "stock"},
    "resize to 64": {"stem": "resize", "input_size": 64},
}


def read_cifar10(path: Path, count: int) -> tuple[Tensor, Tensor]:
    """Return the first images [N, 3, 32, 32] uint8 and labels [N] of one of CIFAR-10's binary files."""
    records = np.fromfile(path, np.uint8, count * 3073).reshape(-1, 3073)
    images = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32))
    return images.contiguous(memory_format=torch.channels_last), torch.from_numpy(records[:, 0].astype(np.int64))


def model_of(arm: str, weights: Path, seed: int) -> Classifier:
    """Return the pretrained model of an arm."""
    config = ModelConfig(name=MODEL, pretrained=str(weights), **ARMS[arm])
    model = zoo.build(config, classes=10, image_shape=(3, 32, 32), mean=MEAN, std=STD, seed=seed)
    if arm == "fresh":
        torch.manual_seed(seed)
        torch.nn.init.kaiming_normal_(model.inner.get_submodule(FIRST_CONVOLUTION).weight, mode="fan_out")
    return model.to(memory_format=torch.channels_last)


def train(model: Classifier, images: Tensor, labels: Tensor, *, seed: int, batch_size: int, lr: float = 1e-3) -> None:
    """One epoch in a seeded order."""
    steps = len(images) // batch_size
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    model.train()
    for batch in order[: steps * batch_size].split(batch_size):
        loss = F.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def accuracy(model: Classifier, images: Tensor, labels: Tensor) -> float:
    """Return the share of right answers."""
    model.eval()
    with torch.inference_mode():
        top1 = torch.cat([model(batch).argmax(1) for batch in images.split(500)])
    return (top1 == labels).float().mean().item()


def main() -> None:
    """Print each run's test accuracy, then the arms' means."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=Path("data/cifar-10-batches-bin"))
    options.add_argument("--weights", type=Path, default=Path(f"data/weights/{MODEL}.safetensors"))
    options.add_argument("--images", type=int, default=2_000)
    options.add_argument("--test-images", type=int, default=1_000)
    options.add_argument("--batch-size", type=int, default=64)
    options.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    options.add_argument("--seeds", type=int, default=3)
    given = options.parse_args()
    print(
        f"{platform.machine()}, torch {torch.__version__}, timm {timm.__version__}, {torch.get_num_threads()} threads"
    )
    split = read_cifar10(given.data / "data_batch_1.bin", given.images)
    test = read_cifar10(given.data / "test_batch.bin", given.test_images)
    scores: dict[str, list[float]] = {arm: [] for arm in given.arms}
    for seed in range(given.seeds):
        for arm, accuracies in scores.items():
            began = time.perf_counter()
            model = model_of(arm, given.weights, seed)
            train(model, *split, seed=seed, batch_size=given.batch_size)
            accuracies.append(accuracy(model, *test))
            print(f"seed {seed} {arm}: {accuracies[-1]:.4f} ({time.perf_counter() - began:.0f} s)", flush=True)
    for arm, accuracies in scores.items():
        print(f"{arm}: mean {statistics.mean(accuracies):.4f}, from {min(accuracies):.4f} to {max(accuracies):.4f}")


if __name__ == "__main__":
    main()
