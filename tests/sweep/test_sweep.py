"""Whole sweeps of fake runs: results, failures, signals, resuming and mistakes."""

import os
import random
import re
import shutil
import signal
import sys
import time

import pytest

from classic_cnns.sweep.display import ProgressDisplay
from classic_cnns.sweep.job import Job
from classic_cnns.sweep.sweep import is_missing, without_latest
from tests.sweep.conftest import read_starts, read_table, wait_for

WORDS = ["model=lenet5,simple_cnn", "seed=range(2)", "sweep.parallel=2"]


def test_a_sweep_has_a_row_for_each_job_and_names_the_best(sweep):
    done = sweep(*WORDS, "sweep.dir=s", LOCAL_RANK="1", WORLD_SIZE="2", PL_GLOBAL_SEED="5")
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    rows = read_table(sweep.folder / "s")
    assert [(r["model"], r["seed"]) for r in rows] == [
        (model, seed) for model in ("lenet5", "simple_cnn") for seed in ("0", "1")
    ]
    assert {r["state"] for r in rows} == {"finished"}
    expected = sum(0.02 / (1 + 1 + epoch) for epoch in (1, 2, 3))  # 0.02 is the recipe's rate
    assert float(rows[1]["error/val"]) == pytest.approx(expected)
    assert (sweep.folder / "s" / "results.md").read_text().strip() in done.out
    assert "python src/train.py" not in done.out  # the program as it was called:
    assert "fake_train.py trainer.max_epochs=3 model=lenet5 seed=1" in done.out
    for number in range(4):
        (start,) = read_starts(sweep.folder / "s" / str(number))
        assert start["LOCAL_RANK"] == start["WORLD_SIZE"] == start["PL_GLOBAL_SEED"] is None
        config = (sweep.folder / "s" / str(number) / "config.yaml").read_text()
        assert "sweep" not in config and "varied" in config and "model=" in config


def screen(text: str) -> list[str]:
    """What a terminal shows of a text that moves the cursor up and erases below it."""
    lines: list[str] = []
    for part in text.split("\033["):
        up = re.match(r"(\d+)A", part)
        lines = lines[: len(lines) - int(up[1])] if up else lines
        lines += re.sub(r"^(\d+A|J)", "", part).splitlines()
    return lines


def test_a_terminal_shows_running_jobs_below_the_log(tmp_path, monkeypatch, capsys):
    jobs = [Job(n, [], {"seed": str(n)}, tmp_path, [], state="running") for n in range(3)]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((15, 5)))
    display = ProgressDisplay("error/val")
    display.say("3 jobs")
    for running, waiting in ((jobs[:2], 1), (jobs[:2], 1), (jobs[1:], 0)):
        display.started(running[-1])  # is shown as a live line only
        display.drawn_at = 0.0
        display.draw(running, waiting)
        display.draw(running, waiting)  # at most twice a second
    shown = screen(capsys.readouterr().out)
    assert shown == ["3 jobs", "job 1 seed=1: ", "job 2 seed=2: "]  # cut at the edge
    jobs[1].state, jobs[1].result = "killed", {"error": "by\nhand"}
    display.ended(jobs[1])
    assert screen("\n".join(shown) + "\n" + capsys.readouterr().out) == [
        "3 jobs", "job 1 seed=1: killed  by hand",
    ]  # fmt: skip


def test_a_live_line_has_room_for_the_metric(tmp_path, monkeypatch, capsys):
    last = {"epoch": 12, "epochs": 20, "metrics": {"error/val": 0.941}, "seconds": 60}
    parameters = {"optim.lr": "0.02", "seed": "0"}
    job = Job(7, [], parameters, tmp_path, [], state="running", last=last)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((60, 5)))
    for state, shown in (
        ("running", "job 7 optim.lr=0.02 seed=0: epoch 12/20  error/val 94.10%"),
        ("pruning", "job 7 optim.lr=0.02 seed=0: pruning  epoch 12/20"),
    ):
        job.state, display = state, ProgressDisplay("error/val")
        display.draw([job], 0)
        (line,) = screen(capsys.readouterr().out)
        assert line.startswith(shown)


def test_a_sweep_is_not_started_once_for_each_rank(sweep):
    done = sweep("seed=0,1", "sweep.dir=s", TORCHELASTIC_RUN_ID="none", WORLD_SIZE="2")
    assert (done.code, done.out) == (2, "") and not (sweep.folder / "s").exists()
    assert (
        done.err == "error: -m: a sweep starts the processes of its jobs; try it without torchrun\n"
    )


def test_a_sweep_without_a_directory_gets_a_new_one(sweep):
    done = sweep("seed=0,1")
    assert done.code == 0, done.err
    (directory,) = (sweep.folder / "outputs" / "sweep").iterdir()
    assert [row["state"] for row in read_table(directory)] == ["finished"] * 2


