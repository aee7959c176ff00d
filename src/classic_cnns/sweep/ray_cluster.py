"""A Ray cluster: it finds room for each job, and gives it its cores and GPUs."""

import os
import sys
from collections.abc import Sequence

import ray

from classic_cnns.sweep.job import Job
from classic_cnns.sweep.process import carry_out


class Handle:
    def __init__(self, task: ray.ObjectRef) -> None:
        self.task = task

    def poll(self) -> bool:
        return bool(ray.wait([self.task], timeout=0)[0])

    def stop(self, at_once: bool = False) -> None:
        ray.cancel(self.task, force=at_once)


class RayCluster:
    """`jobs` run where Ray has room for them, at most `parallel` at a time."""

    def __init__(
        self,
        address: str | None,
        cpus_per_rank: int,
        parallel: int | None,
        time_limit: float | None,
        jobs: Sequence[Job],
    ) -> None:
        self.cpus, self.time_limit = cpus_per_rank, time_limit
        self.parallel = parallel or len(jobs)
        self.handles: list[Handle] = []
        # Jobs find the code in the directories that the machines share.
        paths = os.pathsep.join(path for path in sys.path if path)
        if not ray.is_initialized():
            ray.init(
                address,
                log_to_driver=False,
                include_dashboard=False,
                runtime_env={"env_vars": {"PYTHONPATH": paths}},
            )

    def start(self, job: Job) -> Handle | None:
        self.handles = [handle for handle in self.handles if not handle.poll()]
        if len(self.handles) >= self.parallel:
            return None
        task = ray.remote(carry_out).options(
            num_cpus=self.cpus * job.ranks,
            num_gpus=job.ranks if job.on_gpu else 0,
            max_retries=0,
        )
        environment = {"OMP_NUM_THREADS": str(self.cpus)}
        handle = Handle(
            task.remote(job.command, os.getcwd(), job.directory, environment, self.time_limit)
        )
        self.handles.append(handle)
        return handle
