"""Searches of fake runs: trials, pruning, failures, resuming and mistakes."""

import json
from math import log
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from omegaconf import OmegaConf

from classic_cnns import UserError
from classic_cnns.config.compose import Composer
from classic_cnns.sweep.grid import Grid
from classic_cnns.sweep.search import Search
from tests.sweep.conftest import read_starts, read_table, wait_for
from tests.sweep.fake_train import error

pytestmark = pytest.mark.slow  # whole runs and processes

optuna = pytest.importorskip("optuna", minversion="4")
RANDOM = {"_target_": "optuna.samplers.RandomSampler", "seed": 3}
LR = "optim.lr=tag(log,interval(0.01,0.4))"


@pytest.fixture(scope="module", autouse=True)
def import_optuna(server_without_torch):
    for module in ("optuna", "sqlalchemy", "alembic"):
        server_without_torch.ask(module=module)


@pytest.fixture
def experiment(tmp_path):
    """A function that writes experiment/own.yaml with a search, and returns its overrides."""

    def experiment(n_trials: Any = 6, sampler: dict = RANDOM, **search: Any) -> list[str]:
        settings = {"n_trials": n_trials, "sampler": sampler, **search}
        folder = tmp_path / "conf" / "experiment"
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"sweep": {"search": settings}})  # JSON is YAML too
        (folder / "own.yaml").write_text(f"# @package _global_\n{text}\n")
        return ["--config-dir", str(tmp_path / "conf"), "experiment=own"]

    return experiment


def study(folder: Path):
    return optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder}/s/study.db")


def test_each_trial_is_a_row_of_the_table_and_a_trial_of_the_study(sweep, experiment):
    done = sweep(
        *experiment(), LR, "sweep.dir=s", "seed=choice(0,1)", "data.batch_size=range(8,33,8)"
    )
    assert done.code == 0, done.err
    rows = read_table(sweep.folder / "s")
    trials = study(sweep.folder).trials
    assert len(rows) == len(trials) == 6
    for row, trial in zip(rows, trials, strict=True):
        assert float(row["error/val"]) == trial.value
        assert trial.value == error(float(row["optim.lr"]), int(row["seed"]), 3)
        assert 0.01 <= float(row["optim.lr"]) <= 0.4 and row["data.batch_size"] in "8 16 24 32"
        config = json.loads((sweep.folder / "s" / row["job"] / "config.yaml").read_text())
        for key in ("optim.lr", "seed", "data.batch_size"):
            assert config[key] == row[key] == str(trial.params[key])
    assert len({row["optim.lr"] for row in rows}) == 6
    best = min(rows, key=lambda row: float(row["error/val"]))
    assert f"Best: job {best['job']}, error/val" in done.out


