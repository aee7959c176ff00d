"""Running jobs on this machine, with threads and GPUs divided among them."""

import os
import signal
from collections import Counter

from classic_cnns.sweep.job import Job, run_job
from classic_cnns.trainer.devices import core_count, limits, visible_gpus

MEMORY = 2 * 2**30  # bytes, estimated for each rank


class Local:
    """Runs at most `parallel` jobs at a time; by default one for each GPU, or as cores allow.

    There are `count` jobs with at most `ranks` processes each. The share of a job depends only on
    these and on the machine, so that a sweep that is continued gives the same results to the last
    bit.
    """

    def __init__(self, parallel: int | None, count: int, ranks: int, on_gpu: bool) -> None:
        self.gpus = visible_gpus() if on_gpu else []
        self.assigned: dict[int, list[str]] = {}  # GPUs of the running jobs
        cores = core_count()
        room = (len(self.gpus) or min(cores, max(1, memory() // MEMORY))) // ranks
        self.parallel = min(parallel or max(1, room), count)
        self.threads = max(1, cores // (self.parallel * ranks))
        if os.environ.get("OMP_NUM_THREADS", "").isdigit():  # set by the user
            self.threads = min(self.threads, int(os.environ["OMP_NUM_THREADS"]))

    def start(self, job: Job) -> None:
        environment = {"OMP_NUM_THREADS": str(self.threads)}
        gpus: list[str] = []
        if job.on_gpu:
            used = Counter(gpu for assigned in self.assigned.values() for gpu in assigned)
            gpus = sorted(self.gpus, key=lambda gpu: used[gpu])[: job.ranks]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        self.assigned[job.number] = gpus
        job.handle = run_job(job, environment)
        self.is_over(job)  # starts the generator

    def is_over(self, job: Job) -> bool:
        over = next(job.handle, True) is True
        if over:
            del self.assigned[job.number]
        return over

    def stop(self, job: Job, at_once: bool) -> None:
        job.stop_requests += [signal.SIGTERM] * (1 + at_once)  # run_job() counts them


def memory() -> int:
    """Memory of the machine or of the container in bytes."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found = limits("memory.max") or limits("memory/memory.limit_in_bytes")
    return min([total, *(int(limit) for limit in found if limit != "max")])
