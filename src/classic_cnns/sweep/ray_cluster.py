"""Running jobs on a Ray cluster, which assigns cores and GPUs to them."""

import os
import sys

import ray

from classic_cnns import UserError, one_line
from classic_cnns.sweep.job import Job, run_job_remotely


class RayCluster:
    """Runs `count` jobs where Ray has room for them, at most `parallel` at a time.

    Raises UserError if no cluster answers at the address.
    """

    def __init__(
        self, address: str | None, cpus_per_rank: int, parallel: int | None, count: int, **_
    ) -> None:
        self.cpus, self.parallel = cpus_per_rank, parallel or count
        # Jobs import the code from directories shared by the machines.
        paths = os.pathsep.join(path for path in sys.path if path)
        try:
            ray.init(
                address,
                log_to_driver=False,
                include_dashboard=False,
                runtime_env={"env_vars": {"PYTHONPATH": paths}},
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(f"sweep.executor.address={address}: {one_line(error)}") from error

    def start(self, job: Job) -> None:
        task = ray.remote(run_job_remotely).options(
            num_cpus=self.cpus * job.ranks,
            num_gpus=job.ranks if job.on_gpu else 0,
            max_retries=0,
        )
        job.handle = task.remote(job, os.getcwd(), {"OMP_NUM_THREADS": str(self.cpus)})

    def is_over(self, job: Job) -> bool:
        return bool(ray.wait([job.handle], timeout=0)[0])

    def stop(self, job: Job, at_once: bool) -> None:
        ray.cancel(job.handle, force=at_once)
