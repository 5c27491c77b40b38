"""Time augmentation side by side: ours against torchvision, albumentations, timm and (where installed) kornia.

    python -m benchmarks.augmentation [--images 512] [--rounds 5] [--threads 1] [--only mixing]

Everyone turns the same uint8 images into a uint8 batch (mixing: into floats), every sample with its own draws; PIL
contestants start from arrays and end in a stacked tensor, as they do in a loader. Contestants take turns (A B C A B C
...) and medians are taken, so that a machine that slows down slows all. Images a second of CPU time, all threads
together. Prints Markdown.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as pil
from torchvision.transforms import functional, v2

from comp.augment.mixing import Mixing, mix
from comp.augment.per_batch import alternation, augment
from comp.augment.per_image import PerImage
from comp.augment.policies import resolve
from comp.imaging import draws

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations as A
import timm.data

Contestant = Callable[[np.ndarray], object]  # takes [B, H, W, 3] uint8
SINGLY = 64  # images a turn for those who take one at a time


def photographs(count: int, side: int) -> np.ndarray:
    """Return [count, side, side, 3] uint8 smooth pictures."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(image).resize((side, side))) for image in coarse])


def ours(pixels: np.ndarray, *, names: list[str]) -> Tensor:
    indices = torch.arange(len(pixels))
    turned = alternation(0, 1, indices) if "alternating_flip" in names else None
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return augment(images, resolve(names), draws.keys(0, 1, indices), turned=turned)


def ours_singly(pixels: np.ndarray, *, engine: PerImage) -> Tensor:
    return torch.from_numpy(np.stack([engine(image, 1, index) for index, image in enumerate(pixels)]))


def through_pil(pixels: np.ndarray, *, transform: Callable[[Image.Image], Image.Image]) -> Tensor:
    return torch.stack([functional.pil_to_tensor(transform(Image.fromarray(image))) for image in pixels])


