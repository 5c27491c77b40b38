"""Policies that start later (`augment.delays`)."""

from pathlib import Path

import pytest
import torch

from comp import config as configs
from comp.data.dataset import open_dataset
from comp.models import zoo
from comp.results.runs import Run
from comp.runtime.device import Execution
from comp.training.batches import planned_batches
from comp.training.context import build_context
from tests.support.runs import Comp

PLAIN = ("augment.mixup=0", "competition.ood_validation.severities=[]", "competition.suite.source=none")
BOTH = "augment.policy=[mirrored_crop, robust]"


def images_of(epoch: int, *overrides: str) -> torch.Tensor:
    """Return an epoch's augmented images, as a training sees them."""
    config = configs.load("small.yaml", [*PLAIN, *overrides])
    dataset = open_dataset(config)
    model = zoo.build(config.model, classes=4, image_shape=(3, 32, 32), mean=dataset.mean, std=dataset.std, seed=0)
    execution = Execution(device="cpu", precision="fp32", channels_last=False, threads=1)
    context = build_context(config, dataset, Run(Path()), model, execution, fresh=False)
    batches = planned_batches(context, context.order(epoch), 32, epoch=epoch)
    return torch.cat([planned.augmented(context) for planned in batches])


def test_a_policy_that_starts_later_leaves_the_first_epochs_as_without_it(workplace: Path) -> None:
    delayed = (BOTH, "augment.delays={robust: 2}", "train.epochs=4")
    for epoch in (1, 2):
        assert torch.equal(images_of(epoch, *delayed), images_of(epoch, "augment.policy=mirrored_crop"))
    for epoch in (3, 4):
        assert torch.equal(images_of(epoch, *delayed), images_of(epoch, BOTH))
    assert not torch.equal(images_of(3, BOTH), images_of(3, "augment.policy=mirrored_crop"))


def test_without_delays_a_config_is_an_earlier_one(workplace: Path) -> None:
    plain, empty, delayed = (
        configs.fingerprint(configs.load("small.yaml", [BOTH, *more]))
        for more in ([], ["augment.delays={}"], ["augment.delays={robust: 1}"])
    )
    assert plain == empty != delayed


def test_a_training_that_is_too_short_for_a_policy_says_so(workplace: Path, comp: Comp) -> None:
    result = comp("train", "small.yaml", *PLAIN, BOTH, "augment.delays={robust: 2}")
    assert result.code == 0, result.err
    said = "augment.delays: robust never starts: the training ends after 2 epochs"
    assert said in " ".join(result.err.split())
    enough = comp("train", "small.yaml", *PLAIN, BOTH, "augment.delays={robust: 1}")
    assert "never starts" not in enough.err
    timed = comp("train", "small.yaml", *PLAIN, BOTH, "augment.delays={robust: 9}", "train.budget=1s")
    said = "augment.delays: robust starts after epoch 9, if train.budget=1s lasts that long"
    assert said in " ".join(timed.err.split())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["augment.delays={cutout: 1}"], "augment.delays: unknown policy of augment.policy 'cutout'"),
        (["augment.delays={robust: 0}"], "augment.delays"),
        (["augment.policy=photo", "augment.delays={photo: 1}"], "photo crops images while they are read"),
        (
            ["augment.policy=[basic, augmix]", "augment.delays={augmix: 1}", "train.consistency=jsd"],
            "augment.delays: train.consistency=jsd compares augmented views in every epoch",
        ),
    ],
)
def test_delays_that_cannot_be_are_refused(workplace: Path, comp: Comp, overrides: list[str], message: str) -> None:
    result = comp("config", "check", "small.yaml", *PLAIN, BOTH, *overrides)
    assert result.code == 2
    assert message in " ".join(result.err.split())
