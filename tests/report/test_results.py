"""The table and the curves, made from run directories that the tests have written."""

import csv
import json
import re
import signal
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from subprocess import PIPE, Popen

import numpy as np
import pytest
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from PIL import Image

from classic_cnns import UserError
from classic_cnns.report import curves
from classic_cnns.report.results import Table, format_parameter, format_value, read_table

SRC = Path(__file__).parents[2] / "src"
ERRORS = {("0.1", 0): 0.031, ("0.1", 1): 0.035, ("0.1", 2): 0.027, ("0.2", 0): 0.02}


def run(directory: Path, words: list[str], status: str, error: float = 0.0) -> Path:
    directory.mkdir(parents=True)
    OmegaConf.save({"name": "lenet5-mnist", "seed": 0}, directory / "config.yaml")
    start = {"command": ["/usr/bin/python", "src/train.py", *words, f"run_dir={directory}"]}
    (directory / "provenance.json").write_text(json.dumps([start]))
    result = {"status": status, "seconds": 12.5, "error": "a\nthe | last"}
    result["metrics"] = {"error/val": error, "accuracy/val": 1 - error, "error/test": error + 0.002}
    result["last"] = {"error/val": error + 0.001}
    (directory / "result.json").write_text(json.dumps(result))
    return directory


@pytest.fixture
def runs(tmp_path):
    """Four finished runs, three of which differ only in the seed, and one failed run."""
    words = {key: [f"optim.lr={key[0]}", f"seed={key[1]}"] for key in ERRORS}
    finished = [
        run(tmp_path / f"{lr}-{seed}", words[lr, seed], "finished", error)
        for (lr, seed), error in ERRORS.items()
    ]
    return [*finished, run(tmp_path / "bad", ["optim.lr=0.25", "seed=1"], "failed")]


def test_a_damaged_file_costs_only_its_own_row(runs, tmp_path):
    (runs[0] / "result.json").write_text('{"status": "finis')
    (runs[1] / "result.json").write_text('{"metrics": {}}')
    whole = json.loads((runs[2] / "result.json").read_text())
    whole["metrics"]["error/val"] = "many"
    (runs[2] / "result.json").write_text(json.dumps(whole))
    (runs[3] / "metrics.jsonl").write_text('{"epoch": 1}\n[2]\n{"epoch": 1, "metrics": {"a": 1}}\n')
    table = read_table(runs)
    assert [row.state for row in table.rows] == ["failed", "failed", *2 * ["finished"], "failed"]
    assert table.rows[0].error == f"{runs[0] / 'result.json'}: cannot be read"
    assert "Best: job 0.2-0" in table.markdown()
    assert curves.curve(runs[3], "a") == [1]
    (runs[3] / "metrics.jsonl").write_text('{"epoch": 3, "metrics": {"a": 1}}\n')
    assert np.array_equal(curves.curve(runs[3], "a"), [np.nan, np.nan, 1], equal_nan=True)
    (runs[3] / "config.yaml").write_text("name: [")
    rows = read_table(runs).rows
    assert rows[3].error.startswith(f"{runs[3] / 'config.yaml'}: cannot be read (")
    assert rows[3].values == table.rows[3].values
    with pytest.raises(UserError, match="config.yaml: cannot be read"):
        read_table(runs[3:4])


