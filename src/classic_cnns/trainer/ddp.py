"""Several devices share each batch: Lightning's DDP, set up for steps of a few milliseconds."""

from typing import Any

import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy


class DDP(DDPStrategy):
    """Averages gradients over the ranks and leaves buffers alone until the net is tested.

    Torch by itself sends all buffers round at each step. What a net learns into buffers, as batch
    normalisation does, is that of rank 0: it reaches the other ranks before each validation.
    Further `options` are those of `DistributedDataParallel`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"gradient_as_bucket_view": True, "broadcast_buffers": False} | options)

    def on_validation_start(self) -> None:
        module: Any = self.lightning_module
        for buffer in module.buffers():
            if self.world_size > 1 and buffer.numel():
                dist.broadcast(buffer, 0)
