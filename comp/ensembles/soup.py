"""`comp ensemble RUN... --method soup`: average the weights of runs of one architecture into one network.

The result is a run with weights: it predicts with one forward pass, while an ensemble needs one for each member. Only
networks with much common training (fine-tunings of the same weights) average well; of others the greedy soup keeps
only the best.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from comp.config import DataConfig, ModelConfig
from comp.data import loading, splits
from comp.ensembles import collect
from comp.inference.options import with_overrides
from comp.inference.predict import predict
from comp.models import averaging, weights
from comp.models.averaging import State
from comp.results import decisions, files, metrics, runs
from comp.results.run_metrics import merged_lessons
from comp.results.runs import Run
from comp.runtime.errors import ConfigError, ModelError, RunError, unknown
from comp.runtime.memory import MicroBatch
from comp.runtime.progress import Progress, quiet
from comp.submission import write
from comp.submission.write import write_run_submission
from comp.training.step import SMALLEST, split_batch
from comp.workflows import plugins
from comp.workflows.load import LoadedRun, load_model, load_run, verify_run_data, verify_weights_hash
from comp.workflows.predict import estimate_accuracy, predict_split, score_test, scores_of
from comp.workflows.score import describe_network, score_weights
from comp.workflows.train import provenance_of

# Settings in section `data` that decide which images are validation images.
_SPLIT_SETTINGS = ("split_seed", "folds", "fold", "validation", "stratify", "groups", "test")
_STATISTICS_BATCHES = 40  # of training images, to recompute batch norm statistics for the averaged weights


@dataclass(frozen=True)
class _Soup:
    """Averaged weights and their members; scores are in the competition's metric."""

    trained: tuple[Run, ...]  # the candidates
    values: tuple[float, ...]  # their scores
    chosen: tuple[int, ...]  # indices of those in the soup
    value: float  # the soup's score
    metric: str
    state: State

    def describe_members(self) -> list[dict[str, Any]]:
        """Return each run's origin, score and weight, for the sidecar and metrics.json."""
        return [
            {
                "run": run.name,
                "run_path": str(run.path),
                "weights_sha256": files.sha256_file(run.weights_path()),
                "config_hash": run.config_hash(),
                "seed": run.config().seed,
                self.metric: self.values[index],
                "weight": 1 / len(self.chosen) if index in self.chosen else 0.0,
            }
            for index, run in enumerate(self.trained)
        ]


def soup(
    trained: Sequence[Run],
    *,
    select_on: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    name: str = "",
    runs_root: Path = Path("runs"),
    output: Path | None = None,
    force: bool = False,
    progress: Progress = quiet,
) -> Run:
    """Make a greedy soup of runs' weights (Wortsman et al. 2022, arXiv:2203.05482) as a new run; write its submission.

    Starting from the best run, each next one joins the mean if validation does not get worse. Batch norm statistics are
    averaged with the weights or recomputed on training images, whichever validates better.

    The arguments are those of `combine.ensemble`; members are chosen on `select_on`, and `overrides` replace the first
    member's settings for test and suite.

    Raises:
        UserError: different data or architectures, no validation, or an existing submission.
    """
    collect.check_one_competition(trained)
    for run in trained:
        plugins.load_of(run)
    if output is not None:
        write.check_output_path(output, force=force)
    first = _with_statistics_sample(load_run(trained[0], progress=progress))
    split = _selection(select_on, first)
    states = [_read_state(run, first) for run in trained]
    score = _Scorer(first, split, progress)
    scored = [(score.plain(state), state) for state in states]
    mean_state, chosen = averaging.greedy_soup(scored, lambda state: score.best(state)[0])
    value, state = score.best(mean_state) if len(chosen) > 1 else (scored[chosen[0]][0], mean_state)
    values = tuple(score.to_metric_unit(value) for value, _ in scored)
    mixed = _Soup(tuple(trained), values, chosen, score.to_metric_unit(value), score.metric, state)
    loaded = _store(mixed, first, split, name or "soup", runs_root, progress)
    options = with_overrides(loaded.config.predict, overrides or {})
    score_test(loaded, progress, options=options)
    if loaded.dataset.suite is not None:
        suite = predict_split(loaded, "suite", progress, options=options)
        estimate_accuracy(loaded, suite, "suite", progress)
        counts, trace = loaded.answer_counts, {"members": mixed.describe_members()}
        write_run_submission(
            loaded.run, suite, loaded.competition, output, training_counts=counts, trace=trace, force=force
        )
    return loaded.run


def _with_statistics_sample(loaded: LoadedRun) -> LoadedRun:
    """Return the first member with a sample of training images to recompute batch norm statistics on."""
    dataset = loaded.dataset
    rows = dataset.sample(dataset.train, _STATISTICS_BATCHES * loaded.config.train.batch_size)
    return replace(loaded, data=replace(dataset, samples={**dataset.samples, "statistics": rows}))


def _selection(select_on: str | None, loaded: LoadedRun) -> str:
    splits = collect.SELECTIONS
    if select_on is not None and select_on not in splits:
        raise ConfigError(f"--select-on: {unknown('split', select_on, splits)}")
    split = select_on or next((name for name in splits if getattr(loaded.dataset, name) is not None), None)
    if split is None or getattr(loaded.dataset, split) is None:
        raise ConfigError(
            f"--method soup: members are chosen by validation, and {loaded.run.path} has no "
            f"{split or 'validation split'}"
        )
    return split


