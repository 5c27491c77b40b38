"""Files of runs and submissions that were edited by hand or damaged: one message, whichever command reads them."""

import json
import random
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from comp.results import prediction_files, runs
from comp.runtime.errors import ConfigError, RunError
from tests.support.commands import Result, assert_refused
from tests.support.configs import NUMBERS, QUICK, small_config, tuned, write_arrays, write_config
from tests.support.frozen_runs import ENSEMBLE, FLIPPED, PLAIN, thawed

Comp = Callable[..., Result]
Change = Callable[[Path], object]
SIDECAR = "submissions/frozen.json"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to a folder with frozen runs; see `thawed`."""
    monkeypatch.chdir(thawed(tmp_path))
    return tmp_path


def changed(**values: Any) -> Change:
    """Return a change that lays values on a JSON file; None removes a key."""

    def change(path: Path) -> None:
        whole = {**json.loads(path.read_text()), **values}
        path.write_text(json.dumps({key: value for key, value in whole.items() if value != "REMOVED"}))

    return change


def added(text: str) -> Change:
    """Return a change that adds a key and value, as they are, at the end of a JSON object."""
    return lambda path: path.write_text(path.read_text().rstrip().removesuffix("}").rstrip() + f", {text}}}")


def written(content: bytes) -> Change:
    """Return a change that replaces a file's content."""
    return lambda path: path.write_bytes(content)


# What a file that should be a JSON object may hold instead -> what the message says of it.
NO_OBJECTS: dict[str, tuple[Change, str]] = {
    "nothing": (written(b""), "not readable as JSON"),
    "null": (written(b"null"), "expected a JSON object, found NoneType"),
    "a list": (written(b"[1, 2]"), "expected a JSON object, found list"),
    "a text": (written(b'"text"'), "expected a JSON object, found str"),
    "a hundred thousand brackets": (written(b"[" * 100_000), "nested deeper than 100 levels"),
    "two hundred levels": (added('"x": ' + "[" * 200 + "]" * 200), "nested deeper than 100 levels"),
    "NaN": (added('"x": NaN'), "expected finite numbers, found NaN"),
    "a float beyond the largest": (added('"x": 1e999'), "expected finite numbers, found 1e999"),
    "a number of a thousand digits": (added(f'"x": {"9" * 1000}'), "whole numbers of at most 64 bits"),
    "a number of five thousand digits": (added(f'"x": -{"9" * 5000}'), "whole numbers of at most 64 bits"),
    "a key that is there twice": (added('"x": 1, "x": 2'), "the key 'x' is there twice"),
    "half a surrogate pair": (added(r'"x": "\ud800"'), "not readable as JSON"),
    "a NUL": (added(r'"x": ["a\u0000b"]'), "text with a NUL character"),
    "Latin-1": (lambda path: path.write_bytes(path.read_bytes().replace(b'"', b'"\xe4', 1)), "not readable as JSON"),
    "a missing brace": (lambda path: path.write_text(path.read_text().rstrip()[:-1]), "not readable as JSON"),
}
# A JSON file -> the command that needs it.
READERS = {
    f"{PLAIN}/provenance.json": ("evaluate", PLAIN),
    f"{PLAIN}/execution.json": ("predict", PLAIN, "-o", "new.csv"),
    SIDECAR: ("leaderboard", "record", "submissions/frozen.csv", "--public", "0.5"),
}


@pytest.mark.parametrize("what", NO_OBJECTS)
@pytest.mark.parametrize("file", READERS, ids=lambda file: Path(file).stem)
def test_a_file_that_is_no_sound_json_object_is_named(folder: Path, comp: Comp, file: str, what: str) -> None:
    change, part = NO_OBJECTS[what]
    change(Path(file))
    before = Path("submissions/frozen.csv").read_bytes()
    assert_refused(comp(*READERS[file]), f"{file}: ", part, "; ")
    assert Path("submissions/frozen.csv").read_bytes() == before
    assert not Path("new.csv").exists()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_file_that_an_editor_stored_in_another_unicode_encoding_is_read(
    folder: Path, comp: Comp, encoding: str
) -> None:
    for file in ("provenance.json", "execution.json"):
        path = Path(PLAIN) / file
        path.write_text(path.read_text(), encoding=encoding)
    assert comp("evaluate", PLAIN).code == 0


