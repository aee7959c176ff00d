import pytest
import torch
from torch import Tensor, nn

from classic_cnns.model.batch_norm import BatchNorm, norm_layer
from tests import reference

SHAPES = {"linear": (6, 4), "maps": (3, 4, 5, 2)}


def torch_norm(shape: tuple[int, ...]) -> nn.Module:
    return (nn.BatchNorm2d(4) if len(shape) == 4 else nn.BatchNorm1d(4)).double()


def pair(shape: tuple[int, ...]) -> tuple[nn.Module, nn.Module]:
    """Our layer and torch's in double precision with the same random parameters and statistics."""
    ours, other = BatchNorm(4).double(), torch_norm(shape)
    with torch.no_grad():
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(ours, name).uniform_(0.5, 2.0)
    other.load_state_dict(ours.state_dict())
    return ours, other


def step(layer: nn.Module, images: Tensor, gradient: Tensor) -> list[Tensor]:
    """The output and, if enabled, the gradients of the sum of output times `gradient`."""
    images = images.clone().requires_grad_(torch.is_grad_enabled())
    y = layer(images)
    if not y.requires_grad:
        return [y]
    (y * gradient).sum().backward()
    return [y.detach(), images.grad, layer.weight.grad, layer.bias.grad]


@pytest.mark.fact(
    "train() and eval() decide which statistics are used; the tutorial checks if gradients are on",
    source="tutorial on batch normalisation",
    code="model/batch_norm.py:BatchNorm",
)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_equals_torchs(shape: tuple[int, ...], training: bool, grad: bool) -> None:
    ours, other = pair(shape)
    ours.train(training)
    other.train(training)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    for _ in range(3):  # several batches for the running statistics
        images, gradient = 3 + 2 * torch.randn(shape).double(), torch.randn(shape).double()
        with torch.set_grad_enabled(grad):
            found, expected = step(ours, images, gradient), step(other, images, gradient)
        assert len(found) == (4 if grad else 1)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(ours.state_dict(), other.state_dict())
    moved = not torch.equal(ours.running_mean, before["running_mean"])
    assert moved == training  # independent of gradients
    assert ours.num_batches_tracked == (3 if training else 0)


@pytest.mark.fact(
    "A batch is normalised by its mean and its biased variance, then scaled and shifted",
    source="Ioffe 2015, Algorithm 1",
    code="model/batch_norm.py:BatchNorm",
)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_equals_the_formula(shape: tuple[int, ...]) -> None:
    ours, _ = pair(shape)
    images = torch.randn(shape).double()
    expected = reference.batch_norm(images, ours.weight, ours.bias, ours.eps)
    torch.testing.assert_close(ours(images), expected)


@pytest.mark.fact(
    "The running variance is unbiased, m / (m - 1); the tutorial's is biased",
    source="Ioffe 2015, Algorithm 2",
    code="model/batch_norm.py:BatchNorm",
)
def test_the_running_variance_is_unbiased() -> None:
    layer = BatchNorm(1, momentum=1.0)
    layer(torch.tensor([[1.0], [3.0]]))
    assert layer.running_mean.item() == 2.0
    assert layer.running_var.item() == 2.0  # ((1 - 2)^2 + (3 - 2)^2) / (2 - 1)


@pytest.mark.fact(
    "Momentum is the weight of the new value: 0.1 is the tutorial's 0.9",
    source="tutorial on batch normalisation",
    code="model/batch_norm.py:BatchNorm",
)
def test_momentum_is_the_weight_of_the_new_value() -> None:
    layer = BatchNorm(1)
    layer(torch.tensor([[1.0], [3.0]]))
    assert layer.running_mean.item() == pytest.approx(0.9 * 0.0 + 0.1 * 2.0)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_the_state_dict_has_torchs_format(shape: tuple[int, ...]) -> None:
    ours, other = BatchNorm(4), torch_norm(shape).float()
    other(torch.randn(shape))
    ours.load_state_dict(other.state_dict())
    torch.testing.assert_close(ours.state_dict(), other.state_dict())
    other.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_gradients(shape: tuple[int, ...]) -> None:
    ours, _ = pair(shape)
    images = torch.randn(shape).double().requires_grad_()
    assert torch.autograd.gradcheck(ours, images)


@pytest.mark.parametrize("shape", [(1, 4), (1, 4, 1, 1)])
def test_one_value_per_channel_is_refused_in_training_only(shape: tuple[int, ...]) -> None:
    images, ours, other = torch.randn(shape), BatchNorm(4), torch_norm(shape).float()
    with pytest.raises(ValueError, match="more than 1 value per channel") as expected:
        other(images)
    with pytest.raises(ValueError, match="more than 1 value per channel") as found:
        ours(images)
    assert str(found.value) == str(expected.value)
    torch.testing.assert_close(ours.eval()(images), other.eval()(images))


def test_three_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match="2D or 4D"):
        BatchNorm(4)(torch.zeros(2, 4, 3))


def test_large_means_do_not_lose_precision() -> None:
    images = 1e4 + torch.randn(64, 4)
    expected = BatchNorm(4).double()(images.double()).float()
    torch.testing.assert_close(BatchNorm(4)(images), expected, rtol=1e-2, atol=1e-2)


def test_bfloat16_input_gives_bfloat16_output() -> None:
    images = torch.randn(8, 4, 5, 5)
    y = BatchNorm(4)(images.bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), BatchNorm(4)(images), rtol=0.02, atol=0.02)


def test_norm_layer_creates_the_named_layer() -> None:
    assert isinstance(norm_layer("none", 4, maps=True), nn.Identity)
    assert isinstance(norm_layer("batch", 4, maps=True), BatchNorm)
    assert isinstance(norm_layer("torch", 4, maps=True), nn.BatchNorm2d)
    assert isinstance(norm_layer("torch", 4, maps=False), nn.BatchNorm1d)
