"""Allowed values of a config: ranges in one table, types from the YAML files.

Types are not repeated here: a value must have the type that it has in its YAML file.
"""

import ast
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from itertools import chain
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from classic_cnns import UserError
from classic_cnns.files import flatten
from classic_cnns.trainer.devices import device_conflicts, uses_gpus


class Rule(NamedTuple):
    allowed: str
    holds: Callable[[Any], bool]
    example: Any = None  # proposed if the YAML file's value is not valid here


def integer(low: int, high: float = inf) -> Rule:
    limits = f"of at least {low}" if high == inf else f"{low} to {high}"
    return Rule(f"a whole number {limits}", lambda x: type(x) is int and low <= x <= high, low)


def number(high: float = inf, above: bool = False) -> Rule:
    limits = f"{'above' if above else 'of at least'} 0"
    limits += f" and below {high:g}" if high < inf else ""

    def holds(x: Any) -> bool:
        return type(x) in (int, float) and (x > 0 if above else x >= 0) and x < high

    return Rule(f"a number {limits}", holds)


def one_of(*names: Any) -> Rule:
    return Rule(f"one of {', '.join(map(str, names)).lower()}", lambda x: x in names)


def null_or(rule: Rule) -> Rule:
    return Rule(f"{rule.allowed}, or null", lambda x: x is None or rule.holds(x), rule.example)


def constant(value: Any) -> Rule:
    return Rule(f"{as_word(value)}, as the data set has it", lambda x: x == value)


KINDS = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a text",
    list: "a list", dict: "a group of keys",
}  # fmt: skip


def same_kind(example: Any) -> Rule:
    """A value of the type that the YAML file has; a float may be given as a whole number."""
    if example is None:
        return Rule("anything", lambda x: True)
    kinds = (int, float) if type(example) is float else (type(example),)
    return Rule(KINDS[type(example)], lambda x: type(x) in kinds)


# Rules for keys whose type alone does not define what is allowed.
FOLDER = null_or(Rule("a folder", lambda x: type(x) in (str, int, float)))  # may be named 5
CHANNELS = Rule(
    "five whole numbers of at least 1, as in [96,256,384,384,256]",
    lambda x: type(x) is list and len(x) == 5 and all(type(n) is int and n > 0 for n in x),
)
CUTS = Rule(
    "a list of epochs, as in [15,25]",
    lambda x: type(x) is list and all(type(n) in (int, float) and n > 0 for n in x),
)
DEVICES = Rule(
    "a whole number of at least 1, auto, or a list of GPUs",
    lambda x: (
        (type(x) is int and (x >= 1 or x == -1))
        or x == "auto"
        or (type(x) is list and x != [] and all(type(n) is int and n >= 0 for n in x))
    ),
    1,
)
STRATEGY = Rule("a name that Lightning knows, or a node with _target_", lambda x: bool(x), "auto")
VARIED = Rule("a list of key=value", lambda x: type(x) is list and all("=" in str(y) for y in x))
NAME = null_or(
    Rule(
        "a name for a folder in outputs/, without '..' and not from '/' on",
        lambda x: type(x) in (str, int) and ".." not in str(x) and str(x)[:1] not in ("", "/"),
        "null",
    )
)
RULES = {
    NAME: "name",
    FOLDER: "data_dir data.data_dir run_dir resume init_from sweep.dir",
    VARIED: "varied",
    CHANNELS: "model.net.channels",
    CUTS: "optim.cuts optim.scheduler.after",
    DEVICES: "trainer.devices",
    STRATEGY: "trainer.strategy",
    integer(0, 2**63 - 1): "seed",
    integer(0): "model.net.extra_convs optim.patience",
    integer(1): """
        data.eval_batch_size model.net.conv1_kernel
        model.net.conv1_stride model.net.hidden optim.batch_size optim.epochs sweep.cpus_per_rank
        sweep.max_jobs trainer.log_every_n_steps trainer.num_nodes trainer.accumulate_grad_batches
        """,
    integer(1, 2): "model.net.towers",
    one_of(3, 5): "model.net.extra_kernel",
    integer(1, 100): "data.jpeg_quality",
    one_of("raw", "jpeg"): "data.store",
    Rule("a whole number of at least 1, or -1 for no end", lambda x: type(x) is int and x != 0
         and x >= -1, 1): "trainer.max_epochs optim.schedule_epochs",
    null_or(integer(0)): "data.workers",
    null_or(integer(1)): "sweep.parallel data.val_size model.input.size "
    "callbacks.checkpoint.steps",
    null_or(one_of(True, False)): "top5_error trainer.channels_last",
    number(1): "model.net.dropout optim.momentum",
    number(above=True): "model.net.weight_std optim.mu",
    number(1000, above=True): "optim.bias_lr optim.lr",
    null_or(number()): "trainer.limit_test_batches trainer.limit_val_batches",
    null_or(number(above=True)): "model.loss.j optim.clip_norm sweep.time_limit "
    "trainer.gradient_clip_val callbacks.checkpoint.minutes",
    null_or(same_kind({})): "optim.scheduler sweep.search sweep.search.params "
    "sweep.search.pruner sweep.search.sampler",
    one_of("pad", "crop", "resize"): "model.input.fit",
    one_of("trainable", "average", "max"): "model.net.subsampling",
    one_of("auto", "cpu", "gpu", "cuda", "mps"): "trainer.accelerator",
    one_of("auto", "32-true", "64-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true"):
        "trainer.precision",
    one_of(True, False, "warn"): "trainer.deterministic",
    null_or(one_of("cudagraphs", "inductor")): "trainer.compile",
    one_of("minimize", "maximize"): "sweep.direction",
}  # fmt: skip
# Options in model.net: the name of a key, whose value may be replaced by another one of its row.
OPTIONS = (
    ("activation", "relu", "tanh", "sigmoid"),
    ("norm", "none", "batch", "torch"),
    ("c3", "table", "full"),
    ("rbf", "fixed", "learned"),
    ("pool", "average", "max"),
    ("pool", "overlapping", "non_overlapping"),
    ("pooling", "average", "max"),
)
CONSTANTS = tuple(
    f"data.{name}"
    for name in ("dataset", "channels", "size", "num_classes", "class_names", "sha256")
)
# Names that users of Lightning and its templates know, and ours.
HABITS = {
    "ckpt_path": "resume", "datamodule": "data", "gpus": "trainer.devices",
    "num_workers": "data.workers", "optimizer": "optim", "output_dir": "run_dir",
    "root": "data=image_folder", "seed_everything": "seed", "task_name": "name",
}  # fmt: skip
# Arguments of Trainer that this program sets itself, and what to use instead.
RESERVED = {
    "callbacks": "callbacks=[default,...] chooses them, and +callbacks.<name>._target_= adds one",
    "logger": "logger=tensorboard, csv, mlflow or wandb chooses it, and logger=null none",
    "default_root_dir": "run_dir=<directory> says where a run is written",
    "enable_checkpointing": "~callbacks.checkpoint leaves checkpoints out",
    "model_registry": "this command uploads no checkpoints to Lightning's cloud",
    "limit_predict_batches": "this command trains and tests, and predicts nothing",
    "barebones": "it measures Lightning alone, without the metrics that a run reports",
}


