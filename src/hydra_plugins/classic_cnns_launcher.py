"""The launcher of `-m`. Hydra finds it by this folder's name, and takes launchers from no other."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, open_dict

from classic_cnns.errors import JobFailed


@dataclass
class Conf:
    _target_: str = "hydra_plugins.classic_cnns_launcher.CommandLauncher"


ConfigStore.instance().store(
    group="hydra/launcher", name="classic_cnns", node=Conf, provider="classic_cnns"
)


class CommandLauncher(Launcher):
    """Carries out each job as one plain command, `python src/train.py <overrides>`.

    Before it starts one it gives them all to Hydra's task, which checks them: so a mistake in any
    job is told first, and no job shares a process with another.
    """

    sweep: Any = None

    def setup(self, *, hydra_context, task_function, config) -> None:
        # Here, since each start of a program scans this file.
        from classic_cnns.sweep import grid
        from classic_cnns.sweep.process import clean_environment
        from classic_cnns.sweep.sweep import Sweep

        for name in os.environ.keys() - clean_environment().keys():  # also for the checks
            del os.environ[name]
        grid.check(config)
        self.config, self.check, self.open = config, task_function, lambda: Sweep(config)
        self.loader = hydra_context.config_loader
        self.loader.load_sweep_config = grid.quick_composer(self.loader)
        if config.hydra.sweeper.get("storage"):  # a study, which is opened before the first job
            self.sweep = self.open()
            # A search that goes on retraces its steps.
            (self.sweep.directory / "study.db").unlink(missing_ok=True)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        try:
            jobs = [(list(words), self.checked(list(words))) for words in job_overrides]
        except BaseException:
            if self.sweep:
                self.sweep.forget()
            raise
        self.sweep = self.sweep or self.open()
        errors = self.sweep.run(jobs, initial_job_idx)
        if self.config.hydra.sweeper._target_.endswith(".BasicSweeper"):  # a failure would end it
            errors = [nan if error is None else error for error in errors]
        return [
            JobReturn(words, status=JobStatus.FAILED, _return_value=JobFailed("no result"))
            if error is None
            else JobReturn(words, status=JobStatus.COMPLETED, _return_value=error)
            for (words, _), error in zip(jobs, errors, strict=True)
        ]

    def checked(self, words: list[str]) -> DictConfig:
        """The job's `trainer`."""
        config, current = self.loader.load_sweep_config(self.config, words), HydraConfig.instance()
        before = current.cfg
        current.set_config(config)  # of which ${hydra:...} in a config speaks
        with open_dict(config):
            del config["hydra"]
        try:
            self.check(config)
        finally:
            current.cfg = before
        return config.trainer
