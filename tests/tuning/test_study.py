"""`comp tune` in one process: what a study tries, keeps, prunes, survives and hands over."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from comp import config as configs
from comp.results import leaderboard, runs
from comp.runtime.errors import ConfigError, Interrupted, StudyError
from comp.tuning import create, objectives, results, search
from comp.tuning.pruners import PRUNERS
from comp.tuning.results import StudyReport
from comp.tuning.samplers import SAMPLERS
from tests.support.commands import Result, assert_refused, interrupt_at
from tests.support.configs import NUMBERS, tuned, write_config
from tests.support.parameters import slow_except

CHOICE = {"augment.policy": {"choice": ["none", "basic"]}}


def quick(knobs: dict[str, Any], **tune: Any) -> dict[str, Any]:
    """Return a config whose trials train for one epoch."""
    values = tuned(knobs, **tune)
    values["train"]["epochs"] = 1
    return values


def study(values: dict[str, Any], name: str = "study", **options: Any) -> StudyReport:
    """Tune a config."""
    return search.tune(configs.from_mapping(values, "a.yaml"), name=name, **{"pictures": False, **options})


@pytest.fixture
def here(workplace: Path) -> Path:
    """An empty working directory with a dataset."""
    return workplace


def test_trials_are_ordinary_runs_that_the_leaderboard_finds(here: Path) -> None:
    report = study(quick(NUMBERS, trials=3))
    assert report.counts["done"] == 3
    trained = runs.list_runs(Path("runs"))
    assert [run.path.parent for run in trained] == [Path("runs/small/study")] * 3
    assert [str(run.path) for run in trained] == sorted(row["run"] for row in report.trials)
    assert len(leaderboard.read_rows(Path("runs"), competition="small")) == 3
    for row in report.trials:
        run = runs.open_run(Path(row["run"]))
        assert run.config().optim.lr == row["optim.lr"]
        assert run.config().tune == configs.Config().tune
        assert run.metrics().best.val.accuracy == row["val_metric"]


def test_the_configs_own_values_come_first_and_bests_of_other_studies_next(here: Path) -> None:
    values = quick(NUMBERS, trials=2)
    values["optim"] = {"lr": 0.0123, "momentum": 0.6}
    first = study(values)
    assert (first.trials[0]["optim.lr"], first.trials[0]["optim.momentum"]) == (0.0123, 0.6)
    other = quick(NUMBERS, trials=2)
    other["optim"] = {"lr": 0.05, "momentum": 0.7}
    second = study(other, "other")
    best = first.trials[first.recommended or 0]
    assert second.trials[0]["optim.lr"] == 0.05
    assert second.trials[1]["optim.lr"] == best["optim.lr"]


def test_the_same_command_goes_on_to_the_studys_total(here: Path) -> None:
    values = quick(NUMBERS, trials=2)
    study(values)
    assert len(study(values).trials) == 2
    values["tune"]["trials"] = 4
    whole = study(values)
    assert [row["trial"] for row in whole.trials] == [0, 1, 2, 3]
    assert len(runs.list_runs(Path("runs"))) == 4
    again = study(values, runs_root=Path("elsewhere"))  # never stopped, and proposes the same
    own = [[row["optim.lr"], row["optim.momentum"], row["val_metric"]] for row in whole.trials]
    repeated = [[row["optim.lr"], row["optim.momentum"], row["val_metric"]] for row in again.trials]
    assert repeated == own


def test_a_study_of_another_config_is_refused(here: Path) -> None:
    study(quick(NUMBERS, trials=1))
    values = quick(NUMBERS, trials=1)
    values["train"]["batch_size"] = 16
    for changed, key in ((values, "train.batch_size"), (quick(CHOICE, trials=1), "tune.space")):
        with pytest.raises(StudyError) as refused:
            study(changed)
        assert all(value in str(refused.value) for value in ("runs/small/study", key, "--study NAME"))


def test_a_repeated_proposal_is_not_trained_twice_and_does_not_count(here: Path) -> None:
    report = study(quick({**CHOICE, "optim.clip": {"choice": ["none", "norm"]}}, trials=10, sampler="random"))
    points = [(row["augment.policy"], row["optim.clip"]) for row in report.trials]
    assert sorted(points) == [("basic", "none"), ("basic", "norm"), ("none", "none"), ("none", "norm")]
    assert len(runs.list_runs(Path("runs"))) == 4  # and the study has ended: the space holds no more
    assert study(quick({**CHOICE, "optim.clip": {"choice": ["none", "norm"]}}, trials=20, sampler="random")).trials == (
        report.trials
    )


def test_a_grid_is_searched_point_by_point(here: Path) -> None:
    space = {
        "optim.clip": {"choice": ["none", "norm"]},
        "optim.clip_at": {"float": [0.5, 1.0], "step": 0.5, "when": {"optim.clip": "norm"}},
        "optim.momentum": {"float": [0.6, 0.7], "step": 0.1},
    }
    report = study(quick(space, trials=50, sampler="grid"))
    points = {(row["optim.clip"], row["optim.clip_at"], row["optim.momentum"]) for row in report.trials}
    assert len(report.trials) == len(points) == 2 * (1 + 2)
    with pytest.raises(ConfigError, match=r"optim\.lr"):
        study(quick(NUMBERS, sampler="grid"), "other")


def test_a_grid_is_searched_whole_after_a_worker_died_over_a_proposal(here: Path) -> None:
    values = quick({"optim.clip": {"choice": ["none", "norm"]}}, trials=2, sampler="grid")
    plan = create.plan(configs.from_mapping(values, "a.yaml"), "study", Path("runs"))
    with create.OPENERS[plan.part](plan) as opened:
        opened.optuna.ask()  # and dies before it has suggested a value: the trial stays without any
    report = study(values)
    assert sorted(row["optim.clip"] for row in report.trials if row["state"] == "done") == ["none", "norm"]


def test_a_trial_that_fails_is_recorded_with_its_reason_and_the_study_goes_on(here: Path) -> None:
    values = quick({"optim.lr": {"choice": [1e-2, 1e38, 1e-3]}}, trials=3, sampler="grid")  # not finite at once
    values["optim"] = {"name": "sgd"}
    report = study(values)
    assert (report.counts["done"], report.counts["failed"]) == (2, 1)
    (failed,) = [row for row in report.trials if row["state"] == "failed"]
    assert failed["optim.lr"] == 1e38
    assert "not finite" in failed["reason"]
    assert report.trials[report.recommended or 0]["state"] == "done"


@pytest.mark.slow  # 4 s; the faults have the same of each kind of error
def test_three_failures_in_a_row_stop_the_study_with_their_reasons(here: Path) -> None:
    values = quick({"optim.lr": {"float": [1e37, 1e38]}}, trials=9)  # not finite at once
    values["optim"] = {"name": "sgd"}
    with pytest.raises(StudyError) as stopped:
        study(values)
    assert all(str(stopped.value).count(f"trial {number}: ") == 1 for number in range(3))
    assert str(stopped.value).count("not finite") >= 3
    assert "--study NAME" in str(stopped.value)  # the space of this one is fixed
    with pytest.raises(StudyError, match="trial 5: "):  # three more, not none
        study(values)
    assert len(results.load_report("study").trials) == 6


def test_a_study_without_a_complete_trial_says_why_and_recommends_nothing(
    here: Path, comp: Callable[..., Result]
) -> None:
    values = quick({"optim.lr": {"choice": [1e37, 1e38]}}, trials=2)  # not finite at once
    values["optim"] = {"name": "sgd"}
    write_config(Path("tuned.yaml"), values)
    result = comp("tune", "tuned.yaml")
    assert result.code == 2
    message = result.err.partition("error: ")[2]
    assert all(value in message for value in ("runs/small/tuned", "trial 0: ", "--study NAME")), message
    assert message.count("not finite") == 2
    assert not Path("runs/small/tuned/best.yaml").exists()
    shown = comp("tune", "--show", "tuned")
    assert "2 failed" in shown.out
    assert "* best" not in shown.out


def weights(row: dict[str, Any]) -> list[str]:
    """Return the weight files of a trial's run."""
    return [name for name in runs.WEIGHTS if (Path(row["run"]) / name).exists()]


