"""The directory of a run: made once, and what is recorded in it."""

import platform
import re
import subprocess
import sys
from datetime import datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from classic_cnns import UserError
from classic_cnns.config.stored import OUTPUTS, check_new, kept
from classic_cnns.files import read_json, replacing, write_json

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "numpy")


def create(config: DictConfig) -> Path:
    """A new directory with `config.yaml`: `run_dir`, or outputs/<name>/<date>_<time>.

    The file `latest.txt` beside the second one holds its name; `latest` stands for it on command
    lines.
    """
    if config.run_dir:
        directory = Path(str(config.run_dir))  # run_dir=5 is read as a number
        check_new(directory)
    else:
        directory = OUTPUTS / config.name / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    try:
        if config.run_dir:
            directory.mkdir(parents=True, exist_ok=True)
        else:
            directory = unique(directory)
        write_config(directory, config)
    except OSError as error:
        raise UserError(
            f"run_dir={directory}: cannot be made: {error.strerror}; try run_dir=<another folder>"
        ) from error
    return directory


def write_config(directory: Path, config: DictConfig) -> None:
    """`config.yaml`, resolved: all that another start of the run needs."""
    with replacing(directory / "config.yaml") as file:
        file.write(OmegaConf.to_yaml(OmegaConf.create(kept(config))).encode())


def name_latest(directory: Path) -> None:
    """Let the file `latest.txt` beside the directory name it."""
    # Not a symbolic link, which TensorBoard would follow, and show the run twice.
    with replacing(directory.with_name("latest.txt")) as file:
        file.write(f"{directory.name}\n".encode())
    old = directory.with_name("latest")  # of 0.1
    if old.is_file():
        old.unlink()


def unique(wanted: Path) -> Path:
    """A directory of that name, or with a number behind it: two runs may start in one second."""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    directory, count = wanted, 1
    while True:
        try:
            directory.mkdir()
            return directory
        except FileExistsError:
            count += 1
            directory = wanted.with_name(f"{wanted.name}-{count}")


def write_provenance(directory: Path, facts: dict) -> None:
    """What is needed to trust and repeat the run; one entry for each start, the first one first."""
    import torch

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
    }
    earlier = read_json(path) or []
    write_json(path, [*earlier, start | facts])


def git_state() -> dict[str, str] | None:
    """Commit of the code and a hash of what differs from it; None outside a git checkout."""

    def git(*words: str) -> bytes:
        here = Path(__file__).parent
        return subprocess.run(["git", *words], cwd=here, capture_output=True, check=True).stdout

    try:
        commit, diff = git("rev-parse", "HEAD").decode().strip(), git("diff", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit, "diff_sha256": sha256(diff).hexdigest() if diff else "clean"}


def processor() -> str:
    """The processor's name; Linux alone tells it in a file."""
    path = Path("/proc/cpuinfo")
    names = re.findall("^model name.*: (.+)", path.read_text(), re.M) if path.exists() else []
    return names[0] if names else platform.processor() or platform.machine()
