"""Lightning's training loop, without what a step of a millisecond cannot afford.

For each batch Lightning asks every callback and module about some fifteen hooks, inspects the
signature of training_step and, with several processes, broadcasts a flag and waits for it: more
than a millisecond, a tenth of a LeNet step. Here a batch costs its training step, the backward
pass, the optimizer's and the schedule's step and `on_train_batch_end`. The other hooks for each
batch, gradient accumulation, loss scaling and `self.log` in `training_step` are not served. Epochs,
validation and checkpoints remain Lightning's.
"""

from typing import Any

from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

from classic_cnns.trainer.stop import Stop, Stopped


class LeanLoop(_TrainingEpochLoop):
    """`stop` is asked after each step but an epoch's last, which ends with a checkpoint anyway."""

    def __init__(self, trainer, stop: Stop) -> None:
        super().__init__(trainer)
        self.stop = stop

    def on_run_start(self, data_fetcher) -> None:
        # Where the batches had got to: Lightning misses it when a schedule has asked for the number
        # of steps, for which it makes the loader before it reads the checkpoint.
        self.trainer.fit_loop._load_combined_loader_states()
        super().on_run_start(data_fetcher)

    def advance(self, data_fetcher) -> None:
        self.val_loop.restarting = False
        trainer: Any = self.trainer
        module, strategy = trainer.lightning_module, trainer.strategy
        (optimizer,) = trainer.optimizers

        batch, _, _ = next(data_fetcher)
        precision: Any = trainer.precision_plugin
        batch = precision.convert_input(batch)
        self.batch_progress.is_last_batch = data_fetcher.done
        self.batch_progress.increment_ready()
        self.batch_progress.increment_started()
        step = self.automatic_optimization.optim_progress.optimizer.step  # trainer.global_step
        step.increment_ready()

        optimizer.zero_grad()
        loss = strategy.training_step(batch, self.batch_idx)
        loss.backward()
        if trainer.gradient_clip_val:
            precision.clip_grad_by_norm(optimizer, trainer.gradient_clip_val)
        optimizer.step()
        step.increment_completed()
        for config in trainer.lr_scheduler_configs:
            if config.interval == "step":
                config.scheduler.step()
        self.batch_progress.increment_processed()

        output = {"loss": loss.detach()}
        for callback in trainer.callbacks:
            callback.on_train_batch_end(trainer, module, output, batch, self.batch_idx)
        module.on_train_batch_end(output, batch, self.batch_idx)
        self.batch_progress.increment_completed()

    def on_advance_end(self, data_fetcher) -> None:
        if self.batch_progress.is_last_batch:  # time for validation
            return super().on_advance_end(data_fetcher)
        self._batches_that_stepped += 1
        if self.stop.agreed():
            trainer: Any = self.trainer
            trainer.save_checkpoint(trainer.checkpoint_callback.last)
            raise Stopped(self.stop.number)