def rules(default: dict, config: dict) -> dict[str, Rule]:
    """The rules for keys whose type alone does not define what is allowed.

    Some depend on other values of the `config`, which may be wrong themselves.
    """
    own = dict(flatten(default, groups=True))  # a net of the user's own may use the same names
    found = {
        key: rule
        for rule, keys in RULES.items()
        for key in keys.split()
        if not key.startswith("model.net.") or rule.holds(own.get(key))
    }
    data, given = default.get("data") or {}, config["data"]
    found["data.train_size"] = integer(2, data.get("train_size", inf))
    found["data.batch_size"] = integer(1, data.get("train_size", inf))
    for key, value in flatten(default):
        if key.startswith(CONSTANTS) and "sha256" in data:
            found[key] = constant(value)
        elif key.startswith("optim.weight_decay"):  # one value, or one for each layer
            found[key] = number()
        for name, *words in OPTIONS:
            if key == f"model.net.{name}" and value in words:
                found[key] = one_of(*words)
    if "num_classes" in data and "root" in data:
        found["data.num_classes"] = constant(data["num_classes"])
        found["data.channels"] = one_of(1, 3)
    if type(given.get("train_size")) is int:
        found["data.val_size"] = null_or(integer(1, given["train_size"] - 1))
    if type(given.get("augmentations")) is dict:
        found["data.augment"] = one_of(*given["augmentations"])
    if "test_patches" in data and type(wanted := config["model"]["input"]) is dict:
        fit = wanted.get("fit")
        patches = ("centre", "nine", "ten") if fit == "crop" else ("centre",)
        allowed = f"one of {', '.join(patches)} with model.input.fit={fit}"
        found["data.test_patches"] = Rule(allowed, lambda x: x in patches, "centre")
    # The arguments of classes of the user's own may have these names too.
    others = [] if is_ours(data) else ["data."]
    others += ["model."] if "_target_" in default["model"] else []
    return {key: rule for key, rule in found.items() if not key.startswith(tuple(others))}


