"""What a step of a real training asks of the device, at batch 512: its waits, its copies and its launches."""

import itertools
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from comp import config as configs
from comp.augment.policies import POLICIES
from comp.config.tasks import TASKS
from comp.config.yaml_io import merge
from comp.workflows import train
from tests.support import pretend_device
from tests.support.configs import small_config, write_arrays, write_config
from tests.support.on_device import Check, Values

BATCH = 512
_STEPS, _MANY_STEPS = 3, 20  # draws are planned some steps ahead: many steps see more than one plan made

# Settings of a step, beside every policy alone: an op per image costs more together with a crop.
SETTINGS: dict[str, dict[str, Any]] = {
    **{name: {"augment": {"policy": name}} for name in POLICIES},
    "basic+robust": {"augment": {"policy": ["basic", "robust"]}},
    "basic+augmix": {"augment": {"policy": ["basic", "augmix"]}},
    "basic, mixup and cutmix": {"augment": {"policy": "basic", "mixup": 0.2, "cutmix": 1.0}},
    "basic, ema, norms and clipping": {
        "augment": {"policy": "basic"},
        "train": {"average": "ema", "log_norms": True},
        "optim": {"clip": "norm"},
    },
    "basic, muon": {"augment": {"policy": "basic"}, "optim": {"name": "muon"}},
    "basic, bf16": {"augment": {"policy": "basic"}, "train": {"precision": "bf16"}},
    "basic, fp16": {"augment": {"policy": "basic"}, "train": {"precision": "fp16"}},
    **{
        f"basic, {loss} and class weights": {
            "augment": {"policy": "basic"},
            "data": {"sampling": "sqrt"},
            "train": {"loss": loss, "class_weights": {"1": 2.0}},
        }
        for loss in TASKS["single_label"].losses
    },
}
_PLAIN: dict[str, Any] = {
    "competition": {"suite": {"source": "none"}, "ood_validation": {"severities": []}},
    "data": {"validation": 40},
    "augment": {"policy": "none", "mixup": 0.0},
    "train": {"epochs": 1, "batch_size": BATCH},
}


def checks() -> dict[str, Check]:
    """Return the checks by name."""
    many = {"augment": {"policy": "basic", "mixup": 0.2, "cutmix": 1.0}}
    return {
        **{f"step/{name}": partial(_count_steps, settings, _STEPS) for name, settings in SETTINGS.items()},
        "steps": partial(_count_steps, many, _MANY_STEPS),
    }


def _count_steps(settings: dict[str, Any], count: int, device: torch.device) -> Values:
    """Train an epoch; return the counts of its last step, and the most waits and copies of any after the first."""
    steps: list[pretend_device.Counts] = []
    with TemporaryDirectory() as folder, pretend_device.counted() as counts:
        values = merge(small_config(write_arrays(Path(folder) / "data", train=BATCH * count + 40)), _PLAIN)
        values = merge(merge(values, {"train": {"device": device.type}}), settings)
        values["model"] = {"name": "mlp"}  # the cheapest with hidden matrices, for muon
        config = configs.load(write_config(Path(folder) / "step.yaml", values))

        def on_progress(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
            if unit == "steps":
                steps.append(counts.copy())

        train.train(config, runs_root=Path(folder) / "runs", progress=on_progress)
    assert len(steps) == count, f"{len(steps)} steps"
    each = [(after - before).to_json() for before, after in itertools.pairwise(steps)]
    return {**each[-1], "most": {name: max(one[name] for one in each) for name in ("waits", "copies")}}