def through_v2(pixels: np.ndarray, *, transform: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.stack([transform(image) for image in torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()])


def through_albumentations(pixels: np.ndarray, *, transform: A.Compose) -> Tensor:
    return torch.from_numpy(np.stack([transform(image=image)["image"] for image in pixels]))


def torchvision_steps(kit: object, name: str, side: int) -> list[object]:
    """Return the steps of torchvision's policy of the same name, from `transforms` (PIL) or `transforms.v2`."""
    policies = kit.AutoAugmentPolicy
    rows = {
        "basic": lambda: [kit.RandomCrop(side, padding=side // 8), kit.RandomHorizontalFlip()],
        "color_jitter": lambda: [kit.ColorJitter(0.4, 0.4, 0.4, 0.1)],
        "rotation": lambda: [kit.RandomRotation(15, interpolation=pil.InterpolationMode.BILINEAR)],
        "autoaugment_cifar10": lambda: [kit.AutoAugment(policies.CIFAR10)],
        "autoaugment_imagenet": lambda: [kit.AutoAugment(policies.IMAGENET)],
        "randaugment": lambda: [kit.RandAugment()],
        "trivialaugment_wide": lambda: [kit.TrivialAugmentWide()],
        "augmix": lambda: [kit.AugMix()],
        "random_erasing": lambda: [pil.PILToTensor(), kit.RandomErasing(0.5, (0.02, 0.4)), pil.ToPILImage()],
    }
    return rows[name]() if name in rows else []


def policy_contest(names: list[str], side: int) -> dict[str, Contestant]:
    """Return who can run the policy: ours in both engines, and peers that have all of it."""
    engine = PerImage(resolve(names), seed=0)
    contest: dict[str, Contestant] = {
        "ours, per_batch": partial(ours, names=names),
        "ours, per_image": partial(ours_singly, engine=engine),
    }
    if all(torchvision_steps(pil, name, side) for name in names):
        steps = [step for name in names for step in torchvision_steps(pil, name, side)]
        contest["torchvision, PIL"] = partial(through_pil, transform=pil.Compose(steps))
    if "random_erasing" not in names and "torchvision, PIL" in contest:
        steps = [step for name in names for step in torchvision_steps(v2, name, side)]
        contest["torchvision v2, tensors one by one"] = partial(through_v2, transform=v2.Compose(steps))
    rows = {
        "basic": [A.Pad(side // 8), A.RandomCrop(side, side), A.HorizontalFlip(p=0.5)],
        "color_jitter": [A.ColorJitter((0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1), p=1.0)],
        "rotation": [A.Rotate((-15, 15), p=1.0)],
        "cutout": [A.CoarseDropout((1, 1), (0.5, 0.5), (0.5, 0.5), p=1.0)],
        "random_erasing": [A.Erasing((0.02, 0.4), p=0.5, fill="random")],
    }
    if all(name in rows for name in names):
        steps = [step for name in names for step in rows[name]]
        contest["albumentations"] = partial(through_albumentations, transform=A.Compose(steps))
    if names == ["randaugment"]:
        transform = timm.data.auto_augment.rand_augment_transform("rand-m9-n2", {})
        contest["timm, PIL"] = partial(through_pil, transform=transform)
        contest |= kornia_contest()
    return contest


def kornia_contest() -> dict[str, Contestant]:
    if not find_spec("kornia"):
        return {}
    from kornia.augmentation.auto import RandAugment

    transform = RandAugment(n=2, m=9)
    return {"kornia": lambda pixels: transform(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255)}


def mixing_contest() -> dict[str, Contestant]:
    theirs = timm.data.Mixup(0.4, 1.0, switch_prob=0.5, mode="elem", label_smoothing=0.1, num_classes=100)
    mixing = Mixing(0.4, 1.0, 0.5, 0.1)

    def inputs(pixels: np.ndarray) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.arange(len(pixels)) % 100

    def mix_ours(pixels: np.ndarray) -> object:
        images, labels = inputs(pixels)
        return mix(images, labels, draws.keys(0, 1, torch.arange(len(images))), classes=100, mixing=mixing)

    def mix_theirs(pixels: np.ndarray) -> object:
        images, labels = inputs(pixels)
        theirs.device = "cpu"
        return theirs(images.float() / 255, labels)

    return {"ours": mix_ours, "timm, by element": mix_theirs}


def rates(contest: dict[str, Contestant], pixels: np.ndarray, rounds: int) -> dict[str, float]:
    """Return each contestant's median images a second of CPU time."""
    times: dict[str, list[float]] = {name: [] for name in contest}
    for turn in range(rounds + 1):
        for name, work in contest.items():
            batch = pixels if name in {"ours", "ours, per_batch", "kornia", "timm, by element"} else pixels[:SINGLY]
            start = time.process_time()
            work(batch)
            if turn:  # the first round warms up
                times[name].append((time.process_time() - start) / len(batch))
    return {name: 1 / statistics.median(seconds) for name, seconds in times.items()}


def report(title: str, contest: dict[str, Contestant], pixels: np.ndarray, rounds: int) -> None:
    measured = rates(contest, pixels, rounds)
    first = next(iter(measured.values()))
    for name, rate in measured.items():
        print(f"| {title} | {name} | {rate:,.0f} | {rate / first:.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512, help="images in a batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="run the workloads that have this in their title")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    # The C library keeps small blocks once a large one has come and gone, as in any process that trains.
    torch.ones(31 << 20, dtype=torch.uint8)
    workloads: list[tuple[list[str], int]] = [(["basic"], 32), (["basic", "cutout"], 32)]
    workloads += [(["basic", "autoaugment_cifar10", "color_jitter"], 32)]
    singles = ["color_jitter", "rotation", "random_erasing", "autoaugment_cifar10", "autoaugment_imagenet"]
    workloads += [([name], 32) for name in [*singles, "randaugment", "trivialaugment_wide", "augmix"]]
    workloads += [(["basic", "color_jitter"], 160), (["basic", "autoaugment_imagenet"], 160)]
    print(f"{arguments.threads} thread(s), batches of {arguments.images}, median of {arguments.rounds} rounds\n")
    print("| workload | who | images/s of CPU time | of the first |\n|---|---|---:|---:|")
    for names, side in workloads:
        title = f"{' + '.join(names)}, {side} px"
        if arguments.only in title:
            pixels = photographs(arguments.images if side < 64 else arguments.images // 8, side)
            report(title, policy_contest(names, side), pixels, arguments.rounds)
    if arguments.only in "mixing, 32 px":
        report("mixing, 32 px", mixing_contest(), photographs(arguments.images, 32), arguments.rounds)
    if not find_spec("kornia"):
        print("\nkornia is not installed: skipped.")


if __name__ == "__main__":
    main()
