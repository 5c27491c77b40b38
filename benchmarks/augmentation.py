"""Time augmentation side by side: ours against torchvision, albumentations, timm and (where installed) kornia.

    python -m benchmarks.augmentation [--cores 2] [--images 1024] [--rounds 5] [--only mixing]

Everyone turns the same uint8 images into a uint8 batch (mixing and kornia: into floats), every sample with its own
draws (kornia's automatic policies pick their ops once a batch), on the same cores: who takes a batch computes with
that many threads, who takes one image at a time runs in that many processes, each with its share of the batch, as
loader workers do; bringing their results back is not counted. PIL contestants start from arrays and end in a stacked
tensor. Contestants take turns (A B C A B C ...) and medians of wall-clock images a second are taken, so that a
machine that slows down slows all. The last workload is a ResNet-18's training step with AutoAugment and MixUp in it,
and on a batch made before. Prints Markdown.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from multiprocessing.connection import Connection

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision import transforms as pil
from torchvision.transforms import functional, v2

from comp.augment.engine import alternating_flip_mask, augment
from comp.augment.mixing import Mixing, mix
from comp.augment.policies import POLICIES, resolve
from comp.config import ModelConfig
from comp.models import zoo
from comp.runtime import rng

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations as A
import timm.data

Contestant = Callable[[np.ndarray], object]  # takes [B, H, W, 3] uint8
SINGLY = 64  # images a turn and process for those who take one at a time
WHOLE = ("ours", "kornia", "timm, by element")  # they take a batch at once


def photographs(count: int, side: int) -> np.ndarray:
    """Return [count, side, side, 3] uint8 smooth pictures."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(image).resize((side, side))) for image in coarse])


def ours(pixels: np.ndarray, *, names: list[str]) -> Tensor:
    policy, indices = resolve(names), torch.arange(len(pixels))
    flip_mask = (
        alternating_flip_mask(0, 1, indices) if any(op.name == "alternating_flip" for op in policy.ops) else None
    )
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return augment(images, policy, rng.keys(0, 1, indices), flip_mask=flip_mask)


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
    """Return who can run the policy: ours, and peers that have all of it."""
    contest: dict[str, Contestant] = {"ours": partial(ours, names=names)}
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
    return contest | kornia_contest(names, side)


