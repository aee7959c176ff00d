"""A sweep: a directory with one run directory for each job, a grid that stays the same, a table."""

import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from classic_cnns.devices import visible_gpus
from classic_cnns.errors import UserError
from classic_cnns.files import read_json, replacing, write_json
from classic_cnns.processes import stop_signals
from classic_cnns.report import results
from classic_cnns.sweep.grid import is_sweep_key, varied, words
from classic_cnns.sweep.job import Job
from classic_cnns.sweep.lines import Lines
from classic_cnns.sweep.process import take_lock

OVER = ("finished", "diverged")  # another start would end no better


class Sweep:
    """Opens the directory `sweep.dir`, new or of an earlier sweep, and keeps others out of it."""

    def __init__(self, config: DictConfig) -> None:
        self.config, self.directory = config.sweep, Path(str(config.sweep.dir))
        self.lines = Lines()
        of_hydra, task = words(config, "hydra"), words(config)
        given = [*of_hydra, *task]
        flags = [word for word in sys.argv[1:] if word not in ("-m", "--multirun", *given)]
        self.program = [sys.argv[0], *flags, *(word for word in of_hydra if not is_sweep_key(word))]
        own = ("sweep.dir=", "hydra.mode=")
        kept = [*flags, *(word for word in given if not word.startswith(own))]
        self.command = shlex.join(  # of the whole sweep; what it prints goes on with it
            ["python", sys.argv[0], "-m", *kept, f"sweep.dir={self.directory}"]
        )

        self.kept = self.directory / "sweep.yaml"
        if not self.kept.exists() and any(self.directory.glob("[!.]*")):
            raise UserError(
                f"sweep.dir={self.directory}: holds no sweep (it would have a sweep.yaml); try "
                "another sweep.dir, or leave it out for a new one"
            )
        self.is_new = not self.directory.exists()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.lock = take_lock(self.directory / ".lock")
        if self.lock is None:
            raise UserError(
                f"sweep.dir={self.directory}: another process is running this sweep now; try "
                "again when it has ended, or another sweep.dir"
            )
        self.known: dict[str, Any] = {
            "command": self.command,
            "grid": [word for word in task if not is_sweep_key(word)],  # not where and how
            "program": ["python", *self.program],
            "varied": [override.get_key_element().lstrip("+") for override in varied(config)],
            "jobs": [],
        }
        if self.kept.exists():
            earlier: dict = OmegaConf.to_container(OmegaConf.load(self.kept))  # type: ignore
            if earlier["grid"] != self.known["grid"]:
                self.refuse(f"its grid was {shlex.join(earlier['grid'])}", earlier["command"])
            self.known = earlier

    def refuse(self, was: str, command: str) -> None:
        raise UserError(
            f"sweep.dir={self.directory}: {was}; go on with: {command}, or try another sweep.dir"
        )

    def forget(self) -> None:
        """Undo the opening, if nothing came of it."""
        if self.is_new and not self.known["jobs"]:
            shutil.rmtree(self.directory)

    def run(self, jobs: Sequence[tuple[Any, DictConfig]], first: int) -> list[float | None]:
        """Validation errors of the jobs, overrides and `trainer` of each, numbered from `first`.

        None for a job without a result. Exits with the shell's code when a signal asks to stop.
        """
        added = [self.job(first + i, list(words), own) for i, (words, own) in enumerate(jobs)]
        with replacing(self.kept) as file:
            file.write(OmegaConf.to_yaml(self.known).encode())
        place = instantiate(self.config.place)(jobs=added)
        with stop_signals() as signals:  # only now, since Ray sets some of its own
            self.carry_out(added, place, signals)
        if signals:
            self.lines.say(f"interrupted; go on with: {self.command}")
            sys.exit(128 + signals[0])  # as shells have it
        if self.config.fail_fast and any(job.state != "finished" for job in added):
            sys.exit(results.end(self.directory))
        return [
            job.result["metrics"]["val"]["error"] if job.state == "finished" else None
            for job in added
        ]

    def job(self, number: int, overrides: list[str], trainer: DictConfig) -> Job:
        """The job, with the result that the directory has of it, which must know it as the same."""
        own = [word for word in overrides if not is_sweep_key(word)]
        jobs = self.known["jobs"]
        if number == len(jobs):
            jobs.append(own)
        elif jobs[number] != own:
            was = f"job {number} was {shlex.join(jobs[number])}"
            self.refuse(f"{was}, and is now {shlex.join(own)}", self.known["command"])
        given = results.assignments(own)
        job = Job(
            number,
            own,
            {key: given[key] for key in self.known["varied"]},
            self.directory / str(number),
            [sys.executable, *self.program],
            ranks=trainer.devices,
            on_gpu=trainer.accelerator != "cpu" and bool(visible_gpus()),
            time_limit=self.config.time_limit,
        )
        result = read_json(job.directory / "result.json")
        if result and (job.directory / "config.yaml").exists() and result["status"] in OVER:
            job.state, job.result = result["status"], result
        return job

    def carry_out(self, jobs: list[Job], place: Any, signals: list[int]) -> None:
        waiting = [job for job in jobs if job.state == "waiting"]
        running: list[Job] = []
        over = len(jobs) - len(waiting)
        self.lines.say(
            f"{len(jobs)} jobs in {self.directory}"
            + (f", of which {over} are over already" if over else "")
        )
        self.write_table()
        failed, asked = False, 0
        while waiting or running:
            for job in [job for job in running if place.is_over(job)]:
                running.remove(job)
                self.take_result(job, "interrupted" if asked else "its machine no longer answers")
                failed |= job.state != "finished"
            urgency = min(2, max(len(signals), failed and self.config.fail_fast))
            if urgency > asked:
                waiting, asked = [], urgency
                for job in running:
                    place.stop(job, at_once=urgency > 1)
            while waiting and len(running) < place.parallel:
                job = waiting.pop(0)
                place.start(job)
                running.append(job)
                job.state = "running"
                self.lines.started(job)
            self.lines.draw(running, len(waiting))
            time.sleep(0.1)

    def take_result(self, job: Job, without: str) -> None:
        path = job.directory / "result.json"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            write_json(path, {"status": "killed", "error": without})
        job.result = read_json(path)
        job.state = job.result["status"]
        self.lines.ended(job)
        self.write_table()

    def write_table(self) -> None:
        results.write(self.directory, results.read([self.directory]))