def test_the_table_has_the_exact_values_of_each_run(runs, tmp_path):
    read_table(runs).write(tmp_path)
    with open(tmp_path / "results.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["job"] for row in rows] == [path.name for path in runs]
    for row, error in zip(rows, ERRORS.values(), strict=False):
        assert float(row["error/val"]) == error
        assert float(row["last error/val"]) == error + 0.001
        assert float(row["error/test"]) == error + 0.002
    assert list(rows[0])[1:3] == ["optim.lr", "seed"]  # without the name, equal in all runs
    assert rows[4]["error"] == "a the | last" and rows[4]["state"] == "failed"


def test_seeds_are_summarized_by_mean_deviation_and_number(runs):
    text = read_table(runs).markdown()
    values = [100 * error for (lr, _), error in ERRORS.items() if lr == "0.1"]
    mean_and_deviation = f"{np.mean(values):.2f}% ± {np.std(values, ddof=1):.2f}%"
    assert re.search(rf"\| +0.1 \| +3 \| +{re.escape(mean_and_deviation)} \|", text), text
    assert re.search(r"\| +0.2 \| +1 \| +2.00% \|", text), text


def rows_of_means(table: Table) -> list[list[str]]:
    """The cells of the table of means, without its head."""
    _, _, after = table.markdown().partition("deviation over seeds:\n\n")
    lines = after.split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_seed_that_was_run_in_two_sweeps_is_counted_once(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    for sweep, seeds in (("s1", 2), ("s3", 3)):
        jobs = [["optim.lr=0.05", f"seed={seed}"] for seed in range(seeds)]
        for number, words in enumerate(jobs):
            job = run(tmp_path / sweep / str(number), words, "finished", (2 + number) / 100)
            write_metrics(job, "error/val", [0.3, (2 + number) / 100])
        record = {"program": ["python"], "varied": ["seed"], "jobs": jobs}
        OmegaConf.save(record, tmp_path / sweep / "sweep.yaml")
    table = read_table([tmp_path / "s1", tmp_path / "s3"])
    assert len(table.rows) == 5
    assert rows_of_means(table)[0][:2] == ["3", "3.00% ± 1.00%"]  # of 2, 3 and 4 %
    curves.write(tmp_path / "curves.png", table)
    (line,) = figures[0].axes[0].lines
    assert line.get_label() == "all, n=3" and list(line.get_ydata()) == pytest.approx([0.3, 0.03])


def test_a_command_without_a_seed_has_that_of_its_config(tmp_path):
    for name, words in (("a", ["seed=0"]), ("b", []), ("c", ["seed=1"])):
        directory = run(tmp_path / name, words, "finished", 0.04 if name == "c" else 0.02)
        OmegaConf.save({"name": "x", "seed": int(name == "c")}, directory / "config.yaml")
    table = read_table([tmp_path])
    assert [row.parameters for row in table.rows] == [{"seed": seed} for seed in "001"]
    assert rows_of_means(table)[0][:2] == ["2", "3.00% ± 1.41%"]


def test_runs_whose_commands_are_lost_are_compared_by_their_configs(tmp_path):
    for name, lr, seed, error in (("a", 0.1, 0, 0.02), ("b", 0.1, 1, 0.04), ("c", 0.2, 2, 0.09)):
        words = [f"optim.lr={lr}", f"seed={seed}"]
        directory = run(tmp_path / name, words, "finished", error)
        config = {"name": "x", "seed": seed, "optim": {"lr": lr}}
        OmegaConf.save(config, directory / "config.yaml")
        if name != "a":
            (directory / "provenance.json").unlink()
    assert [row[:3] for row in rows_of_means(read_table([tmp_path]))] == [
        ["0.1", "2", "3.00% ± 1.41%"],
        ["0.2", "1", "9.00%"],
    ]


def test_the_best_run_is_of_the_best_mean_over_seeds(tmp_path):
    errors = {("0.1", 0): 0.01, ("0.1", 1): 0.05, ("0.2", 0): 0.03, ("0.2", 1): 0.02}
    words = {key: [f"optim.lr={key[0]}", f"seed={key[1]}"] for key in errors}
    for key, error in errors.items():
        run(tmp_path / "-".join(map(str, key)), words[key], "finished", error)
    assert "Best: job 0.2-1, error/val 2.00%" in read_table([tmp_path]).markdown()


def test_a_group_with_failed_seeds_is_ranked_after_complete_ones(tmp_path):
    errors = {"0.1": (0.03, 0.05, 0.04), "0.2": (0.01, None, None), "0.3": (None, 0.02, 0.02)}
    for lr, group in errors.items():
        for seed, error in enumerate(group):
            state = "diverged" if error is None else "finished"
            directory = tmp_path / f"{lr}-{seed}"
            run(directory, [f"optim.lr={lr}", f"seed={seed}"], state, error or 0.0)
    table = read_table([tmp_path])
    assert [row[:3] for row in rows_of_means(table)] == [
        ["0.1", "3", "4.00% ± 1.00%"],
        ["0.2", "1 of 3", "1.00%"],
        ["0.3", "2 of 3", "2.00% ± 0.00%"],
    ]
    assert "Best: job 0.1-0, error/val 3.00%" in table.markdown()
    without = Table([row for row in table.rows if row.parameters["optim.lr"] != "0.1"])
    assert "Best: job 0.2-0, error/val 1.00%" in without.markdown()


def test_many_failures_do_not_hide_the_best_run(runs, tmp_path):
    bad = [runs[-1], run(tmp_path / "worse", ["optim.lr=0.3", "seed=1"], "diverged")]
    lines = read_table([*runs, bad[1]]).markdown().splitlines()
    assert lines[-1] == "2 of 6 jobs have errors, see above"
    first = lines.index(f"- Job bad failed: a the | last ({bad[0]})")
    assert lines[first + 1] == f"- Job worse diverged: a the | last ({bad[1]})"
    assert first + 1 < lines.index("Mean ± standard deviation over seeds:")


def test_the_best_run_is_named_with_the_command_to_repeat_it(runs):
    text = read_table(runs).markdown()
    assert f"Best: job 0.2-0, error/val 2.00%, {runs[3]}\n" in text  # it has no checkpoint
    assert "\n    python src/train.py optim.lr=0.2 seed=0\n" in text
    assert "Job bad failed: a the | last" in text
    start = json.loads((runs[3] / "provenance.json").read_text())[0]
    (runs[3] / "provenance.json").write_text(json.dumps([start | {"threads": 3, "device": "cpu"}]))
    for name in ("epoch=1.ckpt", "best.ckpt"):
        path = runs[3] / "checkpoints" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
        text = read_table(runs).markdown()
        assert f"Best: job 0.2-0, error/val 2.00%, {path}\n" in text
    assert "\n    OMP_NUM_THREADS=3 python src/train.py optim.lr=0.2 seed=0\n" in text


def test_each_run_is_a_row_also_among_other_files(runs, tmp_path):
    (tmp_path / "latest.txt").write_text("0.1-0\n")
    (tmp_path / "link").symlink_to(runs[0])
    named = sorted(tmp_path.glob("*"))  # as a shell expands outputs/<name>/*
    assert len(read_table([*named, runs[1]]).rows) == len(runs)


def test_a_link_to_a_folder_above_ends(runs, tmp_path):
    for name in "ab":
        (tmp_path / name).symlink_to(tmp_path)
    assert len(read_table([tmp_path]).rows) == len(runs)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("result.json", '{"status": "finished", "metrics": {"error/val": 1' + 400 * "0" + "}}"),
        ("result.json", '{"status": 5}'),
        ("result.json", 200_000 * "["),
        ("provenance.json", '[{"command": [1, 2]}]'),
        ("metrics.jsonl", '{"epoch": 1, "metrics": [1]}\n'),
        ("metrics.jsonl", '{"epoch": 1, "metrics": {"error/val": "a"}}\n'),
    ],
)
def test_a_file_from_elsewhere_may_contain_anything(runs, tmp_path, name, text):
    (runs[0] / name).write_text(text)
    table = read_table(runs)
    assert len(table.rows) == len(runs) and table.markdown()
    curves.write(tmp_path / "curves.png", table)


