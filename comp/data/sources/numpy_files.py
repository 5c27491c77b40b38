"""Arrays in `.npy` files, or in one `.npz` under the same names."""

from pathlib import Path

from comp.config import DataConfig
from comp.data.arrays import check_archive, holds, open_deep_images, open_labels
from comp.data.sources.source import Source, class_names, numbered
from comp.data.splits import Split
from comp.runtime.errors import DataError
from comp.runtime.progress import Progress

_MEMBERS = tuple(f"{split}_{what}.npy" for split in ("train", "val", "test") for what in ("images", "labels"))


def arrays(config: DataConfig, progress: Progress, task: str = "auto") -> Source:
    """`train_images.npy`, `train_labels.npy`, maybe `val_...` and `test_...`, and `classes.txt`, memory-mapped.

    Images [N, H, W, C] of any number of channels, or grey [N, H, W]: uint8, or other numbers, which `open_source`
    brings to 0..255 by `data.range`. Labels whole numbers from 0 up, [N] or [N, 1], or a column of 0 and 1 for each
    class, [N, K]; of the test they may be missing. All of the arrays may instead lie in one `.npz`
    (any name; the layout of MedMNIST), compressed or not.
    """
    root = Path(config.root)
    folder = _archive(root) or root
    train = _split("train", folder)
    val, test = (_split(name, folder) if holds(folder / f"{name}_images.npy") else None for name in ("val", "test"))
    assert train.labels is not None
    count = train.labels.shape[1] if train.labels.ndim == 2 else int(train.labels.max()) + 1
    listed = root / "classes.txt"
    names = class_names(listed) if listed.exists() else tuple(str(label) for label in range(count))
    if train.labels.ndim == 2 and len(names) != count:
        raise DataError(
            f"{listed}: expected {count} names, one for each column of train_labels.npy, found {len(names)}"
        )
    shown = "multi_label" if train.labels.ndim == 2 else "single_label"
    return Source(train, test, names, val=val, numbered=listed.exists(), task=shown)


def _archive(root: Path) -> Path | None:
    """Return the folder's archive, where it holds no .npy of its own."""
    found = sorted(root.glob("*.npz"))
    if not found or (root / "train_images.npy").exists():
        return None
    if len(found) > 1:
        raise DataError(f"{root}: expected one .npz, found {', '.join(path.name for path in found)}; keep one of them")
    check_archive(found[0], _MEMBERS)
    return found[0]


def _split(name: str, folder: Path) -> Split:
    images = open_deep_images(folder / f"{name}_images.npy")
    labels = folder / f"{name}_labels.npy"
    if name == "test" and not holds(labels):
        return numbered(name, images, None)
    return numbered(name, images, open_labels(labels, len(images)))
