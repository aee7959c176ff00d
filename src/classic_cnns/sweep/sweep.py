"""A sweep: a directory with one run directory for each job, a grid that stays the same, a table."""

import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from classic_cnns.devices import gpu_count
from classic_cnns.errors import UserError
from classic_cnns.files import read_json, replacing, write_json
from classic_cnns.report import results
from classic_cnns.sweep.grid import grid_words, is_sweep_key, varied_keys
from classic_cnns.sweep.job import Job
from classic_cnns.sweep.lines import Lines
from classic_cnns.sweep.process import take_lock


class Sweep:
    """Opens the directory `sweep.dir`, new or of an earlier sweep, and keeps others out of it."""

    def __init__(self, config: DictConfig) -> None:
        self.config, self.directory = config, Path(str(config.sweep.dir))
        self.jobs: list[Job] = []
        self.lines = Lines()
        own = config.hydra
        flags = [
            f"--config-dir={source.path}"
            for source in own.runtime.config_sources
            if source.provider == "command-line"
        ]
        if any(word.startswith(("--config-name", "-cn")) for word in sys.argv):
            flags.append(f"--config-name={own.job.config_name}")
        of_hydra = [word for word in own.overrides.hydra if not is_sweep_key(word)]
        self.words = [*flags, *of_hydra]
        self.grid = grid_words(config)

        self.kept = self.directory / "sweep.yaml"
        if (
            self.directory.exists()
            and not self.kept.exists()
            and list(self.directory.glob("[!.]*"))
        ):
            raise UserError(
                f"sweep.dir={self.directory}: holds no sweep (it would have a sweep.yaml); try "
                "another sweep.dir, or leave it out for a new one"
            )
        self.is_new = not self.directory.exists()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.study = self.directory / "study.db"
        self.lock = take_lock(self.directory / ".lock")
        if self.lock is None:
            raise UserError(
                f"sweep.dir={self.directory}: another process is running this sweep now; try "
                "again when it has ended, or another sweep.dir"
            )
        self.known: dict[str, Any] = {
            "command": self.command,
            "grid": self.grid,
            "program": ["python", sys.argv[0], *self.words],
            "varied": varied_keys(config),
            "jobs": [],
        }
        if self.kept.exists():
            earlier: dict = OmegaConf.to_container(OmegaConf.load(self.kept))  # type: ignore
            if earlier["grid"] != self.grid:
                self.refuse(f"its grid was {shlex.join(earlier['grid'])}", earlier["command"])
            self.known = earlier

    @property
    def command(self) -> str:
        """Of the whole sweep; what it prints goes on with it."""
        where = [word for word in self.config.hydra.overrides.task if is_sweep_key(word)]
        where = [word for word in where if not word.startswith("sweep.dir=")]
        words = [*self.words, *self.config.hydra.overrides.hydra, *self.grid, *where]
        words = [w for w in words if not w.startswith(("hydra.sweep.dir=", "hydra.mode="))]
        words = list(dict.fromkeys([*words, f"sweep.dir={self.directory}"]))
        return shlex.join(["python", sys.argv[0], "-m", *words])

    def refuse(self, was: str, command: str) -> None:
        raise UserError(
            f"sweep.dir={self.directory}: {was}; go on with: {command}, or try another sweep.dir"
        )

    def forget(self) -> None:
        """Undo the opening, if nothing came of it."""
        if self.is_new and not self.jobs:
            shutil.rmtree(self.directory)

    def run(self, jobs: Sequence[tuple[Any, DictConfig]], first: int) -> list[float | None]:
        """Validation errors of the jobs, overrides and `trainer` of each, numbered from `first`.

        None for a job without a result. Exits with the shell's code when a signal asks to stop.
        """
        added = [self.job(first + i, list(words), own) for i, (words, own) in enumerate(jobs)]
        for job in added:
            self.recognise(job)
        self.jobs += added
        with replacing(self.kept) as file:
            file.write(OmegaConf.to_yaml(self.known).encode())
        place = instantiate(self.config.sweep.place)(jobs=added)
        with stop_signals() as signals:  # only now, since Ray sets some of its own
            self.carry_out(added, place, signals)
        if signals:
            self.lines.say(f"interrupted; go on with: {self.command}")
            sys.exit(128 + signals[0])  # as shells have it
        if self.config.sweep.fail_fast and any(job.state != "finished" for job in added):
            sys.exit(results.end(self.directory))
        return [
            job.result["metrics"]["val"]["error"] if job.state == "finished" else None
            for job in added
        ]

    def job(self, number: int, overrides: list[str], trainer: DictConfig) -> Job:
        words = [word for word in overrides if not is_sweep_key(word)]
        given = dict(word.lstrip("+").split("=", 1) for word in words)
        devices = trainer.get("devices")
        return Job(
            number,
            words,
            {key: given[key] for key in varied_keys(self.config)},
            self.directory / str(number),
            [sys.executable, sys.argv[0], *self.words],
            ranks=devices if type(devices) is int and devices > 0 else 1,
            on_gpu=trainer.accelerator != "cpu" and gpu_count() > 0,
        )

    def recognise(self, job: Job) -> None:
        """Compare with what the directory knows of this job, and take over its result."""
        jobs = self.known["jobs"]
        if job.number == len(jobs):
            jobs.append(job.overrides)
        elif jobs[job.number] != job.overrides:
            was = f"job {job.number} was {shlex.join(jobs[job.number])}"
            self.refuse(f"{was}, and is now {shlex.join(job.overrides)}", self.known["command"])
        result = read_json(job.directory / "result.json")
        if result and (job.directory / "config.yaml").exists():
            job.state, job.result = result["status"], result
            if not job.is_over:
                job.state = "waiting"

    def carry_out(self, jobs: list[Job], place: Any, signals: list[int]) -> None:
        waiting = [job for job in jobs if not job.is_over]
        running: list[Job] = []
        over = len(jobs) - len(waiting)
        self.lines.say(
            f"{len(jobs)} jobs in {self.directory}"
            + (f", of which {over} are over already" if over else "")
        )
        self.write_table()
        failed, asked = False, 0
        while waiting or running:
            for job in running[:]:
                if not job.handle.poll():
                    continue
                running.remove(job)
                outcome = job.directory / "result.json"
                if not outcome.exists():
                    gone = {"status": "killed", "error": "its machine no longer answers"}
                    outcome.parent.mkdir(exist_ok=True)
                    write_json(outcome, gone)
                job.result = read_json(outcome)
                job.state, job.handle = job.result["status"], None
                failed |= job.state != "finished"
                self.lines.ended(job)
                self.write_table()
            urgency = min(2, max(len(signals), failed and self.config.sweep.fail_fast))
            if urgency > asked:
                waiting, asked = [], urgency
                for job in running:
                    job.handle.stop(at_once=urgency > 1)
            for job in waiting[:]:
                job.handle = place.start(job)
                if job.handle is None:
                    break
                waiting.remove(job)
                running.append(job)
                job.state, job.seen = "running", []
                self.lines.started(job)
            self.lines.draw(running, len(waiting))
            time.sleep(0.1)

    def write_table(self) -> None:
        results.write(self.directory, results.read([self.directory]))


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """The signals to stop that have come, in their order, in place of what they would do."""
    seen: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, lambda got, _: seen.append(got)) for number in numbers]
    try:
        yield seen
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
