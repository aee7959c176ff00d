"""The layers of a net with their outputs, trainable parameters and connections."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from classic_cnns.report.markdown import aligned


@dataclass
class Layer:
    name: str
    kind: str
    output: tuple[int, ...]  # without the batch
    parameters: int  # trainable
    connections: int


def layers(net: nn.Module, images: Tensor) -> list[Layer]:
    """The layers with weights, in the order in which `images` (B, C, H, W) pass them.

    A connection is one use of a weight or bias by one unit (L98, II.B). A layer has as many at
    each position of its output as it has parameters, unless it says so itself in
    `connections_per_position`.
    """
    rows: list[Layer] = []

    def add(name: str, module: nn.Module):
        def hook(_, __, output: Tensor) -> None:
            parameters = sum(p.numel() for p in module.parameters() if p.requires_grad)
            positions = output.shape[2:].numel()
            each = getattr(module, "connections_per_position", parameters)
            shape = tuple(output.shape[1:])
            rows.append(Layer(name, type(module).__name__, shape, parameters, each * positions))

        return module.register_forward_hook(hook)

    hooks = [
        add(name, module)
        for name, module in net.named_modules()
        if not list(module.children()) and [*module.parameters(), *module.buffers()]
    ]
    training = net.training
    net.eval()
    with torch.no_grad():
        net(images)
    net.train(training)
    for hook in hooks:
        hook.remove()
    return rows


def table(rows: list[Layer], total: int) -> str:
    """The layers as an aligned Markdown table; `total` counts the net's trainable parameters."""
    cells = [("layer", "kind", "output", "parameters", "connections")]
    for row in rows:
        shape = "x".join(map(str, row.output))
        cells.append((row.name, row.kind, shape, f"{row.parameters:,}", f"{row.connections:,}"))
    cells.append(("total", "", "", f"{total:,}", f"{sum(row.connections for row in rows):,}"))
    return aligned(cells)
