"""Values out of range are refused before training, each in one message; what passes the check trains and predicts."""

import math
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest

from comp import config as configs
from comp.augment.ops import OPS, OpRow
from comp.augment.policies import POLICIES
from comp.config import Config, space
from comp.inference.views import VIEWS
from comp.results import plots
from comp.runtime.errors import UserError
from comp.tracking.tracker import UNTRACKED
from comp.training.loop import DivergedError
from comp.training.schedules import SCHEDULES
from comp.tuning import create
from comp.tuning.samplers import sampler
from comp.tuning.study import suggest
from comp.workflows import build, checks
from comp.workflows.load import load_run
from comp.workflows.predict import predict_split
from comp.workflows.train import train
from tests.support.commands import Result
from tests.support.configs import small_config, write_arrays
from tests.support.faults import assert_fault

Comp = Callable[..., Result]

OP = "augment.ops=[{{name: {}, magnitude: {}}}]"
SEARCH = "tune.space={{{}}}"

# Overrides of small.yaml -> parts of the message.
VALUES: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "epochs": (["train.epochs=1000000000000"], ("train.epochs: expected at most 1000000,",)),
    "batch": (["train.batch_size=1000000000000"], ("train.batch_size: expected at most 1000000000,",)),
    "micro-batch": (["train.micro_batch=1000000000000"], ("train.micro_batch: expected at most",)),
    "budget": (["train.budget=" + "9" * 400 + "d"], ("train.budget: expected a time such as 90s", "at most 1000d")),
    "budget in exponents": (["train.budget=1e300s"], ("train.budget: expected a time such as 90s",)),
    "timeout": (["tune.timeout=99999999d"], ("tune.timeout: expected a time such as 90s",)),
    "image size": (["data.image_size=1000000"],
        ("data.image_size: expected a whole number of pixels from 8 to 4096",)),
    "input size": (
        ["model.stem=resize", "model.input_size=1000000"], ("model.input_size: expected a whole number of pixels",),
    ),
    "sizes": (["train.sizes={1: 1000000}"], ("train.sizes.1: expected at most 4096",)),
    "threads": (["train.threads=1000000000"], ("train.threads: expected at most 1024",)),
    "rate": (["optim.lr=1e300"], ("optim.lr: expected at most 1e+38",)),
    "rate of nothing": (["optim.lr=1e-300"], ("optim.lr: expected at least 1e-12",)),
    "rate of muon": (["optim.name=muon", "optim.aux_lr=1e300"], ("optim.aux_lr: expected at most",)),
    "decay": (["optim.weight_decay=1e30"], ("optim.weight_decay: expected at most 1000",)),
    "multipliers": (["optim.multipliers={'*': 1e30}"], ("optim.multipliers.*: expected at most 1000",)),
    "betas": (["optim.betas=[0.9, 1]"], ("optim.betas.1: expected less than 1",)),
    "clipping": (["optim.clip=value", "optim.clip_at=1e300"], ("optim.clip_at: expected at most 1000000000",)),
    "NaN betas": (["optim.args={betas: [.nan, 0.9]}"], ("optim.args.betas.0: expected a finite number",)),
    "one beta": (["optim.args={betas: [0.9]}"], ("optim.args: adamw",)),
    "betas of 2": (["optim.args={betas: [2, 3]}"], ("optim.args: adamw refuses",)),
    "eps": (["optim.args={eps: 1e300}"], ("optim.args.eps: expected a number from -1e+38",)),
    "large eps": (["optim.args={eps: 1e9}"], ("optim.args.eps: expected a number from -1e+06",)),
    "text for eps": (["optim.args={eps: small}"], ("optim.args: adamw",)),
    "negative eps": (["optim.args={eps: -1}"], ("optim.args: adamw",)),
    "timm's betas": (
        ["optim.name=lion", "optim.args={betas: [5, 0.9]}"], ("optim.args: lion refuses",),
    ),
    "timm's alpha": (
        ["optim.name=rmsproptf", "optim.args={alpha: -1e6}"], ("optim.args: rmsproptf refuses", "alpha"),
    ),
    "iterations": (["optim.name=muon", "optim.args={ns_steps: 1000}"], ("optim.args: muon refuses", "1 to 20")),
    "temperature": (
        ["train.teacher.runs=[runs/x]", "train.teacher.temperature=1e-300"],
        ("train.teacher.temperature: expected at least 0.01",),
    ),
    "share": (["train.teacher.runs=[runs/x]", "train.teacher.share=2"], ("train.teacher.share: expected at most 1",)),
    "gamma": (["train.loss=focal", "train.loss_args={gamma: 1e9}"], ("gamma: expected a number from 0 to 10",)),
    "class weight": (["train.class_weights={'0': 1e300}"], ("train.class_weights: 0: expected a number from 1e-06",)),
    "tiny class weight": (["train.class_weights={'0': 1e-300}"], ("train.class_weights: 0: expected", "from 1e-06")),
    "consistency": (["train.consistency_weight=1e300"], ("train.consistency_weight: expected at most 1000000",)),
    "average": (["train.average=ema", "train.ema_epochs=1e-300"], ("train.ema_epochs: expected at least 1e-06",)),
    "mixup": (["augment.mixup=1e300"], ("augment.mixup: expected at most 1000000000",)),
    "cutmix": (["augment.cutmix=-1e-5"], ("augment.cutmix: expected at least 0",)),
    "smoothing": (["train.label_smoothing=.nan"], ("train.label_smoothing: expected a finite number",)),
    "mean": (
        ["model.normalize={mean: [1e300, 0, 0], std: [1, 1, 1]}"],
        ("model.normalize: expected std from 1e-06 and mean from -1000 to 1000",),
    ),
    "deviation": (
        ["model.normalize={mean: [0, 0, 0], std: [1, 1, 1e-300]}"], ("model.normalize: expected std from 1e-06",),
    ),
    "range": (["data.range=[0, 1e-300]"], ("data.range: expected auto, type, or two numbers",)),
    "folds": (["data.folds=1000000000000"], ("data.folds: expected at most 1000000",)),
    "files": (
        ["competition.suite={source: distortion_files, path: x, files: 1000000000}"],
        ("competition.suite.files: expected at most 1000",),
    ),
    "seeds": (["tune.confirm.seeds=1000000000"], ("tune.confirm.seeds: expected at most 1000",)),
    "width": (["model.args={depth: 2, channels: 1000000000000}"], ("model.args.channels: expected at most 65536",)),
    "no width": (["model.args={depth: 2, channels: 0}"], ("model.args.channels: expected at least 1",)),
    "half a width": (["model.args={channels: 2.5}"],
        ("model.args.channels: expected a whole number, found the number",)),
    "a list of widths": (
        ["model.name=fully_connected", "model.args={hidden: [8, -1]}"], ("model.args.hidden: expected at least 1",),
    ),
    "too many layers": (
        ["model.name=residual_cnn", "model.args={blocks: 1000000000}"], ("model.args.blocks: expected at most 1000",),
    ),
    "channels beyond 64 bits": (
        ["model.name=residual_cnn", "model.args={blocks: 200, blocks_per_stage: 1}"],
        ("model.args: residual_cnn cannot be built",),
    ),
    "a word for a switch": (
        ["model.name=convnet", "model.args={batch_norm: no}"],
        ("model.args.batch_norm: expected true or false, found the text 'no'",),
    ),
    "weights beyond the memory": (
        ["model.name=fully_connected", "model.args={hidden: [" + "65536, " * 200 + "8]}"],
        ("model.name: the weights of fully_connected need 3,4", "GB of free memory", "smaller model.args"),
    ),
    "scale": (["model.name=fastnet", "model.args={scale: 1e9}"], ("model.args.scale: expected at most 1000",)),
    "timm's depths": (
        ["model.args={}", "model.name=resnet18", "model.timm={layers: [1000000000, 1, 1, 1]}"],
        ("model.timm.layers.0: expected a number from -65536 to 65536",),
    ),
    "views": (["predict.views_for=uncertain:0"], ("predict.views_for: expected `all`",)),
    "alpha": (["predict.alpha=.nan"], ("predict.alpha: expected a finite number",)),
    "predicted at once": (["predict.batch_size=1000000000000"], ("predict.batch_size: expected at most",)),
    "NaN magnitude": ([OP.format("noise", ".nan")], ("augment.ops.0.magnitude: expected a finite number",)),
    "crop": ([OP.format("crop", "[0, 3]")], ("augment.ops[0].magnitude: crop: expected a magnitude from 0 to 1",)),
    "mirrored crop": ([OP.format("crop_mirrored", 1)], ("crop_mirrored: expected a magnitude from 0 to 0.8",)),
    "signed noise": (
        ["augment.ops=[{name: noise, magnitude: 0.1, signed: true}]"],
        ("noise: expected magnitudes of both signs from 0 to 1 (sigma",),
    ),
    "bits": ([OP.format("posterize", 9)], ("posterize: expected a magnitude from 0 to 8 (bits kept, rounded)",)),
    "zoom": ([OP.format("zoom", -1)], ("zoom: expected a magnitude from 0 to 4",)),
    "degrees": ([OP.format("rotate", "1e12")], ("rotate: expected a magnitude from -360 to 360 (degrees)",)),
    "one of several": (
        ["augment.ops=[{name: flip}, {name: jpeg, magnitude: [50, 900]}]"], ("augment.ops[1].magnitude: jpeg",),
    ),
    "an endless search": ([SEARCH.format("optim.lr: {float: [1e-4, .inf]}")],
        ("optim.lr.float.1: expected a finite",)),
    "NaN steps": ([SEARCH.format("optim.momentum: {float: [0, 1], step: .nan}")],
        ("momentum.step: expected a finite",)),
    "no steps": ([SEARCH.format("optim.momentum: {float: [0, 1], step: 0}")], ("step: expected a number above 0",)),
    "steps back": ([SEARCH.format("optim.momentum: {float: [0, 1], step: -0.1}")],
        ("step: expected a number above 0",)),
    "a billion steps": (
        [SEARCH.format("optim.momentum: {float: [0, 1], step: 1e-9}")],
        ("optim.momentum: step: expected at most 1,000,000 steps", "take larger ones"),
    ),
    "log of zero": (
        [SEARCH.format("optim.weight_decay: {float: [0, 1], log: true}")], ("log: expected true or false", "above 0"),
    ),
    "a billion epochs": ([SEARCH.format("train.epochs: {int: [1, 1000000000]}")],
        ("train.epochs=1000000000 would be",)),
    "a magnitude": (
        [SEARCH.format("augment.ops: {choice: [[{name: crop, magnitude: 7}]]}")], ("tune.space: augment.ops[0]",),
    ),
    "a sampler's candidates": (
        [SEARCH.format("optim.lr: {float: [0.1, 1]}"), "tune.sampler_args={n_ei_candidates: 1000000000}"],
        ("tune.sampler_args.n_ei_candidates: expected a number from 0 to 100000",),
    ),
    "a pruner's start": (
        [SEARCH.format("optim.lr: {float: [0.1, 1]}"), "tune.pruner_args={n_startup_trials: -5}"],
        ("tune.pruner_args.n_startup_trials: expected a number from 0 to",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_a_value_out_of_range_is_refused_before_training(workplace: Path, comp: Comp, name: str) -> None:
    overrides, parts = VALUES[name]
    assert_fault(comp("config", "check", "small.yaml", *overrides), *parts)
    assert not Path("runs").exists()


def test_a_run_says_the_same(workplace: Path, comp: Comp) -> None:
    overrides = ["optim.args={eps: 1e9}"]
    assert comp("run", "small.yaml", *overrides).err == comp("config", "check", "small.yaml", *overrides).err


def test_every_policy_stays_within_the_ranges_of_its_ops() -> None:
    for policy in POLICIES.values():
        for op in policy.ops - {policy.crop}:
            low, high = OpRow(*OPS[op.name]).range
            assert all(low <= end <= high for end in (op.low, op.high, *([-op.low, -op.high] if op.signed else [])))


# What a config draws a key's value from: values in range, and values of which some are out of range.
Draw = Callable[[random.Random], Any]
BAD_NUMBERS = (math.nan, math.inf, -math.inf, 1e300, -1e300, 1e-300, 10**12, -1, 0, 2, "much", None, [], True)
MODELS: tuple[dict[str, Any], ...] = (
    {"name": "simple_cnn", "args": {"depth": 2, "channels": 4}},
    {"name": "fully_connected", "args": {"hidden": [8]}},
    {"name": "convnet", "args": {"batch_norm": True}},
    {"name": "residual_cnn", "args": {"blocks": 2, "width": 4}},
)
BAD_ARGUMENTS = (
    {"channels": 0}, {"channels": -3}, {"channels": "wide"}, {"hidden": []}, {"hidden": [0]}, {"hidden": 8},
        {"width": 1.5},
    {"blocks": 10**9}, {"blocks": 0}, {"blocks_per_stage": 0}, {"batch_norm": "no"}, {"activation": "none"},
        {"depth": 7},
)  # fmt: skip
GOOD_OPTIMIZERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("adamw", {}), ("adam", {"eps": 1e-6}), ("sgd", {"nesterov": False}), ("muon", {"ns_steps": 5}), ("lion", {}),
    ("nadamw", {"betas": [0.8, 0.9]}), ("lamb", {}), ("adopt", {}), ("rmsproptf", {}), ("adamw", {"amsgrad": True}),
)  # fmt: skip
BAD_OPTIMIZER_ARGUMENTS = (
    {"eps": math.nan}, {"eps": 1e300}, {"eps": -1}, {"eps": "x"}, {"eps": None}, {"eps": [1]}, {"betas": [0.9]},
        {"betas": 0.9},
    {"betas": [1, 1]}, {"betas": [-1, 2]}, {"betas": [0, 0]}, {"betas": [0.9, math.inf]}, {"nesterov": "no"},
        {"eps": 0},
    {"ns_steps": 0}, {"dampening": 1e5}, {"maximize": True}, {"weight_decay": 1}, {"foreach": True}, {"fused": "x"},
)  # fmt: skip


def within(low: float, high: float) -> Draw:
    return lambda rng: rng.choice((low, high, rng.uniform(low, high)))


def among(*values: Any) -> Draw:
    return lambda rng: rng.choice(values)


def rate(rng: random.Random) -> float:
    return 10 ** rng.uniform(-6, -0.5)


def op_in_range(rng: random.Random) -> list[dict[str, Any]]:
    name = rng.choice(sorted(OPS))
    low, high = OpRow(*OPS[name]).range
    ends = sorted(within(max(low, -1000), min(high, 1000))(rng) for _ in "ab")
    return [{"name": name, "magnitude": ends, "p": rng.choice((0, 0.5, 1))}]


def any_op(rng: random.Random) -> list[dict[str, Any]]:
    magnitude = rng.choice((*BAD_NUMBERS, [0, math.nan], [1, 2, 3], [-1000, 1000], 0.5, 40))
    return [{"name": rng.choice(sorted(OPS)), "magnitude": magnitude, "signed": rng.choice((False, True, True, "no"))}]


KEYS: dict[str, tuple[Draw, Draw]] = {
    "optim.lr": (rate, among(*BAD_NUMBERS)),
    "optim.schedule": (among(*SCHEDULES), among("cosin", 3)),
    "optim.warmup": (within(0, 1), among(*BAD_NUMBERS)),
    "optim.start_factor": (within(1e-3, 1), among(*BAD_NUMBERS)),
    "optim.final_factor": (within(0, 1), among(*BAD_NUMBERS)),
    "optim.weight_decay": (within(0, 0.5), among(*BAD_NUMBERS)),
    "optim.layer_decay": (within(0.1, 1), among(*BAD_NUMBERS)),
    "optim.momentum": (within(0, 0.99), among(*BAD_NUMBERS)),
    "optim.betas": (among([0.9, 0.99], [0, 0]), among([1, 1], [0.9], [0.9, math.nan], 0.9)),
    "optim.multipliers": (among({"*": 0.5}, {"classifier": 2}), among({"x": 1}, {"*": math.inf}, {"*": -1},
        {"*": 1e9})),
    "optim.ends": (among({"*": 1}), among({"*": 0}, {"nothing": 1})),
    "optim.lookahead": (among({"k": 2, "alpha": 0.5}, {"k": 10**9}), among({"k": -1}, {"k": 2, "alpha": 0},
        {"k": 1.5})),
    "optim.clip": (among("norm", "value", "adaptive"), among("none", "hard")),
    "optim.clip_at": (within(1e-6, 10), among(*BAD_NUMBERS)),
    "optim.aux_lr": (rate, among(*BAD_NUMBERS)),
    "optim.aux_decay": (within(0, 0.5), among(*BAD_NUMBERS)),
    "train.batch_size": (among(2, 4, 7, 16, 10**9), among(*BAD_NUMBERS)),
    "train.micro_batch": (among(2, 3, 10**9), among(*BAD_NUMBERS)),
    "train.label_smoothing": (within(0, 0.9), among(*BAD_NUMBERS)),
    "train.loss": (among("cross_entropy", "focal", "bce", "poly", "auto"), among("hinge", "mse", "asymmetric",
        "cumulative")),
    "train.loss_args": (among({}), among({"gamma": 3}, {"gamma": math.nan}, {"epsilon": 1e300},
        {"target_threshold": 0.2})),
    "train.class_weights": (
        among("balanced", "effective", {"0": 2.5}, {"1": 1e6, "2": 1e-6}),
        among({"0": 0}, {"9": 1}, {"0": 1e300}, {"0": math.nan}, {"0": None}, "rare"),
    ),
    "train.consistency": (among("none"), among("kl", "jsd")),
    "train.consistency_weight": (within(0, 50), among(*BAD_NUMBERS)),
    "train.sizes": (among({1: 16}, {2: 16}), among({0: 8}, {1: 4}, {1: 10**6}, {"a": 8})),
    "train.average": (among("ema", "swa", "soup"), among("mean")),
    "train.ema_epochs": (among(1e-6, 0.5, 1e6), among(*BAD_NUMBERS)),
    "train.swa_epochs": (among(1, 10**9), among(*BAD_NUMBERS)),
    "train.soup_epochs": (among(1, 10**9), among(*BAD_NUMBERS)),
    "train.patience": (among(1, 10**9), among(*BAD_NUMBERS)),
    "train.nan_retries": (among(0, 3), among(*BAD_NUMBERS)),
    "train.log_norms": (among(True), among("maybe")),
    "train.checkpoint_seconds": (among(0, 1e9), among(*BAD_NUMBERS)),
    "train.precision": (among("fp32", "bf16"), among("fp8", "fp16")),
    "train.select": (among("val_metric", "val_loss", "val_accuracy"), among("ood_metric", "best")),
    "data.sampling": (among("balanced", "sqrt"), among("rare")),
    "data.validation": (among(0.25, 8, "none"), among(*BAD_NUMBERS, 10**6, "official")),
    "data.folds": (among(2, 3), among(*BAD_NUMBERS, 10**6)),
    "data.fold": (among(0, 1), among(*BAD_NUMBERS)),
    "data.split_seed": (among(0, 2**32 - 1), among(*BAD_NUMBERS)),
    "augment.policy": (among(*POLICIES), among("basc", [], ["basic", "photo"])),
    "augment.ops": (op_in_range, any_op),
    "augment.mixup": (among(1e-300, 0.4, 1e9), among(*BAD_NUMBERS)),
    "augment.cutmix": (among(1e-9, 1.0, 1e9), among(*BAD_NUMBERS)),
    "augment.switch_probability": (within(0, 1), among(*BAD_NUMBERS)),
    "augment.mix_off_epochs": (among(0, 1, 10**9), among(*BAD_NUMBERS)),
    "predict.batch_size": (among(1, 7, 10**9), among(*BAD_NUMBERS)),
    "predict.views": (among(*VIEWS), among("flop")),
    "predict.views_for": (among("all", "uncertain:0.25"), among("uncertain:0", "uncertain:2", "some")),
    "predict.adapt": (among("bn", "tent", "roid"), among("dann")),
    "predict.prior": (among("none"), among("uniform", "evenly", "missing.csv")),
    "predict.pool": (among("none"), among("blocks", "files")),
    "competition.balance": (among("declared"), among("even")),
    "predict.alpha": (within(0, 1), among(*BAD_NUMBERS)),
    "predict.decide": (among("argmax", "auto"), among("temperature", "thresholds", "cut_points", "prior", "coin")),
    "competition.task": (among("single_label", "ordinal", "regression", "multi_label"), among("ranking")),
    "competition.metric": (among("accuracy", "log_loss", "macro_f1"), among("rmse", "acc", "map_at_5")),
    "competition.test_shares": (among({}), among({"0": 2}, {"0": 0.5, "1": 0.5}, {"0": math.nan})),
    "model.drop_rate": (within(0, 0.9), among(*BAD_NUMBERS)),
    "model.normalize": (
        among("dataset", "per_image", {"mean": [0.5] * 3, "std": [0.25] * 3}),
        among("pretrained", {"mean": [0.5], "std": [0.25]}, {"mean": [0] * 3, "std": [0, 1, 1]}, {"mean": [0] * 3}),
    ),
    "model.freeze": (among(["body"], ["*.0"]), among(["nothing"], [], "all_but_head", ["*"])),
    "model.stem": (among("stock"), among("cifar", "resize")),
    "seed": (among(0, 2**63 - 1), among(*BAD_NUMBERS, 2**63)),
}  # fmt: skip


def drawn(rng: random.Random, base: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain values of a config: seven keys in range, of which in two of five configs one or two of any kind."""
    tree: dict[str, Any] = {section: dict(values) for section, values in base.items()}
    name, args = rng.choice(GOOD_OPTIMIZERS)
    tree["model"], tree["optim"] = {**rng.choice(MODELS)}, {"name": name, "args": args, "clip": "norm"}
    keys = rng.sample(sorted(KEYS), 7)
    wrong = set(rng.sample(keys, rng.choice((0, 0, 0, 1, 2))))
    for key in keys:
        section, _, field = key.rpartition(".")
        values = tree.setdefault(section, {}) if section else tree
        values[field] = KEYS[key][key in wrong](rng)
    if rng.random() < 0.1:
        tree["optim"]["args"] = {**args, **rng.choice(BAD_OPTIMIZER_ARGUMENTS)}
    if rng.random() < 0.1:
        tree["model"]["args"] = {**tree["model"]["args"], **rng.choice(BAD_ARGUMENTS)}
    return tree


def check(config: Config, folder: Path) -> Any:
    """Check a config as `comp config check --data` does; return its data."""
    checks.check_config(config, folder / "runs")
    dataset = build.open_data(config)
    build.ready_model(config, dataset)
    return dataset


def base_config(folder: Path) -> dict[str, Any]:
    """Return sections of a config whose training is a step or two on images of 16 px."""
    values = small_config(write_arrays(folder / "data", train=24, test=8, size=16))
    values["competition"] = {
        "name": "drawn", "suite": {"source": "none"}, "ood_validation": {"severities": []},
    }  # fmt: skip
    values["train"] = {**values["train"], "epochs": 1, "batch_size": 12, "label_smoothing": 0}
    return {**values, "augment": {}}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_what_passes_the_check_trains_and_predicts_and_the_rest_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(plots, "_save", lambda figure, path: None)  # drawing takes four times as long as all the rest
    rng, base = random.Random(seed), base_config(tmp_path)
    trained = 0
    for number in range(100):
        tree = drawn(rng, base)
        try:
            config = configs.from_mapping(tree, "drawn")
            dataset = check(config, tmp_path)
        except UserError:
            continue
        try:
            run = train(config, name=str(number), runs_root=tmp_path / "runs", dataset=dataset, tracker=UNTRACKED)
            predict_split(load_run(run, dataset), "test")
        except DivergedError as error:  # an outcome, with its advice, and not a fault
            raise AssertionError(f"diverged: {tree}") from error
        except Exception as error:
            raise AssertionError(f"passes the check and fails: {tree}") from error
        trained += 1
    assert 30 <= trained <= 80, trained


SPACES: dict[str, Draw] = {
    "optim.lr": lambda rng: {"float": sorted(rng.choice((rate(rng), *BAD_NUMBERS[:8])) for _ in "ab")},
    "optim.momentum": lambda rng: {"float": [0.0, 0.9], "step": rng.choice((0.1, 0.3, 5, 1e-6, *BAD_NUMBERS))},
    "optim.weight_decay": lambda rng: {"float": [rng.choice((1e-6, 0, -1)), 0.1], "log": rng.choice((True, False, 1))},
    "train.epochs": lambda rng: {
        "int": [1, rng.choice((3, 10**6, 10**9, 2.5, math.inf))],
        "step": rng.choice((1, 2, 0.5)),
    },
    "train.batch_size": lambda rng: {"choice": rng.sample([8, 16, 32, 0, "x", None], 2)},
    "augment.mixup": lambda rng: {"float": [rng.choice((0.0, 0.1, 1e-5)), rng.choice((1.0, 1e4))]},
    "augment.policy": lambda rng: {"choice": rng.sample(["none", "basic", "augmix", "basc", ["basic", "cutout"]], 2)},
    "model.args": lambda rng: {"choice": [{"depth": 2}, {"depth": rng.choice((2, 3, 3, 3, 7))}]},
    "optim.name": lambda rng: {"choice": rng.sample(["adam", "sgd", "lion", "adamv"], 2)},
}


def searches(seed: int) -> Iterator[dict[str, Any]]:
    rng = random.Random(seed)
    for _ in range(60):
        entries = {path: SPACES[path](rng) for path in rng.sample(sorted(SPACES), rng.choice((1, 2)))}
        yield {"space": entries, "sampler": rng.choice(("tpe", "random", "qmc")), "pruner": "none"}


@pytest.mark.slow
def test_a_search_that_passes_the_check_proposes_valid_configs(tmp_path: Path) -> None:
    base, valid = base_config(tmp_path), 0
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for tune in searches(0):
        try:
            config = configs.from_mapping({**base, "augment": {"mixup": 0.2}, "tune": tune}, "drawn")
            checks.check_config(config, tmp_path / "runs")
            create.check_study(config)
        except UserError:
            continue
        entries = space.parse_space(config.tune)
        for number in range(5):
            study = optuna.create_study(sampler=sampler(config, number))
            proposed = space.apply_values(config, suggest(entries, config, study.ask()))
            checks.check_config(proposed, tmp_path / "runs")
        valid += 1
    assert 5 <= valid <= 50
