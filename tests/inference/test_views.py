"""Test-time views: what they are, what they weigh, and whom they are given to."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from comp.data.splits import Split
from comp.inference.options import PredictOptions, parse_views_share
from comp.inference.predict import predict
from comp.inference.views import VIEWS, check_size, least_confident, views
from comp.results import prediction_files
from comp.runtime import device
from comp.runtime.errors import ConfigError
from tests.support.commands import Result
from tests.support.runs import the_run

EXECUTION = device.Execution(device="cpu", precision="fp32", channels_last=True, threads=1)


def random_split(count: int = 37, side: int = 12) -> Split:
    """Return labelled noise."""
    generator = np.random.default_rng(3)
    images = generator.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return Split("test", images, np.array([str(row) for row in range(count)]), np.arange(count) % 5)


class Looking(nn.Module):
    """A small net that sees where things are, so that every view gives other logits."""

    def __init__(self, side: int = 12) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.kernel = nn.Parameter(torch.randn(3 * side * side, 5, generator=generator) / 100)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [B, 5]."""
        return (images.float() / 255).flatten(1) @ self.kernel


def logits_of(model: nn.Module, split: Split, variant: PredictOptions, batch_size: int = 16) -> np.ndarray:
    """Return logits [N, 5] float32, as they are stored."""
    found = predict(
        model,
        split,
        classes="abcde",
        task="single_label",
        execution=EXECUTION,
        batch_size=batch_size,
        made_by={},
        options=variant,
    )
    return found.outputs.astype(np.float32)


@pytest.mark.parametrize("name", VIEWS)
def test_weights_sum_to_one_and_the_plain_view_comes_first(name: str) -> None:
    images = torch.from_numpy(random_split().images).permute(0, 3, 1, 2)
    assert sum(view.weight for view in VIEWS[name]) == pytest.approx(1)
    assert torch.equal(VIEWS[name][0].transform(images), images)


@pytest.mark.parametrize("name", VIEWS)
def test_views_keep_shape_and_are_all_different(name: str) -> None:
    images = torch.from_numpy(random_split().images).permute(0, 3, 1, 2)
    seen = [view.transform(images) for view in VIEWS[name]]
    assert all(view.shape == images.shape and view.dtype == images.dtype for view in seen)
    assert len({view.contiguous().numpy().tobytes() for view in seen}) == len(seen)


def test_the_sets_have_as_many_views_as_their_names_say() -> None:
    counts = {name: len(found) for name, found in VIEWS.items()}
    assert counts == {"none": 1, "flip": 2, "shift": 3, "flip_shift": 6, "ten_crop": 10, "dihedral": 8}


def test_a_shift_reflects_the_border_as_torch_pads() -> None:
    images = torch.from_numpy(random_split().images).permute(0, 3, 1, 2)
    padded = nn.functional.pad(images.float(), (1, 1, 1, 1), mode="reflect")
    down, up = VIEWS["shift"][1:]
    assert torch.equal(down.transform(images).float(), padded[:, :, :-2, :-2])
    assert torch.equal(up.transform(images).float(), padded[:, :, 2:, 2:])


@pytest.mark.parametrize("name", VIEWS)
def test_logits_are_the_weighted_mean_over_the_views(name: str) -> None:
    split, model = random_split(), Looking()
    images = torch.from_numpy(split.images).permute(0, 3, 1, 2)
    with torch.no_grad():
        wanted = sum(view.weight * model(view.transform(images)) for view in VIEWS[name])
    assert isinstance(wanted, torch.Tensor)
    wanted = wanted - wanted.max(1, keepdim=True).values
    assert np.allclose(logits_of(model, split, PredictOptions(views=name)), wanted.numpy(), atol=2e-3)


@given(batch_size=st.integers(1, 50), name=st.sampled_from(sorted(VIEWS)), share=st.sampled_from([0.1, 0.25, 1.0]))
def test_views_do_not_depend_on_the_batch_size(batch_size: int, name: str, share: float) -> None:
    split, model, variant = random_split(), Looking(), PredictOptions(views=name, views_share=share)
    assert np.allclose(logits_of(model, split, variant, batch_size), logits_of(model, split, variant), atol=2e-3)


