"""Mistakes on the command line: one line on stderr, exit code 2, nothing left, no torch."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

TRAIN = Path(__file__).parents[1] / "src" / "train.py"
CONF = TRAIN.parents[1] / "conf"

# A process that has imported what the command line needs, and forks into a fresh one for each
# command: real exit codes and streams without paying for the imports each time.
SERVER = """
import gc, json, os, runpy, sys
import classic_cnns.__main__
from classic_cnns.config.compose import compose
compose("seed=1")  # warms Hydra's search for plugins and its parser
gc.freeze()
for line in sys.stdin:
    folder, streams, env, argv = json.loads(line)
    child = os.fork()
    if not child:
        os.environ.update(env)
        os.chdir(folder)
        for number, name in enumerate(("in", "out", "err")):
            os.dup2(os.open(f"{streams}/{name}", os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
        sys.argv = [TRAIN, *argv]
        runpy.run_path(TRAIN, run_name="__main__")
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Answer(NamedTuple):
    code: int
    out: str
    err: str
    left: list[str]  # what is new in the working directory

    @property
    def started(self) -> bool:
        """It passed all checks and went on to `import torch`, which is a stub that raises.

        In a sweep that is the jobs' end, of which the table tells.
        """
        return self.code == 1 and "torch was imported" in self.err + self.out

    def line(self) -> str:
        """The one line of a mistake, as each mistake has to be told."""
        assert self.err.startswith("error: ") and self.err.endswith("\n"), self.err[-600:]
        assert self.err.count("\n") == 1, self.err
        assert self.code == 2 and self.out == "" and self.left == []
        return self.err


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    fake = tmp_path_factory.mktemp("fake")
    (fake / "torch").mkdir()
    (fake / "torch" / "__init__.py").write_text('raise ImportError("torch was imported")\n')
    return os.environ | {"PYTHONPATH": f"{fake}:{TRAIN.parent}", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def server(environment):
    program = f"TRAIN = {str(TRAIN)!r}" + SERVER
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", program], env=environment, **pipes) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def train(server, tmp_path):
    folder, streams = tmp_path / "work", tmp_path / "streams"
    folder.mkdir()
    streams.mkdir()

    def call(*argv: str, **env: str) -> Answer:
        before = set(folder.rglob("*"))
        server.stdin.write(json.dumps([str(folder), str(streams), env, argv]) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        left = sorted(str(path.relative_to(folder)) for path in set(folder.rglob("*")) - before)
        return Answer(code, (streams / "out").read_text(), (streams / "err").read_text(), left)

    call.folder = folder
    return call


# The command line, and what the one line has to say: the key and value, and a way out.
MISTAKES = {
    # named in the issue
    "data=mnsit": ["data=mnsit", "data=mnist"],
    "model.lr=3": ["model.lr=3", "did you mean optim.lr"],
    "+model.lr=3": ["model.lr=3", "did you mean optim.lr"],
    "++model.lr=3": ["model.lr=3", "did you mean optim.lr"],
    "optim=lenet5_1998 optim.mu=0": ["optim.mu=0", "above 0", "try optim.mu=1.68"],
    "optim.lr=-1": ["optim.lr=-1", "above 0", "try optim.lr=0.02"],
    "optim.lr=fast": ["optim.lr=fast", "a number above 0", "try optim.lr=0.02"],
    "trainer.max_epochs=0.5": ["trainer.max_epochs=0.5", "whole number", "try trainer.max_epochs="],
    "data.batch_size=0": ["data.batch_size=0", "at least 1", "try data.batch_size=128"],
    "data.val_size=70000": ["data.val_size=70000", "1 to 59999", "try data.val_size=null"],
    "trainer.devices=99": ["trainer.devices=99", "this machine has", "try trainer.devices="],
    "data_dir=/dev/null/cache": ["data_dir=/dev/null/cache", "/dev/null is not a folder"],
    # values
    "seed=-1": ["seed=-1", "whole number", "try seed=0"],
    "seed=1.5": [" seed=1.5", "whole number", "try seed=0"],
    "optim.batch_size=0": [" optim.batch_size=0", "at least 1"],
    "optim.epochs=0": [" optim.epochs=0", "at least 1"],
    "optim.lr=nan": ["optim.lr=nan", "try optim.lr=0.02"],
    "optim.lr=": ["optim.lr=", "try optim.lr=0.02"],
    "optim.momentum=1": ["optim.momentum=1", "below 1", "try optim.momentum=0.9"],
    "optim.clip_norm=0": ["optim.clip_norm=0", "or null"],
    "data.augment=rotate": ["data.augment=rotate", "none, shift"],
    "trainer.precision=31": ["trainer.precision=31", "32-true", "try trainer.precision=32-true"],
    "trainer.deterministic=perhaps": ["trainer.deterministic=perhaps", "true, false"],
    "model.input.low=[1]": ["model.input.low=[1]", "a number", "try model.input.low=-0.1"],
    "optim.lr='${nope}'": ["optim.lr", "nope"],
    "optim.batch_size='${nope}'": ["optim.batch_size=", "nope"],
    "data.train_size=abc": ["data.train_size=abc", "whole number"],
    "data.train_size=70000": ["data.train_size=70000", "2 to 60000"],
    "data.channels=3": ["data.channels=3", "try data.channels=1"],
    "data_dir=true": ["data_dir=true", "a folder"],
    "model.net=null": ["model.net=null"],
    "data.augmentations=null": ["data.augmentations=null"],
    "data.dataset=cifar": ["data.dataset=cifar", "mnist"],
    "model.input.size=8": ["model.input.size=8"],
    "model=alexnet model.net.lrn='yes please'": ["model.net.lrn=yes please", "true or false"],
    "model=alexnet model.net.dropout=1": ["model.net.dropout=1", "of at least 0 and below 1"],
    "model=alexnet model.net.dropout=-0.1": ["model.net.dropout=-0.1", "dropout=0.5"],
    "model=alexnet model.net.channels=[96,256]": ["model.net.channels=", "five whole numbers"],
    "model=alexnet model.net.hidden=0": ["model.net.hidden=0", "try model.net.hidden=4096"],
    "model=alexnet model.net.towers=3": ["model.net.towers=3", "1 to 2", "try model.net.towers=2"],
    "model=alexnet model.net.activation=gelu": ["model.net.activation=gelu", "one of relu, tanh"],
    "model=alexnet model.net.pool=max": ["model.net.pool=max", "one of overlapping, non_over"],
    "model=alexnet optim.weight_decay=-1": ["optim.weight_decay=-1", "at least 0"],
    "model=lenet5_relu model.net.pool=sum": ["model.net.pool=sum", "one of average, max"],
    "model=lenet5_relu model.net.c3=tabled": ["model.net.c3=tabled", "one of table, full"],
    "model.loss.j=0": ["model.loss.j=0", "above 0", "try model.loss.j=0.1"],
    "model=simple_cnn model.net.norm=yes": ["model.net.norm=", "one of none, batch, torch"],
    "model=convnet_cifar10 data=cifar10 model.net.activation=gelu": ["one of relu, tanh"],
    "model=simple_cnn model.net.extra_convs=-1": ["model.net.extra_convs=-1", "at least 0"],
    "model=convnet_cifar10 data=cifar10 optim.bias_lr=0": ["optim.bias_lr=0", "above 0"],
    "model=convnet_cifar10 data=cifar10 optim.weight_decay.conv1=-1": [
        "optim.weight_decay.conv1=-1",
        "try optim.weight_decay.conv1=",
    ],
    "model=convnet_cifar10 data=cifar10 +optim.weight_decay.conv9=1": ["no key", "conv9"],
    "model=convnet_cifar10 data=cifar10 optim.weight_decay=1": ["optim.weight_decay=1"],
    # data sets and models that do not go together
    "model=lenet5 data=cifar10": ["data=cifar10", "3 channels", "takes 1", "try data=mnist"],
    "model=simple_cnn data=cifar10": ["model.input.size=28", "32 pixels", "fit=resize"],
    "model=alexnet data=cifar10": ["model.input.size=224", "32 pixels", "fit=resize"],
    "model=convnet_cifar10 data=cifar10 data.augment=crop_flip": ["crop_flip", "lose nothing"],
    "model=alexnet data=cifar10 model.input.fit=resize data.augment=crop_flip_colour": [
        "data.augment=crop_flip_colour",
        "224 pixels do not fit",
        "32",
        "try data.augment=none",
    ],
    "'data.augmentations.shift=[{_target_: classic_cnns.data.transforms.ColourNoise}]'": [
        "data.augment=shift",
        "1 channel have no colours",
    ],
    "model=alexnet data=image_folder": ["data.root=null", "train/<class>/", "try data.root="],
    "model=alexnet data=image_folder data.root=/nowhere": ["data.root=/nowhere", "has no train/"],
    "data.test_patches=ten": ["data.test_patches=ten", "fit=pad", "try data.test_patches=centre"],
    "model=convnet_cifar10_13pct data=cifar10 data.test_patches=five": ["centre, nine, ten"],
    # Lightning's parts
    "callbacks=erly_stopping": ["callbacks=erly_stopping", "did you mean callbacks=early_stopping"],
    "callbacks=[default,erly]": ["callbacks=[default,erly]", "callbacks is one of"],
    "logger=tensorbord": ["logger=tensorbord", "did you mean logger=tensorboard"],
    "model=[lenet5,alexnet]": ["model=[lenet5,alexnet]", "takes one choice"],
    "~callbacks.progres": ["~callbacks.progres", "cannot be removed"],
    "~model": ["~model", "groups cannot be removed"],
    "callbacks.early_stopping.patience=3": ["callbacks.early_stopping.patience=3", "no key"],
    "+trainer.max_epoch=3": ["+trainer.max_epoch=3", "did you mean +trainer.max_epochs"],
    "trainer.fast_dev_runn=true": ["fast_dev_runn", "did you mean +trainer.fast_dev_run?"],
    "trainer.val_check_interval=0.5": ["try +trainer.val_check_interval=0.5"],
    "+trainer.logger=false": ["+trainer.logger=false", "logger=null"],
    "+trainer.callbacks=null": ["+trainer.callbacks=null", "callbacks=[default,...]"],
    "+trainer.default_root_dir=x": ["default_root_dir", "run_dir=<directory>"],
    "+trainer.enable_checkpointing=false": ["~callbacks.checkpoint"],
    "+trainer.barebones=true": ["+trainer.barebones=true", "cannot be given"],
    "+trainer.limit_predict_batches=1": ["limit_predict_batches", "predicts nothing"],
    "trainer.accumulate_grad_batches=0": ["at least 1", "try trainer.accumulate_grad_batches=1"],
    "trainer.gradient_clip_val=-1": ["trainer.gradient_clip_val=-1", "above 0"],
    "trainer.devices=[]": ["trainer.devices=[]", "a list of GPUs"],
    "init_skip=[F6]": ["init_skip=", "try init_from="],
    "init_from=5.5": ["init_from=5.5", "config.yaml"],
    "debug=one_batch": ["debug=one_batch", "debug is one of"],
    "optim.lrs[0]=3": ["optim.lrs[0]=3", "not of the form key=value"],
    "hydra.run.dir=x": ["hydra.run.dir=x", "run_dir="],
    "hydra/launcher=basic": ["hydra/launcher=basic", "no effect"],
    "+trainer.use_distributed_sampler=false": ["use_distributed_sampler", "in any case"],
    "model=simple_cnn +trainer.sync_batchnorm=true": ["sync_batchnorm", "try model.net.norm=torch"],
    "--config-path=/tmp": ["--config-path=/tmp", "--config-dir"],
    # groups, keys and the form of the line
    "model=lenet": ["model=lenet", "did you mean model=lenet5"],
    "optim=adam": ["optim=adam", "optim is one of", "lenet5"],
    "trainer=gpu": ["trainer", "gpu", "trainer=cpu"],
    "model=null": ["model=null", "lenet5"],
    "experiment=best": ["experiment=best", "experiment is one of"],
    "data.augmnt=none": ["data.augmnt=none", "did you mean data.augment"],
    "~seed": ["~seed", "null"],
    "seed=0,1": ["seed=0,1", "--multirun"],
    "seed": ["seed", "key=value"],
    "model=[1,2]": ["model=[1,2]", "lenet5"],
    "model={a:1}": ["model.a", "no key"],
    "+model@other=lenet5": ["model@other", "no key"],
    "-m --cfg=job": ["--multirun"],
    "=3": ["=3", "key=value"],
    "--frobnicate": ["--frobnicate", "--help"],
    "--config-dir=/nowhere": ["/nowhere", "not found"],
    "--config-name=tarin": ["tarin", "train"],
    # several devices; what else is wrong with them is below
    "trainer.devices=0": ["trainer.devices=0", "at least 1", "try trainer.devices=1"],
    "trainer=ddp trainer.accelerator=gpu": ["trainer.accelerator=gpu", "no GPU", "trainer=cpu"],
    "trainer=ddp data.batch_size=1": ["data.batch_size=1", "2 processes", "try data.batch_size=2"],
    "trainer=two_gpu": ["trainer=two_gpu", "two towers", "model=alexnet", "trainer=ddp"],
    "trainer=two_gpu model=alexnet model.net.towers=1 data=cifar10 model.input.fit=resize": [
        "two towers"
    ],
    "trainer=two_gpu model=alexnet_small trainer.devices=3": ["devices=3", "try trainer.devices=4"],
    "trainer=two_gpu model=alexnet_small trainer.devices=4 data.batch_size=1": [
        "2 pairs of processes",
        "try data.batch_size=2",
    ],
    "trainer.strategy=ddp_spawn": ["trainer.strategy=ddp_spawn", "by itself", "try trainer=ddp"],
    "trainer.num_nodes=2": ["trainer.num_nodes=2", "torchrun", "try trainer.num_nodes=1"],
    # folders
    "resume=nowhere": ["resume=nowhere", "config.yaml"],
    "resume=5": ["resume=5", "config.yaml"],
    "resume=. seed=1": ["seed=1", "resume=. alone"],
    "run_dir=/dev/null/run": ["run_dir=/dev/null/run"],
    "-m optim.lr=0.1,-1": ["optim.lr=-1", "above 0", "try optim.lr=0.02"],
    "seed=1,-1 -m": [" seed=-1", "whole number"],
    "-m model=lenet5,lenet6": ["model=lenet6", "did you mean model=lenet5"],
    # sweeps
    "-m": ["-m", "the grid is empty", "seed=range(3)"],
    "-m seed=range(0)": ["the grid is empty"],
    "-m seed=0,1 seed=2,3": ["seed", "2 times"],
    "-m seed=0,1 ++seed=2": ["seed", "2 times"],
    "-m seed=range(1001)": ["more than 1,000 jobs", "sweep.max_jobs"],
    "-m seed=range(1000000000)": ["more than 1,000 jobs", "sweep.max_jobs"],
    "-m seed=range(40) optim.lr=1,2,3 data.batch_size=range(1,11)": ["more than 1,000 jobs"],
    "-m seed=0,1 sweep.max_jobs=1": ["more than 1 jobs"],
    "-m seed=0,1 sweep.max_jobs=many": ["sweep.max_jobs=many", "whole number"],
    "-m seed=0,1 sweep.parallel=0": ["sweep.parallel=0", "at least 1", "null"],
    "-m seed=0,1 sweep.parallel=1,2": ["sweep.parallel=1,2", "one value"],
    "-m seed=0,1 sweep.time_limit=0": ["sweep.time_limit=0", "above 0"],
    "-m seed=0,1 sweep.fail_fast=2": ["sweep.fail_fast=2", "true or false"],
    "-m seed=0,1 sweep.dir=/dev/null/s": ["sweep.dir=/dev/null/s"],
    "-m seed=0,1 sweep.paralel=2": ["sweep.paralel=2", "did you mean sweep.parallel"],
    "-m seed=0,1 sweep=rya": ["sweep=rya", "did you mean sweep=ray"],
    "-m seed=0,1 run_dir=x": ["run_dir=x", "sweep.dir="],
    "-m resume=a,b": ["resume=a,b", "sweep.dir="],
    "-m seed=0,1 hydra.sweep.dir=x": ["hydra.sweep.dir=x", "sweep.dir="],
    "-m seed=0,1 hydra/launcher=basic": ["hydra/launcher=basic"],
    "-m seed=0,1 optim.lrr=1": ["optim.lrr=1", "did you mean optim.lr"],
    "-m optim.lrr=1,2": ["optim.lrr=1", "did you mean optim.lr"],
    "sweep.parallel=2": ["sweep.parallel=2", "add -m"],
    "-m optim.lr=-1,0.1": ["optim.lr=-1", "above 0", "try optim.lr=0.02"],
}


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_one_line_that_names_it_and_a_way_out(train, command):
    line = train(*shlex.split(command)).line()
    missing = [words for words in MISTAKES[command] if words not in line]
    assert not missing, line


def test_an_image_folder_is_looked_through_before_torch_is_imported(train):
    words = ["model=alexnet", "data=image_folder", "data.root=images"]
    for folder in ("train/cat", "train/dog", "val/cat"):
        (train.folder / "images" / folder).mkdir(parents=True)
    assert train(*words).started and train(*words, "data.num_classes=2").started
    assert "try data.num_classes=2" in train(*words, "data.num_classes=3").line()
    assert "data.workers=-1" in train(*words, "data.workers=-1").line()
    (train.folder / "images" / "val" / "cow").mkdir()
    assert "val/ has the class cow that train/ lacks" in train(*words).line()
    one = [word.replace("images", "images/train") for word in words]
    assert "data.root=images/train: has no train/" in train(*one).line()


@pytest.mark.parametrize(
    "command",
    ["optim.lr=fast", "data.batch_size=0", "trainer.devices=99", "trainer.precision=31", "seed=1.5",
     "data.val_size=70000"],
)  # fmt: skip
def test_what_the_line_proposes_works(train, command):
    proposal = re.search(r"try (\S+)$", train(*shlex.split(command)).line())
    assert train(proposal[1]).started


def test_a_proposal_works_beside_the_other_values_of_the_command(train):

    proposal = re.search(r"try (\S+)$", train("data.train_size=100", "data.val_size=100").line())
    assert train("data.train_size=100", proposal[1]).started


@pytest.mark.parametrize(
    ("env", "command", "words"),
    [
        (
            {"CUDA_VISIBLE_DEVICES": "0,1"},
            "trainer.devices=3",
            ["devices=3", "2 GPUs", "devices=2"],
        ),
        ({"CUDA_VISIBLE_DEVICES": "0"}, "trainer=ddp", ["devices=2", "1 GPU;", "devices=1"]),
        # as torchrun and srun set them
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "4"}, "trainer=ddp", ["4 were started", "devices=4"]),
        ({"SLURM_NTASKS": "8"}, "trainer=ddp trainer.num_nodes=2", ["8 were", "devices=4"]),
        ({"MASTER_PORT": "99999"}, "trainer=ddp", ["MASTER_PORT=99999", "unset MASTER_PORT"]),
    ],
)
def test_devices_that_are_not_there_are_told_before_anything_starts(train, env, command, words):
    line = train(*shlex.split(command), **env).line()
    assert not [word for word in words if word not in line], line


def test_a_port_in_use_is_told_before_anything_starts(train):
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert f"MASTER_PORT={port}: is in use" in train("trainer=ddp", MASTER_PORT=port).line()


def test_an_earlier_run_may_go_on_with_other_devices(train):
    run = train.folder / "run"
    run.mkdir()
    (run / "config.yaml").write_text(train("--cfg", "job", "--resolve", "trainer=ddp").out)
    for words in ("", "trainer=cpu", "trainer.devices=1", "trainer.devices=2"):
        assert train("resume=run", *shlex.split(words)).started, words
    line = train("resume=run", "trainer.devices=99").line()
    assert "trainer.devices=99: this machine has" in line
    assert "seed=1" in train("resume=run", "trainer=cpu", "seed=1").line()
    assert "has none" in train("resume=run", "trainer=two_gpu").line()

    words = shlex.split("--cfg job --resolve trainer=two_gpu model=alexnet_small")
    (run / "config.yaml").write_text(train(*words).out)
    for words in ("", "trainer=cpu", "trainer=ddp", "trainer.devices=4"):
        assert train("resume=run", *shlex.split(words)).started, words
    assert "trainer.devices=1: each copy" in train("resume=run", "trainer.devices=1").line()


@pytest.mark.parametrize("key", ["data_dir", "run_dir"])
def test_a_folder_may_have_a_number_for_a_name(train, key):

    answer = train(f"{key}=5")
    assert answer.started or answer.line()


def test_a_mistake_in_a_config_of_the_users_own_is_one_line_too(train, tiny_config_dir):

    line = train("--config-dir", str(tiny_config_dir), "data=tiny", "data.augmnt=none").line()
    assert "data.augmnt=none" in line and "did you mean data.augment" in line
    line = train("--config-dir", str(tiny_config_dir), "data=tinny").line()
    assert "data=tinny" in line and "did you mean data=tiny?" in line


@pytest.mark.parametrize(
    "command",
    ["", "++data_dir=a ++optim.lr=1",
     "run_dir=a/b seed=0 trainer=cpu data.augment=none optim.lr=1 trainer.deterministic=warn",
     "optim.clip_norm=null optim.scheduler=null optim.epochs=1 data.val_size=59999",
     *(f"experiment={path.stem}" for path in sorted(CONF.glob("experiment/[!s]*.yaml")))],
)  # fmt: skip
def test_what_is_allowed_is_not_refused(train, command):
    assert train(*shlex.split(command)).started


def test_help_names_all_groups_and_shows_examples_that_work(train):
    answer = train("--help")
    assert answer.code == 0 and answer.err == "" and answer.left == []
    groups = {path.parent.name for path in CONF.glob("*/*.yaml")}
    assert groups >= {"model", "data", "optim", "trainer"}
    for group in groups:
        choices = ", ".join(sorted(path.stem for path in (CONF / group).glob("*.yaml")))
        assert re.search(rf"^{group}: {choices}$", answer.out, re.M), group

    examples = re.findall(r"^ +python src/train\.py (.+)$", answer.out, re.M)
    assert len(examples) == len(set(examples)) == 6
    run = train.folder / "outputs" / "lenet5-mnist" / "latest"  # one of them resumes a run
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(train("--cfg", "job", "--resolve").out)
    for example in examples:
        assert train(*shlex.split(example), CUDA_VISIBLE_DEVICES="0").started, example


def test_cfg_job_prints_every_key_without_torch(train):
    answer = train("--cfg", "job", "seed=7")
    assert answer.code == 0 and answer.err == "" and answer.left == []
    for text in ("seed: 7", "data_dir: null", "batch_size: ${optim.batch_size}", "val_size: null"):
        assert re.search(rf"^ *{re.escape(text)}$", answer.out, re.M), text


@pytest.mark.parametrize("argument", ["--help", "--cfg=job", "optim.lr=-1", "lr=-1"])
def test_a_real_process_answers_within_one_and_a_half_seconds(environment, tmp_path, argument):
    def seconds() -> float:
        start = time.perf_counter()
        answer = subprocess.run(
            [sys.executable, TRAIN, argument], env=environment, cwd=tmp_path, capture_output=True
        )
        mistake = not argument.startswith("--")
        assert answer.returncode == (2 if mistake else 0)
        assert answer.stderr.count(b"\n") == mistake and list(tmp_path.iterdir()) == []
        return time.perf_counter() - start

    assert seconds() < 1.5 or seconds() < 1.5  # another chance, since others use this machine too
