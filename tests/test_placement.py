"""All tensors of a training step are on the GPU, tested on a machine without one.

The forward pass runs with torch's fake tensors, which have no values but a device, here "cuda". The
backward pass would need a real GPU for that, so it runs with tensors on the device "meta", whose
`is_cuda` is patched. An operation on tensors of two devices fails, as on a GPU. `OnlyDevice` also
refuses operations that create a tensor on the CPU, since copying it would slow every step.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from classic_cnns.data.transforms import (
    ColourNoise,
    RandomAffine,
    RandomCrop,
    RandomFlip,
    RandomShift,
    crop_to,
    pad_to,
    patches_of,
    resize_to,
    scale,
)
from classic_cnns.optim.levenberg_marquardt import StochasticDiagonalLM
from tests.recipes import RECIPES, VARIANTS, recipe

GPU, META = torch.device("cuda", 0), torch.device("meta")
DISTORTIONS = {  # and the shape of their output for images (9, 3, 32, 32)
    RandomShift(2): (9, 3, 32, 32),
    RandomCrop(24): (9, 3, 24, 24),
    RandomFlip(): (9, 3, 32, 32),
    RandomAffine(shift=2, scale=0.1, squeeze=0.1, shear=0.2): (9, 3, 32, 32),
    ColourNoise(0.1): (9, 3, 32, 32),
}
FITS = {
    "pad": (lambda x: pad_to(x, 40), (9, 3, 40, 40)),
    "crop": (lambda x: crop_to(x, 24), (9, 3, 24, 24)),
    "resize": (lambda x: resize_to(x, 96), (9, 3, 96, 96)),
    "scale": (lambda x: scale(x, -1, 1), (9, 3, 32, 32)),
    "nine": (lambda x: patches_of(x, 24, "nine"), (9, 9, 3, 24, 24)),
    "ten": (lambda x: patches_of(x, 24, "ten"), (9, 10, 3, 24, 24)),
}


class OnlyDevice(TorchDispatchMode):
    """Fails if the result of an operation is not on `device`."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        in_place = func is torch.ops.aten._fused_sgd_.default  # needs values
        out = None if in_place else func(*args, **(kwargs or {}))
        seen = tree_leaves(args if in_place else out)
        devices = {x.device for x in seen if isinstance(x, Tensor)}
        assert devices <= {self.device}, f"{func} gives a tensor on {devices}"
        return out


@pytest.fixture
def fake() -> Iterator[None]:
    with FakeTensorMode():
        yield


@pytest.fixture
def meta(monkeypatch: pytest.MonkeyPatch) -> None:
    is_meta = property(lambda x: x.device == META)
    monkeypatch.setattr(torch.Tensor, "is_cuda", is_meta, raising=False)


def pixels(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.uint8, device=GPU)


def move_to_gpu(net: nn.Module) -> None:
    """`net.to(GPU)`, which does not work with fake tensors."""
    for layer in net.modules():
        for name, weight in layer._parameters.items():
            layer._parameters[name] = weight if weight is None else nn.Parameter(weight.to(GPU))
        for name, buffer in layer._buffers.items():
            layer._buffers[name] = buffer if buffer is None else buffer.to(GPU)


def batch(shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.empty(4, *shape, device=device), torch.empty(4, dtype=torch.long, device=device)


def state(optimizer: Optimizer) -> list[Tensor]:
    return [x for x in tree_leaves(dict(optimizer.state)) if isinstance(x, Tensor)]


@pytest.mark.parametrize("words", RECIPES + VARIANTS)
def test_scores_loss_and_optimizer_stay_on_the_gpu(words: str, fake: None) -> None:
    net, loss, make, shape, _ = recipe(words)
    move_to_gpu(net)
    optimizer = make(net.named_parameters())
    images, labels = batch(shape, GPU)
    for weight in net.parameters():
        weight.grad = torch.empty_like(weight)
        if isinstance(optimizer, StochasticDiagonalLM):  # normally from a backward pass
            optimizer.state[weight]["curvature"] = torch.empty_like(weight)
    with OnlyDevice(GPU), torch.no_grad():
        scores = net(images)
        assert scores.shape == (4, 10)
        assert loss(scores, labels).shape == ()
        optimizer.step()
        optimizer.step()  # now with a state
    assert {x.device for x in [*net.parameters(), *net.buffers(), *state(optimizer)]} == {GPU}


@pytest.mark.parametrize("words", RECIPES + VARIANTS)
def test_gradients_stay_on_the_gpu(words: str, meta: None) -> None:
    net, loss, make, shape, _ = recipe(words)
    net.to(META)
    images, labels = batch(shape, META)
    with OnlyDevice(META):
        loss(net(images), labels).backward()
        if "lenet5_1998" in words:
            optimizer = make(net.named_parameters())
            optimizer.estimate(net, [(images, labels)])
            assert len(state(optimizer)) == len(list(net.parameters()))
    assert {weight.grad.device for weight in net.parameters()} == {META}


@pytest.mark.parametrize("distortion", DISTORTIONS, ids=lambda d: type(d).__name__)
def test_distortions_stay_on_the_gpu(distortion, fake: None) -> None:
    if hasattr(distortion, "partial_fit"):
        distortion.partial_fit(pixels(1000, 3, 32, 32))
    noise = torch.empty(9, distortion.draws, device=GPU)
    with OnlyDevice(GPU):
        assert distortion(pixels(9, 3, 32, 32), noise).shape == DISTORTIONS[distortion]


@pytest.mark.parametrize("name", FITS)
def test_images_are_fitted_to_the_input_size_on_the_gpu(name: str, fake: None) -> None:
    fit, shape = FITS[name]
    with OnlyDevice(GPU):
        assert fit(pixels(9, 3, 32, 32)).shape == shape


# --- These tests can fail -------------------------------------------------------------------------

WRONG = {
    "fails": lambda x: x + torch.zeros(3),
    "copies zeros": lambda x: x + torch.zeros(3).to(x.device),
    "copies numbers": lambda x: x + torch.tensor([1.0, 2.0, 3.0], device=x.device),
    "comes back": lambda x: x.cpu(),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_an_operation_with_the_cpu_is_found_in_the_forward_pass(wrong: str, fake: None) -> None:
    x = torch.empty(2, 3, device=GPU)
    with OnlyDevice(GPU), pytest.raises((AssertionError, RuntimeError), match="cpu"):
        WRONG[wrong](x)


@pytest.mark.parametrize("wrong", ["fails", "copies zeros"])
def test_an_operation_with_the_cpu_is_found_in_the_backward_pass(wrong: str, meta: None) -> None:
    weight = torch.empty(3, device=META, requires_grad=True)
    weight.register_hook(WRONG[wrong])
    with OnlyDevice(META), pytest.raises((AssertionError, RuntimeError), match="cpu"):
        weight.sum().backward()
