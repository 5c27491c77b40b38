"""`comp data shift`: how the test differs from the training images, what it looks like, and what to change."""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.config import Config, ModelConfig
from comp.data.corruptions.recognise import Recogniser, Verdict
from comp.data.corruptions.suite import SMALLEST
from comp.data.dataset import Dataset, open_dataset
from comp.data.shift_features import Property, compare_properties, plain_features
from comp.data.splits import Split, Suite
from comp.inference.probe import network_features
from comp.models import weights, zoo
from comp.results import analysis, files, leaderboard, plots, stats
from comp.results.analysis import Agreement
from comp.results.runs import Run
from comp.results.stats import AUC
from comp.runtime import cores, device, escape, rng
from comp.runtime.device import Execution
from comp.runtime.errors import ConfigError, ModelError
from comp.runtime.memory import MicroBatch
from comp.runtime.progress import Progress, quiet
from comp.workflows.load import LoadedRun, load_run
from comp.workflows.shift_advice import Suggestion, suggest

SPLITS = ("auto", "suite", "test")
_SAMPLE_KEY, _CORRUPTION_KEY = 7_001, 7_002  # of random numbers, apart from those of splits and suites
_PER_BLOCK = 100  # images of a block that are judged
_MOST_BYTES = 1 << 29  # of decoded images on each side
_LARGEST = 320  # px: under every corruption, larger images would take minutes
_BATCH = 250
_FOLDS = 5
_COMPONENTS = 64  # principal components of the features that the classifier sees
_SIDES = (96, 160)  # px: smaller and larger images are resized for a pretrained network
_SHOWN = 12  # images in a row of the sheet
_LEAST = 20  # images on each side: fewer give no fold enough of both
# AUC -> what it means; the interval's lower end must pass 0.5 for more than the first.
_MEANINGS = ((0.95, "almost disjoint"), (0.75, "far apart"), (0.6, "clearly different"), (0.0, "slightly different"))
ALIKE = "no difference found"


@dataclass(frozen=True)
class ShiftCard:
    """How a test differs from training images.

    Attributes:
        competition: its name.
        reference: the compared training images: `train`, or `val`, which the network of a run has not seen.
        test: the compared test: `test`, or `suite` with its blocks.
        counts: images compared, of both.
        features: what the classifier sees.
        auc: of telling both apart, out of fold.
        meaning: of the AUC, in words.
        test_like: ids of a sample of training images, most like test first, and their probability of being test.
        properties: of pixels and files, what differs first.
        verdicts: what each block looks like; of a plain test, the one key `test`.
        recognised: held-out blocks of training images whose corruption was recognised, and all of them.
        suggestions: keys to change, and why.
        agreements: rank correlation of validation with recorded public scores.
        scored: submissions with a public score.
        notes: to the user.
        sheet: images [4, n, H, W, C] for `SHEET_ROWS`.
    """

    competition: str
    reference: str
    test: str
    counts: tuple[int, int]
    features: str
    auc: AUC
    meaning: str
    test_like: tuple[tuple[str, float], ...]
    properties: tuple[Property, ...]
    verdicts: Mapping[str, Verdict]
    recognised: tuple[int, int]
    suggestions: tuple[Suggestion, ...]
    agreements: tuple[Agreement, ...]
    scored: int
    notes: tuple[str, ...]
    sheet: NDArray[np.uint8]

    def to_json(self) -> dict[str, Any]:
        """Return plain values, with the ten training images most like test."""
        values = {name: value for name, value in vars(self).items() if name not in ("sheet", "verdicts", "auc")}
        return {
            **values,
            "auc": self.auc.value,
            "auc_interval": [self.auc.interval.low, self.auc.interval.high],
            "test_like": [{"id": name, "probability": score} for name, score in self.test_like[:10]],
            "properties": [asdict(row) for row in self.properties],
            "verdicts": {name: {**vars(verdict), "share": verdict.share} for name, verdict in self.verdicts.items()},
            "suggestions": [asdict(row) for row in self.suggestions],
            "agreements": [{**asdict(row), "trusted": row.interval.low > 0} for row in self.agreements],
        }


