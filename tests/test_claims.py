"""The papers' claims: each side can be run, verdicts are those of Student, the page is of today."""

import subprocess
import sys
from pathlib import Path

import pytest

from classic_cnns.config.compose import Composer

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "docs"))
import claims  # noqa: E402

CLAIMS = claims.claims()
COMPOSER = Composer()


@pytest.mark.parametrize("name", CLAIMS)
def test_each_claim_says_what_it_compares_and_each_side_can_be_run(name):
    claim = CLAIMS[name]
    assert claim["seeds"] >= 3 and claim["says"] and claim["where"] and claim["did"]
    for rule in claim["rule"]:
        assert rule["smaller"] in claim["sides"]
        assert rule["than"] in claim["sides"] or type(rule["than"]) in (int, float)
    configs = [COMPOSER.compose(claims.words(name, side)) for side in claim["sides"].values()]
    configs = [{**config, "claim": None} for config in configs]
    assert all(one != other for i, one in enumerate(configs) for other in configs[:i])


def result(**sides: list[float]) -> dict:
    return {
        "sides": {
            side: {"runs": [{"metrics": {"error/test": x}, "epochs": {}} for x in errors]}
            for side, errors in sides.items()
        }
    }


@pytest.mark.parametrize(
    ("errors", "than", "verdict"),
    [
        ([0.01, 0.011, 0.012], 0.02, "holds"),
        ([0.02, 0.021, 0.022], 0.01, "does not hold"),
        ([0.01, 0.02, 0.03], 0.03, "undecided"),
        # The same seed counts as a pair: each difference is 0.01, whatever the errors are.
        ([0.01, 0.05, 0.2], "b", "holds"),
    ],
)
def test_a_verdict_needs_the_whole_interval(errors, than, verdict):
    found = result(a=errors, b=[x + 0.01 for x in errors])
    rule = {"metric": "error/test", "smaller": "a", "than": than}
    assert claims.judge(rule, found) == verdict


def test_the_interval_is_students():
    low, high = claims.interval(
        {"metric": "error/test", "smaller": "a", "than": 0}, result(a=[1, 2, 3])
    )
    assert (low, high) == pytest.approx((-0.484, 4.484), abs=2e-3)  # scipy.stats.t.interval


def test_epochs_until_an_error_is_reached_are_counted_from_one():
    run = {"metrics": {}, "epochs": {"error/train": [0.5, 0.3, 0.2, 0.1]}}
    assert claims.value(run, "epochs/error/train/0.25") == 3
    assert claims.value(run, "epochs/error/train/0.05") == 5  # one more than it had


def test_the_page_is_what_the_results_say():
    assert claims.PAGE.read_text() == claims.page(), "python docs/claims.py report"


@pytest.mark.slow
def test_directions_show_on_few_images(tmp_path):
    command = [sys.executable, claims.__file__, "quick"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
