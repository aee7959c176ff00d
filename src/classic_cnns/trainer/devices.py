"""The devices and cores of this machine, and checks against them.

Importing this module does not import torch.
"""

import ctypes
import os
import socket
import sys
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import Any

from classic_cnns import UserError

CGROUP = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
LOCAL = "classic_cnns.sweep.local.Local"  # the executor of sweeps that uses this machine


def visible_gpus() -> list[str]:
    """The GPUs that CUDA_VISIBLE_DEVICES names, or NVIDIA's; one for AMD, WSL and Apple."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip() not in ("", "-1")]
    other = sys.platform == "darwin" or os.path.exists("/dev/kfd") or os.path.exists("/dev/dxg")
    return [str(i) for i in range(len(glob("/dev/nvidia[0-9]*")) or int(other))]


def uses_gpus(trainer: Any) -> bool:
    """Whether a run uses GPUs, perhaps of another machine, from the config of the Trainer."""
    accelerator = trainer["accelerator"]
    return accelerator in ("gpu", "cuda") or (accelerator != "cpu" and bool(visible_gpus()))


def device_count(trainer: Any) -> int:
    """The number of devices on each machine, from the config of the Trainer."""
    devices = trainer["devices"]  # a number, "auto", -1 or a list
    if isinstance(devices, int) and devices > 0:
        return devices
    if devices in ("auto", -1):
        return 1 if trainer["accelerator"] == "cpu" else max(1, len(visible_gpus()))
    return len(devices)


def core_count() -> int:
    """The number of cores that this process may use, with the limits of a container."""
    linux = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if linux else os.cpu_count() or 1
    version_1 = (limits(f"cpu/cpu.cfs_{name}_us") for name in ("quota", "period"))
    quotas = limits("cpu.max") or map(" ".join, zip(*version_1, strict=True))
    pairs = [text.split() for text in quotas]
    shares = [int(quota) // int(period) for quota, period in pairs if quota not in ("max", "-1")]
    return max(1, min([cores, *shares]))


def limits(name: str) -> list[str]:
    """The contents of a file of the control groups of this process: its own and those around it.

    `name` is a file of version 2, or one of version 1 with the controller before it: cpu/<file>.
    """
    controller, _, file = name.rpartition("/")
    lines = OWN_CGROUPS.read_text().splitlines() if OWN_CGROUPS.is_file() else []
    paths = [path for _, names, path in (line.split(":", 2) for line in lines)
             if controller in names.split(",")] or ["/"]  # fmt: skip
    own = Path(paths[0].strip("/"))
    files = [CGROUP / controller / place / file for place in (own, *own.parents)]
    return [path.read_text().strip() for path in files if path.is_file()]


def limit_threads() -> None:
    """Let torch use at most `core_count()` threads; it ignores the quota of a container.

    A process that has used up its quota stands still for the rest of a tenth of a second, and
    threads that wait for others use it up too. `OMP_NUM_THREADS` has precedence.
    """
    import torch

    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > core_count():
        torch.set_num_threads(core_count())


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory; no effect on other systems.

    By default glibc returns large blocks to the kernel, which fills every page with zeros when it
    is allocated again. In a training step, where all tensors are freed and allocated again, this
    takes up to half of the time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:  # the numbers are those of M_TRIM_THRESHOLD and M_MMAP_MAX in malloc.h
        mallopt(-1, -1)  # never trim
        mallopt(-4, 0)  # no mmap for large blocks


def choose_precision(wanted: str, accelerator: str) -> str:
    """Lightning's name of a precision: `wanted`, or for "auto" the fastest native one.

    That is bfloat16 if the processor or GPU has instructions for it, else float32: without them
    bfloat16 takes twice as long as float32.
    """
    import torch

    if wanted != "auto":
        return wanted
    if accelerator != "cpu" and torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has = torch.cpu.get_capabilities()
        native = has.get("avx512_bf16", False) or has.get("amx_bf16", False)
    return "bf16-mixed" if native else "32-true"


def launched_processes() -> int | None:
    """The number of processes that torchrun, SLURM or our launcher started; None if there are none.

    Uses the same variables as Lightning, and ignores interactive SLURM jobs, as Lightning does.
    """
    if "LOCAL_RANK" in os.environ:
        return int(os.environ.get("WORLD_SIZE", 1))
    if os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None
    return int(os.environ["SLURM_NTASKS"]) if "SLURM_NTASKS" in os.environ else None


def job_id() -> str | None:
    """The ID of a job of SLURM or torchrun, which it keeps when it is started again."""
    name = os.environ.get("SLURM_JOB_ID") or os.environ.get("TORCHELASTIC_RUN_ID")
    return None if name == "none" else name  # torchrun's default, the same for all jobs


def is_restarted() -> bool:
    """Whether SLURM or torchrun has started this job before."""
    counts = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")
    return job_id() is not None and any(os.environ.get(name, "0") != "0" for name in counts)


def free_port() -> int:
    """A port for the ranks' rendezvous: $MASTER_PORT, or any free one."""
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