@pytest.mark.parametrize("change", [{"jobs": 7}, {"jobs": [[1]]}, {"metric": [3]}, {"program": 1}])
def test_a_record_from_elsewhere_may_contain_anything(tmp_path, change):
    record = {"program": ["python"], "varied": ["seed"], "jobs": [["seed=1"]]}
    OmegaConf.save(record | change, tmp_path / "sweep.yaml")
    with pytest.raises(UserError, match="is not the record of a sweep"):
        read_table([tmp_path])


def test_only_our_rates_are_shown_in_percent():
    shown = {
        "error/val": "25.00%",
        "last accuracy/val": "25.00%",
        "error_mm": "0.25",
        "loss": "0.25",
    }
    assert {metric: format_value(metric, 0.25) for metric in shown} == shown


def test_negative_values_have_a_linear_axis(runs, tmp_path):
    for directory in runs:
        lines = ['{"epoch": 1, "metrics": {"elbo": -3}}', '{"epoch": 2, "metrics": {"elbo": -4}}']
        (directory / "metrics.jsonl").write_text("\n".join([*lines, ""]))
    curves.write(tmp_path / "curves.png", Table(read_table(runs).rows, "elbo"))  # without a warning


def test_parameters_with_many_decimals_are_rounded():
    words = ["0.012345678901", "1234567890", "2026_11_22", "1.25", "range(10,200)"]
    shown = ["0.01235", "1234567890", "2026_11_22", "1.25", "range(10,200)"]
    assert list(map(format_parameter, words)) == shown