def test_only_the_best_trials_keep_their_weights_and_the_others_say_so(here: Path, comp: Callable[..., Result]) -> None:
    report = study(quick(NUMBERS, trials=4, keep=2, confirm={"top": 1, "seeds": 1}))
    ranked = sorted(report.trials, key=lambda row: (-row["val_metric"], row["trial"]))
    assert all("best.safetensors" in weights(row) for row in ranked[:2])
    assert not any(weights(row) for row in ranked[2:])
    (confirmed,) = Path("runs/small/study").glob("*-confirm-*")
    assert (confirmed / "best.safetensors").exists()
    assert len(leaderboard.read_rows(Path("runs"), competition="small")) == 5
    lost = Path(ranked[-1]["run"])
    assert runs.open_run(lost).metrics().best.val.accuracy == ranked[-1]["val_metric"]
    assert comp("report", lost).code == 0
    refused = comp("predict", lost, "--split", "val")
    assert refused.code == 2
    assert "tune.keep" in refused.err
    assert f"comp run {lost / 'config.yaml'}" in refused.err
    best = Path(ranked[0]["run"])
    assert comp("predict", best).code == 0
    ensemble = comp("ensemble", best, lost)
    assert ensemble.code == 2
    assert "tune.keep" in ensemble.err


def test_trials_that_were_to_keep_their_weights_keep_them_whatever_comes_later(here: Path) -> None:
    first = study(quick(NUMBERS, trials=2, keep="all", confirm={"top": 0}), "kept").trials
    assert all(weights(row) for row in first)
    rows = study(quick(NUMBERS, trials=4, keep=0, confirm={"top": 0}), "kept").trials
    assert [bool(weights(row)) for row in rows] == [True, True, False, False]


