"""Loading configs: values, overrides, `extends`, and error messages."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comp import config as configs
from comp.config import Config
from comp.runtime.errors import ConfigError
from tests.support.commands import REPOSITORY


def read(folder: Path, text: str, *overrides: str) -> Config:
    """Load a config file of this text."""
    path = folder / "a.yaml"
    path.write_text(text, encoding="utf-8")
    return configs.load(path, overrides)


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert read(tmp_path, "") == Config()


def test_numbers_with_exponents_are_numbers(tmp_path: Path) -> None:
    assert read(tmp_path, "optim: {lr: 1e-4}").optim.lr == 1e-4
    assert read(tmp_path, "", "optim.lr=3e-4").optim.lr == 3e-4


def test_overrides_win_and_leave_their_neighbours_alone(tmp_path: Path) -> None:
    loaded = read(tmp_path, "train: {epochs: 3, batch_size: 7}", "train.epochs=4")
    assert (loaded.train.epochs, loaded.train.batch_size) == (4, 7)


def test_sections_merge_and_an_empty_one_clears(tmp_path: Path) -> None:
    text = "model: {args: {depth: 3, width: 8}}"
    assert read(tmp_path, text, "model.args.depth=4").model.args == {"depth": 4, "width": 8}
    assert read(tmp_path, text, "model.args={}").model.args == {}


def test_extends_updates_the_base_file(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("train: {epochs: 3, batch_size: 7}\nseed: 5")
    loaded = read(tmp_path, "extends: base.yaml\ntrain: {epochs: 4}")
    assert (loaded.train.epochs, loaded.train.batch_size, loaded.seed) == (4, 7, 5)


def test_a_config_cannot_be_changed(tmp_path: Path) -> None:
    loaded = read(tmp_path, "model: {args: {depth: 3}}")
    with pytest.raises(ValueError, match="frozen"):
        loaded.train.epochs = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        loaded.model.args["depth"] = 4  # type: ignore[index]


MISTAKES = {
    "unknown section": ("trian: {epochs: 3}", "a.yaml, line 1: unknown key 'trian' (did you mean 'train'?)"),
    "unknown key": ("train: {epoch: 3}", "a.yaml, line 1: unknown key 'train.epoch' (did you mean 'train.epochs'?)"),
    "key in the wrong section": ("epochs: 3", "(did you mean 'train.epochs'?)"),
    "text for a number": ("train: {epochs: three}", "train.epochs: expected a whole number, found the text 'three'"),
    "number as text": ("optim: {lr: '1e-4'}", "optim.lr: expected a number, found the text '1e-4'"),
    "fraction of an epoch": ("train: {epochs: 1.5}", "train.epochs: expected a whole number, found the number 1.5"),
    "out of range": ("train: {epochs: 0}", "train.epochs: expected at least 1, found the number 0"),
    "null in a mapping": (
        "augment: {policy: robust, delays: {robust: ~}}",
        "augment.delays.robust: expected a whole number, found nothing (null)",
    ),
    "nothing held out": (
        "data: {validation: 0}",
        "data.validation: expected a fraction between 0 and 1, a whole number from 1 up, 'none' or 'official', found "
        "the number 0",
    ),
    "per cent held out": ("data: {validation: 10%}", "found the text '10%'; write 0.1"),
    "not finite": ("optim: {lr: .nan}", "optim.lr: expected a finite number, found the number nan"),
    "no is a word": ("data: {validation: no}", "data.validation: expected"),
    "unknown choice": ("train: {device: gpu}", "train.device: expected 'auto', 'cpu', 'cuda' or 'mps'"),
    "section as value": ("train: 3", "train: expected a section of `key: value` lines, found the number 3"),
    "list at the top": ("- 3", "expected `key: value` lines at the top level, found a list"),
    "duplicate": ("seed: 1\nseed: 2", "a.yaml, line 2: duplicate key 'seed' (first on line 1)"),
    "not YAML": ("train: [", "a.yaml, line 1: not valid YAML"),
    "path in the name": ("competition: {name: ../up}", "competition.name: expected letters, digits"),
    "files without a folder": ("competition: {suite: {source: distortion_files}}", "competition.suite.path"),
    "two mistakes": ("seed: x\ntrain: {epochs: x}", "seed: expected a whole number"),
    "extends nothing": ("extends: bse.yaml", "bse.yaml: no such config file"),
    "extends an empty text": ("extends: ''", "a.yaml, line 1: extends: expected the path of one YAML file"),
    "extends itself": ("extends: a.yaml", "extends itself"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gives_one_message(tmp_path: Path, name: str) -> None:
    text, message = MISTAKES[name]
    with pytest.raises(ConfigError) as error:
        read(tmp_path, text)
    assert message in str(error.value)
    assert str(error.value).count("\n") == (name == "two mistakes")  # a line each


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs", "override 'train.epochs': expected key.path=value"),
        ("=3", "expected key.path=value"),
        ("train.epoch=3", "override 'train.epoch=3': unknown key 'train.epoch' (did you mean 'train.epochs'?)"),
        ("train.epochs=x", "override 'train.epochs': train.epochs: expected a whole number, found the text 'x'"),
        ("train.epochs=[", "override 'train.epochs=[', line 1: not valid YAML"),
    ],
)
def test_a_wrong_override_is_named_instead_of_the_file(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, "", override)
    assert message in str(error.value)


def error_lines(folder: Path, text: str, *overrides: str) -> list[str]:
    """Return the lines of a config's error message, with file names instead of paths."""
    with pytest.raises(ConfigError) as error:
        read(folder, text, *overrides)
    return str(error.value).replace(f"{folder}/", "").split("\n  ")


