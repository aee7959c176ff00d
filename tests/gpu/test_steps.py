"""Training steps of every recipe on the GPU compared with the CPU in float64."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from classic_cnns.optim.levenberg_marquardt import StochasticDiagonalLM
from tests.gpu import GPU, error
from tests.recipes import RECIPES, VARIANTS, Recipe, recipe

pytestmark = pytest.mark.gpu

# AlexNet's fully-connected layers of 4096 units would take most of the time.
STEPS = [f"{words} model.net.hidden=64" if words == "model=alexnet" else words for words in RECIPES]
STEPS += VARIANTS
IN_BFLOAT16 = [words for words in STEPS if "alexnet" in words or "convnet" in words]


def seeded(words: str) -> Recipe:
    """The recipe in float64 on the CPU, with seeded weights and without random dropout."""
    torch.manual_seed(0)
    made = recipe(words)
    for layer in made.net.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return made._replace(net=made.net.double(), loss=made.loss.double())


def batch(made: Recipe, number: int) -> tuple[Tensor, Tensor]:
    """Images (8, C, H, W) float64 in the recipe's range of pixels, and labels (8,)."""
    random = torch.Generator().manual_seed(number)
    low, high = made.pixels
    images = low + (high - low) * torch.rand(8, *made.shape, generator=random).double()
    return images, torch.randint(10, (8,), generator=random)


def backward(net: nn.Module, loss: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    net.zero_grad()
    scores = net(images)
    loss(scores, labels).backward()
    return scores


def norm(net: nn.Module) -> float:
    """The norm of the whole gradient."""
    return nn.utils.get_total_norm([weight.grad for weight in net.parameters()]).item()


def pairs(one: nn.Module, other: nn.Module) -> list[tuple[str, nn.Parameter, nn.Parameter]]:
    """The names and weights of two copies of a net."""
    both = zip(one.named_parameters(), other.parameters(), strict=True)
    return [(name, a, b) for (name, a), b in both]


# In float32 the sign of a unit near 0, or the maximum of a pool, may differ, so gradients differ.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-2)])
@pytest.mark.parametrize("words", STEPS)
def test_steps_equal_those_on_the_cpu(words, dtype, tolerance, exact_float32: None) -> None:
    cpu = seeded(words)
    net, loss = deepcopy(cpu.net).to(GPU, dtype), deepcopy(cpu.loss).to(GPU)
    ours, theirs = (cpu.make_optimizer(each.named_parameters()) for each in (net, cpu.net))
    for number in range(2):
        images, labels = batch(cpu, number)
        on_gpu = images.to(GPU, dtype), labels.to(GPU)
        if isinstance(ours, StochasticDiagonalLM):
            ours.estimate(net, [on_gpu])
            theirs.estimate(cpu.net, [(images, labels)])
            for name, a, b in pairs(net, cpu.net):
                got, want = ours.state[a]["curvature"], theirs.state[b]["curvature"]
                assert error(got, want) < tolerance, name
        scores = backward(net, loss, *on_gpu)
        assert error(scores, backward(cpu.net, cpu.loss, images, labels)) < tolerance / 20
        least = norm(cpu.net) / 1000  # the gradient of a bias before a batch norm is 0
        for name, a, b in pairs(net, cpu.net):
            assert error(a.grad, b.grad, least) < tolerance, name
            a.grad.copy_(b.grad)  # equal gradients, since Adam's step does not depend on their size
        before = {b: b.detach().clone() for b in cpu.net.parameters()}
        ours.step()
        theirs.step()
        for name, a, b in pairs(net, cpu.net):
            assert error(a, b) < (1e-13 if dtype == torch.float64 else 1e-6), name
            moves = b.grad.norm() > least / 1e9  # more than rounding errors in float64
            if moves and dtype == torch.float64:
                assert not torch.equal(b, before[b]), name
                assert error(a - before[b].to(GPU), b - before[b]) < 1e-6, name
            with torch.no_grad():
                a.copy_(b)
    for a, b in zip(net.buffers(), cpu.net.buffers(), strict=True):  # the statistics of batch norms
        assert a.device.type == GPU.type and error(a, b) < tolerance


@pytest.mark.parametrize("words", IN_BFLOAT16)
def test_bfloat16_and_channels_last_give_almost_the_same_gradient(words: str) -> None:
    cpu = seeded(words)
    net = deepcopy(cpu.net).to(GPU, torch.float32).to(memory_format=torch.channels_last)
    images, labels = batch(cpu, 0)
    want = backward(cpu.net, cpu.loss, images, labels)
    with torch.autocast(GPU.type, torch.bfloat16):
        scores = backward(net, cpu.loss, images.to(GPU, torch.float32), labels.to(GPU))
    assert scores.dtype == torch.bfloat16 and error(scores, want) < 0.03
    difference = [(a.grad.cpu() - b.grad) for _, a, b in pairs(net, cpu.net)]
    assert nn.utils.get_total_norm(difference).item() < 0.25 * norm(cpu.net)


def test_dropout_drops_another_half_of_the_outputs_in_each_step() -> None:
    torch.manual_seed(0)
    net = recipe("model=alexnet_small").net.to(GPU).train()
    x = torch.ones(1000, 256, device=GPU)
    first, second = net.drop6(x), net.drop6(x)
    assert set(first.unique().tolist()) == {0.0, 2.0}
    assert abs((first == 0).double().mean().item() - 0.5) < 5 * 0.5 / 256000**0.5
    assert abs((first != second).double().mean().item() - 0.5) < 5 * 0.5 / 256000**0.5
