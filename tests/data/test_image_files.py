"""Image files: decoding, the cache of a scan, and runs on them from end to end."""

import csv
import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from comp import config as configs
from comp.config import Config, DataConfig
from comp.data import decode
from comp.data.cache import FOLDER
from comp.data.dataset import Dataset, open_dataset
from comp.data.decode import read_image, resize_image
from comp.data.sources import open_source
from comp.results import runs
from comp.runtime.errors import DataError, Interrupted
from comp.workflows import train
from tests.support.commands import Result
from tests.support.configs import write_config
from tests.support.photographs import COLOURS, photograph, photographs_config, write_folders, write_kaggle
from tests.support.runs import assert_same_weights, the_run

Comp = Callable[..., Result]
CPU = torch.device("cpu")


# --- from a file to pixels


def square(mode: str, value: object) -> Image.Image:
    """Return a uniform image."""
    return Image.new(mode, (4, 4), value)


def palette(transparency: int | bytes | None = None) -> Image.Image:
    """Return a palette picture of its colour 1; transparency: a colour's number, or an alpha for each."""
    image = square("P", 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


def deep(value: int) -> Image.Image:
    """Return a 16-bit grey picture."""
    return Image.fromarray(np.full((4, 4), value, np.uint16))


MODES: dict[str, tuple[Image.Image, str, tuple[int, int, int]]] = {
    "grey": (square("L", 77), "png", (77, 77, 77)),
    "black and white": (square("1", 1), "png", (255, 255, 255)),
    "RGB": (square("RGB", (1, 2, 3)), "png", (1, 2, 3)),
    "half transparent": (square("RGBA", (100, 0, 0, 128)), "png", (177, 127, 127)),
    "wholly transparent": (square("RGBA", (1, 2, 3, 0)), "png", (255, 255, 255)),
    "black": (square("1", 0), "tiff", (0, 0, 0)),
    "grey, half transparent": (square("LA", (9, 128)), "png", (132, 132, 132)),
    "a fourth band without alpha": (square("RGBX", (1, 2, 3, 9)), "tiff", (1, 2, 3)),
    "grey, transparent": (square("LA", (9, 0)), "png", (255, 255, 255)),
    "palette": (palette(), "png", (10, 20, 30)),
    "palette, transparent": (palette(1), "png", (255, 255, 255)),
    "palette, half transparent": (palette(bytes((255, 128))), "png", (132, 137, 142)),
    "CMYK": (square("CMYK", (255, 0, 0, 0)), "tiff", (0, 255, 255)),
    "CMYK as a photograph": (square("CMYK", (0, 255, 0, 0)), "jpg", (255, 0, 255)),
    "16 bits, black": (deep(0), "png", (0, 0, 0)),
    "16 bits, middle": (deep(128 * 257), "png", (128, 128, 128)),
    "16 bits, white": (deep(65535), "tiff", (255, 255, 255)),
}


@pytest.mark.parametrize("name", MODES)
def test_every_kind_of_pixel_becomes_rgb(tmp_path: Path, name: str) -> None:
    image, ending, expected = MODES[name]
    path = tmp_path / f"a.{ending}"
    image.save(path)
    pixels = np.asarray(read_image(path))
    assert pixels.shape == (4, 4, 3)
    assert np.abs(pixels.astype(int) - expected).max() <= 1, pixels[0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotations_are_undone(tmp_path: Path, orientation: int) -> None:
    upright = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> the transposition that a camera has made
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png"))[..., 0], np.asarray(upright))


def test_an_animation_gives_its_first_frame_and_a_note(tmp_path: Path) -> None:
    write_folders(tmp_path, train=2, val=0)
    frames = [square("RGB", colour) for colour in ((250, 0, 0), (0, 250, 0))]
    frames[0].save(tmp_path / "train/ant/zz.gif", save_all=True, append_images=frames[1:])
    source = open_source(DataConfig(source="image_folder", root=str(tmp_path), image_size=8))
    assert source.train.images[2][0, 0].tolist() == [250, 0, 0]
    (note,) = source.train.images.notes
    assert all(part in note for part in ("train: 1 animated", "zz.gif"))


def test_transparency_and_other_fourth_bands_are_noted(tmp_path: Path) -> None:
    write_folders(tmp_path, train=2, val=0)
    square("RGBA", (1, 2, 3, 255)).save(tmp_path / "train/ant/x.png")  # opaque: no note
    square("RGBA", (1, 2, 3, 9)).save(tmp_path / "train/ant/y.png")
    square("RGBX", (1, 2, 3, 9)).save(tmp_path / "train/ant/z.tif")
    transparency, fourth_band = open_photographs(tmp_path, image_size=8).notes[:2]
    assert all(part in transparency for part in ("train: 1", "transparency", "y.png"))
    assert all(part in fourth_band for part in ("train: 1", "fourth band", "z.tif"))


def test_cropping_keeps_the_middle_and_stretching_keeps_everything() -> None:
    wide = Image.fromarray(np.repeat(np.array([[10, 20, 30, 40]], np.uint8), 2, 0)).convert("RGB")  # 4 x 2
    assert resize_image(wide, (2, 2), "crop")[0, :, 0].tolist() == [20, 30]
    stretched = resize_image(wide, (2, 2), "stretch")[0, :, 0]
    assert stretched[0] < 20
    assert stretched[1] > 30


def bomb(width: int, height: int) -> bytes:
    """Return a PNG that promises many pixels and holds a few bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


def jpeg() -> bytes:
    """Return a photograph as a file."""
    file = io.BytesIO()
    photograph(1, (200, 10, 10)).save(file, "JPEG")
    return file.getvalue()


def png_with_a_flipped_bit() -> bytes:
    """Return a PNG whose checksum is wrong."""
    file = io.BytesIO()
    photograph(1, (200, 10, 10)).save(file, "PNG")
    content = bytearray(file.getvalue())
    content[len(content) // 2] ^= 1
    return bytes(content)


def floats() -> bytes:
    """Return a TIFF of floating point pixels, some of them NaN."""
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(file, "TIFF")
    return file.getvalue()


BAD_IMAGES: dict[str, tuple[str, bytes, str]] = {
    "bomb": ("png", bomb(9000, 9000), "9,000 x 9,000 pixels"),
    "larger bomb": ("png", bomb(60000, 60000), "decompression bomb"),
    "truncated": ("jpg", jpeg()[:-200], "damaged"),
    "bit-flipped": ("png", png_with_a_flipped_bit(), "damaged"),
    "text": ("png", b"hello", "not an image"),
    "empty": ("jpg", b"", "not an image"),
    "floats and NaN": ("tiff", floats(), "found 16"),
    "a program for a printer": (
        "png",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "not an image",
    ),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_image_stops_a_run_before_it_trains_or_is_left_out(tmp_path: Path, comp: Comp, name: str) -> None:
    ending, content, message = BAD_IMAGES[name]
    write_folders(tmp_path / "data", train=8, val=0, test=3)
    bad = tmp_path / f"data/train/bee/bad.{ending}"
    bad.write_bytes(content)
    path = write_config(tmp_path / "small.yaml", photographs_config(tmp_path / "data", "image_folder"))
    result = comp("data", "prepare", path)
    assert result.code == 2
    assert message in result.err
    assert str(bad) in result.err
    assert "data.skip_bad=true" in result.err
    printed = json.loads(comp("data", "prepare", path, "data.skip_bad=true", "--json").out)
    assert printed["train"] + printed["val"] == 24
    (note,) = printed["notes"]
    assert note.startswith("train: 1 unreadable file is")
    assert str(bad) in note


def test_a_bad_test_image_stops_a_run_before_it_trains(tmp_path: Path, comp: Comp) -> None:
    write_folders(tmp_path / "data", train=8, val=0, test=3)
    (tmp_path / "data/test/001.jpg").write_bytes(jpeg()[:-200])
    path = write_config(tmp_path / "small.yaml", photographs_config(tmp_path / "data", "image_folder"))
    result = comp("run", path)
    assert result.code == 2
    assert "001.jpg" in result.err
    assert "data.skip_bad=true" in result.err


def test_mixed_sizes_need_an_image_size_and_a_common_size_is_kept(tmp_path: Path) -> None:
    write_folders(tmp_path, train=2, val=0)
    with pytest.raises(DataError, match=r"40x30 .*32x48 .*data\.image_size"):
        open_source(DataConfig(source="image_folder", root=str(tmp_path)))
    for number, path in enumerate(sorted(tmp_path.glob("train/*/*"))):
        photograph(number, (9, 9, 9), (20, 10)).save(path)
    assert open_source(DataConfig(source="image_folder", root=str(tmp_path))).train.images.shape == (6, 10, 20, 3)


# --- results of a scan are cached


def open_photographs(root: Path, **data: object) -> Dataset:
    """Open a set of photographs without a suite."""
    values = photographs_config(root, "image_folder")
    values["competition"]["suite"] = {"source": "none"}
    values["data"].update(data)
    return open_dataset(configs.from_mapping(values, "here"))


def test_a_second_opening_decodes_nothing_and_a_changed_file_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folders(tmp_path, train=4, val=0)
    first = open_photographs(tmp_path)
    with monkeypatch.context() as forbidden:
        forbidden.setattr(decode, "_decode", lambda *arguments: pytest.fail("a file was decoded"))
        second = open_photographs(tmp_path)
    assert (first.mean, first.std, first.fingerprint) == (second.mean, second.std, second.fingerprint)
    photograph(99, (1, 2, 3)).save(tmp_path / "train/ant/000.png")
    assert open_photographs(tmp_path).fingerprint != first.fingerprint


@pytest.mark.parametrize("spoiled", ["", "{", "[1]"])
def test_a_damaged_cache_costs_time_only(tmp_path: Path, spoiled: str) -> None:
    write_folders(tmp_path, train=4, val=0)
    first = open_photographs(tmp_path)
    for path in (tmp_path / FOLDER).iterdir():
        path.write_text(spoiled)
    assert open_photographs(tmp_path).mean == first.mean


def test_an_unwritable_cache_costs_time_only(tmp_path: Path) -> None:
    write_folders(tmp_path, train=4, val=0)
    (tmp_path / FOLDER).write_text("a file where the folder would be")
    assert len(open_photographs(tmp_path).train) == 9


def test_the_statistics_are_those_of_the_decoded_training_images(tmp_path: Path) -> None:
    write_folders(tmp_path, train=4, val=0)
    dataset = open_photographs(tmp_path)
    pixels = np.asarray(dataset.train.images) / 255
    assert np.allclose(dataset.mean, pixels.mean((0, 1, 2)))
    assert np.allclose(dataset.std, pixels.std((0, 1, 2)))


# --- from end to end


def read_rows(path: Path) -> list[list[str]]:
    """Return a CSV's rows, read by the standard library."""
    return list(csv.reader(path.read_text().splitlines()))


def test_a_kaggle_set_goes_from_its_table_to_a_submission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comp: Comp
) -> None:
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "small.yaml", photographs_config(write_kaggle(tmp_path / "data"), "csv_images"))
    result = comp("run", "small.yaml", "train.epochs=6", "optim.lr=0.005")
    assert result.code == 0, result.err
    rows = read_rows(Path("submissions/small.csv"))
    assert rows[0] == ["image_id", "label"]
    assert [row[0] for row in rows[1:]] == [f"{index:03d}" for index in reversed(range(9))]
    names = list(COLOURS)
    correct = [row[1] == names[int(row[0]) % 3] for row in rows[1:]]
    assert sum(correct) >= 7, rows
    assert comp("check", "submissions/small.csv").code == 0
    Path("submissions/small.csv").write_text(
        Path("submissions/small.csv").read_text().replace(f",{rows[1][1]}", ",dog")
    )
    assert "ant, bee, cat" in comp("check", "submissions/small.csv").err
    assert comp("check", "submissions/small.csv", "--format", "small.yaml").code == 2
    assert the_run().provenance()["loading"] == "resident"


