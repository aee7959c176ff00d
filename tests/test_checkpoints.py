"""What a crash costs: kills at any moment, damaged files, and how often a checkpoint is written."""

import json
import random
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from classic_cnns import UserError
from classic_cnns.callbacks.checkpoint import BestAndLast
from classic_cnns.config.compose import compose
from classic_cnns.run.run import run
from tests.runs import same, weights


@pytest.fixture
def words(tiny_mnist, tiny_config_dir, tmp_path, monkeypatch) -> list[str]:
    """Of 32 steps an epoch, with a checkpoint each five of them."""
    monkeypatch.chdir(tmp_path)
    return [
        "data=tiny", f"data_dir={tiny_mnist.folder}", "trainer.accelerator=cpu",
        "trainer.max_epochs=3", "callbacks.checkpoint.steps=5", "trainer.log_every_n_steps=2",
        "~callbacks.pictures",
    ]  # fmt: skip


# --- Kills ----------------------------------------------------------------------------------------

# A run that is killed after a number of events, never for 0: argv has it, and the run's words.
KILLED = """
import os, signal, sys
from classic_cnns.classifier import Classifier
from classic_cnns.config.compose import compose
from classic_cnns.run.run import run

left = int(sys.argv[2])

def counting(holder, name):
    original = getattr(holder, name)
    def event(*args, **options):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **options)
    setattr(holder, name, event)

for holder, name in [
    (Classifier, "training_step"), (Classifier, "validation_step"), (Classifier, "test_step"),
    (os, "fsync"), (os, "replace"),
]:
    counting(holder, name)
run(compose(*sys.argv[3:], config_dirs=[sys.argv[1]]))
"""


@pytest.mark.slow
def test_a_run_killed_at_twenty_random_moments_ends_with_the_undisturbed_weights(
    fork, words, tiny_config_dir, tmp_path
):
    words[3] = "trainer.max_epochs=24"  # more events than twenty attempts of 60 can reach
    (tmp_path / "killed.py").write_text(KILLED)

    def attempt(events: int, *words: str) -> int:
        return fork(tmp_path / "killed.py", tiny_config_dir, events, *words, cwd=tmp_path).wait()

    assert attempt(0, *words, "run_dir=whole") == 0
    moments = random.Random(time.time_ns() // 1000)
    state = moments.getstate()
    assert attempt(30, *words, "run_dir=killed") == -9
    for kill in range(19):
        code = attempt(moments.randrange(1, 60), "resume=killed")
        assert code == -9, (kill, state)  # not over yet, and nothing else went wrong
    assert attempt(0, "resume=killed") == 0
    assert same(weights(Path("killed")), weights(Path("whole"))), state
    kept = ("metrics", "last", "epochs", "steps")
    ends = [json.loads(Path(name, "result.json").read_text()) for name in ("killed", "whole")]
    for part in ("metrics", "last"):
        for end in ends:
            end[part] = {k: v for k, v in end[part].items() if not k.startswith("speed/")}
    assert [ends[0][key] for key in kept] == [ends[1][key] for key in kept]
    left = sorted(path.name for path in Path("killed/checkpoints").iterdir())
    assert left == ["best.ckpt", "last.ckpt"]


# --- Damage ---------------------------------------------------------------------------------------


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(words, tiny_config_dir, caplog):
    places = {"config_dirs": [str(tiny_config_dir)]}
    run(compose(*words, "run_dir=whole", **places))
    run(compose(*words, "run_dir=run", "trainer.max_epochs=2", "optim.schedule_epochs=3", **places))
    damage(Path("run/checkpoints/last.ckpt"))
    caplog.clear()
    run(compose("resume=run", "trainer.max_epochs=3"))
    (line,) = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert "run/checkpoints/last.ckpt: is cut off, damaged" in line and "best.ckpt is used" in line
    assert same(weights(Path("run")), weights(Path("whole")))

    for name in ("last.ckpt", "best.ckpt"):
        damage(Path("run/checkpoints") / name)
    with pytest.raises(UserError, match="run/checkpoints/last.ckpt: is cut off"):
        run(compose("resume=run", "trainer.max_epochs=4"))
    with pytest.raises(UserError, match="run/checkpoints/best.ckpt: is cut off"):
        run(compose(*words, "init_from=run", "run_dir=other", **places))
    assert not Path("other").exists()


# --- The clock ------------------------------------------------------------------------------------


class Clock:
    """Stands for a Trainer whose batches take `batch` seconds, and whose checkpoints `save`."""

    def __init__(self, monkeypatch, batch: float, save: float, **ranks) -> None:
        self.now, self.batch, self.save, self.saved, self.requested = 0.0, batch, save, [], 0
        monkeypatch.setattr("classic_cnns.callbacks.checkpoint.time.monotonic", lambda: self.now)
        self.trainer = SimpleNamespace(
            save_checkpoint=self.write, default_root_dir="", world_size=2, val_check_batch=None,
            is_last_batch=False, accumulate_grad_batches=1, global_step=0,
            strategy=SimpleNamespace(broadcast=self.ask), **ranks,
        )  # fmt: skip

    def ask(self, answer):
        self.requested += 1
        return answer

    def write(self, _) -> None:
        self.saved.append(self.now)
        self.now += self.save

    def epoch(self, callback: BestAndLast, batches: int) -> None:
        callback.on_train_epoch_start(self.trainer, None)
        for number in range(batches):
            self.now += self.batch
            self.trainer.global_step += 1
            callback.on_train_batch_end(self.trainer, None, None, None, number)


def test_within_long_epochs_a_checkpoint_is_written_each_five_minutes(monkeypatch):
    clock, callback = Clock(monkeypatch, 0.1, 1), BestAndLast(minutes=5)
    clock.epoch(callback, 2900)
    assert not clock.saved  # an epoch of less than five minutes has the one at its end
    asked, clock.requested = clock.requested, 0
    assert asked < 20
    clock.epoch(callback, 10_000)
    assert [round(time - 290) for time in clock.saved] == [300, 601, 902]
    assert clock.requested < 100


def test_checkpoints_that_take_long_are_fewer_and_take_a_hundredth_of_the_time(monkeypatch):
    clock, callback = Clock(monkeypatch, 1, 60), BestAndLast(minutes=5)
    clock.epoch(callback, 30_000)
    assert 60 * (len(clock.saved) - 1) < 0.0101 * clock.now and len(clock.saved) >= 5


def test_a_checkpoint_waits_for_the_end_of_an_accumulation(monkeypatch):
    clock, callback = Clock(monkeypatch, 60, 1), BestAndLast(minutes=5)
    clock.trainer.accumulate_grad_batches = 4
    clock.epoch(callback, 100)
    batches = [round((time - number) / 60) for number, time in enumerate(clock.saved)]
    assert batches and all(batch % 4 == 0 for batch in batches)
