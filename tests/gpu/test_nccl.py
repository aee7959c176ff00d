"""One rank with NCCL in a separate process, since one GPU allows no more ranks."""

from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.gpu import GPU, error, needs_cuda
from tests.recipes import recipe

pytestmark = [pytest.mark.gpu, needs_cuda]

NETS = ["model=lenet5", "model=simple_cnn model.net.norm=batch", "model=alexnet_small"]


def one_rank(rendezvous: Path) -> None:
    device = torch.device(GPU.type, 0)
    dist.init_process_group(
        "nccl", init_method=f"file://{rendezvous}", rank=0, world_size=1, device_id=device
    )
    for words in NETS:
        torch.manual_seed(0)
        net, loss, _, shape, _ = recipe(words)
        net.to(device).eval()  # without dropout
        images, labels = torch.rand(8, *shape).to(device), torch.arange(8, device=device)
        weights = list(net.parameters())
        want = torch.autograd.grad(loss(net(images), labels), weights)
        before = [buffer.clone() for buffer in net.buffers()]

        ddp = DistributedDataParallel(net, [device], gradient_as_bucket_view=True)
        loss(ddp(images), labels).backward()
        for buffer, value in zip(net.buffers(), before, strict=True):
            dist.broadcast(buffer, 0)
            assert torch.equal(buffer, value)
        for weight, gradient in zip(weights, want, strict=True):
            assert gradient.any() and error(weight.grad, gradient) < 1e-5
    dist.destroy_process_group()


def test_one_rank_has_the_gradients_of_a_single_process(tmp_path) -> None:
    process = get_context("spawn").Process(target=one_rank, args=(tmp_path / "meet",))
    process.start()
    process.join(timeout=120)
    process.kill()
    assert process.exitcode == 0
