"""`comp data errors`: likely wrong labels from out-of-fold predictions, as a table, pictures and a fix list."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.data.fixes import fixes_of
from comp.data.inspection import open_without_suite
from comp.data.sources.grouping import answer_each_image
from comp.results import files, label_errors, page, plots, prediction_files, predictions, runs
from comp.results.label_errors import LabelErrors
from comp.results.predictions import Predictions
from comp.results.runs import Run
from comp.runtime.errors import DataError, RunError
from comp.runtime.progress import Progress, quiet
from comp.workflows import plugins

_COLUMNS = 6  # of pictures
_SMALLEST_SIDE, _LARGEST_SIDE = 112, 224  # pixels of a picture on a page


@dataclass(frozen=True)
class Suspect:
    """An image whose label is likely wrong.

    Attributes:
        id: of the image.
        action: `relabel` where the suggested class is as likely as for images labelled so, else `drop`.
        label: the suggested class, the most likely one.
        given: the given label.
        probability: of the suggested class.
        margin: probability of the given label less that of the suggested class; -1 is the surest.
    """

    id: str
    action: str
    label: str
    given: str
    probability: float
    margin: float


@dataclass(frozen=True)
class LabelReport:
    """The likely wrong labels of a competition's images.

    Attributes:
        trained: the runs that predicted the images.
        images: how many labels were judged.
        unjudged: other labelled images, which the runs were trained on.
        estimated: how many of the judged labels are estimated to be wrong, by networks that err too: an upper bound.
        disagreeing: for how many the networks' likeliest class is another one.
        pairs: (given label, true class, estimated images), the most frequent first.
        suspects: the likeliest first.
        kept: suspects that the runs' fix list marks as right; they are not listed.
    """

    trained: tuple[Run, ...]
    images: int
    unjudged: int
    estimated: int
    disagreeing: int
    pairs: tuple[tuple[str, str, int], ...]
    suspects: tuple[Suspect, ...]
    kept: int

    @property
    def competition(self) -> str:
        """Its name."""
        return self.trained[0].metrics().competition

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "runs": [str(run.path) for run in self.trained],
            "images": self.images,
            "unjudged": self.unjudged,
            "estimated": self.estimated,
            "disagreeing": self.disagreeing,
            "pairs": [{"given": given, "true": true, "images": count} for given, true, count in self.pairs],
            "kept": self.kept,
            "suspects": [asdict(suspect) for suspect in self.suspects],
        }


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Return run folders: a folder of runs, such as that of `comp cv`, stands for its newest ensemble, or its runs.

    Raises:
        RunError: a folder holds no complete run.
    """
    chosen: list[Path] = []
    for path in paths:
        if not path.is_dir() or (path / "provenance.json").exists():
            chosen.append(path)
            continue
        complete = [run for run in runs.list_runs(path) if run.is_complete()]
        if not complete:
            raise RunError(f"{path}: expected a run or a folder of runs such as that of comp cv; found no complete run")
        combined = [run for run in complete if run.metrics().kind == "fold_group"]
        chosen += [run.path for run in combined[-1:] or complete]
    return chosen


def find_label_errors(trained: Sequence[Run], *, top: int | None = None) -> LabelReport:
    """Return the likely wrong labels among the validation images of runs.

    Args:
        trained: the folds of a cross-validation, an ensemble of them, or one run with a validation split.
        top: at most so many suspects; None: all.

    Raises:
        RunError: no or damaged validation predictions, a task without exclusive classes, or runs that share images or
            differ in data, classes or fixes.
    """
    predicted = _load_out_of_fold(trained)
    fixes = fixes_of(trained[0])
    confirmed = {name for name, fix in fixes.fixes.items() if fix.action == "keep"} if fixes else set()
    labels = predicted.known_targets().astype(np.int64)
    judged = label_errors.find_label_errors(predicted.probabilities(), labels)
    every = _suspects(judged, predicted, labels)
    listed = [suspect for suspect in every if suspect.id not in confirmed]
    provenance = trained[0].provenance("images")
    dropped = provenance.get("fixes", {}).get("dropped", 0)
    total = provenance["images"]["train"] + provenance["images"]["val"] + dropped
    names = predicted.classes
    return LabelReport(
        trained=tuple(trained),
        images=len(predicted),
        unjudged=max(0, total - len(predicted)),
        estimated=judged.estimated,
        disagreeing=int((predicted.outputs.argmax(1) != labels).sum()),
        pairs=tuple((names[given], names[true], count) for given, true, count in judged.pairs()),
        suspects=tuple(listed[:top]),
        kept=len(every) - len(listed),
    )