def is_ours(data: dict) -> bool:
    """Whether the data module of a config is one of this project."""
    return str(data.get("_target_")).startswith("classic_cnns.")


def group(value: Any) -> dict:
    """A group of keys; empty if the value is something else, as classes of the user's may have."""
    return value if type(value) is dict else {}


def check_values(config: dict, default: dict, copies: Iterable[str] = ()) -> None:
    """Raise UserError for the first value that is not allowed, with its key and a valid value.

    `copies` are keys that interpolate others; they are checked last, so that the error names the
    key that was set.
    """
    examples = dict(flatten(default, groups=True))
    ruled = rules(default, config)
    values = flatten(config, groups=True)
    for key, value in sorted(values, key=lambda item: item[0].startswith(tuple(copies))):
        rule, example = ruled.get(key) or same_kind(examples.get(key)), examples.get(key)
        if rule.holds(value):
            continue
        works = example if rule.holds(example) else rule.example
        way_out = f"leave {key} out" if type(works) is dict else f"try {key}={as_word(works)}"
        if type(works) is list and type(value) is str:
            way_out = f"try {key}=[{value}]"
        if value == example and not rule.holds(works):
            way_out = "correct it in its config file"
        raise UserError(f"{key}={as_word(value)}: must be {rule.allowed}; {way_out}")
    for line in chain(conflicts(config, default), device_conflicts(config)):
        raise UserError(line)


def conflicts(config: dict, default: dict) -> Iterator[str]:
    """An error for each value that does not go with another one, or has no effect beside it."""
    data, trainer, net = config["data"], config["trainer"], group(config["model"].get("net"))
    quality = data.get("jpeg_quality")
    if data.get("store") == "raw" and quality != default["data"].get("jpeg_quality"):
        yield f"data.jpeg_quality={quality}: has no effect on raw pixels; add data.store=jpeg"
    if config["init_skip"] and config["init_from"] is None:
        yield (
            f"init_skip={config['init_skip']}: names layers that keep their initial weights, and "
            "needs init_from; try init_from=<run or checkpoint>"
        )
    towers = "TwoTowers" in str(trainer["strategy"])
    if towers and net.get("norm", "none") != "none":
        yield (
            f"model.net.norm={net['norm']}: does not work with towers on two devices; "
            "try model.net.norm=none"
        )
    optimizer = str(group(config["optim"].get("optimizer")).get("_target_"))
    of_paper = {"_target_": "classic_cnns.model.lenet5.LeNet5", "norm": "none"}
    of_paper["subsampling"] = "trainable"
    if optimizer.endswith(".StochasticDiagonalLM") and not of_paper.items() <= net.items():
        yield (
            "optim.optimizer: stochastic diagonal Levenberg-Marquardt is for the RBF units of "
            "LeNet-5 alone, with trainable subsampling and no batch normalisation; try "
            "model=lenet5, or another optim"
        )
    for key, do in (("channels_last", "convert the layers"), ("compile", "call torch.compile")):
        if trainer.get(key) is not None and not net:
            yield (
                f"trainer.{key}={as_word(trainer[key])}: is for the nets of model.net; {do} in "
                "your own LightningModule"
            )
    if trainer["precision"] == "16-mixed":  # its scaling of gradients
        if towers:
            yield (
                "trainer.precision=16-mixed: would scale the gradients of two towers differently; "
                "try trainer.precision=bf16-mixed"
            )
        fused = group(config["optim"].get("optimizer")).get("fused")
        if fused and trainer.get("gradient_clip_val") and uses_gpus(trainer):
            yield (
                "trainer.precision=16-mixed: does not go with a fused optimizer and clipped "
                "gradients; try trainer.precision=bf16-mixed, or optim.optimizer.fused=false"
            )
    if trainer.get("compile") == "cudagraphs" and trainer.get("accumulate_grad_batches", 1) != 1:
        yield (
            "trainer.compile=cudagraphs: overwrites gradients that are accumulated; try "
            "trainer.compile=inductor"
        )
    if trainer.get("compile") and towers:
        yield (
            f"trainer.compile={trainer['compile']}: a net with towers on two devices cannot be "
            "compiled; try trainer.compile=null"
        )
    if trainer.get("use_distributed_sampler") is False and "augmentations" in data:
        yield (
            "+trainer.use_distributed_sampler=false: the ranks always share the batches of this "
            "data set; leave it out"
        )
    if trainer.get("sync_batchnorm") and net.get("norm", "torch") != "torch":
        yield (
            f"+trainer.sync_batchnorm=true: needs torch's layers and this net has "
            f"model.net.norm={net['norm']}; try model.net.norm=torch"
        )
    wanted = group(config["model"].get("input"))
    for lacking in sorted(group(default["model"].get("input")).keys() - wanted.keys()):
        yield f"model.input: has no {lacking}; leave model.input out"
    if is_ours(data):  # else checked with the first batch
        yield from misfits(wanted, data)


