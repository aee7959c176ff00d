"""Every recipe gives the weights in `golden.json`, and a run of version 0.1 can be resumed."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from classic_cnns import compose, train
from tests import golden

RUN_0_1 = Path(__file__).parent / "fixtures" / "run_0_1"
FAST = ("lenet5", "lenet5_relu_fast", "alexnet_small")  # the others are slow
SAME_MACHINE = golden.machine() == golden.stored()["machine"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the data of all recipes and their runs."""
    folder = tmp_path_factory.mktemp("golden")
    golden.make_data(folder)
    return folder


def assert_same_weights(found: dict, expected: dict, tolerance: float = 1e-3) -> None:
    """Compare hashes on the machine that `golden.json` names, and norms on all machines."""
    assert found["steps"] == expected["steps"]
    assert found["norms"] == pytest.approx(expected["norms"], rel=tolerance, abs=1e-2 * tolerance)
    if SAME_MACHINE:
        assert found["sha256"] == expected["sha256"]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in golden.RECIPES],
)
def test_a_recipe_gives_its_golden_weights(request, name, folder):
    server = request.getfixturevalue("server") if name in golden.TWO_PROCESSES else None
    found, expected = golden.carry_out(name, folder, server), golden.stored()["recipes"][name]
    config = compose(*golden.words(name, folder), config_dirs=[str(folder / "conf")])
    # Processors round bfloat16 differently or do not have it, so a few of the forty test images get
    # another class.
    rounded = config.trainer.precision in ("auto", "bf16-mixed")
    margin = 0.1 if rounded else 2e-2
    assert found["metrics"] == pytest.approx(expected["metrics"], rel=margin, abs=margin)
    assert_same_weights(found, expected, tolerance=0.1 if rounded else 1e-3)


def test_golden_json_has_exactly_the_recipes():
    assert list(golden.stored()["recipes"]) == list(golden.RECIPES)


@pytest.mark.filterwarnings("ignore:The loaded checkpoint was produced with Lightning")
@pytest.mark.filterwarnings("ignore:The number of training batches")  # 5, and logging each 50 steps
def test_a_run_of_version_0_1_is_resumed_with_equal_weights(folder, tmp_path):
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
    expected = json.loads((RUN_0_1 / "ends_with.json").read_text())
    assert_same_weights(golden.last_weights(run), expected)
