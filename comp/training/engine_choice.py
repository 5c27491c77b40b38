"""Which engine augments: the config's, or under `augment.engine: auto` the one that is faster here with this policy.

The two draw differently, so that the choice belongs to a run's record (`Execution.engine`): resume and `--as` reuse it.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from comp import device
from comp.augment import per_batch, policies
from comp.augment.ops import Choice, Foreign, Policy
from comp.config import Config
from comp.data import loading
from comp.data.dataset import Dataset
from comp.data.images import reading_workers
from comp.data.loading import Loader, Transform
from comp.device import Engine, Execution
from comp.errors import ConfigError
from comp.imaging import draws
from comp.progress import Progress, quiet

ENGINES: tuple[Engine, ...] = ("per_batch", "per_image")  # the plainer one first

_WORTHWHILE = 1.05  # as in `comp.training.timing`
_IMAGES, _BATCH = 512, 64  # a round of timing, and its batches
_ROUNDS = 3


def check(config: Config) -> None:
    """Build what the engines in question would run.

    Raises:
        ConfigError: an op that no engine in question has, or arguments that it refuses.
    """
    for engine in possible(config):
        in_workers(config, engine)


def check_channels(config: Config, image_shape: tuple[int, int, int]) -> None:
    """Refuse ops that images of these channels cannot have, transforms of albumentations by trying them.

    Args:
        config: section augment.
        image_shape: (C, H, W) of the training images.

    Raises:
        ConfigError: naming the op.
    """
    channels, height, width = image_shape
    section = config.augment
    policies.check_channels(section.policy, section.ops, channels)
    if channels in (1, 3) or "per_image" not in possible(config):
        return
    from comp.augment.per_image import PerImage

    image = np.zeros((height, width, channels), np.uint8)
    for op in _policy(config).ops:
        if isinstance(op, Foreign):
            try:
                PerImage(Policy((Choice(((replace(op, probability=1.0),),)),)), config.seed)(image, 1, 0)
            except Exception as error:  # transforms raise whatever they stumble over
                raise ConfigError(
                    f"augment.ops: albumentations' {op.name} cannot take images of {channels} channels "
                    f"({str(error).splitlines()[0] if str(error) else type(error).__name__}); leave it out"
                ) from None


def possible(config: Config) -> tuple[Engine, ...]:
    """Return the engines that the config leaves open and that can run it.

    Raises:
        ConfigError: there is none.
    """
    section = config.augment
    wanted = ENGINES if section.engine == "auto" else (section.engine,)
    foreign = sorted(op.name for op in _policy(config).ops if isinstance(op, Foreign))
    views = config.train.consistency != "none"  # workers return one view
    left = tuple(engine for engine in wanted if not (foreign if engine == "per_batch" else views))
    if not left:
        why = f", which train.consistency={config.train.consistency} cannot use" if views else ""
        raise ConfigError(f"augment.ops: albumentations' '{foreign[0]}' needs augment.engine=per_image{why}")
    return left


def in_workers(config: Config, engine: Engine) -> Transform | None:
    """Return what loader workers do to an image, None where the device augments.

    Raises:
        ConfigError: an op that the engine has not, or arguments that it refuses.
    """
    if engine == "per_batch":
        return None
    from comp.augment.per_image import PerImage  # albumentations takes a second to import

    return PerImage(_policy(config), config.seed)


def engine_of(config: Config, execution: Execution) -> Engine:
    """Return the engine that a run's config fixes, or that its record names."""
    return execution.engine if config.augment.engine == "auto" else config.augment.engine


def choose(config: Config, dataset: Dataset, progress: Progress = quiet) -> tuple[Engine, dict[str, float]]:
    """Return the engine, and the seconds that each one timed takes for a batch; none where nothing was left open.

    Args:
        config: sections augment, data (workers) and train (device, threads, batch_size).
        dataset: whose training images are augmented, from where they would come in training.
        progress: called after each round.

    Raises:
        ConfigError: as `possible`.
    """
    engines = possible(config)
    if len(engines) < 2 or not _policy(config).stages:
        return engines[0], {}
    torch.set_num_threads(config.train.threads or device.default_threads())
    place = torch.device(device.choose_device(config.train.device))
    train = dataset.train.head(_IMAGES)
    train = train.decoded() if dataset.resident else train
    workers = reading_workers(config.data.workers)
    seconds = dict.fromkeys(engines, math.inf)
    loaders = {
        engine: loading.loader(
            train, place, stays=dataset.resident, workers=workers, transform=in_workers(config, engine)
        )
        for engine in engines
    }
    for turn in range(_ROUNDS + 1):  # in turns, so that a slow moment of the machine strikes both
        for engine in engines:
            taken = _round(config, engine, loaders[engine], place, turn)
            if turn:  # the first round starts workers and picks kernels
                seconds[engine] = min(seconds[engine], taken)
        progress("timing augmentation", turn + 1, _ROUNDS + 1, "rounds")
    size = min(config.train.batch_size, len(dataset.train))
    return faster(seconds), {f"{engine} augmentation": round(taken * size, 5) for engine, taken in seconds.items()}


def faster(seconds: Mapping[Engine, float]) -> Engine:
    """Return the engine to take: another than the plainest only where it is 5 % faster."""
    best = min(seconds, key=lambda engine: seconds[engine])
    plainest = next(iter(seconds))
    return best if seconds[best] * _WORTHWHILE < seconds[plainest] else plainest


def _round(config: Config, engine: Engine, loader: Loader, place: torch.device, epoch: int) -> float:
    """Return the seconds an image takes from where it lies to its augmented pixels on the device."""
    policy = _policy(config)
    began, order = time.perf_counter(), torch.arange(len(loader), device=place)
    for batch in loader.batches(order, min(_BATCH, len(loader)), epoch=epoch):
        images = batch.images
        if engine == "per_batch":
            keys = draws.keys(config.seed, epoch, batch.indices)
            turned = per_batch.alternation(config.seed, epoch, batch.indices)
            images = per_batch.augment(images, policy, keys, turned=turned)
        images[-1, 0, 0, 0].item()  # waits for the device
    return (time.perf_counter() - began) / len(loader)


def _policy(config: Config) -> Policy:
    return policies.resolve(config.augment.policy, config.augment.ops)
