"""SLURM by way of submitit: each job waits in the cluster's queue, with its cores and GPUs."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import submitit

from classic_cnns.sweep.job import Job
from classic_cnns.sweep.process import carry_out


class Handle:
    def __init__(self, task: submitit.Job) -> None:
        self.task = task

    def poll(self) -> bool:
        return self.task.done()

    def stop(self, at_once: bool = False) -> None:
        self.task.cancel(check=False)  # SLURM sends SIGTERM first


class Slurm:
    """`jobs` are submitted, at most `parallel` at a time; `parameters` are submitit's."""

    def __init__(
        self,
        cluster: str,
        parameters: dict,
        cpus_per_rank: int,
        parallel: int | None,
        time_limit: float | None,
        jobs: Sequence[Job],
    ) -> None:
        self.cluster, self.parameters, self.cpus = cluster, dict(parameters), cpus_per_rank
        self.time_limit, self.parallel = time_limit, parallel or len(jobs)
        self.handles: list[Handle] = []
        # Jobs find the code in the directories that the machines share.
        os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)

    def start(self, job: Job) -> Handle | None:
        self.handles = [handle for handle in self.handles if not handle.poll()]
        if len(self.handles) >= self.parallel:
            return None
        executor = submitit.AutoExecutor(job.directory / "submitit", cluster=self.cluster)
        minutes = round((self.time_limit or 24 * 3600) / 60) + 5  # ours ends a job before SLURM's
        executor.update_parameters(
            name=f"sweep-{job.number}",
            timeout_min=minutes,
            tasks_per_node=1,
            cpus_per_task=self.cpus * job.ranks,
            gpus_per_node=job.ranks if job.on_gpu else 0,
            **self.parameters,
        )
        environment = {"OMP_NUM_THREADS": str(self.cpus)}
        handle = Handle(
            executor.submit(
                carry_out, job.command, Path.cwd(), job.directory, environment, self.time_limit
            )
        )
        self.handles.append(handle)
        return handle