def test_the_table_is_sorted_and_failed_runs_are_last(runs):
    lines = read_table(runs).markdown().split("\n\n")[0].splitlines()[2:]
    ranked = sorted(ERRORS, key=ERRORS.__getitem__)
    expected = [*(f"{lr}-{seed}" for lr, seed in ranked), "bad"]
    assert [line.split("|")[1].strip() for line in lines] == expected


def test_the_table_can_be_sorted_by_any_metric_in_either_direction(runs):
    table = Table(read_table(runs).rows, "accuracy/val", "maximize")
    assert "Best: job 0.2-0, accuracy/val 98.00%" in table.markdown()
    table = Table(table.rows, "accuracy/val", "minimize")
    assert "Best: job 0.1-1, accuracy/val 96.50%" in table.markdown()
    assert "No run has the metric loss/val" in Table(table.rows, "loss/val").markdown()


def test_results_of_an_old_version_give_the_same_table(runs):
    expected = read_table(runs)
    for directory, error in zip(runs, ERRORS.values(), strict=False):
        result = json.loads((directory / "result.json").read_text())
        val = {"error": error, "last_error": error + 0.001, "accuracy": 1 - error}
        result |= {"metrics": {"val": val, "test": {"error": error + 0.002}}}
        del result["last"]
        (directory / "result.json").write_text(json.dumps(result))
    found = read_table(runs)
    assert found.rows == expected.rows and found.markdown() == expected.markdown()


def test_runs_with_different_overrides_have_empty_cells(tmp_path):
    rows = read_table([run(tmp_path / "a", ["model=simple_cnn"], "finished"),
                 run(tmp_path / "b", ["optim.lr=1"], "finished")]).rows  # fmt: skip
    assert [row.parameters for row in rows] == [
        {"model": "simple_cnn", "optim.lr": ""},
        {"model": "", "optim.lr": "1"},
    ]


def test_a_folder_means_all_runs_and_sweeps_in_it(runs, tmp_path):
    rates = tmp_path / "sweep" / "rates"
    jobs = [["seed=3", "optim.lr=0.3"], ["seed=3", "optim.lr=0.4"], ["seed=3", "optim.lr=0.5"]]
    for number, words in enumerate(jobs[:2]):
        run(rates / str(number), words, "finished", 0.01 + number)
    record = {"program": ["python", "train.py"], "varied": ["optim.lr"], "jobs": jobs}
    OmegaConf.save(record, rates / "sweep.yaml")
    table = read_table([tmp_path])
    assert sorted(row.name for row in table.rows) == sorted(
        [*(path.name for path in runs), "rates/0", "rates/1", "rates/2"]
    )
    assert "Best: job rates/0," in table.markdown()
    waiting = next(row for row in table.rows if row.name == "rates/2")
    assert waiting.state == "waiting"
    assert waiting.parameters == {"name": "", "optim.lr": "0.5", "seed": "3"}
    alone = read_table([rates])
    assert [row.parameters for row in alone.rows] == [
        {"optim.lr": x} for x in ("0.3", "0.4", "0.5")
    ]
    assert read_table([tmp_path, rates, runs[0]]).rows == table.rows  # each run only once


def test_a_folder_without_runs_is_reported_in_one_line(tmp_path):
    with pytest.raises(UserError, match="contains no run and no sweep"):
        read_table([tmp_path])


