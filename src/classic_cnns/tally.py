"""What is measured over an epoch, exactly, on any number of ranks."""

import torch
from torch import Tensor
from torchmetrics import Metric

# 64 bits hold any sum of mean losses exactly, whatever its order: ranks and resumed runs get the
# loss of one undisturbed process to the last bit. Apple's GPUs lack them.
EXACT = torch.float32 if torch.backends.mps.is_available() else torch.float64


class Tally(Metric):
    """Loss and errors, summed on the device over batches and ranks, read once an epoch."""

    full_state_update = False
    loss: Tensor
    errors: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("loss", "errors", "images"):
            self.add_state(name, torch.tensor(0.0, dtype=EXACT), dist_reduce_fx="sum")

    def update(self, steps: list[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Of each step: the mean loss of a batch, scores (B, classes) and labels (B,)."""
        if not steps:
            return
        losses, scores, labels = zip(*steps, strict=True)
        counts = torch.tensor([len(part) for part in labels], device=losses[0].device)
        self.loss += (torch.stack(losses).to(EXACT) * counts).sum()
        self.errors += (torch.cat(scores).argmax(1) != torch.cat(labels)).sum()
        self.images += counts.sum()

    def compute(self) -> dict[str, float]:
        loss, errors, images = self.loss.item(), self.errors.item(), self.images.item()
        return {
            "loss": loss / images,
            "error": errors / images,
            "accuracy": (images - errors) / images,
        }

    def sums(self) -> dict[str, float]:
        """The sums so far, over all ranks, which all have to ask."""
        with self.sync_context():
            return {name: getattr(self, name).item() for name in ("loss", "errors", "images")}


class Answers(Metric):
    """Of a test: how many images of each class got which answer (classes, answers), over all ranks.

    `mistakes` are the first images (C, H, W) that were taken for another class, with their label
    and the answer; those of this rank alone.
    """

    full_state_update = False
    shown = 120
    counts: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(classes, classes).long(), dist_reduce_fx="sum")
        self.mistakes: list[tuple[Tensor, int, int]] = []

    def update(self, images: Tensor, answers: Tensor, labels: Tensor) -> None:
        """Of a batch: images (B, C, H, W), answers (B,) and labels (B,)."""
        pairs = labels * len(self.counts) + answers
        self.counts += pairs.bincount(minlength=self.counts.numel()).view_as(self.counts)
        wrong = (answers != labels).nonzero().flatten()[: self.shown - len(self.mistakes)]
        for row in wrong.tolist():
            self.mistakes.append((images[row].cpu(), int(labels[row]), int(answers[row])))

    def compute(self) -> Tensor:
        return self.counts
