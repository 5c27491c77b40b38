"""Pack a run or an ensemble for a code competition (`comp export --kaggle`).

DIR/dataset/      uploaded as a dataset: run folders, wheels/, manifest.json, dataset-metadata.json
DIR/kernel/       uploaded as a notebook: submission.ipynb, kernel-metadata.json
DIR/package.json  what is packed, and what `--verify` measured
"""

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from comp.config.plugins import FOLDER, parse
from comp.inference.inputs import PredictInput
from comp.results import files
from comp.results.runs import PRIOR, Run
from comp.runtime.errors import ConfigError, RunError
from comp.runtime.progress import Progress, quiet
from comp.workflows import hidden_test, kaggle_wheels, lineage, plugins
from comp.workflows.hidden_test import Manifest
from comp.workflows.kaggle_wheels import Image
from comp.workflows.load import load_for_input

DATASET, KERNEL, NOTEBOOK, RECORD = "dataset", "kernel", "submission.ipynb", "package.json"

# Those that a run has.
_FILES = ("config.yaml", "execution.json", "provenance.json", "metrics.json", "ensemble.npz", PRIOR)
_SHORTEST_TITLE, _LONGEST_TITLE = 6, 50  # that Kaggle takes
_COMPETITION_LETTERS, _TIME_LETTERS = 34, 15  # of a default title
_SLUG, _OWNER = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*"), re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")

_MARKDOWN = """# Submission of `{run}`
Installs `comp` from the dataset `{id}` without network, predicts the test of `{competition}` and writes
`submission.csv`. The environment variables `COMP_DATASET` and `COMP_DATA` say where else both folders are.
"""
_INSTALL = """import os, subprocess, sys
from pathlib import Path

def folder(variable, name):
    inputs = [path for above in ("", "*/", "*/*/") for path in Path("/kaggle/input").glob(above + name)]
    places = [Path(os.environ[variable])] if variable in os.environ else inputs
    assert places, f"{{name}} is no input of this notebook: add it, or set {{variable}}"
    return places[0]

dataset = folder("COMP_DATASET", "{slug}")
data = folder("COMP_DATA", "{competition}")
pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--disable-pip-version-check"]
subprocess.run([*pip, *sorted((dataset / "wheels").glob("*.whl"))], check=True)"""
_PREDICT = """import comp

result = comp.predict_package(dataset, data, output="submission.csv", allow_plugins={allow_plugins})
print(*result.notes, f"submission.csv: {{result.rows:,}} rows in {{result.seconds:.1f}} s", sep="\\n")"""


class Names(NamedTuple):
    """A package's names on Kaggle: the competition's and the user's as in addresses, the title of its two parts."""

    competition: str
    owner: str
    title: str

    @property
    def slug(self) -> str:
        """The title as Kaggle writes it in addresses."""
        return "-".join(re.findall(r"[a-z0-9]+", self.title.lower()))

    @property
    def id(self) -> str:
        """`owner/slug`, of the dataset and of the notebook."""
        return f"{self.owner}/{self.slug}"


def check_names(run: Run, *, competition: str, owner: str, title: str = "") -> Names:
    """Return a package's names, by default titled by competition and run; raise ConfigError if one is not valid."""
    if not _SLUG.fullmatch(competition):
        raise ConfigError(
            f"--competition {competition}: expected the name in the competition's address, such as digit-recognizer"
        )
    if not _OWNER.fullmatch(owner):
        raise ConfigError(f"--owner {owner}: expected your Kaggle user name, as in the address of your profile")
    names = Names(competition, owner, title or f"{competition[:_COMPETITION_LETTERS]} {run.path.name[:_TIME_LETTERS]}")
    is_plain = names.title.isascii() and names.title.isprintable() and names.slug[:1].isalpha()
    if not is_plain or len(names.slug) < _SHORTEST_TITLE or len(names.title) > _LONGEST_TITLE:
        expected = f"expected {_SHORTEST_TITLE} to {_LONGEST_TITLE} characters of ASCII, a letter first"
        raise ConfigError(f"--title {names.title}: {expected}")
    return names


def networks(run: Run) -> list[Run]:
    """Return the run, and the runs that it combines, and those that these combine, all of which are packed.

    Raises:
        UserError: not complete, no weights, a member is missing, or plug-ins that cannot be packed or may not run.
    """
    run.metrics()
    plugins.check_consent(run)
    if modules := [entry for entry in map(parse, run.config().plugins) if not entry.is_file]:
        raise ConfigError(
            f"{run.path}: its plug-in {modules[0].name} is an installed module, which is not packed; train with its "
            "file instead (plugins: [my_module.py])"
        )
    if run.has_weights() or "members" not in run.provenance():
        run.weights_path()
        hidden_test.check_source(run)
        return [run]
    members = [replace(one, allow_plugins=run.allow_plugins) for one in lineage.members_of(run, "it cannot be packed")]
    return [run, *(part for member in members for part in networks(member))]


