"""What is submitted to SLURM, with a script in place of `sbatch`."""

import os

import pytest

from classic_cnns import UserError
from classic_cnns.sweep.job import Job
from tests.sweep.conftest import read_table

submitit = pytest.importorskip("submitit")
ACCEPTS = "echo Submitted batch job 42"
REFUSES = "echo sbatch: error: invalid partition specified: gup >&2; exit 1"


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """A function that installs a script as `sbatch`; srun, by which submitit finds SLURM, too."""

    def sbatch(script: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir()
        states = "echo 'JobID|State|NodeList'; echo '42|FAILED|node1'"
        for name, text in (("sbatch", script), ("srun", ""), ("sacct", states)):
            (folder / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    return sbatch


@pytest.mark.parametrize(("on_gpu", "gpus"), [(True, ["2"]), (False, [])])
def test_slurm_is_asked_for_cores_gpus_time_and_own_parameters(
    sbatch, tmp_path, monkeypatch, on_gpu, gpus
):
    from classic_cnns.sweep.slurm import Slurm

    sbatch(ACCEPTS)
    monkeypatch.setenv("PYTHONPATH", "")  # Slurm sets it
    job = Job(3, [], {}, tmp_path / "s" / "3", [], ranks=2, on_gpu=on_gpu, time_limit=600)
    own = {"slurm_partition": "gpu", "mem_gb": 7}
    Slurm(cluster="slurm", parameters=own, cpus_per_rank=4, parallel=None, count=5).start(job)
    script = (job.directory / "submitit" / "42_submission.sh").read_text()
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines() if "#SBATCH" in line]
    asked = {key: value for key, _, value in (line.partition("=") for line in lines)}
    assert asked["partition"] == "gpu" and asked["mem"] == "7GB"
    assert asked["cpus-per-task"] == "8" and asked["ntasks-per-node"] == "1"
    assert [asked[key] for key in asked if key.startswith("gpus")] == gpus
    assert asked["time"] == "15"  # minutes: five after our own limit
    assert asked["job-name"] == "sweep-3"


@pytest.mark.slow
def test_jobs_may_use_gpus_that_the_submitting_machine_does_not_have(sbatch, sweep):
    sbatch(ACCEPTS)
    words = ["seed=0", "sweep=slurm", "sweep.dir=s", "trainer=gpu", "trainer.devices=8"]
    words += ["trainer.strategy=ddp"]
    done = sweep(*words, PATH=os.environ["PATH"], CUDA_VISIBLE_DEVICES="")
    assert done.code == 1 and "Traceback" not in done.out + done.err  # it never ran
    script = (sweep.folder / "s" / "0" / "submitit" / "42_submission.sh").read_text()
    assert "#SBATCH --gpus-per-node=8\n" in script and "#SBATCH --cpus-per-task=8\n" in script


@pytest.mark.slow
def test_jobs_that_slurm_refuses_are_failed_rows(sbatch, sweep):
    sbatch(REFUSES)
    words = ["seed=0,1", "sweep=slurm", "sweep.executor.parameters.slurm_partition=gup"]
    done = sweep(*words, "sweep.dir=s", PATH=os.environ["PATH"])
    assert done.code == 1 and "Traceback" not in done.out + done.err
    rows = read_table(sweep.folder / "s")
    assert [row["state"] for row in rows] == ["failed"] * 2
    assert {row["error"] for row in rows} == {"sbatch: error: invalid partition specified: gup"}


@pytest.mark.parametrize(
    ("cluster", "parameters", "expected"),
    [
        ("slrm", {}, "sweep.executor.cluster=slrm: "),
        ("local", {"slurm_partitio": "gpu"}, "sweep.executor.parameters: Unknown argument"),
        ("local", {"timeout_min": "abc"}, "sweep.executor.parameters: Parameter .timeout_min."),
    ],
)
def test_a_wrong_cluster_or_parameter_is_one_line(
    tmp_path, monkeypatch, cluster, parameters, expected
):
    from classic_cnns.sweep.slurm import Slurm

    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"^{expected}.*$"):
        Slurm(cluster=cluster, parameters=parameters, cpus_per_rank=1, parallel=None, count=1)
    assert not list(tmp_path.iterdir())
