"""Hostile or absurd YAML: one message within a moment, whatever a config file or an override holds."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from comp import config as configs
from comp.config import yaml_io
from comp.runtime.errors import ConfigError
from tests.support.commands import Result
from tests.support.faults import assert_clean, assert_fault, assert_unchanged, snapshot

Comp = Callable[..., Result]

DEEP = "more than 32 lists and mappings in one another"
TOO_MUCH = "expected at most 100,000 values, 32 lists and mappings deep"
TOO_LONG = "expected a config of at most 1,048,576 bytes"


def bomb(*, form: str = "[{}]", levels: int = 12) -> str:
    """Return lists (or merges) of nine aliases each, every one of the level below: 9 ** levels values."""
    lines = ["a0: &a0 {x: 1}"]
    for level in range(1, levels):
        aliases = ", ".join([f"*a{level - 1}"] * 9)
        lines.append(f"a{level}: &a{level} {form.format(aliases)}")
    return "\n".join(lines)


def chain_of_aliases(length: int) -> str:
    """Return lists that each hold the one before: as deep as there are."""
    return "\n".join(["a0: &a0 [1]", *(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, length))])


# bad.yaml -> parts of the message.
FILES: dict[str, tuple[str | bytes, tuple[str, ...]]] = {
    "brackets": ("model: " + "[" * 10_000, ("bad.yaml, line 1", DEEP, "flatten")),
    "closed brackets": ("model: " + "[" * 10_000 + "]" * 10_000, ("bad.yaml, line 1", DEEP)),
    "braces": ("model: " + "{a: " * 10_000, ("bad.yaml, line 1", DEEP)),
    "dashes": ("model:\n" + "- " * 10_000, ("bad.yaml, line 2", DEEP)),
    "question marks": ("? " * 10_000, ("bad.yaml, line 1", DEEP)),
    "indentation": ("\n".join(" " * n + "a:" for n in range(900)), ("bad.yaml, line 32", DEEP)),
    "a bomb of aliases": (bomb(), ("bad.yaml, line", TOO_MUCH, "remove aliases")),
    "a bomb of merges": (bomb(form="{{<<: [{}]}}"), ("bad.yaml, line", TOO_MUCH)),
    "a bomb as a key": (bomb(levels=5) + "\n? *a4\n: 1", ("bad.yaml, line", "expected text before the colon")),
    "a chain of aliases": (chain_of_aliases(5000), ("bad.yaml, line 31", TOO_MUCH)),
    "an alias to itself": ("model: &a [1, *a]", ("bad.yaml, line 1", "*a contains itself")),
    "an alias to a parent": ("train: &a\n  epochs: {b: *a}", ("bad.yaml, line 2", "*a contains itself")),
    "an unknown alias": ("seed: *a", ("bad.yaml, line 1", "found undefined alias 'a'")),
    "a merge of a number": ("train: {<<: 5}", ("bad.yaml, line 1", "expected a mapping")),
    "two megabytes": ("# " + "x" * (2 << 20), ("bad.yaml", TOO_LONG, "shorten it")),
    "digits": ("train: {epochs: " + "9" * 5000 + "}", ("line 1: train.epochs: expected a whole number", "5,002 char")),
    "more than 64 bits": ("seed: 99999999999999999999", ("line 1: seed: expected a whole number, found the text",)),
    "a fraction of digits": ("optim: {lr: 1" + "0" * 400 + ".0}", ("optim.lr: expected a finite number, found",)),
    "a hexadecimal without digits": ("train: {epochs: 0x_}", ("train.epochs: expected a whole number", "0x_")),
    "a NUL": (b"seed: 1\nmodel: {name: a\0b}\n", ("bad.yaml, line 2", "U+0000", "remove it")),
    "an escaped NUL": ('seed: 1\ndata: {root: "a\\0b"}', ("bad.yaml, line 2", "U+0000", "remove it")),
    "half a surrogate pair": ('competition: {name: "\\ud800"}', ("bad.yaml, line 1", "U+D800", "remove it")),
    "UTF-16": ("seed: 1".encode("utf-16"), ("bad.yaml: not UTF-8 text", "save it as UTF-8")),
    "UTF-16 without a mark": ("seed: 1".encode("utf-16-le"), ("bad.yaml, line 1", "U+0000")),
    "Latin-1": ("seed: 1 # é".encode("latin-1"), ("bad.yaml: not UTF-8 text (byte 10)", "save it as UTF-8")),
    "a mark in the middle": ("seed: 1\n\ufefftrain: {epochs: 1}", ("bad.yaml, line 2", "byte order mark U+FEFF")),
    "two marks": ("\ufeff\ufeffseed: 1", ("bad.yaml, line 1", "byte order mark U+FEFF")),
    "an escape code": ("seed: \x1b[31m1", ("bad.yaml, line 1", "U+001B", "remove it")),
    "a tab": ("train:\n\tepochs: 3", ("bad.yaml, line 2", "a tab before the first word", "indent with spaces")),
    "a long key twice": (f"{'k' * 900}: 1\n{'k' * 900}: 2", ("line 2: duplicate key", "characters)", "remove one")),
    "a python object": ("seed: !!python/object/apply:os.system [ls]", ("line 1", "the tag", "os.system",
        "remove the tag")),
    "binary": ("competition: {name: !!binary aGk=}", ("bad.yaml, line 1", "binary", "remove the tag")),
    "a set": ("track: {tags: !!set {a, b}}", ("bad.yaml, line 1", "set", "remove the tag")),
    "a timestamp": ("competition: {name: !!timestamp 2024-01-01}", ("line 1", "timestamp", "remove the tag")),
    "an ordered map": ("model: !!omap [name: mlp]", ("bad.yaml, line 1", "omap", "remove the tag")),
    "a tag of one's own": ("seed: !mine 3", ("bad.yaml, line 1", "!mine", "remove the tag")),
    "a number that is none": ("seed: !!int abc", ("bad.yaml, line 1", "int", "does not fit")),
    "a boolean that is none": ("data: {download: !!bool maybe}", ("bad.yaml, line 1", "bool", "does not fit")),
    "a list for a mapping": ("model: !!map [1]", ("bad.yaml, line 1", "map", "does not fit")),
    "two documents": ("seed: 1\n---\nseed: 2", ("bad.yaml, line 2", "a second document", "without the line ---")),
    "a star without quotes": ("model: {freeze: [*]}", ("bad.yaml, line 1", "quote text that begins with a symbol")),
    "an open quote": ("competition: {name: 'a}\n" * 3, ("bad.yaml", "close each bracket and quote")),
    "extends a list": ("extends: [a.yaml]", ("bad.yaml, line 1", "extends: expected the path of one YAML file")),
    "extends a long name": ("extends: " + "a" * 5000, ("cannot be read: File name too long", "(5,0")),
    "extends a device": ("extends: /dev/zero", ("/dev/zero", TOO_LONG)),
    "extends a folder": ("extends: .", ("is a folder; expected a YAML file",)),
    "a long competition": ("competition: {name: " + "c" * 10_000 + "}",
        ("competition.name: expected at most 200 characters",)),
    "a long study": ("tune: {study: " + "s" * 300 + "}", ("tune.study: expected at most 200 characters",)),
    "a long section": ("s" * 1000 + ": 1", ("bad.yaml, line 1: unknown key 'sss", "characters)")),
    "a long key": ("train: {" + "k" * 900 + ": 1}", ("bad.yaml, line 1: unknown key 'train.kkk", "characters)")),
    "a long model": ("model: {name: " + "m" * 10_000 + "}", ("model.name: unknown model 'mmm", "characters)")),
    "a long optimizer": ("optim: {name: " + "o" * 10_000 + "}", ("optim.name: unknown optimizer 'ooo", "characters)")),
    "a long source": ("data: {source: " + "d" * 10_000 + "}", ("data.source: unknown source 'ddd", "characters)")),
    "a long choice": ("train: {device: " + "d" * 10_000 + "}", ("train.device: expected 'auto'", "characters)")),
    "infinity": ("optim: {lr: .inf}", ("optim.lr: expected a finite number, found the number inf",)),
    "a number above all": ("optim: {args: {eps: 1e400}}", ("line 1: optim.args.eps: expected a finite number",)),
    "NaN in a list": ("model: {args: {hidden: [8, .nan]}}",
        ("line 1: model.args.hidden.1: expected a finite number",)),
    "minus infinity": ("train: {loss_args: {gamma: -.inf}}", ("train.loss_args.gamma: expected a finite", "-inf")),
    "1e300": ("model: {timm: {a: {b: 1e300}}}", ("model.timm.a.b: expected a number from -1e+38 to 1e+38", "1e+300")),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_refused_in_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comp: Comp, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    content, parts = FILES[name]
    Path("bad.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    before = snapshot(tmp_path)
    assert_fault(comp("config", "check", "bad.yaml"), *parts, longest=1500)
    assert snapshot(tmp_path) == before


def test_what_looks_like_a_trick_and_is_none_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    digits = "1" * 64
    Path("good.yaml").write_bytes(
        b"\xef\xbb\xbfcompetition: &c {name: 2024-01-01, submission: &s {positive: !!str 007}}\n"
        b"data: {classes: [99999999999999999999, =, no, 1:30]}\n"
        b"model: {pretrained: a.pth, sha256: " + digits.encode() + b"}\n"
        b"optim: {multipliers: {a: &m 0.5, b: *m}, lr: !!float 1}\n"
    )
    read = configs.load("good.yaml")
    assert (read.competition.name, read.competition.submission.positive) == ("2024-01-01", "007")
    assert read.data.classes == ("99999999999999999999", "=", "no", "1:30")
    assert read.model.sha256 == digits
    assert dict(read.optim.multipliers) == {"a": 0.5, "b": 0.5}
    assert read.optim.lr == 1.0
    assert configs.load("/dev/null") == configs.Config()
    reader, writer = os.pipe()
    os.write(writer, b"seed: 3")
    os.close(writer)
    assert configs.load(f"/dev/fd/{reader}").seed == 3
    os.close(reader)


DEVICES = {
    "zeros": ("/dev/zero", (TOO_LONG,)),
    "noise": ("/dev/urandom", (TOO_LONG,)),
    "memory": ("/proc/self/mem", ("/proc/self/mem: cannot be read",)),
    "a pipe without a writer": ("pipe", ("pipe: nothing came from it within 0.1 s", "name a YAML file")),
    "a link to itself": ("link", ("link: cannot be read: Too many levels of symbolic links",)),
    "a name that is too long": ("x" * 5000, ("characters) cannot be read: File name too long",)),
}


@pytest.mark.parametrize("name", DEVICES)
def test_what_never_ends_or_cannot_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comp: Comp, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(yaml_io, "_PIPE_SECONDS", 0.1)
    os.mkfifo("pipe")
    Path("link").symlink_to("link")
    path, parts = DEVICES[name]
    assert_fault(comp("config", "show", path), *parts)


def test_a_chain_of_files_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comp: Comp) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(100):
        Path(f"{number}.yaml").write_text(f"extends: {number + 1}.yaml")
    Path("100.yaml").write_text("seed: 7")
    assert configs.load("70.yaml").seed == 7
    assert_fault(
        comp("config", "check", "0.yaml"), "32.yaml: extends: expected at most 32 files in a chain", "join some"
    )
    Path("1.yaml").write_text("extends: 0.yaml")
    assert_fault(comp("config", "check", "0.yaml"), "0.yaml: extends itself through")


OVERRIDES: dict[str, tuple[str, tuple[str, ...]]] = {
    "brackets": ("model.args=" + "[" * 10_000, ("override 'model.args=[[[", "line 1", DEEP)),
    "a bomb": ("model.args={" + bomb().replace("\n", ", ") + "}", ("override 'model.args={a0", TOO_MUCH)),
    "a tag": ("seed=!!python/name:os.system x", ("override 'seed=!!python", "remove the tag")),
    "digits": ("train.epochs=" + "9" * 5000, ("override 'train.epochs': train.epochs: expected a whole number",)),
    "dots": ("model.args" + ".a" * 5000 + "=1", ("override 'model.args.a.a", "model.args: ")),
    "dots into nothing": (".".join(["a"] * 5000) + "=1", ("override 'a.a.a", "unknown key 'a'")),
    "no equals sign": ("x" * 10_000, ("override 'xxx", "characters)", "expected key.path=value")),
    "infinity": ("optim.args={betas: [0.9, .inf]}", ("override 'optim.args': optim.args.betas.1", "finite number")),
    "two documents": ("seed=1\n---\n2", ("override 'seed=1", "a second document")),
    "a byte order mark": ("seed=\ufeff\ufeff1", ("override 'seed=", "byte order mark U+FEFF")),
    "half a surrogate pair": ("data.root=a\ud800b", ("data.root=", "no UTF-8 text", "rename")),
}  # fmt: skip


@pytest.mark.parametrize("name", OVERRIDES)
def test_a_hostile_override_takes_the_same_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comp: Comp, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("")
    override, parts = OVERRIDES[name]
    assert_fault(comp("config", "check", "a.yaml", override), *parts)


@pytest.mark.parametrize("section", ["", "train:\n  "])
def test_ten_thousand_mistakes_are_one_short_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comp: Comp, section: str
) -> None:
    monkeypatch.chdir(tmp_path)
    separator = "\n  " if section else "\n"
    Path("bad.yaml").write_text(section + separator.join(f"key{number}: 1" for number in range(10_000)))
    result = comp("config", "check", "bad.yaml")
    key = "train.key0" if section else "key0"
    assert_fault(result, f"unknown key '{key}'; known here: ", "and 9,980 more mistakes", longest=20_000)
    assert len(result.err.splitlines()) == 21


@pytest.mark.parametrize("content", [bomb(), "a: [", "- 1", "a: !!python/name:os.system x", "train: {epochs: 1e999}"])
def test_a_studys_config_edited_by_hand_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comp: Comp, content: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/c/mine")
    folder.mkdir(parents=True)
    (folder / "study.json").write_text(json.dumps({"study": "mine", "storage": "", "argv": []}))
    (folder / "study.yaml").write_text(content)
    before = snapshot(folder)
    assert_fault(comp("tune", "--show", "mine"), "")
    assert_unchanged(before, folder)


def test_a_stored_config_extends_nothing(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("seed: 3")
    (tmp_path / "config.yaml").write_text("extends: base.yaml")
    with pytest.raises(ConfigError, match=r"config\.yaml: extends: a stored config is complete; remove the line"):
        configs.load_stored(tmp_path / "config.yaml")


def test_a_long_name_of_a_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comp: Comp) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("")
    result = comp("run", "a.yaml", "--name", "n" * 10_000)
    assert_clean(result)
    assert_fault(result, "--name: expected up to 80 letters", "characters)")
    assert not Path("runs").exists()