def test_one_message_lists_every_mistake_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("seed: 1\noptim:\n  lr: fast\n")
    text = "extends: base.yaml\ntrain:\n  epochs: -1\n  min_delta: 0.1\nmodel: {nmae: mlp, stem: cifr}\n"
    expected = [
        ("override 'sed=3': ", ["'seed'", ", ".join(Config.model_fields)]),
        ("override 'data.fold' and override 'data.folds': data.fold: ", ["0 to 2", "5"]),
        ("a.yaml, line 5: model.stem: ", ["'stock', 'cifar' or 'resize'", "'cifr'", "'cifar'"]),
        ("a.yaml, line 5: ", ["'model.nmae'", "'model.name'", ", ".join(Config().model_dump()["model"])]),
        ("base.yaml, line 3: optim.lr: ", ["'fast'"]),
        ("a.yaml, line 3: train.epochs: ", ["1", "-1"]),
        ("override 'train.batch_size': train.batch_size: ", ["'x'"]),
    ]
    lines = error_lines(tmp_path, text, "data.fold=5", "data.folds=3", "train.batch_size=x", "sed=3")
    for line, (start, values) in zip(lines, expected, strict=True):
        assert line.startswith(start)
        assert all(value in line for value in values)


@pytest.mark.parametrize(
    ("overrides", "start"),
    [
        (["model.stem=resize"], "override 'model.stem': model.stem: resize and input_size"),
        (["optim.clip_at=1"], "override 'optim.clip_at': optim.clip_at: "),
        (["train.min_delta=0.1"], "override 'train.min_delta': train.min_delta: "),
        (["data.groups=column"], "override 'data.groups': data.groups: column and data.csv.group_column"),
        (["data.csv.group_column=x"], "override 'data.csv.group_column': data.groups: column and"),
        (["competition.suite.files=20"], "override 'competition.suite.files': competition.suite.files: corrupt_test"),
        (["train.sizes={1: 8}", "train.budget=1h"], "override 'train.budget' and override 'train.sizes': train.budget"),
        (["model.sha256=0123456789"], "override 'model.sha256': model.sha256: "),
        (["tune.space.optim.lr=3"], "override 'tune.space.optim.lr': tune.space.optim.lr: expected a mapping"),
    ],
)
def test_a_broken_rule_names_the_override_that_breaks_it(tmp_path: Path, overrides: list[str], start: str) -> None:
    (line,) = error_lines(tmp_path, "", *overrides)
    assert line.startswith(start)


def test_a_rule_that_a_file_breaks_is_reported_with_its_line(tmp_path: Path) -> None:
    (line,) = error_lines(tmp_path, "train:\n  epochs: 3\n  min_delta: 0.1\n")
    assert line.startswith("a.yaml, line 3: train.min_delta: ")


ANYTHING = ["abc", "-1", "1.5", "true", "[]", "[1]", "[a, b, c]", "{a: {b: 1}}", "{1: [x]}", "5%", "1e309"]


def test_no_error_message_shows_pydantics_own_wording(tmp_path: Path) -> None:
    refused: list[tuple[str, str]] = []
    for path in configs.flatten(Config()):
        for value in ANYTHING:
            try:
                configs.from_mapping({}, "here", [f"{path}={value}"])
            except ConfigError as error:
                refused.append((path, str(error)))
    assert len(refused) > 500
    for path, message in refused:
        assert not re.search(r"nput should|alue error|required|not permitted|another type|pydantic", message)
        assert message.startswith(f"override '{path}': {path.split('.')[0]}")


