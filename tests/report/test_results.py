"""The table and the picture, from directories of runs written by hand."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from classic_cnns import UserError
from classic_cnns.report.results import markdown, read, write

SRC = Path(__file__).parents[2] / "src"
ERRORS = {("0.1", 0): 0.031, ("0.1", 1): 0.035, ("0.1", 2): 0.027, ("0.2", 0): 0.02}


def run(directory: Path, words: list[str], status: str, error: float = 0.0) -> Path:
    directory.mkdir(parents=True)
    OmegaConf.save({"name": "lenet5-mnist", "seed": 0}, directory / "config.yaml")
    start = {"command": ["/usr/bin/python", "src/train.py", *words, f"run_dir={directory}"]}
    (directory / "provenance.json").write_text(json.dumps([start]))
    result = {"status": status, "seconds": 12.5, "error": "a\nthe | last"}
    val = {"error": error, "last_error": error + 0.001}
    result["metrics"] = {"val": val, "test": {"error": error + 0.002}}
    (directory / "result.json").write_text(json.dumps(result))
    return directory


@pytest.fixture
def runs(tmp_path):
    """Four finished runs, three of them alike but for their seed, and one that failed."""
    words = {key: [f"optim.lr={key[0]}", f"seed={key[1]}"] for key in ERRORS}
    done = [
        run(tmp_path / f"{lr}-{seed}", words[lr, seed], "finished", error)
        for (lr, seed), error in ERRORS.items()
    ]
    return [*done, run(tmp_path / "bad", ["optim.lr=0.2", "seed=1"], "failed")]


def test_the_table_has_each_run_exactly(runs, tmp_path):
    write(tmp_path, read(runs))
    with open(tmp_path / "results.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["job"] for row in rows] == [path.name for path in runs]
    for row, error in zip(rows, ERRORS.values(), strict=False):
        assert float(row["best_validation_error"]) == error
        assert float(row["last_validation_error"]) == error + 0.001
        assert float(row["test_error"]) == error + 0.002
    assert list(rows[0])[1:3] == ["optim.lr", "seed"]  # and not the name, which is always the same
    assert rows[4]["error"] == "the | last" and rows[4]["state"] == "failed"


def test_over_seeds_there_are_mean_deviation_and_n(runs):
    text = markdown(read(runs))
    values = [100 * error for (lr, _), error in ERRORS.items() if lr == "0.1"]
    spread = f"{np.mean(values):.2f}% ± {np.std(values, ddof=1):.2f}%"
    assert re.search(rf"\| 0.1 +\| 3 +\| {re.escape(spread)} +\|", text), text
    assert re.search(r"\| 0.2 +\| 1 +\| 2.00% +\|", text), text


def test_the_best_run_is_named_with_the_command_that_repeats_it(runs):
    text = markdown(read(runs))
    assert "Best: job 0.2-0, 2.00% validation error" in text
    assert "\n    python src/train.py optim.lr=0.2 seed=0\n" in text
    assert "Job bad failed: the | last" in text


def test_runs_that_differ_in_a_group_or_leave_a_key_out_have_a_row_too(tmp_path):
    rows = read([run(tmp_path / "a", ["model=simple_cnn"], "finished"),
                 run(tmp_path / "b", ["optim.lr=1"], "finished")])  # fmt: skip
    assert [row.parameters for row in rows] == [
        {"model": "simple_cnn", "optim.lr": ""},
        {"model": "", "optim.lr": "1"},
    ]


def test_no_run_and_no_sweep_is_one_line(tmp_path):
    with pytest.raises(UserError, match="is no run and no sweep"):
        read([tmp_path])


def test_the_command_prints_the_table_and_draws_the_curves(runs, tmp_path):
    for number, directory in enumerate(runs[:3]):
        writer = SummaryWriter(directory / "tensorboard")
        for epoch in range(5):
            writer.add_scalar("error/val", 0.1 / (1 + epoch) + 0.01 * number, 10 * epoch)
        writer.close()
    command = [sys.executable, SRC / "results.py", *runs, "--to", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert markdown(read(runs)) in done.stdout
    pixels = np.asarray(Image.open(tmp_path / "out" / "curves.png").convert("RGB"))
    line, band = np.array([31, 119, 180]), np.array([210, 228, 240])  # a fifth of it, on white
    for colour, at_least in ((line, 500), (band, 5000)):
        assert (abs(pixels - colour.astype(int)).max(-1) <= 2).sum() > at_least

    (tmp_path / "latest").write_text(f"{runs[0].name}\n")
    words = [tmp_path / "latest", runs[0], "--to", tmp_path / "out"]  # as a pattern finds both
    done = subprocess.run([*command[:2], *words], capture_output=True, text=True)
    assert done.returncode == 0 and markdown(read(runs[:1])) in done.stdout, done.stderr

    missing = subprocess.run([sys.executable, SRC / "results.py", tmp_path / "no"],
                             capture_output=True, text=True)  # fmt: skip
    assert missing.returncode == 2 and missing.stderr.startswith("error: ")
    assert missing.stderr.count("\n") == 1
