"""`comp ensemble RUN... --method soup`: weights of runs of one architecture averaged into one network.

A run like any other comes of it, with weights: it costs one forward pass where an ensemble of predictions costs as many
as it has members. Only networks that share a good part of their training (fine-tunings of the same weights) lie in one
basin; of others the greedy soup keeps the best alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from comp.config import DataConfig, ModelConfig
from comp.data import loading, splitting
from comp.ensembles import collect
from comp.inference.options import with_overrides
from comp.inference.predict import predict
from comp.models import averaging, weights
from comp.models.averaging import State
from comp.results import decisions, files, metrics, runs
from comp.results.runs import Run
from comp.runtime.errors import ConfigError, ModelError, RunError, unknown
from comp.runtime.progress import Progress, quiet
from comp.submission import write
from comp.workflows import predict as predicting
from comp.workflows import train as pipeline
from comp.workflows.build import load_model, verify_weights_hash
from comp.workflows.predict import LoadedRun

# Of section `data`, what decides which images validate.
_DIVISION = ("split_seed", "folds", "fold", "validation", "stratify", "groups", "test")
_STATISTICS_BATCHES = 40  # of training images, from which batch norm meets the averaged weights


@dataclass(frozen=True)
class _Mixed:
    """What came of it.

    Attributes:
        trained: the runs.
        values: the competition's metric of each alone.
        chosen: numbers of those in the soup.
        value: its metric.
        metric: the name of the competition's metric.
        state: its weights.
    """

    trained: tuple[Run, ...]
    values: tuple[float, ...]
    chosen: tuple[int, ...]
    value: float
    metric: str
    state: State

    def told(self) -> list[dict[str, Any]]:
        """Return what the sidecar and the run say of each member."""
        return [
            {
                "run": run.name,
                "run_path": str(run.path),
                "weights_sha256": files.sha256_file(run.weights_path()),
                "config_hash": run.config_hash(),
                "seed": run.config().seed,
                self.metric: self.values[number],
                "weight": 1 / len(self.chosen) if number in self.chosen else 0.0,
            }
            for number, run in enumerate(self.trained)
        ]


def soup(
    trained: Sequence[Run],
    *,
    select_on: str | None = None,
    given: Mapping[str, Any] | None = None,
    runs_root: Path = Path("runs"),
    output: Path | None = None,
    force: bool = False,
    progress: Progress = quiet,
) -> Run:
    """Make a greedy soup of runs' weights (Wortsman et al. 2022, arXiv:2203.05482); return it as a run, submitted.

    The best member comes first; each further one, from better to worse, joins the equal mean if that is then no worse
    on validation. Batch norm's statistics are averaged with the weights or met anew on training images, whichever is
    better there.

    Args:
        trained: complete runs with the same data and architecture.
        select_on: `val` or `ood_val`, by whose metric members are chosen; None: the shifted one, where there is.
        given: fields of `predict` in place of the first member's own, for test and suite.
        runs_root: where the result is made.
        output: the submission; None: a free name.
        force: replace that.
        progress: called while validation goes on.

    Raises:
        UserError: runs of other data or networks, no validation, or a submission that is there already.
    """
    collect.check_one_competition(trained)
    if output is not None:
        write.demand_free(output, force=force)
    first = _with_statistics(predicting.load(trained[0], progress=progress))
    split = _selection(select_on, first)
    states = [_state(run, first) for run in trained]
    score = _Scorer(first, split, progress)
    scored = [(score.plain(state), state) for state in states]
    mixed, chosen = averaging.greedy_soup(scored, lambda state: score.best(state)[0])
    value, state = score.best(mixed) if len(chosen) > 1 else (scored[chosen[0]][0], mixed)
    values = tuple(score.in_own_unit(value) for value, _ in scored)
    made = _Mixed(tuple(trained), values, chosen, score.in_own_unit(value), score.metric, state)
    loaded = _store(made, first, split, runs_root, progress)
    variant = with_overrides(loaded.config.predict, given or {})
    predicting.evaluate(loaded, progress, variant=variant)
    if loaded.dataset.suite is not None:
        found = predicting.predict(loaded, progress, variant=variant)
        predicting.estimate_accuracy(loaded, found, "suite", progress)
        path = output or predicting.default_submission(loaded.config)
        predicting.submit(loaded, found, path, force=force, trace={"members": made.told()})
    return loaded.run


def _with_statistics(loaded: LoadedRun) -> LoadedRun:
    """Return the first member with the sample of its training images that batch norm meets the soup on."""
    dataset = loaded.dataset
    rows = dataset.sample(dataset.train, _STATISTICS_BATCHES * loaded.config.train.batch_size)
    return replace(loaded, dataset=replace(dataset, samples={**dataset.samples, "statistics": rows}))


def _selection(select_on: str | None, loaded: LoadedRun) -> str:
    known = collect.SELECTIONS
    if select_on is not None and select_on not in known:
        raise ConfigError(f"--select-on: {unknown('split', select_on, known)}")
    found = select_on or next((name for name in known if getattr(loaded.dataset, name) is not None), None)
    if found is None or getattr(loaded.dataset, found) is None:
        raise ConfigError(
            f"--method soup: is chosen by validation, and {loaded.run.path} has no {found or 'validation split'}"
        )
    return found


def _state(run: Run, first: LoadedRun) -> State:
    """Return a run's best weights, which must fit the first one's network and data."""
    config = run.config()
    if _architecture(config.model) != _architecture(first.config.model):
        raise ModelError(
            f"{run.path}: its model is {config.model.name}, or of other settings than {first.config.model.name} of "
            f"{first.run.path}; a soup needs one architecture: compare `comp config show`"
        )
    _check_division(config.data, first.config.data, f"{run.path}: its images were divided otherwise than those of "
                    f"{first.run.path}")  # fmt: skip
    predicting.own_data(run, first.dataset)
    path = run.weights_path()
    state, facts = weights.read(path)
    verify_weights_hash(run, facts["sha256"])
    if problem := weights.mismatch(first.model, state):
        raise ModelError(f"{path}: these weights belong to another network than those of {first.run.path}: {problem}")
    device = next(first.model.parameters()).device
    return {name: tensor.to(device) for name, tensor in state.items()}


def _check_division(own: DataConfig, first: DataConfig, problem: str) -> None:
    """Refuse runs that were validated on other images: some would be validated on what others were trained on."""
    differing = [name for name in _DIVISION if getattr(own, name) != getattr(first, name)]
    if differing:
        told = ", ".join(f"data.{name} is {getattr(own, name)}, there {getattr(first, name)}" for name in differing)
        raise RunError(
            f"{problem}: {told}; give the runs one value of {' and '.join(f'data.{name}' for name in differing)}, or "
            "take --method mean"
        )


def _architecture(section: ModelConfig) -> ModelConfig:
    """Return what of a model's section is not about where its first weights came from, or what was trained."""
    plain = {"pretrained": False, "from_run": "", "sha256": "", "freeze": (), "unfreeze": {}, "normalize": "auto"}
    return section.model_copy(update=plain)


