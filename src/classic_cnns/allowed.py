"""What a config may hold: ranges in one table, the kind of a value from the YAML files.

Torch is not imported: a mistake must answer at once.
"""

from collections.abc import Callable, Iterable, Iterator
from math import inf
from typing import Any, NamedTuple

from classic_cnns.devices import check_devices
from classic_cnns.errors import UserError


class Rule(NamedTuple):
    allowed: str
    holds: Callable[[Any], bool]
    example: Any = None  # proposed where the YAML file's own value does not hold


def whole(low: int, high: float = inf) -> Rule:
    limits = f"of at least {low}" if high == inf else f"{low} to {high}"
    return Rule(f"a whole number {limits}", lambda x: type(x) is int and low <= x <= high, low)


def number(low: float, high: float = inf, above: bool = False) -> Rule:
    limits = f"{'above' if above else 'of at least'} {low:g}"
    limits += f" and below {high:g}" if high < inf else ""

    def holds(x: Any) -> bool:
        return type(x) in (int, float) and (x > low if above else x >= low) and x < high

    return Rule(f"a number {limits}", holds)


def one_of(*names: Any) -> Rule:
    return Rule(f"one of {', '.join(map(str, names)).lower()}", lambda x: x in names)


def null_or(rule: Rule) -> Rule:
    return Rule(f"{rule.allowed}, or null", lambda x: x is None or rule.holds(x), rule.example)


def fact(value: Any) -> Rule:
    return Rule(f"{text(value)}, a fact of the data set", lambda x: x == value)


KINDS = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a text",
    list: "a list", dict: "a group of keys",
}  # fmt: skip


def same_kind(example: Any) -> Rule:
    """A value of the kind that the YAML file holds; a fraction may be given as a whole number."""
    if example is None:
        return Rule("anything", lambda x: True)
    kinds = (int, float) if type(example) is float else (type(example),)
    return Rule(KINDS[type(example)], lambda x: type(x) in kinds)


# Rules of keys whose kind alone does not say what they allow.
FOLDER = null_or(Rule("a folder", lambda x: type(x) in (str, int, float)))  # 5 is a name too
CHANNELS = Rule(
    "five whole numbers of at least 1, as in [96,256,384,384,256]",
    lambda x: type(x) is list and len(x) == 5 and all(type(n) is int and n > 0 for n in x),
)
VARIED = Rule("a list of key=value", lambda x: type(x) is list and all("=" in str(y) for y in x))
RULES = {
    FOLDER: "data_dir data.data_dir run_dir resume sweep.dir",
    VARIED: "varied",
    CHANNELS: "model.net.channels",
    whole(0, 2**63 - 1): "seed",
    whole(0): "model.net.extra_convs optim.patience",
    whole(1): """
        data.batch_size data.eval_batch_size model.input.size model.net.conv1_kernel
        model.net.conv1_stride model.net.hidden optim.batch_size optim.epochs sweep.cpus_per_rank
        sweep.max_jobs trainer.devices trainer.log_every_n_steps trainer.max_epochs
        trainer.num_nodes""",
    whole(1, 2): "model.net.towers",
    null_or(whole(0)): "data.workers",
    null_or(whole(1)): "sweep.parallel",
    number(0, 1): "model.net.dropout optim.momentum",
    number(0, above=True): "model.net.weight_std optim.mu",
    number(0, 1000, above=True): "optim.bias_lr optim.lr",
    null_or(number(0, above=True)): "model.loss.j optim.clip_norm sweep.time_limit",
    null_or(same_kind({})): "optim.scheduler",
    one_of("pad", "crop", "resize"): "model.input.fit",
    one_of("auto", "cpu", "gpu"): "trainer.accelerator",
    one_of("ddp", "two_towers"): "trainer.strategy",
    # bf16-true is missing: torch 2.11 moves no weight with a fused SGD on a CPU.
    one_of("auto", "32-true", "64-true", "bf16-mixed"): "trainer.precision",
    one_of(True, False, "warn"): "trainer.deterministic",
}
# Words of model.net, each of which may stand in the place of another one of its row.
WORDS = (
    ("relu", "tanh"),
    ("none", "batch", "torch"),
    ("table", "full"),
    ("average", "max"),
    ("overlapping", "non_overlapping"),
)
FACTS = tuple(
    f"data.{name}"
    for name in ("dataset", "channels", "size", "num_classes", "class_names", "sha256")
)