PREDICT = ("predict", PLAIN, "-o", "new.csv")
RECORD = ("leaderboard", "record", "submissions/frozen.csv", "--public", "0.5")
CHECK = ("check", "submissions/frozen.csv")
_ROW = {"name": "body", "parameters": 1, "trainable": "all", "statistics": ""}
# File, change, command -> what the message says.
VALUES: dict[str, tuple[str, Change, tuple[str, ...], str]] = {
    "a side below 0": ("provenance.json", changed(image_shape=[3, -32, 32]), PREDICT, "image_shape: expected"),
    "a side of 2^40": ("provenance.json", changed(image_shape=[3, 1 << 40, 32]), PREDICT, "image_shape: expected"),
    "sides that are true": ("provenance.json", changed(image_shape=[True] * 3), PREDICT, "image_shape: expected"),
    "classes that are numbers": ("provenance.json", changed(classes=[1, 2]), PREDICT, "classes: expected a list"),
    "one class less": ("provenance.json", changed(classes=list("012345678")), PREDICT, "best.safetensors"),
    "a shape that is missing": ("provenance.json", changed(image_shape="REMOVED"), PREDICT, "image_shape: expected"),
    "fixes in a list": ("provenance.json", changed(fixes=[]), PREDICT, "fixes: expected an object with a text sha256"),
    "a number of members": ("provenance.json", changed(members=7), PREDICT, "members: expected a list of runs"),
    "members without a run": ("provenance.json", changed(members=[{}]), PREDICT, "members: expected a list of runs"),
    "one end of a range": ("provenance.json", changed(pixel_range=5), PREDICT, "pixel_range: expected two numbers"),
    "a header of one": ("provenance.json", changed(header=["id"]), PREDICT, "header: expected two texts"),
    "an unknown task": ("provenance.json", changed(task="magic"), PREDICT, "task: expected one of single_label"),
    "words that are numbers": ("provenance.json", changed(argv=[1]), PREDICT, "argv: expected a list of text"),
    "counts of text": ("provenance.json", changed(training_counts=["1"]), PREDICT, "training_counts: expected a list"),
    "a teacher in text": ("provenance.json", changed(teacher="x"), PREDICT, "teacher: expected an object that lists"),
    "a device in a list": ("execution.json", changed(device=["cpu"]), PREDICT, "device: expected cpu, cuda or mps"),
    "threads that are true": ("execution.json", changed(threads=True), PREDICT, "threads: expected a number"),
    "a precision of 7": ("execution.json", changed(precision=7), PREDICT, "precision: expected"),
    "a metric's task": ("metrics.json", changed(task="magic"), PREDICT, "task: Value error, unknown task 'magic'"),
    "a version that is true": ("metrics.json", changed(version=True), PREDICT, "version: expected a number"),
    "a version in text": ("metrics.json", changed(version="two"), PREDICT, "version: "),
    "a version to come": ("metrics.json", changed(version=3), PREDICT, "version 3 is newer than 2; update comp"),
    "scores in a list": ("metrics.json", changed(best=[1]), PREDICT, "best: "),
    "a score of text": ("metrics.json", changed(test={"scores": {"top": {"value": "x"}}}), PREDICT, "test.scores."),
    "layers without a name": ("metrics.json", changed(trainable=[{}]), PREDICT, "trainable: Value error"),
    "layers in text": ("metrics.json", changed(trainable=[_ROW]), PREDICT, "trainable: Value error"),
    "an unknown kind": ("metrics.json", changed(kind="trip"), PREDICT, "kind: Input should be 'run', 'ensemble'"),
    "levels without end": ("metrics.json", added('"x": ' + "[" * 500 + "]" * 500), PREDICT, "recursion limit exceeded"),
    "a decision without values": ("metrics.json", changed(decision={"kind": "cut_points"}), PREDICT, "cut_points"),
    "an upload that is a number": (SIDECAR, changed(sent=[1]), RECORD, "sent: expected a list of uploads, found [1]"),
    "a hash that is a number": (SIDECAR, changed(sha256=1), RECORD, "sha256: expected text, found 1"),
    "rows below 1": (SIDECAR, changed(rows=-1), RECORD, "rows: expected a whole number above 0, found -1"),
    "no run": (SIDECAR, changed(run_path=None), RECORD, "run_path: expected a run's folder, found None"),
    "a format in a list": (SIDECAR, changed(format=[]), CHECK, "format: expected an object, found []"),
}  # fmt: skip


