"""Load a trained run to predict with: its weights, its model on a device, its data."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from comp.config import Config
from comp.config.tasks import TASKS
from comp.data import sources, splits
from comp.data.dataset import Dataset, open_dataset
from comp.data.splits import Split, Suite
from comp.inference.inputs import PredictInput
from comp.models import weights, zoo
from comp.models.classifier import Classifier
from comp.results import files
from comp.results.decision_fits import DeclaredShares, declared_shares
from comp.results.run_metrics import Decision
from comp.results.runs import FIXES, Run
from comp.runtime import device as devices
from comp.runtime.device import Execution
from comp.runtime.errors import ConfigError, DataError, RunError, unknown
from comp.runtime.progress import Progress, quiet
from comp.submission.format import Competition
from comp.workflows import plugins
from comp.workflows.build import without_weights


@dataclass(frozen=True)
class LoadedRun:
    """A run with its best weights in its model, ready to predict.

    Attributes:
        run: trained to the end.
        config: the run's.
        competition: its classes, metric and task; without blocks and sample submission where no data are open.
        model: placed by `execution`.
        execution: device and precision.
        data: the run's own; None: not opened.
        test: the split that the run submits, where its other data are missing.
        note: how prediction differs from training; empty: not at all.
        decide: value of predict.decide in place of the config's; empty: the run decides as recorded.
        decision: what `decide` asks for; see `comp.workflows.predict.with_decision`.
    """

    run: Run
    config: Config
    competition: Competition
    model: Classifier
    execution: Execution
    data: Dataset | None = None
    test: Split | None = None
    note: str = ""
    decide: str = ""
    decision: Decision | None = None

    @property
    def decide_suffix(self) -> str:
        """The part of a predictions file's name that tells another decision, such as `+decide-argmax`."""
        return f"+decide-{self.decide}" if self.decide else ""

    @property
    def dataset(self) -> Dataset:
        """The run's data, which must be open."""
        assert self.data is not None, "loaded without its data"
        return self.data

    @property
    def training_counts(self) -> Sequence[int]:
        """Training images of each class."""
        if self.data is None:
            counts: list[int] = self.run.provenance("training_counts")["training_counts"]
        else:
            counts = self.data.train.class_counts(len(self.competition.classes)).tolist()
        return counts

    @property
    def answer_counts(self) -> Sequence[int]:
        """Training answers of each class: images, or groups where these have one answer."""
        if self.data is None:
            recorded: list[int] | None = self.run.provenance().get("groups", {}).get("training_counts")
            return recorded or self.training_counts
        counts: list[int] = self.data.train.one_per_answer().class_counts(len(self.competition.classes)).tolist()
        return counts

    @property
    def test_shares(self) -> DeclaredShares | None:
        """The test's share of each class, if the competition declares it."""
        shares = self.config.competition.test_shares
        return declared_shares(shares, self.competition.classes, self.training_counts) if shares else None

    @property
    def prediction_settings(self) -> dict[str, Any]:
        """Arguments of `comp.inference.predict.predict` that are the same for all of the run's predictions."""
        return {
            "classes": self.competition.classes,
            "task": self.competition.task,
            "execution": self.execution,
            "batch_size": self.config.predict.batch_size,
        }

    def images_of(self, split: str) -> Split | Suite:
        """Return the images of `val`, `ood_val`, `test` or `suite`.

        Raises:
            ConfigError: unknown split, or the data have none.
        """
        if self.test is not None and split == "suite":
            return self.test
        images: dict[str, Split | Suite | None] = {
            "val": self.dataset.val,
            "ood_val": self.dataset.ood_val,
            "test": self.dataset.test,
            "suite": self.dataset.suite,
        }
        if split not in images:
            raise ConfigError(f"--split: {unknown('split', split, images)}")
        chosen = images[split]
        if chosen is None and split == "suite":
            raise ConfigError(f"{self.run.path}: competition.suite.source is none, so there is nothing to submit")
        if chosen is None:
            raise ConfigError(f"--split {split}: the data of {self.run.path} have no such split")
        return chosen


