"""The leaderboard, held to a scripted competition whose hidden scores are known: what it says must be true."""

import contextlib
import csv
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray

from comp.config import Config, from_mapping
from comp.results import analysis, files, leaderboard, prediction_files, predictions, runs
from comp.results.blocks import block_grid
from comp.results.run_metrics import RunMetrics, Score, SplitScores, WeightScores
from comp.results.runs import Run
from comp.submission import write
from comp.submission.format import SubmissionFormat
from comp.tracking import state
from tests.support.commands import Result
from tests.support.wandb_server import KEY, records, serving, summary

CLASSES = 5
SHIFTED = block_grid((0, 9), (1, 3, 5), 800)  # the same images in each
SUITE = block_grid((0, 9), (1, 2, 3, 4, 5), 600)
CONFIG = from_mapping({"competition": {"name": "scripted"}, "track": {"wandb": "offline"}}, "here")


@dataclass
class Player:
    """A run, and what nobody but the test knows of it.

    Attributes:
        skill: an image is answered rightly if its difficulty, and this model's own noise on it, stay below.
        validates: added to the skill on validation images alone: of one that has overfitted to them.
        valid_truth: its accuracy on all images there could be, with that skill.
        noise: seed of its own noise; those who share it make the same mistakes.
        blur: how much own noise there is.
    """

    skill: float
    noise: int
    validates: float = 0.0
    blur: float = 0.15
    run: Run | None = None
    submission: Path = Path()
    public: float = 0.0
    private: float = 0.0
    valid_truth: float = 0.0
    answers: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


def answers(player: Player, skill: float, labels: NDArray[np.int64], images: NDArray[np.int64], seed: int) -> Any:
    """Return a player's answers to rows that show images; an image is as hard for all, in every row."""
    count = int(images.max()) + 1
    difficulty = np.random.default_rng(seed).uniform(0, 1, count)[images]
    own = np.random.default_rng((seed, player.noise)).normal(0, player.blur, count)[images]
    row = np.random.default_rng((seed, player.noise, 1)).normal(0, 0.05, len(images))
    right = difficulty + own + row < skill
    wrong = (
        labels + 1 + np.random.default_rng((seed, player.noise, 2)).integers(0, CLASSES - 1, len(labels))
    ) % CLASSES
    return np.where(right, labels, wrong)


def predicted(top1: NDArray[np.int64], labels: NDArray[np.int64] | None, layout: Any = ()) -> predictions.Predictions:
    logits = np.full((len(top1), CLASSES), -3, np.float32)
    logits[np.arange(len(top1)), top1] = 0
    ids = np.concatenate([block.ids() for block in layout]) if layout else np.arange(len(top1)).astype(np.str_)
    return predictions.from_outputs(
        logits,
        task="single_label",
        ids=ids,
        classes="abcde",
        targets=labels,
        made_by={},
        blocks=[(b.name, b.count) for b in layout],
    )


def rows_of(layout: Any, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the images and labels of the rows of blocks that all show the same images."""
    images = np.concatenate([np.arange(block.count) for block in layout])
    return images, np.random.default_rng(seed).integers(0, CLASSES, layout[0].count)[images]


def play(root: Path, player: Player, number: int, config: Config = CONFIG) -> None:
    """Write the folder that a training of this player would have left."""
    run = runs.create(root, config, f"player{number:02d}", {"classes": list("abcde"), "git": "abc"})
    images, labels = rows_of(SHIFTED, 1)
    shifted = predicted(answers(player, player.skill + player.validates, labels, images, 1), labels, SHIFTED)
    prediction_files.save(run.predictions_path("ood_val"), shifted)
    accuracy = float((shifted.top1 == labels).mean())
    clean = SplitScores(images=2000, scores={"accuracy": Score(value=accuracy + 0.1)})
    blocks = SplitScores(
        images=len(shifted), scores={"accuracy": Score(value=accuracy)}, by_block=shifted.block_accuracy()
    )
    run.write_table("history.csv", [{"number": 1, "val_accuracy": accuracy}])
    run.write_metrics(
        RunMetrics(
            run=run.name,
            competition=config.competition.name,
            metric="accuracy",
            model=f"model{number % 3}",
            parameters=1000 + number,
            device="cpu",
            train_seconds=60.0 * number,
            best=WeightScores(val=clean, ood_val=blocks),
        )
    )
    many, skill = np.arange(50_000), player.skill + player.validates
    player.run = run
    player.valid_truth = float((answers(player, skill, many % CLASSES, many, 3) == many % CLASSES).mean())


def submit(player: Player, public: NDArray[np.bool_], folder: Path) -> None:
    """Write the player's submission, and score it as the competition would."""
    assert player.run is not None
    images, labels = rows_of(SUITE, 2)
    player.answers = answers(player, player.skill, labels, images, 2)
    right = player.answers == labels
    player.public, player.private = float(right[public].mean()), float(right[~public].mean())
    player.submission = folder / f"{player.run.path.name}.csv"
    sidecar = {"run": player.run.name, "run_path": str(player.run.path)}
    write.write_submission(
        player.submission,
        predicted(player.answers, None, SUITE),
        SubmissionFormat(SUITE, texts=tuple(map(str, range(CLASSES)))),
        sidecar,
    )
    player.run.write_metrics(player.run.metrics().model_copy(update={"submission": str(player.submission)}))


@dataclass
class Scripted:
    """A competition: thirty players, six of which have submitted."""

    players: list[Player]
    submitted: list[Player]

    def of(self, run: str) -> Player:
        return next(player for player in self.players if player.run is not None and str(player.run.path) == run)

    def by_file(self, path: str) -> Player:
        return next(player for player in self.submitted if str(player.submission) == path)


SHARE = 0.3


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Scripted]:
    """Ten skills of three players each, six of whom submit: three of the best, of which two err alike, and others."""
    folder = tmp_path_factory.mktemp("played")
    with contextlib.chdir(folder):
        return folder, play_all()


