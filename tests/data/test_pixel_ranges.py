"""Pixels of more than 8 bits: one scale for a whole data set, chosen from the training images, kept by the run."""

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from comp import config as configs
from comp.config import DataConfig
from comp.data.dataset import open_dataset
from comp.data.images import read_image
from comp.data.sources import open_source
from comp.results import files, runs
from comp.runtime.errors import ConfigError, DataError
from tests.support.commands import Result
from tests.support.configs import small_config, write_arrays, write_config
from tests.support.runs import the_run

Comp = Callable[..., Result]


def by_hand(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return the grey levels that a scale should give, one by one."""
    shares = [(min(max(float(value), low), high) - low) / (high - low) for value in values.ravel()]
    return np.array([int(255 * share + 0.5) for share in shares], np.uint8).reshape(values.shape)


def write_set(root: Path, train: np.ndarray, test: np.ndarray | None = None) -> Path:
    """Write arrays of two classes."""
    root.mkdir(exist_ok=True)
    for name, images in (("train", train), ("test", test)):
        if images is not None:
            np.save(root / f"{name}_images.npy", images)
            np.save(root / f"{name}_labels.npy", np.arange(len(images)) % 2)
    return root


def ramp(low: float, high: float, dtype: Any) -> np.ndarray:
    """Return four images of 8 x 8 grey pixels that rise from one value to another."""
    return np.linspace(low, high, 256).astype(dtype).reshape(4, 8, 8)


# (values from, to, their type) -> what auto makes black and white
AUTO: dict[str, tuple[float, float, Any, tuple[float, float]]] = {
    "12 bits in 16": (0, 4095, np.uint16, (0, 4095)),
    "12 bits, none of them white": (100, 3000, np.uint16, (0, 4095)),
    "14 bits, as of satellites": (0, 10000, np.uint16, (0, 16383)),
    "16 bits": (0, 65535, np.uint16, (0, 65535)),
    "8 bits in 64": (0, 255, np.int64, (0, 255)),
    "black and white": (0, 1, np.int32, (0, 1)),
    "Hounsfield units": (-1024, 3071, np.int16, (-1024, 3071)),
    "floats from 0 to 1": (0, 0.5, np.float32, (0, 1)),
    "floats from 0 to 255": (0, 250, np.float64, (0, 255)),
    "reflectances": (0, 1.75, np.float32, (0, 1.75)),
    "standardised floats": (-2.5, 2.5, np.float16, (-2.5, 2.5)),
}


@pytest.mark.parametrize("name", AUTO)
def test_auto_takes_the_scale_that_the_training_images_need(tmp_path: Path, name: str) -> None:
    low, high, dtype, scale = AUTO[name]
    images = ramp(low, high, dtype)
    dark = images[:1] - images[:1] + images.min()  # a test image of one grey level: its own range would be none
    found = open_source(DataConfig(source="arrays", root=str(write_set(tmp_path, images, dark))))
    assert found.pixel_range == scale
    assert np.array_equal(np.asarray(found.train.images)[..., 0], by_hand(images, *scale))
    assert np.array_equal(np.asarray(found.test.images)[..., 0], by_hand(dark, *scale))
    assert f"{scale[0]:g} to {scale[1]:g} is stretched to 0 to 255, in every split alike" in found.notes[0]


@pytest.mark.parametrize(
    ("wanted", "scale"), [("type", (0, 65535)), ((500.0, 1500.0), (500, 1500)), ("auto", (0, 4095))]
)
def test_a_range_may_be_asked_for(tmp_path: Path, wanted: Any, scale: tuple[float, float]) -> None:
    images = ramp(0, 4095, np.uint16)
    found = open_source(DataConfig(source="arrays", root=str(write_set(tmp_path, images)), range=wanted))
    assert np.array_equal(np.asarray(found.train.images)[..., 0], by_hand(images, *scale))


def test_eight_bits_stay_as_they_are_without_a_note(tmp_path: Path) -> None:
    images = ramp(0, 100, np.uint8)
    root = str(write_set(tmp_path, images))
    for wanted in ("auto", "type"):
        found = open_source(DataConfig(source="arrays", root=root, range=wanted))
        assert np.array_equal(np.asarray(found.train.images)[..., 0], images)
        assert (found.pixel_range, found.notes) == (None, ())
    with pytest.raises(ConfigError, match=r"data\.range: all pixels of arrays have 8 bits"):
        open_source(DataConfig(source="arrays", root=root, range=(0.0, 100.0)))


def test_a_hot_pixel_and_values_beyond_the_scale_are_told(tmp_path: Path) -> None:
    images = np.tile(ramp(0, 4000, np.uint16), (1, 8, 8))
    images[0, 0, 0] = 65535
    notes = open_source(DataConfig(source="arrays", root=str(write_set(tmp_path, images)))).notes
    assert any("data.range=[0, 4000] keeps more of the grey levels" in note for note in notes)
    write_set(tmp_path, ramp(0, 4000, np.uint16), ramp(0, 9000, np.uint16))
    notes = open_source(DataConfig(source="arrays", root=str(tmp_path))).notes
    assert "test: pixels from 0 to 9000 are clipped to 0 to 4095" in notes


def test_what_has_no_scale_in_common_is_refused(tmp_path: Path) -> None:
    config = DataConfig(source="arrays", root=str(tmp_path))
    write_set(tmp_path, ramp(0, 4000, np.uint16), ramp(0, 1, np.float32))
    with pytest.raises(DataError, match="found uint16 in train, float32 in test; save them alike"):
        open_source(config)
    write_set(tmp_path, ramp(0, 4000, np.uint16), ramp(0, 100, np.uint8))
    with pytest.raises(DataError, match="found uint16 in train, uint8 in test"):
        open_source(config)
    write_set(tmp_path, np.where(ramp(0, 1, np.float32) > 0.5, np.inf, 0.0))
    (tmp_path / "test_images.npy").unlink()
    with pytest.raises(DataError, match="train image 2: expected finite pixels, found 64"):
        open_source(config)


# --- files


def write_files(root: Path, ending: str, save: Callable[[Path, np.ndarray], object], white: int = 4095) -> np.ndarray:
    """Write a folder for each of two classes, two files in each; return their values [4, 8, 8]."""
    values = ramp(0, white, np.uint16)
    for number, image in enumerate(values):
        path = root / f"train/{'ab'[number // 2]}/{number}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path, image)
    return values


def chunk(kind: bytes, body: bytes) -> bytes:
    """Return a part of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def save_grey_with_alpha(path: Path, values: np.ndarray) -> None:
    """Write a PNG of 16-bit grey and an opaque 16-bit alpha, by its specification."""
    lines = np.stack([values, np.full_like(values, 65535)], -1).astype(">u2")
    header = struct.pack(">IIBBBBB", *values.shape[::-1], 16, 4, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + line.tobytes() for line in lines))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b""))


