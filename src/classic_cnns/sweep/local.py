"""This machine, shared among jobs: each has its threads and, of GPUs, its own."""

import os
import signal
from collections import Counter
from collections.abc import Sequence

from classic_cnns.devices import cgroup, core_count, visible_gpus
from classic_cnns.sweep.job import Job
from classic_cnns.sweep.process import carry_out

MEMORY = 2 * 2**30  # bytes that a rank may want


class Local:
    """At most `parallel` jobs at a time; None takes as many as there are GPUs or cores for.

    What a job gets depends on the machine and on the whole grid alone, so that a sweep that goes
    on computes as it did before, to the last bit.
    """

    def __init__(self, parallel: int | None, jobs: Sequence[Job]) -> None:
        self.gpus = visible_gpus() if any(job.on_gpu for job in jobs) else []
        self.given: dict[int, list[str]] = {}  # GPUs of the jobs that run
        cores = core_count()
        widest = max(job.ranks for job in jobs)
        carries = (len(self.gpus) or min(cores, max(1, memory() // MEMORY))) // widest
        self.parallel = min(parallel or max(1, carries), len(jobs))
        self.threads = max(1, cores // (self.parallel * widest))
        if os.environ.get("OMP_NUM_THREADS", "").isdigit():  # the user's own wish
            self.threads = min(self.threads, int(os.environ["OMP_NUM_THREADS"]))

    def start(self, job: Job) -> None:
        environment = {"OMP_NUM_THREADS": str(self.threads)}
        mine: list[str] = []
        if job.on_gpu:
            used = Counter(gpu for gpus in self.given.values() for gpu in gpus)
            mine = sorted(self.gpus, key=lambda gpu: used[gpu])[: job.ranks]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
        self.given[job.number] = mine
        job.task = carry_out(job, environment)
        self.is_over(job)  # its first step

    def is_over(self, job: Job) -> bool:
        over = next(job.task, True) is True
        if over:
            del self.given[job.number]
        return over

    def stop(self, job: Job, at_once: bool) -> None:
        job.asked.append(signal.SIGTERM)  # carry_out() sees how many there are


def memory() -> int:
    """Bytes of the machine, or of the container."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = (*cgroup("memory.max"), "max")[0]
    return total if limit == "max" else min(total, int(limit))