SPELLINGS: dict[str, tuple[str, str, Any]] = {
    "a number as text": ("competition: {submission: {positive: 007}}", "competition.submission.positive", "007"),
    "classes like others": ("data: {classes: [no, 007, true, 1e3]}", "data.classes", ["no", "007", "true", "1e3"]),
    "a class by number": (
        "competition: {submission: {labels: {007: 1, no: 02}}}",
        "competition.submission.labels",
        {"007": "1", "no": "02"},
    ),
    "no for a boolean": ("data: {download: no}", "data.download", False),
    "off where auto is usual": ("train: {channels_last: off}", "train.channels_last", False),
    "no weights": ("model: {pretrained: no}", "model.pretrained", False),
    "an exponent": ("optim: {lr: 1E-3}", "optim.lr", 1e-3),
    "an empty key": ("train: {epochs: }", "train.epochs", 10),
    "an empty section": ("train:\nseed: 1", "train.epochs", 10),
    "no budget": ("train: {budget: none}", "train.budget", ""),
    "no folds": ("data: {folds: none}", "data.folds", None),
    "none is a class too": ("competition: {submission: {positive: none}}", "competition.submission.positive", "none"),
    "null inside a mapping stays": ("model: {timm: {act_layer: null}}", "model.timm", {"act_layer": None}),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_common_spellings_are_understood(tmp_path: Path, name: str) -> None:
    text, path, value = SPELLINGS[name]
    assert configs.flatten(read(tmp_path, text))[path] == value


@pytest.mark.parametrize("empty", ["null", "", "none", "''"])
def test_a_time_can_be_reset(tmp_path: Path, empty: str) -> None:
    assert read(tmp_path, "train: {budget: 15min}", f"train.budget={empty}").train.budget == ""


@pytest.mark.parametrize("path", ["model.from_run", "train.select", "data.folds", "optim.lr", "model.args"])
def test_null_resets_a_key_to_its_default(tmp_path: Path, path: str) -> None:
    text = "model: {from_run: there, args: {depth: 3}}\ntrain: {select: val_loss}\ndata: {folds: 3}\noptim: {lr: 1}"
    default = configs.flatten(Config())[path]
    assert configs.flatten(read(tmp_path, text))[path] != default
    assert configs.flatten(read(tmp_path, text, f"{path}=null"))[path] == default
    assert configs.flatten(read(tmp_path, text, f"{path}="))[path] == default


def test_null_resets_a_key_of_the_base_file_and_an_empty_section_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("train: {epochs: 3, patience: 2}\nmodel: {args: {depth: 3}}\noptim: {lr: 1}")
    loaded = read(tmp_path, "extends: base.yaml\ntrain: {patience: null}\nmodel: {args: {width: 8}}\noptim:\n")
    assert (loaded.train.epochs, loaded.train.patience, loaded.optim.lr) == (3, None, 1)
    assert loaded.model.args == {"depth": 3, "width": 8}  # files merge
    assert read(tmp_path, "extends: base.yaml\nmodel: {args: {}}").model.args == {}


def test_an_override_replaces_a_mapping_or_one_of_its_entries(tmp_path: Path) -> None:
    text = "tune: {space: {optim.lr: {float: [1e-4, 1e-2], log: true}, seed: {choice: [1]}}}"
    choice = {"choice": [0.001, 0.01]}
    assert read(tmp_path, text, "tune.space={optim.lr: {choice: [0.001, 0.01]}}").tune.space == {"optim.lr": choice}
    entry = read(tmp_path, text, "tune.space.optim.lr={choice: [0.001, 0.01]}").tune.space
    assert entry == {"optim.lr": choice, "seed": {"choice": [1]}}
    layers = read(tmp_path, "optim: {multipliers: {layer1: 0.1}}", "optim.multipliers.layer1.0=0.5").optim
    assert layers.multipliers == {"layer1": 0.1, "layer1.0": 0.5}
    assert read(tmp_path, "train: {epochs: 3}", "train={batch_size: 7}").train.epochs == 3  # a section's keys stay
    (line,) = error_lines(tmp_path, "", "train.epochs.x=3")
    assert line.startswith("override 'train.epochs.x=3': train.epochs ")


def test_tilde_and_variables_in_paths_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "/data")
    keys = [
        "data.root",
        "data.csv.table",
        "data.csv.sample",
        "competition.suite.path",
        "model.pretrained",
        "model.from_run",
    ]
    for key in keys:
        other = {"model.from_run": "model.pretrained=false"}.get(key, "seed=0")
        assert configs.flatten(read(tmp_path, "", f"{key}=~/x", other))[key] == "/home/me/x"
        assert configs.flatten(read(tmp_path, "", f"{key}='${{DATA}}/x'", other))[key] == "/data/x"
    assert read(tmp_path, "tune: {storage: 'sqlite:///~/t.db'}").tune.storage == "sqlite:////home/me/t.db"
    assert read(tmp_path, "data: {root: a$b~c}").data.root == "a$b~c"
    assert read(tmp_path, "competition: {submission: {positive: ~x}}").competition.submission.positive == "~x"
    (line,) = error_lines(tmp_path, "seed: 1\ndata: {root: '${DTA}/x'}")
    assert line.startswith("a.yaml, line 2: data.root: ${DTA} ")
    assert "'DATA'" in line


