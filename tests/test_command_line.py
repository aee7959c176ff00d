"""Mistakes on the command line: one line on stderr, exit code 2, no files, no import of torch."""

import re
import resource
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from classic_cnns import UserError, compose, quoted
from classic_cnns.config.compose import Composer, parse_word
from classic_cnns.config.trust import check_stored, is_trusted
from tests import bad_files
from tests.forks import SRC, TRAIN

CONF = SRC.parent / "conf"


class Answer(NamedTuple):
    code: int
    out: str
    err: str
    left: list[str]  # new files in the working directory

    @property
    def started(self) -> bool:
        """Whether it passed all checks and imported torch, which is a stub that raises.

        In a sweep all jobs fail with it, and the table shows their error.
        """
        return self.code == 1 and "torch was imported" in self.err + self.out

    def line(self, code: int = 2) -> str:
        """The line on stderr, after checking everything else about the report of a mistake."""
        assert self.err.startswith("error: ") and self.err.endswith("\n"), self.err[-600:]
        assert self.err.count("\n") == 1, self.err
        assert self.code == code and self.out == "" and self.left == []
        return self.err


@pytest.fixture
def call(server_without_torch):
    def call(command: str, *argv: str, folder: Path, **env: str) -> Answer:
        before = set(folder.rglob("*"))
        process = server_without_torch.start(SRC / command, *argv, cwd=folder, env=env)
        out, err = process.communicate()
        server_without_torch.end()
        return Answer(process.returncode, out, err, new(folder, before))

    return call


def new(folder: Path, before: set[Path]) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in set(folder.rglob("*")) - before)


