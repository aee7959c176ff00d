"""The number of parallel jobs on this machine, and their threads and GPUs."""

import sys
from pathlib import Path

import pytest

from classic_cnns.sweep import local
from classic_cnns.sweep.job import Job
from classic_cnns.sweep.local import Local

PROGRAM = """
import os, time
print(os.environ["OMP_NUM_THREADS"], os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
time.sleep(60)
"""


def jobs(folder: Path, ranks: list[int], on_gpu: bool = False) -> list[Job]:
    program = [sys.executable, "-c", PROGRAM]
    return [
        Job(i, [], {}, folder / str(i), program, ranks=n, on_gpu=on_gpu)
        for i, n in enumerate(ranks)
    ]


def local_for(jobs: list[Job], parallel: int | None = None) -> Local:
    return Local(parallel, len(jobs), max(job.ranks for job in jobs), jobs[0].on_gpu)


def end(executor: Local, running: list[Job]) -> None:
    for job in running:
        executor.stop(job, at_once=False)
    while not all(
        [job.number not in executor.assigned or executor.is_over(job) for job in running]
    ):
        pass


@pytest.fixture
def machine(monkeypatch):
    def machine(cores: int, memory: int = 2**40, gpus: str = "") -> None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr(local, "core_count", lambda: cores)
        monkeypatch.setattr(local, "memory", lambda: memory)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)

    return machine


@pytest.mark.parametrize(
    ("cores", "parallel", "ranks", "expected"),
    [
        (2, None, [1] * 8, (2, 1)),
        (8, None, [1] * 3, (3, 2)),
        (8, 2, [1] * 8, (2, 4)),
        (8, None, [1, 2, 1, 2], (4, 1)),
        (16, None, [1, 2], (2, 4)),
        (2, None, [2, 2], (1, 1)),
        (2, None, [4], (1, 1)),
        (2, 4, [1] * 8, (4, 1)),
    ],
)
def test_the_threads_of_all_jobs_together_do_not_exceed_the_cores(
    machine, tmp_path, cores, parallel, ranks, expected
):
    machine(cores)
    executor = local_for(jobs(tmp_path, ranks), parallel)
    assert (executor.parallel, executor.threads) == expected


def test_memory_limits_the_parallel_jobs(machine, tmp_path):
    machine(64, memory=7 * 2**30)
    assert local_for(jobs(tmp_path, [1] * 64)).parallel == 3


def test_the_users_number_of_threads_is_not_exceeded(machine, tmp_path, monkeypatch):
    machine(8)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert local_for(jobs(tmp_path, [1]), 1).threads == 2


@pytest.mark.parametrize(
    ("gpus", "parallel", "ranks", "expected"),
    [
        ("0,1", None, [1, 1, 1], ["0", "1"]),
        ("GPU-a,GPU-b", None, [2, 2], ["GPU-a,GPU-b"]),
        ("4,5,6,7", None, [1, 2, 2], ["4", "5,6"]),
        ("0,1", 4, [1] * 5, ["0", "1", "0", "1"]),
    ],
)
def test_gpus_are_distributed_evenly_by_their_names(
    machine, tmp_path, gpus, parallel, ranks, expected
):
    machine(8, gpus=gpus)
    started = jobs(tmp_path, ranks, on_gpu=True)
    executor = local_for(started, parallel)
    assert executor.parallel == len(expected)
    for job in started[: executor.parallel]:
        executor.start(job)
    assert [",".join(gpus) for gpus in executor.assigned.values()] == expected
    end(executor, started[: executor.parallel])


def output(job: Job) -> str:
    log = job.directory / "output.log"
    while not log.read_text():
        pass
    return log.read_text()


def test_a_job_has_its_own_gpu_and_threads_and_the_next_one_gets_them(machine, tmp_path):
    machine(4, gpus="2,3")
    first, second, third = jobs(tmp_path, [1, 1, 1], on_gpu=True)
    executor = local_for([first, second, third])
    executor.start(first)
    executor.start(second)
    assert output(second) == "2 3\n"
    end(executor, [first])
    executor.start(third)
    assert output(third) == "2 2\n"
    end(executor, [second, third])


def test_a_job_that_is_stopped_at_once_gets_the_second_request_too(tmp_path):
    job = jobs(tmp_path, [1])[0]
    executor = local_for([job])
    executor.stop(job, at_once=False)
    assert len(job.stop_requests) == 1
    executor.stop(job, at_once=True)  # two signals within one poll
    assert len(job.stop_requests) == 3
