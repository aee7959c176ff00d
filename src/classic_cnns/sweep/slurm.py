"""Running jobs on SLURM with submitit; each waits in the queue for its cores and GPUs."""

import os
import sys

import submitit

from classic_cnns.sweep.job import Job, run_job_remotely


class Slurm:
    """Submits `count` jobs, at most `parallel` at a time; `parameters` are submitit's."""

    def __init__(
        self,
        cluster: str,
        parameters: dict,
        cpus_per_rank: int,
        parallel: int | None,
        count: int,
        **_,
    ) -> None:
        self.cluster, self.parameters, self.cpus = cluster, dict(parameters), cpus_per_rank
        self.parallel = parallel or count
        # Jobs import the code from directories shared by the machines.
        os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)

    def start(self, job: Job) -> None:
        executor = submitit.AutoExecutor(job.directory / "submitit", cluster=self.cluster)
        minutes = round((job.time_limit or 24 * 3600) / 60) + 5  # our own time limit comes first
        own = {
            "name": f"sweep-{job.number}",
            "timeout_min": minutes,
            "tasks_per_node": 1,
            "cpus_per_task": self.cpus * job.ranks,
            "gpus_per_node": job.ranks if job.on_gpu else 0,
        }
        executor.update_parameters(**own | self.parameters)
        environment = {"OMP_NUM_THREADS": str(self.cpus)}
        job.handle = executor.submit(run_job_remotely, job, os.getcwd(), environment)

    def is_over(self, job: Job) -> bool:
        return job.handle.done()

    def stop(self, job: Job, at_once: bool) -> None:
        job.handle.cancel(check=False)  # SLURM sends SIGTERM first
