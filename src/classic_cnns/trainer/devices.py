"""What this machine has to run on, and whether it suffices; found out without importing torch."""

import os
import socket
import sys
from glob import glob
from pathlib import Path

from classic_cnns import UserError

SPINS = 1700  # alone nearly the speed of spinning for long, beside others of not spinning at all


def visible_gpus() -> list[str]:
    """GPUs by their device files, or as CUDA_VISIBLE_DEVICES names them; one of another make."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip() not in ("", "-1")]
    other = sys.platform == "darwin" or os.path.exists("/dev/kfd") or os.path.exists("/dev/dxg")
    return [str(i) for i in range(len(glob("/dev/nvidia[0-9]*")) or int(other))]


def count(devices: int | str | list[int]) -> int:
    """How many of each machine `trainer.devices` asks for: a number, auto or -1, or a list."""
    if isinstance(devices, int) and devices > 0:
        return devices
    return max(1, len(visible_gpus())) if devices in ("auto", -1) else len(list(devices))  # type: ignore


def core_count() -> int:
    """Cores that this process may use, also where a container has a share of them."""
    linux = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if linux else os.cpu_count() or 1
    quota, period = (*cgroup("cpu.max"), "max", "1")[:2]
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def cgroup(name: str) -> list[str]:
    path = Path("/sys/fs/cgroup") / name
    return path.read_text().split() if path.is_file() else []


def share_cores() -> None:
    """Let threads that wait for others spin for microseconds only; before torch is imported.

    OpenMP's threads spin at each barrier for one that another program keeps from its core: two runs
    at once, or a busy notebook beside one, then take many times as long. The results are the same.
    What the user has set counts.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)


def started_outside() -> int | None:
    """Processes that torchrun, SLURM or our own launcher started for this run; None if nobody did.

    By the variables that Lightning goes by, and its names of SLURM jobs that run no `srun`.
    """
    if "LOCAL_RANK" in os.environ:
        return int(os.environ.get("WORLD_SIZE", 1))
    if os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None
    return int(os.environ["SLURM_NTASKS"]) if "SLURM_NTASKS" in os.environ else None


def free_port() -> int:
    """A port for the ranks to meet at: $MASTER_PORT, or one that nobody listens to."""
    wanted = os.environ.get("MASTER_PORT", "0")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(wanted)))
        except (OSError, OverflowError, ValueError) as error:
            raise UserError(
                f"MASTER_PORT={wanted}: is in use or no port; try another one, or unset "
                "MASTER_PORT and a free one is found"
            ) from error
        return probe.getsockname()[1]


def check_devices(config: dict) -> None:
    """Raise UserError where the machine has not what `trainer` asks for, before anything starts."""
    trainer = config["trainer"]
    devices, nodes = count(trainer["devices"]), trainer["num_nodes"]
    gpus, cores, outside = len(visible_gpus()), core_count(), started_outside()
    accelerator, strategy = trainer["accelerator"], trainer["strategy"]
    if accelerator in ("gpu", "cuda") and not gpus:
        raise UserError(
            f"trainer.accelerator={accelerator}: this machine shows no GPU; try trainer=cpu"
        )
    if isinstance(strategy, str) and strategy.endswith(("spawn", "fork", "notebook")):
        raise UserError(
            f"trainer.strategy={strategy}: this program starts the processes by itself; "
            "try trainer=ddp"
        )
    on_gpus = gpus and accelerator != "cpu"
    if devices > (gpus if on_gpus else max(4, 2 * cores)):
        has = (
            f"{gpus} GPU{'s' * (gpus > 1)}" if on_gpus else f"{cores} cores, for two processes each"
        )
        raise UserError(
            f"trainer.devices={devices}: this machine has {has}; "
            f"try trainer.devices={gpus if on_gpus else cores}"
        )
    total = devices * nodes
    if outside is None and nodes > 1:
        raise UserError(
            f"trainer.num_nodes={nodes}: torchrun or srun has to start the processes on all of "
            "them, as the README shows; try trainer.num_nodes=1"
        )
    if outside not in (None, total):
        raise UserError(
            f"trainer.devices={devices}: {nodes} x {devices} processes are wanted and {outside} "
            f"were started; try trainer.devices={outside // nodes}"
        )
    shares, who = total, "processes"
    if isinstance(strategy, dict) and strategy["_target_"].endswith(".TwoTowers"):
        if (config["model"].get("net") or {}).get("towers") != 2:
            raise UserError(
                "trainer=two_gpu: parts a net's two towers, and this one has none; "
                "try model=alexnet, or trainer=ddp"
            )
        if total % 2:
            raise UserError(
                f"trainer.devices={devices}: each copy of the net takes two; "
                f"try trainer.devices={devices + 1}, or trainer=default"
            )
        shares, who = total // 2, "pairs of processes"
    batch_size = config["data"].get("batch_size", shares)
    if batch_size < shares:
        raise UserError(
            f"data.batch_size={batch_size}: the batch is shared by {shares} "
            f"{who} and each needs an image; try data.batch_size={shares}"
        )
    if outside is None and devices > 1:
        free_port()
