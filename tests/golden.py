"""Short seeded runs of every recipe, whose final weights `golden.json` contains.

A change that should not affect results must not change `golden.json`. For other changes
`python -m tests.golden` writes it again; `CONTRIBUTING.md` describes the further steps.
"""

import json
import platform
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image

from classic_cnns import compose, train
from tests import forks

STORED = Path(__file__).with_suffix(".json")
TRAIN, VAL, TEST = 160, 40, 40  # images
CIFAR10 = "data=tiny_cifar10"

# The overrides of each recipe. All train for two epochs on one thread.
RECIPES = {
    "lenet5": ["data=tiny_mnist"],
    "lenet5_affine": ["data=tiny_mnist", "data.augment=affine"],
    "lenet5_eq8": ["data=tiny_mnist", "data.augment=none", "model.loss.j=null"],
    "lenet5_1998": ["experiment=lenet5_1998", "data=tiny_mnist", "optim.mu=8"],
    "lenet5_relu": ["model=lenet5_relu", "data=tiny_mnist"],
    "lenet5_relu_fast": ["experiment=lenet5_relu_fast", "data=tiny_mnist"],
    "simple_cnn": ["model=simple_cnn", "data=tiny_mnist", "model.net.norm=batch"],
    "convnet_cifar10": ["model=convnet_cifar10", CIFAR10],
    "convnet_cifar10_18pct": ["model=convnet_cifar10_18pct", CIFAR10],
    "convnet_cifar10_13pct": ["experiment=convnet_cifar10_13pct", CIFAR10],
    "convnet_cifar10_11pct": ["experiment=convnet_cifar10_11pct", CIFAR10],
    "convnet_cifar10_11pct_first": ["experiment=convnet_cifar10_11pct_first", CIFAR10],
    "alexnet_small": ["model=alexnet_small", CIFAR10, "data.augment=shift_flip"],
    "alexnet_cifar10": ["model=alexnet_cifar10", CIFAR10],
    "alexnet_cifar10_fast": [
        # In float32, which processors without bfloat16 would choose, its losses differ by 15 %.
        "experiment=alexnet_cifar10_fast",
        CIFAR10,
        "trainer.precision=bf16-mixed",
    ],
    "alexnet": ["model=alexnet", "data=image_folder", "data.workers=1", "model.net.hidden=64"],
    "ddp": ["data=tiny_mnist", "trainer=ddp"],
    "two_gpu": ["model=alexnet_small", CIFAR10, "trainer=two_gpu"],
}
BATCHES = {"lenet5_1998": 1, "alexnet": 8}  # batch sizes; 32 in the other recipes
TWO_PROCESSES = ("ddp", "two_gpu")
METRICS = [f"{name}/{split}" for split in ("train", "val", "test") for name in ("loss", "error")]


def words(name: str, folder: Path) -> list[str]:
    """The command line of a recipe, for the data sets that `make_data` has written to `folder`."""
    given = RECIPES[name]
    base = ["trainer.accelerator=cpu", "trainer.max_epochs=2", f"data_dir={folder}", "name=golden"]
    base += [f"data.batch_size={BATCHES.get(name, 32)}", "data.eval_batch_size=16"]
    if "data=image_folder" in given:
        base += [f"data.root={folder / 'photos'}"]
    return [*given, *base]


def make_data(folder: Path) -> None:
    """Write tiny data sets as in our cache, their configs `data=tiny_*`, and a folder of photos."""
    random = np.random.RandomState(7)
    (folder / "conf" / "data").mkdir(parents=True)
    for name, shape in (("mnist", (28, 28)), ("cifar10", (3, 32, 32))):
        patterns = random.rand(10, *shape)
        sums = {}
        (folder / name).mkdir()
        for split, count in (("train", TRAIN + VAL), ("test", TEST)):
            labels = random.randint(10, size=count).astype(np.uint8)
            images = 0.7 * patterns[labels] + 0.3 * random.rand(count, *shape)
            for kind, array in (("images", (images * 255).astype(np.uint8)), ("labels", labels)):
                np.save(folder / name / f"{split}_{kind}.npy", array)
                sums[f"{split}_{kind}"] = sha256(array.tobytes()).hexdigest()
        (folder / name / "cache.json").write_text('{"format": 1}')
        sizes = {"train_size": TRAIN + VAL, "val_size": VAL}
        config = {"defaults": [name], **sizes, "sha256": sums}
        OmegaConf.save(config, folder / "conf" / "data" / f"tiny_{name}.yaml")
    for split, count in (("train", 8), ("val", 4)):
        for label in ("cat", "dog"):
            photos = folder / "photos" / split / label
            photos.mkdir(parents=True)
            for number in range(count):
                pixels = random.randint(256, size=(8, 10, 3)).astype(np.uint8)
                image = Image.fromarray(pixels).resize((300, 260), Image.Resampling.NEAREST)
                image.save(photos / f"{number}.png")


def carry_out(name: str, folder: Path, server: forks.Server | None) -> dict:
    """Train a recipe on the data in `folder`; returns a fingerprint of its weights, and metrics.

    `server` starts the recipes with two processes.
    """
    directory = folder / "runs" / name
    given = [*words(name, folder), f"run_dir={directory}", "logger=null"]
    threads = torch.get_num_threads()
    if name in TWO_PROCESSES:
        process = server.start(forks.TRAIN, "--config-dir", folder / "conf", *given, cwd=folder)
        _, err = process.communicate()
        assert process.returncode == 0, err
    else:
        torch.set_num_threads(1)
        try:
            train(compose(*given, config_dirs=[str(folder / "conf")]))
        finally:
            torch.set_num_threads(threads)
    metrics = json.loads((directory / "result.json").read_text())["metrics"]
    return last_weights(directory) | {"metrics": {name: metrics[name] for name in METRICS}}


def last_weights(directory: Path) -> dict:
    """The fingerprint of a run's last checkpoint."""
    path = directory / "checkpoints" / "last.ckpt"
    return fingerprint(torch.load(path, map_location="cpu", weights_only=True))


def fingerprint(checkpoint: dict) -> dict:
    """A hash of the weights, and for other machines the norm of each tensor."""
    state = checkpoint["state_dict"]
    digest = sha256()
    for name in sorted(state):
        digest.update(name.encode() + state[name].cpu().contiguous().numpy().tobytes())
    norms = {name: x.double().norm().item() for name, x in state.items() if x.is_floating_point()}
    return {"sha256": digest.hexdigest(), "norms": norms, "steps": checkpoint["global_step"]}


def machine() -> dict[str, str]:
    """The torch version and processor on which the hashes are valid."""
    names = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    processor = names[0].partition(": ")[2] if names else platform.machine()
    capability = torch.backends.cpu.get_cpu_capability()
    return {"torch": torch.__version__, "processor": f"{processor}, {capability}"}


def stored() -> dict:
    return json.loads(STORED.read_text())


def write() -> None:
    """Train every recipe and write `golden.json`, with a line for each."""
    with TemporaryDirectory() as temporary, forks.Server() as server:
        folder = Path(temporary)
        make_data(folder)
        lines = []
        for name in RECIPES:
            found = carry_out(name, folder, server)
            found["norms"] = {key: float(f"{norm:.9g}") for key, norm in found["norms"].items()}
            lines.append(f"  {json.dumps(name)}: {json.dumps(found)}")
    recipes = ",\n".join(lines)
    STORED.write_text(
        f'{{\n "machine": {json.dumps(machine())},\n "recipes": {{\n{recipes}\n }}\n}}\n'
    )


if __name__ == "__main__":
    write()