def test_paths_of_a_stored_config_are_not_replaced_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = configs.from_mapping({"data": {"root": "~/x"}}, "here")  # a folder whose name is a tilde
    (tmp_path / "config.yaml").write_text(configs.dump(stored))
    assert configs.load_stored(tmp_path / "config.yaml") == stored
    monkeypatch.setenv("HOME", "/home/me")
    opened = read(tmp_path, "data: {root: ~/x}")
    assert opened.data.root == "/home/me/x"  # what a run of it stores, and hashes
    assert configs.fingerprint(opened) == configs.fingerprint(
        configs.from_mapping({"data": {"root": "/home/me/x"}}, "")
    )


COMMON_MISTAKES = {
    "a tab": ("train:\n\tepochs: 3", "a.yaml, line 2: not valid YAML: a tab"),
    "a colon in text": ("competition: {name: x}\ndata: root: x", "line 2: not valid YAML: a second `key: value`"),
    "duplicate below": (
        "train:\n  epochs: 3\n  seed: 1\n  epochs: 4",
        "line 4: duplicate key 'epochs' (first on line 2)",
    ),
    "a percentage": ("data: {validation: 20%}", "found the text '20%'; write 0.2"),
    "a decimal comma": ("optim:\n  lr: 0,001", "found the text '0,001'; write 0.001"),
    "a word for a list": ("track: {tags: mine}", "track.tags: expected a list, found the text 'mine'; write [mine]"),
    "a key that is no number": ("train: {sizes: {first: 8}}", "expected keys that are a whole number, found 'first'"),
    "a list as a key": ("train: {[1, 2]: 3}", "line 1: expected text before the colon"),
    "a key off its section": ("model: {epochs: 3}", "unknown key 'model.epochs' (did you mean 'train.epochs'?)"),
    "a seed below train": ("train: {seed: 3}", "unknown key 'train.seed' (did you mean 'seed'?)"),
}


@pytest.mark.parametrize("name", COMMON_MISTAKES)
def test_a_common_mistake_comes_with_its_fix(tmp_path: Path, name: str) -> None:
    text, message = COMMON_MISTAKES[name]
    (line,) = error_lines(tmp_path, text)
    assert message in line


def test_a_folder_is_not_a_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder; expected a YAML file"):
        configs.load(tmp_path)


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"quikstart.yaml: no such config file \(did you mean 'quickstart.yaml'"):
        configs.load(tmp_path / "quikstart.yaml")


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes("seed: 1 # é".encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        configs.load(tmp_path / "a.yaml")


@settings(max_examples=25)
@given(
    epochs=st.integers(1, 10**6),
    lr=st.floats(1e-12, 1e3),
    seed=st.integers(0, 2**63 - 1),
    name=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,20}\Z"),
    policy=st.one_of(st.text(), st.lists(st.text()).map(tuple)),
)
def test_dump_and_load_give_the_same_config(
    tmp_path_factory: pytest.TempPathFactory, epochs: int, lr: float, seed: int, name: str, policy: object
) -> None:
    values = {
        "competition": {"name": name},
        "train": {"epochs": epochs},
        "optim": {"lr": lr},
        "seed": seed,
        "augment": {"policy": policy},
    }
    config = configs.from_mapping(values, "here")
    path = tmp_path_factory.mktemp("dump") / "a.yaml"
    path.write_text(configs.dump(config), encoding="utf-8")
    loaded = configs.load(path)
    assert loaded == config
    assert configs.fingerprint(loaded) == configs.fingerprint(config)


def test_the_fingerprint_changes_with_the_values() -> None:
    assert configs.fingerprint(Config()) != configs.fingerprint(configs.from_mapping({"seed": 1}, "here"))


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("configs/**/*.yaml")), ids=lambda path: path.stem)
def test_every_config_of_the_repository_loads_and_starts_with_its_command(path: Path) -> None:
    configs.load(path)
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    verb = "tune" if configs.load(path).tune.space else "run"
    assert any(f"comp {verb} {path.relative_to(REPOSITORY)}" in line for line in head)


def test_the_schema_has_every_section() -> None:
    assert set(configs.schema()["properties"]) == {*Config.model_fields, "extends"}