def rules(default: dict) -> dict[str, Rule]:
    """What a key allows, where its kind alone does not say it."""
    found = {key: rule for rule, keys in RULES.items() for key in keys.split()}
    found["data.train_size"] = whole(2, default["data"].get("train_size", inf))
    for key, value in leaves(default):
        if key.startswith(FACTS):
            found[key] = fact(value)
        elif key.startswith("optim.weight_decay"):  # one for all layers, or one for each
            found[key] = number(0)
        elif key.startswith("model.net."):
            found.update((key, one_of(*words)) for words in WORDS if value in words)
    return found


def relations(config: dict) -> dict[str, Rule]:
    """What a key allows beside the other keys, whose values hold by themselves."""
    data, fit = config["data"], config["model"]["input"]["fit"]
    patches = ("centre", "nine", "ten") if fit == "crop" else ("centre",)
    return {
        "data.val_size": whole(1, data.get("train_size", 2) - 1),
        "data.augment": one_of(*data.get("augmentations", ())),
        "data.test_patches": one_of(*patches)._replace(
            allowed=f"one of {', '.join(patches)} with model.input.fit={fit}", example="centre"
        ),
    }


def check_values(config: dict, default: dict, copies: Iterable[str] = ()) -> None:
    """Raise UserError for the first value that is not allowed, naming key, value and a way out.

    `copies` take their value from another key by interpolation, so that one is named before them.
    """
    examples = dict(leaves(default, groups=True))
    values = sorted(leaves(config), key=lambda leaf: leaf[0].startswith(tuple(copies)))
    kinds = {key: same_kind(examples.get(key)) for key, _ in values}
    check_rules(values, kinds | rules(default), examples)
    check_rules(values, relations(config), examples)
    if config["resume"] is None:  # an earlier run brings devices of its own
        check_devices(config)
    check_fit(config["model"]["input"], config["data"])


def check_fit(wanted: dict, data: dict) -> None:
    """Raise UserError where the images of the data set are not what the model's `input` wants."""
    side, has, fit = wanted["size"], data["size"], wanted["fit"]
    takes, channels = wanted.get("channels"), data["channels"]
    if takes not in (None, channels):
        raise UserError(
            f"data={data['dataset']}: has images of {channels} channels and this model takes "
            f"{takes}; try data=mnist or data=fashion_mnist, or another model"
        )
    if fit != "resize" and (side > has if fit == "crop" else side < has):
        raise UserError(
            f"model.input.size={side}: images of {has} pixels cannot be "
            f"{'cropped' if fit == 'crop' else 'padded'} to it; try model.input.fit=resize"
        )
    before = side if fit == "pad" else has
    for distortion in data["augmentations"][data["augment"]]:
        name, why = distortion["_target_"].rpartition(".")[2], ""
        if name == "RandomCrop" and distortion["size"] > before:
            why = f"crops of {distortion['size']} pixels do not fit into images of {before}"
        elif name == "RandomCrop" and distortion["size"] == before:
            why = f"images of {before} pixels lose nothing in crops of {before}"
        elif name == "ColourNoise" and channels != 3:
            why = f"images of {channels} channel have no colours"
        if why:
            raise UserError(f"data.augment={data['augment']}: {why}; try data.augment=none")


def check_rules(values: list[tuple[str, Any]], ruled: dict[str, Rule], examples: dict) -> None:
    for key, value in values:
        rule = ruled.get(key)
        if rule and not rule.holds(value):
            works = examples.get(key) if rule.holds(examples.get(key)) else rule.example
            way_out = f"leave {key} out" if type(works) is dict else f"try {key}={text(works)}"
            raise UserError(f"{key}={text(value)}: must be {rule.allowed}; {way_out}")


def text(value: Any) -> str:
    """The value as the command line takes it."""
    return str(value).lower() if type(value) is bool else "null" if value is None else str(value)


def leaves(values: dict, prefix: str = "", groups: bool = False) -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values; with `groups` also the keys that hold other keys."""
    for key, value in values.items():
        inner = isinstance(value, dict) and value
        if inner:
            yield from leaves(value, f"{prefix}{key}.", groups)
        if groups or not inner:
            yield f"{prefix}{key}", value
