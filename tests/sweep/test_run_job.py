"""A single job: its exit code, its result and its processes."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from classic_cnns.files import read_json
from classic_cnns.sweep import run_job as module
from classic_cnns.sweep.job import Job
from classic_cnns.sweep.run_job import run_job
from classic_cnns.trainer.processes import clean_environment
from tests.forks import alive, gone
from tests.sweep.conftest import wait_for


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


def test_the_jobs_of_a_killed_sweep_end(spawn, tmp_path):
    pid = tmp_path / "pid"
    job = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    program = (
        "import sys, time; from pathlib import Path\n"
        "from tests.sweep.test_run_job import make, run_job\n"
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
