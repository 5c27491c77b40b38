"""Configs: what is read, what is refused and with which words."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comp import config as configs
from comp.config import Config
from comp.errors import ConfigError
from tests.conftest import REPOSITORY


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


def test_extends_lays_a_file_on_another(tmp_path: Path) -> None:
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
    "unknown section": ("trian: {epochs: 3}", "a.yaml: unknown key 'trian' (did you mean 'train'?)"),
    "unknown key": ("train: {epoch: 3}", "a.yaml: unknown key 'train.epoch' (did you mean 'epochs'?)"),
    "key in the wrong section": ("epochs: 3", "(did you mean 'train.epochs'?)"),
    "text for a number": ("train: {epochs: three}", "train.epochs: expected a whole number, found the text 'three'"),
    "number as text": ("optim: {lr: '1e-4'}", "optim.lr: expected a number, found the text '1e-4'"),
    "fraction of an epoch": ("train: {epochs: 1.5}", "train.epochs: expected a whole number, found the number 1.5"),
    "out of range": ("train: {epochs: 0}", "train.epochs: expected at least 1, found the number 0"),
    "not finite": ("optim: {lr: .nan}", "optim.lr: expected a finite number, found the number nan"),
    "no is a word": ("data: {validation: no}", "data.validation: expected"),
    "unknown choice": ("train: {device: gpu}", "train.device: expected 'auto', 'cpu', 'cuda' or 'mps'"),
    "section as value": ("train: 3", "train: expected a section of `key: value` lines, found the number 3"),
    "list at the top": ("- 3", "expected `key: value` lines at the top level, found a list"),
    "twice": ("seed: 1\nseed: 2", "a.yaml, line 2: key 'seed' stands twice (first on line 1)"),
    "not YAML": ("train: [", "a.yaml, line 1: not valid YAML"),
    "path in the name": ("competition: {name: ../up}", "competition.name: expected letters, digits"),
    "files without a folder": ("competition: {suite: {source: distortion_files}}", "competition.suite.path"),
    "two mistakes": ("seed: x\ntrain: {epochs: x}", "seed: expected a whole number"),
    "extends nothing": ("extends: bse.yaml", "bse.yaml: no such config file"),
    "extends itself": ("extends: a.yaml", "extends itself"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_one_message(tmp_path: Path, name: str) -> None:
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
        ("train.epoch=3", "override 'train.epoch=3': unknown key 'train.epoch' (did you mean 'epochs'?)"),
        ("train.epochs=x", "override 'train.epochs': train.epochs: expected a whole number, found the text 'x'"),
        ("train.epochs=[", "override 'train.epochs=[', line 1: not valid YAML"),
    ],
)
def test_a_wrong_override_is_blamed_and_not_the_file(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, "", override)
    assert message in str(error.value)


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"quikstart.yaml: no such config file \(did you mean 'quickstart.yaml'"):
        configs.load(tmp_path / "quikstart.yaml")


def test_a_file_that_is_not_utf8_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes("seed: 1 # é".encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        configs.load(tmp_path / "a.yaml")


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
        "competition": {"name": name}, "train": {"epochs": epochs}, "optim": {"lr": lr}, "seed": seed,
        "augment": {"policy": policy},
    }  # fmt: skip
    config = configs.from_mapping(values, "here")
    path = tmp_path_factory.mktemp("dump") / "a.yaml"
    path.write_text(configs.dump(config), encoding="utf-8")
    loaded = configs.load(path)
    assert loaded == config
    assert configs.fingerprint(loaded) == configs.fingerprint(config)


def test_the_fingerprint_moves_with_any_value() -> None:
    assert configs.fingerprint(Config()) != configs.fingerprint(configs.from_mapping({"seed": 1}, "here"))


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("configs/**/*.yaml")), ids=lambda path: path.stem)
def test_every_config_of_the_repository_loads_and_opens_with_its_command(path: Path) -> None:
    configs.load(path)
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    verb = "tune" if configs.load(path).tune.space else "run"
    assert any(f"comp {verb} {path.relative_to(REPOSITORY)}" in line for line in head)


def test_the_schema_knows_every_section() -> None:
    assert set(configs.schema()["properties"]) == {*Config.model_fields, "extends"}
