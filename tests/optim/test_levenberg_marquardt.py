"""Second derivatives compared with exact ones and with loops; the update rule and the recipe."""

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from classic_cnns import compose
from classic_cnns.model.lenet5 import LeNet5, ScaledTanh, Subsampling
from classic_cnns.optim.levenberg_marquardt import StochasticDiagonalLM, gauss_newton_diagonal


class OneLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def features(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Small(nn.Module):
    """A convolution, subsampling and a full layer, each followed by the squashing function."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.full = nn.Conv2d(2, 3, 3), Subsampling(3), nn.Conv2d(3, 4, 2)
        self.squash = ScaledTanh()

    def features(self, x: Tensor) -> Tensor:
        return self.squash(self.full(self.squash(self.pool(self.squash(self.conv(x))))))


@pytest.mark.fact(
    "For a linear layer the estimate is the exact diagonal of the Hessian of eq. 8",
    source="LeCun 1998, Appendix C",
    code="optim/levenberg_marquardt.py:gauss_newton_diagonal",
)
def test_the_estimate_for_a_linear_layer_is_the_diagonal_of_the_hessian():
    torch.manual_seed(0)
    net, x, target = OneLayer().double(), torch.randn(7, 5).double(), torch.randn(7, 3).double()
    found = gauss_newton_diagonal(net, x)

    def error(weight: Tensor, bias: Tensor) -> Tensor:  # eq. 8 with `target` as bitmaps
        units = torch.func.functional_call(
            net.layer, {"weight": weight.view(3, 5), "bias": bias}, (x,)
        )
        return (units - target).square().sum() / len(x)

    arguments = net.layer.weight.detach().flatten(), net.layer.bias.detach()
    exact = torch.autograd.functional.hessian(error, arguments)
    torch.testing.assert_close(found[net.layer.weight].flatten(), exact[0][0].diagonal())
    torch.testing.assert_close(found[net.layer.bias], exact[1][1].diagonal())


def slope(a: Tensor) -> Tensor:
    """f'(a) of the scaled tanh, eq. 6."""
    return 1.7159 * 2 / 3 * (1 - torch.tanh(2 / 3 * a).square())


def conv_loops(conv: nn.Conv2d, x: Tensor, h_a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eq. 23, 25 and 27 for one image in a loop over connections: weights, biases and inputs."""
    h_w, h_b, h_x = (torch.zeros_like(t) for t in (conv.weight, conv.bias, x))
    size = conv.kernel_size[0]
    for o, row, column in torch.cartesian_prod(*map(torch.arange, h_a.shape)).tolist():
        h_b[o] += h_a[o, row, column]
        for c, i, j in torch.cartesian_prod(*map(torch.arange, (x.shape[0], size, size))).tolist():
            h_w[o, c, i, j] += h_a[o, row, column] * x[c, row + i, column + j] ** 2
            h_x[c, row + i, column + j] += h_a[o, row, column] * conv.weight[o, c, i, j] ** 2
    return h_w, h_b, h_x


@pytest.mark.fact(
    "Second derivatives are propagated back by squared weights, inputs and slopes, and summed "
    "over shared weights",
    source="LeCun 1998, eq. 23, 25 and 27",
    code="optim/levenberg_marquardt.py:with_squares",
)
@torch.no_grad()
def test_the_estimate_equals_loops_over_the_connections():
    torch.manual_seed(1)
    net, images = Small().double(), torch.randn(3, 2, 6, 6).double()
    expected = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for image in images:
        a1 = net.conv(image)
        x1 = net.squash(a1)
        a2 = net.pool(x1[None])[0]
        x2 = net.squash(a2)
        a3 = net.full(x2)
        h = slope(a3) ** 2 * 2  # d2E/dx2 is 2 for E = sum (x - w)^2
        h_w, h_b, h = conv_loops(net.full, x2, h)
        expected["full.weight"] += h_w / 3
        expected["full.bias"] += h_b / 3
        h = slope(a2) ** 2 * h
        up = h.repeat_interleave(2, 1).repeat_interleave(2, 2)  # each unit has four inputs
        expected["pool.bias"] += h.sum((1, 2))[:, None, None] / 3
        expected["pool.coefficient"] += (up * x1**2).sum((1, 2))[:, None, None] / 3
        h = slope(a1) ** 2 * up * net.pool.coefficient**2
        h_w, h_b, _ = conv_loops(net.conv, image, h)
        expected["conv.weight"] += h_w / 3
        expected["conv.bias"] += h_b / 3
    with torch.enable_grad():
        found = gauss_newton_diagonal(net, images)
    assert len(found) == len(expected)
    for name, weight in net.named_parameters():
        torch.testing.assert_close(found[weight], expected[name])


def test_the_estimate_does_not_change_the_net():
    net, x = Small(), torch.randn(2, 2, 6, 6)
    before = net.features(x)
    before.sum().backward()
    gradients = [p.grad.clone() for p in net.parameters()]
    gauss_newton_diagonal(net, x)
    net.zero_grad()
    after = net.features(x)
    after.sum().backward()
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    for p, gradient in zip(net.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=0, atol=0)


@pytest.mark.fact(
    "With mu = 0.02, rates in the first pass are 7e-5 to 0.016 within a factor of ten, and at most "
    "0.0005 / 0.02",
    source="LeCun 1998, section III.B",
    code="optim/levenberg_marquardt.py:StochasticDiagonalLM",
)
def test_the_rates_of_lenet5_are_in_the_papers_range(caplog):
    """Section III.B: 7e-5 to 0.016 in the first pass, and at most eta / mu = 0.025."""
    torch.manual_seed(0)
    net = LeNet5()
    optimizer = StochasticDiagonalLM(net.parameters(), lr=0.0005, mu=0.02)
    images = torch.rand(600, 1, 32, 32) * 1.275 - 0.1
    with caplog.at_level("INFO"):
        optimizer.estimate(net, [(part, None) for part in images.split(100)])
    curvature = [optimizer.state[p]["curvature"] for p in net.parameters()]
    assert all((h >= 0).all() for h in curvature)
    rates = torch.cat([0.0005 / (0.02 + h.flatten()) for h in curvature])
    assert rates.max() <= 0.025
    assert 7e-6 < rates.min() < 7e-4 and 1.6e-3 < rates.max()
    assert f"{rates.min():.1e} to {rates.max():.1e}" in caplog.text


@pytest.mark.fact(
    "A weight changes by eta / (mu + h) times its gradient; h is estimated on 500 samples",
    source="LeCun 1998, eq. 18 and 21",
    code="optim/levenberg_marquardt.py:StochasticDiagonalLM",
)
def test_a_step_divides_eta_by_the_damped_curvature():
    torch.manual_seed(2)
    net, x = OneLayer(), torch.randn(600, 5)
    optimizer = StochasticDiagonalLM(net.parameters(), lr=0.0005, mu=0.02)
    optimizer.estimate(net, [(x, None)])
    h = gauss_newton_diagonal(net, x[:500])  # "on 500 samples"
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    net.features(x[:1]).square().sum().backward()
    optimizer.step()
    for name, p in net.named_parameters():
        expected = before[name] - 0.0005 / (0.02 + h[p]) * p.grad
        torch.testing.assert_close(p.detach(), expected, rtol=1e-6, atol=0)


@pytest.mark.fact(
    "Twenty passes, one pattern at a time; eta is 0.0005, 0.0002, 0.0001, 0.00005, 0.00001 "
    "from pass 1, 3, 6, 9, 13",
    source="LeCun 1998, section III.B",
    code="conf/optim/lenet5_1998.yaml:cuts",
)
def test_the_recipe_equals_the_papers():
    recipe = compose("experiment=lenet5_1998").optim
    assert (recipe.batch_size, recipe.epochs) == (1, 20)
    net, x = OneLayer(), torch.randn(500, 5)
    optimizer = instantiate(recipe.optimizer)(net.parameters())
    scheduler = instantiate(recipe.scheduler)(optimizer, total_steps=recipe.epochs)
    optimizer.estimate(net, [(x, None)])
    net.features(x).sum().backward()
    etas = []
    for _ in range(recipe.epochs):  # one step per pass
        etas.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    expected_etas = [0.0005] * 2 + [0.0002] * 3 + [0.0001] * 3 + [0.00005] * 4 + [0.00001] * 8
    assert etas == pytest.approx(expected_etas)


def test_the_optimizer_continues_from_its_saved_state(tmp_path):
    net, x = OneLayer(), torch.randn(500, 5)
    optimizer = StochasticDiagonalLM(net.parameters(), lr=0.0005, mu=0.02)
    optimizer.estimate(net, [(x, None)])
    torch.save(optimizer.state_dict(), tmp_path / "state")
    other = StochasticDiagonalLM(net.parameters(), lr=1.0, mu=1.0)
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    for p in net.parameters():
        assert torch.equal(other.state[p]["curvature"], optimizer.state[p]["curvature"])
    assert other.param_groups[0]["lr"] == pytest.approx(0.0005)
