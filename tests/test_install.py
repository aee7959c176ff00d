"""Installed from a wheel, in an environment of its own, outside of the checkout."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The bin/ of a new environment that has this project as `pip install .` leaves it.

    What it needs comes from the environment of the tests, all but the project itself.
    """
    folder = tmp_path_factory.mktemp("installed")
    venv, pip = ([sys.executable, "-m", name] for name in ("venv", "pip"))
    subprocess.run([*venv, "--without-pip", folder / "env"], check=True)
    python = folder / "env" / "bin" / "python"
    purelib = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    Path(purelib, "needs.pth").write_text(sysconfig.get_path("purelib"))
    source = folder / "source"  # setuptools builds beside the source
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    for name in files.splitlines():
        if name.startswith(("src/", "conf/", "pyproject", "README", "LICENSE")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    install = ["--python", python, "install", "--quiet", "--no-deps", source]
    subprocess.run([*pip, *install], check=True)
    return folder / "env" / "bin"


def test_the_command_and_python_run_from_a_wheel(installed, tiny_mnist, tiny_config_dir, tmp_path):
    words = ["--config-dir", str(tiny_config_dir), "data=tiny", f"data_dir={tiny_mnist.folder}"]
    words += ["trainer=cpu", "trainer.max_epochs=1", "run_dir=run", "trainer.log_every_n_steps=5"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([installed / "classic-cnns", *words], cwd=tmp_path, env=environment,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "result.json").exists()
    program = (
        "import classic_cnns; print(classic_cnns.__file__)\n"
        "print(classic_cnns.compose('model=alexnet_small', 'data=cifar10').name)\n"
        "print(len(classic_cnns.load('run').classes))"
    )
    loaded = subprocess.run([installed / "python", "-c", program], cwd=tmp_path, env=environment,
                            capture_output=True, text=True)  # fmt: skip
    assert loaded.returncode == 0, loaded.stderr
    where, *found = loaded.stdout.splitlines()
    assert str(installed.parent) in where and found == ["alexnet_small-cifar10", "10"]
    again = subprocess.run([installed / "classic-cnns", "optim.lrr=1"], cwd=tmp_path,
                           env=environment, capture_output=True, text=True)  # fmt: skip
    assert again.returncode == 2 and "did you mean optim.lr" in again.stderr