@pytest.mark.parametrize("what", VALUES)
def test_a_value_of_another_kind_is_named(folder: Path, comp: Comp, what: str) -> None:
    file, change, command, part = VALUES[what]
    path = Path(file) if "/" in file else Path(PLAIN) / file
    change(path)
    assert_refused(comp(*command), str(path.parent), part)
    assert not Path("new.csv").exists()


CSV, ANOTHER = "submissions/frozen.csv", "submissions/frozen-2.csv"
READING: dict[str, tuple[int, tuple[str, ...]]] = {
    "check": (0, ("check", CSV)),
    "check against": (0, ("check", ANOTHER, "--against", CSV)),
    "diff": (0, ("diff", CSV, ANOTHER)),
    "diff as second": (0, ("diff", ANOTHER, CSV)),
    "record": (0, RECORD),
    "submit": (2, ("submit", CSV, "--competition", "digits", "-m", "first try", "--against", "missing.csv")),
}


@pytest.mark.parametrize("what", READING)
def test_a_submission_whose_renames_were_interrupted_is_whole_for_who_reads_it(
    folder: Path, comp: Comp, what: str
) -> None:
    """A kill came between the rename of the sidecar and that of the CSV."""
    path, (code, command) = Path(CSV), READING[what]
    content = path.read_bytes()
    path.rename(path.with_name(f".{path.name}.123.tmp"))
    result = comp(*command)
    assert result.code == code, result.err
    assert path.read_bytes() == content
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.parametrize("there", [False, True])
def test_what_another_write_left_is_not_taken_for_a_submission(folder: Path, comp: Comp, there: bool) -> None:
    path, left = Path(CSV), Path("submissions/.frozen.csv.123.tmp")
    left.write_text("id,label\n")
    content = path.read_bytes()
    if not there:
        path.unlink()
        assert_refused(comp(*CHECK), f"{path}: no such submission")
    else:
        assert comp(*CHECK).code == 0
        assert path.read_bytes() == content
    assert left.read_text() == "id,label\n"


FORMATS: dict[str, tuple[dict[str, Any], str]] = {
    "7 TiB of rows": ({"blocks": [[0, 1, 7 << 40]]}, "expected at most 100,000,000 rows"),
    "rows below 0": ({"blocks": [[0, 1, -5]]}, "expected a whole number from 0 up, found -5"),
    "a block of two numbers": ({"blocks": [[0, 1]]}, "not enough values"),
    "blocks of text": ({"blocks": "abc"}, "not enough values"),
    "columns in one text": ({"columns": "label"}, "expected a list, found 'label'"),
    "a number of ids": ({"ids": 5}, "expected a list, found 5"),
    "a class that has no column": ({"columns": ["0", "cat"]}, "columns without a class: ['cat']"),
    "an answer in a list": ({"answer": ["label"]}, "unhashable type"),
    "an unknown answer": ({"answer": "smell"}, "answer smell"),
    "a positive class of 99": ({"positive": 99}, "positive: expected a class from 0 to 9, found 99"),
    "a positive class in text": ({"positive": "1"}, "expected a whole number from 0 up, found '1'"),
    "ranks below 0": ({"ranked": -1}, "expected a whole number from 0 up, found -1"),
}


@pytest.mark.parametrize("what", FORMATS)
def test_a_format_that_no_submission_has_is_refused(folder: Path, comp: Comp, what: str) -> None:
    values, part = FORMATS[what]
    form = json.loads(Path(SIDECAR).read_text())["format"]
    changed(format={**form, **values})(Path(SIDECAR))
    assert_refused(comp(*CHECK), f"{SIDECAR}: the value of `format` is damaged", part, "use --format CONFIG")


TABLES: dict[str, tuple[bytes, str]] = {
    "no number": (b"number,val_loss\n1,\n2,low\n", "could not convert string to float: 'low'"),
    "another header": (b"epoch,val_loss\n1,0.5\n", "column number is missing"),
    "a row that is too long": (b"number,val_loss\n1,0.5,0.7\n", "a row has another number of cells"),
    "a row that is too short": (b"number,val_loss\n1\n", "a row has another number of cells"),
    "an open quote": (b'number,note\n1,"open\n', "unexpected end of data"),
    "a cell of 200 kB": (b"number,note\n1," + b"x" * 200_000 + b"\n", "field larger than field limit"),
    "other bytes": (b"\xff\xfe\x00", "codec can't decode"),
}


