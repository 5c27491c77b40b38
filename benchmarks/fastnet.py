"""What each trick of `fastnet` buys after one epoch, and how fast its sizes train.

    python -m benchmarks.fastnet

Real CIFAR-10, a fixed subset, AdamW with OneCycle (peak 3e-3), batch 64, float32 channels_last, no augmentation.
"""

import argparse
import platform
import statistics
import time
from pathlib import Path

import torch
from torch import nn

from benchmarks.stems import MEAN, STD, accuracy, read_cifar10, train
from comp.config import ModelConfig
from comp.models import zoo
from comp.models.classifier import Classifier

ARMS = ("as it is", "first layer random", "identities random", "logits x 1", "logits / 9")
SCALES = {"logits x 1": 1.0, "logits / 9": 1 / 9}


def model_of(size: str, arm: str, images: torch.Tensor, seed: int) -> Classifier:
    """Return `fastnet` with one trick taken away, set up from training images."""
    args = {"size": size, "scale": SCALES[arm]} if arm in SCALES else {"size": size}
    config = ModelConfig(name="fastnet", args=args)
    model = zoo.build(config, classes=10, image_shape=(3, 32, 32), mean=MEAN, std=STD, seed=seed)
    if arm != "first layer random":
        model.initialise(images)
    if arm == "identities random":
        torch.manual_seed(seed)
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and module.weight.requires_grad:
                module.reset_parameters()
    return model.to(memory_format=torch.channels_last)


def main() -> None:
    """Print accuracies of each arm in size S, then images a second of each size."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=Path("data/cifar-10-batches-bin"))
    options.add_argument("--images", type=int, default=10_000)
    options.add_argument("--seeds", type=int, default=2)
    given = options.parse_args()
    print(f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    split = read_cifar10(given.data / "data_batch_1.bin", given.images)
    test = read_cifar10(given.data / "test_batch.bin", 2_000)
    for arm in ARMS:
        scores = []
        for seed in range(given.seeds):
            model = model_of("S", arm, split[0], seed)
            train(model, *split, seed=seed, batch_size=64, lr=3e-3)
            scores.append(accuracy(model, *test))
        spread = f"from {min(scores):.4f} to {max(scores):.4f}"
        print(f"S, {arm}: mean {statistics.mean(scores):.4f}, {spread}", flush=True)
    for size in ("S", "M", "L"):
        model = model_of(size, "as it is", split[0], 0)
        began = time.process_time()
        train(model, split[0][:512], split[1][:512], seed=0, batch_size=128)
        rate = 512 / (time.process_time() - began)
        print(f"{size}: {sum(p.numel() for p in model.parameters()):,} parameters, {rate:.0f} images a CPU second")


if __name__ == "__main__":
    main()