def test_the_axes_of_the_curves_have_whole_epochs_and_plain_numbers(runs, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    for epochs, metric, direction in ((3, "error/val", "minimize"), (90, "loss/val", "maximize")):
        for directory in runs:
            write_metrics(directory, metric, [0.1 / epoch for epoch in range(1, epochs + 1)])
        curves.write(tmp_path / "curves.png", Table(read_table(runs).rows, metric, direction))
        axes = figures[-1].axes[0]
        figures[-1].draw_without_rendering()
        shown = [text.get_text() for text in axes.get_xticklabels()]
        assert len(shown) > 2 and all(re.fullmatch(r"−?\d+", text) for text in shown)
        shown = [text.get_text() for text in axes.get_yticklabels() if text.get_text()]
        percent = "%" if metric == "error/val" else ""
        assert len(shown) > 2 and all(re.fullmatch(rf"-?\d+(\.\d+)?{percent}", s) for s in shown), (
            shown
        )
        assert axes.get_ylabel() == metric


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([1.0, 0.25], {"30%", "40%", "50%", "60%", "100%"}),
        ([0.75, 0.45], {"50%", "60%", "70%"}),
        ([0.9, 0.008], {"1%", "2%", "5%", "10%", "20%", "50%"}),
    ],
)
def test_a_logarithmic_axis_has_several_labels(runs, tmp_path, monkeypatch, values, labels):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    for directory in runs:
        write_metrics(directory, "error/val", values)
    curves.write(tmp_path / "curves.png", read_table(runs))
    axes = figures[0].axes[0]
    figures[0].draw_without_rendering()
    low, high = axes.get_ylim()
    inside = [t for t in axes.get_yticklabels() if low <= t.get_position()[1] <= high]
    assert {text.get_text() for text in inside} >= labels
    boxes = sorted(text.get_window_extent().extents[[1, 3]].tolist() for text in inside)
    assert all(one[1] < two[0] for one, two in pairwise(boxes))  # none overlaps the next


