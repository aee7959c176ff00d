"""Images in TensorBoard: inputs, kernels, confusion matrix and misclassified test images."""

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torchmetrics.classification import MulticlassConfusionMatrix

from classic_cnns.classifier import CENTRAL_PATCH, Classifier
from classic_cnns.data.batches import Batches
from classic_cnns.report import pictures

SHOWN = 120  # mistakes
INPUTS = 32  # images
CLASSES = 20  # at most, for a readable confusion matrix


class Pictures(Callback):
    """Draws images of a `Classifier` in TensorBoard; ignores other modules.

    At the start: the first training images before and after augmentation, and the kernels. After
    each validation: the kernels, and the share of colour in each tower's first kernels. After the
    test: the confusion matrix over all ranks, and the misclassified images of rank 0.
    """

    def __init__(self) -> None:
        self.classes = 0  # of a `Classifier`
        self.mistakes: list[tuple[torch.Tensor, int, int]] = []  # image (C, H, W), label, answer
        self.matrix: MulticlassConfusionMatrix | None = None

    def on_test_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.mistakes, self.matrix = [], None
        self.classes = (isinstance(pl_module, Classifier) and pl_module.num_classes) or 0
        if 0 < self.classes <= CLASSES:
            matrix = MulticlassConfusionMatrix(self.classes, validate_args=False)
            matrix.process_group = getattr(trainer.strategy, "data_group", None)
            self.matrix = matrix.to(pl_module.device)

    def on_test_batch_end(
        self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0
    ) -> None:
        """`outputs` are predicted classes (B,), images (B, C, H, W) or patches (B, V, C, H, W)."""
        if not self.classes or outputs is None or not len(outputs):
            return
        images, labels = batch
        if self.matrix is not None:
            self.matrix.update(outputs, labels)
        wrong = (outputs != labels).nonzero().flatten()[: SHOWN - len(self.mistakes)]
        for row in wrong.tolist():
            image = images[row] if images.dim() == 4 else images[row, CENTRAL_PATCH]
            self.mistakes.append((image.cpu(), int(labels[row]), int(outputs[row])))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step or batch_idx or not isinstance(pl_module, Classifier):
            return
        self.draw_kernels(trainer, pl_module)
        grids = {"after augmentation": batch[0][:INPUTS]}
        loader: Any = trainer.train_dataloader
        if isinstance(loader, Batches) and isinstance(loader.images, torch.Tensor):
            first = loader.order(trainer.current_epoch)[loader.rank :: loader.world_size]
            grids["before augmentation"] = loader.images.index_select(0, first[:INPUTS])
        for board in tensorboard_writers(trainer):
            for when, images in grids.items():
                board.add_image(f"inputs/{when}", pictures.inputs(images), 0)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if isinstance(pl_module, Classifier) and not trainer.sanity_checking:
            self.draw_kernels(trainer, pl_module)

    def draw_kernels(self, trainer: pl.Trainer, pl_module: Any) -> None:
        net, step = pl_module.net, max(0, trainer.global_step - 1)  # the last one done
        # Whole weights, even if this rank has one tower; all ranks must take part.
        state = trainer.strategy.lightning_module_state_dict()
        state = {n.removeprefix("net."): x for n, x in state.items() if n.startswith("net.")}
        weights = pictures.convolutions(state)
        towers = pictures.towers_of(net)
        for board in tensorboard_writers(trainer):
            for name, weight in weights.items():
                board.add_image(f"kernels/{name}", pictures.kernels(weight, towers), step)
        layer, first = next(iter(weights.items()), ("", None))
        if first is not None and first.shape[1] == 3 and trainer.is_global_zero:
            shares = {
                f"colour/{layer}{f' of tower {number}' if towers > 1 else ''}": share
                for number, share in enumerate(map(pictures.colour, first.chunk(towers)), 1)
            }
            for logger in trainer.loggers:
                logger.log_metrics(shares, step)

    def on_test_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not self.classes:
            return
        # All ranks must take part.
        counts = self.matrix.compute() if self.matrix is not None else None
        names = getattr(trainer.datamodule, "class_names", None)  # type: ignore[attr-defined]
        names = names or [str(number) for number in range(self.classes)]
        for board in tensorboard_writers(trainer):
            step = trainer.global_step
            if counts is not None:
                board.add_text("confusion/test", pictures.confusion(counts, names), step)
                board.add_figure("confusion/test", pictures.confusion_figure(counts, names), step)
            if self.mistakes:
                board.add_image("mistakes/test", pictures.mistakes(self.mistakes, names), step)


def tensorboard_writers(trainer: pl.Trainer) -> list[Any]:
    """TensorBoard's writers; none on ranks other than 0."""
    loggers = trainer.loggers if trainer.is_global_zero else []
    return [logger.experiment for logger in loggers if isinstance(logger, TensorBoardLogger)]