def test_with_several_metrics_the_trials_that_no_other_beats_keep_their_weights(here: Path) -> None:
    metrics = ["val_accuracy", "train_seconds"]
    report = study(quick(NUMBERS, trials=4, keep=0, metric=metrics, pruner="none", confirm={"top": 0}))
    assert {row["trial"] for row in report.trials if weights(row)} == set(report.pareto)


@pytest.mark.parametrize("stop_at", [2, 7])
def test_an_interrupted_trial_waits_and_goes_on_in_its_run(here: Path, stop_at: int) -> None:
    values = tuned(NUMBERS, trials=2)  # 4 steps an epoch, 2 epochs
    whole = study(values, "whole")
    with pytest.raises(Interrupted):
        study({**values, "seed": 0}, "parts", progress=interrupt_at(8 + stop_at))
    stopped = results.load_report("parts")
    assert [row["state"] for row in stopped.trials] == ["done", "waiting"]
    interrupted = Path(stopped.trials[1]["run"])
    assert not runs.open_run(interrupted).is_complete()
    parts = study(values, "parts")
    assert Path(parts.trials[1]["run"]) == interrupted
    assert [row["val_metric"] for row in parts.trials[:1]] == [row["val_metric"] for row in whole.trials[:1]]
    assert len(runs.list_runs(Path("runs/small/parts").parent)) == 4
    assert runs.open_run(interrupted).is_complete()


def test_pruning_ends_a_training_at_an_epochs_end(here: Path) -> None:
    values = quick({"optim.lr": {"choice": [1e-2, 1e-9, 1e-8]}}, trials=3, sampler="grid", pruner="median")
    values["tune"]["pruner_args"] = {"n_startup_trials": 1}
    values["optim"] = {"lr": 1e-2}
    values["train"]["epochs"] = 4
    report = study(values)
    assert report.counts["pruned"] >= 1
    for row in report.trials:
        run = runs.open_run(Path(row["run"]))
        assert (len(run.history()) < 4) == (row["state"] == "pruned")
        assert run.metrics().stopped.startswith("pruned by median") == (row["state"] == "pruned")


CONTINUOUS = {name: NUMBERS for name in SAMPLERS if name != "grid"}


