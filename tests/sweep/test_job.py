"""How far a job has come, as the end of its log tells; and how its command is written."""

import time
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from classic_cnns.sweep.job import Job

LINE = "epoch {:3}/12   loss  0.1000   error  2.00% training  1.50% validation   9,000 images/s\n"


def job(folder: Path, parameters: dict[str, str]) -> Job:
    words = [f"{key}={value}" for key, value in parameters.items()]
    return Job(3, words, parameters, folder, ["python", "src/train.py"], 1, False)


def test_the_time_left_follows_from_the_epochs_since_the_last_start(tmp_path, monkeypatch):
    log, clock, running = tmp_path / "output.log", [100.0], job(tmp_path, {})
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    log.write_text("importing\n")
    assert running.progress() == ""
    log.write_text(LINE.format(4))
    assert running.progress() == "epoch 4/12  1.50% validation error"
    clock[0] = 106.0
    log.write_text(LINE.format(4) + LINE.format(6))
    assert running.progress() == "epoch 6/12  1.50% validation error  18 s left"
    clock[0] = 108.0
    assert running.progress().endswith("16 s left")


def test_a_command_says_any_value_and_folder_so_that_hydra_reads_the_same(tmp_path):
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
