"""One run: build, train, test, and write down what came out, also when it did not end well."""

import logging
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.model_helpers import is_overridden
from omegaconf import DictConfig, OmegaConf

from classic_cnns import UserError, program
from classic_cnns.callbacks.estimate import Estimate
from classic_cnns.callbacks.record import Record
from classic_cnns.callbacks.stop import StopOnSignal, Stopped
from classic_cnns.classifier import Classifier, Diverged
from classic_cnns.config.stored import OUTPUTS, find_run
from classic_cnns.files import disk_trouble, write_json
from classic_cnns.report import summary
from classic_cnns.report.log import show_log, train_log
from classic_cnns.report.results import read_result
from classic_cnns.run import directory as directories
from classic_cnns.run.build import (
    build,
    build_parts,
    build_trainer,
    check_monitors,
    example,
)
from classic_cnns.trainer import devices
from classic_cnns.trainer.checkpoint_io import first_whole, read_checkpoint
from classic_cnns.trainer.launch import report
from classic_cnns.trainer.lightning_internals import send_no_signal_flag
from classic_cnns.trainer.memory import keep_freed_memory
from classic_cnns.trainer.processes import stop_signals

log = logging.getLogger(__name__)

LAST, BEST = "last.ckpt", "best.ckpt"


def train(config: DictConfig) -> dict[str, Any]:
    """Carry out the run that a config describes in this process, and return its result.

    That is what `result.json` holds: `status`, `directory`, `metrics` of the tested checkpoint,
    `last` ones, `epochs`, `steps`, `seconds`. Raises UserError for what only the command can do.
    """
    if devices.count(config.trainer.devices) > 1 and devices.started_outside() is None:
        raise UserError(
            f"trainer.devices={config.trainer.devices}: the command starts a process for each "
            f"device, this call none; try {program()}, or trainer.devices=1"
        )
    return run(config)


def run(config: DictConfig) -> dict[str, Any]:
    """One run, new or resumed. With several ranks each of them calls this.

    They meet, and rank 0 speaks and writes for all.
    """
    show_log()
    keep_freed_memory()
    earlier = find_run(config.resume) if config.resume else None
    done = read_result(earlier) if earlier else {}
    if done and is_over(done, config):
        log.info("%s is finished already; trainer.max_epochs=<more> trains it further", earlier)
        log.info(final_table(done))
        return done
    stop = StopOnSignal(saves=bool(config.callbacks and "checkpoint" in config.callbacks))
    with stop_signals(stop.receive), ExitStack() as stack:
        module, data = build(config)
        with one_line_of_lightning():
            data.prepare_data()  # before there is a directory: what fails here leaves nothing
        # Lightning wants a run's directory for its Trainer, and the ranks a Trainer to agree on it.
        meeting = build_trainer(config, logger=False, enable_progress_bar=False)
        meeting.strategy.setup_environment()
        rank_0, fresh = meeting.is_global_zero, False
        place: Any = None  # the directory, and the checkpoint from which the run goes on
        if rank_0:
            given = Path(str(config.run_dir)) if config.run_dir else None
            before = set(given.glob("*")) if given and given.exists() else None
            directory, fresh = open_directory(config, earlier, stack)
            found = earlier and first_whole(earlier / "checkpoints" / name for name in (LAST, BEST))
            place = directory, found
            report(directory=str(directory))
            if fresh:
                stack.enter_context(removed_if_nothing_came(directory, before))
        directory, last = meeting.strategy.broadcast(place)
        trainer = assemble(config, directory, module, stop, last)
        if rank_0 and fresh and not config.run_dir:
            directories.name_latest(directory)
        if not rank_0:
            try:
                return train_and_test(config, directory, trainer, module, data, last)
            except Diverged:
                sys.exit(1)  # rank 0 says so
        with train_log(directory / "train.log"), recorded(directory) as result:
            result |= train_and_test(config, directory, trainer, module, data, last)
            log.info(final_table(result))
        if config.keep is False:
            log.info("keep=false: nothing of this run is kept")
        return result


def is_over(result: dict, config: DictConfig) -> bool:
    """Whether a run has finished, and `trainer.max_epochs` has not been raised since."""
    wanted = config.trainer.max_epochs
    same = result.get("max_epochs", result.get("epochs")) == wanted
    return result["status"] == "finished" and (same or 0 < wanted <= result["epochs"])


def open_directory(config: DictConfig, earlier: Path | None, stack: ExitStack) -> tuple[Path, bool]:
    """The directory of the run, and whether it is a new one; a temporary one without `keep`."""
    if earlier:
        for rest in (earlier / "checkpoints").glob(".*.ckpt.*"):  # of a kill while it was written
            rest.unlink()
        directories.write_config(earlier, config)  # it may go on for longer
        return earlier, False
    if config.keep is False or config.trainer.get("fast_dev_run"):
        config.run_dir = stack.enter_context(TemporaryDirectory())
        return directories.create(config), False
    return directories.create(config), True


