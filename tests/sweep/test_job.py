"""A job: its command and progress, its exit code, its result and its processes."""

import json
import os
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from classic_cnns.config.compose import compose, parse_overrides
from classic_cnns.config.stored import resume_command
from classic_cnns.files import read_json
from classic_cnns.sweep import job as module
from classic_cnns.sweep.job import Job, run_job
from classic_cnns.trainer.processes import clean_environment
from tests.forks import alive, gone
from tests.sweep.conftest import wait_for


def line(epoch: int, seconds: float) -> str:
    metrics = {"error/val": 0.015, "loss/train": 0.1}
    facts = {"epoch": epoch, "epochs": 12, "step": 9, "seconds": seconds, "metrics": metrics}
    return json.dumps(facts) + "\n"


def job(folder: Path, parameters: dict[str, str]) -> Job:
    words = [f"{key}={value}" for key, value in parameters.items()]
    return Job(3, words, parameters, folder, ["python", "src/train.py"], state="running")


def test_progress_is_read_from_the_last_complete_line(tmp_path, monkeypatch):
    path, clock, running = tmp_path / "metrics.jsonl", [100.0], job(tmp_path, {})
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    assert running.read_progress() == [] and running.progress("error/val") == ""
    path.write_text(line(3, 9.0) + line(4, 12.0) + line(5, 15.0)[:20])
    assert [found["epoch"] for found in running.read_progress()] == [3, 4]
    assert running.progress("error/val") == "epoch 4/12  error/val 1.50%  24 s left"
    assert running.progress("loss/train") == "epoch 4/12  loss/train 0.1  24 s left"
    assert running.progress("none/val") == "epoch 4/12  24 s left"
    clock[0] = 102.0
    assert running.read_progress() == []
    assert running.progress("error/val").endswith("22 s left")
    path.write_text(line(3, 9.0) + line(4, 12.0) + line(5, 15.0))
    assert [found["epoch"] for found in running.read_progress()] == [5]


def test_metrics_cut_by_a_resumed_run_are_read_again(tmp_path):
    path, running = tmp_path / "metrics.jsonl", job(tmp_path, {})
    path.write_text(line(1, 1.0) + line(2, 2.0))
    running.read_progress()
    path.write_text(line(1, 1.0))
    assert [found["epoch"] for found in running.read_progress()] == [1]
    path.write_text(line(1, 1.0) + line(2, 2.5))
    assert [found["seconds"] for found in running.read_progress()] == [2.5]


def test_an_incomplete_line_is_skipped(tmp_path):
    path, running = tmp_path / "metrics.jsonl", job(tmp_path, {})
    path.write_text(line(1, 1.0) + line(2, 2.0)[:30] + line(2, 2.0) + line(3, 3.0))
    assert [found["epoch"] for found in running.read_progress()] == [1, 3]


@pytest.mark.parametrize("name", ["a/b-1.5", "my run", "it's, a = b", "ü", "[x]", "a$b `c` \\ d"])
def test_the_command_that_continues_a_run_may_be_pasted_into_a_shell(name):
    own = compose("model.loss._target_=my_package.losses.Loss")
    typed = shlex.split(resume_command(Path(name), own))
    assert (typed[:2], typed[3:]) == (["python", "src/train.py"], ["--trust", "my_package"])
    assert shlex.split(resume_command(Path(name), compose())) == typed[:3]
    (override,) = parse_overrides(typed[2:3])
    assert (override.key_or_group, str(override.value())) == ("resume", name)


def test_values_and_folders_in_a_command_are_quoted_for_hydra(tmp_path):
    folder = tmp_path / "it's, a = b"
    words = job(folder, {"name": "'a b'", "optim.lr": "0.1"}).command[2:]
    parsed = OverridesParser.create().parse_overrides(words)
    values = {override.key_or_group: override.value() for override in parsed}
    assert str(values["run_dir"]) == str(folder)
    assert [str(word) for word in values["varied"]] == ["name='a b'", "optim.lr=0.1"]
    folder.mkdir()
    (folder / "config.yaml").touch()
    (word,) = OverridesParser.create().parse_overrides(job(folder, {}).command[2:])
    assert str(word.value()) == str(folder)