def _load_out_of_fold(trained: Sequence[Run]) -> Predictions:
    """Return the validation predictions of all runs, one after the other: no image was trained on by its run."""
    first, parts = trained[0], []
    keys = ("data_fingerprint", "classes")
    for run in trained:
        scores = run.metrics()
        if scores.group_answer:
            raise RunError(
                f"{run.path}: gives one answer a group of images (data.group_answer: {scores.group_answer}), and wrong "
                f"labels are found image by image; train a run for it with {answer_each_image(run.config().data)}"
            )
        path = run.path / "predictions" / "val.npz"
        if scores.best_or_final.val is None:
            raise RunError(
                f"{run.path}: has no validation predictions, and those of training images show no wrong label; train "
                "with data.validation, or all folds: comp cv"
            )
        if not path.is_file():
            path = path.with_name("val-final.npz")  # of a run without best weights
        part = prediction_files.load(path)
        if repeated := len(part) - len(np.unique(part.ids)):
            raise RunError(
                f"{path}: damaged predictions file: {repeated:,} of {len(part):,} rows have the id of another row; "
                f"create it again: comp predict {run.path} --split val"
            )
        if part.row.numeric or part.row.target_columns:
            raise RunError(f"{run.path}: label errors are found among exclusive classes, not for task {part.task}")
        if any(run.provenance(*keys)[key] != first.provenance(*keys)[key] for key in keys):
            raise RunError(
                f"{run.path}: has other images, labels or classes than {first.path}; name runs of one data set"
            )
        parts.append(part)
    whole = predictions.concatenate(parts)
    if len(np.unique(whole.ids)) < len(whole):
        raise RunError(
            f"{first.path} and the other runs validate the same images; name one run, one run for each fold, or their "
            "ensemble (comp ensemble)"
        )
    return whole


def _suspects(judged: LabelErrors, predicted: Predictions, labels: NDArray[np.int64]) -> list[Suspect]:
    probabilities = predicted.probabilities()
    return [
        Suspect(
            id=str(predicted.ids[row]),
            action="relabel" if judged.confident[number] else "drop",
            label=predicted.classes[suggested],
            given=predicted.classes[labels[row]],
            probability=float(probabilities[row, suggested]),
            margin=float(judged.margins[number]),
        )
        for number, (row, suggested) in enumerate(zip(judged.rows, judged.suggested, strict=True))
    ]


def write_fixes(suspects: Sequence[Suspect], path: Path) -> None:
    """Write a fix list for `data.fixes`.

    Raises:
        RunError: the file exists, as somebody may have edited it, or cannot be written.
    """
    files.make_folder(path.parent)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "action", "label", "given", "probability", "margin"])
    for row in suspects:
        writer.writerow([row.id, row.action, row.label, row.given, f"{row.probability:.4f}", f"{row.margin:.4f}"])
    try:
        files.write_atomically(path, text.getvalue().encode(), replace=False)
    except FileExistsError:
        raise existing(path) from None


def existing(path: Path) -> RunError:
    """Return the error for a fix list that exists."""
    return RunError(f"{path}: exists, and may have been edited; choose another name with --out, or remove it")


def draw(judged: LabelReport, suspects: Sequence[Suspect], path: Path, progress: Progress = quiet) -> None:
    """Draw suspects with given and suggested label: a contact sheet (.png), or a page with larger pictures (.html).

    Raises:
        DataError: the images are missing or have changed since training.
        ConfigError: a plug-in of the run reads them, and it may not run.
        RunError: the file cannot be written.
    """
    images = _read_images(judged.trained[0], [suspect.id for suspect in suspects], progress)
    if path.suffix == ".png":
        titles = [f"given {row.given}\nlikely {row.label}\n{row.probability:.0%}" for row in suspects]
        plots.draw_image_grid(path, images, titles, columns=_COLUMNS)
        return
    cells = [(row.id, row.given, row.label, f"{row.probability:.3f}", row.action) for row in suspects]
    head = ("id", "given label", "suggested label", "probability", "action")
    pictures = [_to_png(image) for image in plots.drawable_channels(images)]
    title = f"{judged.competition}: {len(suspects)} likely wrong labels"
    files.write_atomically(path, page.render_pictures(title, head, pictures, cells).encode())


def _read_images(run: Run, ids: Sequence[str], progress: Progress) -> NDArray[np.uint8]:
    """Return labelled images [N, H, W, C] by id, from a run's data before its fixes."""
    plugins.load_of(run)
    config = run.data_config()
    config = config.model_copy(update={"data": config.data.model_copy(update={"fixes": ""})})
    try:
        dataset = open_without_suite(config, progress)
    except DataError as error:
        raise DataError(f"{error}; if the data have moved, name their new folder with data.root=DIR") from None
    places = {
        name: (split, row)
        for split in (dataset.train, dataset.val)
        if split is not None
        for row, name in enumerate(split.ids.tolist())
    }
    if dataset.fingerprint != run.provenance("data_fingerprint")["data_fingerprint"] or set(ids) - places.keys():
        raise DataError(f"{run.path}: its images or labels have changed since training; restore them to see pictures")
    return np.stack([np.asarray(split.images[row]) for split, row in map(places.__getitem__, ids)])


def _to_png(image: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    if (factor := _SMALLEST_SIDE // max(picture.size)) > 1:
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()
