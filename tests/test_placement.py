"""All tensors of a training step are on the GPU, tested on a machine without one.

The forward pass runs with torch's fake tensors, which have no values but a device, here "cuda". The
backward pass would need a real GPU for that, so it runs with tensors on the device "meta", whose
`is_cuda` is patched. An operation on tensors of two devices fails, as on a GPU. `OnlyDevice` also
refuses operations that create a tensor on the CPU, since copying it would slow every step.

For Apple's GPUs, operations run on the CPU with their real values, while all tensors say that they
are on "mps", and what torch cannot do there is refused. Its own list of operators is the truth.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest
import torch
import torchgen
import yaml
from PIL import Image
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from classic_cnns.data.image_folder import DecodedBatches
from classic_cnns.data.pictures import Form
from classic_cnns.data.store import Files
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


# --- Apple's GPUs ---------------------------------------------------------------------------------

CPU, MPS = torch.device("cpu"), torch.device("mps", 0)


@cache
def operators() -> dict[str, dict]:
    """Torch's own description of its operators."""
    path = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    entries = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return {entry["func"].partition("(")[0]: entry for entry in entries}


def works_on_mps(name: str) -> bool:
    entry = operators()[name]
    if "structured_delegate" in entry:
        return works_on_mps(entry["structured_delegate"])
    places = ", ".join(entry.get("dispatch") or ["Composite"]).split(", ")
    return any(place == "MPS" or place.startswith("Composite") for place in places)


class Refusals(TorchDispatchMode):
    """Fails for operators without a kernel, for float64, and for gathers from overlapping views."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.namespace != "aten":
            return out
        name = str(func).removeprefix("aten.").removesuffix(".default")
        assert works_on_mps(name), f"{name} has no kernel for MPS"
        for x in tree_leaves((args, out)):
            if isinstance(x, Tensor):
                assert x.dtype != torch.float64 or not x.dim(), f"{name}: MPS has no float64"
                whole = x.numel() <= x.untyped_storage().size() // x.element_size()
                # index_select first copies its source, see its source code in torch.
                assert whole or name != "index_select", f"{name} would copy {x.numel():,} numbers"
        return out


class Apple(TorchFunctionMode):
    """All tensors say that they are on MPS, and are on the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func == Tensor.device.__get__:
            return MPS
        args, kwargs = tree_map_only(torch.device, lambda _: CPU, (args, kwargs or {}))
        assert not kwargs.get("non_blocking"), "copies memory that may be freed: pytorch#189690"
        return func(*args, **kwargs)


@pytest.fixture
def apple() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def enter(stack: ExitStack) -> None:
    stack.enter_context(Apple())
    stack.enter_context(Refusals())


@pytest.mark.parametrize("distortion", DISTORTIONS, ids=lambda d: type(d).__name__)
def test_distortions_on_apple_s_gpus_are_those_on_the_cpu(distortion, apple: ExitStack) -> None:
    images = torch.randint(256, (9, 3, 32, 32), dtype=torch.uint8)
    noise = torch.cat([torch.zeros(1, distortion.draws), torch.rand(7, distortion.draws)])
    noise = torch.cat([noise, torch.full((1, distortion.draws), 1 - 2**-24)])
    if isinstance(distortion, ColourNoise):
        distortion = ColourNoise(0.1)  # without fake tensors
        distortion.partial_fit(images)  # on the CPU, in float64
    expected = distortion(images, noise)
    enter(apple)
    found = distortion(images, noise)
    apple.close()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", FITS)
def test_images_are_fitted_to_the_input_size_on_apple_s_gpus(name: str, apple) -> None:
    fit, shape = FITS[name]
    enter(apple)
    assert fit(torch.zeros(9, 3, 32, 32, dtype=torch.uint8)).shape == shape


def test_images_of_folders_are_copied_to_apple_s_gpus_while_they_exist(tmp_path, apple) -> None:
    paths = [str(tmp_path / f"{number}.png") for number in range(3)]
    for number, path in enumerate(paths):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    files, numbers = Files(paths, Form(3, 8, False)), torch.arange(3)
    batches = DecodedBatches(
        files, numbers, numbers, 2, to_input=lambda x: x, workers=0, reported=set()
    )
    enter(apple)
    assert [images[:, 0, 0, 0].tolist() for images, _ in batches] == [[0, 1], [2]]


@pytest.mark.parametrize("words", RECIPES + VARIANTS)
def test_a_step_needs_only_what_apple_s_gpus_can_do(words: str, apple: ExitStack) -> None:
    net, loss, make, shape, _ = recipe(words)
    images, labels = torch.rand(2, *shape), torch.tensor([1, 7])
    optimizer = make(net.named_parameters())
    enter(apple)
    loss(net(images), labels).backward()
    if isinstance(optimizer, StochasticDiagonalLM):
        optimizer.estimate(net, [(images, labels)])
    elif not isinstance(optimizer, torch.optim.Adam):  # asks the GPU, which is not there
        optimizer.step()


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


@pytest.mark.parametrize("wrong", [
    lambda x: torch.special.ndtri(x),
    lambda x: x.double() + 1,
    lambda x: x.as_strided((2, 2), (1, 1)).index_select(0, torch.tensor([1])),
])  # fmt: skip
def test_what_apple_s_gpus_cannot_do_is_found(wrong, apple: ExitStack) -> None:
    enter(apple)
    with pytest.raises(AssertionError, match="ndtri has no|no float64|would copy 4 numbers"):
        wrong(torch.rand(3))
