"""One run: build, train, test, and record the result, also after a failure."""

import json
import logging
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from copy import deepcopy
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    LambdaCallback,
    LearningRateFinder,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.model_helpers import is_overridden
from omegaconf import DictConfig, OmegaConf

from classic_cnns import UserError, program
from classic_cnns.callbacks.checkpoint import finished_epochs, writes_last
from classic_cnns.callbacks.estimate import Estimate
from classic_cnns.callbacks.history import History
from classic_cnns.callbacks.pictures import tensorboard_writers
from classic_cnns.callbacks.seed import SeedEpochs, seed_generators
from classic_cnns.callbacks.stop import StopOnSignal, Stopped
from classic_cnns.classifier import Classifier, Diverged, check_fits, eval_mode, takes_total_steps
from classic_cnns.config import stored
from classic_cnns.config.schema import is_ours
from classic_cnns.config.trust import unreadable
from classic_cnns.files import AVERAGED, BEST, LAST, expand, is_disk_error, write_json
from classic_cnns.report import summary
from classic_cnns.report.log import early_messages, show_log, train_log
from classic_cnns.report.results import read_metrics, read_result, read_starts
from classic_cnns.run import directory as directories
from classic_cnns.run.build import (
    build,
    build_parts,
    build_trainer,
    check_monitors,
    example_input,
    lightning_errors,
)
from classic_cnns.trainer import devices
from classic_cnns.trainer.checkpoint_io import first_intact, read_checkpoint
from classic_cnns.trainer.launch import send_report
from classic_cnns.trainer.lightning_internals import ResumeExactly, disable_sigterm_exchange
from classic_cnns.trainer.processes import REQUEUE, requeue, stop_signals, try_lock
from classic_cnns.trainer.spinning import Watch

log = logging.getLogger(__name__)

TRAINING = Lock()  # seeds, signals and logs belong to the process


def train(config: DictConfig) -> dict[str, Any]:
    """Train and test as the config says, in this process; returns the content of `result.json`.

    It has `status`, finished or diverged, and `directory`; if it has finished, also `metrics` of
    the tested checkpoint, `last` ones, `epochs`, `steps` and `seconds`. With estimate=true it has
    only the status, estimated. Raises UserError for several devices, which need the command line,
    and KeyboardInterrupt after Ctrl-C or a notebook's stop button, once the run has stopped.
    """
    if not isinstance(config, DictConfig):
        raise UserError(f"train() takes a config of compose(), and got {type(config).__name__}")
    if devices.device_count(config.trainer) > 1 and devices.launched_processes() is None:
        raise UserError(
            f"trainer.devices={config.trainer.devices}: only the command starts a process for "
            f"each device; try {program()}, or trainer.devices=1"
        )
    if not TRAINING.acquire(blocking=False):
        raise UserError(
            "train(): another run is training in this process; wait for its end, or start this one "
            "in another process"
        )
    try:
        return run(config)
    except Stopped as stop:
        if stop.number != signal.SIGINT:
            raise
        raise KeyboardInterrupt from None  # a notebook would take SystemExit for a mistake
    except SystemExit:
        if not config.get("estimate"):
            raise
        return {"status": "estimated"}
    finally:
        TRAINING.release()


