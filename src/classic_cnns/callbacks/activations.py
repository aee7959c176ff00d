"""Statistics of each layer's activations during training: saturated and dead units, gradients."""

from contextlib import ExitStack
from functools import partial
from math import sqrt
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from classic_cnns.classifier import Classifier

IMAGES = 128  # images of the first validation batch
SHOWN = 10_000  # values in a histogram
POOLS = nn.AvgPool2d, nn.MaxPool2d
SATURATED = sqrt(0.95)  # |tanh| beyond which its slope is below 5 % of the greatest one


class Recorder(TorchFunctionMode):
    """Records the outputs (B, C, ...) of ReLU, tanh and sigmoid by the layer that precedes them.

    `scaled` are these outputs after additions and multiplications of numbers, with which LeNet-5
    makes its scaled tanh from a sigmoid. Nets call activations both as modules and as functions, so
    the calls are intercepted in torch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layer = ""
        self.found: dict[str, tuple[str, Tensor]] = {}  # kind and output, by layer
        self.scaled: dict[str, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        kind = getattr(func, "__name__", "").rstrip("_")
        if kind in ("relu", "tanh", "sigmoid") and self.layer:
            self.found[self.layer], self.scaled[self.layer] = (kind, output), output
        elif kind in ("add", "mul", "sub") and args[0] is self.scaled.get(self.layer):
            if not any(isinstance(other, Tensor) for other in args[1:]):
                self.scaled[self.layer] = output
        return output


def record(net: nn.Module, images: Tensor, pooling: bool = False) -> Recorder:
    """The activations of all layers for `images`; leaves the net unchanged.

    With `pooling`, also the outputs of pooling layers that follow an activation.
    """
    recorder = Recorder()

    def remember(name: str, layer: nn.Module, _: Any, output: Tensor) -> None:
        # An activation after pooling, as in S2 of LeNet-5, belongs to the pooling layer.
        pools = isinstance(layer, POOLS)
        if not pools or recorder.layer in recorder.found:
            if pools and pooling:
                while name in recorder.found:  # of a net that calls one module several times
                    name += "'"
                recorder.found[name] = "pool", output
            recorder.layer = name

    with ExitStack() as hooks:
        for name, layer in net.named_modules():
            if isinstance(layer, POOLS) or any(w.dim() > 1 for w in layer.parameters(False)):
                hooks.enter_context(layer.register_forward_hook(partial(remember, name)))
        with torch.no_grad(), recorder:
            net.forward(images)  # bypasses a compiled forward, which the recorder could not see
    return recorder


def inactive_share(kind: str, output: Tensor) -> float:
    """The share, 0 to 1, of dead ReLU units, or of saturated tanh or sigmoid outputs.

    A unit (a whole map in a convolution) is dead if it is 0 for all images.
    """
    if kind == "relu":
        return (output.transpose(0, 1).flatten(1).amax(1) <= 0).float().mean().item()
    tanh = 2 * output - 1 if kind == "sigmoid" else output
    return (tanh.abs() > SATURATED).float().mean().item()


class Activations(Callback):
    """Logs saturated and dead units and gradient norms of each layer at every validation.

    `dead/<layer>` and `saturated/<layer>` are shares from 0 to 1, measured on 128 validation
    images. `gradient/<layer>` is the norm of the layer's gradient at the last step of the epoch.
    Both are of whole layers, even if each device has one tower. TensorBoard also gets histograms
    of the activations. Ignores modules other than `Classifier`.
    """

    def __init__(self) -> None:
        self.gradients: dict[str, Tensor] = {}

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        if trainer.is_last_batch and isinstance(pl_module, Classifier):
            self.gradients = {
                name: both_towers(trainer, weight.grad, weight).norm()
                for name, weight in pl_module.net.named_parameters()
                if weight.grad is not None and weight.dim() > 1
            }

    def on_validation_batch_end(
        self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0
    ) -> None:
        if batch_idx or trainer.sanity_checking or not isinstance(pl_module, Classifier):
            return
        with trainer.precision_plugin.forward_context():
            recorder = record(pl_module.net, batch[0][:IMAGES])
        found, shown = dict(recorder.found), dict(recorder.scaled)
        for layer, (kind, output) in recorder.found.items():
            weight = getattr(pl_module.net.get_submodule(layer), "weight", None)
            whole = both_towers(trainer, output.transpose(0, 1), weight).transpose(0, 1)
            found[layer] = kind, whole
            if shown[layer] is output:
                shown[layer] = whole
        if not trainer.is_global_zero:
            return
        # The last step done, as Lightning counts: later ones are logged again after resuming.
        step, values = max(0, trainer.global_step - 1), {}
        for layer, (kind, output) in found.items():
            values[f"{'dead' if kind == 'relu' else 'saturated'}/{layer}"] = inactive_share(
                kind, output
            )
        for name, norm in self.gradients.items():
            values[f"gradient/{name.removesuffix('.weight')}"] = norm.item()
        for logger in trainer.loggers:
            logger.log_metrics(values, step)
            if isinstance(logger, TensorBoardLogger):
                for layer, output in shown.items():
                    some = output.flatten()[:: max(1, output.numel() // SHOWN)]
                    logger.experiment.add_histogram(f"activations/{layer}", some.float(), step)


def both_towers(trainer: pl.Trainer, rows: Tensor, weight: Any) -> Tensor:
    """The rows of both towers if a device has only one, else `rows`; all ranks must call this.

    There is one row for each row of `weight`.
    """
    assemble = getattr(trainer.strategy, "assemble", None)
    return assemble(rows, weight) if assemble else rows.detach()