def _read_state(run: Run, first: LoadedRun) -> State:
    """Return a run's best weights; check that they fit the first one's network and data."""
    config = run.config()
    if _architecture_settings(config.model) != _architecture_settings(first.config.model):
        raise ModelError(
            f"{run.path}: its model {config.model.name} or its settings differ from {first.config.model.name} of "
            f"{first.run.path}; a soup needs one architecture: compare `comp config show`"
        )
    _check_same_split(run, config.data, first)
    verify_run_data(run, first.dataset)
    path = run.weights_path()
    state, facts = weights.read(path)
    verify_weights_hash(run, facts["sha256"])
    if problem := weights.mismatch(first.model, state):
        raise ModelError(f"{path}: these weights do not fit the network of {first.run.path}: {problem}")
    device = next(first.model.parameters()).device
    return {name: tensor.to(device) for name, tensor in state.items()}


def _check_same_split(run: Run, settings: DataConfig, first: LoadedRun) -> None:
    """Check that two runs have the same validation images: else one's training images would validate the other."""
    expected = first.config.data
    differing = [name for name in _SPLIT_SETTINGS if getattr(settings, name) != getattr(expected, name)]
    if differing:
        values = ", ".join(
            f"data.{name}: found {getattr(settings, name)}, expected {getattr(expected, name)}" for name in differing
        )
        raise RunError(
            f"{run.path}: its validation images differ from those of {first.run.path}: {values}; train the runs with "
            "the same values, or use --method mean"
        )


def _architecture_settings(section: ModelConfig) -> ModelConfig:
    """Return a model section without the settings of initial weights and freezing."""
    plain = {"pretrained": False, "from_run": "", "sha256": "", "freeze": (), "unfreeze": {}, "normalize": "auto"}
    return section.model_copy(update=plain)


class _Scorer:
    """Scores a network's states on a validation split by the competition's metric; higher is always better."""

    def __init__(self, loaded: LoadedRun, split: str, progress: Progress) -> None:
        self._loaded, self._split, self._progress = loaded, split, progress
        self.metric = loaded.dataset.competition.metric
        self._micro_batch = MicroBatch(loaded.config.train.batch_size, smallest=SMALLEST)

    def to_metric_unit(self, score: float) -> float:
        """Return a score in the metric's unit: turn its sign back if lower is better."""
        return metrics.metric(self.metric).as_maximize(score)

    def plain(self, state: Mapping[str, Tensor]) -> float:
        """Return the score of an unchanged state; raise ConfigError where the split leaves it undefined."""
        images = self._loaded.images_of(self._split)
        with averaging.temporary_weights(self._loaded.model, state):
            settings = self._loaded.prediction_settings
            predictions = predict(self._loaded.model, images, **settings, made_by={}, progress=self._progress)
        scores = scores_of(decisions.prepare_for_scoring(predictions, self.metric), self.metric)
        assert scores is not None
        if reason := (scores.undefined or {}).get(self.metric):
            raise ConfigError(
                f"--method soup: {self._split} cannot choose by {self.metric}: {reason}; take --method mean"
            )
        return scores.scores[self.metric].as_maximize

    def best(self, state: Mapping[str, Tensor]) -> tuple[float, State]:
        """Return the better score with averaged or recomputed batch norm statistics, and that state."""
        value = self.plain(state)
        if not averaging.has_bn_statistics(self._loaded.model):
            return value, dict(state)
        refreshed = self._micro_batch.fit(
            self._micro_batch.images,
            lambda size: averaging.refresh_bn_statistics(
                self._loaded.model, state, self._training_images(size), self._loaded.execution.autocast
            ),
        )
        refreshed_value = self.plain(refreshed)
        return (refreshed_value, refreshed) if refreshed_value > value else (value, dict(state))

    def _training_images(self, size: int) -> Iterator[Tensor]:
        """Yield the sample's images in the training's batches, at most `size` at a time."""
        train, execution = self._loaded.dataset.train, self._loaded.execution
        sample = train.take(self._loaded.dataset.samples["statistics"], train.name)
        for images in loading.iter_chunks(sample, self._loaded.config.train.batch_size):  # [B, H, W, C]
            batch = torch.from_numpy(images).to(execution.torch_device).permute(0, 3, 1, 2)
            for part in split_batch(len(batch), size):
                yield execution.layout(batch[part])


def _store(mixed: _Soup, first: LoadedRun, split: str, name: str, runs_root: Path, progress: Progress) -> LoadedRun:
    """Store the soup as a run, score it on validation, and return it ready to predict."""
    config = first.config
    provenance = provenance_of(config, first.dataset, first.model, first.execution.device)
    provenance["members"] = mixed.describe_members()
    result = runs.create(runs_root, config, name, provenance, fixes=first.dataset.fixes)
    with runs.delete_on_failure(result), result.write_lock():
        dataset = first.dataset
        splits.save_split(result.path / "split.npz", dataset.train, dataset.val, dataset.samples)
        result.write_json("execution.json", first.execution.to_json())
        names = ", ".join(mixed.trained[index].name for index in mixed.chosen)
        result.write("best.safetensors", weights.to_bytes(mixed.state, {"soup": names}))
        model, execution, _ = load_model(result)
        loaded = LoadedRun(result, config, dataset.competition, model, execution, dataset)
        best = score_weights(loaded, "best", progress)
        member_metrics = [mixed.trained[index].metrics() for index in mixed.chosen]
        fields = {
            "model": f"soup of {len(mixed.chosen)} of {len(mixed.trained)} {config.model.name}",
            "selected_by": split,
            "train_seconds": round(sum(member.train_seconds for member in member_metrics), 2),
            "test_like": sorted({name for member in member_metrics for name in member.test_like}),
            **merged_lessons(member_metrics),
            "best": best.scores,
            **best.recorded_decision(),
            "weights_sha256": files.sha256_file(result.weights_path()),
            "soup": {"split": split, mixed.metric: mixed.value, "members": mixed.describe_members()},
        }
        result.write_metrics(describe_network(loaded, "soup").model_copy(update=fields))
    return loaded
