"""Plug-ins: the examples of docs/PLUGINS.md, consent, records, and what is refused."""

import json
import multiprocessing
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import comp as api
from comp import config as configs
from comp.config import Config
from comp.config.tasks import TASKS
from comp.results import files, prediction_files, runs
from comp.results.metrics import METRICS
from comp.results.runs import Run, open_run
from comp.runtime.errors import ConfigError, Interrupted
from comp.workflows import label_errors, plugins, train
from comp.workflows.run import run_config
from tests.support.commands import REPOSITORY, Result, assert_refused, comp_process, interrupt_at
from tests.support.plugins import forget
from tests.support.plugins import fresh as fresh

Command = Callable[..., Result]

PAGE = (REPOSITORY / "docs/PLUGINS.md").read_text()
METRIC = """
from comp.results.metrics import Metric, accuracy

def mistakes(predictions):
    return 1 - accuracy(predictions)

METRICS = {"mistakes": Metric(mistakes, higher_is_better=False)}
TASKS = {"single_label": {"metrics": ["mistakes"]}}
"""


def write_page(folder: Path) -> Path:
    """Write the examples of the page; return their config."""
    blocks = re.findall(r"^```(?:python|yaml)\n(# (\S+)\n.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    for code, name in blocks:
        (folder / name).write_text(code)
    return folder / "my.yaml"


@pytest.fixture(scope="module")
def page_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples of the page, and a run of them in runs/stripes."""
    folder = tmp_path_factory.mktemp("page")
    config = configs.load(write_page(folder), ["train.epochs=1", "train.threads=1"])
    run_config(config, runs_root=folder / "runs")
    forget()
    return folder


@pytest.fixture
def page(page_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a copy of them; return the run's folder."""
    shutil.copytree(page_folder, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    (run,) = Path("runs/stripes").iterdir()
    return run


def test_each_example_of_the_page_takes_part_in_a_training(page: Path) -> None:
    run = Run(page)
    notes = "\n".join(run.provenance("notes")["notes"])
    for row in (
        "model tiny", "model thin_resnet10", "op tint", "policy tinted", "metric error_rate", "loss squared",
        "source stripes", "views upside_down", "schedule triangle", "optimizer rmsprop",
    ):  # fmt: skip
        assert row in notes
    scores, predicted = run.metrics(), prediction_files.load(page / "predictions" / "val.npz")
    assert scores.best.val is not None
    assert predicted.targets is not None
    assert scores.best.val.value("error_rate") == pytest.approx(
        np.mean(predicted.outputs.argmax(1) != predicted.targets)
    )
    assert scores.higher_is_better is False
    assert scores.variants.keys() == {"test+upside_down"}


def test_the_timm_model_of_the_page_is_built_like_timms_own(page: Path, comp: Command) -> None:
    result = comp(
        "config", "check", "my.yaml", "--data", "model.name=thin_resnet10", "model.stem=cifar", "model.args={}"
    )
    assert result.code == 0, result.err


def test_a_run_holds_the_sources_and_its_config_names_them_by_hash(page: Path) -> None:
    origins = json.loads((page / "provenance.json").read_text())["plugins"]
    assert len(origins) == 7
    for origin in origins:
        copy = page / "plugins" / origin["name"]
        assert copy.read_bytes() == Path(origin["name"]).read_bytes()
        assert origin["sha256"] == files.sha256_file(copy)
        assert f"plugins/{origin['name']}#sha256={origin['sha256']}" in (page / "config.yaml").read_text()


@pytest.mark.parametrize(
    "words",
    [
        ("predict", "RUN", "--split", "test"),
        ("evaluate", "RUN"),
        ("probe", "RUN", "--classifier", "knn"),
        ("run", "RUN/config.yaml"),
        ("run", "--as", "RUN"),
        ("train", "--resume", "RUN"),
        ("ensemble", "RUN", "OTHER"),
        ("lr-find", "RUN/config.yaml"),
        ("data", "show", "RUN/config.yaml"),
        ("data", "check", "RUN/config.yaml"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_runs_copies_run_only_when_allowed(page: Path, comp: Command, words: tuple[str, ...]) -> None:
    if "train" in words:
        (page / "metrics.json").unlink()
    if "OTHER" in words:
        shutil.copytree(page, "other")
    named = [word.replace("RUN", str(page)).replace("OTHER", "other") for word in words]
    digest = files.sha256_file(page / "plugins/my_models.py")
    assert_refused(comp(*named), str(page), "my_models.py", digest[:12], "--allow-plugins")
    assert "error_rate" not in METRICS


def test_pictures_of_label_errors_come_from_a_plugins_source_only_when_allowed(page: Path) -> None:
    name = str(prediction_files.load(page / "predictions" / "val.npz").ids[0])
    suspect = label_errors.Suspect(name, "drop", "rows", "columns", 0.9, -0.8)
    report = label_errors.LabelReport((Run(page),), 1, 0, 1, 1, (), (suspect,), 0)
    with pytest.raises(ConfigError, match="--allow-plugins"):
        label_errors.draw(report, [suspect], Path("errors.png"))
    label_errors.draw(replace(report, trained=(Run(page, allow_plugins=True),)), [suspect], Path("errors.png"))
    assert Path("errors.png").is_file()


def test_the_flag_runs_the_copies_also_where_the_originals_are_gone(page: Path, comp: Command) -> None:
    for path in Path().glob("my*"):
        path.unlink()
    result = comp("predict", page, "--split", "test", "--allow-plugins", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)[str(page)]["scores"]["error_rate"]["higher_is_better"] is False
    forget()
    with pytest.raises(ConfigError, match="allow_plugins=True"):
        api.predict(page, split="test")
    assert len(api.predict(page, split="test", allow_plugins=True)) == 40


def test_a_config_of_yours_with_the_same_source_is_consent(page: Path) -> None:
    plugins.load(configs.load("my.yaml"))
    assert len(api.predict(page, split="test")) == 40


def test_a_changed_copy_is_refused_even_when_allowed(page: Path, comp: Command) -> None:
    with (page / "plugins/my_metrics.py").open("a") as file:
        file.write("# a comment\n")
    assert_refused(comp("predict", page, "--split", "test", "--allow-plugins"), "my_metrics.py", "has changed")
    config = page / "config.yaml"
    config.write_text(re.sub("#sha256=.*", "", config.read_text()))
    assert_refused(comp("predict", page, "--split", "test", "--allow-plugins"), "config.yaml: damaged", "my_models.py")


def test_what_lists_and_checks_imports_no_plugin(page: Path, comp: Command) -> None:
    for name in ("my_models.py", *(f"{page}/plugins/my_{name}.py" for name in ("models", "metrics", "source"))):
        Path(name).write_text("open('imported', 'w')")
    worse = page.with_name(page.name.replace("-run", "-worse"))
    shutil.copytree(page, worse)
    for path, value in ((page, 0.25), (worse, 0.75)):
        scores = Run(path).metrics()
        assert scores.best.val is not None
        rated = scores.best.val.scores["error_rate"].model_copy(update={"value": value})
        val = scores.best.val.model_copy(update={"scores": {**scores.best.val.scores, "error_rate": rated}})
        Run(path).write_metrics(scores.model_copy(update={"best": scores.best.model_copy(update={"val": val})}))
    rows = json.loads(comp("leaderboard", "--json").out)
    assert [row["val_metric"] for row in rows] == [0.25, 0.75]
    for words in (("leaderboard",), ("clean",), ("config", "show", "my.yaml"), ("report", "runs")):
        result = comp(*words)
        assert result.code == 0, result.err
    Path("s.csv").write_text("id,label\na,rows\n")
    assert comp("diff", "s.csv", "s.csv").code == 0
    assert_refused(comp("check", "s.csv", "--format", "my.yaml"), "has plug-ins", "sidecar")
    assert not Path("imported").exists()
    assert "error_rate" not in METRICS


def small(folder: Path, entry: str = "[rows.py]", metric: str = "mistakes") -> Path:
    """Write a config of the digits that names plug-ins; return it."""
    path = folder / "own.yaml"
    path.write_text(
        f"plugins: {entry}\ncompetition: {{name: own, metric: {metric}, suite: {{source: none}}, "
        "ood_validation: {severities: []}}\n"
        "data: {source: digits}\nmodel: {name: fully_connected}\n"
        "train: {device: cpu, precision: fp32, channels_last: false, compile: false, threads: 1}\n"
    )
    return path


BAD = {
    "missing": ("[rowz.py]", "", ["no such file", "did you mean 'rows.py'?", "own.yaml, line 1"]),
    "a folder": ("[folder.py]", "", ["is a folder"]),
    "elsewhere": ("[../rows.py]", "", ["expected a file beside the config", "write rows.py"]),
    "absolute": ("[/tmp/rows.py]", "", ["expected a file beside the config"]),
    "no name of a module": ("[my-rows.py]", "", ["my-rows.py", "my_module.py"]),
    "standard library": ("[json.py]", "", ["would hide the module json", "standard library"]),
    "comp's name": ("[comp.py]", "", ["would hide the module comp"]),
    "installed": ("[torch.py]", "", ["would hide the module torch"]),
    "twice": ("[rows.py, rows.py]", "", ["named twice"]),
    "without .py": ("[rows]", "", ["write rows.py"]),
    "not installed": ("[no_such_package.rows]", "", ["no such installed module"]),
    "a text": ("rows.py", "", ["plugins", "expected a list"]),
    "other hash": ("['rows.py#sha256=00']", "", ["expected sha256 00"]),
    "syntax": ("[rows.py]", "x = (\n", ["rows.py, line 1", "never closed"]),
    "not UTF-8": ("[rows.py]", b"x = '\xff'\n", ["rows.py", "cannot be imported"]),
    "an exception": ("[rows.py]", "\n1 / 0", ["rows.py, line 2", "ZeroDivisionError: division by zero"]),
    "an exit": ("[rows.py]", "import sys\nsys.exit(3)", ["rows.py, line 2", "SystemExit: 3"]),
    "a list of rows": ("[rows.py]", "METRICS = [1]", ["METRICS: expected a dict of rows, found list [1]"]),
    "wrong type": (
        "[rows.py]",
        "METRICS = {'mine': len}",
        ["METRICS['mine']", "expected a comp.results.metrics.Metric"],
    ),
    "a loss without reduction": ("[rows.py]", "LOSSES = {'mine': lambda logits, targets: 0}", ["reduction='mean'"]),
    "wrong name": ("[rows.py]", "LOSSES = {'My loss': len}", ["expected names such as my_row", "'My loss'"]),
    "comp's row": ("[rows.py]", METRIC.replace("mistakes", "accuracy"), ["METRICS['accuracy']: comp has a row"]),
    "timm's model": ("[rows.py]", "NETWORKS = {'resnet18': len}", ["timm has a row of this name"]),
    "no task": ("[rows.py]", METRIC.partition("TASKS")[0], ["METRICS['mistakes']: no task lists it"]),
    "unknown task": ("[rows.py]", METRIC.replace("single_label", "single"), ["unknown task 'single'", "single_label"]),
    "half an op": ("[rows.py]", "OPS = {'mine': ('', frozenset())}", ["OPS['mine']: add its row in FUNCTIONS"]),
    "views": ("[rows.py]", "VIEWS = {'mine': ()}", ["expected a tuple of comp.inference.views.View"]),
    "writes into comp's": (
        "[rows.py]",
        "from comp.results.metrics import METRICS\nMETRICS['mine'] = METRICS['accuracy']",
        ["writes into comp's METRICS"],
    ),
    "replaces timm's": (
        "[rows.py]",
        "from timm.models import register_model\n@register_model\ndef resnet18(**kwargs): pass",
        ["replaces timm's resnet18"],
    ),
    "two with one row": ("[rows.py, more.py]", METRIC, ["METRICS['mistakes'] is also a row of"]),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_wrong_plugin_is_one_message_and_adds_nothing(tmp_path: Path, comp: Command, kind: str) -> None:
    entry, source, parts = BAD[kind]
    (tmp_path / "folder.py").mkdir()
    for name in ("rows", "more", "json", "comp", "torch", "my-rows"):
        content = source or METRIC
        (tmp_path / f"{name}.py").write_bytes(content if isinstance(content, bytes) else content.encode())
    before = {name: dict(registry.rows) for name, registry in plugins.REGISTRIES.items()}
    tasks = dict(TASKS)
    assert_refused(comp("config", "check", small(tmp_path, entry)), *parts)
    forget()
    assert {name: registry.rows for name, registry in plugins.REGISTRIES.items()} == before
    assert tasks == TASKS


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return float('nan')", "metric mistakes: expected a finite number, found float nan"),
        ("return predictions.nothing", "rows.py, line 5: metric mistakes: AttributeError"),
    ],
)
def test_a_metric_that_fails_stops_the_training_with_one_message(
    tmp_path: Path, comp: Command, body: str, reason: str
) -> None:
    (tmp_path / "rows.py").write_text(METRIC.replace("return 1 - accuracy(predictions)", body))
    assert_refused(comp("train", small(tmp_path), "train.epochs=1", "--runs", tmp_path / "runs"), reason)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("return nn.Flatten()", "builds a Flatten without forward_features, forward_head, get_classifier"),
        (
            "return Network(nn.Sequential(), nn.Sequential(nn.Flatten()), nn.Linear(math.prod(shape), 3))",
            "expected logits [1, 10]",
        ),
        ("return 1 / 0", "division by zero"),
    ],
)
def test_a_network_that_comp_cannot_use_is_refused(tmp_path: Path, comp: Command, source: str, reason: str) -> None:
    (tmp_path / "rows.py").write_text(
        "import math\nfrom torch import nn\nfrom comp.models.coursework.layout import Network\n"
        f"def mine(shape, classes):\n    {source}\nNETWORKS = {{'mine': mine}}\n"
    )
    config = small(tmp_path, metric="auto")
    assert_refused(comp("config", "check", config, "--data", "model.name=mine"), "mine", reason)


def test_an_error_in_a_plugins_code_names_its_line(tmp_path: Path, comp: Command) -> None:
    (tmp_path / "rows.py").write_text(
        "def mine(config, progress, task):\n    return config.no_such_key\nSOURCES = {'mine': mine}\n"
    )
    result = comp("config", "check", small(tmp_path, metric="auto"), "--data", "data.source=mine")
    assert_refused(result, "rows.py, line 2", "AttributeError")


def test_the_code_is_part_of_the_hash_and_its_folder_is_not(tmp_path: Path) -> None:
    hashes = []
    for folder, source in (("a", METRIC), ("b", METRIC), ("c", METRIC + "# other code\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rows.py").write_text(source)
        hashes.append(configs.fingerprint(configs.load(small(tmp_path / folder))))
    assert hashes[0] == hashes[1] != hashes[2]


def test_an_extended_configs_plugins_lie_beside_the_file_that_lists_them(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base/rows.py").write_text(METRIC)
    small(tmp_path / "base")
    (tmp_path / "mine.yaml").write_text("extends: base/own.yaml\nseed: 3\n")
    (entry,) = configs.load(tmp_path / "mine.yaml").plugins
    assert entry.startswith(f"{tmp_path}/base/rows.py#sha256=")
    (tmp_path / "other.py").write_text("")
    (entry,) = configs.load(tmp_path / "mine.yaml", ["plugins=[other.py]"]).plugins
    assert entry.startswith(f"{tmp_path}/other.py#sha256=")


def test_edited_code_is_loaded_again_and_leaves_with_its_config(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("limit = 1")
    (tmp_path / "rows.py").write_text("import helper\n" + METRIC)
    config = small(tmp_path, "[helper.py, rows.py]")
    plugins.load(configs.load(config))
    first = METRICS["mistakes"]
    plugins.load(configs.load(config))
    assert METRICS["mistakes"] is first
    (tmp_path / "rows.py").write_text(METRIC.replace("mistakes", "errors"))
    plugins.load(configs.load(config))
    assert "errors" in METRICS
    assert "mistakes" not in METRICS
    assert TASKS["single_label"].metrics[-1] == "errors"
    plugins.load(Config())
    assert "errors" not in METRICS
    assert "errors" not in TASKS["single_label"].metrics


def test_code_that_is_edited_while_a_command_runs_stays_as_it_was_loaded(tmp_path: Path) -> None:
    (tmp_path / "rows.py").write_text(METRIC)
    config = configs.load(small(tmp_path))
    plugins.load(config)
    (tmp_path / "rows.py").write_text(METRIC.replace("1 - ", "2 - "))
    run = runs.create(tmp_path / "runs", config, "run", {})
    assert (run.path / "plugins/rows.py").read_text() == METRIC
    plugins.load(config)
    forget()
    with pytest.raises(ConfigError, match="has changed"):
        plugins.load(config)


def test_an_installed_module_is_recorded_with_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, metadata = tmp_path / "site/my_package", tmp_path / "site/my_package-1.5.dist-info"
    package.mkdir(parents=True)
    metadata.mkdir()
    (package / "__init__.py").write_text("")
    (package / "rows.py").write_text(METRIC)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.5\n")
    (metadata / "top_level.txt").write_text("my_package\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    config = configs.load(small(tmp_path, "[my_package.rows]"))
    plugins.load(config)
    assert "mistakes" in METRICS
    run = runs.create(tmp_path / "runs", config, "run", {})
    (origin,) = run.provenance()["plugins"]
    assert (origin["name"], origin["version"]) == ("my_package.rows", "1.5")
    assert not (run.path / "plugins").exists()
    (package / "rows.py").write_text(METRIC + "# 1.6\n")
    forget()
    with pytest.raises(ValueError, match="has changed"):
        plugins.load_of(open_run(run.path, allow_plugins=True))
    for name in ("my_package", "my_package.rows"):
        sys.modules.pop(name)


def test_a_resumed_run_goes_on_with_its_own_copy_and_ends_with_the_same_bits(page: Path, comp: Command) -> None:
    config = configs.load("my.yaml", ["train.epochs=1", "train.threads=1"])
    with pytest.raises(Interrupted):
        train.train(config, name="half", runs_root=Path("runs"), progress=interrupt_at(3))
    (half,) = Path("runs/stripes").glob("*-half")
    forget()
    Path("my_ops.py").write_text(Path("my_ops.py").read_text().replace("255 * shift", "99 * shift"))
    result = comp("train", "--resume", half, "--allow-plugins")
    assert result.code == 0, result.err
    assert "my_ops.py has changed since" in result.err
    assert "my_models.py has changed" not in result.err
    assert (half / "final.safetensors").read_bytes() == (page / "final.safetensors").read_bytes()


def _call(function: Callable[[int], int], value: int) -> None:
    sys.exit(function(value))


def test_a_spawned_process_gets_the_same_code(tmp_path: Path) -> None:
    (tmp_path / "rows.py").write_text("def more(value):\n    return value + 1\n")
    plugins.load(configs.load(small(tmp_path)))
    (tmp_path / "rows.py").unlink()
    process = multiprocessing.get_context("spawn").Process(target=sys.modules["rows"].more, args=(1,))
    process.start()
    process.join()
    assert process.exitcode == 0


@pytest.mark.slow
def test_workers_of_a_study_have_the_plugins_and_its_folder_has_copies(page: Path, comp: Command) -> None:
    space = "tune: {space: {optim.lr: {choice: [0.001, 0.003]}}, trials: 2, confirm: {top: 0}}\n"
    text = Path("my.yaml").read_text().replace("{epochs: 2,", "{epochs: 1, threads: 1,")
    Path("my.yaml").write_text(text + space)
    started = comp_process("tune", "my.yaml", "--workers", "2", "--study", "s", cwd=Path.cwd())
    assert started.returncode == 0, started.stderr
    shown = json.loads(comp("tune", "--show", "s", "--json").out)
    assert [row["state"] for row in shown["trials"]] == ["done"] * 2
    assert "error_rate" not in METRICS
    study = Path("runs/stripes/s")
    assert files.sha256_file(study / "plugins/my_ops.py") == files.sha256_file(Path("my_ops.py"))
    assert_refused(comp("config", "check", study / "best.yaml"), "my_ops.py", "--allow-plugins")
    assert comp("train", study / "best.yaml", "--allow-plugins").code == 0
    Path("my_ops.py").write_text(Path("my_ops.py").read_text() + "# changed\n")
    continued = comp("tune", "my.yaml", "--study", "s", "--trials", "3")
    assert_refused(continued, "began with another config", "plugins differs")


@pytest.mark.slow
def test_each_process_of_a_training_has_the_plugins(page: Path) -> None:
    words = ("train", "my.yaml", "--gpus", "2", "train.epochs=1", "train.threads=1")
    result = comp_process(*words, cwd=Path.cwd())
    assert result.returncode == 0, result.stderr