@pytest.mark.parametrize("what", TABLES)
def test_a_history_that_is_no_table_of_numbers_is_named(folder: Path, comp: Comp, what: str) -> None:
    content, part = TABLES[what]
    path = Path(PLAIN) / "history.csv"
    path.write_bytes(content)
    result = comp("report", PLAIN, FLIPPED, "-o", "page.html")
    assert_refused(result, f"{path}: damaged", part, "move it away to go on without its curves")
    assert not Path("page.html").exists()


def in_archive(offset: int, value: bytes) -> Change:
    """Return a change of the first entry of an archive's directory; offsets are those of the ZIP format."""

    def change(path: Path) -> None:
        content = bytearray(path.read_bytes())
        start = content.index(b"PK\x01\x02") + offset
        content[start : start + len(value)] = value
        path.write_bytes(content)

    return change


def with_arrays(**arrays: Any) -> Change:
    """Return a change that lays arrays on a .npz."""

    def change(path: Path) -> None:
        with np.load(path) as kept:
            np.savez(path, **{**dict(kept), **arrays})

    return change


def with_header(shape: str) -> Change:
    """Return a change of the shape that the first array of a .npz promises."""

    def change(path: Path) -> None:
        with zipfile.ZipFile(path) as opened:
            members = {name: opened.read(name) for name in opened.namelist()}
        name = next(name for name in members if len(members[name]) > 200)
        text = members[name][10:128].decode()
        renewed = re.sub(r"\([\d,]*\)", shape, text).rstrip().ljust(117) + "\n"
        members[name] = members[name][:10] + renewed.encode() + members[name][128:]
        with zipfile.ZipFile(path, "w") as opened:
            for name, content in members.items():
                opened.writestr(name, content)

    return change


def kept() -> dict[Path, bytes]:
    """Return all files of the runs but locks, and the scores that `comp evaluate` adds to before it fails."""
    files = [path for path in Path("runs").rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in files if path.name not in (".lock", "metrics.json")}