@contextmanager
def removed_if_nothing_came(directory: Path, before: set[Path] | None) -> Iterator[None]:
    """Take away what a mistake of the user's has left of a new run, and nothing else.

    `before` is what the directory held before the run, or None if the run made it.
    """
    try:
        yield
    except UserError:
        if not (directory / "checkpoints").exists():
            for path in set(directory.glob("*")) - (before or set()):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            if before is None:
                directory.rmdir()
                with suppress(OSError):  # outputs/<name> and outputs, if this was the first run
                    if OUTPUTS in directory.parents:
                        directory.parent.rmdir()
                        OUTPUTS.rmdir()
        raise


def assemble(
    config: DictConfig,
    directory: Path,
    module: pl.LightningModule,
    stop: StopOnSignal,
    last: Path | None,
) -> pl.Trainer:
    """The Trainer of a run, with its callbacks and loggers, which goes on from the `last`."""
    step = going_on(last, module) if last else None
    checkpoints = directory / "checkpoints"
    callbacks = build_parts(config, "callbacks", Callback, dirpath=checkpoints)
    check_monitors(config, callbacks, module)
    places = {"save_dir": str(directory), "purge_step": step}
    if "MLFLOW_TRACKING_URI" not in os.environ:
        places["tracking_uri"] = f"sqlite:///{directory.absolute()}/mlflow.db"
    loggers = build_parts(config, "logger", Logger, **places)
    bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
    given: dict[str, Any] = {} if "enable_progress_bar" in config.trainer else {
        "enable_progress_bar": bar
    }  # fmt: skip
    saves = any(isinstance(callback, Checkpoint) for callback in callbacks)
    trainer = build_trainer(
        config,
        callbacks=[*callbacks, Record(), Estimate(config.get("estimate", False)), stop],
        logger=loggers or False,
        default_root_dir=str(directory),
        enable_checkpointing=saves,
        **given,
    )
    send_no_signal_flag(trainer)
    return trainer


def going_on(last: Path, module: pl.LightningModule) -> int:
    """The step at which a checkpoint goes on; UserError where it is none of this net's run."""
    checkpoint = read_checkpoint(last)
    needed = {"epoch", "global_step", "loops", "optimizer_states", "lr_schedulers"}
    check_weights(last, module, checkpoint if needed <= checkpoint.keys() else {})
    return checkpoint["global_step"]


