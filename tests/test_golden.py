"""Every recipe ends with the weights that `golden.json` has, and a run of version 0.1 goes on."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from classic_cnns import compose, train
from tests import golden

RUN_0_1 = Path(__file__).parent / "fixtures" / "run_0_1"
QUICK = ("lenet5", "lenet5_relu_fast", "alexnet_small")  # the others are slow
THERE = golden.machine() == golden.stored()["machine"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Holds the data that all recipes train on, and their runs."""
    folder = tmp_path_factory.mktemp("golden")
    golden.make_data(folder)
    return folder


def assert_same_weights(found: dict, wanted: dict, tolerance: float = 1e-3) -> None:
    """To the bit where the hash was stored; elsewhere by the norms of the tensors."""
    assert found["steps"] == wanted["steps"]
    assert found["norms"] == pytest.approx(wanted["norms"], rel=tolerance, abs=1e-2 * tolerance)
    if THERE:
        assert found["sha256"] == wanted["sha256"]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in golden.RECIPES
    ],
)
def test_a_recipe_ends_with_its_golden_weights(request, name, folder):
    server = request.getfixturevalue("server") if name in golden.TWO_PROCESSES else None
    found, wanted = golden.carry_out(name, folder, server), golden.stored()["recipes"][name]
    config = compose(*golden.words(name, folder), config_dirs=[str(folder / "conf")])
    # Stored in bfloat16, of which another processor rounds other digits or has none at all: a few
    # of the forty images change sides.
    rounded = config.trainer.precision == "auto"
    near = 0.1 if rounded else 2e-2
    assert found["metrics"] == pytest.approx(wanted["metrics"], rel=near, abs=near)
    assert_same_weights(found, wanted, tolerance=0.1 if rounded else 1e-3)


def test_every_recipe_is_stored_and_nothing_else():
    assert list(golden.stored()["recipes"]) == list(golden.RECIPES)


@pytest.mark.filterwarnings(
    "ignore:The loaded checkpoint was produced with Lightning"
)  # a newer one
@pytest.mark.filterwarnings("ignore:The number of training batches")  # 5, and a log each 50
def test_a_run_of_version_0_1_goes_on_to_the_weights_it_would_have_had(folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(RUN_0_1, run)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("DATA_DIR", str(folder)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = train(compose(f"resume={run}"))
    finally:
        torch.set_num_threads(threads)
    assert (result["status"], result["epochs"]) == ("finished", 3)
    wanted = json.loads((RUN_0_1 / "ends_with.json").read_text())
    assert_same_weights(golden.last_weights(run), wanted)