def load_run(run: Run, dataset: Dataset | None = None, progress: Progress = quiet, *, device: str = "") -> LoadedRun:
    """Return a trained run ready to predict, with its data open.

    Args:
        run: trained to the end.
        dataset: its data; None opens them.
        progress: called while they are opened.
        device: to predict on; empty: the training's, or the best of this machine if it lacks that.

    Raises:
        ConfigError: the device is unknown, or this machine cannot use it.
        DataError: the data are missing or have changed.
        RunError: not trained to the end, damaged, or trained on other classes.
    """
    config = run.config()
    model, execution, note = load_model(run, device)
    dataset = verify_run_data(run, dataset or open_run_data(run, progress))
    return LoadedRun(run, config, dataset.competition, model, execution, dataset, note=note)


def load_without_data(run: Run, *, device: str = "") -> LoadedRun:
    """Return a complete run ready to predict any images; its data are not opened.

    Raises:
        ConfigError: the device is unknown, or this machine cannot use it.
        RunError: not complete, or damaged.
    """
    config, scores, recorded = run.config(), run.metrics(), run.provenance("classes", "image_shape")
    model, execution, note = load_model(run, device)
    channels, height, width = recorded["image_shape"]
    competition = Competition(
        name=config.competition.name,
        metric=scores.metric,
        classes=tuple(recorded["classes"]),
        image_shape=(channels, height, width),
        blocks=(),
        submission=config.competition.submission,
        task=scores.task,
        numbered=recorded.get("numbered", False),
        separator=recorded.get("separator", ""),
        bare_images=recorded.get("bare_images", False),
        header=tuple(recorded.get("header", ("id", "label"))),
    )
    return LoadedRun(run, config, competition, model, execution, note=note)


def load_for_input(run: Run, images: PredictInput, progress: Progress = quiet, *, device: str = "") -> LoadedRun:
    """Return a run ready to predict these images; its data are opened only if they are needed.

    Raises:
        UserError: see `load_run` and `load_without_data`.
    """
    # Old runs do not record how their submission spells its classes; their data show it.
    old_format = images.suite is not None and "numbered" not in run.provenance()
    if not images.own and not old_format:
        return load_without_data(run, device=device)
    if not images.own or images.split not in (None, "suite"):
        return load_run(run, progress=progress, device=device)
    try:
        dataset = open_run_data(run, progress)
    except DataError as error:
        return _load_with_test_only(run, error, progress, device)
    return load_run(run, dataset, progress, device=device)


def _load_with_test_only(run: Run, error: DataError, progress: Progress, device: str) -> LoadedRun:
    """Return a run with only its test split open; raise `error`, from opening all its data, where that fails too."""
    config = run.data_config()
    open_test = sources.TESTS.get(config.data.source)
    if config.competition.suite.source != "test" or open_test is None or "header" not in run.provenance():
        raise error
    loaded = load_without_data(run, device=device)
    try:
        test = open_test(config.data, loaded.competition.classes, progress)
        if test.split.image_shape != loaded.competition.image_shape:
            raise DataError("images of another size")
    except DataError:
        raise error from None
    test_ids = () if test.sample else tuple(test.split.one_per_answer().ids.tolist())
    reason = f"{str(error).partition('; these are the data')[0]}: the test is predicted without the training data"
    return replace(
        loaded,
        competition=replace(loaded.competition, sample=test.sample, test_ids=test_ids),
        test=replace(test.split, name="suite", labels=None),
        note="; ".join(filter(None, (loaded.note, reason))),
    )


class PlacedModel(NamedTuple):
    """A run's model on its device, and a note on how prediction differs from training."""

    model: Classifier
    execution: Execution
    note: str


