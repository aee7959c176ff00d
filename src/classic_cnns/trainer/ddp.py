"""Data parallelism: Lightning's DDP, configured for steps of a few milliseconds."""

from typing import Any

import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy


class DDP(DDPStrategy):
    """Averages gradients over the ranks; synchronises buffers only before validation.

    Torch by default broadcasts all buffers at each step. Here the buffers of rank 0, for example
    batch normalisation's statistics, are sent to the other ranks before each validation. `options`
    are arguments of `DistributedDataParallel`.
    """

    def __init__(self, **options: Any) -> None:
        self.options = {"gradient_as_bucket_view": True, "broadcast_buffers": False} | options
        super().__init__(**self.options)

    def on_validation_start(self) -> None:
        module: Any = self.lightning_module
        for buffer in module.buffers():
            if self.world_size > 1 and buffer.numel():
                dist.broadcast(buffer, 0)
