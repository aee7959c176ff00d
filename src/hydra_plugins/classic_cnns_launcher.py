"""The launcher of `-m`. Hydra finds it by this folder's name, and takes launchers from no other."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus

from classic_cnns.errors import JobFailed


@dataclass
class Conf:
    _target_: str = "hydra_plugins.classic_cnns_launcher.CommandLauncher"


ConfigStore.instance().store(
    group="hydra/launcher", name="classic_cnns", node=Conf, provider="classic_cnns"
)


class CommandLauncher(BasicLauncher):
    """Carries out each job as one plain command, `python src/train.py <overrides>`.

    Hydra's own launcher composes the jobs first, and its task is to check them: so a mistake in
    any job is told before one starts, and no job shares a process with another.
    """

    sweep: Any = None

    def setup(self, *, hydra_context, task_function, config) -> None:
        # Here, since each start of a program scans this file.
        from classic_cnns.sweep import grid
        from classic_cnns.sweep.process import clean_environment
        from classic_cnns.sweep.sweep import Sweep

        for name in os.environ.keys() - clean_environment().keys():  # also for the checks
            del os.environ[name]
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        grid.check(config)
        if config.hydra.sweeper.get("storage"):  # a study, which is opened before the first job
            self.sweep = Sweep(config)
            self.sweep.study.unlink(missing_ok=True)  # a search that goes on retraces its steps

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from classic_cnns.sweep.sweep import Sweep

        try:
            jobs = super().launch(job_overrides, initial_job_idx)
            for job in jobs:
                _ = job.return_value  # raises what the check raised
        except BaseException:
            if self.sweep:
                self.sweep.forget()
            raise
        self.sweep = self.sweep or Sweep(self.config)
        errors = self.sweep.run([(job.overrides, job.cfg.trainer) for job in jobs], initial_job_idx)
        basic = self.config.hydra.sweeper._target_.endswith(".BasicSweeper")
        for job, error in zip(jobs, errors, strict=True):
            job.return_value = nan if error is None else error
            if error is None and not basic:  # which would end the sweep
                job.status, job.return_value = JobStatus.FAILED, JobFailed("no result")
        return jobs