def write_package(folder: Path, run: Run, names: Names, image: Image, *, progress: Progress = quiet) -> dict[str, Any]:
    """Pack a run in a new folder, which appears when it is whole; return the content of package.json.

    Raises:
        UserError: the run cannot be packed (`networks`), its test cannot be opened, or wheels are missing.
    """
    loaded = load_for_input(first_network(run), PredictInput(), progress)
    missing = kaggle_wheels.missing_packages(image)
    try:
        with files.new_folder(folder) as staged:
            files.make_folder(staged / KERNEL)
            dataset = staged / DATASET
            parts = {part.path.resolve(): part for part in networks(run)}.values()  # two ensembles may share a member
            weights = {str(_packed(part)): _copy_run(part, dataset / _packed(part)) for part in parts}
            manifest = hidden_test.describe_test(loaded, str(_packed(run)), progress)
            files.write_atomically(dataset / hidden_test.MANIFEST, files.to_json(manifest.model_dump()))
            files.make_folder(dataset / "wheels")
            progress("packing wheels", 0, 1 + len(missing), "wheels")
            kaggle_wheels.write_own_wheel(dataset / "wheels")
            kaggle_wheels.download(missing, image.python, dataset / "wheels")
            record = _describe(run, names, image, manifest, weights, dataset)
            metadata = {"title": names.title, "id": names.id, "licenses": [{"name": "unknown"}]}
            contents = {
                dataset / "dataset-metadata.json": metadata,
                staged / KERNEL / "kernel-metadata.json": _kernel_metadata(names, run),
                staged / KERNEL / NOTEBOOK: _notebook(names, run),
                staged / RECORD: record,
            }
            files.write_files_atomically({path: files.to_json(values) for path, values in contents.items()})
    except OSError as error:
        raise RunError(f"{folder}: cannot be written: {error.strerror}; free space or choose another folder") from None
    return record


def first_network(run: Run) -> Run:
    """Return the first of a run's networks, with the run's overrides, which say where the data are."""
    first = next(part for part in networks(run) if part.has_weights())
    return replace(first, overrides=run.overrides)


def _packed(run: Run) -> Path:
    """Return a run's folder in the dataset: two names, which `Run.beside` finds members by."""
    path = run.path.resolve()
    return Path("runs", path.parent.name, path.name)


def _copy_run(run: Run, target: Path) -> str:
    """Copy what predicting needs of a run; return the SHA-256 of its weights, empty for an ensemble."""
    if target.exists():
        raise RunError(f"{run.path}: another member has the name {target.name} too, in another folder; rename one")
    files.make_folder(target)
    for source in _sources(run):
        copy = target / source.relative_to(run.path)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, copy)
    return files.sha256_file(run.weights_path()) if run.has_weights() else ""


def _sources(run: Run) -> Iterator[Path]:
    yield from (path for name in _FILES if (path := run.path / name).is_file())
    yield from sorted((run.path / FOLDER).glob("*.py"))
    if run.has_weights():
        yield run.weights_path()
        return
    stored = sorted((run.path / "predictions").glob("*.npz"), key=lambda path: path.stat().st_size)
    yield from stored[:1]  # any of them says how the members are combined


def _describe(
    run: Run, names: Names, image: Image, manifest: Manifest, weights: dict[str, str], dataset: Path
) -> dict[str, Any]:
    return {
        "verified": False,
        "dataset": names.id,
        "kernel": names.id,
        "competition": names.competition,
        "run": run.name,
        "run_path": str(run.path.resolve()),
        "weights_sha256": {name: digest for name, digest in weights.items() if digest},
        "rows": manifest.rows,
        "python": image.python,
        "wheels": sorted(path.name for path in (dataset / "wheels").iterdir()),
        "bytes": sum(path.stat().st_size for path in dataset.rglob("*") if path.is_file()),
        "note": image.note,
    }


def _kernel_metadata(names: Names, run: Run) -> dict[str, Any]:
    return {
        "id": names.id,
        "title": names.title,
        "code_file": NOTEBOOK,
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": run.metrics().device.startswith("cuda"),
        "enable_internet": False,
        "dataset_sources": [names.id],
        "competition_sources": [names.competition],
    }


def _notebook(names: Names, run: Run) -> dict[str, Any]:
    words: dict[str, Any] = {"run": run.name, "id": names.id, "slug": names.slug, "competition": names.competition}
    words["allow_plugins"] = any(part.config().plugins for part in networks(run))
    code: dict[str, Any] = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
    return {
        "cells": [
            {"cell_type": "markdown", "id": "what", "metadata": {}, "source": _MARKDOWN.format(**words)},
            {**code, "id": "install", "source": _INSTALL.format(**words)},
            {**code, "id": "predict", "source": _PREDICT.format(**words)},
        ],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
