"""What a config may hold: ranges in one table, the kind of a value from the YAML files.

Torch is not imported: a mistake must answer at once.
"""

import os
import sys
from collections.abc import Callable, Iterator
from glob import glob
from math import isfinite
from typing import Any, NamedTuple

from classic_cnns.errors import UserError


class Rule(NamedTuple):
    allowed: str
    holds: Callable[[Any], bool]


def whole(low: int, high: int | None = None) -> Rule:
    text = (
        f"a whole number of at least {low}" if high is None else f"a whole number {low} to {high}"
    )
    return Rule(text, lambda x: type(x) is int and low <= x and (high is None or x <= high))


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
    return Rule(f"{rule.allowed}, or null", lambda x: x is None or rule.holds(x))


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


def rules(config: dict) -> dict[str, Rule]:
    """What each key allows, where its kind alone does not say it."""
    data = config["data"]
    return {
        "seed": whole(0, 2**63 - 1),
        "data.batch_size": whole(1),
        "data.eval_batch_size": whole(1),
        "data.val_size": whole(1, data.get("train_size", 2) - 1),
        "data.augment": one_of(*data.get("augmentations", ())),
        "model.input.fit": one_of("pad"),
        "model.loss.j": number(0, above=True),
        "optim.lr": number(0, 1000, above=True),
        "optim.momentum": number(0, 1),
        "optim.weight_decay": number(0),
        "optim.clip_norm": null_or(number(0, above=True)),
        "optim.batch_size": whole(1),
        "optim.epochs": whole(1),
        "trainer.max_epochs": whole(1),
        "trainer.devices": whole(1, device_count(config["trainer"].get("accelerator", "auto"))),
        "trainer.accelerator": one_of("auto", "cpu", "gpu"),
        "trainer.precision": one_of("32-true", "64-true", "bf16-mixed", "16-mixed", "bf16-true"),
        "trainer.deterministic": one_of(True, False, "warn"),
        "trainer.log_every_n_steps": whole(1),
    }


def check_values(config: dict, default: dict) -> None:
    """Raise UserError for the first value that is not allowed, naming key, value and a way out."""
    ruled, examples = rules(config), dict(leaves(default))
    for key, value in leaves(config):
        rule = ruled.get(key) or same_kind(examples.get(key))
        if not rule.holds(value):
            text = (
                "null" if value is None else str(value).lower() if value in (True, False) else value
            )
            works = str(examples.get(key)).replace("None", "null")
            raise UserError(f"{key}={text}: must be {rule.allowed}; try {key}={works}")
    if config["trainer"].get("accelerator") == "gpu" and not gpu_count():
        raise UserError("trainer.accelerator=gpu: this machine shows no GPU; try trainer=cpu")


def leaves(values: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def gpu_count() -> int:
    """GPUs by their device files; 1 where a machine has one of another make."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    other = sys.platform == "darwin" or os.path.exists("/dev/kfd") or os.path.exists("/dev/dxg")
    return len(glob("/dev/nvidia[0-9]*")) or int(other)


def device_count(accelerator: str) -> int:
    cores = os.cpu_count() or 1
    return gpu_count() or cores if accelerator != "cpu" else cores