def make(directory: Path, program: str, time_limit: float | None = None) -> Job:
    return Job(0, [], {}, directory, [sys.executable, "-c", program], time_limit=time_limit)


def outcome(job: Job) -> dict:
    deadline = time.monotonic() + 20
    for _ in run_job(job, {}):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return read_json(job.directory / "result.json")


@pytest.mark.parametrize(
    ("program", "status", "error"),
    [
        ("raise MemoryError('of 5 GB')", "failed", "MemoryError: of 5 GB"),
        ("import sys; sys.exit(3)", "failed", "exit code 3"),
        ("import os; os.kill(os.getpid(), 11)", "killed", "killed by SIGSEGV"),
        ("import os; os.kill(os.getpid(), 9)", "killed", "memory runs out"),
    ],
)
def test_a_command_that_ends_without_a_result_gets_one(tmp_path, program, status, error):
    result = outcome(make(tmp_path, program))
    assert result["status"] == status and error in result["error"]


def test_a_command_that_ignores_sigterm_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.3)
    program = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
    result = outcome(make(tmp_path, program, time_limit=0.5))
    assert result["status"] == "timeout" and "sweep.time_limit=0.5" in result["error"]


def test_the_children_of_a_command_end_with_it(tmp_path):
    pid = tmp_path / "pid"
    outcome(
        make(
            tmp_path,
            "import subprocess, sys\n"
            "rank = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
            f"open({str(pid)!r}, 'w').write(str(rank.pid))",
        )
    )
    assert gone([int(pid.read_text())])


@pytest.mark.skipif(sys.platform != "linux", reason="only there a process can end with its parent")
def test_the_jobs_of_a_killed_sweep_end(spawn, tmp_path):
    pid = tmp_path / "pid"
    job = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    program = (
        "import sys, time; from pathlib import Path\n"
        "from tests.sweep.test_job import make, run_job\n"
        f"next(run_job(make(Path({str(tmp_path)!r}), {job!r}), {{}}))\n"
        "time.sleep(60)"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    sweep = spawn([sys.executable, "-c", program], env=env)
    wait_for(pid)
    job_pid = int(pid.read_text())
    second = make(tmp_path, "open('second', 'w')")  # it waits for the first job of the directory
    steps = run_job(second, {})
    for _ in range(5):
        next(steps)
        assert alive(job_pid)
    second.stop_requests.append(signal.SIGTERM)
    assert next(steps, "given up") == "given up" and not (tmp_path / "result.json").exists()
    sweep.kill()
    sweep.wait()
    assert gone([job_pid])
    assert outcome(make(tmp_path, "raise SystemExit"))["status"] == "failed"


def test_variables_of_other_ranks_are_removed_from_the_environment(monkeypatch):
    removed = ["LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"]
    removed += ["PL_GLOBAL_SEED", "TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "GROUP_RANK"]
    removed += ["OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"]
    kept = ["CLASSIC_CNNS_DATA", "OMPI_MCA_plm_rsh_agent"]  # MPI may need its settings
    for name in [*removed, *kept]:
        monkeypatch.setenv(name, "1")
    clean = clean_environment()
    assert not set(removed) & set(clean) and set(kept) <= set(clean)


def test_a_job_stopped_on_request_is_interrupted_and_not_failed(tmp_path):
    job = make(tmp_path, "import time; time.sleep(60)")
    job.stop_requests.append(signal.SIGTERM)
    assert outcome(job)["status"] == "interrupted"


def test_a_result_that_was_cut_off_is_replaced(tmp_path):
    (tmp_path / "result.json").write_text('{"status": "fini')
    assert outcome(make(tmp_path, "import sys; sys.exit(3)"))["error"] == "ended with exit code 3"
