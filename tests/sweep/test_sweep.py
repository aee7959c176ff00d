"""Whole sweeps of stand-ins for runs: what they share, survive, refuse and leave behind."""

import random
import signal
import time

import pytest

from tests.sweep.conftest import sheet, starts, wait_for

WORDS = ["model=lenet5,simple_cnn", "seed=range(2)", "sweep.parallel=2"]


def test_a_sweep_ends_with_a_row_for_each_job_and_the_answer(sweep):
    done = sweep(*WORDS, "sweep.dir=s", LOCAL_RANK="1", WORLD_SIZE="2", PL_GLOBAL_SEED="5")
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    rows = sheet(sweep.folder / "s")
    assert [(r["model"], r["seed"]) for r in rows] == [
        (model, seed) for model in ("lenet5", "simple_cnn") for seed in ("0", "1")
    ]
    assert {r["state"] for r in rows} == {"finished"}
    want = sum(0.02 / (1 + 1 + epoch) for epoch in (1, 2, 3))  # 0.02 is the recipe's rate
    assert float(rows[1]["error/val"]) == pytest.approx(want)
    assert (sweep.folder / "s" / "results.md").read_text().strip() in done.out
    assert "python src/train.py" not in done.out  # but as it was called:
    assert "stand_in.py trainer.max_epochs=3 model=lenet5 seed=1" in done.out
    for number in range(4):
        (start,) = starts(sweep.folder / "s" / str(number))
        assert start["LOCAL_RANK"] == start["WORLD_SIZE"] == start["PL_GLOBAL_SEED"] is None
        config = (sweep.folder / "s" / str(number) / "config.yaml").read_text()
        assert "sweep" not in config and "varied" in config and "model=" in config


def test_a_sweep_without_a_directory_gets_one_of_its_own(sweep):
    done = sweep("seed=0,1")
    assert done.code == 0, done.err
    (directory,) = (sweep.folder / "outputs" / "sweep").iterdir()
    assert [row["state"] for row in sheet(directory)] == ["finished"] * 2


