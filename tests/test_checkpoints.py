"""Checkpoints: kills at any moment, damaged files, and how often they are written."""

import json
import random
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from classic_cnns import UserError
from classic_cnns.callbacks.checkpoint import BestAndLast, is_resumable
from classic_cnns.config.compose import Composer, compose
from classic_cnns.run.evaluate import evaluate
from classic_cnns.run.run import run
from tests.runs import same, weights


@pytest.fixture
def words(tiny_mnist, tiny_config_dir, tmp_path, monkeypatch) -> list[str]:
    """The overrides of a run with 32 steps per epoch and a checkpoint after each five."""
    monkeypatch.chdir(tmp_path)
    return [
        "data=tiny", f"data_dir={tiny_mnist.folder}", "trainer.accelerator=cpu",
        "trainer.max_epochs=3", "callbacks.checkpoint.steps=5", "trainer.log_every_n_steps=2",
        "~callbacks.pictures",
    ]  # fmt: skip


# --- Kills ----------------------------------------------------------------------------------------

# A run that kills itself after argv[2] events, or never if that is 0.
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
def test_a_run_killed_twenty_times_at_random_is_resumed_with_equal_weights(
    fork, words, tiny_config_dir, tmp_path
):
    words[3] = "trainer.max_epochs=24"  # more events than twenty attempts with up to 60 each
    (tmp_path / "killed.py").write_text(KILLED)

    def attempt(events: int, *words: str) -> int:
        return fork(tmp_path / "killed.py", tiny_config_dir, events, *words, cwd=tmp_path).wait()

    assert attempt(0, *words, "run_dir=whole") == 0
    moments = random.Random(time.time_ns() // 1000)
    state = moments.getstate()
    assert attempt(30, *words, "run_dir=killed") == -9
    for kill in range(19):
        code = attempt(moments.randrange(1, 60), "resume=killed")
        assert code == -9, (kill, state)  # killed, and not finished or failed
    assert attempt(0, "resume=killed") == 0
    assert same(weights(Path("killed")), weights(Path("whole"))), state
    compared = ("metrics", "last", "epochs", "steps")
    results = [json.loads(Path(name, "result.json").read_text()) for name in ("killed", "whole")]
    for part in ("metrics", "last"):
        for outcome in results:
            outcome[part] = {k: v for k, v in outcome[part].items() if not k.startswith("speed/")}
    assert [results[0][key] for key in compared] == [results[1][key] for key in compared]
    left = sorted(path.name for path in Path("killed/checkpoints").iterdir())
    assert left == ["best.ckpt", "last.ckpt"]


# --- Damage ---------------------------------------------------------------------------------------


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_reported_and_the_other_one_used(words, tiny_config_dir, caplog):
    options = {"config_dirs": [str(tiny_config_dir)]}
    run(compose(*words, "run_dir=whole", **options))
    run(
        compose(*words, "run_dir=run", "trainer.max_epochs=2", "optim.schedule_epochs=3", **options)
    )
    damage(Path("run/checkpoints/last.ckpt"))
    caplog.clear()
    run(compose("resume=run", "trainer.max_epochs=3"))
    (line,) = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert "run/checkpoints/last.ckpt: is cut off, damaged" in line and "best.ckpt is used" in line
    assert same(weights(Path("run")), weights(Path("whole")))

    for name in ("last.ckpt", "best.ckpt"):
        damage(Path("run/checkpoints") / name)
    with pytest.raises(UserError, match="run/checkpoints/last.ckpt: is cut off, damaged"):
        run(compose("resume=run", "trainer.max_epochs=4"))
    with pytest.raises(UserError, match="run/checkpoints/best.ckpt: is cut off, damaged"):
        run(compose(*words, "init_from=run", "run_dir=other", **options))
    assert not Path("other").exists()


# --- Times between checkpoints --------------------------------------------------------------------


class FakeTrainer:
    """A fake Trainer: a batch takes `batch` seconds and a checkpoint `save` seconds."""

    def __init__(self, monkeypatch, batch: float, save: float, **ranks) -> None:
        self.now, self.batch, self.save, self.saved, self.requested = 0.0, batch, save, [], 0
        monkeypatch.setattr("classic_cnns.callbacks.checkpoint.time.monotonic", lambda: self.now)
        self.trainer = SimpleNamespace(
            save_checkpoint=self.write, default_root_dir="", world_size=2, val_check_batch=None,
            check_val_every_n_epoch=1,
            is_last_batch=False, accumulate_grad_batches=1, global_step=0, max_steps=-1,
            should_stop=False,
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


@pytest.mark.slow  # whole runs
@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu moves checkpoints here")
def test_a_run_of_a_gpu_is_evaluated_and_resumed_without_one(words, tiny_config_dir, monkeypatch):
    with monkeypatch.context() as patch:  # as if every tensor were on a GPU
        patch.setattr(torch.serialization, "location_tag", lambda _: "cuda:0")
        result = run(compose(*words, "run_dir=a", config_dirs=[tiny_config_dir]))
    with pytest.raises(RuntimeError, match="CUDA device"):
        torch.load("a/checkpoints/best.ckpt", weights_only=True)
    found = evaluate(*Composer([tiny_config_dir]).load_run("a"), "test").metrics
    assert found["error/test"] == result["metrics"]["error/test"]
    longer = run(compose("resume=a", "trainer.max_epochs=4", config_dirs=[tiny_config_dir]))
    assert longer["epochs"] == 4
    run(compose(*words, "run_dir=b", "init_from=a", config_dirs=[tiny_config_dir]))


def test_in_long_epochs_a_checkpoint_is_written_every_five_minutes(monkeypatch):
    fake, callback = FakeTrainer(monkeypatch, 0.1, 1), BestAndLast(minutes=5)
    fake.epoch(callback, 2900)
    assert not fake.saved  # a shorter epoch has only the checkpoint at its end
    asked, fake.requested = fake.requested, 0
    assert asked < 20
    fake.epoch(callback, 10_000)
    assert [round(time - 290) for time in fake.saved] == [300, 601, 902]
    assert fake.requested < 100


def test_slow_checkpoints_take_at_most_a_hundredth_of_the_time(monkeypatch):
    fake, callback = FakeTrainer(monkeypatch, 1, 60), BestAndLast(minutes=5)
    fake.epoch(callback, 30_000)
    assert 60 * (len(fake.saved) - 1) < 0.0101 * fake.now and len(fake.saved) >= 5


def test_a_checkpoint_waits_for_the_end_of_an_accumulation(monkeypatch):
    fake, callback = FakeTrainer(monkeypatch, 60, 1), BestAndLast(minutes=5)
    fake.trainer.accumulate_grad_batches = 4
    fake.epoch(callback, 100)
    batches = [round((time - number) / 60) for number, time in enumerate(fake.saved)]
    assert batches and all(batch % 4 == 0 for batch in batches)


def test_validations_are_counted_over_epochs_if_lightning_counts_them_so():
    trainer = SimpleNamespace(val_check_batch=10, check_val_every_n_epoch=None, is_last_batch=False,
                              accumulate_grad_batches=1)  # fmt: skip
    trainer.fit_loop = SimpleNamespace(total_batch_idx=19)
    assert not is_resumable(trainer, 3)  # the fourth batch of an epoch, the twentieth of all
    trainer.check_val_every_n_epoch = 1
    assert is_resumable(trainer, 3) and not is_resumable(trainer, 9)


def test_a_checkpoint_elsewhere_is_not_read_with_the_config_beside_it(
    tiny_mnist, tiny_config_dir, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    words = ["data=tiny", f"data_dir={tiny_mnist.folder}", "trainer.accelerator=cpu", "run_dir=run",
             "trainer.max_epochs=1", "trainer.log_every_n_steps=2",
             "~callbacks.pictures"]  # fmt: skip
    run(compose(*words, config_dirs=[str(tiny_config_dir)]))
    Path("other/weights").mkdir(parents=True)
    Path("other/config.yaml").write_text("a: 1\n")
    shutil.copy("run/checkpoints/best.ckpt", "other/weights/best.ckpt")
    checkpoint, config = Composer().load_run("other/weights/best.ckpt")
    assert config.data.batch_size == 16 and checkpoint == Path("other/weights/best.ckpt")
    # Its metrics are not numbers; the weights, which are, were changed by somebody.
    broken = torch.load(checkpoint, weights_only=True)
    for weight in broken["state_dict"].values():
        weight.fill_(torch.nan) if weight.is_floating_point() else None
    torch.save(broken, checkpoint)
    with pytest.raises(UserError, match="^the test loss became inf; try another checkpoint"):
        evaluate(checkpoint, config, "test")


@pytest.mark.parametrize(
    ("key", "value", "resumed"),
    [
        ("preprocessing", {"classes": "abc"}, "data: its classes are 0, 1, 2"),
        ("loops", {"fit_loop": {"epoch_progress": {"current": {"processed": "x"}}}},
         "is not a checkpoint of this run's net"),
        ("loops", {"fit_loop": {"epoch_progress": {"current": {"processed": 1, "ready": 1}},
                                "epoch_loop.state_dict": {"_batches_that_stepped": "x"}}},
         "is not a checkpoint of this run's net"),
    ],
)  # fmt: skip
def test_a_checkpoint_with_other_values_is_reported_in_one_line(
    key, value, resumed, tiny_mnist, tiny_config_dir, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    words = ["data=tiny", f"data_dir={tiny_mnist.folder}", "trainer.accelerator=cpu", "run_dir=run",
             "trainer.max_epochs=1", "trainer.log_every_n_steps=2",
             "~callbacks.pictures"]  # fmt: skip
    run(compose(*words, config_dirs=[str(tiny_config_dir)]))
    for path in Path("run/checkpoints").iterdir():
        torch.save(torch.load(path, weights_only=True) | {key: value}, path)
    with pytest.raises(UserError, match=resumed):
        run(compose("resume=run", "trainer.max_epochs=2"))
    with pytest.raises(UserError, match="has an invalid config"):
        evaluate(*Composer().load_run("run"), "test")