def kornia_contest(names: list[str], side: int) -> dict[str, Contestant]:
    if not find_spec("kornia"):
        return {}
    import kornia.augmentation as K
    from kornia.augmentation import auto

    rows: dict[str, Callable[[], list[torch.nn.Module]]] = {
        "basic": lambda: [K.RandomCrop((side, side), padding=side // 8), K.RandomHorizontalFlip()],
        "color_jitter": lambda: [K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=1.0)],
        "rotation": lambda: [K.RandomRotation(15.0, p=1.0)],
        "random_erasing": lambda: [K.RandomErasing((0.02, 0.4), p=0.5)],
        "autoaugment_cifar10": lambda: [auto.AutoAugment("cifar10")],
        "autoaugment_imagenet": lambda: [auto.AutoAugment("imagenet")],
        "randaugment": lambda: [auto.RandAugment(n=2, m=9)],
        "trivialaugment_wide": lambda: [auto.TrivialAugment()],
    }
    if not all(name in rows for name in names):
        return {}
    transform = torch.nn.Sequential(*(step for name in names for step in rows[name]()))
    return {WHOLE[1]: lambda pixels: transform(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255)}


def mixing_contest() -> dict[str, Contestant]:
    theirs = timm.data.Mixup(0.4, 1.0, switch_prob=0.5, mode="elem", label_smoothing=0.1, num_classes=100)
    mixing = Mixing(0.4, 1.0, 0.5, 0.1)

    def inputs(pixels: np.ndarray) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.arange(len(pixels)) % 100

    def mix_ours(pixels: np.ndarray) -> object:
        images, labels = inputs(pixels)
        return mix(images, labels, rng.keys(0, 1, torch.arange(len(images))), classes=100, mixing=mixing)

    def mix_theirs(pixels: np.ndarray) -> object:
        images, labels = inputs(pixels)
        theirs.device = "cpu"
        return theirs(images.float() / 255, labels)

    return {"ours": mix_ours, "timm, by element": mix_theirs}


def contest_of(workload: str) -> tuple[dict[str, Contestant], int]:
    """Return who can run a workload such as `basic + cutout, 32 px`, and its images' side."""
    names, _, size = workload.partition(", ")
    side = int(size.removesuffix(" px"))
    if names == "mixing":
        return mixing_contest(), side
    return policy_contest(names.split(" + "), side), side


def serve(orders: Connection) -> None:
    """Run contestants that take one image at a time, in a process of their own: (workload, name) comes, seconds go."""
    torch.set_num_threads(1)
    contests: dict[str, tuple[dict[str, Contestant], np.ndarray]] = {}
    while order := orders.recv():
        workload, name = order
        if workload not in contests:
            contest, side = contest_of(workload)
            contests = {workload: (contest, photographs(SINGLY, side))}
        contest, pixels = contests[workload]
        start = time.perf_counter()
        contest[name](pixels)
        orders.send(time.perf_counter() - start)


class Crew:
    """As many processes as cores, for who takes one image at a time."""

    def __init__(self, cores: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._ends: list[Connection] = []
        self._members = []
        for _ in range(cores):
            here, there = context.Pipe()
            member = context.Process(target=serve, args=(there,), daemon=True)
            member.start()
            self._ends.append(here)
            self._members.append(member)

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        for end in self._ends:
            end.send(None)
        for member in self._members:
            member.join()

    def seconds_an_image(self, workload: str, name: str) -> float:
        """Let all members work at once; the slowest says when the batch is done."""
        for end in self._ends:
            end.send((workload, name))
        return max(end.recv() for end in self._ends) / (SINGLY * len(self._ends))


def rates(workload: str, crew: Crew, images: int, rounds: int) -> dict[str, float]:
    """Return each contestant's median images a second."""
    contest, side = contest_of(workload)
    pixels = photographs(images if side < 64 else images // 8, side)
    times: dict[str, list[float]] = {name: [] for name in contest}
    for turn in range(rounds + 1):
        for name, work in contest.items():
            if name in WHOLE:
                start = time.perf_counter()
                work(pixels)
                seconds = (time.perf_counter() - start) / len(pixels)
            else:
                seconds = crew.seconds_an_image(workload, name)
            if turn:  # the first round warms up
                times[name].append(seconds)
    return {name: 1 / statistics.median(seconds) for name, seconds in times.items()}


class Step:
    """A ResNet-18 with a 3x3 stem in bfloat16, and its training step."""

    def __init__(self, batch: int) -> None:
        shape, grey = (3, 32, 32), [0.5, 0.5, 0.5]
        config = ModelConfig(name="resnet18", stem="cifar")
        self.model = zoo.build(config, classes=10, image_shape=shape, mean=grey, std=grey, seed=0)
        self.model.to(memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), foreach=True)
        self.images = torch.from_numpy(photographs(batch, 32)).permute(0, 3, 1, 2)
        self.indices, self.labels = torch.arange(batch), torch.arange(batch) % 10
        self.policy, self.mixing = resolve(["basic", "autoaugment_cifar10"]), Mixing(mixup=0.4)
        self.made = self.batch(0)

    def batch(self, epoch: int) -> tuple[Tensor, Tensor]:
        keys = rng.keys(0, epoch, self.indices)
        images = augment(self.images, self.policy, keys)
        return mix(images, self.labels, keys, classes=10, mixing=self.mixing)

    def take(self, images: Tensor, targets: Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(self.model(images), targets)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def report_step(rounds: int, batch: int = 128) -> None:
    """Print how much longer a step takes that makes its own batch; steps of both kinds alternate."""
    step = Step(batch)
    fixed, made = [], []
    for turn in range(4 * rounds + 1):
        start = time.perf_counter()
        step.take(*step.made)
        middle = time.perf_counter()
        step.take(*step.batch(turn))
        if turn:
            fixed.append(middle - start)
            made.append(time.perf_counter() - middle)
    before, now = statistics.median(fixed), statistics.median(made)
    print(f"\nResNet-18 step of {batch}: {before * 1e3:,.1f} ms on a batch made before, {now * 1e3:,.1f} ms with basic")
    print(f"+ autoaugment_cifar10 + MixUp in it: {now / before:.4f} (medians of {4 * rounds})")


SINGLES = (
    "basic", "color_jitter", "rotation", "cutout", "random_erasing", "autoaugment_cifar10", "autoaugment_imagenet",
    "randaugment", "trivialaugment_wide", "augmix", "mirrored_crop", "robust", "robust_strict",
)  # fmt: skip
WORKLOADS = (
    "basic + cutout, 32 px",
    "basic + autoaugment_cifar10 + color_jitter, 32 px",
    *(f"{name}, 32 px" for name in SINGLES),
    "basic, 160 px",
    "basic + color_jitter, 160 px",
    "basic + autoaugment_imagenet, 160 px",
    "mixing, 32 px",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="threads, or processes")
    parser.add_argument("--images", type=int, default=1024, help="images in a batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="run the workloads that have this in their title; `step` is one")
    arguments = parser.parse_args()
    assert set(SINGLES) <= set(POLICIES)
    torch.set_num_threads(arguments.cores)
    # The C library keeps small blocks once a large one has come and gone, as in any process that trains.
    torch.ones(31 << 20, dtype=torch.uint8)
    print(f"{arguments.cores} cores, batches of {arguments.images}, median of {arguments.rounds} rounds\n")
    print("| workload | who | images/s | of the first |\n|---|---|---:|---:|")
    with ExitStack() as stack:
        workloads = [workload for workload in WORKLOADS if arguments.only in workload]
        crew = stack.enter_context(Crew(arguments.cores)) if workloads else None
        for workload in workloads:
            measured = rates(workload, crew, arguments.images, arguments.rounds)
            first = next(iter(measured.values()))
            for name, rate in measured.items():
                print(f"| {workload} | {name} | {rate:,.0f} | {rate / first:.3f} |", flush=True)
    if arguments.only in "step":
        report_step(arguments.rounds)
    if not find_spec("kornia"):
        print("\nkornia is not installed: skipped.")


if __name__ == "__main__":
    main()
