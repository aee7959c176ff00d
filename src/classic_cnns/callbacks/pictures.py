"""Pictures of a run that has been tested, for TensorBoard: kernels, confusions, mistakes."""

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torchmetrics.classification import MulticlassConfusionMatrix

from classic_cnns.report import pictures

SHOWN = 120  # mistakes
CLASSES = 20  # of a confusion matrix that still can be read


class Pictures(Callback):
    """Draws what a test of `Classifier` shows; does nothing for other modules.

    The matrix counts over all ranks, the mistakes are those of rank 0.
    """

    def __init__(self) -> None:
        self.mistakes: list[tuple[torch.Tensor, int, int]] = []  # image (C, H, W), label, answer
        self.matrix: MulticlassConfusionMatrix | None = None

    def on_test_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.mistakes = []
        if classes := getattr(pl_module, "num_classes", None):
            matrix = MulticlassConfusionMatrix(classes, validate_args=False)
            matrix.process_group = getattr(trainer.strategy, "data_group", None)
            self.matrix = matrix.to(pl_module.device)

    def on_test_batch_end(
        self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0
    ) -> None:
        """`outputs` are the answers (B,) of a batch of images (B, C, H, W) or (B, V, C, H, W)."""
        if self.matrix is None or outputs is None or not len(outputs):
            return
        images, labels = batch
        self.matrix.update(outputs, labels)
        wrong = (outputs != labels).nonzero().flatten()[: SHOWN - len(self.mistakes)]
        for row in wrong.tolist():
            image = images[row] if images.dim() == 4 else images[row, 4]  # of patches the middle
            self.mistakes.append((image.cpu(), int(labels[row]), int(outputs[row])))

    def on_test_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.matrix is None:
            return
        counts = self.matrix.compute()  # over all ranks, which all have to ask
        net, step = pl_module.net, trainer.global_step
        names = getattr(trainer.datamodule, "class_names", None)  # type: ignore[attr-defined]
        names = names or [str(number) for number in range(len(counts))]
        convolutions = [n for n, layer in net.named_modules() if isinstance(layer, nn.Conv2d)]
        # Whole weights, also where this rank holds one tower only; all ranks have to ask.
        state = trainer.strategy.lightning_module_state_dict()
        for logger in trainer.loggers:
            if not isinstance(logger, TensorBoardLogger) or not trainer.is_global_zero:
                continue
            board = logger.experiment
            for name in convolutions[:1]:
                image = pictures.kernels(state[f"net.{name}.weight"], getattr(net, "towers", 1))
                board.add_image(f"kernels/{name}", image, step)
            if len(counts) <= CLASSES:
                board.add_text("confusion/test", pictures.confusion(counts, names), step)
            if self.mistakes:
                board.add_image("mistakes/test", pictures.mistakes(self.mistakes, names), step)