def test_uncertain_gives_more_views_to_the_least_confident_alone() -> None:
    split, model = random_split(40), Looking()
    plain, everywhere = (
        logits_of(model, split, PredictOptions()),
        logits_of(model, split, PredictOptions(views="ten_crop")),
    )
    some = logits_of(model, split, PredictOptions(views="ten_crop", views_share=0.25))
    confidence = (np.exp(plain) / np.exp(plain).sum(1, keepdims=True)).max(1)
    unsure = np.argsort(confidence)[:10]
    sure = np.setdiff1d(np.arange(40), unsure)
    assert np.array_equal(some[sure], plain[sure])
    assert np.allclose(some[unsure], everywhere[unsure], atol=2e-3)
    assert not np.allclose(some[unsure], plain[unsure], atol=2e-3)


@given(count=st.integers(1, 60), share=st.floats(0.01, 1))
def test_least_confident_rows_are_less_sure_than_all_others(count: int, share: float) -> None:
    logits = np.random.default_rng(count).normal(0, 3, (count, 4)).astype(np.float32)
    rows = least_confident(logits, share)
    confidence = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).max(1)
    rest = np.setdiff1d(np.arange(count), rows)
    assert share * count <= len(rows) < share * count + 1
    assert not len(rest) or confidence[rows].max() <= confidence[rest].min() + 1e-6


@pytest.mark.parametrize("text", ["some", "uncertain", "uncertain:0", "uncertain:1.5", "uncertain:-1", "all "])
def test_a_share_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected `all`"):
        parse_views_share(text)


def test_unknown_views_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'flip'"):
        views("flipp")


def test_turns_of_oblong_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="square, found 8 x 9; choose from flip, flip_shift, none, shift, ten_crop"):
        check_size("dihedral", 8, 9)
    check_size("dihedral", 9, 9)


@pytest.mark.parametrize("name", sorted(VIEWS.keys() - {"dihedral"}))
@pytest.mark.parametrize("size", [(8, 40), (40, 8)])
def test_the_others_keep_the_size_of_oblong_images(name: str, size: tuple[int, int]) -> None:
    for view in VIEWS[name]:
        assert view.transform(torch.rand(1, 3, *size)).shape == (1, 3, *size)


def test_variants_never_share_a_name() -> None:
    variants = [
        PredictOptions(views=name, views_share=share, adapt=adapt, adapt_per=per, alpha=alpha)
        for name in ("flip", "shift", "flip_shift")
        for share in (0.25, 1.0)
        for adapt in ("bn",)
        for per in ("block", "file")
        for alpha in (0.7, 0.5)
    ]
    assert len({variant.suffix for variant in variants}) == len(variants)


def test_a_runs_own_views_are_those_of_its_config_and_plain_ones_stay(
    workplace: Path, comp: Callable[..., Result]
) -> None:
    assert comp("run", "small.yaml", "--views", "flip").code == 0
    run = the_run()
    scores = run.metrics()
    # What a suite should score is told by shifted validation, seen through the same views.
    assert scores.variants.keys() == {"test+flip", "suite+flip", "ood_val+flip"}
    assert prediction_files.load(run.predictions_path("suite+flip")).made_by["views"] == "flip"
    # Validation stays plain.
    assert "views" not in scores.best.val
    assert prediction_files.load(run.predictions_path("val")).made_by["views"] == "none"

    result = comp("predict", run.path, "--views", "none")
    assert result.code == 0, result.err
    again = run.metrics()
    assert again.variants == scores.variants
    assert again.suite.images == again.variants["suite+flip"].images
    assert comp("evaluate", run.path, "--views", "flip_shift", "--views-for", "uncertain:0.5").code == 0
    assert "test+flip_shift-uncertain0.5" in run.metrics().variants
