"""The momentum rule of 2012 compared with its formula and with torch's."""

import copy

import pytest
import torch
from hydra.utils import instantiate
from torch.optim.lr_scheduler import StepLR

from classic_cnns import compose
from classic_cnns.optim.momentum_2012 import Momentum2012

PAPER = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.0005}


def weights(dtype: torch.dtype = torch.float64) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3), (5,), (2, 3, 2, 2)]
    return [torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]


def descend(
    optimizer: torch.optim.Optimizer, rates: list[float], first: int = 0
) -> list[torch.Tensor]:
    """Take one step per rate, with gradients that depend only on the step number."""
    parameters = optimizer.param_groups[0]["params"]
    for number, rate in enumerate(rates, first):
        generator = torch.Generator().manual_seed(100 + number)
        optimizer.param_groups[0]["lr"] = rate
        for w in parameters:
            w.grad = torch.randn(w.shape, generator=generator).to(w.dtype)
        optimizer.step()
    return [w.detach().clone() for w in parameters]


def by_the_formula(rates: list[float]) -> list[torch.Tensor]:
    """Krizhevsky 2012, section 5, for each weight tensor."""
    w = [p.detach().clone() for p in weights()]
    v = [torch.zeros_like(p) for p in w]
    for number, eps in enumerate(rates):
        generator = torch.Generator().manual_seed(100 + number)
        for i in range(len(w)):
            gradient = torch.randn(w[i].shape, generator=generator).to(w[i].dtype)
            v[i] = 0.9 * v[i] - 0.0005 * eps * w[i] - eps * gradient
            w[i] = w[i] + v[i]
    return w


@pytest.mark.fact(
    "v = 0.9 v - 0.0005 lr w - lr gradient; w = w + v",
    source="Krizhevsky 2012, section 5",
    code="optim/momentum_2012.py:Momentum2012",
)
def test_follows_the_formula_through_changes_of_the_rate() -> None:
    rates = [0.01] * 3 + [0.001] * 3 + [0.1, 0.0, 0.01]
    got = descend(Momentum2012(weights(), **PAPER), rates)
    torch.testing.assert_close(got, by_the_formula(rates), rtol=1e-14, atol=1e-15)


@pytest.mark.fact(
    "The rule equals torch's SGD while the rate is constant",
    source="Krizhevsky 2012, section 5",
    code="optim/momentum_2012.py:Momentum2012",
)
def test_equals_torch_while_the_rate_is_constant() -> None:
    ours = descend(Momentum2012(weights(), **PAPER), [0.01] * 20)
    theirs = descend(torch.optim.SGD(weights(), **PAPER), [0.01] * 20)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.fact(
    "After the rate is cut, the old velocity is unchanged; torch scales it",
    source="Krizhevsky 2012, section 5",
    code="optim/momentum_2012.py:Momentum2012",
)
def test_the_difference_to_torch_after_a_cut_of_the_rate() -> None:
    """Torch scales the old velocity too; the difference is (1 - ratio) * momentum * velocity."""
    ours, theirs = Momentum2012(weights(), **PAPER), torch.optim.SGD(weights(), **PAPER)
    rates = [0.01] * 5
    descend(ours, rates), descend(theirs, rates)
    old = [ours.state[w]["velocity"].clone() for w in ours.param_groups[0]["params"]]
    after, after_torch = descend(ours, [0.001], 5), descend(theirs, [0.001], 5)
    for w, w_torch, v in zip(after, after_torch, old, strict=True):
        torch.testing.assert_close(w - w_torch, (1 - 0.1) * 0.9 * v, rtol=1e-10, atol=1e-13)


def test_biases_decay_too() -> None:
    bias = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    bias.grad = torch.zeros_like(bias)
    Momentum2012([bias], **PAPER).step()
    assert bias.item() == pytest.approx(1 - 0.0005 * 0.01, abs=1e-15)


@pytest.mark.fact(
    "Batches of 128, momentum 0.9, decay 0.0005, a rate of 0.01 in all layers, 90 cycles",
    source="Krizhevsky 2012, section 5",
    code="conf/optim/momentum_2012.yaml:lr",
)
def test_the_recipe_equals_section_5() -> None:
    recipe = compose("model=alexnet", "data=cifar10", "model.input.fit=resize").optim
    assert (recipe.batch_size, recipe.epochs) == (128, 90)
    optimizer = instantiate(recipe.optimizer)(weights())
    assert isinstance(optimizer, Momentum2012) and optimizer.defaults == PAPER


def test_the_optimizer_continues_from_its_saved_state() -> None:
    rates = [0.01] * 4 + [0.001] * 4
    straight = descend(Momentum2012(weights(), **PAPER), rates)
    first = Momentum2012(weights(), **PAPER)
    halfway = descend(first, rates[:4])
    saved = copy.deepcopy(first.state_dict())
    assert set(saved) == {"state", "param_groups"}
    assert {type(v) for v in saved["param_groups"][0].values()} <= {float, int, bool, list}
    assert all(set(s) == {"velocity"} for s in saved["state"].values())
    second = Momentum2012([torch.nn.Parameter(w) for w in halfway], **PAPER)
    second.load_state_dict(saved)
    assert all(
        torch.equal(a, b)
        for a, b in zip(descend(second, rates[4:], first=4), straight, strict=True)
    )


def test_groups_with_their_own_rate_and_a_scheduler() -> None:
    a, b, unused = weights()
    groups = [{"params": [a, unused]}, {"params": [b], "lr": 1.0, "weight_decay": 0.0}]
    optimizer = Momentum2012(groups, **PAPER)
    scheduler = StepLR(optimizer, step_size=1, gamma=0.1)
    before, untouched = b.detach().clone(), unused.detach().clone()
    a.grad, b.grad = torch.ones_like(a), torch.ones_like(b)
    optimizer.step()
    torch.testing.assert_close(b.detach(), before - 1.0)
    scheduler.step()
    optimizer.step()
    torch.testing.assert_close(b.detach(), before - 1.0 - (0.9 + 0.1))
    assert torch.equal(unused, untouched) and unused not in optimizer.state


def test_a_closure_and_gradients_in_another_memory_format() -> None:
    w = torch.nn.Parameter(weights()[2].detach().contiguous(memory_format=torch.channels_last))
    before, optimizer = w.detach().clone(), Momentum2012([w], **PAPER | {"weight_decay": 0.0})

    def closure() -> torch.Tensor:
        loss = (w**2).sum()
        loss.backward()
        w.grad = w.grad.contiguous()
        return loss

    assert optimizer.step(closure).item() == pytest.approx((before**2).sum().item())
    torch.testing.assert_close(w.detach(), before * (1 - 2 * 0.01))
