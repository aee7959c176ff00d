"""A sweep: checks its jobs, starts and supervises them, and keeps the results table."""

import os
import shlex
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from classic_cnns import UserError, assignment
from classic_cnns.config.compose import Composer, check_folder
from classic_cnns.config.stored import keeps_nothing, resolve_latest, stored_values
from classic_cnns.config.trust import untrusted_packages
from classic_cnns.files import expand, write_json, write_text
from classic_cnns.report import results
from classic_cnns.sweep.display import ProgressDisplay
from classic_cnns.sweep.grid import Grid
from classic_cnns.sweep.job import Job
from classic_cnns.sweep.record import new_record, open_directory, refuse
from classic_cnns.sweep.search import Search
from classic_cnns.trainer import devices
from classic_cnns.trainer.processes import REQUEUE, clean_environment, requeue, stop_signals

KEEPS_NOTHING = ("keep=", "debug=", "estimate=", "trainer.fast_dev_run=")
DONE = ("finished", "diverged", "pruned")  # not started again
EXTRAS = {"RayCluster": ("ray", "ray"), "Slurm": ("slurm", "submitit")}  # extra and package


class Needs(NamedTuple):
    """What a job needs: ranks, GPUs, and packages to be trusted when its run is resumed."""

    ranks: int
    on_gpu: bool
    packages: list[str]


def run_sweep(words: Sequence[str], flags: Sequence[str], composer: Composer) -> int:
    """Run the jobs that the overrides `words` describe and print the table; returns the exit code.

    Each job is a separate command with the same `flags`. Raises UserError for a mistake in the
    sweep or in any job, before a directory is created.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UserError("-m: a sweep starts the processes of its jobs; try it without torchrun")
    # Also for the checks below. The job's ID is for stop_signals() and requeue().
    for name in os.environ.keys() - clean_environment().keys() - {"SLURM_JOB_ID"}:
        del os.environ[name]
    words = [without_latest(word) for word in words]
    grid = Grid(words, composer.groups)
    try:
        config = composer.compose([*grid.settings, *grid.first()])
    except UserError as error:
        raise UserError(grid.interval_hint(str(error)) or str(error)) from error
    settings = config.sweep
    check_folder("sweep.dir", settings.dir)
    check_extra(settings.executor._target_)

    @cache
    def needs(*job: str) -> Needs:
        own = composer.compose([*grid.settings, *job])
        if keeps_nothing(own):
            named = (word for word in words if word.lstrip("+").startswith(KEEPS_NOTHING))
            word = next(named, "keep=false")
            raise UserError(f"{word}: keeps no results, which a sweep needs; leave it out")
        trainer, packages = own.trainer, untrusted_packages(stored_values(own))
        return Needs(devices.device_count(trainer), devices.uses_gpus(trainer), packages)

    search = Search(settings, grid) if settings.search else None
    jobs = search.corners() if search else grid.jobs(settings.max_jobs)
    needed = [needs(*job) for job in jobs]
    widest, on_gpu = max(n.ranks for n in needed), any(n.on_gpu for n in needed)
    count = search.n_trials if search else len(jobs)
    executor = instantiate(settings.executor)(count=count, ranks=widest, on_gpu=on_gpu)

    directory = expand("sweep.dir", settings.dir)
    record = new_record(words, flags, grid, search, settings)
    earlier = open_directory(directory, record)
    if search:
        study = directory / "study.db"
        if earlier.get("jobs") and not study.exists():
            raise UserError(f"{study}: is missing; restore it, or try another sweep.dir")
        search.open(study)
        jobs = [search.suggest(trial) for trial in search.trials]
    for number, job in enumerate(earlier.get("jobs", [])):
        if jobs[number : number + 1] != [job]:
            refuse(directory, f"job {number} was {shlex.join(job)}", earlier)
    sweep = Sweep(directory, settings, record, [sys.executable, sys.argv[0], *flags], needs, search)
    for job in jobs:
        sweep.add(job)
    return sweep.run(executor)


def without_latest(word: str) -> str:
    """The override with `latest` in `init_from` replaced: later jobs start from the same net."""
    key, _, value = word.partition("=")
    run = str(resolve_latest(value)) if key == "init_from" else value
    return word if run == value else assignment(key, run)


def check_extra(executor: str) -> None:
    """Raise UserError if the executor's package is not installed."""
    extra, package = EXTRAS.get(executor.rpartition(".")[2], ("", "os"))
    if not find_spec(package):
        raise UserError(f"sweep={extra}: needs an extra; try pip install -e '.[{extra}]'")


def is_missing(metric: str, logged: Collection[str]) -> bool:
    """Whether the metrics of an epoch lack `metric`; validation and test may come later."""
    if metric == "seconds" or metric.endswith(("/test", "/test_centre")):
        return False
    validated = any(name.endswith("/val") for name in logged)
    return metric not in logged and (validated or not metric.endswith("/val"))