def run(config: DictConfig) -> dict[str, Any]:
    """One run, new or resumed. With several ranks, each of them calls this.

    Rank 0 chooses the directory and writes the files and the log.
    """
    show_log()
    devices.keep_freed_memory()
    devices.limit_threads()
    config = deepcopy(config)
    OmegaConf.set_readonly(config, False)  # a run that keeps nothing has a temporary directory
    if is_ours(config.data) and "root" in config.data:  # also for commands in other directories
        config.data.root = str(expand("data.root", config.data.root).absolute())
    if not config.resume and (again := directories.restarted_run(config)):
        log.info("this job was started again: continuing %s", again)
        config.resume = str(again)
    earlier = stored.find_run(config.resume) if config.resume else None
    done = read_result(earlier) if earlier else {}
    if done and is_finished(done, config):
        log.info("%s has finished; %s=<more> continues it", earlier, limit_of(done, config))
        done["directory"] = str(earlier)  # it may have been moved
        log.info(final_table(done))
        return done
    stop = StopOnSignal()
    with early_messages() as early, stop_signals(stop.receive), ExitStack() as stack:
        found = earlier and first_intact(earlier / "checkpoints" / name for name in (LAST, BEST))
        # A run that is started again from the beginning replaces its curves.
        step = resume_step(found, config) if found else 0 if earlier else None
        if earlier and not found:
            if read_metrics(earlier)[0]:  # else it was stopped in its first epoch
                raise UserError(
                    f"resume={earlier}: has no last.ckpt and no best.ckpt, which callbacks=default "
                    "writes; try a new run"
                )
            log.info("%s has no checkpoint yet: training starts from the beginning", earlier)
        module, data = build(config, resumed=found is not None)
        with lightning_errors(config):
            data.prepare_data()  # before a directory exists, so that errors leave nothing behind
        # Only a Trainer can broadcast the directory, and the run's own Trainer is built with it.
        temporary = build_trainer(config, logger=False)
        temporary.strategy.setup_environment()
        rank_0, kept = temporary.is_global_zero, bool(earlier) or not stored.keeps_nothing(config)
        place: Any = None  # the directory, and the checkpoint to resume from
        if rank_0:
            place = open_directory(config, earlier, stack), found
        directory, last = temporary.strategy.broadcast(place)
        trainer = assemble(config, directory, module, stop, step)
        resume = ""
        if rank_0 and kept:
            if writes_last(trainer):
                resume = f"; continue with: {stored.resume_command(directory, config)}"
            send_report(directory=str(directory), resume=resume)
        on_cpu = trainer.strategy.root_device.type == "cpu"
        Watch.bfloat16 = rank_0 and on_cpu and trainer.precision.startswith("bf16")
        stack.callback(setattr, Watch, "bfloat16", False)
        if rank_0 and kept and not earlier and not config.run_dir:
            directories.update_latest(directory)
        if not rank_0:
            try:
                result = train_and_test(config, directory, trainer, module, data, last)
                return result | {"status": "finished"}
            except Diverged:  # rank 0 reports it
                return {"status": "diverged"}
        stack.enter_context(train_log(directory / "train.log", early))
        with recorded_result(directory, kept, resume) as result:
            result |= train_and_test(config, directory, trainer, module, data, last)
            log.info(final_table(result, kept))
        return result


def is_finished(result: dict, config: DictConfig) -> bool:
    """Whether a run has finished and is not to be continued for more epochs."""
    if result["status"] != "finished":
        return False
    same = all(result.get(name) == config.trainer.get(name) for name in stored.LIMITS)
    epochs, steps = result.get("max_epochs", result.get("epochs")), result.get("max_steps") or inf
    return same and (epochs == config.trainer.max_epochs or result["steps"] >= steps > 0)


def limit_of(result: dict, config: DictConfig) -> str:
    """The key of the limit at which a finished run has ended."""
    if result["steps"] >= (config.trainer.get("max_steps") or inf) > 0:
        return "+trainer.max_steps"
    early = config.trainer.max_epochs == -1 or result["epochs"] < config.trainer.max_epochs
    return "+trainer.max_time" if early and config.trainer.get("max_time") else "trainer.max_epochs"


def hold(directory: Path, stack: ExitStack) -> None:
    """Lock the run while it is trained; UserError if another process is training it."""
    lock = try_lock(directory / "train.log")  # a file that every run keeps open
    if lock is None:
        raise UserError(
            f"resume={directory}: is being trained by another process; try again when it has ended"
        )
    stack.callback(os.close, lock)


def open_directory(config: DictConfig, earlier: Path | None, stack: ExitStack) -> Path:
    """The directory of a resumed run, or a new one, which is temporary if nothing is kept."""
    if not earlier:
        if stored.keeps_nothing(config):
            config.run_dir = stack.enter_context(TemporaryDirectory())
        return stack.enter_context(new_directory(config, stack))
    hold(earlier, stack)
    # Incomplete files, left if the run was killed while writing a checkpoint.
    for rest in (earlier / "checkpoints").glob(".*.ckpt.*"):
        rest.unlink()
    (earlier / "checkpoints" / AVERAGED).unlink(missing_ok=True)  # of fewer epochs
    directories.write_config(earlier, config)  # trainer.max_epochs may have changed
    return earlier


@contextmanager
def new_directory(config: DictConfig, stack: ExitStack) -> Iterator[Path]:
    """Create a run's directory; after a UserError it is removed, unless an epoch was trained."""
    directory = directories.create(config)
    hold(directory, stack)
    try:
        yield directory
    except UserError:
        if not any((directory / name).exists() for name in ("checkpoints", "metrics.jsonl")):
            for path in directory.iterdir():
                if path.name not in stored.OF_SWEEP:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            with suppress(OSError):  # not empty, or the folder above it is not
                directory.rmdir()
                directories.restore_latest(directory)
                if stored.OUTPUTS in directory.parents:
                    directory.parent.rmdir()
                    stored.OUTPUTS.rmdir()
        raise


