"""Learning rates that are cut after given epochs or at stalls."""

import pytest
import torch

from classic_cnns.optim.cuts import cuts, cuts_at_stalls


def rates(total_steps: int, **table) -> list[list[float]]:
    """The rates of two parameter groups at each step."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 2.0)]
    optimizer = torch.optim.SGD(groups)
    scheduler = cuts(optimizer, total_steps=total_steps, **table)
    found = []
    for _ in range(total_steps):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return found


def test_rates_are_cut_after_the_named_epochs() -> None:
    found = rates(14 * 3, after=[12, 13], epochs=14, factor=0.1)
    expected = [1.0] * 36 + [0.1] * 3 + [0.01] * 3
    assert [first for first, _ in found] == pytest.approx(expected)
    assert [second for _, second in found] == pytest.approx([2 * rate for rate in expected])


def test_the_epochs_are_scaled_to_the_length_of_the_run() -> None:
    found = [first for first, _ in rates(10, after=[120, 130], epochs=140, factor=0.1)]
    assert found == pytest.approx([1.0] * 9 + [0.01])  # 8.57 and 9.29 steps


def test_a_schedule_continues_from_its_saved_state() -> None:
    def make():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        return optimizer, cuts(optimizer, total_steps=10, after=[5], epochs=10, factor=0.1)

    optimizer, scheduler = make()
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    other, resumed = make()
    other.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    other.step()
    resumed.step()
    assert other.param_groups[0]["lr"] == pytest.approx(0.1)


@pytest.mark.fact(
    "The rate is divided by 10 three times, when the validation error stalls",
    source="Krizhevsky 2012, section 5",
    code="optim/cuts.py:cuts_at_stalls",
)
def test_rates_are_cut_three_times_when_the_error_stalls() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 2.0)]
    optimizer = torch.optim.SGD(groups)
    scheduler = cuts_at_stalls(optimizer, patience=2, times=3, factor=0.1)
    errors = [0.5, 0.4, 0.4, 0.45, 0.39, 0.39, 0.39, 0.39, *[0.38] * 4, *[0.37] * 20]
    cut_after = {7: 0.1, 11: 0.01, 15: 0.001}  # the third epoch in a row without a new minimum
    rate = 1.0
    for epoch, error in enumerate(errors):
        scheduler.step(error)
        rate = cut_after.get(epoch, rate)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([rate, 2 * rate])
