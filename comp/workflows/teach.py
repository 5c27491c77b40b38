"""Predict with the teachers of a training, once before it: soft targets and pseudo-labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.config import Config
from comp.data import pseudo
from comp.data.dataset import Dataset
from comp.data.splits import Split, Suite, fingerprint
from comp.inference.options import PLAIN, PredictOptions, predict_options
from comp.inference.predict import predict
from comp.results import files
from comp.results.runs import Run
from comp.runtime.errors import ConfigError
from comp.runtime.progress import Progress
from comp.training import imbalance, teacher
from comp.workflows import lineage, plugins
from comp.workflows.load import load_without_data


@dataclass(frozen=True)
class Lessons:
    """What other runs bring into a training.

    Attributes:
        dataset: with the pseudo-labelled images.
        labelled: these images alone; None without.
        provenance: for provenance.json: name -> origin.
        contents: name -> content of NAME.npz.
        notes: for the user.
    """

    dataset: Dataset
    labelled: Split | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    contents: Mapping[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def plus(
        self,
        name: str,
        members: Sequence[Run],
        origin: Mapping[str, Any],
        arrays: Mapping[str, NDArray[Any]],
        note: str,
        dataset: Dataset,
    ) -> "Lessons":
        """Return the lessons with one more file, its origin and the networks that it comes from."""
        content = files.arrays_to_bytes(arrays)
        networks = [
            {"run": run.name, "path": str(run.path), "weights_sha256": files.sha256_file(run.weights_path())}
            for run in members
        ]
        traced = {"runs": networks, **origin, "sha256": files.sha256_bytes(content)}
        return replace(
            self,
            dataset=dataset,
            provenance={**self.provenance, name: traced},
            contents={**self.contents, name: content},
            notes=(*self.notes, note),
        )

    def write(self, run: Run) -> None:
        """Write the files into a new run's folder."""
        for name, content in self.contents.items():
            run.write(f"{name}.npz", content)


def prepare_lessons(config: Config, dataset: Dataset, progress: Progress) -> Lessons:
    """Check all that a new training learns from; return its pseudo-labels and soft targets, without any only its data.

    Raises:
        ConfigError: no image is confident enough, or see `lineage.check_teachers`.
        UserError: a teacher's weights are damaged, or do not fit the memory.
    """
    networks, lessons = lineage.check_teachers(config, dataset, progress), Lessons(dataset)
    if members := networks.get(lineage.PSEUDO):
        lessons = _label_images(members, config, dataset, progress)
    if members := networks.get(lineage.TEACHER):
        lessons = _soften(members, config, dataset, lessons, progress)
    return lessons


def describe_lessons(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return what metrics.json records of a run's lessons, from its provenance."""
    taught, labelled = provenance.get(teacher.NAME), provenance.get(pseudo.NAME)
    return {
        "teachers": [record["run"] for record in taught["runs"]] if taught else None,
        "pseudo_labels": labelled["joined"] if labelled else None,
    }


def _label_images(members: Sequence[Run], config: Config, dataset: Dataset, progress: Progress) -> Lessons:
    """Return the data with pseudo-labelled images, and their origin.

    Raises:
        ConfigError: no image is confident enough.
    """
    section, task = config.data.pseudo, dataset.competition.task
    images = pseudo.candidates(dataset, section.images)
    most = pseudo.most_joining(dataset, section.share)
    if not most:
        raise ConfigError(
            f"data.pseudo.share: {section.share:g} of {len(dataset.train):,} training images is less than one image; "
            "raise it"
        )
    mean, ids = _mean_probabilities(members, [images], config, dataset, progress)
    chosen = pseudo.choose(mean, images, ids, task, section.min_confidence, most)
    if not len(chosen.rows):
        raise ConfigError(
            f"data.pseudo.min_confidence: no {section.images} image reaches {section.min_confidence:g}, the highest is "
            f"{chosen.highest:.4f}; lower it, choose a better run, or remove data.pseudo"
        )
    part = pseudo.split_of(chosen, dataset, section.images)
    classes = dataset.competition.classes
    counts = dict(zip(classes, part.class_counts(len(classes)).tolist(), strict=True))
    origin = {
        "images": len(ids), "confident": chosen.confident, "joined": len(part), "classes": counts,
        "fingerprint": fingerprint(part), **section.model_dump(mode="json", exclude={"images", "run"}),
        "split": section.images,
    }  # fmt: skip
    note = (
        f"pseudo-labels: {chosen.confident:,} of {len(ids):,} {section.images} images have confidence "
        f"{section.min_confidence:g} or more by {_names(members)}; {len(part):,} join {len(dataset.train):,} training "
        "images"
    )
    start, joined = replace(Lessons(dataset), labelled=part), pseudo.join(dataset, part, config)
    lessons = start.plus(pseudo.NAME, members, origin, chosen.to_arrays(), note, joined)
    notes = (*joined.notes[len(dataset.notes) :], *imbalance.describe(config, joined))
    return replace(lessons, notes=(*lessons.notes, *notes))


def _soften(members: Sequence[Run], config: Config, labelled: Dataset, lessons: Lessons, progress: Progress) -> Lessons:
    """Return the lessons with the teachers' probabilities of all training images."""
    section = config.train.teacher
    parts = [labelled.train, *([lessons.labelled] if lessons.labelled is not None else [])]
    mean, _ = _mean_probabilities(
        members, parts, config, labelled, progress, options=PLAIN, temperature=section.temperature
    )
    origin = {"temperature": section.temperature, "share": section.share, "images": len(mean)}
    note = (
        f"teacher: {section.share:.0%} of every target is the prediction of {_names(members)} at temperature "
        f"{section.temperature:g}"
    )
    return lessons.plus(teacher.NAME, members, origin, teacher.to_arrays(mean, lessons.dataset), note, lessons.dataset)


def _mean_probabilities(
    members: Sequence[Run],
    parts: Sequence[Split | Suite],
    config: Config,
    dataset: Dataset,
    progress: Progress,
    *,
    options: PredictOptions | None = None,
    temperature: float = 1.0,
) -> tuple[NDArray[np.float64], NDArray[np.str_]]:
    """Return the networks' mean probabilities [N, classes] of images, one part after the other, and their ids.

    Args:
        members: the networks.
        parts: the images, as this run reads them.
        config: of this run.
        dataset: of this run, without pseudo-labelled images.
        progress: called after every batch.
        options: views and adaptation; None: as each run predicts its submission.
        temperature: divides the outputs.
    """
    ids, total = np.array([], np.str_), np.zeros((1, 1))
    for member in members:
        images = lineage.as_read_by(member, config, dataset, parts, progress)
        with plugins.lent_by(member, config):
            loaded = load_without_data(member)
            made = options or predict_options(loaded.config.predict)
            settings = {**loaded.prediction_settings, "made_by": {}, "options": made, "progress": progress}
            predicted = [predict(loaded.model, _single_images(part), **settings) for part in images]
        classes = dataset.competition.classes
        total = total + np.concatenate([teacher.probabilities(part, temperature, classes) for part in predicted])
        ids = np.concatenate([part.ids for part in predicted])
    return total / len(members), ids


def _single_images(part: Split | Suite) -> Split | Suite:
    """Return images that are answered one by one: a lesson has a row for each, also where groups have one answer."""
    return replace(part, groups=None) if isinstance(part, Split) else part


def _names(members: Sequence[Run]) -> str:
    return str(members[0].path) if len(members) == 1 else f"{len(members)} networks"