@pytest.mark.parametrize(("choice", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_extra_is_reported_in_one_line(sweep, choice, package):
    done = sweep(f"sweep={choice}", "seed=0,1", HIDDEN=package)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert f"sweep={choice}: needs an extra; try pip install -e '.[{choice}]'" in done.err


def test_a_ray_cluster_that_is_not_there_is_reported_in_one_line(sweep):
    pytest.importorskip("ray")
    done = sweep("sweep=ray", "sweep.executor.address=auto", "seed=0,1", "sweep.dir=s")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert done.err.startswith("error: sweep.executor.address=auto: Could not find any running Ray")
    assert not (sweep.folder / "s").exists()


def test_failed_jobs_are_rows_and_others_continue(sweep):
    words = ["optim.lr=0.5,0.6,0.8,0.1", "sweep.dir=s", "sweep.parallel=4"]
    done = sweep(*words)
    assert done.code == 1 and "Traceback" not in done.out + done.err
    rows = read_table(sweep.folder / "s")
    states = ["failed", "killed", "diverged", "finished"]
    assert [row["state"] for row in rows] == states
    errors = [row["error"] for row in rows]
    assert errors[0].endswith("no memory is left") and "\n" not in errors[0]
    assert "SIGKILL" in errors[1] and "memory" in errors[1] and errors[2] == "nan"
    assert "Traceback" in (sweep.folder / "s" / "0" / "output.log").read_text()
    assert all(error in done.out for error in errors)

    assert sweep(*words).code == 1  # starts those again that may end differently
    assert [row["state"] for row in read_table(sweep.folder / "s")] == states
    assert [len(read_starts(sweep.folder / "s" / str(n))) for n in range(4)] == [2, 2, 1, 1]


@pytest.mark.slow
def test_a_metric_that_is_not_logged_is_reported_with_those_that_are(sweep):
    done = sweep("optim.lr=0.1,0.2", "sweep.metric=loss/val", "sweep.dir=s")
    line = "sweep.metric=loss/val: is not logged; logged are error/val, accuracy/val, loss/train"
    assert done.out.count(line) == 1


def test_a_record_that_cannot_be_continued_is_reported_in_one_line(sweep):
    (sweep.folder / "s").mkdir()
    record = '{"program": ["python"], "varied": ["seed"], "jobs": [["seed=0"]]}'
    (sweep.folder / "s" / "sweep.yaml").write_text(record)
    done = sweep("seed=0,1", "sweep.dir=s")
    line = "error: s/sweep.yaml: is not the record of a sweep; try another sweep.dir\n"
    assert (done.code, done.err) == (2, line)


def test_later_jobs_start_from_the_net_of_the_first_ones(tmp_path):
    (tmp_path / "latest.txt").write_text("2026-11-22_10-15-03\n")
    word = f"init_from={tmp_path}/latest"
    assert without_latest(word) == f"init_from={tmp_path}/2026-11-22_10-15-03"
    for word in (f"name={tmp_path}/latest", "init_from=a,b", "seed=range(3)"):
        assert without_latest(word) == word


def test_a_metric_of_validation_may_come_in_a_later_epoch():
    assert not is_missing("error/val", {"error/train", "error/val"})
    assert not is_missing("error/val", {"error/train"})
    for name in ("error/test", "top5_error/test_centre", "seconds"):  # known at the end
        assert not is_missing(name, {"error/train", "error/val"})
    assert is_missing("error/vall", {"error/train"})
    assert is_missing("f1/val", {"error/train", "error/val"})


@pytest.mark.slow
def test_a_job_over_the_time_limit_is_a_row_too(sweep):
    assert sweep("optim.lr=0.7,0.1", "sweep.time_limit=2", "sweep.dir=s").code == 1
    hung, other = read_table(sweep.folder / "s")
    assert (hung["state"], other["state"]) == ("timeout", "finished")
    assert "sweep.time_limit=2" in hung["error"]


def test_fail_fast_stops_the_other_jobs_and_starts_no_more(sweep):
    done = sweep("optim.lr=0.7,0.5,0.1", "sweep.fail_fast=true", "sweep.parallel=2", "sweep.dir=s")
    assert done.code == 1
    states = [row["state"] for row in read_table(sweep.folder / "s")]
    assert states == ["interrupted", "failed", "waiting"]


@pytest.mark.slow
def test_parallel_limits_the_jobs_that_run_at_the_same_time(sweep):
    assert sweep("seed=range(4)", "sweep.parallel=2", "sweep.dir=s", EPOCH_SECONDS="0.2").code == 0
    spans = []
    for number in range(4):
        directory = sweep.folder / "s" / str(number)
        spans.append(
            (read_starts(directory)[0]["time"], (directory / "result.json").stat().st_mtime)
        )
    parallel = [sum(a <= start < b for a, b in spans) for start, _ in spans]
    assert max(parallel) == 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_sweep_stopped_at_random_times_is_resumed_with_an_equal_table(sweep, number):
    words = ["optim.lr=0.01,0.1", "seed=range(2)", "sweep.parallel=2"]
    start_time = time.monotonic()
    assert sweep(*words, "sweep.dir=whole", EPOCH_SECONDS="0.2").code == 0
    seconds = time.monotonic() - start_time
    random.seed(number)
    for _ in range(2):
        process = sweep.start(*words, "sweep.dir=stopped", EPOCH_SECONDS="0.2")
        time.sleep(random.uniform(0.2, 0.7) * seconds)
        process.send_signal(number)
        out, err = process.communicate(timeout=100)
        if "To repeat it" in out:  # it had finished
            break
        assert "Traceback" not in err
        if number == signal.SIGKILL:
            assert process.returncode == -number
        elif "jobs in stopped" in out:
            assert process.returncode == 128 + number
            assert "sweep.dir=stopped" in out.split("continue with: ")[1]
    assert sweep(*words, "sweep.dir=stopped").code == 0
    rows, whole = read_table(sweep.folder / "stopped"), read_table(sweep.folder / "whole")
    assert [{**row, "directory": ""} for row in rows] == [{**row, "directory": ""} for row in whole]
    for row in range(4):
        epochs = [start["epoch"] for start in read_starts(sweep.folder / "stopped" / str(row))]
        assert epochs == sorted(epochs)  # never starts again from epoch 0


def test_a_signal_stops_a_sweep_as_soon_as_its_directory_is_printed(sweep):
    process = sweep.start("seed=0,1", "sweep.dir=s", EPOCH_SECONDS="9")
    assert process.stdout.readline() == "2 jobs in s\n"
    process.terminate()
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGTERM
    assert "sweep.dir=s" in out.split("continue with: ")[1]


@pytest.mark.parametrize("words", [["sweep.dir=s"], []])
def test_a_sweep_whose_time_is_over_asks_slurm_to_be_started_again(sweep, words):
    scontrol = sweep.folder / "scontrol"
    scontrol.write_text("#!/bin/sh\necho $@ > asked\n")
    scontrol.chmod(0o755)
    slurm = {"SLURM_JOB_ID": "42", "SLURM_NTASKS": "1", "SLURM_RESTART_COUNT": "1"}
    path = f"{sweep.folder}:{os.environ['PATH']}"
    process = sweep.start("seed=0,1", *words, EPOCH_SECONDS="9", PATH=path, **slurm)
    assert process.stdout.readline().startswith("2 jobs in ")
    process.send_signal(signal.SIGUSR1)
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGUSR1 and "continue with: " in out
    asked = [path.read_text() for path in sweep.folder.glob("asked")]
    assert asked == ["requeue 42\n"] * len(words)  # the command alone would begin a new sweep


def test_a_finished_sweep_starts_no_jobs(sweep):
    assert sweep("seed=0,1", "sweep.dir=s").code == 0
    done = sweep("seed=0,1", "sweep.dir=s")
    assert done.code == 0 and "2 are over already" in done.out
    assert len(read_starts(sweep.folder / "s" / "0")) == 1


def test_another_grid_another_folder_and_a_second_process_are_refused(sweep):
    words = ["seed=0,1", "sweep.dir=s"]
    process = sweep.start(*words, EPOCH_SECONDS="2")
    wait_for(sweep.folder / "s" / "0" / "starts")
    second = sweep(*words)
    assert second.code == 2 and "another process is running this sweep" in second.err
    process.terminate()
    process.communicate(timeout=60)

    changed = sweep("seed=0,1,2", "sweep.dir=s")
    assert changed.code == 2 and "its grid was trainer.max_epochs=3 seed=0,1;" in changed.err
    record = sweep.folder / "s" / "sweep.yaml"
    record.write_text(record.read_text().replace("- seed=1", "- seed=7"))  # as glob(*) may change
    other_job = sweep(*words)
    assert other_job.code == 2 and "job 1 was trainer.max_epochs=3 seed=7;" in other_job.err
    (sweep.folder / "mine").mkdir()
    (sweep.folder / "mine" / "letter.txt").touch()
    other_folder = sweep("seed=0,1", "sweep.dir=mine")
    assert other_folder.code == 2 and "contains no sweep" in other_folder.err
    for answer in (second, changed, other_job, other_folder):
        assert answer.err.startswith("error: ") and answer.err.count("\n") == 1, answer.err
    assert [path.name for path in (sweep.folder / "mine").iterdir()] == ["letter.txt"]