ARCHIVES: dict[str, tuple[Change, str]] = {
    "a password": (in_archive(8, b"\1\0"), "password required"),
    "an unknown packing": (in_archive(10, b"\x63\0"), "compression"),
    "a member of 4 GiB": (in_archive(24, b"\xf0\xff\xff\xff"), "claims 4,294,967,280 bytes"),
    "a member elsewhere": (in_archive(42, b"\x30\0\0\0"), ""),
    "a changed checksum": (in_archive(16, b"\0\0\0\0"), "Bad CRC-32"),
    "an array of 7 TiB": (with_header(f"({1 << 40},)"), "fewer than its header promises"),
    "an array of fewer rows": (with_header("(1,)"), "that its header promises"),
    "rows below 0": (with_header("(-4,)"), "expected no number below 0"),
    "text": (written(b"PK\x03\x04" + b"text" * 100), "not a zip file"),
    "its second half": (
        lambda path: path.write_bytes(path.read_bytes()[path.stat().st_size // 2 :]),
        "not a .npz file",
    ),
}


@pytest.mark.parametrize("what", ARCHIVES)
@pytest.mark.parametrize("file", ["split.npz", "predictions/val.npz"], ids=lambda file: Path(file).stem)
def test_all_readers_of_archives_catch_the_same_damage(folder: Path, comp: Comp, file: str, what: str) -> None:
    change, part = ARCHIVES[what]
    path = Path(PLAIN) / file
    change(path)
    before = kept()
    command = ("evaluate", PLAIN) if "val" in file else ("ensemble", PLAIN, FLIPPED, "-o", "new.csv")
    assert_refused(comp(*command), f"{path}: ", "damaged", part, "comp ")
    assert kept() == before
    if "val" in file:
        for read in (prediction_files.load, prediction_files.load_correctness):
            with pytest.raises(RunError, match="damaged predictions file"):
                read(path)


PREDICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "targets that are not finite": ({"targets": np.full(144, np.nan)}, "targets: expected a class index"),
    "targets beyond the classes": ({"targets": np.full(144, 10)}, "targets: a class index is out"),
    "targets beyond 63 bits": ({"targets": np.full(144, 2**63 + 1, np.uint64)}, "targets: a class index is out"),
    "one target": ({"targets": np.zeros(1, int)}, "targets: expected a class index for each of 144 rows"),
    "decisions of text": ({"top1": np.full(144, "0")}, "top1: expected a class index"),
    "a row too many": ({"ids": np.arange(145).astype(str)}, "outputs: expected 145 rows and 10 classes"),
    "a class too many": ({"classes": np.arange(11).astype(str)}, "outputs: expected 144 rows and 11 classes"),
    "thresholds of other classes": ({"thresholds": np.zeros(3)}, "thresholds: expected one per class, found [3]"),
    "outputs of float64": ({"outputs": np.zeros((144, 10))}, "outputs have the wrong data type"),
    "ids in a table": ({"ids": np.full((144, 1), "a")}, "ids, classes and block_names: expected lists"),
    "blocks beyond 64 bits": (
        {"block_names": np.array(list("abcd")), "block_sizes": np.full(4, 1 << 62)}, "block_sizes: expected a sum",
    ),
    "an origin in brackets": ({"made_by": np.array("[" * 5000)}, "nested deeper than 100 levels"),
    "an origin in a list": ({"made_by": np.array("[1]")}, "made_by is not a mapping"),
    "an unknown task": ({"task": np.array("magic")}, "unknown task 'magic'"),
    "an unknown array": ({"more": np.zeros(3)}, "unknown arrays more"),
    "a version of two": ({"version": np.array([1, 2])}, "damaged predictions file"),
    "a version to come": ({"version": np.array(99)}, "version 99 is newer than 2"),
}  # fmt: skip


@pytest.mark.parametrize("what", PREDICTIONS)
def test_predictions_with_other_arrays_are_refused(folder: Path, comp: Comp, what: str) -> None:
    arrays, part = PREDICTIONS[what]
    path = Path(PLAIN) / "predictions" / "val.npz"
    with_arrays(**arrays)(path)
    assert_refused(comp("evaluate", PLAIN), f"{path}: ", part)


LACKING = [("targets", "it lacks targets"), ("top1", "it lacks top1 for task single_label")]


@pytest.mark.parametrize(("name", "part"), LACKING, ids=["targets", "top1"])
def test_predictions_that_lack_an_array_name_it(folder: Path, name: str, part: str) -> None:
    path = Path(PLAIN) / "predictions" / "val.npz"
    with np.load(path) as archive:
        arrays = {key: archive[key] for key in archive.files if key != name}
    np.savez(path, **arrays)
    with pytest.raises(RunError, match=f"damaged predictions file .{part}.*create it again: comp predict"):
        prediction_files.load(path)


def test_an_image_that_a_run_predicts_twice_is_damage_of_that_run(folder: Path, comp: Comp) -> None:
    path = Path(PLAIN) / "predictions" / "val.npz"
    with_arrays(ids=np.full(144, "a"))(path)
    assert_refused(comp("data", "errors", PLAIN), f"{path}: damaged", "143 of 144 rows have the id", "comp predict")


def test_an_override_is_no_damage_of_the_stored_config(folder: Path) -> None:
    run = runs.open_run(Path(PLAIN), ["predict.batch_size=0"])
    with pytest.raises(ConfigError, match=r"expected at least 1, found the number 0$"):
        run.config()
    path = run.path / "config.yaml"
    path.write_text(path.read_text().replace("seed:", "sed:", 1))
    with pytest.raises(ConfigError, match=r"sed.*; restore the config that the run was started with$"):
        run.config()


def test_a_file_of_a_run_is_no_run(folder: Path) -> None:
    with pytest.raises(RunError, match=r"metrics\.json: is a file; name the folder of a run"):
        runs.open_run(Path(PLAIN) / "metrics.json")


def test_an_ensembles_members_are_checked(folder: Path, comp: Comp) -> None:
    path = Path(ENSEMBLE) / "metrics.json"
    changed(ensemble={"members": [1], "gain": 0.5})(path)
    assert comp("leaderboard").code == 0
    assert comp("report", ENSEMBLE, "-o", "page.html").code in (0, 2)


# --- studies

_ENTRY = b'{"op_code": 0, "worker_id": "w", "study_name": "s", "directions": [2]}\n'
STUDIES: dict[str, tuple[str, bytes, str]] = {
    "a storage in a list": ("study.json", b'{"storage": [1]}', "expected a text `storage`, found [1]"),
    "no storage": ("study.json", b"{}", "expected a text `storage`, found None"),
    "a study that is a list": ("study.json", b"[]", "expected a JSON object, found list"),
    "another storage": ("study.json", b'{"storage": "ftp://x"}', "tune.storage: expected sqlite:///PATH"),
    "a config that is a list": ("study.yaml", b"[1, 2]", "expected a mapping, found list"),
    "a config of other bytes": ("study.yaml", b"\xff\xfe\x00", "missing or damaged"),
    "a journal of text": ("study.log", b"hello\n" + _ENTRY, "as a study's journal"),
    "a journal of numbers": ("study.log", b"7\n" + _ENTRY, "as a study's journal"),
    "an entry without a name": ("study.log", b'{"op_code": 0, "worker_id": "w"}\n', "as a study's journal"),
    "an entry of an unknown kind": ("study.log", b'{"op_code": 99, "worker_id": "w"}\n', "as a study's journal"),
    "a journal that is cut": ("study.log", _ENTRY + _ENTRY[:40], "study.log: the study's journal is damaged"),
    "a journal without its last end": ("study.log", _ENTRY[:-1], "study.log: the study's journal is damaged"),
    "a journal that ends in text": ("study.log", _ENTRY + b"garbage\n", "study.log: the study's journal is damaged"),
    "a directory of another study": ("study.log", _ENTRY, "no study "),
}  # fmt: skip


@pytest.mark.parametrize("what", STUDIES)
def test_a_study_with_other_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comp: Comp, what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/small/first")
    folder.mkdir(parents=True)
    write_config(folder / "study.yaml", tuned(NUMBERS))
    (folder / "study.json").write_text('{"study": "first", "storage": ""}')
    file, content, part = STUDIES[what]
    (folder / file).write_bytes(content)
    assert_refused(comp("tune", "--show", "first"), part)
    assert (folder / file).read_bytes() == content


# --- checkpoints


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, config, and a run that can be resumed after its first epoch."""
    from comp import config as configs
    from comp.runtime.errors import Interrupted
    from comp.workflows.train import train
    from tests.support.commands import interrupt_at

    folder = tmp_path_factory.mktemp("interrupted")
    config = write_config(folder / "small.yaml", small_config(write_arrays(folder / "data", train=80, test=8)))
    overrides = [*QUICK, "train.epochs=2", "train.average=ema", "competition.ood_validation.severities=[]"]
    with pytest.raises(Interrupted):
        train(configs.load(config, overrides), name="x", runs_root=folder / "runs", progress=interrupt_at(3))
    return folder


def at(*keys: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    """Return a change of a value within a checkpoint; REMOVED deletes it."""

    def change(values: Any) -> None:
        for key in keys[:-1]:
            values = values[next(iter(values)) if key == "first" else key]
        last = next(iter(values)) if keys[-1] == "first" else keys[-1]
        if isinstance(value, str) and value == "REMOVED":
            del values[last]
        else:
            values[last] = value

    return change


STATES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "an epoch in text": (at("cursor", "epoch", value="1"), "cursor.epoch: expected int, found str"),
    "an epoch below 0": (at("cursor", "epoch", value=-1), "cursor.epoch: expected a whole number from 0 up, found -1"),
    "half a step": (at("cursor", "step", value=0.5), "cursor.step: expected a whole number from 0 up, found 0.5"),
    "a best value in a list": (at("cursor", "best", value=[0.5]), "cursor.best: expected a number or None, found list"),
    "notes of numbers": (at("cursor", "notes", value=[1]), "cursor.notes: expected a list of text"),
    "an epoch after the last": (at("cursor", "epoch", value=10**9), "cursor.epoch: expected at most"),
    "a step after the last": (at("cursor", "step", value=10**9), "cursor.step: expected at most"),
    "a step without images": (at("cursor", "seen", value=0), "cursor.seen: expected the images of"),
    "images of another step": (at("cursor", "seen", value=33), "the images of 1 step (32), found 33"),
    "images before a step": (at("cursor", "step", value=0), "the images of 0 steps (0), found 32"),
    "a best epoch to come": (at("cursor", "best_epoch", value=10**9), "cursor.best_epoch: expected at most"),
    "a loss that is no number": (at("cursor", "loss_sum", value=float("nan")), "cursor.loss_sum: expected a finite"),
    "no position": (at("cursor", value="REMOVED"), "cursor"),
    "a position in a list": (at("cursor", value=[1]), "damaged"),
    "no optimizer": (at("optimizer", value="REMOVED"), "optimizer"),
    "an optimizer in text": (at("optimizer", value="adam"), "optimizer: expected dict, found str"),
    "a rate in text": (at("optimizer", "param_groups", 0, "lr", value="1"), "groups.0.lr: expected float"),
    "no rate": (at("optimizer", "param_groups", 0, "lr", value="REMOVED"), "optimizer.param_groups.0.lr is missing"),
    "one group less": (at("optimizer", "param_groups", value=[]), "damaged"),
    "a momentum of another shape": (at("optimizer", "state", 0, "exp_avg", value=torch.zeros(7, 7, 3, 3)), "expected"),
    "a momentum in text": (at("optimizer", "state", 0, "exp_avg", value="x"), "optimizer.exp_avg: expected the shape"),
    "weights of another shape": (at("model", "first", value=torch.zeros(3)), "expected the shape"),
    "weights in text": (at("model", "first", value="x"), "expected Tensor, found str"),
    "no first weights": (at("model", "first", value="REMOVED"), "from another model"),
    "an average of another shape": (at("average", "average", "first", value=torch.zeros(3)), "average.average."),
    "no average": (at("average", "average", value="REMOVED"), "'average'"),
    "a batch in text": (at("stepper", "micro_batch", value="32"), "stepper.micro_batch: expected int, found str"),
}  # fmt: skip


@pytest.mark.parametrize("what", STATES)
def test_a_checkpoint_with_other_values_is_damaged(
    interrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comp: Comp, what: str
) -> None:
    change, part = STATES[what]
    shutil.copytree(interrupted / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    (run,) = runs.list_runs(Path("runs"))
    values = torch.load(run.path / "state.pt", weights_only=True)
    change(values)
    torch.save(values, run.path / "state.pt")
    before = (run.path / "state.pt").read_bytes()
    assert_refused(comp("train", "--resume", run.path), "state.pt: damaged", part, "start again: comp run CONFIG")
    assert (run.path / "state.pt").read_bytes() == before
    assert not run.is_complete()


# An edit of a run's config -> the keys and values that the message names.
EDITS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "a value": ({"epochs: 2\n": "epochs: 3\n"}, ("(train.epochs: 2 then, 3 now)",)),
    "a value back to its default": ({"average: ema\n": "average: none\n"}, ("(train.average: ema then, none now)",)),
    "two values": (
        {"epochs: 2\n": "epochs: 3\n", "batch_size: 32\n": "batch_size: 16\n"},
        ("train.epochs: 2 then, 3 now", "train.batch_size: 32 then, 16 now"),
    ),
    "a mapping": ({"depth: 2\n": "depth: 3\n"}, ("(model.args: {'depth': 2} then, {'depth': 3} now)",)),
    "a key that is gone": ({"  mixup: 0.4\n": ""}, ("(augment.mixup: 0.4 then, 0.0 now)",)),
    "seven values": (
        {
            "epochs: 2\n": "epochs: 3\n", "batch_size: 32\n": "batch_size: 16\n", "depth: 2\n": "depth: 3\n",
            "mixup: 0.4\n": "mixup: 0.3\n", "average: ema\n": "average: none\n", "  label_smoothing: 0.1\n": "",
            "policy: basic\n": "policy: none\n",
        },
        ("and 2 more)",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("command", ["run", "train"])
@pytest.mark.parametrize("what", EDITS)
def test_a_config_that_has_changed_since_the_training_began_is_refused_and_the_changes_named(
    interrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comp: Comp, command: str, what: str
) -> None:
    edits, parts = EDITS[what]
    shutil.copytree(interrupted / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    (run,) = runs.list_runs(Path("runs"))
    path = run.path / "config.yaml"
    text = path.read_text()
    for old, new in edits.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    path.write_text(text)
    before = kept()
    result = comp(command, "--resume", run.path)
    assert_refused(result, f"{path}: has changed since the run was started", *parts, f"comp run {path}")
    assert kept() == before


def test_a_changed_config_of_an_older_run_is_refused_by_its_hash(
    interrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comp: Comp
) -> None:
    shutil.copytree(interrupted / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    (run,) = runs.list_runs(Path("runs"))
    provenance = run.provenance("config", "config_hash")
    del provenance["config"]
    run.write_json("provenance.json", provenance)
    path = run.path / "config.yaml"
    path.write_text(path.read_text().replace("epochs: 2\n", "epochs: 3\n"))
    assert_refused(comp("run", "--resume", run.path), f"config hash {provenance['config_hash']} then, ", " now)")


SAMPLES = {
    "rows beyond the images": ([0, 99999], "the number of images, found 99,999"),
    "a row twice": ([0, 1, 1], "expected each row once, found 3 rows of 2 images"),
}


@pytest.mark.parametrize("what", SAMPLES)
@pytest.mark.parametrize("name", ["rows_suite", "rows_ood_val", "rows_statistics"])
def test_samples_of_other_rows_are_refused(
    interrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comp: Comp, name: str, what: str
) -> None:
    rows, part = SAMPLES[what]
    shutil.copytree(interrupted / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    (run,) = runs.list_runs(Path("runs"))
    path = run.path / "split.npz"
    with_arrays(**{name: np.array(rows)})(path)
    before = kept()
    assert_refused(comp("train", "--resume", run.path), f"{path}: damaged ({name}: expected", part, "comp run")
    assert kept() == before


def test_a_training_without_its_checkpoint_starts_again_with_a_note(
    interrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comp: Comp
) -> None:
    shutil.copytree(interrupted / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    (run,) = runs.list_runs(Path("runs"))
    (run.path / "state.pt").unlink()
    run.write_table("history.csv", [{"number": 1, "val_loss": 0.5}])
    result = comp("train", "--resume", run.path)
    assert result.code == 0, result.err
    assert f"{run.path}: holds no state.pt to resume from" in " ".join((result.out + result.err).split())
    assert len(run.history()) == 2


@pytest.mark.parametrize("content", [b"", b"[1]", b"PK\x03\x04" + bytes(100)], ids=["empty", "text", "no archive"])
def test_a_checkpoint_that_is_no_archive_is_damaged(
    interrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comp: Comp, content: bytes
) -> None:
    shutil.copytree(interrupted / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    (run,) = runs.list_runs(Path("runs"))
    (run.path / "state.pt").write_bytes(content)
    assert_refused(comp("train", "--resume", run.path), "state.pt: damaged", "not a complete archive")


# --- any damage of any file


def flipped(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 3))):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def replaced(content: bytes, draw: random.Random) -> bytes:
    """Replace a number or text of a text file by a value of another kind; flip a bit of any other file."""
    try:
        values = list(re.finditer(r'(?<=[:\[, ])(-?[\d.]+|"[^"\n]*"|true|false|null)(?=[,\]}\n])', content.decode()))
    except UnicodeDecodeError:
        values = []
    if not values:
        return flipped(content, draw)
    value = draw.choice(values)
    others = ("null", "true", "-1", "1e400", "NaN", '"x"', "[]", "{}", "[[]]", "9" * 30, '"\\u0000"', "7e12", "0.5")
    text = content.decode()
    return (text[: value.start()] + draw.choice(others) + text[value.end() :]).encode()


COMMANDS = {
    "leaderboard": ("leaderboard", "--json"),
    "report": ("report", PLAIN, ENSEMBLE, "-o", "page.html"),
    "evaluate": ("evaluate", PLAIN),
    "diff": ("diff", "submissions/frozen.csv", "submissions/frozen.csv"),
    "check": CHECK,
    "predict": ("predict", PLAIN, "-o", "new.csv"),
    "resume": ("train", "--resume", PLAIN),
    "ensemble": ("ensemble", PLAIN, FLIPPED, "-o", "new.csv"),
    "errors": ("data", "errors", PLAIN, "--out", "fixes.csv"),
}


@pytest.mark.slow
@pytest.mark.parametrize("verb", COMMANDS)
def test_no_damage_of_any_file_gives_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comp: Comp, verb: str
) -> None:
    """Each file of a run is flipped, cut and edited at random; the command ends with code 0, or 2 and a message."""
    monkeypatch.chdir(thawed(tmp_path / "place"))
    thawed(tmp_path / "kept")
    draw = random.Random(verb)
    files = [path for path in sorted(Path(PLAIN).rglob("*")) if path.is_file()] + [Path(SIDECAR)]
    rounds = 1 if verb in ("predict", "evaluate", "ensemble", "errors") else 4
    for path in files * rounds:
        damage = draw.choice((flipped, cut, replaced, replaced))
        content = damage(path.read_bytes(), draw)
        path.write_bytes(content)
        result = comp(*COMMANDS[verb])
        case = f"{verb}, {path}, {damage.__name__}: {result.err}"
        assert result.code in (0, 2), case
        assert "Traceback" not in result.err, case
        assert sum(line.startswith("error: ") for line in result.err.splitlines()) == (result.code == 2), case
        for folder in ("runs", "submissions"):
            shutil.rmtree(folder)
            shutil.copytree(tmp_path / "kept" / folder, folder)
        for made in ("new.csv", "new.json", "page.html", "fixes.csv"):
            Path(made).unlink(missing_ok=True)