@pytest.fixture
def train(call, tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    command = partial(call, "train.py", folder=folder)
    command.folder = folder
    return command


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A folder with a run and with the wrong files of bad_files.py."""
    folder = tmp_path_factory.mktemp("files")
    bad_files.write(folder)
    return folder


# Command lines and the line expected for each; ... matches any text.
BEFORE_TORCH, AFTER_TORCH = yaml.safe_load(
    (Path(__file__).parent / "bad_inputs.yaml").read_text()
).values()


def matches(line: str, expected: str) -> bool:
    pattern = ".*".join(map(re.escape, expected.split("...")))
    return re.fullmatch(pattern, line.strip()) is not None


@pytest.mark.parametrize("command", BEFORE_TORCH)
def test_a_mistake_is_reported_in_one_line_before_torch_is_imported(call, files, command):
    line = call(*shlex.split(command), folder=files).line()
    assert matches(line, BEFORE_TORCH[command]), line


@pytest.mark.parametrize("command", AFTER_TORCH)
def test_a_wrong_file_is_reported_in_one_line(files, command, monkeypatch, capfd):
    program, *words = shlex.split(command)
    monkeypatch.chdir(files)
    monkeypatch.setattr(sys, "argv", [str(SRC / program), *words])
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(files.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SRC / program), run_name="__main__")
    answer = Answer(stop.value.code, *capfd.readouterr(), new(files, before))
    code, expected = 2, AFTER_TORCH[command]
    if "predict.py" in command and "cannot be read" in expected:  # the other images were predicted
        code = 1
    assert matches(answer.line(code), expected), answer.err
    assert not (files / "executed").exists()


def test_no_code_in_a_file_was_executed(files):
    """The code of each malicious file would write a file `executed`."""
    assert not list(files.rglob("executed*"))


def test_an_image_folder_is_checked_before_torch_is_imported(train):
    words = ["model=alexnet", "data=image_folder", "data.root=images"]
    for folder in ("train/cat", "train/dog", "val/cat"):
        (train.folder / "images" / folder).mkdir(parents=True)
    assert train(*words).started and train(*words, "data.num_classes=2").started
    assert "try data.num_classes=2" in train(*words, "data.num_classes=3").line()
    assert "data.workers=-1" in train(*words, "data.workers=-1").line()
    line = train(*words, "data.size=64").line()
    assert train(*words, re.search(r"try (\S+) or model.input.fit=resize$", line)[1]).started
    assert "no effect on raw pixels; add data.store" in train(*words, "data.jpeg_quality=5").line()
    small = ["model=alexnet_cifar10", *words[1:]]
    line = train(*small).line()
    assert "would train on crops of 96 of 256 pixels and test on whole images" in line
    assert train(*small, line.strip().rpartition("try ")[2]).started
    (train.folder / "images" / "val" / "cow").mkdir()
    assert "val/ has the class cow that train/ lacks" in train(*words).line()
    one = [word.replace("images", "images/train") for word in words]
    assert "data.root=images/train: has no train/" in train(*one).line()


@pytest.mark.parametrize(
    "command",
    ["optim.lr=fast", "data.batch_size=0", "trainer.devices=99", "trainer.precision=31", "seed=1.5",
     "data.val_size=70000"],
)  # fmt: skip
def test_the_proposal_of_the_line_works(train, command):
    proposal = re.search(r"try (\S+)$", train(*shlex.split(command)).line())
    assert train(proposal[1]).started


def test_the_proposal_works_with_the_other_values_of_the_command(train):

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
        (
            {"CUDA_VISIBLE_DEVICES": "0"},
            "trainer.precision=16-mixed",
            ["fused optimizer", "bf16-mixed", "optim.optimizer.fused=false"],
        ),
        # variables of torchrun and srun
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "4"}, "trainer=ddp", ["4 were started", "devices=4"]),
        ({"SLURM_NTASKS": "8"}, "trainer=ddp trainer.num_nodes=2", ["8 were", "devices=4"]),
        ({"MASTER_PORT": "99999"}, "trainer=ddp", ["MASTER_PORT=99999", "unset MASTER_PORT"]),
    ],
)
def test_missing_devices_are_reported_before_torch_is_imported(train, env, command, words):
    line = train(*shlex.split(command), **env).line()
    assert not [word for word in words if word not in line], line


def test_a_port_in_use_is_reported_before_torch_is_imported(train):
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert f"MASTER_PORT={port}: is in use" in train("trainer=ddp", MASTER_PORT=port).line()


def test_a_run_may_be_resumed_on_other_devices(train):
    run = train.folder / "run"
    run.mkdir()
    (run / "config.yaml").write_text(train("--cfg", "job", "--resolve", "trainer=ddp").out)
    assert train("resume=run").started  # two ranks; below with torchrun's variables
    ranks = {"trainer=cpu": 1, "trainer.devices=1": 1, "trainer.devices=2": 2}
    for words, count in ranks.items():
        assert train("resume=run", words, LOCAL_RANK="0", WORLD_SIZE=f"{count}").started, words
    line = train("resume=run", "trainer.devices=99").line()
    assert "trainer.devices=99: this machine has" in line
    assert "seed=1" in train("resume=run", "trainer=cpu", "seed=1").line()
    assert "needs a net with two towers" in train("resume=run", "trainer=two_gpu").line()
    assert "have no root; leave it out" in train("resume=run", "trainer=cpu", "data.root=x").line()

    words = shlex.split("--cfg job --resolve trainer=two_gpu model=alexnet_small")
    (run / "config.yaml").write_text(train(*words).out)
    for words, count in {"": 2, "trainer=cpu": 1, "trainer=ddp": 2, "trainer.devices=4": 4}.items():
        env = {"LOCAL_RANK": "0", "WORLD_SIZE": f"{count}"}
        assert train("resume=run", *shlex.split(words), **env).started, words
    assert "trainer.devices=1: each copy" in train("resume=run", "trainer.devices=1").line()


@pytest.mark.parametrize("key", ["data_dir", "run_dir"])
def test_the_name_of_a_folder_may_be_a_number(train, key):

    answer = train(f"{key}=5")
    assert answer.started or answer.line()


def test_a_mistake_with_a_users_config_is_reported_in_one_line(train, tiny_config_dir):

    line = train("--config-dir", str(tiny_config_dir), "data=tiny", "data.augmnt=none").line()
    assert "data.augmnt=none" in line and "did you mean data.augment" in line
    line = train("--config-dir", str(tiny_config_dir), "data=tinny").line()
    assert "data=tinny" in line and "did you mean data=tiny?" in line


GLOBAL = "# @package _global_\n"
NO_EFFECT = "{path}: {key}: has no effect, since nothing uses it; "


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("optim: {lr: 0.5}", NO_EFFECT.format(path="...", key="experiment.optim.lr")
         + "write '# @package _global_' into the first line of the file"),
        (GLOBAL + "optm: {lr: 0.5}",
         NO_EFFECT.format(path="...", key="optm.lr") + "did you mean optim.lr?"),
        (GLOBAL + "optim:\n  lrr: 0.5",
         NO_EFFECT.format(path=".../mine.yaml", key="optim.lrr") + "did you mean optim.lr?"),
        (GLOBAL + "optim:\n  schedular:\n    _target_: x.Y", "...optim.schedular._target_: has..."),
        (GLOBAL + "model: {input: {sise: 3}}", "...did you mean model.input.size?"),
        (GLOBAL + "sweep: {paralel: 3}", "...did you mean sweep.parallel?"),
        (GLOBAL + "tags: [a]", "...; remove it, or use it somewhere as ${tags}"),
        (GLOBAL + "trainer: {max_epoch: 3}", "...did you mean +trainer.max_epochs?"),
        (GLOBAL + "trainer: {logger: false}", "...trainer.logger: cannot be given; logger=..."),
        (GLOBAL + "hydra: {run: {dir: x}}", ".../mine.yaml: hydra: Hydra's own keys have..."),
        (GLOBAL + "optim:\n\tlr: 0.5", "experiment=mine: while...mine.yaml\", line 3,..."),
        (GLOBAL + "optim: {lr: fast}",
         "optim.lr=fast: must be a number above 0 and below 1000; correct it in its config file"),
        (GLOBAL + "defaults: [override /model: simple_cn]", "...not find 'model/simple_cn'..."),
        ("42", "experiment=mine: ..."),
    ],
)  # fmt: skip
def test_a_key_in_a_file_that_has_no_effect_is_a_mistake(train, tmp_path, content, expected):
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(content)
    line = train("--config-dir", str(folder.parent), "experiment=mine").line()
    assert matches(line, f"error: {expected}"), line


@pytest.mark.parametrize(
    "content",
    ["width: 0.5\noptim: {lr: '${width}'}", "own: {lr: 0.5}\noptim: {lr: '${own.lr}'}",
     "own: {momentum: 0.5}\nmodel: {net: {momentum: '${own}'}}",
     "optim: {rate: 0.5, optimizer: {lr: '${..rate}'}}",
     "data: {augment: shift}\ntrainer: {detect_anomaly: true}\ncallbacks: {x: null}",
     "defaults: [override /optim: lenet5_1998]\noptim: {scheduler: null}"],
)  # fmt: skip
def test_a_key_in_a_file_that_is_used_is_no_mistake(train, tmp_path, content):
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(GLOBAL + content)
    answer = train("--config-dir", str(folder.parent), "experiment=mine")
    assert answer.started, answer.err


def test_a_primary_config_of_a_user_is_checked_too(train, tmp_path):
    words = ["--config-dir", str(tmp_path), "--config-name", "mine"]
    for content, expected in {
        "hydra: {run: {dir: x}}": "hydra: Hydra's own keys have no effect here",
        "sed: 3": "sed: has no effect, since nothing uses it; did you mean seed?",
    }.items():
        (tmp_path / "mine.yaml").write_text(f"defaults: [train, _self_]\n{content}")
        assert expected in train(*words).line()
    (tmp_path / "mine.yaml").write_text("defaults: [train, _self_]\nseed: 3")
    assert train(*words).started


def test_a_file_of_a_user_is_never_hidden_by_ours(train, tmp_path):
    ours = CONF / "optim" / "lenet5.yaml"
    (tmp_path / "optim").mkdir()
    (tmp_path / "optim" / "lenet5.yaml").write_text(ours.read_text().replace("0.02", "0.015"))
    line = train("--config-dir", str(tmp_path)).line()
    assert f"{tmp_path}/optim/lenet5.yaml: {ours} has the same name and would be used; r" in line
    shutil.copy(CONF / "train.yaml", tmp_path)  # then the whole folder has precedence
    assert compose(config_dirs=[str(tmp_path)]).optim.lr == 0.015
    assert compose("optim=simple_cnn", config_dirs=[str(tmp_path)]).optim.lr != 0.015


def test_an_interpolation_that_fails_in_a_file_is_named(train, tmp_path):
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\nsweep:\n  search:\n    params: {optim.lr: {high: '${nope}'}}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    line = train("--config-dir", str(tmp_path), "experiment=mine").line()
    key = "sweep.search.params.optim.lr.high"
    assert (
        line == f"error: {key}=${{nope}}: Interpolation key 'nope' not found; try {key}=<value>\n"
    )


def test_a_config_that_has_changed_is_read_again(tiny_config_dir):
    file = tiny_config_dir / "data" / "tiny.yaml"
    for size in (16, 32):
        file.write_text(re.sub("batch_size: .*", f"batch_size: {size}", file.read_text()))
        assert compose("data=tiny", config_dirs=[str(tiny_config_dir)]).data.batch_size == size


@pytest.mark.parametrize(
    "command",
    ["", "++data_dir=a ++optim.lr=1",
     "run_dir=a/b seed=0 trainer=cpu data.augment=none optim.lr=1 trainer.deterministic=warn",
     "optim.clip_norm=null optim.scheduler=null optim.epochs=1 data.val_size=59999",
     "model=lenet5_relu 'optim.scheduler={_target_:a.B,_partial_:true,steps:{c:1}}'",
     "-m model=lenet5_relu 'optim.scheduler={_target_:a.B,c:1},{_target_:a.B,c:2}'",
     *(f"experiment={path.stem}" for path in sorted(CONF.glob("experiment/*.yaml"))
       if not path.stem.startswith(("claim_", "record_", "search_")))],
)  # fmt: skip
def test_valid_commands_are_not_refused(train, command):
    assert train(*shlex.split(command)).started


def test_shell_completion_prints_a_script_or_one_line(train):
    answer = train("--shell-completion", "install=bash")
    if sys.version_info[:2] != (3, 14):
        assert (answer.code, answer.err) == (0, "") and "complete -o" in answer.out
    else:  # which Hydra 1.3 does not support
        (line,) = answer.err.splitlines()
        assert answer.code == 2 and line.endswith("; try another version")


def test_help_names_all_groups_and_shows_examples_that_work(train):
    answer = train("--help")
    assert answer.code == 0 and answer.err == "" and answer.left == []
    groups = {path.parent.name for path in CONF.glob("*/*.yaml")}
    assert groups >= {"model", "data", "optim", "trainer"}
    for group in groups:
        choices = ", ".join(sorted(path.stem for path in (CONF / group).glob("*.yaml")))
        assert re.search(rf"^{group}: {choices}$", answer.out, re.M), group

    examples = re.findall(rf"^ +python {re.escape(str(TRAIN))} (.+)$", answer.out, re.M)
    assert len(examples) == len(set(examples)) == 6
    run = train.folder / "outputs" / "lenet5-mnist" / "latest"  # one example resumes a run
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(train("--cfg", "job", "--resolve").out)
    for example in examples:
        assert train(*shlex.split(example), CUDA_VISIBLE_DEVICES="0").started, example


def test_cfg_job_prints_every_key_without_torch(train):
    answer = train("--cfg", "job", "seed=7")
    assert answer.code == 0 and answer.err == "" and answer.left == []
    for text in ("seed: 7", "data_dir: null", "batch_size: ${optim.batch_size}", "val_size: null"):
        assert re.search(rf"^ *{re.escape(text)}$", answer.out, re.M), text
    assert "\nestimate: true\n" in train("--cfg", "job", "--estimate").out


def test_windows_is_refused_in_one_line():
    program = "import sys; sys.platform = 'win32'; import classic_cnns"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert line.startswith("error: Windows is not supported; install WSL ")


def test_a_stored_config_with_too_many_classes_is_refused():
    with pytest.raises(
        UserError, match="x: data.num_classes=1000000000: must be at most 100000 in a"
    ):
        check_stored({"model": {}, "data": {"num_classes": 10**9}}, "x")


def test_a_path_that_hydra_takes_for_a_number_is_a_text():
    config = compose("run_dir=2026_11_22", "name=1.50", "data_dir=007")
    assert (config.run_dir, config.name, config.data_dir) == ("2026_11_22", "1.50", "007")


def test_any_text_can_be_the_value_of_an_override():
    texts = ["it's", r"it\'s", r"C:\folder\\", r"\\'", "a,b", "'", "", r"['x\'', 'y']"]
    texts += [quoted(text) for text in texts]  # as in varied=['name=\'it\\\'s\'']
    for text in texts:
        assert parse_word(f"name={quoted(text)}").value() == text
        assert parse_word(f"varied=[{quoted(text)},{quoted(text)}]").value() == [text, text]


@pytest.mark.parametrize("key", ["run_dir", "data_dir", "resume", "init_from"])
def test_a_name_that_is_too_long_is_reported_in_one_line(train, key):
    assert train(f"{key}={300 * 'a'}").line().endswith("File name too long; try another folder\n")


def test_a_command_works_without_stdout_and_stderr():
    words = [sys.executable, str(TRAIN), "--cfg", "job"]
    for closed, code in (("", 0), ("model=x", 2)):
        line = f"{shlex.join(words)} {closed} >&- 2>&-"
        assert subprocess.run(["sh", "-c", line]).returncode == code


def test_a_folder_does_not_make_the_standard_library_trusted(tmp_path):
    for name in ("code", "mine"):
        (tmp_path / name).mkdir()
    (tmp_path / "file.py").touch()
    (tmp_path / "joblib.yaml").touch()  # not a module, unlike the package of this name
    packages = Composer([tmp_path], trusted=["code", "torch"]).packages
    assert is_trusted("mine.Net", packages) and not is_trusted("mine.Net")
    assert is_trusted("file.Net", packages) and not is_trusted("joblib.load", packages)
    assert not is_trusted("code.interact", packages)
    assert is_trusted("torch.nn.ReLU") and not is_trusted("torch.hub.load", packages)
    assert not is_trusted("classic_cnns.model.missing.Net")


@pytest.mark.parametrize("argument", ["--help", "--cfg=job", "optim.lr=-1", "lr=-1"])
def test_help_and_mistakes_take_at_most_1_5_seconds(server_without_torch, tmp_path, argument):
    def seconds() -> float:
        """Of computation by all ended child processes: a busy machine hardly changes it."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before = seconds()
    command, env = [sys.executable, TRAIN, argument], server_without_torch.environment
    answer = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True)
    assert seconds() - before < 1.0  # of 1.5 by the clock
    mistake = not argument.startswith("--")
    assert answer.returncode == (2 if mistake else 0)
    assert answer.stderr.count(b"\n") == mistake and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["train.py", "--help"], ["train.py", "--cfg=job"]])
def test_a_command_ends_silently_if_nobody_reads_its_output(tmp_path, words):
    command = [sys.executable, SRC / words[0], *words[1:]]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()  # as `head` does when it has read enough
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE
