"""Sweeps of real runs, with kills, resuming and several ranks."""

import random
import signal
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.forks import TRAIN, Process
from tests.sweep.conftest import read_table, wait_for

pytestmark = pytest.mark.slow
METRICS = ("error/val", "last error/val", "error/test")


@pytest.fixture
def start(fork, tiny_config_dir, tiny_mnist, tmp_path):
    def start(*words: str, trainer: str = "cpu") -> Process:
        data = ["--config-dir", tiny_config_dir, "data=tiny", f"data_dir={tiny_mnist.folder}"]
        return fork(TRAIN, "-m", *data, f"trainer={trainer}", *words, cwd=tmp_path)

    return start


def end(process: Process) -> str:
    out, err = process.communicate(timeout=170)
    assert process.returncode == 0, out + err
    return out


def test_a_sweep_stopped_at_random_times_is_resumed_with_an_equal_table(start, tmp_path):
    words = ["optim.lr=0.01,0.02", "trainer.max_epochs=8", "sweep.parallel=2"]
    whole = end(start(*words, "sweep.dir=whole"))

    def epochs() -> int:
        """The number of finished epochs of both jobs."""
        lines = (path.read_text() for path in tmp_path.glob("stopped/*/metrics.jsonl"))
        return sum(text.count("\n") for text in lines)

    random.seed(5)
    signals = (signal.SIGINT, 130), (signal.SIGKILL, -9), (signal.SIGTERM, 143)
    moments = sorted(random.sample(range(1, 12), len(signals)))
    for (number, code), moment in zip(signals, moments, strict=True):
        process = start(*words, "sweep.dir=stopped")
        deadline = time.monotonic() + 100
        while epochs() < moment:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        finished = "Best: job" in process.communicate(timeout=100)[0]
        # It may have finished before the signal.
        assert process.returncode == code or (finished and number != signal.SIGINT)
    end(start(*words, "sweep.dir=stopped"))
    pairs = zip(read_table(tmp_path / "whole"), read_table(tmp_path / "stopped"), strict=True)
    for one, other in pairs:
        for key in ("optim.lr", "state", *METRICS):
            assert one[key] == other[key] != ""
        assert one["state"] == "finished"
    assert "Best: job" in whole


def test_a_sweep_with_a_class_of_the_user_is_continued(start, tmp_path):
    """A class in the working directory, which a stored config may only name if it is trusted."""
    (tmp_path / "mine.py").write_text(
        """
from pathlib import Path

from lightning.pytorch.callbacks import Callback


class FailsOnce(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        note = Path(trainer.default_root_dir) / "failed"
        if trainer.current_epoch == 1 and not note.exists():
            note.touch()
            raise RuntimeError("no luck")
"""
    )
    words = ["+callbacks.mine._target_=mine.FailsOnce", "seed=0,1", "trainer.max_epochs=2"]
    words += ["sweep.dir=s"]
    process = start(*words)
    assert process.wait() == 1, process.stderr.read()
    assert [row["state"] for row in read_table(tmp_path / "s")] == ["failed"] * 2
    end(start(*words))
    assert [row["state"] for row in read_table(tmp_path / "s")] == ["finished"] * 2
    lines = (tmp_path / "s" / "0" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2  # the second start has continued the first


def test_the_number_of_devices_can_be_swept(start, tmp_path):
    end(start("trainer.devices=1,2", "trainer.max_epochs=2", "sweep.dir=s"))
    rows = read_table(tmp_path / "s")
    devices = [(row["trainer.devices"], row["state"]) for row in rows]
    assert devices == [("1", "finished"), ("2", "finished")]
    folders = [path.name for path in Path(tmp_path / "s").iterdir() if path.is_dir()]
    assert sorted(folders) == ["0", "1"]


def test_nets_with_towers_on_two_devices_can_be_swept(start, tmp_path):
    words = ["model=alexnet_small", "model.net.channels=[4,8,8,8,4]", "model.net.hidden=16"]
    words += ["trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.max_epochs=1"]
    end(start(*words, "optim.lr=0.01,0.02", "seed=1", "sweep.dir=s", trainer="two_gpu"))
    rows = read_table(tmp_path / "s")
    assert [row["state"] for row in rows] == ["finished"] * 2
    for row in rows:
        config = OmegaConf.load(tmp_path / "s" / row["job"] / "config.yaml")
        assert (config.optim.lr, config.seed) == (float(row["optim.lr"]), 1)


def test_a_killed_search_is_resumed_and_finds_the_better_rate(start, tmp_path):
    pytest.importorskip("optuna", minversion="4")
    words = ["experiment=search_lenet5", "sweep.search.n_trials=4", "sweep.search.pruner=null"]
    words += ["optim.lr=choice(0.000001,0.02)", "trainer.max_epochs=3", "sweep.dir=s"]
    process = start(*words)
    wait_for(tmp_path / "s" / "1" / "metrics.jsonl")  # the second of four trials, after an epoch
    process.kill()
    process.communicate()
    assert "optim.lr=0.02" in end(start(*words)).split("To repeat it:")[1]
    rows = read_table(tmp_path / "s")
    assert [row["state"] for row in rows] == ["finished"] * 4
    import optuna

    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{tmp_path}/s/study.db")
    assert [trial.value for trial in study.trials] == [float(row["error/val"]) for row in rows]


@pytest.mark.parametrize(
    ("executor", "package"), [("ray", "ray"), ("slurm sweep.executor.cluster=local", "submitit")]
)
def test_ray_and_slurm_give_the_same_table_after_resuming(executor, package, start, tmp_path):
    pytest.importorskip(package)
    words = ["seed=0,1", "trainer.max_epochs=6"]
    end(start(*words, "sweep.dir=here"))
    process = start(*words, *f"sweep={executor}".split(), "sweep.dir=there", "sweep.parallel=2")
    wait_for(tmp_path / "there" / "0" / "metrics.jsonl")
    process.terminate()
    out = process.communicate(timeout=100)[0]
    assert process.returncode in (143, 0), out
    end(start(*words, *f"sweep={executor}".split(), "sweep.dir=there", "sweep.parallel=2"))
    for one, other in zip(
        read_table(tmp_path / "here"), read_table(tmp_path / "there"), strict=True
    ):
        assert all(one[key] == other[key] != "" for key in ("seed", "state", *METRICS))