def assemble(
    config: DictConfig,
    directory: Path,
    module: pl.LightningModule,
    stop: StopOnSignal,
    step: int | None,
) -> pl.Trainer:
    """The Trainer with callbacks and loggers of a run, which is resumed at `step`, if given."""
    checkpoints = directory / "checkpoints"
    callbacks = build_parts(config, "callbacks", Callback, dirpath=checkpoints)
    check_monitors(config, module)
    places = {"save_dir": str(directory), "purge_step": step}
    if "MLFLOW_TRACKING_URI" not in os.environ:
        places["tracking_uri"] = f"sqlite:///{directory.absolute()}/mlflow.db"
    loggers = build_parts(config, "logger", Logger, **places)
    finders = BatchSizeFinder, LearningRateFinder
    if step:  # they have found it, and would train from the beginning
        callbacks = [callback for callback in callbacks if not isinstance(callback, finders)]

    def keep_batch_size(trainer: Any, _: Any) -> None:  # that was found, for resuming the run
        size = getattr(trainer.datamodule, "batch_size", None)
        if size and "batch_size" in config.data and trainer.is_global_zero:
            config.data.batch_size = size
            directories.write_config(directory, config)

    if any(isinstance(callback, BatchSizeFinder) for callback in callbacks):
        callbacks.append(LambdaCallback(on_train_start=keep_batch_size))
    always = History(), SeedEpochs(config.seed), Estimate(config.get("estimate", False))
    trainer = build_trainer(
        config,
        callbacks=[*callbacks, ResumeExactly(), *always, stop],
        logger=loggers or False,
        default_root_dir=str(directory),
    )
    disable_sigterm_exchange(trainer)
    return trainer


def resume_step(last: Path, config: DictConfig) -> int:
    """The step of a checkpoint; UserError if it does not belong to a run of this net."""
    checkpoint = read_checkpoint(last)
    needed = {"epoch", "global_step", "loops", "optimizer_states", "lr_schedulers"}
    groups = (checkpoint.get(name, {}) for name in ("metrics", "epoch_metrics"))
    is_complete = needed <= checkpoint.keys() and all(isinstance(group, dict) for group in groups)
    step, done, wanted = -1, finished_epochs(checkpoint), config.trainer.max_epochs
    with suppress(AttributeError, KeyError, TypeError):  # a file from elsewhere
        loop = checkpoint["loops"]["fit_loop"]
        within = loop["epoch_progress"]["current"]["ready"] != done  # of an epoch
        # Loggers count batches; global_step has the steps of all optimizers.
        step = loop["epoch_loop.state_dict"]["_batches_that_stepped"] + within
    is_complete = is_complete and type(done) is int and type(step) is int and step >= 0
    check_weights(last, config, checkpoint if is_complete else {})
    if wanted != -1 and wanted < done:
        raise UserError(
            f"trainer.max_epochs={wanted}: {config.resume} has done "
            f"{done} epoch{'s' * (done != 1)} already; try trainer.max_epochs={2 * done}"
        )
    limit, steps = config.trainer.get("max_steps") or -1, checkpoint["global_step"]
    if -1 != limit < steps:
        raise UserError(
            f"+trainer.max_steps={limit}: {config.resume} has done {steps} steps already; "
            f"try +trainer.max_steps={2 * steps}"
        )
    return step


def check_weights(path: Path, config: DictConfig, checkpoint: dict[str, Any]) -> None:
    """Raise UserError if the checkpoint's weights do not fit the module."""
    try:
        state = checkpoint["state_dict"]
        if "_target_" not in config.model:
            check_fits(config, state)
    except Exception as error:  # a file from elsewhere can contain anything
        line = f"{path}: is not a checkpoint of this run's net; restore the original"
        raise UserError(line) from error