@dataclass
class Sweep:
    """The jobs of a grid or a search in an open sweep directory."""

    directory: Path
    settings: DictConfig
    record: dict[str, Any]  # the content of sweep.yaml
    command: list[str]  # of a job, before its overrides
    needs: Callable[..., Needs]  # of a job's overrides
    search: Search | None

    def __post_init__(self) -> None:
        self.display = ProgressDisplay(self.settings.metric)
        self.jobs: list[Job] = []
        self.running: list[Job] = []
        self.error: UserError | None = None  # ends the sweep
        self.failed = False  # a job, in this start of the sweep
        self.due = 0.0  # when the files may be written again

    def add(self, words: list[str]) -> Job:
        """Add a job, with the result that an earlier start of the sweep has left."""
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
        if done or (self.search and self.search.is_over(number)):
            job.state, job.result = result.get("status", "failed"), result
            self.tell(job)
        return job

    def run(self, executor: Any) -> int:
        """Run all remaining jobs; returns the exit code."""
        over = sum(job.state != "waiting" for job in self.jobs)
        total = len(self.jobs) + self.left
        known = f", of which {over} {'are' if over > 1 else 'is'} over already" if over else ""
        with stop_signals() as signals:  # after Ray has set its own handlers
            self.display.say(f"{total} job{'s' * (total != 1)} in {self.directory}{known}")
            self.write()
            self.supervise(executor, signals)
            self.due = 0.0
            self.write()
            if signals:
                self.display.say(f"interrupted; continue with: {self.record['command']}")
                if signals[0] == REQUEUE and self.continues:
                    requeue()
                return 128 + signals[0]  # as in shells
            if self.error:
                raise self.error
            print(f"\n{results.read_table([self.directory]).markdown()}")
            return int(any(job.state not in results.ENDED_WELL for job in self.jobs))

    @property
    def left(self) -> int:
        """The number of jobs that a search has not yet asked for."""
        return self.search.left if self.search else 0

    @property
    def continues(self) -> bool:
        """Whether the command that was given continues the sweep; else it starts another one."""
        return any(word.startswith("sweep.dir=") for word in sys.argv)

    @property
    def ends(self) -> bool:
        """Whether no more jobs are to be started, and those that run to be stopped."""
        return bool(self.error) or (self.failed and self.settings.fail_fast)

    def supervise(self, executor: Any, signals: list[int]) -> None:
        waiting = [job for job in self.jobs if job.state == "waiting"]
        stopping = 0
        while True:
            for job in [job for job in self.running if executor.is_over(job)]:
                self.running.remove(job)
                self.collect_result(job, bool(stopping))
            for job in self.running:
                self.read_progress(job, executor)
            urgency = min(2, max(len(signals), self.ends))
            if urgency > stopping:
                stopping = urgency
                for job in self.running:
                    executor.stop(job, at_once=urgency > 1)
            while (
                (waiting or self.left)
                and len(self.running) < executor.parallel
                and not (stopping or self.ends)
            ):
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
            job.ranks, job.on_gpu, job.packages = self.needs(*job.overrides)
            executor.start(job)
        except UserError as error:  # invalid values of a trial, or a job that SLURM refuses
            job.directory.mkdir(exist_ok=True)
            write_json(job.directory / "result.json", {"status": "failed", "error": str(error)})
            self.collect_result(job, False)
            return
        self.running.append(job)
        job.state = "running"
        self.display.started(job)

    def read_progress(self, job: Job, executor: Any) -> None:
        """Report new metrics to the search, and stop the job if it is pruned."""
        is_first, metric = not job.last, self.settings.metric
        for line in job.read_progress():
            if is_first and job.number == 0 and is_missing(metric, line["metrics"]):
                names = ", ".join(line["metrics"])
                self.display.say(f"sweep.metric={metric}: is not logged; logged are {names}")
                is_first = False
            if self.search and self.search.report(job.number, line) and job.state == "running":
                job.state = "pruning"
                executor.stop(job, at_once=False)

    def collect_result(self, job: Job, stopping: bool) -> None:
        for line in job.read_progress():  # lines written since the last poll
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
        self.failed |= job.state not in results.ENDED_WELL
        self.tell(job)
        self.display.ended(job)
        self.write()

    def tell(self, job: Job) -> None:
        if self.search:
            metrics, metric = job.result.get("metrics", {}), self.settings.metric
            self.search.tell(job.number, job.state, metrics)
            if job.state == "finished" and metric not in metrics and not self.error:
                self.error = UserError(
                    f"sweep.metric={metric}: job {job.number} has no such result; "
                    f"try one of {', '.join(sorted(metrics))}, with another sweep.dir"
                )

    def write(self) -> None:
        """Write `sweep.yaml` and the tables, in a tenth of the time at most: both grow."""
        if (began := time.monotonic()) < self.due:
            return
        self.record["jobs"] = [job.overrides for job in self.jobs]
        write_text(self.directory / "sweep.yaml", OmegaConf.to_yaml(self.record))
        if self.jobs:
            results.read_table([self.directory]).write(self.directory)
        self.due = time.monotonic() + 9 * (time.monotonic() - began)