def device_conflicts(config: dict) -> Iterator[str]:
    """An error for each value of `trainer` that this machine or the way of starting refuses.

    The devices of a sweep's jobs on a cluster are not known here.
    """
    trainer, executor = config["trainer"], (config.get("sweep") or {}).get("executor") or {}
    here = executor.get("_target_", LOCAL) == LOCAL
    devices, nodes = device_count(trainer), trainer["num_nodes"]
    gpus, cores, outside = len(visible_gpus()), core_count(), launched_processes()
    accelerator, strategy = trainer["accelerator"], trainer["strategy"]
    if here and accelerator in ("gpu", "cuda") and not gpus:
        yield f"trainer.accelerator={accelerator}: no GPU was found; try trainer=cpu"
    if isinstance(strategy, str) and strategy.endswith(("spawn", "fork", "notebook")):
        yield (
            f"trainer.strategy={strategy}: this program starts the processes itself; "
            "try trainer=ddp"
        )
    on_gpus = uses_gpus(trainer)
    most, usual, has = max(4, 2 * cores), cores, f"{cores} cores, for two processes each"
    if on_gpus:
        most, usual, has = gpus, gpus, f"{gpus} GPU{'s' * (gpus > 1)}"
    if here and devices > most:
        other = ", or trainer.accelerator=cpu" * on_gpus
        yield (
            f"trainer.devices={devices}: this machine has {has}; try trainer.devices={usual}{other}"
        )
    if here and on_gpus and sys.platform == "darwin" and "64" in str(trainer["precision"]):
        yield f"trainer.precision={trainer['precision']}: needs a CPU on Macs; try trainer=cpu"
    total = devices * nodes
    if outside is None and nodes > 1:
        yield (
            f"trainer.num_nodes={nodes}: torchrun or srun has to start the processes on all of "
            "them, as the README shows; try trainer.num_nodes=1"
        )
    if outside not in (None, total):
        yield (
            f"trainer.devices={devices}: {nodes} x {devices} processes are needed and {outside} "
            f"were started; try trainer.devices={outside // nodes}"
        )
    if trainer.get("sync_batchnorm") and total > 1 and not on_gpus:
        yield (
            "+trainer.sync_batchnorm=true: needs GPUs, in torch; leave it out, or try "
            "trainer.devices=1"
        )
    shares, who = total, "processes"
    if "TwoTowers" in str(strategy):
        if (config["model"].get("net") or {}).get("towers") != 2:
            yield "trainer=two_gpu: needs a net with two towers; try model=alexnet, or trainer=ddp"
        if total % 2:
            yield (
                f"trainer.devices={devices}: each copy of the net needs two; "
                f"try trainer.devices={devices + 1}, or trainer=default"
            )
        shares, who = total // 2, "pairs of processes"
    batch_size = config["data"].get("batch_size")
    if type(batch_size) is int and batch_size < shares:
        yield (
            f"data.batch_size={batch_size}: the batch is shared by {shares} "
            f"{who} and each needs an image; try data.batch_size={shares}"
        )
