"""Creating a run directory, and recording the run's config and provenance in it."""

import platform
import re
import subprocess
import sys
from datetime import datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from classic_cnns.config.stored import OUTPUTS, check_new, keeps_nothing, stored_values
from classic_cnns.files import expand, make_folder, read_yaml, write_json, write_text
from classic_cnns.report.results import read_starts
from classic_cnns.trainer.devices import is_restarted, job_id

OF_CODE = ":/", ":(top,exclude)docs"  # results may be written to docs/ beside running jobs
PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "numpy")


def create(config: DictConfig) -> Path:
    """Create a run directory with `config.yaml`: `run_dir`, or outputs/<name>/<date>_<time>.

    In outputs/<name>/, `latest.txt` contains the name of the newest run; on command lines `latest`
    means this run.
    """
    if config.run_dir:
        directory = expand("run_dir", config.run_dir)
        check_new(directory)
        make_folder(directory, "run_dir")
    else:
        wanted = OUTPUTS / str(config.name) / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
        make_folder(wanted.parent, "run_dir")
        directory = make_unique(wanted)
    write_config(directory, config)
    return directory


def write_config(directory: Path, config: DictConfig) -> None:
    """Write `config.yaml`: the resolved config, sufficient for resuming the run."""
    stored = OmegaConf.create(stored_values(config))
    write_text(directory / "config.yaml", OmegaConf.to_yaml(stored))


def restarted_run(config: DictConfig) -> Path | None:
    """The run of this config in the same job, if SLURM or torchrun has started the job again.

    The command of the job is unchanged, so it cannot contain `resume`. The config gets the
    `init_from` of that run.
    """
    if not is_restarted() or keeps_nothing(config):
        return None
    given = config.run_dir is not None
    places = (
        [expand("run_dir", config.run_dir)] if given else (OUTPUTS / str(config.name)).glob("*")
    )
    for directory in sorted(places, reverse=True):
        starts, path = read_starts(directory), directory / "config.yaml"
        # A start that was killed at once has recorded nothing.
        of_job = job_id() in [start.get("job") for start in starts] or (
            given and len(starts[0]) == 1
        )
        if of_job and path.is_file():
            # The same but for init_from: by now its `latest` may mean this run.
            earlier = OmegaConf.create(read_yaml(path))
            now = OmegaConf.create(stored_values(config) | {"init_from": earlier.init_from})
            if earlier == now:
                config.init_from = earlier.init_from
                return directory
    return None


def update_latest(directory: Path) -> None:
    """Write the directory's name to the `latest.txt` next to it."""
    # Not a symbolic link: TensorBoard would follow it and show the run twice.
    write_text(directory.with_name("latest.txt"), f"{directory.name}\n")


def restore_latest(removed: Path) -> None:
    """Let `latest.txt` name the newest remaining run if it names the `removed` one."""
    note = removed.with_name("latest.txt")
    if note.is_file() and note.read_text().strip() == removed.name:
        rest = [path.parent for path in removed.parent.glob("[0-9]*/config.yaml")]
        note.unlink()
        if rest:
            update_latest(max(rest))  # the names are times


def make_unique(wanted: Path) -> Path:
    """Create a new directory; adds a number to the name if two runs start in the same second."""
    directory, count = wanted, 1
    while True:
        try:
            directory.mkdir()
            return directory
        except FileExistsError:
            count += 1
            directory = wanted.with_name(f"{wanted.name}-{count}")


def write_provenance(directory: Path, facts: dict) -> None:
    """Record what is needed to trust and repeat the run: one entry for each start, oldest first."""
    path = directory / "provenance.json"
    start = {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": [sys.executable, *sys.argv],
        "git": git_state(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "job": job_id(),  # of SLURM or torchrun
    }
    earlier = [start for start in read_starts(directory) if len(start) > 1]
    write_json(path, [*earlier, start | facts])


def git_state() -> dict[str, str] | None:
    """The commit, and a hash of uncommitted changes; None outside of a git checkout."""

    def git(*words: str) -> bytes:
        here = Path(__file__).parent
        return subprocess.run(["git", *words], cwd=here, capture_output=True, check=True).stdout

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # not another project around it
        commit, diff = git("rev-parse", "HEAD").decode().strip(), git("diff", "HEAD", *OF_CODE)
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit, "diff_sha256": sha256(diff).hexdigest() if diff else "clean"}


def processor() -> str:
    """The processor's name, from /proc/cpuinfo where there is one."""
    path = Path("/proc/cpuinfo")
    names = re.findall("^model name.*: (.+)", path.read_text(), re.M) if path.exists() else []
    return names[0] if names else platform.processor() or platform.machine()
