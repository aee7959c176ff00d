"""The limits of containers, from the kernel's documentation of control groups 1 and 2."""

import os
import sys

import pytest
import torch
from lightning.pytorch.plugins.environments import SLURMEnvironment

from classic_cnns import UserError, compose
from classic_cnns.sweep import local
from classic_cnns.trainer import devices

CPU_1 = ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")
MEMORY_1 = "memory/memory.limit_in_bytes"


@pytest.fixture
def container(monkeypatch, tmp_path):
    """A function that replaces the files of the limits."""

    def container(**files: str) -> None:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")

    monkeypatch.setattr(devices, "CGROUP", tmp_path)
    monkeypatch.setattr(devices, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    return container


@pytest.mark.parametrize(("files", "cores"), [
    ({}, 8),
    ({"cpu.max": "max 100000"}, 8),
    ({"cpu.max": "200000 100000"}, 2),
    ({"cpu.max": "50000 100000"}, 1),  # half a core
    ({"cpu.max": "1600000 100000"}, 8),  # more than the machine has
    (dict(zip(CPU_1, ("-1", "100000"), strict=True)), 8),
    (dict(zip(CPU_1, ("350000", "100000"), strict=True)), 3),
    # Limits of systemd for a service, and for the slice around it.
    ({"own": "0::/a.slice/b.service", "a.slice/b.service/cpu.max": "200000 100000",
      "a.slice/cpu.max": "max 100000"}, 2),
    ({"own": "0::/a.slice/b.service", "a.slice/b.service/cpu.max": "max 100000",
      "a.slice/cpu.max": "500000 100000", "other.slice/cpu.max": "100000 100000"}, 5),
    ({"own": "5:memory:/x\n4:cpu,cpuacct:/a\n0::/", "cpu/a/cpu.cfs_quota_us": "200000",
      "cpu/a/cpu.cfs_period_us": "100000", **dict(zip(CPU_1, ("-1", "100000"), strict=True))}, 2),
    # The path outside of the container, which is not there.
    ({"own": "0::/docker/1234", "cpu.max": "200000 100000"}, 2),
])  # fmt: skip
def test_cores_are_those_of_the_container(container, files, cores):
    container(**files)
    assert devices.core_count() == cores


@pytest.mark.parametrize("name", ["memory.max", MEMORY_1])
def test_memory_is_that_of_the_container(container, name):
    whole = local.memory()
    container(**{name: str(2**63 - 4096)})  # no limit in version 1
    assert local.memory() == whole
    container(**{name: "123456789"})
    assert local.memory() == 123_456_789
    container(**{"memory.max": "max"})  # no limit in version 2
    assert local.memory() == whole


@pytest.mark.parametrize("name", ["train", "bash", "interactive"])
def test_ranks_are_slurms_where_lightning_says_so(monkeypatch, name):
    for variable, text in {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": name}.items():
        monkeypatch.setenv(variable, text)
    assert (devices.launched_processes() == 4) == SLURMEnvironment.detect()
    assert devices.launched_processes() in (4, None)


def test_torch_uses_no_more_threads_than_the_container_has_cores(container, monkeypatch):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        container(**{"cpu.max": "200000 100000"})
        monkeypatch.setenv("OMP_NUM_THREADS", "4")  # the user's choice
        devices.limit_threads()
        assert torch.get_num_threads() == 4
        monkeypatch.delenv("OMP_NUM_THREADS")
        devices.limit_threads()
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)  # a program that uses train() may have chosen fewer
        devices.limit_threads()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_mac_has_one_gpu_without_float64_and_its_cores(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(UserError, match="^trainer.precision=64-true: .*; try trainer=cpu$"):
        compose("trainer.precision=64-true")
    with pytest.raises(UserError, match="has 1 GPU; try .*, or trainer.accelerator=cpu$"):
        compose("trainer=ddp")
    for words in ("trainer.precision=64-true trainer=cpu", "trainer=ddp trainer.accelerator=cpu"):
        assert compose(*words.split()).trainer.accelerator == "cpu"