class _Scorer:
    """Scores states of one network on a validation split by the competition's metric; higher is always better."""

    def __init__(self, loaded: LoadedRun, split: str, progress: Progress) -> None:
        self._loaded, self._split, self._progress = loaded, split, progress
        self.metric = loaded.dataset.competition.metric

    def in_own_unit(self, score: float) -> float:
        """Return a score as the metric gives it: its sign is turned back where lower is better."""
        return metrics.metric(self.metric).as_maximize(score)

    def plain(self, state: Mapping[str, Tensor]) -> float:
        """Return the score of a state as it is."""
        images = predicting.images_of(self._loaded, self._split)
        with averaging.temporary_weights(self._loaded.model, state):
            found = predict(
                self._loaded.model, images, classes=self._loaded.dataset.competition.classes,
                task=self._loaded.dataset.competition.task,
                execution=self._loaded.execution, batch_size=self._loaded.config.predict.batch_size, made_by={},
                progress=self._progress,
            )  # fmt: skip
        scores = predicting.scores_of(decisions.prepare_for_scoring(found, self.metric), self.metric)
        assert scores is not None
        return scores.scores[self.metric].as_maximize

    def best(self, state: Mapping[str, Tensor]) -> tuple[float, State]:
        """Return the score with averaged or met statistics, whichever is better, and that state."""
        value = self.plain(state)
        if not averaging.has_statistics(self._loaded.model):
            return value, dict(state)
        met = averaging.refreshed(self._loaded.model, state, self._training_images(), self._loaded.execution.autocast)
        refreshed = self.plain(met)
        return (refreshed, met) if refreshed > value else (value, dict(state))

    def _training_images(self) -> Iterator[Tensor]:
        train, execution = self._loaded.dataset.train, self._loaded.execution
        seen = train.take(self._loaded.dataset.samples["statistics"], train.name)
        for images in loading.chunks(seen, self._loaded.config.train.batch_size):  # [B, H, W, C]
            batch = torch.from_numpy(images).to(execution.torch_device).permute(0, 3, 1, 2)
            yield execution.layout(batch)


def _store(mixed: _Mixed, first: LoadedRun, split: str, runs_root: Path, progress: Progress) -> LoadedRun:
    """Store the soup as a run, score it on validation, and return it ready to predict."""
    config = first.config
    provenance = pipeline.provenance_of(config, first.dataset, first.model)
    result = runs.create(runs_root, config, "soup", {**provenance, "members": mixed.told()})
    with runs.delete_on_failure(result), result.write_lock():
        dataset = first.dataset
        splitting.save(result.path / "split.npz", dataset.train, dataset.val, dataset.samples)
        result.write_json("execution.json", first.execution.to_json())
        names = ", ".join(mixed.trained[number].name for number in mixed.chosen)
        result.write("best.safetensors", weights.to_bytes(mixed.state, {"soup": names}))
        model, execution, _ = load_model(result)
        loaded = LoadedRun(result, config, dataset.competition, model, execution, dataset)
        best = predicting.score_weights(loaded, "best", progress)
        theirs = [mixed.trained[number].metrics() for number in mixed.chosen]
        fitted = {
            "model": f"soup of {len(mixed.chosen)} of {len(mixed.trained)} {config.model.name}",
            "selected_by": split,
            "train_seconds": round(sum(member.train_seconds for member in theirs), 2),
            "test_like": sorted({name for member in theirs for name in member.test_like}),
            "best": best.scores,
            "thresholds": list(best.thresholds),
            "weights_sha256": files.sha256_file(result.weights_path()),
            "soup": {"split": split, mixed.metric: mixed.value, "members": mixed.told()},
        }
        result.write_metrics(pipeline.describe_network(loaded, "soup").model_copy(update=fitted))
    return loaded
