"""The Python API: five names, loaded when asked for."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import comp
from comp.runtime.errors import ConfigError
from tests.support.commands import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


def test_importing_it_loads_no_torch() -> None:
    code = "import sys, comp; assert 'torch' not in sys.modules; comp.train; assert 'torch' in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_it_has_what_it_says_and_nothing_else() -> None:
    assert all(getattr(comp, name) for name in comp.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trains'"):
        _ = comp.trains


def test_from_a_config_to_an_ensembles_predictions(workplace: Path) -> None:
    members = []
    for seed in (0, 1):
        config = comp.load_config("small.yaml", f"seed={seed}")
        members.append(comp.train(config, name=f"seed{seed}"))
        assert members[-1].metrics().test.accuracy > 0.25
    plain, flipped = (comp.predict(members[0], split="test", views=views) for views in (None, "flip"))
    assert len(plain) == len(flipped) == 40
    assert not np.array_equal(plain.outputs, flipped.outputs)
    by_path = comp.predict(str(members[0].path), split="test")
    assert np.array_equal(plain.outputs, by_path.outputs)
    assert comp.Run(str(members[0].path)).metrics() == members[0].metrics()  # type: ignore[arg-type]
    both = comp.ensemble([members[0], str(members[1].path)])
    assert isinstance(both, comp.Run)
    assert both.is_complete()


def test_a_wrong_key_names_the_nearest(workplace: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.epoch'.*did you mean"):
        comp.load_config("small.yaml", "train.epoch=3")


@pytest.mark.slow  # half a minute each
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_end_and_keeps_its_outputs(path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)  # outputs are stored
    resources = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
