"""A small trained run, and damaged, wrong and malicious files."""

import os
import shutil
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image

from classic_cnns import compose, train
from tests import golden

# Configs that try to execute code or read the environment, by the name of their run.
TARGETS = {
    "system": {"model.net": {"_target_": "os.system", "command": "touch executed"}},
    "hub": {
        "model.net": {
            "_target_": "torch.hub.load", "repo_or_dir": "hub", "model": "net", "source": "local",
        }
    },
    "numpy": {"model.loss": {"_target_": "numpy.load", "file": "x.npy", "allow_pickle": True}},
    "partial": {"optim.optimizer": {"_target_": "functools.partial", "_args_": ["os.system"]}},
    "inner": {"data.augmentations.none": [{"_target_": "builtins.eval", "_args_": ["1"]}]},
    "process": {"callbacks.x": {"_target_": "classic_cnns.trainer.processes.start"}},
    "chain": {"model.net": {"_target_": "classic_cnns.model.lenet5.torch.hub.load"}},
    "within": {"model.net": {"_target_": "torch.nn.Module.torch.hub.load"}},
    "lower": {"model.net": {"_target_": "torch.nn.utils.rnn.pack_sequence"}},
    "trainer": {"trainer": {"_target_": "subprocess.run", "args": ["touch", "executed"]}},
    "own": {"model.net": {"_target_": "own_part.Net"}, "config_dirs": ["own"]},
    "env": {"name": "${oc.env:HOME}"},
    "decode": {"data.root": "${oc.decode:${oc.env:HOME}}"},
    "started": {"model.input.low": "${started:}"},
    "folders": {"data.num_classes": "${class_folders:/}"},
}  # fmt: skip


class ExecuteOnLoad:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch executed",)


