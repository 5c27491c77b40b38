"""ROID: its weights and losses, what it changes, its cost, and where it is undone."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from comp import config as configs
from comp.data.dataset import Dataset, open_dataset
from comp.data.splits import Split, Suite
from comp.inference import adapt, pool, prior, roid
from comp.inference.options import PredictOptions
from comp.inference.predict import predict
from comp.models import weights
from comp.models.classifier import Classifier
from comp.results.predictions import Predictions
from comp.runtime import device, rng
from comp.workflows import build
from tests.support.commands import REPOSITORY, Result
from tests.support.configs import small
from tests.support.networks import Net
from tests.support.runs import the_run

EXECUTION = device.Execution(device="cpu", precision="fp32", channels_last=True, threads=1)
GOLDEN = REPOSITORY / "tests/golden"
ROID = PredictOptions(adapt="roid")


class LayerNormNet(nn.Module):
    """A classifier of five classes whose only normalisation is a layer norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(768, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 5))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, 5]."""
        logits: Tensor = self.body(images.float() / 255)
        return logits


@pytest.fixture(scope="module")
def digits() -> tuple[Classifier, Dataset]:
    """The fixed net of the drift alarm, and its data."""
    config = configs.load(GOLDEN / "digits.yaml")
    dataset = open_dataset(config)
    model = build.build_model(config, dataset)
    weights.load_weights(model, GOLDEN / "digits.safetensors")
    EXECUTION.place(model)
    return model, dataset


def images(count: int = 120) -> list[Tensor]:
    """Return noise of several brightnesses in two batches."""
    generator = torch.Generator().manual_seed(0)
    bright = torch.randint(40, 256, (count, 1, 1, 1), generator=generator)
    pixels = torch.randint(0, 256, (count, 3, 16, 16), generator=generator) * bright // 256
    return [*pixels.to(torch.uint8).split(count // 2)]


def adapted_state(model: nn.Module, options: PredictOptions = ROID) -> tuple[dict[str, Tensor], adapt.Outcome]:
    """Return the state of a model adapted to `images`."""
    with adapt.adapted(model.eval(), lambda: iter(images()), options, EXECUTION) as outcome:
        return {name: value.clone() for name, value in model.state_dict().items()}, outcome


def digits_predictions(digits: tuple[Classifier, Dataset], data: Split | Suite, options: PredictOptions) -> Predictions:
    """Return the fixed net's predictions."""
    model, dataset = digits
    return predict(
        model,
        data,
        classes=dataset.competition.classes,
        task="single_label",
        execution=EXECUTION,
        batch_size=200,
        made_by={},
        options=options,
    )


def test_sure_and_rare_predictions_weigh_most() -> None:
    probabilities = torch.tensor([[0.98, 0.01, 0.01], [0.98, 0.01, 0.01], [0.01, 0.98, 0.01], [0.34, 0.33, 0.33]])
    found = roid.image_weights(probabilities, torch.tensor([0.6, 0.2, 0.2]))
    assert found.argmax() == 2
    assert found[3] == 0  # unsure


def test_equal_predictions_have_equal_finite_weights() -> None:
    found = roid.image_weights(torch.full((4, 5), 0.2), torch.full((5,), 0.2))
    assert torch.equal(found, torch.ones(4))


def test_the_likelihood_ratio_falls_as_a_network_gets_surer() -> None:
    losses = roid.soft_likelihood_ratio(torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [3.0, 0.0, 0.0]]))
    assert losses[0] > losses[1] > losses[2]


def test_views_that_agree_have_their_entropy_as_loss() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    shares = logits.softmax(1)
    assert torch.allclose(roid.symmetric_cross_entropy(logits, logits), -(shares * shares.log()).sum(1))
    assert roid.symmetric_cross_entropy(logits, -logits) > roid.symmetric_cross_entropy(logits, logits)


def test_views_are_drawn_from_keys_alone() -> None:
    batch = torch.cat(images())
    keys = rng.keys(0, 1, torch.arange(len(batch)))
    view = roid.augmented(batch, keys)
    assert view.dtype == torch.uint8
    assert torch.equal(view, roid.augmented(batch, keys))
    assert not torch.equal(view, roid.augmented(batch, rng.keys(0, 2, torch.arange(len(batch)))))


def test_a_balanced_block_is_not_corrected_and_an_uneven_one_toward_its_classes() -> None:
    even = np.eye(4, dtype=np.float32).repeat(25, 0) * 9
    assert np.allclose(roid.prior_correction(even), 0, atol=1e-5)
    uneven = roid.prior_correction(even[:50])
    assert uneven[0] == pytest.approx(uneven[1])
    assert uneven[0] > uneven[2]


