"""Detect how a download is laid out, and describe it as section `data` of a config.

Reads file names, tables and the headers of a few images. `comp.workflows.init` opens the data afterwards, with every
check of a training, so a wrong guess is found before it costs anything.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comp.config import CSVConfig
from comp.data import archives, decode
from comp.data.sources.columns import TABLE, find_id_column, has_pixel_columns, read_table
from comp.data.sources.detect_groups import detect_group_answers, detect_groups, names_subjects
from comp.data.sources.labels import read_labels
from comp.data.sources.listing import Listing, first_few, image_locations, readable_members
from comp.data.sources.numpy_files import array_names, find_archive
from comp.runtime.errors import DataError, SubmissionError, plural
from comp.submission import samples
from comp.submission.format import SampleSubmission

if TYPE_CHECKING:
    import pandas as pd

# Folder of a published dataset -> its source.
_PUBLISHED = {
    "cifar-10-batches-py": "cifar10",
    "cifar-10-batches-bin": "cifar10",
    "cifar-100-python": "cifar100",
    "cifar-100-binary": "cifar100",
    "FashionMNIST": "fashion_mnist",
    "MNIST": "mnist",
}
_PROBES = 40  # ids of a table that are looked up
_HELD_SHARE = 0.8  # of them, in the folder of a table's images
_HEADERS = 64  # images whose size is read
_MOST_PATTERN_CLASSES = 1000
_PATTERNS = (r"^([A-Za-z]+)[._ -]*\d+[.]", r"^([A-Za-z_ -]+?)[._ -]*\d+[.]", r"^\d+[._ -]+([A-Za-z]+)[.]")
_LABEL_WORDS = ("label", "class", "target", "species", "breed", "diagnosis", "category", "type", "grade", "level")


@dataclass(frozen=True)
class Layout:
    """How a download is laid out.

    Attributes:
        data: of section `data`, without `root`.
        reasons: dotted key -> why its value was chosen.
        unlabelled_test: whether there are test images without labels, to be submitted.
        sizes: (width, height) of some images; empty where pixels are arrays.
        guesses: what no evidence settles, as sentences with the key to set.
    """

    data: dict[str, Any]
    reasons: dict[str, str] = field(default_factory=dict)
    unlabelled_test: bool = False
    sizes: tuple[tuple[int, int], ...] = ()
    guesses: tuple[str, ...] = ()


def detect_layout(root: Path) -> Layout:
    """Return the layout of a download.

    Raises:
        DataError: no folder, or nothing in it that a source reads.
    """
    if not root.is_dir():
        raise DataError(f"{root}: expected the folder of a download{_unpack_hint(root)}")
    for detect in (_detect_published, _detect_arrays, _detect_tables, _detect_folders):
        layout = detect(root)
        if layout is not None:
            return layout
    _explain_nothing(root)
    entries = sorted(entry.name for entry in root.iterdir() if not entry.name.startswith("."))
    raise DataError(
        f"{root}: found no training images: expected a table of labels beside images (train.csv, train/), one folder "
        f"per class (train/<class>/*.jpg), arrays (train_images.npy), or a published dataset; it holds "
        f"{first_few(entries) or 'nothing'}"
    )


def _explain_nothing(root: Path) -> None:
    """Raise the error of an archive that is damaged or packed, a deeper folder or a single class, if that is why."""
    for path in sorted(root.rglob("*")):
        is_archive = path.suffix.lower() == archives.ENDING and path.is_file()
        if is_archive and any(member.lower().endswith(".csv") for member in archives.members(path)):
            raise DataError(f"{path}: holds a whole download; unpack it first: unzip {path} -d {path.with_suffix('')}")
    deeper = sorted({table.parent for table in root.rglob("*.csv")} - {root}, key=lambda path: (len(path.parts), path))
    if deeper:
        raise DataError(f"{root}: its images have no table beside them, but a deeper folder has: comp init {deeper[0]}")
    for name in sorted(image_locations(root), key=lambda name: ("train" not in name.lower(), _depth(name))):
        listing = _open_listing(root, name)
        if not _is_test(name) and listing.wrapping:
            raise DataError(
                f"{listing.location}: all {len(listing):,} images lie in one folder, {'/'.join(listing.wrapping)}: "
                "expected two or more classes, one folder for each; or a table of labels, such as train.csv"
            )
    find_archive(root)  # several, or one of other arrays


def _unpack_hint(path: Path) -> str:
    if path.suffix.lower() == archives.ENDING and path.is_file():
        return f"; unpack this archive first: unzip {path.name} -d {path.stem}"
    return ", found a file" if path.is_file() else ", found nothing of this name"


def _detect_published(root: Path) -> Layout | None:
    for folder, source in _PUBLISHED.items():
        if (root / folder).is_dir():
            return Layout({"source": source}, {"source": f"{folder} is the published layout of {source}"})
    return None


def _detect_arrays(root: Path) -> Layout | None:
    places = {"": [path.name for path in root.glob("*.npy")]}
    places |= {path.name: readable_members(path) for path in sorted(root.glob("*.npz"))}
    for place, names in places.items():
        train = _first(array_names("train", "images"), names)
        if train:
            unlabelled = _first(array_names("test", "images"), names) and not _first(
                array_names("test", "labels"), names
            )
            reason = f"{place or train} holds the training images"
            return Layout({"source": "arrays"}, {"source": reason}, unlabelled_test=bool(unlabelled))
    return None


def _first(possible: Sequence[str], names: Sequence[str]) -> str:
    return next((name for name in possible if name in names), "")


def _depth(name: str) -> int:
    return 0 if name == "." else 1 + name.count("/")


def _open_listing(root: Path, name: str) -> Listing:
    folder = root / name
    return Listing(folder if folder.is_dir() else folder.with_name(folder.name + archives.ENDING))


@dataclass(frozen=True)
class _TrainingTable:
    """A table whose rows name images."""

    name: str
    cells: "pd.DataFrame"
    column: str
    ids: Sequence[str]
    location: str
    listing: Listing
    alternatives: tuple[str, ...] = ()
    """Other locations that hold images of these names."""


def _detect_tables(root: Path) -> Layout | None:
    """Detect a table of labels, beside images or with the pixels in it."""
    sample = _read_sample(root)
    paths = [path for path in _tables(root) if not _is_sample(path)]
    pixels = next((path for path in paths if not _is_test(path.name) and _has_pixels(path)), None)
    if pixels is not None:
        return _pixel_layout(root, pixels)
    locations = {name: _open_listing(root, name) for name in image_locations(root)}
    if not locations:
        return None
    tables = [table for path in paths if (table := _match_table(root, path, locations, sample)) is not None]
    if not tables:
        return None
    train = min(tables, key=lambda table: (_is_test(table.name), len(table.cells.columns) < 2, _rank(table.name)))
    data, reasons = _csv_section(train)
    answered = detect_group_answers(train, [table for table in tables if _is_test(table.name)], sample)
    labels, guesses = _detect_labels(train, sample, root / train.name, reasons, answered.column if answered else "")
    groups = answered or detect_groups(train, labels.get("label_column", ""))
    data |= groups.data
    data["csv"] |= labels | groups.csv
    reasons |= groups.reasons
    test_ids = sample.ids if sample and groups.test_ids is None else groups.test_ids
    test, doubts = _test_location(sample, test_ids, locations, train)
    guesses += [*groups.guesses, *doubts]
    if train.alternatives:
        guesses.append(
            f"data.csv.train: {train.location} is taken; {first_few(train.alternatives)} hold images of the same names"
        )
    if sample and Path(sample.path).parent != root:
        data["csv"]["sample"] = Path(sample.path).relative_to(root).as_posix()
    if test not in ("", "test"):
        data["csv"]["test"] = test
        reasons["csv.test"] = "holds the images of the sample submission" if sample else "holds the test images"
    sizes = _read_sizes([path for _, path in train.listing.files()])
    return Layout(_without_defaults(data), reasons, bool(test), sizes, tuple(guesses))


def _has_pixels(path: Path) -> bool:
    try:
        return has_pixel_columns(path)
    except DataError:  # empty, or no table at all
        return False


def _csv_section(train: _TrainingTable) -> tuple[dict[str, Any], dict[str, str]]:
    plain = re.sub(r"\.(zip|gz)$", "", train.name, flags=re.IGNORECASE)
    table = plain if plain.lower().endswith((".csv", ".tsv", ".txt")) else train.name
    reasons = {
        "source": f"{train.name} lists {plural(len(train.cells), 'image')} of {train.location}",
        "csv.table": "its rows name the training images",
        "csv.train": "holds the images that the table names",
    }
    return {"source": "csv_images", "csv": {"table": table, "train": train.location}}, reasons


def _without_defaults(data: dict[str, Any]) -> dict[str, Any]:
    """Return a section without the values that are its defaults."""
    default = CSVConfig()
    files = {key: value for key, value in data.get("csv", {}).items() if value != getattr(default, key)}
    rest = {key: value for key, value in data.items() if key != "csv"}
    return rest | ({"csv": files} if files else {})


def _read_sample(root: Path) -> SampleSubmission | None:
    """Return the sample submission of a download, or the only one of its folders."""
    try:
        path, _ = samples.find_sample(root, "auto")
        deeper = [table for table in _tables(root) if _is_sample(table)]
        path = deeper[0] if path is None and len(deeper) == 1 else path
        return samples.read_sample(path) if path else None
    except SubmissionError as error:
        raise DataError(str(error)) from None


def _tables(root: Path) -> list[Path]:
    paths = [path for pattern in ("*", "*/*") for path in sorted(root.glob(pattern)) if path.is_file()]
    return [path for path in paths if TABLE.fullmatch(path.name) and not path.name.startswith(".")]


def _is_sample(path: Path) -> bool:
    return path in samples.list_samples(path.parent)


def _is_test(name: str) -> bool:
    return bool(re.search(r"(^|[/_. -])test", name.lower()))


def _rank(name: str) -> tuple[int, str]:
    """Return the order in which tables of the same kind are preferred."""
    lower = Path(name).name.lower()
    return (0 if lower.startswith("train.") else 1 if "train" in lower else 2 if "label" in lower else 3), lower


def _match_table(
    root: Path, path: Path, locations: dict[str, Listing], sample: SampleSubmission | None
) -> _TrainingTable | None:
    """Return a table with the smallest location that holds its images; None if no column names images."""
    try:
        cells, _ = read_table(path, lambda text: False)
    except DataError:
        return None
    step = max(1, len(cells) // _PROBES)
    probes = cells.iloc[::step]
    preferred = find_id_column(list(map(str, cells.columns)), CSVConfig(), sample, path)
    columns = sorted(map(str, cells.columns), key=lambda column: column != preferred)
    for column in columns:
        if column != preferred and not cells[column].is_unique:
            continue
        holding = _holding(locations, probes[column].tolist())
        if holding:
            ranked = sorted(holding, key=lambda name: (_is_test(name), "train" not in name.lower(), name))
            name = path.relative_to(root).as_posix()
            return _TrainingTable(
                name, cells, column, cells[column].tolist(), ranked[0], locations[ranked[0]], tuple(ranked[1:])
            )
    return None


def _holding(locations: dict[str, Listing], ids: Sequence[str]) -> list[str]:
    """Return the locations that hold nearly all of some ids, without those that merely contain another one of them.

    A few may be missing: opening the data says which.
    """
    holding = [
        name for name, files in locations.items() if sum(map(files.contains, ids)) >= _HELD_SHARE * max(1, len(ids))
    ]
    return [
        name
        for name in holding
        if not any(other != name and (name == "." or other.startswith(f"{name}/")) for other in holding)
    ]


def _detect_labels(
    train: _TrainingTable, sample: SampleSubmission | None, path: Path, reasons: dict[str, str], answered: str
) -> tuple[dict[str, Any], list[str]]:
    """Return keys of `data.csv` that name the labels, none where the reader finds them itself, and guesses.

    `answered` is the column of groups that have one answer each, whose names are the sample's ids.
    """
    columns = list(map(str, train.cells.columns))
    id_column = train.column if answered else find_id_column(columns, CSVConfig(), sample, path) or columns[0]
    try:
        read_labels(train.cells, id_column, CSVConfig(group_column=answered), sample, path, "auto")
    except DataError:
        return _guess_label_column(train.cells, id_column, reasons)
    return {}, []


def _guess_label_column(
    cells: "pd.DataFrame", id_column: str, reasons: dict[str, str]
) -> tuple[dict[str, Any], list[str]]:
    """Return the likeliest label column: by its name, else the one with the fewest repeated texts."""
    counts = {str(name): cells[name].nunique() for name in cells.columns if str(name) != id_column}
    most = max(2, len(cells) // 2)
    possible = [name for name, count in counts.items() if 2 <= count <= most and not names_subjects(name)]
    if not possible:
        return {}, []
    named = [name for name in possible if any(word in name.lower() for word in _LABEL_WORDS)]
    chosen = (named or sorted(possible, key=lambda name: counts[name]))[0]
    reasons["csv.label_column"] = "a guess"
    others = first_few([name for name in possible if name != chosen])
    guess = f"data.csv.label_column: '{chosen}' is taken for the label" + (f", it could be {others}" if others else "")
    return {"label_column": chosen}, [guess]


def _test_location(
    sample: SampleSubmission | None, ids: Sequence[str] | None, locations: dict[str, Listing], train: _TrainingTable
) -> tuple[str, list[str]]:
    """Return the location of the test images, empty if there is none, and guesses.

    The training images' own location counts only if no test id is a training id.

    Args:
        sample: the sample submission, or None.
        ids: of the test images that it asks for; None without a sample.
        locations: that hold images.
        train: the training table.
    """
    shares = ids is not None and set(ids) & set(train.ids)
    if sample is not None and ids is not None:
        step = max(1, len(ids) // _PROBES)
        holding = [name for name in _holding(locations, ids[::step]) if not (shares and name == train.location)]
        if not holding:
            return "", [
                f"data.csv.test: the images of {Path(sample.path).name} were not found, so nothing will be submitted"
            ]
    else:
        holding = [name for name in locations if _is_test(name) and name != train.location]
    ranked = sorted(holding, key=lambda name: (not _is_test(name), name != train.location, _depth(name), name))
    if not ranked:
        return "", []
    others = [name for name in ranked[1:] if _is_test(name) == _is_test(ranked[0]) and sample is not None]
    guess = (
        [f"data.csv.test: {ranked[0]} is taken, and {first_few(others)} hold images of the same names"]
        if others
        else []
    )
    return ranked[0], guess


def _pixel_layout(root: Path, path: Path) -> Layout:
    csv = {"table": path.relative_to(root).as_posix()}
    test = next((table for table in _tables(root) if _is_test(table.name) and not _is_sample(table)), None)
    if test is not None and test.name != "test.csv":
        csv["test_table"] = test.relative_to(root).as_posix()
    return Layout(
        _without_defaults({"source": "csv_images", "csv": csv}),
        {"source": f"{csv['table']} holds the pixels themselves"},
        unlabelled_test=test is not None,
    )


def _detect_folders(root: Path) -> Layout | None:
    """Detect one folder per class, or the class in each file's name."""
    locations = image_locations(root)
    ranked = sorted(
        (name for name in locations if not _is_test(name)),
        key=lambda name: ("train" not in name.lower(), _depth(name), -locations[name]),
    )
    for name in ranked:
        listing = _open_listing(root, name)
        files = listing.files()
        classes = Counter(below.partition("/")[0] for below, _ in files if "/" in below)
        if len(classes) >= 2 and classes.total() == len(files):
            if any(_is_test(folder) or "train" in folder.lower() for folder in classes):
                continue  # of splits, not of classes
            return _folder_layout(root, name, locations, files, {}, f"{name} has {len(classes):,} class folders")
        pattern = _find_pattern([below.rpartition("/")[2] for below, _ in files])
        if pattern and not classes:
            reason = f"the names of the files in {name} begin with the class"
            return _folder_layout(root, name, locations, files, {"label_pattern": pattern}, reason)
    return None


