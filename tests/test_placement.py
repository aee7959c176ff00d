"""Where every tensor of a training step lies, on a machine without a GPU.

Tensors without numbers take the GPU's way through our code: torch's fake tensors, which say that
they lie on one, and for the backward pass, in which torch asks for the GPU itself, tensors on the
device "meta" that pass for a GPU's. An operation on tensors of two devices fails by itself, as on a
GPU. `Only` also refuses what makes a tensor on the CPU, were it to copy it over in each step.
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
DISTORTIONS = {  # what each makes of (9, 3, 32, 32)
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


class Only(TorchDispatchMode):
    """Every operation gives tensors on `device`."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        in_place = func is torch.ops.aten._fused_sgd_.default  # which wants numbers
        out = None if in_place else func(*args, **(kwargs or {}))
        seen = tree_leaves(args if in_place else out)
        places = {x.device for x in seen if isinstance(x, Tensor)}
        assert places <= {self.device}, f"{func} gives a tensor on {places}"
        return out


@pytest.fixture
def fake() -> Iterator[None]:
    with FakeTensorMode():
        yield


@pytest.fixture
def meta(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = property(lambda x: x.device == META)
    monkeypatch.setattr(torch.Tensor, "is_cuda", passes, raising=False)


def pixels(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.uint8, device=GPU)


def move(net: nn.Module) -> None:
    """`net.to(GPU)`, which fake tensors do not know."""
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
    move(net)
    optimizer = make(net.named_parameters())
    images, labels = batch(shape, GPU)
    for weight in net.parameters():
        weight.grad = torch.empty_like(weight)
        if isinstance(optimizer, StochasticDiagonalLM):  # comes from a backward pass
            optimizer.state[weight]["curvature"] = torch.empty_like(weight)
    with Only(GPU), torch.no_grad():
        scores = net(images)
        assert scores.shape == (4, 10)
        assert loss(scores, labels).shape == ()
        optimizer.step()
        optimizer.step()  # this one finds a state
    assert {x.device for x in [*net.parameters(), *net.buffers(), *state(optimizer)]} == {GPU}


@pytest.mark.parametrize("words", RECIPES + VARIANTS)
def test_gradients_stay_on_the_gpu(words: str, meta: None) -> None:
    net, loss, make, shape, _ = recipe(words)
    net.to(META)
    images, labels = batch(shape, META)
    with Only(META):
        loss(net(images), labels).backward()
        if "lenet5_1998" in words:
            optimizer = make(net.named_parameters())
            optimizer.estimate(net, [(images, labels)])
            assert len(state(optimizer)) == len(list(net.parameters()))
    assert {weight.grad.device for weight in net.parameters()} == {META}


@pytest.mark.parametrize("distortion", DISTORTIONS, ids=lambda d: type(d).__name__)
def test_distortions_stay_on_the_gpu(distortion, fake: None) -> None:
    distortion.partial_fit(pixels(1000, 3, 32, 32))
    noise = torch.empty(9, distortion.draws, device=GPU)
    with Only(GPU):
        assert distortion(pixels(9, 3, 32, 32), noise).shape == DISTORTIONS[distortion]


@pytest.mark.parametrize("name", FITS)
def test_images_get_their_size_on_the_gpu(name: str, fake: None) -> None:
    fit, shape = FITS[name]
    with Only(GPU):
        assert fit(pixels(9, 3, 32, 32)).shape == shape


# --- That these tests can fail --------------------------------------------------------------------

WRONG = {
    "fails": lambda x: x + torch.zeros(3),
    "copies zeros": lambda x: x + torch.zeros(3).to(x.device),
    "copies numbers": lambda x: x + torch.tensor([1.0, 2.0, 3.0], device=x.device),
    "comes back": lambda x: x.cpu(),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_a_gpu_would_not_bear_is_seen(wrong: str, fake: None) -> None:
    x = torch.empty(2, 3, device=GPU)
    with Only(GPU), pytest.raises((AssertionError, RuntimeError), match="cpu"):
        WRONG[wrong](x)


@pytest.mark.parametrize("wrong", ["fails", "copies zeros"])
def test_it_is_seen_in_a_backward_pass(wrong: str, meta: None) -> None:
    weight = torch.empty(3, device=META, requires_grad=True)
    weight.register_hook(WRONG[wrong])
    with Only(META), pytest.raises((AssertionError, RuntimeError), match="cpu"):
        weight.sum().backward()
