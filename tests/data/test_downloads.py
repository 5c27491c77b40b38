"""Downloads from an HTTP server on loopback: resumed, validated, and never half in place."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
from safetensors.torch import save_file
from torchvision import datasets

from comp.data.corruptions.suite import CORRUPTIONS
from comp.data.downloads import fetch
from comp.results import runs
from comp.runtime.errors import DataError
from comp.runtime.progress import quiet
from tests.support.commands import REPOSITORY, Result
from tests.support.downloads import Server, cifar100_archive, npy, serving, write_challenge


@pytest.fixture
def server() -> Iterator[Server]:
    """A server on loopback."""
    with serving() as running:
        yield running


CONTENT = np.random.default_rng(0).bytes(300_000)


def accept(path: Path) -> None:
    """Accept any file."""


def test_a_broken_connection_is_resumed_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.files["/a"], server.breaks_after = CONTENT, 100_000
    fetch(f"{server.address}/a", tmp_path / "deep/a", accept, quiet)
    assert (tmp_path / "deep/a").read_bytes() == CONTENT
    assert server.ranges == ["", "bytes=100000-", "bytes=200000-"]


def test_an_interrupted_download_is_resumed(server: Server, tmp_path: Path) -> None:
    server.files["/a"] = CONTENT
    (tmp_path / "a.part").write_bytes(CONTENT[:1234])
    seen: list[tuple[int, int]] = []
    fetch(f"{server.address}/a", tmp_path / "a", accept, lambda what, done, total, unit="": seen.append((done, total)))
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert server.ranges == ["bytes=1234-"]
    assert seen[-1] == (len(CONTENT), len(CONTENT))


def test_a_complete_part_is_kept(server: Server, tmp_path: Path) -> None:
    server.files["/a"] = CONTENT
    (tmp_path / "a.part").write_bytes(CONTENT)
    fetch(f"{server.address}/a", tmp_path / "a", accept, quiet)
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_downloaded_again(server: Server, tmp_path: Path) -> None:
    server.files["/a"] = CONTENT
    (tmp_path / "a.part").write_bytes(CONTENT + b"more")
    fetch(f"{server.address}/a", tmp_path / "a", accept, quiet)
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_without_ranges_the_download_starts_again(server: Server, tmp_path: Path) -> None:
    server.files["/a"], server.honours_range = CONTENT, False
    (tmp_path / "a.part").write_bytes(b"wrong beginning")
    fetch(f"{server.address}/a", tmp_path / "a", accept, quiet)
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_missing_file_names_the_address_and_the_command(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"http://127.* 404 .*curl -L -C - -o"):
        fetch(f"{server.address}/none", tmp_path / "a", accept, quiet)


def test_an_unreachable_server_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:9/a .*curl -L -C - -o"):
        fetch("http://127.0.0.1:9/a", tmp_path / "a", accept, quiet)


def test_an_invalid_file_never_gets_its_name(server: Server, tmp_path: Path) -> None:
    server.files["/a"] = b"<html>sign in</html>"

    def refuse(path: Path) -> None:
        raise DataError("wrong file")

    with pytest.raises(DataError, match="wrong file"):
        fetch(f"{server.address}/a", tmp_path / "a", refuse, quiet)
    assert list(tmp_path.iterdir()) == []


def test_a_suite_is_downloaded_and_predicted(workplace: Path, comp: Callable[..., Result], server: Server) -> None:
    write_challenge(workplace / "small.yaml", workplace / "data", server)
    server.breaks_after = 20_000
    result = comp("data", "prepare", "small.yaml")
    assert result.code == 0, result.err
    for number in range(3):
        file = workplace / f"data/ood-test/distortion{number:02d}.npy"
        assert file.read_bytes() == server.files[f"/distortion{number:02d}.npy"]
    server.files.clear()  # nothing is downloaded again
    assert comp("run", "small.yaml").code == 0
    assert len((workplace / "submissions/small.csv").read_text().splitlines()) == 1 + 3 * 2 * 5


def test_a_suite_file_of_another_shape_is_refused(workplace: Path, comp: Callable[..., Result], server: Server) -> None:
    write_challenge(workplace / "small.yaml", workplace / "data", server)
    server.files["/distortion01.npy"] = npy(np.zeros((10, 28, 28, 3), np.uint8))
    result = comp("data", "prepare", "small.yaml")
    assert result.code == 2
    assert "[10, 32, 32, 3], found [10, 28, 28, 3]" in result.err
    assert sorted(path.name for path in (workplace / "data/ood-test").iterdir()) == ["distortion00.npy"]


def test_cifar100_is_downloaded_through_torchvision_and_trained_on(
    workplace: Path, comp: Callable[..., Result], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, files = cifar100_archive()
    server.files["/cifar-100-python.tar.gz"] = archive
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(datasets.CIFAR100, "url", f"{server.address}/cifar-100-python.tar.gz")
    monkeypatch.setattr(datasets.CIFAR100, "tgz_md5", hashlib.md5(archive).hexdigest())
    monkeypatch.setattr(datasets.CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(datasets.CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setitem(datasets.CIFAR100.meta, "md5", sums["meta"])
    result = comp("run", "small.yaml", "data.source=cifar100", "data.validation=100", "train.epochs=1")
    assert result.code == 0, result.err
    (run,) = runs.list_runs(Path("runs"))
    assert run.provenance()["classes"][:2] == ["class0", "class1"]
    assert run.provenance()["images"] == {"train": 100, "val": 100, "test": 100}


def test_a_failed_cifar100_download_names_the_command(
    workplace: Path, comp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.CIFAR100, "url", "http://127.0.0.1:9/cifar-100-python.tar.gz")
    result = comp("run", "small.yaml", "data.source=cifar100")
    assert result.code == 2
    message = result.err.splitlines()[-1]
    assert "CIFAR100" in message
    assert "curl -L 'http://127.0.0.1:9/cifar-100-python.tar.gz' | tar -xz" in message


def test_mnist_is_downloaded_through_torchvision(
    workplace: Path, comp: Callable[..., Result], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(3)
    resources = []
    for prefix, count in (("train", 60), ("t10k", 20)):
        for kind, values in (
            ("images-idx3", generator.integers(0, 256, (count, 28, 28), np.uint8)),
            ("labels-idx1", np.arange(count, dtype=np.uint8) % 10),
        ):
            header = bytes((0, 0, 8, values.ndim)) + b"".join(side.to_bytes(4, "big") for side in values.shape)
            packed = gzip.compress(header + values.tobytes())
            server.files[f"/{prefix}-{kind}-ubyte.gz"] = packed
            resources.append((f"{prefix}-{kind}-ubyte.gz", hashlib.md5(packed).hexdigest()))
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"{server.address}/"])
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    result = comp("data", "prepare", "small.yaml", "data.source=mnist", "--json")
    assert result.code == 0, result.err
    summary = json.loads(result.out)
    assert (summary["train"], summary["val"], summary["test"]) == (48, 12, 20)
    assert summary["image_shape"] == [1, 28, 28]


def test_an_archive_that_leads_out_is_never_unpacked(
    workplace: Path, comp: Callable[..., Result], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        member = tarfile.TarInfo("../../owned")
        member.size = 5
        tar.addfile(member, io.BytesIO(b"hello"))
    server.files["/cifar-100-python.tar.gz"] = archive.getvalue()  # not the published checksum
    monkeypatch.setattr(datasets.CIFAR100, "url", f"{server.address}/cifar-100-python.tar.gz")
    result = comp("data", "prepare", "small.yaml", "data.source=cifar100")
    assert result.code == 2
    assert "CIFAR100" in result.err
    assert not list(workplace.parent.rglob("owned"))


BLENDS = ["brightness", "contrast", "defocus_blur", "gaussian_blur", "saturate"]  # of AutoAugment and ColorJitter
SMALLER = ["model.name=resnet18", "train.batch_size=64"]


@pytest.mark.parametrize(
    ("name", "others", "imitated"),
    [
        pytest.param("transfer", ["data.validation=100"], BLENDS, marks=pytest.mark.slow),
        pytest.param("best_1gpu", ["data.validation=100", *SMALLER], list(CORRUPTIONS), marks=pytest.mark.slow),
        pytest.param(
            "best_laptop",
            ["data.validation=100", "train.batch_size=50", "train.sizes={1: 16}"],
            list(CORRUPTIONS),
            marks=pytest.mark.slow,
        ),
        pytest.param("refit", SMALLER, list(CORRUPTIONS), marks=pytest.mark.slow),
    ],
)
def test_the_challenges_configs_go_from_downloads_to_a_submission(
    workplace: Path, comp: Callable[..., Result], server: Server, name: str, others: list[str], imitated: list[str]
) -> None:
    """The whole config on small data in its exact layout; only counts, addresses and a large network's size differ."""
    _, files = cifar100_archive()
    (workplace / "data/cifar-100-python").mkdir()
    for file, content in files.items():
        (workplace / "data/cifar-100-python" / file).write_bytes(content)
    if name != "best_laptop":  # which starts from random weights
        (workplace / "data/weights").mkdir()
        save_file(timm.create_model("resnet18").state_dict(), workplace / "data/weights/resnet18.safetensors")
    for number in range(19):
        server.files[f"/distortion{number:02d}.npy"] = npy(np.full((5, 32, 32, 3), number, np.uint8))
    result = comp(
        "run", REPOSITORY / f"configs/cifar100-ood/{name}.yaml", f"data.root={workplace / 'data'}",
        f"competition.suite.base_address={server.address}",
        "competition.suite.images_per_block=1", "train.epochs=1",
        "competition.ood_validation={per_block: 1, severities: [3]}", "train.precision=fp32", *others,
    )  # fmt: skip
    assert result.code == 0, result.err
    lines = (workplace / "submissions/cifar100-ood.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines[1:4]] == ["distortion00_1_0", "distortion00_2_0", "distortion00_3_0"]
    assert len(lines) == 1 + 19 * 5
    (run,) = runs.list_runs(Path("runs"))
    assert ("resnet18.safetensors (sha256 " in run.metrics().first_weights) == (name != "best_laptop")
    assert run.metrics().test_like == sorted(imitated)


def test_missing_weights_name_the_expected_file(
    workplace: Path, comp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    more = ["model.name=resnet18", "model.stem=cifar", "model.pretrained=true", "model.args={}"]
    result = comp("run", "small.yaml", *more)
    assert result.code == 2
    assert "data/weights/resnet18" in result.err
    assert not Path("runs").exists()