FILES: dict[str, tuple[str, Callable[[Path, np.ndarray], object]]] = {
    "grey PNG": ("png", lambda path, values: Image.fromarray(values).save(path)),
    "grey TIFF": ("tif", lambda path, values: Image.fromarray(values).save(path)),
    "big-endian TIFF": ("tif", lambda path, values: Image.fromarray(values.astype(">u2")).save(path)),
    "32-bit TIFF": ("tif", lambda path, values: Image.fromarray(values.astype(np.int32)).save(path)),
    "PNG of three colours": ("png", lambda path, values: cv2.imwrite(str(path), np.dstack([values] * 3))),
    "TIFF of three colours": ("tif", lambda path, values: cv2.imwrite(str(path), np.dstack([values] * 3))),
    "opaque PNG": (
        "png", lambda path, values: cv2.imwrite(str(path), np.dstack([*[values] * 3, np.full_like(values, 65535)])),
    ),
    "grey with alpha": ("png", save_grey_with_alpha),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_deep_files_are_stretched_by_one_scale(tmp_path: Path, name: str) -> None:
    values = write_files(tmp_path, *FILES[name])
    found = open_source(DataConfig(source="image_folder", root=str(tmp_path)))
    assert found.pixel_range == (0, 4095)
    pixels = np.asarray(found.train.images)
    assert np.array_equal(pixels, np.repeat(by_hand(values, 0, 4095)[..., None], 3, -1))
    assert len(np.unique(pixels)) == 256  # 17 by the range of the type


def test_colours_of_16_bits_keep_their_order_and_transparency_is_laid_on_white(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    red, green, blue, half = 1000, 2000, 3000, 32768
    cv2.imwrite(str(path), np.full((2, 2, 4), (blue, green, red, half), np.uint16))
    share = half / 65535
    expected = [255 * (share * value / 4095 + 1 - share) for value in (red, green, blue)]
    assert np.abs(np.asarray(read_image(path, (0, 4095)))[0, 0] - expected).max() <= 1


def test_floats_in_files_are_stretched(tmp_path: Path) -> None:
    def save(path: Path, values: np.ndarray) -> None:
        Image.fromarray(values.astype(np.float32) / 4095 * 3 - 1).save(path)

    values = write_files(tmp_path, "tif", save)
    found = open_source(DataConfig(source="image_folder", root=str(tmp_path)))
    assert found.pixel_range == (-1, 2)
    assert np.abs(np.asarray(found.train.images)[..., 0].astype(int) - by_hand(values, 0, 4095)).max() <= 1


def test_a_deep_photograph_is_turned_upright(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.uint16).reshape(4, 6) * 100
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter to the right
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    upright = np.rot90(values, -1)
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png", (0, 4095)))[..., 0], by_hand(upright, 0, 4095))


def test_files_of_8_bits_among_deep_ones_keep_their_values(tmp_path: Path) -> None:
    write_files(tmp_path, *FILES["grey PNG"])
    Image.fromarray(np.full((8, 8), 77, np.uint8)).save(tmp_path / "train/a/0.png")
    found = open_source(DataConfig(source="image_folder", root=str(tmp_path)))
    assert np.unique(found.train.images[0]).tolist() == [77]
    assert "train: 3 of 4 files have more than 8 bits; the others keep their values" in found.notes


def test_the_scale_belongs_to_the_fingerprint_but_the_types_own_does_not_change_it(tmp_path: Path) -> None:
    write_files(tmp_path, *FILES["grey PNG"], white=65535)

    def fingerprint(**data: Any) -> tuple[str, tuple[float, ...]]:
        values = small_config(tmp_path) | {"competition": {"name": "small", "suite": {"source": "none"}}}
        values["data"] = {"source": "image_folder", "root": str(tmp_path), "validation": "none", **data}
        opened = open_dataset(configs.from_mapping(values, "here"))
        return opened.fingerprint, opened.mean

    assert fingerprint() == fingerprint(range="type") == fingerprint(range=[0, 65535])
    other, mean = fingerprint(range=[0, 30000])
    assert other != fingerprint()[0]
    assert mean > fingerprint()[1]  # not the cached one of the other scale


# --- runs


def write_x_rays(root: Path, count: int = 48) -> Path:
    """Write 12-bit PNGs of two classes whose grey levels differ by 60 of 4096: less than one level of 257."""
    generator = np.random.default_rng(0)
    for number in range(count):
        level = (2000, 2060)[number % 2]
        image = (level + generator.normal(0, 10, (16, 16))).round().astype(np.uint16)
        for split, rows in (("train", range(32)), ("test", range(32, count))):
            if number in rows:
                path = root / split / "ab"[number % 2] / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(path)
    return root


def x_ray_config(root: Path) -> dict[str, Any]:
    """Return a config that learns them in seconds."""
    values = small_config(root)
    values["data"] = {"source": "image_folder", "root": str(root), "validation": 0.25}
    values["competition"] = {
        "name": "small", "suite": {"images_per_block": 4, "files": 2, "severities": 1},
        "ood_validation": {"severities": []},
    }  # fmt: skip
    values["augment"] = {}
    values["train"] |= {"epochs": 12, "batch_size": 8, "label_smoothing": 0.0}
    return values


def test_a_12_bit_set_is_learned_predicted_alike_later_and_told_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comp: Comp
) -> None:
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "small.yaml", x_ray_config(write_x_rays(tmp_path / "data")))
    result = comp("run", "small.yaml")
    assert result.code == 0, result.err
    told = "0 to 4095 is stretched to 0 to 255, in every split alike (data.range: auto)"
    assert told in " ".join(result.err.split())
    run = the_run()
    assert run.metrics().test.accuracy == 1.0
    assert run.provenance()["pixel_range"] == [0, 4095]
    submitted = Path("submissions/small.csv").read_bytes()
    assert comp("predict", run.path, "--output", "again.csv").code == 0
    assert Path("again.csv").read_bytes() == submitted
    for verb in ("show", "check"):
        assert told in " ".join(comp("data", verb, "small.yaml").err.split())
    assert told in comp("data", "show", "small.yaml", "--json").out


