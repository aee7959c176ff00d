"""The programs as users run them: processes, signals, MNIST and the README's commands."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from tests.forks import SRC, TRAIN
from tests.runs import events, result, same, weights
from tests.sweep.conftest import read_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", README, re.S)
    for line in block.splitlines()
    if line
]
pytestmark = pytest.mark.slow


WEIGHTS: dict = {}  # of an uninterrupted run; the first test fills it


@pytest.mark.parametrize(
    ("number", "status", "code"),
    [
        (signal.SIGINT, "interrupted", 130),
        (signal.SIGTERM, "interrupted", 143),
        (signal.SIGKILL, None, -9),
    ],
)
def test_a_run_stopped_by_a_signal_is_resumed_with_equal_weights(
    fork, number, status, code, tiny_mnist, tiny_config_dir, tmp_path
):
    words = ["--config-dir", str(tiny_config_dir), "data=tiny", f"data_dir={tiny_mnist.folder}"]
    words += ["trainer=cpu", "trainer.max_epochs=12"]
    stopped = tmp_path / "stopped"
    process = fork(TRAIN, *words, f"run_dir={stopped}", cwd=tmp_path)
    for line in process.stdout:
        if line.startswith("epoch   2/"):
            process.send_signal(number)
            break
    rest = "".join(process.communicate(timeout=120))
    assert process.returncode == code
    assert "Traceback" not in rest
    if status:
        assert f"continue with: python {TRAIN} resume={stopped}" in rest
        assert result(stopped)["status"] == status
    else:
        assert not (stopped / "result.json").exists()

    resumed = fork(TRAIN, f"resume={stopped}", cwd=tmp_path)
    epochs = re.findall(r"epoch +(\d+)/", resumed.communicate(timeout=240)[0])
    assert int(epochs[0]) >= 2 and epochs[-1] == "12"  # continues, does not start again
    assert resumed.returncode == 0
    assert result(stopped)["epochs"] == 12
    if not WEIGHTS:
        whole = fork(TRAIN, *words, f"run_dir={tmp_path / 'whole'}", cwd=tmp_path)
        assert whole.communicate(timeout=240) and whole.returncode == 0
        WEIGHTS.update(weights(tmp_path / "whole"))
    assert same(weights(stopped), WEIGHTS)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_job_that_slurm_starts_again_continues_its_run(
    fork, number, tiny_mnist, tiny_config_dir, tmp_path
):
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho $@ > {tmp_path}/asked\n")
    (tmp_path / "scontrol").chmod(0o755)
    slurm = {"JOB_ID": "42", "JOB_NAME": "job", "NTASKS": "1", "PROCID": "0", "LOCALID": "0"}
    slurm |= {"NODEID": "0", "NODELIST": "localhost"}
    env = {f"SLURM_{name}": value for name, value in slurm.items()}
    env["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    words = ["--config-dir", tiny_config_dir, "data=tiny", f"data_dir={tiny_mnist.folder}"]
    words += ["trainer=cpu", "trainer.max_epochs=12", "name=mine"]

    assert fork(TRAIN, *words, "seed=7", "trainer.max_epochs=1", cwd=tmp_path).wait() == 0
    words += ["init_from=outputs/mine/latest"]  # later this means the run itself

    assert fork(TRAIN, *words, "run_dir=whole", cwd=tmp_path).wait() == 0
    process = fork(TRAIN, *words, cwd=tmp_path, env=env)
    for line in process.stdout:
        if line.startswith("epoch   1/"):
            process.send_signal(number)
            break
    assert process.wait() == 128 + number
    asked = [path.read_text() for path in tmp_path.glob("asked")]
    assert asked == (["requeue 42\n"] if number == signal.SIGUSR1 else [])

    env["SLURM_RESTART_COUNT"] = "1"
    for _ in range(2):  # a second time, when it has finished
        process = fork(TRAIN, *words, cwd=tmp_path, env=env)
        assert process.wait() == 0
        assert "this job was started again: continuing outputs/mine/" in process.stdout.read()
    _, run = sorted(tmp_path.glob("outputs/mine/2*"))
    assert same(weights(run), weights(tmp_path / "whole"))
    assert (
        fork(TRAIN, *words, "seed=1", cwd=tmp_path, env=env).wait() == 0
    )  # another run of the job
    assert fork(TRAIN, *words, cwd=tmp_path, env=env | {"SLURM_JOB_ID": "43"}).wait() == 0
    assert len(list(tmp_path.glob("outputs/mine/2*"))) == 4


def test_data_are_downloaded_before_a_run_that_has_no_network(
    fork, tiny_mnist, tiny_config_dir, tmp_path
):
    words = ["--config-dir", tiny_config_dir, "data=tiny", f"data_dir={tiny_mnist.folder}"]
    prepared = fork(SRC / "prepare.py", *words, cwd=tmp_path)
    assert prepared.communicate()[0].startswith("prepared: data=tiny")
    shutil.rmtree(tiny_mnist.folder / "MNIST")  # the only source of these images
    run = fork(TRAIN, *words, "trainer=cpu", "trainer.max_epochs=1", cwd=tmp_path)
    assert run.wait() == 0, run.stdout.read()
    assert not list(tmp_path.glob("outputs/prepare*"))


@pytest.mark.parametrize("channels", [1, 3])
def test_class_folders_are_prepared_without_a_run(fork, tmp_path, channels):
    for name in ("train/a", "train/b", "val/a"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (9, 8), "red").save(tmp_path / name / "1.png")
    damaged = tmp_path / "train" / "b" / "2.png"
    damaged.write_bytes(b"no picture")
    words = ["data.root=.", f"data.channels={channels}", "data.size=8", f"data_dir={tmp_path}"]
    prepared = fork(SRC / "prepare.py", *words, cwd=tmp_path)
    out, err = prepared.communicate()
    assert prepared.returncode == 0, err
    assert f"1 of 3 files cannot be decoded and were left out: {damaged}\n" in out
    (pixels,) = tmp_path.glob("folders/*/8-raw*/train.bin")
    assert pixels.stat().st_size == 2 * channels * 8 * 8


def test_a_diverged_run_ends_with_an_exit_code_and_one_line(
    fork, tiny_mnist, tiny_config_dir, tmp_path
):
    words = ["--config-dir", str(tiny_config_dir), "data=tiny", f"data_dir={tiny_mnist.folder}"]
    words += ["trainer=cpu", "optim.lr=999", "model=lenet5_relu", "run_dir=run"]
    process = fork(TRAIN, *words, cwd=tmp_path)
    out, err = process.communicate()
    assert (process.returncode, err) == (1, ""), err
    assert out.splitlines()[-1].startswith("error: the loss became ")
    assert result(tmp_path / "run")["status"] == "diverged"


def test_a_short_run_on_few_images_learns(fork, tmp_path):
    words = ["data.train_size=10000", "trainer.max_epochs=2", "run_dir=quick"]
    process = fork(TRAIN, *words, cwd=tmp_path)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, printed + errors
    assert "9,000 images to train on, 1,000 held out" in printed
    assert (
        result(tmp_path / "quick")["metrics"]["error/test"] < 0.3
    )  # guessing among ten classes gives 0.9


def test_the_readme_has_at_least_five_train_commands():
    assert len([line for line in COMMANDS if "train.py" in line]) >= 5


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with our conf and src, in which all commands of the README run in order."""
    folder = tmp_path_factory.mktemp("workplace")
    for name in ("conf", "src", "Makefile", "pyproject.toml", ".ci"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.mark.parametrize("line", [line for line in COMMANDS if "python src/" in line])
def test_the_python_commands_of_the_readme_work(fork, line, workplace):
    _, program, *words = shlex.split(line)
    if "train.py" in line and "--help" not in line and "resume" not in line:
        words += ["data.train_size=1000", "data.val_size=null", "trainer.max_epochs=1"]
    process = fork(program, *words, cwd=workplace)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, printed + errors
    assert "Traceback" not in errors


def test_tensorboard_shows_each_job_of_the_readme_sweep(workplace):
    seen = []
    for row in read_table(workplace / "outputs" / "sweep" / "rates"):
        log = events(workplace / row["directory"])
        plugin = {
            tag: HParamsPluginData.FromString(content)
            for tag, content in log._plugin_to_tag_to_content["hparams"].items()
        }
        values = plugin["_hparams_/session_start_info"].session_start_info.hparams
        seen.append((values["model"].string_value, values["optim.lr"].number_value))
        assert log.Scalars("error/test")[-1].value == pytest.approx(float(row["error/test"]))
        names = {info.name for info in plugin["_hparams_/experiment"].experiment.hparam_infos}
        assert names == {"model", "optim.lr"}  # TensorBoard shows only the first five
    assert seen == [(model, lr) for model in ("lenet5", "simple_cnn") for lr in (0.01, 0.1)]


def test_results_py_prints_and_draws_the_readme_sweep_again(fork, workplace):
    folder = workplace / "outputs" / "sweep" / "rates"
    (folder / "curves.png").unlink()
    again = fork(SRC / "results.py", folder, cwd=workplace)
    printed, errors = again.communicate()
    assert again.returncode == 0, errors
    assert (folder / "results.md").read_text().strip() in printed
    assert (folder / "curves.png").stat().st_size > 10_000


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("make")])
def test_the_make_targets_of_the_readme_exist(line, workplace):
    done = subprocess.run([*line.split(), "--dry-run"], cwd=workplace, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_the_tensorboard_command_of_the_readme_shows_each_run_once(spawn, workplace):
    (line,) = [line for line in COMMANDS if "/tensorboard" in line]
    program, *words = line.split()
    assert Path(program).name == "tensorboard"
    found = shutil.which("tensorboard", path=str(Path(sys.executable).parent))
    server = spawn([found, *words, "--port", "0", "--bind_all"], cwd=workplace)
    port = next(m[1] for text in server.stderr if (m := re.search(r"http://[^ ]+?:(\d+)", text)))
    outputs = workplace / "outputs"
    folders = {str(p.parent.relative_to(outputs)) for p in outputs.rglob("events.*")}
    for _ in range(60):
        url = f"http://localhost:{port}/data/runs"
        runs = json.loads(urllib.request.urlopen(url, timeout=10).read())
        if len(runs) >= len(folders):
            break
        time.sleep(1)
    assert sorted(runs) == sorted(folders)
    assert any(re.fullmatch(r"lenet5-mnist/20[\d_-]+", run) for run in runs)
