"""The Python API: its names, a run's methods, folds and studies, what a notebook shows, and the notebooks."""

import copy
import json
import os
import pickle
import pty
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import comp
from comp.results import runs
from comp.runtime.errors import ConfigError, Interrupted, RunError, SubmissionError, UserError
from tests.support.commands import REPOSITORY, interrupt_at
from tests.support.configs import QUICK, tuned, write_config
from tests.support.photographs import write_kaggle
from tests.support.runs import assert_same_weights, members

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
NAMED_LIKE_CODE = "<img src=x onerror=alert(1)>"


def test_importing_it_loads_no_torch() -> None:
    code = "import sys, comp; assert 'torch' not in sys.modules; comp.train; assert 'torch' in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_it_has_what_it_says_and_nothing_else() -> None:
    assert all(getattr(comp, name) for name in comp.__all__)
    assert set(comp.__all__) - {"__version__"} == set(comp.api.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trains'"):
        _ = comp.trains


def test_from_a_config_to_an_ensembles_predictions(workplace: Path) -> None:
    trained = []
    for seed in (0, 1):
        config = comp.load_config("small.yaml", f"seed={seed}")
        trained.append(comp.train(config, name=f"seed{seed}"))
        assert trained[-1].metrics().test.accuracy > 0.25
    plain, flipped = (comp.predict(trained[0], split="test", views=views) for views in (None, "flip"))
    assert len(plain) == len(flipped) == 40
    assert not np.array_equal(plain.outputs, flipped.outputs)
    by_path = comp.predict(str(trained[0].path), split="test")
    assert np.array_equal(plain.outputs, by_path.outputs)
    assert comp.Run(str(trained[0].path)).metrics() == trained[0].metrics()
    both = comp.ensemble([trained[0], str(trained[1].path)])
    assert isinstance(both, comp.Run)
    assert both.submission() == Path("submissions/small.csv")  # it was written with the ensemble
    assert comp.check("submissions/small.csv").problems == ()
    with pytest.raises(RunError, match="predict with its members"):
        both.submission("elsewhere.csv")


def test_a_wrong_key_names_the_nearest(workplace: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.epoch'.*did you mean"):
        comp.load_config("small.yaml", "train.epoch=3")


def test_a_run_is_the_same_as_its_folder_everywhere_else(tmp_path: Path) -> None:
    folder, run = runs.Run(tmp_path), comp.Run(tmp_path, allow_plugins=True)
    assert isinstance(run, runs.Run)
    assert folder == run == folder  # in both directions
    assert len({folder, run, comp.Run(str(tmp_path))}) == 1
    assert run != comp.Run(tmp_path, ("data.root=elsewhere",))
    assert run != tmp_path
    for copied in (pickle.loads(pickle.dumps(run)), copy.deepcopy(run)):
        assert type(copied) is comp.Run
        assert (copied, copied.allow_plugins) == (run, True)


def test_a_run_is_evaluated_reported_and_submitted(three_runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    other, run, *_ = [comp.Run(path) for path in members()]
    values = run.evaluate(baseline=other)
    assert values["test"]["metric"]["value"] == run.metrics().test.accuracy
    assert values["mean_corruption_error"]["baseline"] == other.name
    assert json.loads((run.path / "evaluation.json").read_text()).keys() == values.keys()
    page = run.report("one.html", baseline=other)
    assert run.name in page.read_text()
    assert all(each.path.name in comp.report([run, str(other.path)], "two.html").read_text() for each in (run, other))
    own = run.submission()
    assert comp.check(own).problems == ()
    flipped = run.submission("flip.csv", views="flip")
    assert json.loads(flipped.with_suffix(".json").read_text())["made_by"]["views"] == "flip"
    assert run.submission() == own  # not the last one, but the run's own way
    assert comp.check(flipped, against=own, sample=own).agreement is not None
    with pytest.raises(SubmissionError, match=r"flip\.csv: already exists"):
        run.submission("flip.csv", views="shift")
    before = own.read_bytes()
    own.unlink()
    again = run.submission()  # predicted anew
    assert again.read_bytes() == before
    assert run.submission() == again
    assert capfd.readouterr() == ("", "")  # bars are for those who look


def test_a_leaderboard_is_a_table_and_leaves_damaged_runs_out_with_a_warning(three_runs: Path) -> None:
    table = comp.leaderboard()
    assert len(table) == 3
    assert table["ood_accuracy"].is_monotonic_decreasing
    assert set(table["run"]) == {str(path) for path in members()}
    (members()[0] / "metrics.json").write_text("{")
    with pytest.warns(UserWarning, match="1 run left out, first .*damaged"):
        assert len(comp.leaderboard(competition="small")) == 2
    assert list(comp.leaderboard("nothing").columns) == list(table.columns)
    with pytest.raises(ConfigError, match="unknown column"):
        comp.leaderboard(sort="accurac")


def test_an_interrupted_training_ends_with_the_same_weights(workplace: Path) -> None:
    config = comp.load_config("small.yaml")
    whole = comp.train(config, name="whole")
    with pytest.raises(Interrupted):
        comp.train(config, name="stopped", progress=interrupt_at(6))
    (path,) = Path("runs/small").glob("*-stopped")
    stopped = comp.Run(path)
    assert f"comp run --resume {path}" in stopped._repr_html_()
    with pytest.raises(RunError, match="not a complete run"):
        stopped.submission()
    with pytest.raises(RunError, match="not a complete run"):
        stopped.report()
    assert comp.resume(str(path)) == stopped
    assert_same_weights(whole, stopped)
    assert stopped.metrics().test == whole.metrics().test
    assert comp.resume(stopped, "data.root=data").is_complete()  # nothing is left to do


def test_folds_are_runs_with_their_ensemble(workplace: Path) -> None:
    config = comp.load_config("small.yaml", "data.folds=2", "train.epochs=1", *QUICK)
    result = comp.cross_validate(config, output="two.csv")
    assert [type(run) for run in (*result.folds, result.result)] == [comp.Run] * 3
    assert result.result.submission() == Path("two.csv")
    assert "out of fold" in result._repr_html_()
    again = comp.cross_validate(config)
    assert (again.is_new, again.result) == (False, result.result)
    with pytest.raises(ConfigError, match=r"data\.folds"):
        comp.cross_validate("small.yaml")


def test_a_study_recommends_a_trial(workplace: Path) -> None:
    knobs = {"optim.lr": {"choice": [1e-3, 1e-2]}}
    write_config(Path("tuned.yaml"), tuned(knobs, trials=2, sampler="grid"))
    study = comp.tune("tuned.yaml", name="rates")
    assert [row["state"] for row in study.trials] == ["done", "done"]
    assert f"recommended: trial {study.recommended}" in study._repr_html_()
    assert comp.load_config(study.best).optim.lr in (1e-3, 1e-2)


def test_a_report_takes_one_folder(three_runs: Path) -> None:
    assert comp.report(str(members()[0]), "one.html") == Path("one.html")
    assert str(members()[0].name) in Path("one.html").read_text()


def test_a_folder_that_is_no_run_is_not_said_to_be_incomplete(tmp_path: Path) -> None:
    shown = comp.Run(tmp_path / "nope")._repr_html_()
    assert "no such run" in shown
    assert "--resume" not in shown


def test_names_are_completed_before_they_are_loaded() -> None:
    code = "import comp, sys; assert {'train', 'Run', 'init'} <= set(dir(comp)); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_from_a_download_to_a_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_kaggle(tmp_path / "data", train=24)
    draft = comp.init("data", "train.epochs=1", output="ours.yaml", budget="1min")
    assert Path("ours.yaml").read_text() == draft.text
    assert comp.load_config("ours.yaml") == draft.config
    with pytest.raises(ConfigError, match="exists"):
        comp.init("data", output="ours.yaml")
    comp.init("data", output="ours.yaml", preset="fast", force=True)
    assert {finding.verdict for finding in comp.check_data("ours.yaml")} <= {"ok", "note", "misleads"}


def test_an_export_answers_as_the_run_does(three_runs: Path) -> None:
    card = comp.export(members()[0], "weights", file_format="safetensors")
    assert json.loads(json.dumps(card)) == json.loads(Path("weights/model.json").read_text())
    with pytest.raises(UserError, match=r"weights.*exists"):
        comp.export(members()[0], "weights", file_format="safetensors")


def test_what_a_notebook_shows_is_small_and_escaped(three_runs: Path) -> None:
    run = comp.Run(members()[0])
    card = run._repr_html_()
    accuracy = run.metrics().best.val.accuracy
    assert f"{accuracy:.4f}" in card
    assert len(card) < 3_000
    predictions = comp.predict(run, split="test")
    hostile = replace(predictions.take(np.arange(3)), ids=np.array([NAMED_LIKE_CODE] * 3), classes=("<b>",) * 4)
    shown = hostile._repr_html_()
    assert shown.count("&lt;img src=x") == 3
    assert "<img" not in shown
    assert "<b>" not in shown
    assert predictions._repr_html_().count("<tr>") == 6  # the heading and five rows
    named = comp.Run(run.path.rename(run.path.with_name(NAMED_LIKE_CODE.replace("/", ""))))
    assert "<img" not in named._repr_html_()


def test_what_a_notebook_shows_loads_no_torch(three_runs: Path) -> None:
    code = """import sys
from pathlib import Path
from comp.results import cards, prediction_files, runs
run = runs.Run(Path(sys.argv[1]))
assert "accuracy" in cards.run_card(run) and prediction_files.load(run.predictions_path("val"))._repr_html_()
assert "torch" not in sys.modules"""
    subprocess.run([sys.executable, "-c", code, str(members()[0])], check=True)


def test_a_terminal_has_a_bar_and_a_pipe_has_nothing() -> None:
    code = "from comp.runtime.progress import quiet, shown\nwith shown({}) as progress: progress('test', 2, 2)"
    command = [sys.executable, "-c", code.format(None)]
    piped = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (piped.stdout, piped.stderr) == ("", "")
    for chosen, printed in (("None", b"100%"), ("quiet", b"end")):
        ours, theirs = pty.openpty()
        command[2] = f"{code.format(chosen)}\nimport sys; print('end', file=sys.stderr)"
        subprocess.run(command, stderr=theirs, check=True, env={**os.environ, "TERM": "xterm"})
        os.close(theirs)
        drawn = os.read(ours, 1 << 16)
        assert printed in drawn
        assert (b"test" in drawn) == (chosen == "None")


@pytest.mark.slow  # half a minute each
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_end_and_keeps_its_outputs(path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    bars: list[str] = []

    class Client(nbclient.NotebookClient):
        """Runs a notebook, and notes what its progress bars show on the way."""

        def process_message(self, message: Any, *arguments: Any) -> Any:
            if message["msg_type"] == "update_display_data":
                bars.append(message["content"]["data"].get("text/html", ""))
            return super().process_message(message, *arguments)

    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)  # outputs are stored
    assert 10 <= len(notebook.cells) <= 20
    resources = {"metadata": {"path": str(path.parent)}}
    Client(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    assert any(bar.startswith("<progress value=") for bar in bars)
    assert bars[-1] == ""  # none stays


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_uses_the_public_api_alone(path: Path) -> None:
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    source = "\n".join("".join(cell["source"]) for cell in cells)
    assert "import comp\n" in source
    assert "from comp" not in source
    assert "import comp." not in source


def test_there_are_five_notebooks_and_the_readme_leads_to_them() -> None:
    assert len(NOTEBOOKS) == 5
    assert "(notebooks)" in (REPOSITORY / "README.md").read_text()