def _find_pattern(names: Sequence[str]) -> str:
    """Return a pattern whose group is the class of every file name; empty if there is none."""
    for pattern in _PATTERNS:
        matches = [re.search(pattern, name) for name in names]
        classes = Counter(match[1] for match in matches if match)
        if classes.total() == len(names) and 2 <= len(classes) <= _MOST_PATTERN_CLASSES and min(classes.values()) > 1:
            return pattern
    return ""


def _folder_layout(
    root: Path,
    name: str,
    locations: dict[str, int],
    files: Sequence[tuple[str, Path]],
    extra: dict[str, Any],
    reason: str,
) -> Layout:
    tests = sorted((other for other in locations if _is_test(other)), key=lambda other: (_depth(other), other))
    csv = {"train": name} | ({"test": tests[0]} if tests else {})
    labels = {below.partition("/")[0] for below, _ in files}
    labelled = False
    if tests:
        inside = {below.partition("/")[0] for below, _ in _open_listing(root, tests[0]).files() if "/" in below}
        labelled = bool(inside) and inside <= labels
    data = _without_defaults({"source": "image_folder", **extra, "csv": csv})
    reasons = {"source": reason}
    if "val" in locations:
        data["validation"] = "official"
        reasons["validation"] = "the folder val"
    sizes = _read_sizes([path for _, path in files])
    return Layout(data, reasons, bool(tests) and not labelled, sizes)


def _read_sizes(paths: Sequence[Path]) -> tuple[tuple[int, int], ...]:
    """Return (width, height) of some images, evenly spread; unreadable ones are left out."""
    sizes = []
    for path in paths[:: max(1, len(paths) // _HEADERS)][:_HEADERS]:
        try:
            sizes.append(decode.inspect_image(path, archives.read(path)).size)
        except DataError:
            continue
    return tuple(sizes)