@pytest.fixture
def scripted(played: tuple[Path, Scripted], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scripted:
    """A copy of the competition in a working directory of its own."""
    shutil.copytree(played[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return played[1]


def play_all() -> Scripted:
    players = [Player(0.32 + 0.05 * (number // 3), noise=number) for number in range(30)]
    players[27].noise, players[28].noise = 100, 100  # the two best are nearly one
    players[27].skill, players[28].skill, players[29].skill = 0.775, 0.772, 0.771
    players[12].validates = 0.4  # one that has overfitted: best in validation, and nowhere else
    for number, player in enumerate(players):
        play(Path("runs"), player, number)
    public = np.random.default_rng(4).random(sum(block.count for block in SUITE)) < SHARE
    submitted = [players[number] for number in (0, 12, 18, 27, 28, 29)]
    for player in submitted:
        submit(player, public, Path("submissions"))
    return Scripted(players, submitted)


def record(scripted: Scripted, comp: Callable[..., Result], *but: Player) -> None:
    for player in scripted.submitted:
        if player not in but:
            words = [player.submission, "--public", player.public, "--public-share", SHARE]
            result = comp("leaderboard", "record", *words)
            assert result.code == 0, result.err


def test_every_sentence_of_a_scripted_competition_is_true(scripted: Scripted, comp: Callable[..., Result]) -> None:
    record(scripted, comp)
    result = comp("leaderboard")
    assert result.code == 0, result.err
    *said, following = result.out[result.out.index("└") :].splitlines()[1:]
    assert following.startswith("next        comp report runs/")
    kinds = [_holds(sentence, scripted) for sentence in said]
    assert sorted(kinds) == ["agreement", "agreement", "best", "heading", "key", "partner", "sorted", "warning"]


def _holds(sentence: str, scripted: Scripted) -> str:
    """Assert that a sentence is true; return its kind."""
    for kind, pattern in SENTENCES.items():
        if found := re.fullmatch(pattern, sentence):
            TRUTHS[kind](found, scripted)
            return kind
    raise AssertionError(f"nothing tells whether this is true: {sentence}")


def _agreement_holds(found: re.Match[str], scripted: Scripted) -> None:
    column = {"shifted": "ood_accuracy", "clean": "val_accuracy"}[found["kind"]]
    known = {row.run: getattr(row, column) for row in leaderboard.read_rows(Path("runs"))}
    before = [known[str(player.run.path)] for player in scripted.submitted if player.run]
    by_public = scipy.stats.spearmanr(before, [player.public for player in scripted.submitted]).statistic
    by_private = scipy.stats.spearmanr(before, [player.private for player in scripted.submitted]).statistic
    assert float(found["rho"]) == pytest.approx(by_public, abs=0.005)
    assert float(found["low"]) <= by_private <= float(found["high"])
    assert int(found["count"]) == 6
    assert bool(found["chance"]) == (float(found["low"]) <= 0 <= float(found["high"]))


def _warning_holds(found: re.Match[str], scripted: Scripted) -> None:
    validated, leader = scripted.by_file(found["validated"]), scripted.by_file(found["leader"])
    assert validated.validates > 0
    assert leader.private > validated.private
    assert float(found["below"]) == pytest.approx(leader.public - validated.public, abs=1e-4)


def _best_holds(found: re.Match[str], scripted: Scripted) -> None:
    best = max(player.private for player in scripted.submitted)
    assert scripted.by_file(found["path"]).private == best


def _partner_holds(found: re.Match[str], scripted: Scripted) -> None:
    partner, first = scripted.by_file(found["path"]), max(scripted.submitted, key=lambda player: player.public)
    near = [p for p in scripted.submitted if p is not first and p.public >= first.public - 0.01]
    assert int(found["close"]) == len(near) == 2
    assert abs(partner.private - first.private) < 0.02
    differing = {id(p): float((p.answers != first.answers).mean()) for p in near}
    assert differing[id(partner)] == max(differing.values())
    assert float(found["share"]) / 100 == pytest.approx(differing[id(partner)], abs=0.0005)
    assert partner.noise != first.noise


SENTENCES = {
    "sorted": r"sorted by ood_metric .*shifted validation.*",
    "key": r"<.*95 %.*~.*",
    "agreement": r"(?P<kind>shifted|clean) validation .* (?P<count>\d+) submissions: .* (?P<rho>-?[\d.]+) "
    r"\((?P<low>\S+) to (?P<high>\S+)\)(?P<chance>.*)",
    "warning": r"warning: (?P<validated>\S+) .*shifted validation.* (?P<leader>\S+) \(by (?P<below>[\d.]+)\).*",
    "heading": r"suggested final submissions:",
    "best": r"  1\. (?P<path>\S+): public score (?P<score>[\d.]+)",
    "partner": r"  2\. (?P<path>\S+): public score \S+; .* in (?P<share>[\d.]+)% of rows, "
    r"the most of (?P<close>\d+) .*",
}
TRUTHS: dict[str, Callable[[re.Match[str], Scripted], None]] = {
    **dict.fromkeys(("sorted", "key", "heading"), lambda match, scripted: None),
    "agreement": _agreement_holds,
    "warning": _warning_holds,
    "best": _best_holds,
    "partner": _partner_holds,
}


def test_significant_differences_are_real_and_intervals_cover_the_truth(
    scripted: Scripted, comp: Callable[..., Result]
) -> None:
    rows = leaderboard.read_rows(Path("runs"))
    found = analysis.analyze_leaderboard(rows, "ood_accuracy").above
    assert found[0] is None
    inside, real, paired = [], [], 0
    for place in range(1, 30):
        difference = found[place]
        assert difference is not None
        lower, upper = scripted.of(rows[place].run), scripted.of(rows[place - 1].run)
        true = lower.valid_truth - upper.valid_truth
        paired += difference.paired
        inside.append(true in difference.interval)
        if difference.is_real:
            real.append(true < 0)
    assert np.mean(inside) >= 0.85  # less than for any two runs: neighbours in a ranking are neighbours by chance too
    # Each is told at 95 %, so that one in twenty of those that are equal may be called real.
    assert len(real) >= 5
    assert real.count(False) <= 1
    assert paired == 19  # the first twenty rows' predictions are read, and the others told by their counts
    marks = re.findall(r"│ (\d+) ([<~]) ", comp("leaderboard").out)
    assert [mark for _, mark in marks] == ["<" if one and one.is_real else "~" for one in found[1:]]


def test_without_overfitting_there_is_no_warning(scripted: Scripted, comp: Callable[..., Result]) -> None:
    overfitted = scripted.players[12]
    assert overfitted.run is not None
    record(scripted, comp, overfitted)
    said = comp("leaderboard").out
    assert "rank correlation 0.9" in said or "rank correlation 1.0" in said
    assert "warning" not in said


def test_a_submission_without_a_public_score_is_judged_by_corrected_validation(
    scripted: Scripted, comp: Callable[..., Result]
) -> None:
    best = scripted.players[27]
    record(scripted, comp, best, scripted.players[12])
    rows = leaderboard.read_rows(Path("runs"))
    choice = next(c for c in analysis.analyze_leaderboard(rows, "ood_accuracy").final if c.path == str(best.submission))
    assert choice.source == "ood_accuracy"
    assert choice.score == pytest.approx(best.private, abs=0.02)


def test_public_differences_use_the_rows_on_which_submissions_differ(
    scripted: Scripted, comp: Callable[..., Result]
) -> None:
    record(scripted, comp)
    rows = leaderboard.read_rows(Path("runs"), sort="public_score")
    assert [row.public_score for row in rows[:6]] == sorted([p.public for p in scripted.submitted], reverse=True)
    found = analysis.analyze_leaderboard(rows, "public_score").above
    assert found[6] is None
    for place in range(1, 6):
        difference = found[place]
        assert difference is not None
        lower, upper = scripted.of(rows[place].run), scripted.of(rows[place - 1].run)
        assert difference.value == pytest.approx(lower.public - upper.public)
        assert lower.private - upper.private in difference.interval
        if difference.is_real:
            assert lower.private < upper.private
    assert found[5] is not None
    assert found[5].is_real


def test_a_recorded_score_is_in_the_sidecar_the_run_and_the_row(
    scripted: Scripted, comp: Callable[..., Result]
) -> None:
    player = scripted.submitted[0]
    assert player.run is not None
    content = player.submission.read_bytes()
    told = comp("leaderboard", "record", player.submission, "--public", 0.5, "--public-share", 0.5)
    assert told.out.splitlines()[0] == f"{player.submission}: public 0.5000, recorded"
    assert comp("leaderboard", "record", player.submission, "--private", 0.4).code == 0
    sidecar = json.loads(player.submission.with_suffix(".json").read_text())
    assert (sidecar["scores"]["public"], sidecar["scores"]["private"]) == (0.5, 0.4)
    assert (player.run.metrics().public_score, player.run.metrics().private_score) == (0.5, 0.4)
    (row,) = [row for row in leaderboard.read_rows(Path("runs")) if row.run == str(player.run.path)]
    assert (row.public_score, row.private_score) == (0.5, 0.4)
    assert len(row.submitted) == 1
    assert player.submission.read_bytes() == content


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{csv}", "--public", "57.3"], "did you mean 0.573?"),
        (["{csv}", "--public", "nan"], "expected a score (accuracy) from 0 to 1, found nan"),
        (["{csv}"], "--public"),
        (["{csv}", "--public", "0.5", "--public-share", "0"], "--public-share"),
        (["nowhere.csv", "--public", "0.5"], "no such submission"),
        (["bare.csv", "--public", "0.5"], "bare.json"),
        (["altered.csv", "--public", "0.5"], "altered.json"),
    ],
)
def test_an_impossible_score_is_refused_and_nothing_is_written(
    scripted: Scripted, comp: Callable[..., Result], words: list[str], message: str
) -> None:
    player = scripted.submitted[0]
    assert player.run is not None
    Path("bare.csv").write_text("id,label\na,1\n")
    Path("altered.csv").write_bytes(player.submission.read_bytes() + b"x,1\n")
    Path("altered.json").write_bytes(player.submission.with_suffix(".json").read_bytes())
    before = [(player.run.path / "metrics.json").read_bytes(), player.submission.with_suffix(".json").read_bytes()]
    result = comp("leaderboard", "record", *[word.format(csv=player.submission) for word in words])
    assert result.code == 2
    assert message in result.err
    after = [(player.run.path / "metrics.json").read_bytes(), player.submission.with_suffix(".json").read_bytes()]
    assert after == before


def test_a_listing_is_the_same_in_every_format(scripted: Scripted, comp: Callable[..., Result]) -> None:
    record(scripted, comp)
    as_json = json.loads(comp("leaderboard", "--json").out)
    as_csv = list(csv.DictReader(io.StringIO(comp("leaderboard", "--csv").out)))
    as_md = [line.split(" | ") for line in comp("leaderboard", "--md").out.splitlines()]
    assert len(as_json) == len(as_csv) == len(as_md) - 2 == 30
    assert [row["run"] for row in as_json] == [row["run"] for row in as_csv] == [row[0][2:] for row in as_md[2:]]
    scores = [row["ood_accuracy"] for row in as_json]
    assert scores == sorted(scores, reverse=True)
    assert [float(row["ood_accuracy"]) for row in as_csv] == scores
    assert {row["public_score"] for row in as_csv} - {""} == {str(player.public) for player in scripted.submitted}
    short = comp("leaderboard", "--top", "5").out
    assert "25 more" in short
    assert short.count("player") < 20


def test_groups_show_counts_and_scores(scripted: Scripted, comp: Callable[..., Result]) -> None:
    rows = leaderboard.read_rows(Path("runs"))
    groups = json.loads(comp("leaderboard", "--group-by", "model", "--json").out)
    assert len(groups) == 3
    for group in groups:
        members = [row.ood_accuracy for row in rows if row.model == group["value"]]
        assert (group["runs"], group["best"]) == (10, members[0])
        assert group["mean"] == pytest.approx(np.mean(members))
        assert group["deviation"] == pytest.approx(np.std(members, ddof=1))
    assert groups[0]["best_run"] == rows[0].run
    assert "model0" in comp("leaderboard", "--group-by", "model").out
    refused = comp("leaderboard", "--group-by", "modle")
    assert refused.code == 2
    assert "did you mean 'model'" in refused.err


def test_since_leaves_out_older_runs(tmp_path: Path, comp: Callable[..., Result]) -> None:
    for number, started in enumerate(("20200101-120000", "20200102-120000", "29990101-000000")):
        play(tmp_path, Player(0.5, number), number)
        (made,) = [run for run in runs.list_runs(tmp_path) if run.path.name.endswith(f"player{number:02d}")]
        made.path.rename(made.path.with_name(f"{started}-player{number:02d}"))

    def listed(since: str) -> int:
        return len(json.loads(comp("leaderboard", "--runs", tmp_path, "--since", since, "--json").out))

    assert [listed(since) for since in ("2020-01-01", "2020-01-02", "2020-01-02T12:30", "7d")] == [3, 2, 1, 1]
    refused = comp("leaderboard", "--runs", tmp_path, "--since", "yesterday")
    assert refused.code == 2
    assert "found 'yesterday'" in refused.err


def test_a_damaged_run_is_named_and_the_others_are_listed(scripted: Scripted, comp: Callable[..., Result]) -> None:
    player = scripted.players[3]
    assert player.run is not None
    (player.run.path / "metrics.json").write_text('{"run": ')
    before = len(leaderboard.read_rows(Path("runs"), on_damaged=lambda error: None))
    for words in ([], ["--json"], ["--csv"], ["--group-by", "model"]):
        result = comp("leaderboard", *words)
        assert result.code == 0
        assert result.err.startswith(f"note: 1 run left out, first {player.run.path / 'metrics.json'}: damaged (")
        assert len(result.err.splitlines()) == 1
    assert len(json.loads(comp("leaderboard", "--json").out)) == before == 29
    assert str(player.run.path) not in comp("leaderboard", "--csv").out


def test_listing_loads_no_torch_and_no_wandb(scripted: Scripted) -> None:
    program = (
        "import sys; from comp.cli import app\n"
        "try: app.main(['leaderboard'])\n"
        "except SystemExit as left: code = left.code\n"
        "print(sorted({'torch', 'pandas', 'sklearn', 'wandb', 'matplotlib'} & set(sys.modules)), code, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[] 0"


@pytest.mark.slow
def test_a_pushed_leaderboard_is_a_run_of_its_own_and_ranks_are_in_the_runs_summaries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comp: Callable[..., Result]
) -> None:
    """Offline they are segments, which `--sync` uploads; pushed again, it is the same W&B run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    players = [Player(0.4 + 0.2 * number, number) for number in range(3)]
    for number, player in enumerate(players):
        play(Path("runs"), player, number)
    worst, _, best = (player.run for player in players)
    assert worst is not None
    assert best is not None
    for run, name in ((worst, "aaaa0000"), (best, "bbbb0000")):
        files.make_folder(state.folder_of(run))
        state.write(run, state.TrackingState(name, "scripted", "", "offline", epochs=1, complete=True))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    result = comp("leaderboard", "--push")
    assert result.code == 0, result.err
    assert "pushed 3 rows and 2 ranks" in result.err
    (board,) = Path("runs/wandb").glob("offline-run-*")
    read = summary(board)
    assert (read["name"], read["project"], records(board, "run")[0]["job_type"]) == (
        "leaderboard",
        "scripted",
        "leaderboard",
    )
    table = json.loads((board / "files" / read["summary"]["leaderboard"]["path"]).read_text())
    assert [row[0] for row in table["data"]] == [1, 2, 3]
    assert table["data"][0][table["columns"].index("run")] == str(best.path)
    for run, rank in ((best, 1), (worst, 3)):
        (segment,) = state.segments(run)
        found = summary(segment)["summary"]
        assert (found["rank"], found["ranked_among"], found["ranked_by"]) == (rank, 3, "ood_metric")
        assert found["best/ood_val/accuracy"] == run.metrics().best.ood_val.accuracy
    with serving() as received:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", received.address)
        again = comp("leaderboard", "--push", "--sync")
        assert again.code == 0, again.err
        assert "uploaded 6 segments" in again.err
        assert received.summary["bbbb0000"]["rank"] == 1
        assert received.summary["aaaa0000"]["rank"] == 3
        assert set(received.curve(read["run_id"], "leaderboard")) == {1, 2}
    assert not any(KEY.encode() in path.read_bytes() for path in Path("runs").rglob("*") if path.is_file())