def test_only_normalisation_moves_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roid, "_RATE", 1e-3)  # an untrained net comes apart at more
    model = Net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    after, outcome = adapted_state(model)
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert {name.rpartition(".")[2] for name in moved} <= {"weight", "bias", "running_mean", "running_var"}
    layers = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert {name.rpartition(".")[0] for name in moved} <= layers
    assert any(name.endswith("bias") for name in moved)
    assert outcome.forwards > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_layer_norm_is_adapted() -> None:
    model = LayerNormNet()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    after, outcome = adapted_state(model)
    assert not outcome.rolled_back
    assert {name for name in after if not torch.equal(after[name], before[name])} == {"body.2.weight", "body.2.bias"}
    assert adapt.count_adaptable_layers(model, "roid") == 1


def test_steps_are_the_same_each_time() -> None:
    first, second = (adapted_state(Net())[0] for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_weights_stay_near_those_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    distances = []
    for kept in (1.0, 0.5):
        monkeypatch.setattr(roid, "_KEPT", kept)
        model = LayerNormNet()
        after, _ = adapted_state(model)
        distances.append(float((after["body.2.bias"] - model.body[2].bias.detach()).abs().sum()))
    assert distances[1] < distances[0] / 1.5


def test_a_network_that_answers_one_class_is_undone_to_bn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roid, "_RATE", 1e6)  # one step, and every image is of one class
    after, outcome = adapted_state(Net())
    expected, _ = adapted_state(Net(), PredictOptions(adapt="bn"))
    assert outcome.rolled_back
    assert all(torch.equal(after[name], expected[name]) for name in after)


def test_a_constant_network_stays_as_it_is() -> None:
    model = LayerNormNet()
    nn.init.zeros_(model.body[4].weight)  # type: ignore[arg-type]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    after, _ = adapted_state(model)
    assert all(torch.equal(value, before[name]) for name, value in after.items())


def test_clean_digits_lose_no_more_than_noise(digits: tuple[Classifier, Dataset]) -> None:
    test = digits[1].test
    assert test is not None
    plain, found = (digits_predictions(digits, test, PredictOptions(adapt=name)) for name in ("none", "roid"))
    lost = int(plain.correct().sum()) - int(found.correct().sum())
    assert lost <= 4  # of 360


BLOCKS = ("distortion00_4", "distortion02_4", "distortion09_5")  # gaussian noise, impulse noise, fog
GOLDEN_SCORES = {  # of the net in tests/golden, measured 2026-11-28 on 2 cores
    "none": (0.81, 0.525, 0.275),
    "bn": (0.935, 0.88, 0.605),
    "roid": (0.96, 0.905, 0.635),
    "prior": (0.97, 0.95, 0.665),
    "pool": (0.74, 0.74, 0.74),
}


def test_scores_of_a_fixed_net_are_as_measured(digits: tuple[Classifier, Dataset]) -> None:
    suite = digits[1].suite
    assert isinstance(suite, Suite)
    some = Suite("suite", tuple(block for block in suite.blocks if block.name in BLOCKS), suite.open)
    predicted = {name: digits_predictions(digits, some, PredictOptions(adapt=name)) for name in ("none", "bn", "roid")}
    predicted["prior"] = prior.assign(predicted["none"], np.full(10, 0.1))
    predicted["pool"] = pool.combine_blocks(predicted["none"])
    for name, scores in GOLDEN_SCORES.items():
        expected = dict(zip(BLOCKS, scores, strict=True))
        assert predicted[name].block_accuracy() == pytest.approx(expected, abs=0.0151), name  # 3 of 200 images


def test_the_cost_and_what_was_undone_are_recorded_and_printed(
    workplace: Path, comp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert comp("train", small({"name": "convnet"}), "competition.ood_validation.severities=[]").code == 0
    result = comp("predict", the_run().path, "--adapt", "roid", "--split", "test")
    assert result.code == 0, result.err
    assert "roid took" in result.out
    assert "transductive" in result.out
    assert (the_run().path / "predictions/test+roid.npz").is_file()
    assert the_run().metrics().variants["test+roid"].transductive
    monkeypatch.setattr(roid, "_RATE", 1e6)
    assert "roid is undone in test" in comp("predict", the_run().path, "--adapt", "roid", "--split", "test").out