def test_pruned_trials_end_early_and_are_marked_in_the_table(sweep, experiment):
    pruner = {"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 2}
    params = {"optim.lr": {"low": 0.01, "high": 0.4, "log": True}}
    words = [*experiment(pruner=pruner, params=params), "sweep.dir=s", "sweep.parallel=1"]
    words += ["trainer.max_epochs=6"]
    done = sweep(*words, EPOCH_SECONDS="0.15")
    assert done.code == 0, done.err  # no trial has failed
    rows = read_table(sweep.folder / "s")
    finished: list[list[float]] = []  # values of each epoch, in the order of the trials
    for row in rows:
        curve = [error(float(row["optim.lr"]), 0, epoch) for epoch in range(1, 7)]
        # The errors increase, so the first epoch of a trial decides.
        bad = len(finished) >= 2 and curve[0] > median(values[0] for values in finished)
        assert row["state"] == ("pruned" if bad else "finished"), row
        if bad:
            assert float(row["last error/val"]) in curve[:5] and not row["error/val"]
        else:
            finished.append(curve)
    pruned = [row["job"] for row in rows if row["state"] == "pruned"]
    assert 1 <= len(pruned) <= 4
    for number in pruned:
        assert study(sweep.folder).trials[int(number)].state == optuna.trial.TrialState.PRUNED
        assert f"job {number} optim.lr=" in done.out and "pruned after epoch" in done.out
        directory = sweep.folder / "s" / number
        assert json.loads((directory / "result.json").read_text())["status"] == "pruned"
        assert len((directory / "metrics.jsonl").read_text().splitlines()) < 6

    assert sweep(*words).code == 0
    assert read_table(sweep.folder / "s") == rows  # pruned trials are not started again
    assert all(len(read_starts(sweep.folder / "s" / str(number))) == 1 for number in range(6))


def test_failed_runs_are_failed_trials_and_others_continue(sweep, experiment):
    words = [*experiment(), "optim.lr=choice(0.5,0.6,0.8,0.1)", "sweep.dir=s", "sweep.parallel=3"]
    assert sweep(*words).code == 1
    rows, trials = read_table(sweep.folder / "s"), study(sweep.folder).trials
    assert len(rows) == 6
    states = {"0.5": "failed", "0.6": "killed", "0.8": "diverged", "0.1": "finished"}
    assert [row["state"] for row in rows] == [states[row["optim.lr"]] for row in rows]
    for row, trial in zip(rows, trials, strict=True):
        assert trial.state.name == ("COMPLETE" if row["state"] == "finished" else "FAIL")


def test_a_forbidden_combination_of_values_is_a_failed_trial(sweep, experiment):
    space = {"trainer.devices": ["1", "2"], "data.batch_size": ["1", "2"]}
    sampler = {"_target_": "optuna.samplers.GridSampler", "seed": 0, "search_space": space}
    words = ["trainer.devices=1,2", "data.batch_size=2,1", "trainer=cpu", "sweep.dir=s"]
    done = sweep(*experiment(4, sampler), *words)
    assert done.code == 1, done.err
    rows = {(r["trainer.devices"], r["data.batch_size"]): r for r in read_table(sweep.folder / "s")}
    assert len(rows) == 4
    for pair, row in rows.items():
        assert row["state"] == ("failed" if pair == ("2", "1") else "finished")
    assert "data.batch_size=1" in rows["2", "1"]["error"]
    fast = ["sweep.fail_fast=true", "sweep.parallel=1", "sweep.dir=t"]
    assert sweep(*experiment(4, sampler), *words[:-1], *fast).code == 1
    *before, last = read_table(sweep.folder / "t")
    assert len(before) < 3 and last["state"] == "failed"  # no trial started after it


def test_any_metric_can_be_maximized(sweep, experiment):
    metric = "accuracy/val"
    sampler = {"_target_": "optuna.samplers.TPESampler", "seed": 0, "n_startup_trials": 2}
    words = [*experiment(6, sampler), LR, "sweep.dir=s"]
    done = sweep(*words, f"sweep.metric={metric}", "sweep.direction=maximize")
    assert done.code == 0, done.err
    rows = read_table(sweep.folder / "s")
    best = max(rows, key=lambda row: float(row[metric]))
    assert study(sweep.folder).best_trial.number == int(best["job"])
    assert f"Best: job {best['job']}, {metric} " in done.out
    assert float(best[metric]) == 1 - error(float(best["optim.lr"]), 0, 3)


def test_a_killed_search_is_resumed_with_an_equal_table(sweep, experiment):
    words = [*experiment(), LR, "sweep.parallel=1"]
    assert sweep(*words, "sweep.dir=whole", EPOCH_SECONDS="0.2").code == 0
    for number, trial in ((9, 0), (15, 1), (2, 3), (9, 4)):
        process = sweep.start(*words, "sweep.dir=s", EPOCH_SECONDS="0.2")
        wait_for(sweep.folder / "s" / f"{trial}" / "last.ckpt")  # after its first epoch of three
        process.send_signal(number)
        process.communicate(timeout=100)
    assert sweep(*words, "sweep.dir=s").code == 0
    whole, rows = read_table(sweep.folder / "whole"), read_table(sweep.folder / "s")
    assert [{**row, "directory": ""} for row in rows] == [{**row, "directory": ""} for row in whole]
    assert [trial.number for trial in study(sweep.folder).trials] == list(range(6))
    starts = [read_starts(sweep.folder / "s" / str(number)) for number in range(6)]
    assert max(map(len, starts)) > 1
    for runs in starts:
        epochs = [start["epoch"] for start in runs]
        assert epochs == sorted(epochs)  # never starts again from epoch 0


def test_trials_that_a_killed_search_had_not_written_to_its_record_are_kept(sweep, experiment):
    """With many jobs, sweep.yaml is not written after each of them."""
    words = [LR, "sweep.dir=s"]
    assert sweep(*experiment(4), *words).code == 0
    record, before = sweep.folder / "s" / "sweep.yaml", read_table(sweep.folder / "s")
    values = OmegaConf.load(record)
    values.jobs = values.jobs[:1]
    OmegaConf.save(values, record)
    assert sweep(*experiment(5), *words).code == 0
    after = read_table(sweep.folder / "s")
    assert after[:4] == before and len(after) == 5
    assert [len(read_starts(sweep.folder / "s" / row["job"])) for row in after] == 5 * [1]


def test_a_killed_search_resumes_its_running_trials(sweep, experiment):
    words = [*experiment(), LR, "sweep.dir=s", "sweep.parallel=2"]
    process = sweep.start(*words, EPOCH_SECONDS="0.3")
    wait_for(sweep.folder / "s" / "1" / "last.ckpt")
    process.kill()
    process.communicate()
    before = {trial.number: trial.params for trial in study(sweep.folder).trials}
    assert {0, 1} <= before.keys()
    done = sweep(*words)
    assert done.code == 0, done.err
    trials = study(sweep.folder).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 6
    assert {n: trials[n].params for n in before} == before
    assert [start["epoch"] for start in read_starts(sweep.folder / "s" / "1")][0:2] == [0, 1]


def test_a_search_is_described_on_the_command_line(sweep):
    done = sweep("sweep.search.n_trials=3", "sweep.search.params=null", LR, "sweep.dir=s")
    assert done.code == 0, done.err
    assert [t.state.name for t in study(sweep.folder).trials] == 3 * ["COMPLETE"]


def test_the_bounds_of_a_file_can_be_replaced(sweep, experiment):
    params = {"optim.lr": {"low": 0.001, "high": 0.3, "log": True}}
    low, high = (f"sweep.search.params.optim.lr.{end}" for end in ("low=0.1", "high=0.2"))
    done = sweep(*experiment(3, params=params), low, high, "sweep.dir=s")
    assert done.code == 0, done.err
    assert all(0.1 <= float(row["optim.lr"]) <= 0.2 for row in read_table(sweep.folder / "s"))
    done = sweep("sweep.search.n_trials=3", low, high, "sweep.dir=t")
    assert done.code == 0, done.err
    assert len(read_table(sweep.folder / "t")) == 3


def test_a_search_may_have_only_settings_of_the_sweep():
    low, high = (f"sweep.search.params.optim.lr.{end}" for end in ("low=0.1", "high=0.2"))
    grid = Grid(["sweep.search.n_trials=3", low, high], {})
    config = Composer().compose([*grid.settings, *grid.first()])
    assert len(Search(config.sweep, grid).corners()) == 2


def test_an_older_optuna_is_reported(monkeypatch):
    monkeypatch.setattr("classic_cnns.sweep.search.version", {"optuna": "3.6.1"}.get)
    config = Composer().compose(["sweep.search.n_trials=3"])
    with pytest.raises(UserError, match="sweep.search: needs Optuna 4 or newer"):
        Search(config.sweep, Grid([LR], {}))


@pytest.mark.parametrize(("word", "line"), [
    ("optim.lr=range(0.1,1,1e-9)", "has too many steps; try interval"),
    ("optim.lr=tag(log,range(1,5))", "steps are not on a log scale; try interval"),
])  # fmt: skip
def test_a_range_that_is_no_parameter_is_refused(word, line):
    grid = Grid([word, "sweep.search.n_trials=3"], {})
    config = Composer().compose(grid.settings)
    with pytest.raises(UserError, match=line):
        Search(config.sweep, grid)


def test_a_seed_of_a_sampler_that_is_no_number_is_refused():
    sampler = "sweep.search.sampler={_target_:optuna.samplers.TPESampler,seed:abc}"
    grid = Grid(["optim.lr=interval(0.1,0.2)", "sweep.search.n_trials=3", sampler], {})
    with pytest.raises(UserError, match="^sweep.search.sampler: .*try one of optuna.samplers"):
        Search(Composer().compose(grid.settings).sweep, grid)


def test_a_search_by_a_metric_that_is_not_logged_ends_with_the_first_job(sweep, experiment):
    words = [*experiment(), LR, "sweep.dir=s", "sweep.metric=error/vall", "sweep.parallel=1"]
    done = sweep(*words)
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert done.err.startswith("error: sweep.metric=error/vall: job 0 has no such result")
    assert "error/val," in done.err
    assert len(read_table(sweep.folder / "s")) == 1


OTHERS = {
    "sweep.metric=accuracy/val": "its sweep.metric was error/val;",
    "sweep.direction=maximize": "its sweep.direction was minimize;",
    "sweep.search.params.optim.lr.high=0.2":
        "its search had optim.lr with low=0.01, high=0.4, log=True;",
    "sweep.search.params.seed.choices=[1,2]": "its search did not have seed;",
    "optim.momentum=0.8": "its grid was",
    "sweep.search=null": "it was a search;",
}  # fmt: skip


def test_what_another_search_changes_is_named(sweep, experiment):
    params = {"optim.lr": {"low": 0.01, "high": 0.4, "log": True}}
    command = [*experiment(2, params=params), "sweep.dir=s"]
    assert sweep(*command).code == 0
    for word, line in OTHERS.items():
        done = sweep(*command, word)
        assert (done.code, done.err.count("\n")) == (2, 1), done.err
        assert done.err.startswith(f"error: sweep.dir=s: {line}") and "continue with: " in done.err


REFUSED = {
    "optuna": ({}, ["needs Optuna 4 or newer", "pip install -e '.[optuna]'"]),
    "n_trials": ({"n_trials": "many"}, ["sweep.search.n_trials=many", "whole number"]),
    "trials": ({"trials": 3}, ["sweep.search.trials", "n_trials, params"]),
    "sampler": ({"sampler": {"_target_": "optuna.samplers.Nope"}}, ["sampler", "Nope"]),
    "no high": ({"params": {"optim.momentum": {"low": 1}}}, ["params.optim.momentum", "low"]),
    "low": ({"params": {"optim.lr": {"low": 2, "high": 1}}}, ["params.optim.lr", "low"]),
    "range": (
        {"params": {"optim.momentum": {"low": 0.5, "high": 1.5}}},
        ["optim.momentum=1.5", "below 1"],
    ),
    "key": ({"params": {"optim.lrr": {"low": 0.5, "high": 1.5}}}, ["optim.lrr=0.5", "optim.lr"]),
    "name": ({"params": {"optim.lr": {"low": 1, "high": 2}, "seed": {}}}, ["params.seed: miss"]),
    "number": ({"params": {"optim.lr": 0.5}}, ["params.optim.lr=0.5: try {low: 0.001, high:"]),
    "nothing": ({}, ["has no parameters"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_invalid_search_is_reported_in_one_line(sweep, experiment, name):
    search, expected = REFUSED[name]
    words = [*experiment(**search), *([] if name in ("nothing", "name") else ["seed=0,1"])]
    done = sweep(*words, HIDDEN="optuna" if name == "optuna" else "")
    assert (done.code, done.err.count("\n"), done.out) == (2, 1, ""), done.err
    assert not [text for text in expected if text not in done.err], done.err
    assert list(sweep.folder.iterdir()) == []


def test_values_of_a_log_interval_are_those_of_optunas_sampler(sweep, experiment):
    assert sweep(*experiment(), LR, "sweep.dir=s").code == 0
    found = [log(float(row["optim.lr"])) for row in read_table(sweep.folder / "s")]
    seeds = range(3, 9)  # each trial has its own seed
    expected = []
    for seed in seeds:
        study_of_one = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        expected.append(log(study_of_one.ask().suggest_float("x", 0.01, 0.4, log=True)))
    assert found == pytest.approx(expected)


def test_a_damaged_or_missing_study_is_reported_in_one_line(sweep, experiment):
    words = [*experiment(1), LR, "sweep.dir=s"]
    assert sweep(*words).code == 0
    study_file = sweep.folder / "s" / "study.db"
    study_file.write_text("x" * 5000)
    done = sweep(*words)
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert "s/study.db: is not the study of a search (" in done.err
    study_file.unlink()
    done = sweep(*words)
    assert (done.code, done.err) == (
        2, "error: s/study.db: is missing; restore it, or try another sweep.dir\n",
    )  # fmt: skip


def test_the_pruner_waits_for_its_warm_up_epochs(sweep, experiment):
    pruner = {"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 1}
    words = [*experiment(6, pruner=pruner | {"n_warmup_steps": 2}), LR, "sweep.dir=s"]
    done = sweep(*words, "sweep.parallel=1", "trainer.max_epochs=6", EPOCH_SECONDS="0.15")
    assert done.code == 0, done.err
    pruned = [t for t in study(sweep.folder).trials if t.state.name == "PRUNED"]
    assert pruned and all(max(trial.intermediate_values) >= 2 for trial in pruned)