def misfits(wanted: dict, data: dict) -> Iterator[str]:
    """An error for each way in which the data set's images do not match the model's `input`."""
    side, has, fit = wanted["size"], data["size"], wanted["fit"]
    takes, channels, folders = wanted.get("channels"), data["channels"], "root" in data
    if takes not in (None, channels):
        others = f"data.channels={takes}" if folders else "data=mnist or data=fashion_mnist"
        yield (
            f"data={data['dataset']}: has images of {channels} channels and this model takes "
            f"{takes}; try {others}, or another model"
        )
    if fit != "resize" and (side > has if fit == "crop" else side < has):
        # An eighth of the longer side for the border or the crop, as for MNIST and for AlexNet.
        verb, size = ("cropped", side * 8 // 7) if fit == "crop" else ("padded", side * 7 // 8)
        yield (
            f"model.input.size={side}: images of {has} pixels cannot be {verb} to it; try "
            f"{f'data.size={size} or ' * folders}model.input.fit=resize"
        )
    before = side if fit == "pad" else has
    for augmentation in data["augmentations"][data["augment"]]:
        if type(augmentation) is not dict or type(augmentation.get("_target_")) is not str:
            yield (
                f"data.augmentations.{data['augment']}: must be a list of parts with _target_; "
                "try data.augment=none"
            )
        name, why = augmentation["_target_"].rpartition(".")[2], ""
        crop = augmentation.get("size") if name == "RandomCrop" else None
        if type(crop) is int and crop > before:
            why = f"crops of {crop} pixels do not fit into images of {before}"
        elif crop == before:
            why = f"a crop of {before} pixels is the whole image"
        elif name == "ColourNoise" and channels != 3:
            why = f"images of {channels} channel have no colours"
        if why:
            yield f"data.augment={data['augment']}: {why}; try data.augment=none"


def check_new_run(config: Any) -> None:
    """Raise UserError for what runs of earlier versions may have, but a new one must not.

    It must not have cuts of the rate that are never reached, nor train on small parts of images
    that validation sees as a whole.
    """
    scheduler = config["optim"].get("scheduler") or {}
    after, epochs = scheduler.get("after") or [0], scheduler.get("epochs")
    ours = scheduler.get("_target_") == "classic_cnns.optim.cuts.cuts"
    if ours and type(epochs) is int and max(after) >= epochs:
        raise UserError(
            f"optim.cuts={after}: must be before the end, optim.epochs={epochs}; "
            f"trainer.max_epochs={epochs} shortens the recipe with its cuts"
        )
    data, wanted = config["data"], config["model"].get("input")
    if not is_ours(data) or "_target_" in config["model"] or wanted["fit"] != "resize":
        return
    for part in data["augmentations"][data["augment"]]:
        is_crop = part["_target_"] == "classic_cnns.data.transforms.RandomCrop"
        if is_crop and 2 * part["size"] <= data["size"]:
            other = "flip" if "flip" in data["augmentations"] else "none"
            raise UserError(
                f"data.augment={data['augment']}: would train on crops of {part['size']} of "
                f"{data['size']} pixels and test on whole images, which model.input.fit=resize "
                f"shrinks; try data.augment={other}"
            )


def check_trainer_argument(word: str, name: str, added: bool) -> None:
    """Raise UserError for an argument that Trainer does not have, or that cannot be given here."""
    known = trainer_arguments()
    if name in RESERVED:
        raise UserError(f"{word}: cannot be given; {RESERVED[name]}")
    if name not in known:
        near = [f"+trainer.{argument}" for argument in get_close_matches(name, known, n=1)]
        near = [HABITS[name]] if name in HABITS else near
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
        raise UserError(f"{word}: Lightning's Trainer has no argument '{name}'; {hint}")
    if not added:
        raise UserError(f"{word}: is not in conf/trainer/; try +{word}")


@cache
def trainer_arguments() -> list[str]:
    """The arguments of Lightning's Trainer, from its source code: importing it takes seconds."""
    spec = find_spec("lightning")
    assert spec and spec.origin
    source = Path(spec.origin).parent / "pytorch" / "trainer" / "trainer.py"
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            return [argument.arg for argument in node.args.kwonlyargs]
    raise AssertionError("Lightning's Trainer has moved")


def as_word(value: Any) -> str:
    """The value in the syntax of the command line."""
    return str(value).lower() if type(value) is bool else "null" if value is None else str(value)