def train_and_test(
    config: DictConfig, directory: Path, trainer: Any, module: Any, data: Any, last: Path | None
) -> dict[str, Any]:
    """Train, from the checkpoint `last` if it is given, and test; returns the result."""
    checkpoints = directory / "checkpoints"
    if trainer.is_global_zero:
        log_setup(config, directory, trainer, module, data)
    if config.trainer.get("compile"):  # absent in configs of earlier versions
        module.net.compile(backend=config.trainer.compile)
    apply_precision(trainer, module, config.trainer.get("channels_last"))
    history = next(c for c in trainer.callbacks if isinstance(c, History))

    seed_generators(config.seed, 0)  # for a user's setup(), which may split data at random
    with lightning_errors(config):
        trainer.fit(module, data, ckpt_path=last, weights_only=True)
    found: dict[str, Any] = {}
    if any(isinstance(callback, BatchSizeFinder) for callback in trainer.callbacks):
        found["batch_size"] = size = getattr(data, "batch_size", None)
        log.info("trained with batches of %s images; data.batch_size=%s repeats it", size, size)
    averaged = save_average(trainer, module, checkpoints, history.trained)
    # A BatchSizeFinder also searches before the test, and changes the Trainer's counts.
    metrics, steps = dict(history.metrics), trainer.global_step
    epochs = trainer.fit_loop.epoch_progress.current.processed  # current_epoch may be one behind
    tested = dict(metrics)
    if is_overridden("test_step", module) and is_overridden("test_dataloader", data):
        best = averaged or best_checkpoint(trainer, checkpoints)
        if best:
            tested = read_checkpoint(best).get("metrics", tested)
        with lightning_errors(config):
            seed_generators(config.seed, 0)
            if averaged and is_overridden("validation_step", module):
                trainer.validate(module, data, averaged, weights_only=True, verbose=False)
                tested |= {name: x.item() for name, x in trainer.callback_metrics.items()}
            seed_generators(config.seed, 0)
            trainer.test(module, data, ckpt_path=best, weights_only=True, verbose=False)
        tested |= {name: x.item() for name, x in trainer.callback_metrics.items()}
    for board in tensorboard_writers(trainer):  # for the HPARAMS tab, which shows last values
        for name in {"error/val", "loss/val"} & tested.keys():
            board.add_scalar(f"best/{name}", tested[name], steps)
    for logger in trainer.loggers:
        if trainer.is_global_zero and hasattr(logger, "close"):
            logger.close()
    given: Any = OmegaConf.to_container(config.trainer)
    return {
        "metrics": tested,
        "last": metrics,
        "epochs": epochs,
        "max_epochs": given["max_epochs"],
        **{name: given[name] for name in stored.LIMITS if given.get(name)},
        **found,
        "steps": steps,
        "seconds": history.seconds,
    }


def apply_precision(trainer: Any, module: Any, channels_last: bool | None) -> None:
    if channels_last is None:  # bfloat16 is faster in this layout
        channels_last = trainer.precision.startswith("bf16") and isinstance(module, Classifier)
    if channels_last:
        module.net.to(memory_format=torch.channels_last)
    if trainer.precision == "64-true":
        module.double()  # before a checkpoint is loaded, which would be rounded to float32


def save_average(trainer: Any, module: Any, checkpoints: Path, trained: bool) -> str | None:
    """The checkpoint of averaged weights, which Lightning puts into the net after the last epoch.

    None without its StochasticWeightAveraging, or if training ended before the last epoch.
    `trained` is false if the run was resumed only to be tested.
    """
    callbacks = (c for c in trainer.callbacks if isinstance(c, StochasticWeightAveraging))
    swa, last = next(callbacks, None), trainer.current_epoch - 1
    # Lightning adds an epoch for the statistics of batch normalisation.
    if swa is None or trainer.fast_dev_run or last not in (swa.swa_end, swa.swa_end + 1):
        return None
    if not trained:
        swa.on_train_end(trainer, module)  # puts the average into the net
    trainer.save_checkpoint(checkpoints / AVERAGED)
    return str(checkpoints / AVERAGED)


def best_checkpoint(trainer: Any, checkpoints: Path) -> str | None:
    """The checkpoint to test: our best, Lightning's best, or None for the last weights."""
    if trainer.fast_dev_run:
        return None
    names = (BEST, LAST) if writes_last(trainer) else ()  # Lightning has a last.ckpt too
    intact = trainer.is_global_zero and first_intact(checkpoints / name for name in names)
    if intact := trainer.strategy.broadcast(intact):
        return str(intact)
    paths = [getattr(c, "best_model_path", "") for c in trainer.checkpoint_callbacks]
    return next((path for path in paths if path), None)


