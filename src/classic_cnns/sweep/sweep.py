"""A sweep: its jobs are checked, started, followed and told of in a table."""

import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from classic_cnns import UserError
from classic_cnns.config.compose import Composer
from classic_cnns.files import replacing, write_json
from classic_cnns.report import results
from classic_cnns.sweep.display import ProgressDisplay
from classic_cnns.sweep.grid import Grid
from classic_cnns.sweep.job import Job
from classic_cnns.sweep.record import new_record, open_directory, refuse
from classic_cnns.sweep.search import Search
from classic_cnns.trainer import devices
from classic_cnns.trainer.processes import clean_environment, stop_signals

DONE = ("finished", "diverged", "pruned")  # another start would end no better
EXTRAS = {"RayCluster": ("ray", "ray"), "Slurm": ("slurm", "submitit")}  # and their packages


def run_sweep(words: Sequence[str], flags: Sequence[str], composer: Composer) -> int:
    """Run the jobs that the overrides `words` ask for, print their table; returns the exit code.

    Each job is a command of its own, which repeats `flags`. Raises UserError for a mistake in any
    job, or in the sweep, before a directory is made.
    """
    for name in os.environ.keys() - clean_environment().keys():  # also for the checks
        del os.environ[name]
    grid = Grid(words, composer.groups)
    settings = composer.compose([*grid.settings, *grid.first()]).sweep
    check_extra(settings.executor._target_)

    @cache
    def needs(*job: str) -> tuple[int, bool]:
        """Ranks of a job, and whether they want GPUs."""
        trainer = composer.compose(job).trainer
        on_gpu = trainer.accelerator != "cpu" and bool(devices.visible_gpus())
        return devices.count(trainer.devices), on_gpu

    search = Search(settings, grid) if settings.search else None
    jobs = search.corners() if search else grid.jobs(settings.max_jobs)
    widest, on_gpu = map(max, zip(*(needs(*job) for job in jobs), strict=True))

    directory = Path(str(settings.dir))
    record = new_record(words, flags, grid, search, settings)
    earlier = open_directory(directory, record)
    if search:
        search.open(directory / "study.db")
        jobs = [search.suggest(trial) for trial in search.trials]
    for number, job in enumerate(earlier.get("jobs", [])):
        if jobs[number : number + 1] != [job]:
            refuse(directory, f"job {number} was {shlex.join(job)}", earlier)
    sweep = Sweep(directory, settings, record, [sys.executable, sys.argv[0], *flags], needs, search)
    for job in jobs:
        sweep.add(job)
    count = search.n_trials if search else len(jobs)
    return sweep.run(instantiate(settings.executor)(count=count, ranks=widest, on_gpu=on_gpu))


def check_extra(executor: str) -> None:
    """Raise UserError where the executor's package is missing."""
    extra, package = EXTRAS.get(executor.rpartition(".")[2], ("", "os"))
    if not find_spec(package):
        raise UserError(f"sweep={extra}: needs an extra; try pip install -e '.[{extra}]'")