@pytest.mark.parametrize("sampler", slow_except(SAMPLERS, "tpe", "grid"))
def test_every_sampler_ends_a_study_of_conditional_knobs(sampler: str, here: Path) -> None:
    space = {
        **CONTINUOUS.get(sampler, {}),
        "optim.clip": {"choice": ["none", "norm"]},
        "optim.clip_at": {"float": [0.5, 1.0], "step": 0.25, "when": {"optim.clip": "norm"}},
    }
    values = quick(space, trials=3, sampler=sampler)
    if sampler == "gp":
        values["tune"]["sampler_args"] = {"n_startup_trials": 2}
    values["train"]["epochs"] = 1
    report = study(values)
    assert report.counts["done"] == 3
    for row in report.trials:
        assert (row["optim.clip"] == "norm") == (row["optim.clip_at"] is not None)


@pytest.mark.parametrize("pruner", slow_except(PRUNERS, "median", "hyperband"))
def test_every_pruner_ends_a_study(pruner: str, here: Path) -> None:
    values = quick(NUMBERS, trials=3, pruner=pruner)
    if pruner == "wilcoxon":
        values["data"].update(folds=3)
        values["data"].pop("validation")
        values["tune"]["folds"] = "all"
        values["train"]["epochs"] = 1
    else:
        values["train"]["epochs"] = 3
        values["tune"]["pruner_args"] = {"median": {"n_startup_trials": 1}, "patient": {"patience": 0}}.get(pruner, {})
    report = study(values)
    assert report.counts["done"] + report.counts["pruned"] == 3
    assert report.counts["done"] >= 1
    per_trial = 3 if pruner == "wilcoxon" else 1
    whole = [row for row in report.trials if row["state"] == "done"]
    assert all(row["epochs"] == 3 for row in whole)
    assert len(runs.list_runs(Path("runs"))) <= 3 * per_trial


def test_folds_are_averaged(here: Path) -> None:
    values = quick(NUMBERS, trials=1, folds="all")
    values["data"].update(folds=2)
    values["data"].pop("validation")
    report = study(values)
    scores = [run.metrics().best.val.accuracy for run in runs.list_runs(Path("runs"))]
    assert len(scores) == 2
    assert report.trials[0]["val_metric"] == pytest.approx(sum(scores) / 2)


def test_a_time_budget_is_reported_by_tenths(here: Path) -> None:
    values = quick({"optim.lr": {"float": [1e-4, 1e-2]}}, trials=2, pruner="median")
    values["train"]["budget"] = "0.5s"
    values["train"].pop("epochs")
    study(values)
    plan = create.find_plan("study", Path("runs"), "")
    for trial in create.open_search(plan, make=False).trials():
        steps = sorted(trial.intermediate_values)
        assert steps[-1] > 2  # epochs would be 1 and 2
        assert set(steps) <= set(range(1, 11))
        assert len(set(steps)) == len(steps)


# Section `tune` -> values that its error message holds.
REFUSED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "unknown sampler": ({"sampler": "tpee"}, ("tune.sampler", "'tpee'", "did you mean 'tpe'")),
    "unknown pruner": ({"pruner": "medan"}, ("tune.pruner", "'medan'", "did you mean 'median'")),
    "unknown metric": ({"metric": "accuracy"}, ("tune.metric", "'accuracy'", "val_accuracy")),
    "metric twice": ({"metric": ["val_loss", "val_loss"]}, ("tune.metric", "val_loss, val_loss")),
    "unknown argument": (
        {"pruner": "median", "pruner_args": {"n_startup": 1}},
        ("tune.pruner_args", "median", "n_startup_trials"),
    ),
    "unknown sampler argument": ({"sampler_args": {"startup": 1}}, ("tune.sampler_args", "tpe", "startup")),
    "pruning by several": (
        {"metric": ["val_accuracy", "parameters"], "pruner": "median"},
        ("tune.pruner", "val_accuracy", "parameters", "tune.pruner=none"),
    ),
    "pruning by seconds": ({"metric": "train_seconds", "pruner": "median"}, ("train_seconds", "tune.pruner=none")),
    "wilcoxon without folds": ({"pruner": "wilcoxon"}, ("tune.pruner", "tune.folds=all", "data.folds=5")),
    "folds without folds": ({"folds": "all"}, ("tune.folds", "data.folds=5")),
    "cmaes with several": ({"metric": ["val_loss", "parameters"], "sampler": "cmaes"}, ("tune.sampler", "cmaes")),
    "shifted validation, none": ({"metric": "ood_accuracy"}, ("ood_accuracy", "competition.ood_validation.severities")),
    "no space": ({"space": {}}, ("tune.space",)),
    "another storage": ({"storage": "redis://localhost"}, ("sqlite:///PATH", "'redis://localhost'")),
    "no such folder": ({"storage": "sqlite:///nosuch/a.db"}, ("tune.storage", "folder nosuch")),
}