def load_model(run: Run, device: str = "") -> PlacedModel:
    """Return a trained run's model with its best weights, placed to predict; its data are not needed.

    Args:
        run: trained to the end.
        device: `cpu`, `cuda` or `mps`; see `comp.runtime.device.prediction_execution`.

    Raises:
        ConfigError: the device is unknown, or this machine cannot use it; or its plug-ins may not run.
        RunError: not trained to the end, or the weights differ from those that the training wrote.
        ModelError: the weights are damaged or belong to another network.
    """
    plugins.load_of(run)
    path, provenance = run.weights_path(), run.provenance("classes", "image_shape")
    recorded = run.path / "execution.json"
    execution, note = devices.prediction_execution(
        files.read_json(recorded, devices.RECORD_CURE), str(recorded), device
    )
    channels, height, width = provenance["image_shape"]
    model = zoo.build(
        without_weights(run.config().model),
        classes=len(provenance["classes"]),
        image_shape=(channels, height, width),
        mean=[0.0] * channels,  # mean and std are read with the weights
        std=[1.0] * channels,
        seed=0,
        label_scale=(0.0, 1.0) if TASKS[_task(run)].numeric else None,  # likewise
    )
    verify_weights_hash(run, weights.load_weights(model, path)["sha256"])
    execution.place(model)
    return PlacedModel(model, execution, note)


def _task(run: Run) -> str:
    """Return a run's task; a run of an earlier version, or one whose metrics are not written yet, records none."""
    recorded: str = run.provenance().get("task", "")
    return recorded or (run.metrics().task if run.is_complete() else "single_label")


def verify_weights_hash(run: Run, sha256: str) -> None:
    """Refuse weights other than those that the training wrote: a flipped bit would only lower the accuracy.

    Args:
        run: complete or not; old runs record no hash and are not verified.
        sha256: of the file that was read.

    Raises:
        RunError: naming both hashes.
    """
    expected = (run.metrics().weights_sha256 if run.is_complete() else "") or sha256
    if sha256 != expected:
        path = run.weights_path()
        missing = "" if path.name == "best.safetensors" else ", or best.safetensors is missing"
        raise RunError(
            f"{path}: expected sha256 {expected}, recorded by the training, found {sha256}; the file is damaged or "
            f"replaced{missing}: restore it, or train again"
        )


def open_run_data(run: Run, progress: Progress = quiet) -> Dataset:
    """Return a run's data, opened as in training.

    Raises:
        DataError: they cannot be opened; the message names both ways out.
        ConfigError: its plug-ins may not run.
    """
    plugins.load_of(run)
    try:
        return open_dataset(run.data_config(), progress)
    except DataError as error:
        raise DataError(
            f"{error}; these are the data of {run.path}: name their new folder with data.root=DIR, or predict other "
            f"images without them: comp predict {run.path} --images PATH"
        ) from None


def verify_run_data(run: Run, dataset: Dataset) -> Dataset:
    """Return a run's data with its recorded samples, after verifying that they are unchanged since training.

    Raises:
        UserError: classes, training images, labels, fixes or the validation split have changed.
    """
    recorded = run.provenance("classes", "data_fingerprint")
    if recorded["classes"] != list(dataset.competition.classes):
        raise RunError(f"{run.path}: was trained on other classes, or another order of them; restore its own data")
    if recorded["data_fingerprint"] != dataset.fingerprint:
        raise DataError(
            f"{run.path}: its training images or labels have changed (fingerprint {recorded['data_fingerprint']}, "
            f"now {dataset.fingerprint}); restore its own data or start a new run"
        )
    trained, opened = run.provenance().get("fixes", {}).get("sha256"), dataset.fixes.sha256 if dataset.fixes else None
    if trained != opened:
        raise RunError(
            f"{run.path}: was trained with {_fix_list(trained)} (data.fixes), found {_fix_list(opened)}; restore "
            f"{run.path / FIXES}, or start a new run"
        )
    splits.check_saved_split(run.path / "split.npz", dataset.train, dataset.val)
    return dataset.with_recorded_samples(run.path / "split.npz")


def _fix_list(sha256: str | None) -> str:
    return f"the fix list of sha256 {sha256[:16]}" if sha256 else "no fix list"