def test_probabilities_are_submitted_where_the_sample_has_a_column_for_each_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comp: Comp
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_kaggle(tmp_path / "data", train=24)
    (data / "sample_submission.csv").write_text(
        "image_id,cat,ant,bee\n" + "".join(f"{n:03d},0,0,1\n" for n in range(9))
    )
    write_config(tmp_path / "small.yaml", photographs_config(data, "csv_images"))
    result = comp("run", "small.yaml", "train.epochs=1", "competition.metric=log_loss")
    assert result.code == 0, result.err
    rows = read_rows(Path("submissions/small.csv"))
    assert rows[0] == ["image_id", "cat", "ant", "bee"]
    assert all(sum(map(float, row[1:])) == pytest.approx(1, abs=1e-4) for row in rows[1:])
    assert comp("check", "submissions/small.csv").code == 0
    text = Path("submissions/small.csv").read_text()
    Path("submissions/small.csv").write_text(text.replace(rows[1][1], "nan"))
    result = comp("check", "submissions/small.csv")
    assert result.code == 2
    assert "from 0 to 1" in result.err


def test_an_image_folder_runs_streamed_as_it_runs_resident_and_resumes_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    values = photographs_config(write_folders(tmp_path / "data", train=24, val=6, test=4), "image_folder")
    values["data"]["validation"] = "official"

    def config(**data: object) -> Config:
        return configs.from_mapping({**values, "data": {**values["data"], **data}}, "here")

    steps = 0

    def stop(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        nonlocal steps
        steps += unit == "steps"
        if steps == 3:
            raise Interrupted(15)

    resident = train.train(config(), runs_root=Path("resident"))
    streamed = train.train(config(loading="streamed", workers=2), runs_root=Path("streamed"))
    assert_same_weights(resident, streamed)
    assert streamed.provenance()["loading"] == "streamed"
    with pytest.raises(Interrupted):
        train.train(config(loading="streamed", workers=0), runs_root=Path("parts"), progress=stop)
    assert_same_weights(resident, train.resume(the_run(Path("parts"))))


@pytest.mark.slow
def test_workers_augment_image_files_and_a_rehearsal_goes_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comp: Comp
) -> None:
    monkeypatch.chdir(tmp_path)
    values = photographs_config(write_folders(tmp_path / "data", train=16, val=4, test=4), "image_folder")
    values["augment"] = {"policy": "photo", "albumentations": [{"name": "GaussNoise", "p": 0.5}]}
    write_config(tmp_path / "small.yaml", values)
    for workers in (0, 2):
        result = comp("run", "small.yaml", f"data.workers={workers}", "--runs", f"runs{workers}")
        assert result.code == 0, result.err
    assert_same_weights(the_run(Path("runs0")), the_run(Path("runs2")))
    result = comp("run", "small.yaml", "data.workers=0", "--rehearse", "--json")
    assert result.code == 0, result.err
    stages = json.loads(result.out)
    assert [stage["name"] for stage in stages][-2:] == ["check", "leaderboard"]


def test_another_class_order_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comp: Comp) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_kaggle(tmp_path / "data", train=24)
    write_config(tmp_path / "small.yaml", photographs_config(data, "csv_images"))
    assert comp("train", "small.yaml", "train.epochs=1").code == 0
    (data / "sample_submission.csv").write_text("image_id,cat,ant,bee\n000,0,0,1\n")
    (run,) = runs.list_runs(Path("runs"))
    result = comp("predict", run.path)
    assert result.code == 2
    assert all(part in result.err for part in (run.path.name, "classes", "order"))


def test_an_unlabelled_test_cannot_be_corrupted_and_a_missing_one_not_submitted(tmp_path: Path, comp: Comp) -> None:
    write_folders(tmp_path / "data", train=8, val=0, test=3)
    path = write_config(tmp_path / "small.yaml", photographs_config(tmp_path / "data", "image_folder"))
    result = comp("data", "prepare", path, "competition.suite.source=corrupt_test")
    assert result.code == 2
    assert "competition.suite.source=test" in result.err
    (tmp_path / "data/test").rename(tmp_path / "elsewhere")
    result = comp("data", "prepare", path)
    assert result.code == 2
    assert "competition.suite.source: test: image_folder" in result.err