class Sweep:
    """The jobs of a grid or of a search, in a directory that is open."""

    def __init__(
        self,
        directory: Path,
        settings: DictConfig,
        record: dict[str, Any],
        command: list[str],
        needs: Callable[..., tuple[int, bool]],
        search: Search | None,
    ) -> None:
        self.directory, self.settings, self.record = directory, settings, record
        self.command, self.needs, self.search = command, needs, search
        self.display = ProgressDisplay(settings.metric)
        self.jobs: list[Job] = []
        self.running: list[Job] = []

    def add(self, words: list[str]) -> Job:
        """The next job, with the result that an earlier start has left of it."""
        number, values = len(self.jobs), results.assignments(words)
        job = Job(
            number,
            words,
            {key: values[key] for key in self.record["varied"]},
            self.directory / str(number),
            self.command,
            time_limit=self.settings.time_limit,
        )
        self.jobs.append(job)
        result = results.read_result(job.directory)
        done = result.get("status") in DONE and (job.directory / "config.yaml").exists()
        if self.search and number in self.search.over:
            job.state, job.result = result.get("status", "failed"), result
        elif done:
            job.state, job.result = result["status"], result
            self.tell(job)
        return job

    def run(self, executor: Any) -> int:
        """Run all that is left; returns the exit code."""
        over = sum(job.state != "waiting" for job in self.jobs)
        total = len(self.jobs) + self.left
        known = f", of which {over} are over already" if over else ""
        with stop_signals() as signals:  # only now, since Ray sets some of its own
            self.display.say(f"{total} jobs in {self.directory}{known}")
            self.write()
            self.supervise(executor, signals)
            if signals:
                self.display.say(f"interrupted; go on with: {self.record['command']}")
                return 128 + signals[0]  # as shells have it
            return results.end(self.directory)

    @property
    def left(self) -> int:
        """Jobs that a search has yet to ask for."""
        return self.search.left if self.search else 0

    def supervise(self, executor: Any, signals: list[int]) -> None:
        waiting = [job for job in self.jobs if job.state == "waiting"]
        stopping, failed = 0, False
        while True:
            for job in [job for job in self.running if executor.is_over(job)]:
                self.running.remove(job)
                self.take_result(job, bool(stopping))
                failed |= job.state not in results.OVER
            for job in self.running:
                self.read_progress(job, executor)
            urgency = min(2, max(len(signals), failed and self.settings.fail_fast))
            if urgency > stopping:
                stopping = urgency
                for job in self.running:
                    executor.stop(job, at_once=urgency > 1)
            while not stopping and len(self.running) < executor.parallel and (waiting or self.left):
                self.start(waiting.pop(0) if waiting else self.ask(), executor)
            if not self.running:
                return
            self.display.draw(self.running, len(waiting) + self.left)
            time.sleep(0.1)

    def ask(self) -> Job:
        assert self.search
        job = self.add(self.search.ask())
        self.write()
        return job

    def start(self, job: Job, executor: Any) -> None:
        try:
            job.ranks, job.on_gpu = self.needs(*job.overrides)
        except UserError as error:  # a trial's values, each of which alone is allowed
            job.directory.mkdir(exist_ok=True)
            write_json(job.directory / "result.json", {"status": "failed", "error": str(error)})
            self.take_result(job, False)
            return
        executor.start(job)
        self.running.append(job)
        job.state = "running"
        self.display.started(job)

    def read_progress(self, job: Job, executor: Any) -> None:
        """Hand new metrics on to a search, and end the job if its pruner gives it up."""
        is_first, metric = not job.last, self.settings.metric
        for line in job.read_progress():
            if is_first and job.number == 0 and metric not in line["metrics"]:
                names = ", ".join(line["metrics"])
                self.display.say(f"sweep.metric={metric}: no epoch has it, but {names}")
                is_first = False
            if self.search and self.search.report(job.number, line) and job.state == "running":
                job.state = "pruning"
                executor.stop(job, at_once=False)

    def take_result(self, job: Job, stopping: bool) -> None:
        for line in job.read_progress():  # the last ones
            if self.search:
                self.search.report(job.number, line)
        job.directory.mkdir(exist_ok=True)
        path, result = job.directory / "result.json", results.read_result(job.directory)
        if not result:
            error = "interrupted" if stopping else "its machine no longer answers"
            result = {"status": "interrupted" if stopping else "killed", "error": error}
            write_json(path, result)
        if job.state == "pruning" and result["status"] != "finished":
            seconds = {"seconds": job.last["seconds"]} if "seconds" in job.last else {}
            result |= {"status": "pruned", "error": "", "last": job.last["metrics"]} | seconds
            write_json(path, result)
        job.state, job.result = result["status"], result
        self.tell(job)
        self.display.ended(job)
        self.write()

    def tell(self, job: Job) -> None:
        if self.search:
            self.search.tell(job.number, job.state, job.result.get("metrics", {}))

    def write(self) -> None:
        """`sweep.yaml` and the tables."""
        self.record["jobs"] = [job.overrides for job in self.jobs]
        with replacing(self.directory / "sweep.yaml") as file:
            file.write(OmegaConf.to_yaml(self.record).encode())
        if self.jobs:
            results.read([self.directory]).write(self.directory)
