"""The jobs of a grid in their order, and grids that are refused."""

import pytest

from classic_cnns import UserError
from classic_cnns.sweep.grid import Grid

GROUPS = {"model": ["alexnet", "lenet5", "lenet5_relu"], "data": ["mnist"]}


def test_the_last_key_varies_fastest_and_single_values_are_in_each_job():
    grid = Grid(["model=lenet5,alexnet", "data=mnist", "seed=range(2)", "sweep.parallel=2"], GROUPS)
    assert grid.settings == ["sweep.parallel=2"]
    assert grid.jobs(9) == [
        ["model=lenet5", "data=mnist", "seed=0"],
        ["model=lenet5", "data=mnist", "seed=1"],
        ["model=alexnet", "data=mnist", "seed=0"],
        ["model=alexnet", "data=mnist", "seed=1"],
    ]
    assert grid.first() == grid.jobs(9)[0]


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("model=glob(lenet*)", ["lenet5", "lenet5_relu"]),
        ("model=glob(*,exclude=lenet*)", ["alexnet"]),
        ("+optim.x=choice(1,2)", ["1", "2"]),
        ("optim.lr=range(0.25,1,0.25)", ["0.25", "0.5", "0.75"]),
        ("optim.lr=sort(3,1,2)", ["1", "2", "3"]),
        ("data.x='a b','c,d'", ["'a b'", "'c,d'"]),
        ("model.net.channels=[1,2],[3,4]", ["[1,2]", "[3,4]"]),
        ("optim.clip_norm=null,1e-3", ["null", "0.001"]),
    ],
)
def test_all_ways_to_write_several_values(word, values):
    key = word.split("=")[0]
    assert Grid([word], GROUPS).jobs(9) == [[f"{key}={value}"] for value in values]


def test_a_shuffled_sweep_always_has_the_same_order():
    orders = [Grid(["seed=shuffle(range(20))"], {}).jobs(99) for _ in range(2)]
    assert orders[0] == orders[1] != sorted(orders[0])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["optim.lr=interval(0,1)"], ["optim.lr=interval(0,1)", "search", "optim.lr=a,b"]),
        (["seed=range(1000000000)"], ["more than 99 jobs", "sweep.max_jobs"]),
        (["model=glob(x*)"], ["the grid is empty"]),
        (["sweep.parallel=2"], ["the grid is empty"]),
        (["seed=0,1", "+seed=2"], ["seed", "2 times"]),
        (["seed=0,1", "sweep.parallel=1,2"], ["sweep.parallel=1,2", "one value"]),
        (["seed=0,1", "resume=x"], ["resume=x", "sweep.dir="]),
    ],
)
def test_invalid_grids_are_refused(words, expected):
    with pytest.raises(UserError) as error:
        grid = Grid(words, GROUPS)
        grid.first()
        grid.jobs(99)
    assert not [text for text in expected if text not in str(error.value)], error.value


def test_whole_numbers_need_an_interval_of_whole_numbers():
    grid = Grid(["optim.lr=interval(1,2)", "data.batch_size=interval(8,32)"], {})
    hint = grid.interval_hint("data.batch_size=8.0: must be a whole number of at least 1")
    assert hint and hint.endswith("try 'data.batch_size=int(interval(8,32))'")
    assert grid.interval_hint("optim.lr=1.0: must be below 1") is None
    whole = Grid(["data.batch_size=int(interval(8,32))"], {})
    assert whole.first() == ["data.batch_size=8"]


def test_a_value_given_twice_is_refused():
    with pytest.raises(
        UserError, match="^seed=0,0,1: has seed=0 more than once; give each value once"
    ):
        Grid(["seed=0,0,1"], {}).jobs(9)
