"""The progress of a job, read from its metrics, and its command."""

import json
import shlex
import time
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from classic_cnns import resume_command
from classic_cnns.config.compose import parse_overrides
from classic_cnns.sweep.job import Job


def line(epoch: int, seconds: float) -> str:
    metrics = {"error/val": 0.015, "loss/train": 0.1}
    facts = {"epoch": epoch, "epochs": 12, "step": 9, "seconds": seconds, "metrics": metrics}
    return json.dumps(facts) + "\n"


def job(folder: Path, parameters: dict[str, str]) -> Job:
    words = [f"{key}={value}" for key, value in parameters.items()]
    return Job(3, words, parameters, folder, ["python", "src/train.py"], state="running")


def test_progress_is_read_from_the_last_complete_line(tmp_path, monkeypatch):
    path, clock, running = tmp_path / "metrics.jsonl", [100.0], job(tmp_path, {})
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    assert running.read_progress() == [] and running.progress("error/val") == ""
    path.write_text(line(3, 9.0) + line(4, 12.0) + line(5, 15.0)[:20])
    assert [found["epoch"] for found in running.read_progress()] == [3, 4]
    assert running.progress("error/val") == "epoch 4/12  error/val 1.50%  24 s left"
    assert running.progress("loss/train") == "epoch 4/12  loss/train 0.1  24 s left"
    assert running.progress("none/val") == "epoch 4/12  24 s left"
    clock[0] = 102.0
    assert running.read_progress() == []
    assert running.progress("error/val").endswith("22 s left")
    path.write_text(line(3, 9.0) + line(4, 12.0) + line(5, 15.0))
    assert [found["epoch"] for found in running.read_progress()] == [5]


def test_metrics_cut_by_a_resumed_run_are_read_again(tmp_path):
    path, running = tmp_path / "metrics.jsonl", job(tmp_path, {})
    path.write_text(line(1, 1.0) + line(2, 2.0))
    running.read_progress()
    path.write_text(line(1, 1.0))
    assert [found["epoch"] for found in running.read_progress()] == [1]
    path.write_text(line(1, 1.0) + line(2, 2.5))
    assert [found["seconds"] for found in running.read_progress()] == [2.5]


def test_an_incomplete_line_is_skipped(tmp_path):
    path, running = tmp_path / "metrics.jsonl", job(tmp_path, {})
    path.write_text(line(1, 1.0) + line(2, 2.0)[:30] + line(2, 2.0) + line(3, 3.0))
    assert [found["epoch"] for found in running.read_progress()] == [1, 3]


@pytest.mark.parametrize("name", ["a/b-1.5", "my run", "it's, a = b", "ü", "[x]", "a$b `c` \\ d"])
def test_the_command_that_continues_a_run_may_be_pasted_into_a_shell(name):
    typed = shlex.split(resume_command(Path(name)))
    assert typed[:2] == ["python", "src/train.py"]
    (override,) = parse_overrides(typed[2:])
    assert (override.key_or_group, str(override.value())) == ("resume", name)


def test_values_and_folders_in_a_command_are_quoted_for_hydra(tmp_path):
    folder = tmp_path / "it's, a = b"
    words = job(folder, {"name": "'a b'", "optim.lr": "0.1"}).command[2:]
    parsed = OverridesParser.create().parse_overrides(words)
    values = {override.key_or_group: override.value() for override in parsed}
    assert str(values["run_dir"]) == str(folder)
    assert [str(word) for word in values["varied"]] == ["name='a b'", "optim.lr=0.1"]
    folder.mkdir()
    (folder / "config.yaml").touch()
    (word,) = OverridesParser.create().parse_overrides(job(folder, {}).command[2:])
    assert str(word.value()) == str(folder)
