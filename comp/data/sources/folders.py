"""Image files in a folder for each class: the layout of Imagenette, hymenoptera (ants and bees) and many others."""

import unicodedata
from pathlib import Path

from comp.config import DataConfig
from comp.data.images import SUFFIXES
from comp.data.sources.samples import class_order, sample_of, unlabelled_test
from comp.data.sources.source import Source
from comp.data.splits import Split
from comp.data.survey import files_split
from comp.errors import DataError, nearest
from comp.progress import Progress


def image_folder(config: DataConfig, progress: Progress, task: str = "auto") -> Source:
    """`train/<class>/*`, maybe `val/<class>/*`, and `test/<class>/*` or, unlabelled, `test/*`.

    Classes are the folders of `train`, by value where all are numbers, else by name. Ids are paths below `data.root`;
    of an unlabelled test, names without the ending, or what a sample submission (`data.csv.sample`) lists. Hidden files
    and files that are not images are passed over.
    """
    root = Path(config.root)
    submitted = sample_of(config)
    classes = class_order([folder.name for folder in _folders(root / "train")], submitted.sample)
    train = _labelled("train", root, classes, config, progress)
    val = _labelled("val", root, classes, config, progress) if (root / "val").is_dir() else None
    notes, test = submitted.notes, None
    if (root / "test").is_dir():
        inner = {folder.name for folder in visible(root / "test") if folder.is_dir()}
        if inner & set(classes):
            return Source(train, _labelled("test", root, classes, config, progress), classes, val=val)
        test_images = unlabelled_test(root / "test", submitted.sample, config, progress)
        test, notes = test_images.split, (*notes, *test_images.notes)
    return Source(train, test, classes, val=val, sample=submitted.sample, notes=notes)


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected one folder for each class in it: {folder}/<class>/*.jpg")
    found = [path for path in visible(folder) if path.is_dir()]
    if not found:
        raise DataError(f"{folder}: holds no folder; expected one for each class: {folder}/<class>/*.jpg")
    return found


def _labelled(name: str, root: Path, classes: tuple[str, ...], config: DataConfig, progress: Progress) -> Split:
    paths: list[Path] = []
    labels: list[int] = []
    for folder in _folders(root / name):
        if folder.name not in classes:
            raise DataError(f"{folder}: no class of train has this name{nearest(folder.name, classes)}; rename it")
        files = [path for path in visible(folder) if path.suffix.lower() in SUFFIXES]
        if not files and name == "train":
            raise DataError(f"{folder}: holds no image ({', '.join(SUFFIXES)}); fill it or remove it")
        paths += files
        labels += [classes.index(folder.name)] * len(files)
    ids = [unicodedata.normalize("NFC", path.relative_to(root).as_posix()) for path in paths]
    return files_split(name, paths, ids, labels, config, progress)


def visible(folder: Path) -> list[Path]:
    """Return what lies in a folder, sorted by name in one form on every system, less what is hidden."""
    found = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return sorted(found, key=lambda path: unicodedata.normalize("NFC", path.name))
