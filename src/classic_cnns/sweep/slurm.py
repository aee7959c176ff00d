"""Running jobs on SLURM with submitit; each waits in the queue for its cores and GPUs."""

import os
import sys
from tempfile import TemporaryDirectory

import submitit
from submitit.core.utils import FailedJobError

from classic_cnns import UserError, one_line
from classic_cnns.sweep.job import Job, run_job_remotely


class Slurm:
    """Submits `count` jobs, at most `parallel` at a time; `parameters` are submitit's.

    Raises UserError for a cluster or a parameter that submitit does not have.
    """

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
        with TemporaryDirectory() as folder:  # which submitit creates, to check what is given
            try:
                submitit.AutoExecutor(folder, cluster=cluster).update_parameters(**self.parameters)
            except (RuntimeError, ValueError) as error:
                raise UserError(
                    f"sweep.executor.cluster={cluster}: {one_line(error)}; try slurm where SLURM "
                    "is installed, or local"
                ) from error
            except (AssertionError, NameError, TypeError) as error:
                line = str(error).partition("\n")[0]
                raise UserError(f"sweep.executor.parameters: {line}") from error
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
            "gpus_per_node": job.ranks if job.on_gpu else None,
        }
        executor.update_parameters(**own | self.parameters)
        environment = {"OMP_NUM_THREADS": str(self.cpus)}
        try:
            job.handle = executor.submit(run_job_remotely, job, os.getcwd(), environment)
        except FailedJobError as error:  # SLURM refuses it
            raise UserError(one_line(error)) from error

    def is_over(self, job: Job) -> bool:
        return job.handle.done()

    def stop(self, job: Job, at_once: bool) -> None:
        job.handle.cancel(check=False)  # SLURM sends SIGTERM first