def test_the_legend_names_what_differs(runs, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    for directory in runs:
        write_metrics(directory, "error/val", [0.1, 0.05])
    curves.write(tmp_path / "curves.png", read_table(runs))
    (legend,) = figures[0].legends
    assert [t.get_text() for t in legend.get_texts()] == [
        *("optim.lr=0.1, n=3", "optim.lr=0.2, n=1", "optim.lr=0.25, n=1")
    ]
    assert legend.get_title().get_text() == "mean ± standard deviation"
    assert len({line.get_marker() for line in figures[0].axes[0].lines}) == 3


def test_of_many_groups_the_best_are_named_and_the_others_are_counted(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    worst_first = [(100 - number) / 1000 for number in range(45)]
    for number, error in enumerate(worst_first):
        directory = run(tmp_path / str(number), [f"optim.lr={number}"], "finished", error)
        if number:  # the worst one has no curve
            write_metrics(directory, "error/val", [0.2, error])
    curves.write(tmp_path / "curves.png", read_table([tmp_path]))
    (legend,) = figures[0].legends
    best = [f"optim.lr={number}, n=1" for number in range(44, 4, -1)]
    assert [text.get_text() for text in legend.get_texts()] == [*best, "5 others"]
    drawn = {line.get_ydata()[-1]: line.get_color() for line in figures[0].axes[0].lines[:-1]}
    assert drawn.keys() == set(worst_first[1:])
    grey = {error for error, color in drawn.items() if color == "lightgrey"}
    assert grey == set(worst_first[1:5])
    assert figures[0].get_figheight() == pytest.approx(5 + 0.2 * 41)


def test_a_dollar_in_a_parameter_is_no_formula(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    for name in "ab":
        directory = run(tmp_path / name, [f"data.root=/$_{name}$"], "finished", 0.1)
        write_metrics(directory, "$_val", [0.1, 0.05])
    curves.write(tmp_path / "curves.png", Table(read_table([tmp_path]).rows, "$_val"))
    figures[0].draw_without_rendering()  # ParseException for a wrong formula
    (legend,) = figures[0].legends
    assert "/\\$_a\\$" in legend.get_texts()[0].get_text()


def test_the_legend_of_many_different_runs_is_readable(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    long = [f"data.root=/{'long/' * 30}b", *(f"data.key_{n}=value_{n}" for n in range(30))]
    words = [[], ["optim.lr=0.012345678901"], long, *([f"own_{n}={n}"] for n in range(20))]
    words += [[*long, f"other={n}"] for n in range(15)]
    for number, each in enumerate(words):
        directory = run(tmp_path / f"{number:02}", [*each, "same=1"], "finished", 0.1)
        write_metrics(directory, "error/val", [0.5, 0.2 + number / 100])
    curves.write(tmp_path / "curves.png", read_table([tmp_path]))
    figures[0].draw_without_rendering()
    (legend,) = figures[0].legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts[:2] == ["defaults, n=1", "optim.lr=0.01235, n=1"]
    assert texts[3:23] == [f"own_{n}={n}, n=1" for n in range(20)]
    assert "long/b data.key_0=value_0" in texts[2].replace("\n", " ") and "…" in texts[2]
    looks = {(line.get_color(), line.get_linestyle()) for line in figures[0].axes[0].lines}
    assert len(looks) == len(words)
    box = legend.get_window_extent()
    assert 0 <= box.x0 and box.x1 <= figures[0].bbox.x1 and box.y0 >= 0
    assert figures[0].axes[0].get_window_extent().height > 350  # of 100 dpi


def test_the_band_of_the_curves_is_the_deviation_of_the_table(runs, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    for directory, values in zip(runs, ([5, 1], [5, 2], [5, 6], [5, np.inf]), strict=False):
        write_metrics(directory, "error/val", values)
    curves.write(tmp_path / "curves.png", Table(read_table(runs[:4]).rows, "error/val", "maximize"))
    several, single = (band.get_paths() for band in figures[0].axes[0].collections)
    x, y = several[0].vertices.T
    assert (y[x == 2].min(), y[x == 2].max()) == pytest.approx((3 - 7**0.5, 3 + 7**0.5))
    assert not single  # one run has no deviation


def test_the_mean_has_the_epochs_that_all_seeds_have(runs, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    nan = np.nan
    for directory, values in zip(
        runs, ([4, nan, 3, 2, 1], [5, nan, 4], [6, nan, 5, np.inf], [nan], []), strict=True
    ):
        write_metrics(directory, "error/val", values)
    curves.write(tmp_path / "curves.png", read_table(runs))
    (line,) = figures[0].axes[0].lines  # the other runs have no value
    assert list(line.get_xdata()) == [1, 3] and list(line.get_ydata()) == [5, 4]
    assert line.get_label() == "optim.lr=0.1, n=3"


def test_a_run_whose_command_is_unknown_cannot_be_repeated(runs):
    (runs[0] / "provenance.json").unlink()
    assert "To repeat" not in read_table(runs[:1]).markdown()


def write_metrics(directory: Path, metric: str, values: Sequence[float]) -> None:
    lines = [
        json.dumps({"epoch": epoch, "epochs": len(values), "metrics": {metric: value}})
        for epoch, value in enumerate(values, start=1)
    ]
    (directory / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def test_the_command_ends_silently_if_nobody_reads_its_output(runs, tmp_path):
    command = [sys.executable, SRC / "results.py", *runs]
    with Popen(command, cwd=tmp_path, stdout=PIPE, stderr=PIPE) as process:
        process.stdout.close()  # as `head` does when it has read enough
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE


def test_the_command_prints_the_table_and_draws_the_curves(server_without_torch, runs, tmp_path):
    def results(*words: object) -> tuple[int, str, str]:
        process = server_without_torch.start(SRC / "results.py", *words, cwd=tmp_path)
        out, err = process.communicate()
        return process.returncode, out, err

    for number, directory in enumerate(runs[:3]):
        with open(directory / "metrics.jsonl", "w") as file:
            for epoch in (1, 2, 3, 2, 3, 4, 5):  # a resumed run, after a kill
                metrics = {"error/val": 0.1 / epoch + 0.01 * number}
                print(json.dumps({"epoch": epoch, "epochs": 5, "metrics": metrics}), file=file)
    code, out, err = results(*runs, "--to", tmp_path / "out")
    assert code == 0 and read_table(runs).markdown() in out, err
    pixels = np.asarray(Image.open(tmp_path / "out" / "curves.png").convert("RGB"))
    # The band has the line's colour with an opacity of 20 %.
    line, band = np.array([31, 119, 180]), np.array([210, 228, 240])
    for colour, at_least in ((line, 500), (band, 5000)):
        assert (abs(pixels - colour.astype(int)).max(-1) <= 2).sum() > at_least

    assert curves.curve(runs[1], "error/val") == [0.1 / epoch + 0.01 for epoch in range(1, 6)]

    (tmp_path / "latest").write_text(f"{runs[0].name}\n")
    code, out, err = results(tmp_path / "latest", *runs[:1], "--to", tmp_path)  # the same run twice
    assert code == 0 and read_table(runs[:1]).markdown() in out, err

    code, _, err = results("no")
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1


def test_a_sweep_without_a_job_is_reported_in_one_line(tmp_path):
    record = {"program": ["python"], "varied": [], "jobs": [], "metric": "error/val"}
    OmegaConf.save(record | {"direction": "minimize"}, tmp_path / "sweep.yaml")
    with pytest.raises(UserError, match="has no job yet; try again"):
        read_table([tmp_path])


def test_metrics_that_no_run_has_get_no_column(runs):
    assert Table(read_table(runs).rows, "seconds").columns == ["seconds", "error/test"]
    assert format_value("top5_error/val", 0.1234) == "12.34%"


def test_the_command_of_a_continued_job_has_what_was_changed(tmp_path):
    words = ["optim.lr=0.1", "trainer.max_epochs=1"]
    job = run(tmp_path / "0", words, "finished", 0.1)
    starts = json.loads((job / "provenance.json").read_text())
    later = {"command": ["python", "src/train.py", f"resume={job}", "trainer.max_epochs=5"]}
    (job / "provenance.json").write_text(json.dumps([*starts, later]))
    record = {"program": ["python", "src/train.py"], "varied": ["optim.lr"], "jobs": [words]}
    OmegaConf.save(record | {"metric": "error/val", "direction": "minimize"},
                   tmp_path / "sweep.yaml")  # fmt: skip
    text = read_table([tmp_path]).markdown()
    assert text.endswith("src/train.py optim.lr=0.1 trainer.max_epochs=5")


def add_start(directory: Path, *command: object) -> None:
    path = directory / "provenance.json"
    starts = json.loads(path.read_text())
    path.write_text(json.dumps([*starts, {"command": ["python", *map(str, command)]}]))


def test_an_extended_run_is_shown_with_its_last_number_of_epochs(tmp_path):
    words = ["--trust", "a", "--trust", "b", "trainer.max_epochs=1", "optim.lr=0.1"]
    long = run(tmp_path / "long", words, "finished", 0.1)
    run(tmp_path / "short", words, "finished", 0.2)
    for epochs in (2, 4):
        add_start(long, "src/train.py", f"resume={long}", f"trainer.max_epochs={epochs}")
    table = read_table([tmp_path])
    assert [row.parameters for row in table.rows] == [{"trainer.max_epochs": x} for x in "41"]
    assert table.markdown().endswith(
        "    python src/train.py --trust a --trust b optim.lr=0.1 trainer.max_epochs=4"
    )


@pytest.fixture
def of_notebook(tmp_path):
    """Two runs of each of two rates, which differ in the seed, and one of another net."""
    runs = []
    for name, lr, seed in (("a", 0.1, 0), ("a", 0.1, 1), ("a", 0.2, 0), ("a", 0.2, 1), ("b", 1, 0)):
        directory = run(tmp_path / f"{name}-{lr}-{seed}", [], "finished", lr / 10)
        start = {"command": ["python", "/lib/ipykernel_launcher.py", "-f", "kernel-1.json"]}
        (directory / "provenance.json").write_text(json.dumps([start]))
        config = {
            "seed": seed, "run_dir": str(directory), "name": name,
            "model": {"net": {"_target_": name}}, "optim": {"lr": lr, "optimizer": {"lr": lr}},
            "data": {"seed": seed, "augment": ["flip"]},
        }  # fmt: skip
        OmegaConf.save(config, directory / "config.yaml")
        runs.append(directory)
    return runs


def test_runs_of_a_notebook_are_compared_by_their_configs(of_notebook):
    table = read_table(of_notebook[:4])
    assert [row.parameters for row in table.rows] == [
        {"seed": seed, "optim.lr": lr} for lr in ("0.1", "0.2") for seed in "01"
    ]
    assert re.search(r"\| +0.2 \| +2 \| +2.00% ± 0.00%", table.markdown())
    assert "To repeat" not in table.markdown()
    every = read_table(of_notebook).rows
    assert every[-1].parameters == {"name": "b", "seed": "0", "optim.lr": "1"}  # not the net


def test_runs_of_a_notebook_are_compared_with_those_of_a_command(of_notebook, tmp_path):
    """Also if the command has no override, or a job has not started and has no config."""
    starts = json.dumps([{"command": ["python", "src/train.py"]}])
    (of_notebook[3] / "provenance.json").write_text(starts)
    record = {"program": ["python"], "varied": ["optim.lr"], "jobs": [["seed=5", "optim.lr=7"]]}
    (tmp_path / "sweep").mkdir()
    OmegaConf.save(record, tmp_path / "sweep" / "sweep.yaml")
    rows = read_table([*of_notebook[:4], tmp_path / "sweep"]).rows
    assert [row.parameters for row in rows[2:]] == [
        {"seed": "0", "optim.lr": "0.2"},
        {"seed": "1", "optim.lr": "0.2"},
        {"seed": "5", "optim.lr": "7"},
    ]


@pytest.mark.parametrize(
    ("program", "known"),
    [
        ("train.py", True),
        ("/venv/bin/classic-cnns", True),
        ("/src/classic_cnns/__main__.py", True),
        ("pretrain.py", False),
        ("", False),  # an interactive Python
    ],
)
def test_only_our_own_commands_repeat_a_run(tmp_path, program, known):
    start = {"command": ["python", program, "optim.lr=1"]}
    directory = run(tmp_path / "a", [], "finished")
    (directory / "provenance.json").write_text(json.dumps([start]))
    assert ("To repeat it" in read_table([directory]).markdown()) == known
    add_start(directory, "notebook.py", "trainer.max_epochs=2")
    assert "To repeat it" not in read_table([directory]).markdown()


@pytest.mark.parametrize("missing", [float("nan"), float("inf")])
def test_a_metric_that_is_not_finite_is_none(tmp_path, missing):
    values = (2.338, missing, 2.164)
    jobs = [[f"optim.lr={lr}", f"seed={seed}"] for lr in (1, 2) for seed in range(3)]
    for number, words in enumerate(jobs):
        job = run(tmp_path / str(number), words, "finished", 9.0)
        result = json.loads((job / "result.json").read_text())
        result["metrics"]["loss/val"] = values[number % 3]
        (job / "result.json").write_text(json.dumps(result))
        write_metrics(job, "loss/val", [values[number % 3], 3.0])
    record = {"program": ["python"], "varied": ["seed"], "jobs": jobs[:3], "metric": "loss/val"}
    OmegaConf.save(record, tmp_path / "sweep.yaml")
    sweep = read_table([tmp_path])
    assert [row.name for row in sweep.ranked()] == ["2", "0", "1"]
    record["varied"] = ["optim.lr", "seed"]
    OmegaConf.save(record | {"jobs": jobs}, tmp_path / "sweep.yaml")
    table = read_table([tmp_path])
    table.write(tmp_path)
    curves.write(tmp_path / "curves.png", table)
    assert "| 2.251 ± 0.123 |" in table.markdown()  # of 2.338 and 2.164
    assert "Best: job 2, loss/val 2.164" in table.markdown()


def test_the_checkpoint_of_the_best_run_is_the_one_that_was_tested(runs):
    folder = runs[3] / "checkpoints"
    folder.mkdir()
    for name in ("last.ckpt", "best.ckpt", "swa.ckpt"):  # each is preferred to those before
        (folder / name).touch()
        assert f"Best: job 0.2-0, error/val 2.00%, {folder / name}\n" in read_table(runs).markdown()


def test_a_damaged_provenance_costs_only_the_command(runs):
    (runs[0] / "provenance.json").write_text("[{")
    assert len(read_table(runs).rows) == 5
