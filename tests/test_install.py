"""The project installed as a wheel in a separate environment, outside of the checkout."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = """
import classic_cnns; print(classic_cnns.__file__)
print(classic_cnns.compose('model=alexnet_small', 'data=cifar10').name)
print(len(classic_cnns.load('run').classes))
"""


def run(*command: object, cwd: Path = ROOT, code: int = 0) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done


@pytest.mark.slow
def test_the_command_and_the_python_interface_work_from_a_wheel(
    tiny_mnist, tiny_config_dir, tmp_path
):
    # Its dependencies come from the environment of the tests.
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env")
    bin = tmp_path / "env" / "bin"
    program = "import sysconfig; print(sysconfig.get_path('purelib'))"
    purelib = run(bin / "python", "-c", program).stdout.strip()
    Path(purelib, "needs.pth").write_text(sysconfig.get_path("purelib"))
    source = tmp_path / "source"  # setuptools writes into the source folder
    for name in run("git", "ls-files").stdout.splitlines():
        if name.startswith(("src/", "conf/", "pyproject", "README", "LICENSE")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--python", bin / "python", "install", "--no-deps"]
    run(*pip, source)

    words = ["--config-dir", str(tiny_config_dir), "data=tiny", f"data_dir={tiny_mnist.folder}"]
    words += ["trainer=cpu", "trainer.max_epochs=1", "run_dir=run", "trainer.log_every_n_steps=5"]
    run(bin / "classic-cnns", *words, cwd=tmp_path)
    assert (tmp_path / "run" / "result.json").exists()
    where, *found = run(bin / "python", "-c", PROGRAM, cwd=tmp_path).stdout.splitlines()
    assert str(bin.parent) in where and found == ["alexnet_small-cifar10", "10"]
    again = run(bin / "classic-cnns", "optim.lrr=1", cwd=tmp_path, code=2)
    assert "did you mean optim.lr" in again.stderr
