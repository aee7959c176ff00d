"""One run: build, train, test, and write down what came out, also when it did not end well."""

import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig

from classic_cnns import run_directory
from classic_cnns.build import build, example
from classic_cnns.classifier import Classifier, Diverged
from classic_cnns.errors import UserError
from classic_cnns.files import disk_trouble, read_json, write_json
from classic_cnns.processes import stop_signals
from classic_cnns.report import summary
from classic_cnns.report.log import show_log, train_log
from classic_cnns.report.tensorboard import RunLogger
from classic_cnns.trainer import precision
from classic_cnns.trainer.checkpoint import AtomicCheckpointIO, BestAndLast
from classic_cnns.trainer.launch import report
from classic_cnns.trainer.loop import LeanLoop
from classic_cnns.trainer.memory import keep_freed_memory
from classic_cnns.trainer.progress import Progress
from classic_cnns.trainer.stop import Stop, Stopped
from classic_cnns.trainer.two_towers import TwoTowers

log = logging.getLogger(__name__)


def run(config: DictConfig) -> None:
    """Carry out one run, new or resumed.

    With several ranks each of them calls this; they meet, and rank 0 speaks and writes for all.
    """
    stop = Stop()
    with stop_signals(stop.receive):
        carry_out(config, stop)


def carry_out(config: DictConfig, stop: Stop) -> None:
    show_log()
    keep_freed_memory()
    directory = run_directory.find(config.resume) if config.resume else None
    done = read_json(directory / "result.json") if directory else None
    if done and done["status"] == "finished":
        log.info("%s is finished already", directory)
        log.info(final_table(done))
        return

    classifier, data = build(config)
    data.prepare_data()  # before there is a directory: what fails here leaves nothing behind
    trainer = make_trainer(config, stop)
    trainer.strategy.setup_environment()  # the ranks meet
    if trainer.is_global_zero:
        directory = directory or run_directory.create(config)
        report(directory=str(directory))
    directory = Path(trainer.strategy.broadcast(str(directory)))
    if not trainer.is_global_zero:
        try:
            train_and_test(config, directory, trainer, classifier, data)
        except Diverged:
            sys.exit(1)  # rank 0 says so
        return
    with train_log(directory / "train.log"), recorded(directory) as result:
        result |= train_and_test(config, directory, trainer, classifier, data)
        log.info(final_table(result))


def make_trainer(config: DictConfig, stop: Stop) -> Any:
    """A trainer that is still to be given the logger and the checkpoints of a run directory."""
    several = config.trainer.devices * config.trainer.num_nodes > 1
    kind = TwoTowers if config.trainer.strategy == "two_towers" else DDPStrategy
    strategy = kind(gradient_as_bucket_view=True) if several else "auto"
    chosen = precision.choose(config.trainer.precision, config.trainer.accelerator)
    trainer: Any = pl.Trainer(
        **{**config.trainer, "precision": chosen, "strategy": strategy},
        gradient_clip_val=config.optim.clip_norm,
        logger=False,
        callbacks=[Progress(config.data.batch_size), stop],
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=False,  # Lightning's own
        enable_progress_bar=False,  # ours is one of the callbacks
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit_loop.epoch_loop = LeanLoop(trainer, stop)
    trainer._signal_connector.register_signal_handlers = lambda: None  # `stop` has the signals
    return trainer


def train_and_test(
    config, directory: Path, trainer: Any, classifier: Classifier, data
) -> dict[str, Any]:
    """What `result.json` says of a run that has finished."""
    checkpoints = BestAndLast(directory / "checkpoints")
    last = checkpoints.last if checkpoints.last.exists() else None
    step = on_cpu(last)["global_step"] if last else -1
    logger = RunLogger(directory, first_step=step + 1)
    trainer.logger = logger
    trainer.callbacks.append(checkpoints)
    if trainer.precision.startswith("bf16"):
        classifier.net.to(memory_format=torch.channels_last)  # the layout in which it is fast
    if trainer.is_global_zero:
        write_start(config, directory, trainer, classifier, data, logger)

    trainer.fit(classifier, data, ckpt_path=last, weights_only=True)
    last_results = dict(classifier.results)
    # Testing loads the best checkpoint, and with it the results of that epoch.
    trainer.test(classifier, data, ckpt_path=checkpoints.best, weights_only=True, verbose=False)
    if trainer.is_global_zero:
        best, answers, names = on_cpu(checkpoints.best), classifier.answers, data.class_names
        logger.write_test(best, classifier.net, answers.compute(), answers.mistakes, names)
        logger.close()

    names, splits = ("loss", "error", "accuracy"), ("train", "val", "test")
    metrics = {split: {n: classifier.results[f"{n}/{split}"] for n in names} for split in splits}
    metrics["val"]["last_error"] = last_results["error/val"]
    return {
        "metrics": metrics,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "seconds": last_results["time/seconds"],
        "images_per_second": last_results["speed/images_per_second"],
    }


def on_cpu(checkpoint: Path) -> dict[str, Any]:
    return torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)


def write_start(config, directory: Path, trainer: Any, classifier, data, logger) -> None:
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    name = f"{trainer.world_size} x {name}" if trainer.world_size > 1 else name
    facts = {"device": name, "precision": trainer.precision, "data": data.facts()}
    run_directory.write_provenance(directory, facts)

    table = summary.table(classifier.net, example(config))
    log.info("%s on %s, %s\n%s", config.name, name, directory, table)
    if trainer.precision.startswith("bf16"):
        log.info("bfloat16 and channels last; trainer.precision=32-true takes float32")
    logger.write_start(config, table)


@contextmanager
def recorded(directory: Path) -> Iterator[dict]:
    """Yields the dictionary that becomes `result.json`, however the run ends."""
    resume = f"go on with: python src/train.py resume={directory}"
    result: dict = {"status": "failed", "directory": str(directory)}
    try:
        try:
            yield result
            result["status"] = "finished"
        except Diverged as error:
            result |= {"status": "diverged", "error": str(error)}
            log.error("error: %s; try a smaller optim.lr. The run so far: %s", error, directory)
            sys.exit(1)
        except Stopped as stop:
            result |= {"status": "interrupted", "error": signal.Signals(stop.code - 128).name}
            log.warning("interrupted; %s", resume)
            raise
        except BaseException as error:
            result["error"] = f"{type(error).__name__}: {error}"
            raise
        finally:
            write_json(directory / "result.json", result)
    except OSError as error:
        if disk_trouble(error):
            raise UserError(f"{directory}: {error.strerror}; make room, then {resume}") from error
        raise


def final_table(result: dict) -> str:
    lines = [f"\n{'':12}{'loss':>10}{'error':>10}{'accuracy':>10}"]
    for split, name in (("train", "training"), ("val", "validation"), ("test", "test")):
        m = result["metrics"][split]
        lines.append(f"{name:12}{m['loss']:10.4f}{m['error']:10.2%}{m['accuracy']:10.2%}")
    lines.append(
        f"{result['epochs']} epochs in {result['seconds']:.1f} s, "
        f"{result['images_per_second']:,.0f} images/s, {result['directory']}"
    )
    return "\n".join(lines)
