"""What a config may hold: ranges in one table, the kind of a value from the YAML files.

Torch is not imported: a mistake must answer at once.
"""

from collections.abc import Callable, Iterable, Iterator
from math import isfinite
from typing import Any, NamedTuple

from classic_cnns.devices import check_devices
from classic_cnns.errors import UserError


class Rule(NamedTuple):
    allowed: str
    holds: Callable[[Any], bool]
    example: Any = None  # proposed where the YAML file's own value does not hold


def whole(low: int, high: int | None = None) -> Rule:
    text = (
        f"a whole number of at least {low}" if high is None else f"a whole number {low} to {high}"
    )
    return Rule(text, lambda x: type(x) is int and low <= x and (high is None or x <= high), low)


def number(low: float, high: float = float("inf"), above: bool = False) -> Rule:
    text = f"a number {'above' if above else 'of at least'} {low:g}"
    text += f" and below {high:g}" if isfinite(high) else ""
    return Rule(
        text,
        lambda x: type(x) in (int, float) and (x > low if above else x >= low) and x < high,
    )


def one_of(*names: Any) -> Rule:
    return Rule(f"one of {', '.join(map(str, names)).lower()}", lambda x: x in names)


def null_or(rule: Rule) -> Rule:
    return Rule(f"{rule.allowed}, or null", lambda x: x is None or rule.holds(x), rule.example)


def fact(value: Any) -> Rule:
    return Rule(f"{value}, a fact of the data set", lambda x: x == value)


def same_kind(example: Any) -> Rule:
    """A value of the kind that the YAML file holds; a fraction may be given as a whole number."""
    kinds: dict[type, tuple[str, tuple[type, ...]]] = {
        bool: ("true or false", (bool,)),
        int: ("a whole number", (int,)),
        float: ("a number", (int, float)),
        str: ("a text", (str,)),
        list: ("a list", (list,)),
        dict: ("a group of keys", (dict,)),
    }
    if example is None:
        return Rule("anything", lambda x: True)
    allowed, types = kinds[type(example)]
    return Rule(allowed, lambda x: type(x) in types)


def rules(default: dict) -> dict[str, Rule]:
    """What a key allows, where its kind alone does not say it."""
    folder = null_or(Rule("a folder", lambda x: type(x) in (str, int, float)))  # 5 is a name too
    facts = ("dataset", "channels", "size", "num_classes", "test_size", "sha256")
    data = {f"data.{name}": value for name, value in default["data"].items() if name in facts}
    decays = default["optim"].get("weight_decay")  # of all layers, or of each
    layers = decays if isinstance(decays, dict) else {}
    return {key: fact(value) for key, value in leaves(data)} | {
        "seed": whole(0, 2**63 - 1),
        "data_dir": folder,
        "data.data_dir": folder,
        "run_dir": folder,
        "resume": folder,
        "varied": Rule(
            "a list of key=value", lambda x: type(x) is list and all("=" in str(y) for y in x)
        ),
        "sweep.dir": folder,
        "sweep.parallel": null_or(whole(1)),
        "sweep.time_limit": null_or(number(0, above=True)),
        "sweep.max_jobs": whole(1),
        "sweep.cpus_per_rank": whole(1),
        "data.train_size": whole(2, default["data"].get("train_size")),
        "data.batch_size": whole(1),
        "data.eval_batch_size": whole(1),
        "data.workers": null_or(whole(0)),
        "model.input.size": whole(1),
        "model.input.fit": one_of("pad", "crop", "resize"),
        "model.net.channels": Rule(
            "five whole numbers of at least 1, as in [96,256,384,384,256]",
            lambda x: type(x) is list and len(x) == 5 and all(type(n) is int and n > 0 for n in x),
        ),
        "model.net.hidden": whole(1),
        "model.net.conv1_kernel": whole(1),
        "model.net.conv1_stride": whole(1),
        "model.net.dropout": number(0, 1),
        "model.net.weight_std": number(0, above=True),
        "model.net.extra_convs": whole(0),
        "model.loss.j": number(0, above=True),
        "optim.lr": number(0, 1000, above=True),
        "optim.bias_lr": number(0, 1000, above=True),
        "optim.momentum": number(0, 1),
        "optim.weight_decay": same_kind(layers) if layers else number(0),
        **{f"optim.weight_decay.{layer}": number(0) for layer in layers},
        "optim.clip_norm": null_or(number(0, above=True)),
        "optim.batch_size": whole(1),
        "optim.epochs": whole(1),
        "optim.scheduler": null_or(same_kind({})),
        "trainer.devices": whole(1),
        "trainer.num_nodes": whole(1),
        "trainer.strategy": one_of("ddp", "two_towers"),
        "trainer.max_epochs": whole(1),
        "trainer.accelerator": one_of("auto", "cpu", "gpu"),
        "trainer.precision": one_of("auto", "32-true", "64-true", "bf16-mixed", "bf16-true"),
        "trainer.deterministic": one_of(True, False, "warn"),
        "trainer.log_every_n_steps": whole(1),
    }


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