def log_setup(config: DictConfig, directory: Path, trainer: Any, module: Any, data: Any) -> None:
    """Record and log the setup of the run before training."""
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    name = f"{trainer.world_size} x {name}" if trainer.world_size > 1 else name
    facts = data.facts() if hasattr(data, "facts") else {"class": type(data).__qualname__}
    directories.write_provenance(
        directory, {"device": name, "precision": trainer.precision, "data": facts}
    )
    start = read_starts(directory)[0]
    threads = torch.get_num_threads()
    if start.get("device") == name and device.type == "cpu" and start["threads"] != threads:
        log.warning(
            "the number of threads was %s when this run was started and is %s now, which changes "
            "the last digits of results; OMP_NUM_THREADS=%s avoids this",
            start["threads"], threads, start["threads"],
        )  # fmt: skip
    first, today = start.get("data") or {}, json.loads(json.dumps(facts))
    for known in (first, today):
        known.pop("root", None)  # a folder may be moved
    if first != today and first.keys() == today.keys():  # else of an earlier version
        log.warning("the data have changed since this run was started; then they were %s", first)
    log.info("%s on %s, %s", config.name, name, directory)
    params: Any = OmegaConf.to_container(config, resolve=True)
    for logger in trainer.loggers:
        logger.log_hyperparams(params)
    if isinstance(module, Classifier):
        with eval_mode(module.net):
            table = summary.table(module.net, example_input(config, data))
        log.info(table)
        for board in tensorboard_writers(trainer):
            board.add_text("layers", table)
        schedule, epochs = config.optim.schedule_epochs, config.trainer.max_epochs
        per_step = module.scheduler and takes_total_steps(module.scheduler)
        if per_step and epochs != schedule and epochs != -1:
            after = f"{schedule} epoch{'s' * (schedule != 1)}"
            log.info("the schedule ends after %s; then the rate stays constant", after)
    if names := unreadable(stored.stored_values(config)):
        log.warning(
            "this run can be neither resumed nor used, since its config names %s; "
            "name a function of your own that calls it", ", ".join(names),
        )  # fmt: skip
    if trainer.precision.startswith("bf16"):
        log.info("training in bfloat16 and channels last; trainer.precision=32-true uses float32")
    if not writes_last(trainer):
        kept = "" if trainer.checkpoint_callbacks else "no checkpoint is written: "
        log.info("without callbacks=default %sthis run cannot be resumed", kept)


@contextmanager
def recorded_result(directory: Path, kept: bool, resume: str) -> Iterator[dict]:
    """Yields the dictionary that is written to `result.json`, however the run ends.

    `resume` says how to continue the run; it is empty if that is not possible.
    """
    result: dict = {"status": "failed", "directory": str(directory)}
    try:
        try:
            yield result
            result["status"] = "finished"
        except Diverged as error:
            result |= {"status": "diverged", "error": str(error)}
            so_far = f". The run so far: {directory}" if kept else ""
            log.error("error: %s; try a smaller optim.lr%s", error, so_far)
        except Stopped as stop:
            result |= {"status": "interrupted", "error": signal.Signals(stop.number).name}
            log.warning("interrupted%s", resume)
            if stop.number == REQUEUE:
                requeue()
            raise
        except BaseException as error:
            result["error"] = f"{type(error).__name__}: {error}"
            raise
        finally:
            if directory.exists():
                write_json(directory / "result.json", result)
                if result["status"] in ("finished", "diverged"):
                    send_report(written=True)
    except OSError as error:
        if is_disk_error(error):
            raise UserError(f"{directory}: {error.strerror}; make room{resume}") from error
        raise


def final_table(result: dict, kept: bool = True) -> str:
    """A table of the training, validation and test metrics of `Classifier`, or of all metrics."""
    metrics = result["metrics"]
    titles = {"train": "training", "val": "validation", "test": "test"}
    titles["test_centre"] = "test, centre"  # to show the gain of several patches
    splits = [split for split in titles if f"error/{split}" in metrics]
    if splits:
        known = ("loss", "error", "accuracy", "top5_error")
        names = [name for name in known if any(f"{name}/{split}" in metrics for split in splits)]
        lines = ["", " " * 12 + "".join(f"{name:>11}" for name in names)]
        for split in splits:
            cells = [format_cell(name, metrics.get(f"{name}/{split}")) for name in names]
            lines.append(f"{titles[split]:12}{''.join(cells)}")
    else:
        lines = ["", *(f"{name:24}{value:12.5g}" for name, value in sorted(metrics.items()))]
    speed, wait = metrics.get("speed/images_per_second"), metrics.get("speed/data_wait")
    epochs = f"{result['epochs']} epoch{'s' * (result['epochs'] != 1)}"
    parts = [f"{epochs} in {result['seconds']:.1f} s"]
    parts += [f"{speed:,.0f} images/s"] if speed else []
    parts += [f"{wait:.1%} of the time waiting for data"] if wait is not None else []
    parts += [result["directory"] if kept else "nothing of this run is kept"]
    return "\n".join([*lines, ", ".join(parts)])


def format_cell(name: str, value: float | None) -> str:
    if value is None:
        return f"{'-':>11}"
    return f"{value:11.4f}" if name == "loss" else f"{value:11.2%}"