def check_weights(path: Path, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
    """Raise UserError where the weights are not those of the module, if it is one of ours."""
    states = module.state_dict(), checkpoint.get("state_dict", {})
    own, found = ({name: getattr(x, "shape", None) for name, x in s.items()} for s in states)
    if not checkpoint or (isinstance(module, Classifier) and own != found):
        raise UserError(f"{path}: is no checkpoint of this run's net; put the run's own back")


def train_and_test(
    config: DictConfig, directory: Path, trainer: Any, module: Any, data: Any, last: Path | None
) -> dict[str, Any]:
    """What `result.json` says of a run that has finished; it goes on from `last`, if there is."""
    checkpoints = directory / "checkpoints"
    if trainer.is_global_zero:
        write_start(config, directory, trainer, module, data)
    if config.trainer.get("compile"):  # earlier runs lack the key
        module.net.compile(backend=config.trainer.compile)
    as_precision_asks(trainer, module)
    record = next(c for c in trainer.callbacks if isinstance(c, Record))

    with one_line_of_lightning():
        trainer.fit(module, data, ckpt_path=last, weights_only=True)
    metrics, seconds = dict(record.metrics), record.seconds
    epochs, steps = trainer.current_epoch, trainer.global_step
    tested = dict(metrics)
    if is_overridden("test_step", module) and is_overridden("test_dataloader", data):
        best = best_checkpoint(trainer, checkpoints)
        if best:
            tested = read_checkpoint(best).get("metrics", {})
        with one_line_of_lightning():
            trainer.test(module, data, ckpt_path=best, weights_only=True, verbose=False)
        tested |= {name: x.item() for name, x in trainer.callback_metrics.items()}
    for logger in trainer.loggers:
        if trainer.is_global_zero and hasattr(logger, "close"):
            logger.close()
    return {
        "metrics": tested,
        "last": metrics,
        "epochs": epochs,
        "max_epochs": config.trainer.max_epochs,
        "steps": steps,
        "seconds": seconds,
    }


def as_precision_asks(trainer: Any, module: Any) -> None:
    if trainer.precision.startswith("bf16") and isinstance(module, Classifier):
        module.net.to(memory_format=torch.channels_last)  # the layout in which it is fast
    if trainer.precision == "64-true":
        module.double()  # before Lightning loads a checkpoint, which it would round to float32


def best_checkpoint(trainer: Any, checkpoints: Path) -> str | None:
    """What is tested: our best checkpoint, Lightning's, or None for the last weights."""
    if trainer.fast_dev_run:
        return None
    whole = trainer.is_global_zero and first_whole(checkpoints / name for name in (BEST, LAST))
    if whole := trainer.strategy.broadcast(whole):
        return str(whole)
    paths = [getattr(c, "best_model_path", "") for c in trainer.checkpoint_callbacks]
    return next((path for path in paths if path), None)


def write_start(config: DictConfig, directory: Path, trainer: Any, module: Any, data: Any) -> None:
    """Record and print what the run is, before it trains."""
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    name = f"{trainer.world_size} x {name}" if trainer.world_size > 1 else name
    facts = data.facts() if hasattr(data, "facts") else {"class": type(data).__qualname__}
    directories.write_provenance(
        directory, {"device": name, "precision": trainer.precision, "data": facts}
    )
    log.info("%s on %s, %s", config.name, name, directory)
    params: Any = OmegaConf.to_container(config, resolve=True)
    for logger in trainer.loggers:
        logger.log_hyperparams(params)
    if isinstance(module, Classifier):
        table = summary.table(module.net, example(config, data))
        log.info(table)
        for logger in trainer.loggers:
            if isinstance(logger, pl.loggers.TensorBoardLogger):
                logger.experiment.add_text("layers", table)
        schedule, epochs = config.optim.schedule_epochs, config.trainer.max_epochs
        if config.optim.scheduler and epochs != schedule and epochs != -1:
            log.info("the schedule runs over %s epochs; after them the rate stays", schedule)
    if trainer.precision.startswith("bf16"):
        log.info("bfloat16 and channels last; trainer.precision=32-true takes float32")
    if not config.callbacks or "checkpoint" not in config.callbacks:
        log.info("without callbacks=default no checkpoint is written: this run cannot be resumed")


@contextmanager
def one_line_of_lightning() -> Iterator[None]:
    """Tell in one line what Lightning finds wrong with the parts of a run: they are the user's."""
    try:
        yield
    except MisconfigurationException as error:
        raise UserError(" ".join(str(error).split())) from error
    except RuntimeError as error:
        line = " ".join(str(error).split())
        if "Early stopping conditioned on metric" in line:
            raise UserError(f"callbacks: {line}") from error
        if "does not have a deterministic implementation" in line:
            raise UserError(f"trainer.deterministic=true: {line.partition(',')[0]}") from error
        if type(error).__name__ in ("BackendCompilerFailed", "InductorError"):
            why = line.partition(" Set TORCH")[0][:200]
            raise UserError(f"trainer.compile: {why}; try trainer.compile=null") from error
        raise


@contextmanager
def recorded(directory: Path) -> Iterator[dict]:
    """Yields the dictionary that becomes `result.json`, however the run ends."""
    resume = f"go on with: {program()} resume={directory}"
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
            if directory.exists():
                write_json(directory / "result.json", result)
    except OSError as error:
        if disk_trouble(error):
            raise UserError(f"{directory}: {error.strerror}; make room, then {resume}") from error
        raise


def final_table(result: dict) -> str:
    """The metrics of training, validation and test of our classifier, or all that there are."""
    metrics = result["metrics"]
    lines = []
    if "error/test" in metrics:
        names = [n for n in ("loss", "error", "accuracy", "top5_error") if f"{n}/test" in metrics]
        lines.append("\n" + f"{'':12}" + "".join(f"{name:>11}" for name in names))
        rows = {"train": "training", "val": "validation", "test": "test"}
        if "error/test_centre" in metrics:  # what the patches gain
            rows |= {"test_centre": "test, centre"}
        for split, title in rows.items():
            forms = ["{:11.4f}", *["{:11.2%}"] * (len(names) - 1)]
            values = [metrics.get(f"{name}/{split}") for name in names]
            cells = [
                f"{'-':>11}" if x is None else form.format(x)
                for form, x in zip(forms, values, strict=True)
            ]
            lines.append(f"{title:12}{''.join(cells)}")
    else:
        lines += ["", *(f"{name:24}{value:12.5g}" for name, value in sorted(metrics.items()))]
    speed, wait = metrics.get("speed/images_per_second"), metrics.get("speed/data_wait")
    epochs = f"{result['epochs']} epoch{'s' * (result['epochs'] != 1)}"
    parts = [
        f"{epochs} in {result['seconds']:.1f} s",
        *([f"{speed:,.0f} images/s"] if speed else []),
        *([f"{wait:.1%} of the time waiting for data"] if wait is not None else []),
    ]
    lines.append(", ".join([*parts, result["directory"]]))
    return "\n".join(lines)
