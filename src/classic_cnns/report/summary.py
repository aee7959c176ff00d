"""A table of a net's layers with outputs, parameters and connections."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from classic_cnns.report.markdown import markdown_table


@dataclass
class Layer:
    name: str
    kind: str
    output: tuple[int, ...]  # without the batch
    neurons: int
    parameters: int  # trainable
    connections: int


def layers(net: nn.Module, images: Tensor) -> list[Layer]:
    """The layers with weights, in the order in which `images` (B, C, H, W) pass through them.

    The net should be in evaluation mode, in which it remains unchanged.
    A connection is one use of a weight or bias by one unit (L98, II.B). At each position of its
    output a layer has as many connections as parameters, unless it defines
    `connections_per_position`.
    """
    rows: list[Layer] = []
    names = {module: name for name, module in net.named_modules()}

    def add(module: nn.Module, _, output: Any) -> None:
        output = output[0] if isinstance(output, tuple) else output  # of recurrent layers
        parameters = sum(p.numel() for p in module.parameters() if p.requires_grad)
        connections = getattr(module, "connections_per_position", parameters)
        connections *= output.shape[2:].numel()
        shape, kind = tuple(output.shape[1:]), type(module).__name__
        normalises = all(weight.dim() == 1 for weight in module.parameters())
        neurons = 0 if normalises and parameters else output.shape[1:].numel()
        rows.append(Layer(names[module], kind, shape, neurons, parameters, connections))

    hooks = [
        module.register_forward_hook(add)
        for module in names
        if not list(module.children()) and [*module.parameters(), *module.buffers()]
    ]
    with torch.no_grad():
        net(images)
    for hook in hooks:
        hook.remove()
    return rows


def table(net: nn.Module, images: Tensor) -> str:
    """The layers as an aligned Markdown table, with totals."""
    rows, total = layers(net, images), sum(p.numel() for p in net.parameters() if p.requires_grad)
    cells: list[tuple[str, ...]] = [
        ("layer", "kind", "output", "neurons", "parameters", "connections")
    ]
    for row in rows:
        shape = "x".join(map(str, row.output))
        numbers = (row.neurons, row.parameters, row.connections)
        cells.append((row.name, row.kind, shape, *(f"{number:,}" for number in numbers)))
    neurons, connections = sum(r.neurons for r in rows), sum(r.connections for r in rows)
    cells.append(("total", "", "", f"{neurons:,}", f"{total:,}", f"{connections:,}"))
    return markdown_table(cells)