@pytest.mark.parametrize(("tune", "values"), REFUSED.values(), ids=REFUSED)
def test_what_a_study_cannot_do_is_refused_at_once(tune: dict[str, Any], values: tuple[str, ...], here: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        study(quick(NUMBERS, **tune))
    assert all(value in str(refused.value) for value in values), refused.value
    assert not runs.list_runs(Path("runs"))


def test_several_metrics_give_a_pareto_front(here: Path) -> None:
    values = quick({"model.args.depth": {"choice": [2, 3, 6]}}, trials=3, sampler="grid")
    values["tune"]["metric"] = ["val_accuracy", "parameters"]
    report = study(values)
    front = [row for row in report.trials if row["trial"] in report.pareto]
    for row in report.trials:
        beaten = any(
            better["val_accuracy"] >= row["val_accuracy"] and better["parameters"] < row["parameters"]
            for better in report.trials
        )
        assert (row in front) != beaten


def test_the_best_are_confirmed_with_new_seeds_and_handed_over(here: Path, comp: Callable[..., Result]) -> None:
    values = quick({**NUMBERS, **CHOICE}, trials=4)
    values["tune"]["confirm"] = {"top": 2, "seeds": 2}
    write_config(Path("tuned.yaml"), values)
    result = comp("tune", "tuned.yaml", "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    confirmed = report["confirmed"]
    assert len(confirmed) == 2
    assert len(runs.list_runs(Path("runs"))) == 4 + 2 * 2
    top = sorted((row["val_metric"] for row in report["trials"]), reverse=True)[:2]
    assert sorted((row["searched"] for row in confirmed), reverse=True) == top
    assert confirmed[0]["within_noise"]
    assert report["recommended"] in {row["trial"] for row in confirmed if row["within_noise"]}

    best = Path(report["best"])
    config = configs.load(best)
    chosen = next(row for row in report["trials"] if row["trial"] == report["recommended"])
    assert (config.optim.lr, config.augment.policy) == (chosen["optim.lr"], chosen["augment.policy"])
    header = best.read_text().partition("competition:")[0]
    scores = next(row["scores"] for row in confirmed if row["trial"] == report["recommended"])
    assert all(f"{score:.4f}" in header for score in scores)
    assert comp("config", "check", best, "--data").code == 0

    with (best.parent / "trials.csv").open() as file:
        assert [int(row["trial"]) for row in csv.DictReader(file)] == [0, 1, 2, 3]
    page = (best.parent / "study.html").read_text()
    assert all(f'aria-label="{name}"' in page for name in ("with new seeds", "values, and the best so far", "optim.lr"))
    assert f"Recommended: trial {report['recommended']}" in page
    assert "Importance needs 20 complete trials" in page
    assert "http://" not in page
    assert "https://" not in page


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("study.json", "{}"),
        ("study.json", '{"storage": 5}'),
        ("study.json", '{"storage": ["sqlite:///a.db"]}'),
        ("study.yaml", ""),
        ("study.yaml", "[1]"),
        ("study.yaml", "a: ]"),
    ],
)
def test_a_studys_damaged_file_is_one_message_with_its_name(
    name: str, content: str, here: Path, comp: Callable[..., Result]
) -> None:
    folder = Path("runs/small/tuned")
    folder.mkdir(parents=True)
    (folder / "study.json").write_text('{"storage": ""}')
    (folder / "study.yaml").write_text("seed: 0\n")
    (folder / name).write_text(content)
    assert_refused(comp("tune", "--show", "tuned"), f"{folder}/{name}: ", "damaged")


