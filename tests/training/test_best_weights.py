"""What a training has measured of its weights is not predicted again, and is what a prediction would give."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comp import config as configs
from comp.models import weights
from comp.results.runs import Run
from comp.runtime.errors import Interrupted
from comp.training.loop import Epoch
from comp.workflows import train
from comp.workflows.load import LoadedRun, load_run
from comp.workflows.score import score_weights
from tests.support.commands import interrupt_at
from tests.support.parameters import slow_except
from tests.support.runs import the_run

OOD = ["competition.ood_validation.every=1", "train.select=ood_metric"]
CASES = {
    "plain": [],
    "shifted": OOD,
    "ema": ["train.average=ema", "train.ema_epochs=0.3"],
    "swa": ["train.average=swa", "train.swa_epochs=2", "model.name=residual_cnn", "model.args={}"],
    "precise": ["train.precision=bf16", "train.channels_last=true", "predict.batch_size=7"],
    "final is not best": ["optim.lr=0.1", "train.epochs=4", "optim.schedule=constant"],
}
NAMES = {"final": "val-final", "averaged": "val-averaged", "best": "val"}


def assert_as_predicted_anew(run: Run, folder: Path) -> None:
    """Compare every stored prediction of validation with a new one by the weights that lie on the disk."""
    stored = {path.name: dict(np.load(path)) for path in run.predictions_path("val").parent.glob("*val*.npz")}
    scores = run.metrics()
    loaded = load_run(run)
    for which, name in NAMES.items():
        if not (run.path / f"{which}.safetensors").exists():
            assert f"{name}.npz" not in stored
            continue
        weights.load_weights(loaded.model, run.path / f"{which}.safetensors")
        found = score_weights(loaded, which, lambda *args: None)
        assert found.scores.val == getattr(scores, which).val
        assert found.scores.ood_val == getattr(scores, which).ood_val
    for name, before in stored.items():
        after = dict(np.load(run.predictions_path("val").parent / name))
        assert before.keys() == after.keys()
        for key in before:
            assert np.array_equal(before[key], after[key]), (name, key)


@pytest.mark.parametrize("case", slow_except(CASES, "shifted", "swa"))
def test_predictions_kept_from_the_training_are_those_that_the_weights_make(workplace: Path, case: str) -> None:
    run = train.train(configs.load("small.yaml", CASES[case]))
    assert_as_predicted_anew(run, workplace)


@pytest.mark.parametrize("step", [3, 6])
def test_a_resumed_training_predicts_what_it_has_not_measured(workplace: Path, step: int) -> None:
    config = configs.load("small.yaml", ["optim.lr=0.1", "train.epochs=2"])
    with pytest.raises(Interrupted):
        train.train(config, progress=interrupt_at(step))
    assert_as_predicted_anew(train.resume(the_run()), workplace)


def test_weights_that_were_replaced_are_predicted_anew(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a training goes back (`train.nan_retries`) and its file is another than it has measured."""
    config = configs.load("small.yaml")
    original = train.loop.fit

    def fit(context: Any, **more: Any) -> Any:
        state = original(context, **more)
        digest, measured = context.best_weights._last["best"]
        context.best_weights._last["best"] = digest.replace(digest[0], "x"), measured
        assert context.best_weights.measured("best") is None
        return state

    monkeypatch.setattr(train.loop, "fit", fit)
    assert_as_predicted_anew(train.train(config), workplace)


@pytest.mark.parametrize(
    ("overrides", "anew"),
    [([], {"ood_val"}), (OOD, set()), (["competition.ood_validation.severities=[]", "train.average=ema"], set())],
)
def test_after_the_last_epoch_only_what_was_not_measured_is_predicted(
    workplace: Path, overrides: list[str], anew: set[str]
) -> None:
    predicted: set[str] = set()

    def progress(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        predicted.add(what)

    def on_epoch(epoch: Epoch) -> None:
        predicted.clear()

    run = train.train(configs.load("small.yaml", overrides), on_epoch=on_epoch, progress=progress)
    more = {"val"} if "train.average=ema" in overrides else set()  # the average's statistics compete, once
    assert predicted & {"val", "ood_val"} == anew | more
    assert isinstance(load_run(run), LoadedRun)