def alias_bomb() -> bytes:
    """A few hundred bytes of YAML that expand to 10^9 values by aliases."""
    rows = ["a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    return "\n".join([*rows, "model: *a8"]).encode()


def write(folder: Path) -> None:
    golden.make_data(folder)
    run = folder / "run"
    words = [*golden.words("lenet5", folder), f"run_dir={run}", "logger=null"]
    train(compose(*words, config_dirs=[str(folder / "conf")]))
    config = OmegaConf.load(run / "config.yaml")
    best = run / "checkpoints" / "best.ckpt"

    for name, values in TARGETS.items():
        evil = folder / "evil" / name
        shutil.copytree(run, evil)
        changed = config.copy()
        for key, value in values.items():
            OmegaConf.update(changed, key, value, merge=False, force_add=True)
        OmegaConf.save(changed, evil / "config.yaml")
    for package, text in (("own", "own_part.py"), ("hub", "hubconf.py")):
        (folder / package).mkdir()
        (folder / package / text).write_text("open('executed', 'w')\n")

    for name, text in (("bytes", b"\x00\xff\x80"), ("list", b"[1, 2]"), ("text", b"a: [b"),
                       ("laughs", alias_bomb()), ("deep", b"a: " + 5000 * b"[" + 5000 * b"]"),
                       ("nested", b"a: " + 50 * b"{a: " + 50 * b"}"), ("long", b"a: b\n" * 10**6),
                       ("groups", b"model: 5\ndata: {}\ntrainer: {}\noptim: {}"),
                       ("empty", b"")):  # fmt: skip
        (folder / "configs" / name / "checkpoints").mkdir(parents=True)
        (folder / "configs" / name / "config.yaml").write_bytes(text)
        shutil.copy(best, folder / "configs" / name / "checkpoints")
    shutil.copytree(run, folder / "new", ignore=shutil.ignore_patterns("checkpoints"))
    (folder / "outside").mkdir()
    (folder / "outside" / "latest.txt").write_text("../run\n")

    state = torch.load(best, weights_only=True)
    target = {"hyper_parameters": {**state["hyper_parameters"], "model": {
        "net": {"_target_": "os.system", "command": "touch executed"}}}}  # fmt: skip
    other = {"state_dict": {"net.weight": torch.zeros(3)}}
    nested_list: list = ["ha"] * 10
    for _ in range(9):
        nested_list = [nested_list] * 10  # the same list ten times, also in the file
    weights_only = {"state_dict": state["state_dict"]}
    huge = {"hyper_parameters": {**state["hyper_parameters"], "x": nested_list}}
    start = {"_target_": "classic_cnns.trainer.processes.start",
             "command": ["touch", str(folder / "executed_tuple")], "environment": {}}  # fmt: skip
    tuples = {"hyper_parameters": {**state["hyper_parameters"], "model": {
        "net": {"_target_": "torch.nn.Sequential", "_args_": (start,)}}}}  # fmt: skip
    large = {"preprocessing": state["preprocessing"] | {"image_size": 60_000}}
    checkpoints = {"foreign": {"model": torch.zeros(3)}, "alone": weights_only,
                   "tuple": state | tuples, "large": state | large,
                   "laughs": state | huge,
                   "pickle": {"state_dict": {}, "x": ExecuteOnLoad()}, "target": state | target,
                   "misfit": state | other}  # fmt: skip
    for name, value in checkpoints.items():
        torch.save(value, folder / f"{name}.ckpt")
        shutil.copytree(run, folder / "with" / name)
        shutil.copy(folder / f"{name}.ckpt", folder / "with" / name / "checkpoints" / "best.ckpt")
        shutil.copy(folder / f"{name}.ckpt", folder / "with" / name / "checkpoints" / "last.ckpt")
    layers = [{"_target_": "torch.nn.Flatten"}] + 6 * [
        {"_target_": "torch.nn.Linear", "in_features": 10**6, "out_features": 10**6}
    ]
    alexnet = compose("model=alexnet", "data=cifar10", "model.input.fit=resize").model.net
    nets = {"wide": OmegaConf.to_container(alexnet, resolve=True) | {"channels": 5 * [10**5]},
            "long": {"_target_": "torch.nn.Sequential", "_args_": layers},
            "deep": {"_target_": "classic_cnns.model.simple_cnn.SimpleCNN", "num_classes": 10,
                     "in_channels": 1, "norm": "none", "extra_convs": 10**9},
            "copies": {"_target_": "torch.nn.Transformer",
                       "num_encoder_layers": 10**9}}  # fmt: skip
    for name, net in nets.items():  # with terabytes of weights
        shutil.copytree(run, folder / "huge" / name)
        changed = config.copy()
        changed.model.net = net
        OmegaConf.save(changed, folder / "huge" / name / "config.yaml")
        target = {"hyper_parameters": OmegaConf.to_container(changed)}
        torch.save(state | target, folder / f"{name}.ckpt")
    shutil.copytree(run, folder / "huge" / "images")
    changed = config.copy()
    changed.model.input.size = 60_000
    OmegaConf.save(changed, folder / "huge" / "images" / "config.yaml")
    with zipfile.ZipFile(folder / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("archive/data.pkl", bytes(10**8))
    (folder / "cut.ckpt").write_bytes(best.read_bytes()[:5000])
    (folder / "text.ckpt").write_text("weights")
    (folder / "empty.ckpt").touch()

    Image.fromarray(np.zeros((28, 28), np.uint8)).save(folder / "digit.png")
    (folder / "cut.png").write_bytes((folder / "digit.png").read_bytes()[:50])
    (folder / "text.png").write_text("a picture")
    (folder / "empty.png").touch()
    (folder / "nothing").mkdir()
    (folder / "around").mkdir()
    (folder / "around" / "again").symlink_to(folder / "around")
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + head
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    png += struct.pack(">I", zlib.crc32(chunk)) + struct.pack(">I", 0) + b"IDAT" + bytes(4)
    (folder / "bomb.png").write_bytes(png)
