"""What workers do to training images: random resized crops while files are read, transforms of albumentations."""

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from comp import config as configs
from comp.augment import worker_stage
from comp.augment.ops import ALBUMENTATIONS_IMITATES, AlbumentationsOp, Policy
from comp.augment.policies import POLICIES, resolve
from comp.augment.worker_stage import WorkerStage
from comp.config import DataConfig
from comp.data import loading
from comp.data.corruptions import suite
from comp.data.images import ImageFiles, read_region
from comp.data.sources import open_source
from comp.data.splits import Split
from comp.results import runs
from comp.results.files import read_json
from comp.runtime import rng
from comp.runtime.errors import ConfigError, DataError, Interrupted
from comp.workflows import train
from tests.support.commands import Result, assert_refused, interrupt_at
from tests.support.configs import small_config, write_config
from tests.support.images import pictures
from tests.support.parameters import slow_except
from tests.support.photographs import photographs_config, write_folders
from tests.support.runs import assert_same_weights, history_without_clock, the_run

Comp = Callable[..., Result]
CPU = torch.device("cpu")
NOISE = {"name": "GaussNoise", "p": 0.7, "std_range": [0.1, 0.2]}
MIRROR = {"name": "HorizontalFlip", "p": 0.5}


def crop(**row: Any) -> Policy:
    """Return a policy of a random resized crop alone."""
    return resolve("none", [{"name": "random_resized_crop", **row}])


def files_in(folder: Path, size: int | tuple[int, int] = 16, resize: Any = "crop") -> Split:
    """Return the training split of photographs of several sizes."""
    if not folder.exists():
        write_folders(folder, train=8, val=0)
    section = DataConfig(source="image_folder", root=str(folder), image_size=size, resize=resize)
    return open_source(section).train


def array_split(count: int = 40, channels: int = 3) -> Split:
    """Return a split of small pictures in memory."""
    pixels = pictures(count, channels=channels).permute(0, 2, 3, 1).contiguous().numpy()
    return Split("train", pixels, np.array([str(n) for n in range(count)]), np.arange(count) % 4)


# --- random resized crops


@given(
    found=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    size=st.tuples(st.integers(8, 300), st.integers(8, 300)),
    shares=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)),
    seed=st.integers(0, 2**63 - 1),
    index=st.integers(0, 10**7),
)
def test_a_crop_lies_in_the_image_and_has_about_the_shape_asked_for(
    found: tuple[int, int], size: tuple[int, int], shares: tuple[float, float], seed: int, index: int
) -> None:
    low, high = sorted(shares)
    box = WorkerStage(crop(magnitude=[low, high]), seed).box(found, size, 1, index)
    assert box is not None
    left, top, right, bottom = box
    assert 0 <= left < right <= found[1]
    assert 0 <= top < bottom <= found[0]
    wide, tall, shape = right - left, bottom - top, size[1] / size[0]
    # Whole pixels: a side may be half a pixel off, and of a very flat image one pixel is all that there is.
    assert (wide - 1) / (tall + 1) <= shape * 4 / 3 * 1.001 or wide == 1
    assert (wide + 1) / (tall - 1 or 0.5) >= shape * 3 / 4 * 0.999 or tall == 1


def test_shares_of_the_area_and_places_are_uniform() -> None:
    draw = WorkerStage(crop(magnitude=[0.1, 0.5]), 0)
    boxes = np.array([draw.box((1000, 1000), (64, 64), 0, index) for index in range(5000)])
    wide, tall = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert stats.kstest(wide * tall / 1e6, stats.uniform(0.1, 0.4).cdf).pvalue > 1e-3
    aspects = np.log(wide / tall)
    assert stats.kstest(aspects, stats.uniform(np.log(3 / 4), 2 * np.log(4 / 3)).cdf).pvalue > 1e-3
    assert stats.kstest(boxes[:, 0] / (1000 - wide), stats.uniform.cdf).pvalue > 1e-3
    assert stats.kstest(boxes[:, 1] / (1000 - tall), stats.uniform.cdf).pvalue > 1e-3


def test_an_image_too_long_for_any_crop_gives_its_middle() -> None:
    whole = WorkerStage(crop(magnitude=1), 0)
    assert whole.box((100, 1000), (32, 32), 1, 0) == (433, 0, 566, 100)
    assert whole.box((1000, 100), (32, 32), 1, 0) == (0, 433, 100, 566)
    assert whole.box((100, 200), (32, 64), 1, 0) == (0, 0, 200, 100)


def test_a_probability_leaves_the_others_as_they_are_configured() -> None:
    draw = WorkerStage(crop(p=0.25, magnitude=[0.1, 0.2]), 0)
    taken = sum(draw.box((50, 50), (8, 8), 1, index) is not None for index in range(4000))
    assert stats.binomtest(taken, 4000, 0.25).pvalue > 1e-3


def test_files_are_cropped_before_they_are_resized(tmp_path: Path) -> None:
    board = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    for name in ("ant", "bee"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.fromarray(board).convert("RGB").save(tmp_path / "train" / name / "board.png")
    split = files_in(tmp_path, 32)
    plain = split.images[0]
    cropped = loading.read_training_image(split.images, 0, 1, worker_stage.build(crop(magnitude=[0.004, 0.006]), 0))
    assert plain.std() < 5  # a checkerboard of single pixels is grey when it is shrunk
    assert cropped.std() > 30  # its parts of about 18 x 18 pixels are not shrunk
    assert cropped.shape == plain.shape == (32, 32, 3)


@pytest.mark.parametrize("resize", ["crop", "stretch", "letterbox"])
@pytest.mark.parametrize("size", [16, (16, 24)])
def test_files_and_arrays_of_one_size_give_the_same_crops(tmp_path: Path, size: Any, resize: str) -> None:
    height, width = (size, size) if isinstance(size, int) else size
    pixels = np.random.default_rng(0).integers(0, 256, (6, height, width, 3), np.uint8)
    for number, image in enumerate(pixels):
        path = tmp_path / "train" / ("ant", "bee")[number // 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    split, transform = files_in(tmp_path, size, resize), worker_stage.build(resolve("photo"), 3)
    for row in range(6):
        ours, theirs = (loading.read_training_image(images, row, 2, transform) for images in (pixels, split.images))
        assert np.array_equal(ours, theirs)
        assert not np.array_equal(ours, pixels[row])


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_every_channel_of_an_array_is_cropped_alike(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 20, 28, channels), np.uint8)
    box = (2.0, 3.0, 19.0, 15.0)
    done = read_region(pixels, 0, lambda found, size: box)
    assert done.shape == (20, 28, channels)
    for channel in range(channels):
        alone = Image.fromarray(pixels[0, ..., channel]).resize((28, 20), Image.Resampling.BILINEAR, box=box)
        assert np.array_equal(done[..., channel], np.asarray(alone))


def test_a_missing_image_stays_grey(tmp_path: Path) -> None:
    files = files_in(tmp_path / "data").images
    assert isinstance(files, ImageFiles)
    gone = ImageFiles(np.array([""]), files.size, files.resize, 0, "")
    assert (loading.read_training_image(gone, 0, 1, worker_stage.build(resolve("photo"), 0)) == 128).all()


def test_two_crops_of_one_image_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"random_resized_crop .* 2 times"):
        resolve("photo", [{"name": "random_resized_crop"}])
    with pytest.raises(ConfigError, match=" 2 times"):
        resolve(["photo", "photo"])
    with pytest.raises(ConfigError, match=r"augment.ops\[0\].magnitude: .* 0\.0"):
        crop(magnitude=0)


def test_photo_is_a_crop_then_flips_and_jitter_on_the_batch() -> None:
    policy = resolve(["photo", "cutout"])
    assert policy.crop == POLICIES["photo"].crop
    assert policy.stages == POLICIES["photo"].stages + POLICIES["cutout"].stages
    assert policy.imitates == {"brightness", "contrast", "saturate"}
    assert worker_stage.build(resolve(["basic", "robust"]), 0) is None  # images are only read


# --- transforms of albumentations


def test_transforms_run_by_name_and_repeat_their_draws() -> None:
    policy = resolve("none", (), [NOISE])
    assert policy.imitates == {"gaussian_noise"}
    images = array_split().images
    transform = WorkerStage(policy, 0)
    noisy = [transform(image, 1, index) for index, image in enumerate(images)]
    again = [transform(image, 1, index) for index, image in enumerate(images)]
    assert all(np.array_equal(one, other) for one, other in zip(noisy, again, strict=True))
    touched = sum(not np.array_equal(one, other) for one, other in zip(noisy, images, strict=True))
    assert stats.binomtest(touched, len(images), 0.7).pvalue > 1e-3
    assert any(not np.array_equal(transform(images[7], epoch, 7), noisy[7]) for epoch in (2, 3, 4))
    assert any(not np.array_equal(WorkerStage(policy, seed)(images[7], 1, 7), noisy[7]) for seed in (1, 2, 3))


def test_transforms_draw_independently_of_each_other() -> None:
    transform = WorkerStage(resolve("none", (), [MIRROR, {"name": "VerticalFlip", "p": 0.5}]), 0)
    image = np.arange(4, dtype=np.uint8).reshape(2, 2, 1)
    kinds = np.unique([transform(image, 1, index).flatten() for index in range(2000)], axis=0, return_counts=True)[1]
    assert len(kinds) == 4
    assert stats.chisquare(kinds).pvalue > 1e-3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"p": 0.5}, r"augment.albumentations\[0\]: expected `name`"),
        ({"name": "GaussNoise", "p": 2}, r"augment.albumentations\[0\].p: expected a probability"),
        ({"name": "brightness"}, r"augment.albumentations\[0\]: brightness is an op.*move it to augment.ops"),
        ({"name": "GausNoise"}, "albumentations has no transform 'GausNoise'.*did you mean 'GaussNoise'"),
        ({"name": "Compose"}, "augment.albumentations: Compose "),
        ({"name": "GaussNoise", "sigma": 1}, "GaussNoise has no argument 'sigma'.*it takes std_range"),
        ({"name": "VerticalFlip", "limit": 30}, "VerticalFlip has no argument 'limit'; it takes none"),
        ({"name": "HorizontalFlip", "strict": False}, "HorizontalFlip has no argument 'strict'"),
        ({"name": "GaussNoise", "std_range": 3}, "augment.albumentations: GaussNoise(?!.*pydantic)"),
    ],
)
def test_wrong_rows_are_named(row: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        WorkerStage(resolve("none", (), [row]), 0)


def test_what_changes_the_size_or_the_type_is_refused_by_trying() -> None:
    shape = (3, 32, 48)
    with pytest.raises(ConfigError, match=r"RandomResizedCrop: expected images \[32, 48, 3\] uint8.*\[16, 16, 3\]"):
        worker_stage.check_image_shape(
            resolve("none", (), [{"name": "RandomResizedCrop", "size": [16, 16], "p": 0.1}]), shape
        )
    with pytest.raises(ConfigError, match=r"ToFloat: expected .* float32"):
        worker_stage.check_image_shape(resolve("none", (), [{"name": "ToFloat"}]), shape)
    with pytest.raises(ConfigError, match="CenterCrop cannot take images of 3 channels, 32 x 48"):
        worker_stage.check_image_shape(resolve("none", (), [{"name": "CenterCrop", "height": 64, "width": 64}]), shape)
    back = [{"name": "CenterCrop", "height": 16, "width": 16}, {"name": "Resize", "height": 32, "width": 48}]
    worker_stage.check_image_shape(resolve("none", (), [NOISE, *back]), shape)


def test_a_size_that_changes_now_and_then_ends_the_training_with_one_message() -> None:
    transform = worker_stage.build(resolve("none", (), [{"name": "RandomScale", "scale_limit": [0.5, 0.6], "p": 1}]), 0)
    batches = loading.StreamedLoader(array_split(), CPU, workers=0, transform=transform).batches(
        torch.arange(40), 8, epoch=1
    )
    with pytest.raises(DataError, match=r"augment.albumentations: an image \[32, 32, 3\] uint8 came back as"):
        next(batches)


def test_names_that_imitate_the_suite_exist() -> None:
    assert frozenset().union(*ALBUMENTATIONS_IMITATES.values()) <= set(suite.NAMES)
    for name in ALBUMENTATIONS_IMITATES:
        WorkerStage(Policy((), albumentations=(AlbumentationsOp(name, 1.0, "{}"),)), 0)


def test_albumentations_is_loaded_where_it_is_used_alone_and_asks_no_network() -> None:
    code = (
        "import os, sys; os.environ.pop('NO_ALBUMENTATIONS_UPDATE', None)\n"
        "from comp.augment.policies import resolve\n"
        "from comp.augment import worker_stage\n"
        "worker_stage.build(resolve('photo'), 0); assert 'albumentations' not in sys.modules\n"
        "worker_stage.build(resolve('none', (), [{'name': 'HorizontalFlip'}]), 0); assert 'albumentations' "
        "in sys.modules\n"
        "assert os.environ['NO_ALBUMENTATIONS_UPDATE'] == '1'"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- in workers, in runs

EVERYTHING = resolve("photo", (), [NOISE, MIRROR])


def pixels_of(split: Split, workers: int, start: int = 0) -> torch.Tensor:
    loader = loading.build_loader(
        split, CPU, resident=True, workers=workers, transform=worker_stage.build(EVERYTHING, 5)
    )
    order = rng.order(5, 2, len(split))
    return torch.cat([batch.images for batch in loader.batches(order, 5, epoch=2, start=start)])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores, here on purpose
@pytest.mark.parametrize("kind", ["files", "arrays", "grey arrays"])
def test_neither_workers_nor_a_start_in_mid_epoch_change_a_pixel(tmp_path: Path, kind: str) -> None:
    split = files_in(tmp_path / "data") if kind == "files" else array_split(channels=1 if kind[0] == "g" else 3)
    alone = pixels_of(split, 0)
    assert len(alone) == len(split) // 5 * 5
    for workers in (2, 3):
        assert torch.equal(alone, pixels_of(split, workers))
    assert torch.equal(alone[10:], pixels_of(split, 2, start=2))


def test_a_spawned_worker_does_the_same() -> None:
    here, images = WorkerStage(EVERYTHING, 3), array_split().images
    there = pickle.loads(pickle.dumps(here))
    for index in reversed(range(len(images))):
        assert np.array_equal(here(images[index], 1, index), there(images[index], 1, index))
        assert here.box((30, 40), (32, 32), 1, index) == there.box((30, 40), (32, 32), 1, index)


def test_photographs_train_alike_however_they_are_loaded_and_resume_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    values = photographs_config(write_folders(tmp_path / "data", train=24, val=6), "image_folder")
    values["competition"]["suite"] = {"source": "none"}
    values["augment"] = {"policy": "photo", "albumentations": [NOISE]}
    values["train"]["batch_size"] = 16  # three steps an epoch

    def config(**data: object) -> configs.Config:
        return configs.from_mapping({**values, "data": {**values["data"], **data}}, "here")

    here = train.train(config(workers=0), runs_root=Path("here"))
    streamed = train.train(config(loading="streamed", workers=2), runs_root=Path("streamed"))
    assert_same_weights(here, streamed)
    assert history_without_clock(here) == history_without_clock(streamed)  # validation is read as configured
    with pytest.raises(Interrupted):
        train.train(config(workers=2), runs_root=Path("parts"), progress=interrupt_at(5))
    assert_same_weights(here, train.resume(the_run(Path("parts"))))


@pytest.mark.parametrize("consistency", slow_except(["none", "jsd"], "jsd"))
def test_arrays_train_with_transforms_by_command(workplace: Path, comp: Comp, consistency: str) -> None:
    values = small_config(workplace / "data")
    values["augment"] = {"policy": ["photo", "augmix"], "albumentations": [NOISE]}
    values["train"]["consistency"] = consistency
    write_config(workplace / "small.yaml", values)
    for workers in (0, 2):
        done = comp("train", "small.yaml", f"data.workers={workers}", "--runs", f"runs{workers}")
        assert done.code == 0, done.err
    one, other = the_run(Path("runs0")), the_run(Path("runs2"))
    assert_same_weights(one, other)
    assert "gaussian_noise" in one.metrics().test_like
    assert one.config().augment.albumentations[0]["name"] == "GaussNoise"
    assert comp("data", "show", "small.yaml", "--augment").code == 0


def test_what_cannot_be_trained_with_is_refused_before_a_run_is_made(workplace: Path, comp: Comp) -> None:
    small = "augment.albumentations=[{name: RandomResizedCrop, size: [16, 16]}]"
    assert_refused(comp("train", "small.yaml", small), "RandomResizedCrop", "expected images [32, 32, 3] uint8")
    moved = "augment.ops=[{name: GaussNoise, p: 0.5}]"
    assert_refused(comp("config", "check", "small.yaml", moved), "move it to augment.albumentations")
    rule = "competition.rules.test_like_augmentation=false"
    noise = "augment.albumentations=[{name: GaussNoise}]"
    assert_refused(comp("config", "check", "small.yaml", rule, noise), "gaussian_noise")
    assert not Path("runs").exists()


def test_a_search_may_choose_among_transforms(workplace: Path, comp: Comp) -> None:
    values = small_config(workplace / "data")
    values["tune"] = {"space": {"augment.albumentations": {"choice": [[], [NOISE], [MIRROR, NOISE]]}}}
    write_config(workplace / "small.yaml", values)
    assert comp("config", "check", "small.yaml").code == 0
    values["tune"]["space"]["augment.albumentations"]["choice"].append([{"name": "GausNoise"}])
    write_config(workplace / "small.yaml", values)
    assert_refused(comp("config", "check", "small.yaml"), "tune.space", "no transform 'GausNoise'")


# --- runs from when there were two engines


def aged(run: runs.Run, engine: str, recorded: str) -> None:
    """Give a run the config and the record that such runs have."""
    path = run.path / "config.yaml"
    path.write_text(path.read_text().replace("augment:\n", f"augment:\n  engine: {engine}\n", 1))
    record = {**read_json(run.path / "execution.json"), "engine": recorded}
    run.write_json("execution.json", record)
    run.write_json("provenance.json", {**run.provenance(), "config_hash": run.config_hash()})


@pytest.mark.parametrize(
    ("engine", "recorded", "goes_on"),
    [
        ("auto", "per_batch", True),
        pytest.param("per_batch", "per_batch", True, marks=pytest.mark.slow),
        pytest.param("auto", "per_image", False, marks=pytest.mark.slow),
        ("per_image", "per_image", False),
    ],
)
def test_what_the_gone_engine_began_is_not_gone_on_with(
    workplace: Path, comp: Comp, engine: str, recorded: str, goes_on: bool
) -> None:
    config = configs.load("small.yaml")
    whole = train.train(config, runs_root=Path("whole"))
    with pytest.raises(Interrupted):
        train.train(config, runs_root=Path("parts"), progress=interrupt_at(3))
    stopped = the_run(Path("parts"))
    for run in (whole, stopped):
        aged(run, engine, recorded)
    resumed = comp("train", "--resume", stopped.path)
    repeated = comp("run", "--as", whole.path, "--runs", "again", "-o", "again.csv")
    if goes_on:
        assert resumed.code == 0, resumed.err
        assert_same_weights(whole, the_run(Path("parts")))
        assert_same_weights(whole, the_run(Path("again")))
        assert repeated.code == 0, repeated.err
        assert "engine" not in read_json(the_run(Path("again")).path / "execution.json")
    else:
        assert_refused(resumed, "augment.engine=per_image")
        assert_refused(repeated, "augment.engine=per_image")
        cure = resumed.err.rpartition("comp ")[2].split()
        assert comp(*cure, "--runs", "anew", "-o", "anew.csv").code == 0
        assert_same_weights(whole, the_run(Path("anew")))
    predicted = comp("predict", whole.path, "-o", "old.csv")
    assert predicted.code == 0, predicted.err


def test_the_gone_engine_is_refused_in_a_config_and_the_other_accepted(workplace: Path, comp: Comp) -> None:
    refused = comp("config", "check", "small.yaml", "augment.engine=per_image")
    assert_refused(refused, "override 'augment.engine'", "leave the key out", "augment.albumentations")
    for engine in ("auto", "per_batch"):
        assert comp("config", "check", "small.yaml", f"augment.engine={engine}").code == 0
    assert "engine:" not in configs.dump(configs.load("small.yaml", ["augment.engine=per_batch"]))


def test_hashes_are_what_they_were_when_there_were_two_engines() -> None:
    """Taken then, of the defaults and of both choices."""
    hashes = {"per_batch": "8449770b8733910c", "per_image": "1167d0d2523771f4"}
    assert configs.fingerprint(configs.Config()) == hashes["per_batch"]
    for engine, expected in hashes.items():
        assert configs.fingerprint(configs.from_mapping({"augment": {"engine": engine}}, "here")) == expected