SHEET_ROWS = ("train, least test-like", "train, most test-like", "test, most train-like", "test, least train-like")


@dataclass(frozen=True)
class _Samples:
    """Images to compare, decoded.

    Attributes:
        reference: `train`, or `val` for a run's network.
        train: for the list of test-like images and for learning corruptions; it may be `reference`.
        test: spread over all blocks.
        groups: [len(test)], equal for copies of one image in several blocks.
        blocks: name -> images to judge.
        files: `reference` and `test` before they were decoded.
    """

    reference: Split
    train: Split
    test: Split
    groups: NDArray[np.int64]
    blocks: Mapping[str, NDArray[np.uint8]]
    files: tuple[Split, Split]


def measure_shift(
    source: Config | Run,
    *,
    split: str = "auto",
    images: int = 2000,
    runs_root: Path = Path("runs"),
    device_name: str = "",
    progress: Progress = quiet,
) -> ShiftCard:
    """Return the shift card of a config, or of a run, whose network gives the features.

    Args:
        source: a config, or a run trained to the end.
        split: `suite`: what is submitted; `test`: the clean test; auto: the suite if there is one.
        images: of each side, a seeded sample.
        runs_root: where runs with recorded public scores are.
        device_name: to compute a network's features on; empty: the run's, or the config's.
        progress: called while images are read and measured.

    Raises:
        UserError: data without a test, a wrong option, or what opening the data or the run raises.
    """
    if images < _LEAST:
        raise ConfigError(f"--images: expected at least {_LEAST}, found {images}")
    config, dataset, loaded, notes = _open(source, device_name, progress)
    target = _choose_target(dataset, split)
    images = max(_LEAST, min(images, _MOST_BYTES // math.prod(dataset.train.image_shape)))
    samples = _take_samples(dataset, target, images, unseen=loaded is not None, progress=progress)
    if dataset.train.groups is not None:
        notes.append("one image of each group is compared (data.group_answer)")
    name, extract = _choose_features(config, dataset, loaded, device_name, notes)
    reference, test = (extract(part, progress) for part in (samples.reference, samples.test))
    separated = _separate(reference, test, samples.groups)
    same = samples.train is samples.reference
    train_scores = separated.first if same else separated.score(extract(samples.train, progress))
    order = np.argsort(-train_scores, kind="stable")
    verdicts, recognised = _recognise(samples, config, notes, progress)
    properties = compare_properties(samples.reference, samples.test, samples.files, progress)
    meaning = _meaning(separated.auc)
    suggestions: Sequence[Suggestion] = ()
    if not config.competition.rules.transductive:
        notes.append("competition.rules.transductive=false: the card describes the test, but suggests nothing from it")
    elif split == "test" and isinstance(dataset.suite, Suite):
        notes.append("suggestions are only made for what is submitted: --split suite")
    else:
        suggestions = suggest(config, dataset, verdicts, properties, alike=meaning == ALIKE)
    agreements, scored = _agreements(config, dataset, runs_root)
    return ShiftCard(
        competition=config.competition.name,
        reference=samples.reference.name,
        test=target.name,
        counts=(len(samples.reference), len(samples.test)),
        features=name,
        auc=separated.auc,
        meaning=meaning,
        test_like=tuple((str(samples.train.ids[row]), float(train_scores[row])) for row in order),
        properties=tuple(properties),
        verdicts=verdicts,
        recognised=recognised,
        suggestions=tuple(suggestions),
        agreements=tuple(agreements),
        scored=scored,
        notes=tuple(notes),
        sheet=_sheet(samples, order, np.argsort(separated.second, kind="stable")),
    )


def _open(
    source: Config | Run, device_name: str, progress: Progress
) -> tuple[Config, Dataset, LoadedRun | None, list[str]]:
    """Return config, data, the run whose network is used, and notes."""
    if isinstance(source, Config):
        return source, open_dataset(source, progress), None, []
    loaded = load_run(source, progress=progress, device=device_name)
    dataset = loaded.dataset
    if dataset.val is not None and len(dataset.val) >= _LEAST:
        return loaded.config, dataset, loaded, [loaded.note] if loaded.note else []
    note = "the run has no validation images, and its network has seen all others: it is not used"
    return loaded.config, dataset, None, [note]


def _choose_target(dataset: Dataset, split: str) -> Split | Suite:
    """Return what training images are compared with."""
    if split not in SPLITS:
        raise ConfigError(f"--split: expected one of {', '.join(SPLITS)}, found '{split}'")
    chosen = dataset.test if split == "test" else dataset.suite
    if split == "auto" and chosen is None:
        chosen = dataset.test
    if chosen is None or not len(chosen):
        raise ConfigError(
            f"{dataset.competition.name}: no test images to compare with (--split {split}); set "
            "competition.suite.source, and the keys of the test in section data"
        )
    return replace(chosen, name="test") if isinstance(chosen, Split) else chosen


def _take_samples(
    dataset: Dataset, target: Split | Suite, images: int, *, unseen: bool, progress: Progress
) -> _Samples:
    drawn = _sample(dataset, dataset.train, images)
    train = reference = drawn.decoded(progress)
    if unseen:
        assert dataset.val is not None
        drawn = _sample(dataset, dataset.val, images)
        reference = drawn.decoded(progress)
    if isinstance(target, Split):
        drawn_test = _sample(dataset, target, images)
        test = drawn_test.decoded(progress)
        groups, blocks = np.arange(len(test)), {target.name: np.asarray(test.images)}
    else:
        test, groups, blocks = _sample_blocks(dataset, images, progress)
        drawn_test = test
    samples = _Samples(reference, train, test, groups, blocks, (drawn, drawn_test))
    for name, part in (("training", reference), ("test", samples.test)):
        if len(part) < _LEAST:
            raise ConfigError(f"{dataset.competition.name}: needs {_LEAST} or more {name} images, found {len(part)}")
    return samples


def _sample(dataset: Dataset, split: Split, count: int) -> Split:
    """Return a stratified sample in random order, without missing images; of groups the first image of each.

    Images of a group are alike: one that is recognised, or that counts several times, is no shift.
    """
    rows = np.arange(len(split)) if split.blank is None else np.flatnonzero(~split.blank)
    readable = split if split.blank is None else split.take(rows, split.name)
    if readable.groups is not None:
        readable = replace(readable.take(readable.groups.first, split.name), groups=None)
    sampled = dataset.sample(readable, count)
    draw = np.random.default_rng(rng.key(dataset.split_seed, _SAMPLE_KEY))
    return readable.take(draw.permutation(sampled), split.name)


def _sample_blocks(
    dataset: Dataset, images: int, progress: Progress
) -> tuple[Split, NDArray[np.int64], dict[str, NDArray[np.uint8]]]:
    """Return images spread over the suite's blocks, their rows in the blocks, and images of each block."""
    suite = dataset.limited(images, _PER_BLOCK).suite
    assert isinstance(suite, Suite)
    share = max(1, -(-images // len(suite.blocks)))
    blocks, parts, rows = {}, [], []
    for number, block in enumerate(suite.blocks):
        opened = suite.open(block)
        blocks[block.name] = np.asarray(opened.images)
        taken = (np.arange(min(share, len(opened))) + number * share) % len(opened)
        parts.append(opened.take(taken, "suite"))
        rows.append(taken)
        progress("blocks", number + 1, len(suite.blocks), "blocks")
    pixels = np.concatenate([np.asarray(part.images) for part in parts])
    test = Split("suite", pixels, np.concatenate([part.ids for part in parts]), None)
    return test, np.concatenate(rows), blocks


_Extract = Callable[[Split, Progress], NDArray[np.float32]]


def _choose_features(
    config: Config, dataset: Dataset, loaded: LoadedRun | None, device_name: str, notes: list[str]
) -> tuple[str, _Extract]:
    """Return the name of the features and their function: of the run, of pretrained weights, or without a network."""
    if loaded:
        model, execution, name = loaded.model, loaded.execution, f"the network of {loaded.run.name}"
    else:
        folder = Path(config.data.root) / "weights"
        network = _local_network(config, folder)
        if not network:
            return "image statistics and 8 x 8 thumbnails", plain_features
        channels, height, width = dataset.competition.image_shape
        side = min(max(_SIDES[0], min(height, width)), _SIDES[1])
        section = ModelConfig(name=network, pretrained=True, stem="resize", input_size=side)
        shape = (channels, height, width)
        try:
            model = zoo.build(
                section, classes=2, image_shape=shape, mean=dataset.mean, std=dataset.std, seed=0, weights_folder=folder
            )
        except ModelError as error:
            notes.append(f"pretrained weights are not used: {error}")
            return "image statistics and 8 x 8 thumbnails", plain_features
        chosen = device.choose_device(device_name or config.train.device)
        threads = config.train.threads or cores.default_threads()
        execution = Execution(chosen, "fp32", channels_last=False, threads=threads)
        execution.place(model)
        name = f"{network}, pretrained, at {side} px"
    micro_batch = MicroBatch(_BATCH)
    return name, lambda split, progress: network_features(
        model, split, execution=execution, micro_batch=micro_batch, progress=progress
    )


def _local_network(config: Config, folder: Path) -> str:
    """Return a timm model whose weights lie in the folder, the config's first; empty: none, or the rules forbid it."""
    if not config.competition.rules.external_weights:
        return ""
    stems = sorted(path.stem for path in folder.glob("*.safetensors"))
    if not stems:
        return ""
    import timm

    names = (config.model.name, *stems)
    local = (name for name in names if weights.local_file(name, folder))
    return next((name for name in local if timm.is_model(name.partition(".")[0])), "")


@dataclass(frozen=True)
class _Separated:
    """A classifier of training and test images.

    Attributes:
        auc: out of fold.
        first: out-of-fold probability of being test, of each training image.
        second: of each test image.
        score: features -> probability, fitted on all.
    """

    auc: AUC
    first: NDArray[np.float64]
    second: NDArray[np.float64]
    score: Callable[[NDArray[np.float32]], NDArray[np.float64]]


def _separate(first: NDArray[np.float32], second: NDArray[np.float32], groups: NDArray[np.int64]) -> _Separated:
    """Cross-validate a logistic regression; copies of one image in several blocks share a fold."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    values = np.concatenate([first, second]).astype(np.float64)
    is_test = np.arange(len(values)) >= len(first)
    if len(np.unique(groups)) < _FOLDS:  # blocks of a few images: each row for itself, else folds lack test images
        groups = np.arange(len(groups))
    draw = np.random.default_rng(rng.key(0, _SAMPLE_KEY))
    dealt = draw.permutation(groups.max() + 1) % _FOLDS
    folds = np.concatenate([draw.permutation(len(first)) % _FOLDS, dealt[groups]])

    # A classifier that follows chance is worse than chance on the rows it has not seen: ten images a component.
    components = min(_COMPONENTS, values.shape[1], max(2, min(len(first), len(second)) // 10))

    def fitted(rows: NDArray[np.bool_]) -> Any:
        steps = StandardScaler(), PCA(components, whiten=True, random_state=0)
        return make_pipeline(*steps, LogisticRegression(C=0.1, class_weight="balanced", max_iter=500)).fit(
            values[rows], is_test[rows]
        )

    scores = np.zeros(len(values))
    for fold in range(_FOLDS):
        scores[folds == fold] = fitted(folds != fold).predict_proba(values[folds == fold])[:, 1]
    whole = fitted(np.ones(len(values), bool))
    auc = stats.separation(scores, is_test, folds)
    return _Separated(auc, scores[~is_test], scores[is_test], lambda rows: whole.predict_proba(rows)[:, 1])


def _meaning(auc: AUC) -> str:
    if auc.interval.low <= 0.5:
        return ALIKE
    return next(meaning for least, meaning in _MEANINGS if auc.value >= least)


def _recognise(
    samples: _Samples, config: Config, notes: list[str], progress: Progress
) -> tuple[dict[str, Verdict], tuple[int, int]]:
    """Return what each block looks like, and how well held-out blocks were recognised."""
    sides = samples.train.image_shape[1:]
    if min(sides) < SMALLEST or max(sides) > _LARGEST:
        notes.append(f"corruptions are looked for in images of {SMALLEST} to {_LARGEST} px; these have {max(sides)}")
        return {}, (0, 0)
    seed = rng.key(config.data.split_seed, _CORRUPTION_KEY)
    recogniser = Recogniser(np.asarray(samples.train.images), seed=seed, progress=progress)
    verdicts = {}
    for done, (name, images) in enumerate(samples.blocks.items(), 1):
        verdicts[name] = recogniser.judge(images)
        progress("recognising corruptions", done, len(samples.blocks), "blocks")
    return verdicts, (recogniser.right, recogniser.held_out)


def _agreements(config: Config, dataset: Dataset, runs_root: Path) -> tuple[list[Agreement], int]:
    """Return how validation agrees with recorded public scores, and the number of submissions with one."""
    rows = leaderboard.read_rows(runs_root, competition=config.competition.name, on_damaged=lambda error: None)
    rows = [row for row in rows if (row.task, row.metric) == (dataset.competition.task, dataset.competition.metric)]
    analysed = analysis.analyze_leaderboard(rows, "auto")
    agreements = list(analysed.agreements)
    if not agreements:  # another metric than accuracy, or submissions whose sidecar is gone: each run's own scores
        for column in ("ood_metric", "val_metric"):
            pairs = [(row.as_maximize(column), row.as_maximize("public_score")) for row in rows]
            both = [(first, second) for first, second in pairs if first is not None and second is not None]
            if len(both) >= analysis.MIN_PAIRS:
                first, second = zip(*both, strict=True)
                agreements.append(Agreement(column, *stats.rank_correlation(first, second), len(both)))
    return agreements, max(analysed.scored, sum(row.public_score is not None for row in rows))


def _sheet(samples: _Samples, train_order: NDArray[np.int64], test_order: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the images of `SHEET_ROWS`; orders begin with the most test-like, and with the most train-like."""
    shown = min(_SHOWN, len(train_order), len(test_order))
    train, test = np.asarray(samples.train.images), np.asarray(samples.test.images)
    rows = train[train_order[::-1][:shown]], train[train_order[:shown]], test[test_order[:shown]]
    return np.stack([*rows, test[test_order[::-1][:shown]]])


def write_card(card: ShiftCard, folder: Path) -> list[Path]:
    """Write `shift.json`, `train_like_test.csv` (id, probability of being test) and the sheet into a folder.

    Raises:
        RunError: the folder cannot be written.
    """
    paths = [folder / name for name in ("shift.json", "train_like_test.csv", "shift.png")]
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["id", "probability"])
    writer.writerows((escape.for_spreadsheet(name), f"{score:.6f}") for name, score in card.test_like)
    files.write_atomically(paths[0], files.to_json(card.to_json()))
    files.write_atomically(paths[1], table.getvalue().encode())
    plots.draw_image_sheet(paths[2], card.sheet, SHEET_ROWS, [str(n + 1) for n in range(card.sheet.shape[1])])
    return paths