def test_a_study_is_shown_without_a_trace(here: Path, comp: Callable[..., Result]) -> None:
    study(quick(NUMBERS, trials=2), "tuned")
    folder = Path("runs/small/tuned")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.*") if path.suffix in {".csv", ".yaml"}}
    for name in ("tuned", str(folder)):
        shown = comp("tune", "--show", name)
        assert shown.code == 0, shown.err
        assert "2 done" in shown.out
    assert before == {path: path.stat().st_mtime_ns for path in before}
    missing = comp("tune", "--show", "tunde")
    assert missing.code == 2
    assert "did you mean 'tuned'" in missing.err


def test_options_lie_on_the_config(here: Path, comp: Callable[..., Result]) -> None:
    write_config(Path("tuned.yaml"), quick(NUMBERS, trials=1))
    result = comp(
        "tune", "tuned.yaml", "train.epochs=1", "--trials", 2, "--metric", "val_loss,parameters", "--study", "mine",
        "--storage", "journal:///trials.log", "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert (len(report["trials"]), report["metrics"]) == (2, ["val_loss", "parameters"])
    assert report["folder"] == "runs/small/mine"
    assert Path("trials.log").stat().st_size > 0
    assert "tune.storage" not in result.err
    recorded = yaml.safe_load(Path("runs/small/mine/study.yaml").read_text())
    assert recorded["train"]["epochs"] == 1
    assert "Pareto front" in Path("runs/small/mine/study.html").read_text()  # of two metrics


def test_a_timeout_begins_no_trial_after_it(here: Path) -> None:
    report = study(quick(NUMBERS, trials=500, timeout="0.5s"))
    assert 1 <= len(report.trials) < 100
    assert report.counts["waiting"] == report.counts["running"] == 0


def test_a_password_is_kept_nowhere(here: Path) -> None:
    assert runs.hide_passwords("postgresql://me:secret@host/trials") == "postgresql://me@host/trials"
    assert runs.hide_passwords("--storage=postgresql://me@host/trials") == "--storage=postgresql://me@host/trials"


def _identity_of(plan: create.StudyPlan) -> tuple[Any, dict[str, Any]]:
    search = create.open_search(plan, make=False)
    return search, json.loads(search.optuna.user_attrs["identity"])


def test_a_study_that_began_before_some_knobs_goes_on_with_their_defaults(here: Path) -> None:
    values = quick(NUMBERS, trials=1)
    study(values)
    plan = create.find_plan("study", Path("runs"), "")
    opened, recorded = _identity_of(plan)
    del recorded["competition"]["task"], recorded["train"]["consistency_weight"]
    recorded["competition"]["metric"] = "accuracy"  # what auto means now
    with opened:
        opened.optuna.set_user_attr("identity", json.dumps(recorded))
    values["tune"]["trials"] = 2
    assert study(values).counts["done"] == 2


def test_a_study_that_began_with_other_defaults_says_how_to_keep_them(here: Path) -> None:
    values = quick(NUMBERS, trials=1)
    train, tune = {**values["train"], "select": "val_accuracy"}, {**values["tune"], "metric": "val_accuracy"}
    study({**values, "train": train, "tune": tune})
    with pytest.raises(StudyError, match=r"train\.select=val_accuracy tune\.metric=val_accuracy"):
        study(values)


@pytest.mark.parametrize(
    ("overrides", "name", "is_higher"),
    [
        ([], "val_metric", True),
        (["train.select=val_loss"], "val_loss", False),
        (["competition.ood_validation={severities: [1], every: 1}"], "ood_metric", True),
    ],
)
def test_trials_are_compared_by_what_selects_their_weights(
    here: Path, overrides: list[str], name: str, is_higher: bool
) -> None:
    values = configs.load("small.yaml", [*overrides, "competition.suite.source=corrupt_test"])
    assert objectives.names(values) == (name,)
    assert objectives.chosen(values)[0].higher_is_better(values) == is_higher
    flipped = values.model_copy(update={"competition": values.competition.model_copy(update={"metric": "log_loss"})})
    assert not objectives.chosen(flipped)[0].higher_is_better(flipped)