def test_the_types_range_loses_such_classes(tmp_path: Path) -> None:
    values = x_ray_config(write_x_rays(tmp_path))
    values["data"]["range"] = "type"
    dataset = open_dataset(configs.from_mapping(values, "here"))
    assert len(np.unique(np.asarray(dataset.train.images))) == 1  # 2000 / 257 and 2060 / 257 are both 8


def test_a_run_opens_its_data_with_the_recorded_scale_and_an_older_one_with_the_types(
    workplace: Path, comp: Comp
) -> None:
    for path in Path("data").glob("*_images.npy"):
        np.save(path, np.load(path).astype(np.uint16) * 16)
    assert comp("train", "small.yaml", "train.epochs=1").code == 0
    run = the_run()
    assert run.config().data.range == "auto"
    assert run.data_config().data.range == (0, 4095)
    assert files.read_json(run.path / "metrics.json")["config_hash"] == configs.fingerprint(run.config())
    provenance = json.loads((run.path / "provenance.json").read_text())
    del provenance["pixel_range"]
    (run.path / "provenance.json").write_text(json.dumps(provenance))
    assert run.data_config().data.range == "type"
    result = comp("predict", run.path)
    assert result.code == 2  # its training would have seen other pixels
    assert "have changed" in result.err


def test_eight_bit_runs_keep_the_hash_of_before_the_key(tmp_path: Path) -> None:
    frozen = sorted(Path(__file__).parents[1].glob("frozen/version-2/competition/*/metrics.json"))
    assert frozen
    for path in frozen:
        run = runs.open_run(path.parent)
        assert configs.fingerprint(run.config()) == run.metrics().config_hash
    values = small_config(write_arrays(tmp_path))
    plain = configs.from_mapping(values, "here")
    values["data"]["range"] = "type"
    assert configs.fingerprint(configs.from_mapping(values, "here")) != configs.fingerprint(plain)


@pytest.mark.parametrize("wrong", [[5, 5], [9, 1], [1], "all", [0, "x"]])
def test_a_wrong_range_is_told_in_words(tmp_path: Path, comp: Comp, wrong: Any) -> None:
    values = small_config(tmp_path)
    values["data"]["range"] = wrong
    result = comp("config", "check", write_config(tmp_path / "a.yaml", values))
    assert result.code == 2
    assert "data.range: expected" in result.err
    assert "two numbers, the smaller first" in result.err
    assert "validation" not in result.err.lower()