@pytest.mark.parametrize(("choice", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_extra_is_told_in_one_line(sweep, choice, package):
    done = sweep(f"sweep={choice}", "seed=0,1", HIDDEN=package)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert f"sweep={choice}: needs an extra; try pip install -e '.[{choice}]'" in done.err


def test_failures_are_rows_and_the_others_go_on(sweep):
    words = ["optim.lr=0.5,0.6,0.8,0.1", "sweep.dir=s", "sweep.parallel=4"]
    done = sweep(*words)
    assert done.code == 1 and "Traceback" not in done.out + done.err
    rows = sheet(sweep.folder / "s")
    states = ["failed", "killed", "diverged", "finished"]
    assert [row["state"] for row in rows] == states
    errors = [row["error"] for row in rows]
    assert errors[0].endswith("no memory is left") and "\n" not in errors[0]
    assert "SIGKILL" in errors[1] and "memory" in errors[1] and errors[2] == "nan"
    assert "Traceback" in (sweep.folder / "s" / "0" / "output.log").read_text()
    assert all(error in done.out for error in errors)

    assert sweep(*words).code == 1  # tries those again that may end better
    assert [row["state"] for row in sheet(sweep.folder / "s")] == states
    assert [len(starts(sweep.folder / "s" / str(n))) for n in range(4)] == [2, 2, 1, 1]


@pytest.mark.slow
def test_a_job_that_takes_too_long_is_a_row_too(sweep):
    assert sweep("optim.lr=0.7,0.1", "sweep.time_limit=2", "sweep.dir=s").code == 1
    hung, other = sheet(sweep.folder / "s")
    assert (hung["state"], other["state"]) == ("timeout", "finished")
    assert "sweep.time_limit=2" in hung["error"]


def test_fail_fast_ends_the_others_and_starts_no_more(sweep):
    done = sweep("optim.lr=0.7,0.5,0.1", "sweep.fail_fast=true", "sweep.parallel=2", "sweep.dir=s")
    assert done.code == 1
    states = [row["state"] for row in sheet(sweep.folder / "s")]
    assert states == ["interrupted", "failed", "waiting"]


@pytest.mark.slow
def test_no_more_jobs_run_at_a_time_than_said(sweep):
    assert sweep("seed=range(4)", "sweep.parallel=2", "sweep.dir=s", EPOCH_SECONDS="0.2").code == 0
    spans = []
    for number in range(4):
        directory = sweep.folder / "s" / str(number)
        spans.append((starts(directory)[0]["time"], (directory / "result.json").stat().st_mtime))
    together = [sum(a <= start < b for a, b in spans) for start, _ in spans]
    assert max(together) == 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_sweep_stopped_at_random_moments_ends_with_the_undisturbed_table(sweep, number):
    words = ["optim.lr=0.01,0.1", "seed=range(2)", "sweep.parallel=2"]
    began = time.monotonic()
    assert sweep(*words, "sweep.dir=whole", EPOCH_SECONDS="0.2").code == 0
    seconds = time.monotonic() - began
    random.seed(number)
    for _ in range(2):
        process = sweep.start(*words, "sweep.dir=stopped", EPOCH_SECONDS="0.2")
        time.sleep(random.uniform(0.2, 0.7) * seconds)
        process.send_signal(number)
        out, err = process.communicate(timeout=100)
        if "To repeat it" in out:  # it was over
            break
        assert "Traceback" not in err
        if number == signal.SIGKILL:
            assert process.returncode == -number
        elif "jobs in stopped" in out:
            assert process.returncode == 128 + number
            assert "sweep.dir=stopped" in out.split("continue with: ")[1]
    assert sweep(*words, "sweep.dir=stopped").code == 0
    rows, whole = sheet(sweep.folder / "stopped"), sheet(sweep.folder / "whole")
    assert [{**row, "directory": ""} for row in rows] == [{**row, "directory": ""} for row in whole]
    for row in range(4):
        epochs = [start["epoch"] for start in starts(sweep.folder / "stopped" / str(row))]
        assert epochs == sorted(epochs)  # never starts over


def test_a_signal_is_heard_as_soon_as_the_sweep_has_said_where_it_is(sweep):
    process = sweep.start("seed=0,1", "sweep.dir=s", EPOCH_SECONDS="9")
    assert process.stdout.readline() == "2 jobs in s\n"
    process.terminate()
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGTERM
    assert "sweep.dir=s" in out.split("continue with: ")[1]


def test_a_finished_sweep_starts_nothing(sweep):
    assert sweep("seed=0,1", "sweep.dir=s").code == 0
    done = sweep("seed=0,1", "sweep.dir=s")
    assert done.code == 0 and "2 are over already" in done.out
    assert len(starts(sweep.folder / "s" / "0")) == 1


def test_another_grid_a_foreign_directory_or_a_second_process_is_refused_in_one_line(sweep):
    words = ["seed=0,1", "sweep.dir=s"]
    process = sweep.start(*words, EPOCH_SECONDS="2")
    wait_for(sweep.folder / "s" / "0" / "starts")
    second = sweep(*words)
    assert second.code == 2 and "another process is running this sweep" in second.err
    process.terminate()
    process.communicate(timeout=60)

    changed = sweep("seed=0,1,2", "sweep.dir=s")
    assert changed.code == 2 and "its grid was trainer.max_epochs=3 seed=0,1;" in changed.err
    (sweep.folder / "mine").mkdir()
    (sweep.folder / "mine" / "letter.txt").touch()
    foreign = sweep("seed=0,1", "sweep.dir=mine")
    assert foreign.code == 2 and "contains no sweep" in foreign.err
    for answer in (second, changed, foreign):
        assert answer.err.startswith("error: ") and answer.err.count("\n") == 1, answer.err
    assert [path.name for path in (sweep.folder / "mine").iterdir()] == ["letter.txt"]
