"""What a config from elsewhere may name: parts that are known, and packages that are trusted.

A stored config is data. Its `_target_`s are checked against their names alone, before anything is
imported. Nothing here imports torch.
"""

import ast
import re
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

from classic_cnns import UserError
from classic_cnns.files import DEEPEST

ROOT = Path(__file__).parents[1]
# Classes, which names of torch and Lightning show by their first letter; nothing within them.
KNOWN = re.compile(
    r"torch\.nn\.[A-Z]\w*"
    r"|torch\.optim\.(lr_scheduler\.)?[A-Z]\w*"
    r"|lightning\.pytorch\.Trainer"
    r"|lightning\.pytorch\.(callbacks|loggers|strategies|plugins|profilers)\.[A-Z]\w*"
)
# Packages that nobody can mean to trust as a whole.
NEVER = {*sys.stdlib_module_names, "classic_cnns", "hydra", "lightning", "numpy", "torch"}
MOST = 20_000  # values of a config
OURS = re.compile(r"classic_cnns\.(model|optim|data|callbacks|logger|trainer)\.(\w+)\.(\w+)")


def check_stored(
    config: Any, place: Any, trusted: Sequence[str] = (), folders: Sequence[str] = ()
) -> None:
    """Raise UserError where a stored config names unknown code, or values from outside of it.

    `trusted` are packages named by the user; so are all that lie in one of `folders`.
    """
    check_size(config, place)
    for key, value in strings(config):
        if "${" in value:
            raise UserError(
                f"{place}: {key}={value}: nothing is looked up for a stored config; "
                "write the value itself there"
            )
        if key.rpartition(".")[2] == "_target_" and not known(value, trusted, folders):
            package = value.partition(".")[0]
            way_out = f"add --trust {package} if you know that code"
            raise UserError(
                f"{place}: {key}={value}: is no part of this project, of torch or of Lightning "
                f"that a run needs; {'try another run' if package in NEVER else way_out}"
            )


def check_size(config: Any, place: Any) -> None:
    """Raise UserError for a config that no run writes: one value may be there a million times."""
    level, count, depth = [config], 0, 0
    while level:
        count, depth = count + len(level), depth + 1
        if count > MOST or depth > DEEPEST:
            raise UserError(
                f"{place}: is no config of a run (more than {MOST:,} values or {DEEPEST} levels); "
                "try another run"
            )
        inner = (
            x.values() if isinstance(x, dict) else x if isinstance(x, list) else () for x in level
        )
        level = list(islice(chain.from_iterable(inner), MOST + 1))


def strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """All texts in a plain config, by their dotted keys; names of keys too, which also resolve."""
    if isinstance(value, str):
        yield key, value
    if isinstance(value, dict):
        for name, inner in value.items():
            yield f"{key}.", str(name)
            yield from strings(inner, f"{key}.{name}".lstrip("."))
    if isinstance(value, list):
        for number, inner in enumerate(value):
            yield from strings(inner, f"{key}.{number}")


def known(target: str, trusted: Sequence[str] = (), folders: Sequence[str] = ()) -> bool:
    package = target.partition(".")[0]
    if (package in trusted and package not in NEVER) or KNOWN.fullmatch(target):
        return True
    if any(
        (Path(folder) / name).exists() for folder in folders for name in (package, f"{package}.py")
    ):
        return True
    ours = OURS.fullmatch(target)
    return bool(ours) and ours[3] in defined(ours[1], ours[2])  # type: ignore[index]


@cache
def defined(room: str, module: str) -> set[str]:
    """The classes that a module of ours defines, and in the rooms of nets the functions."""
    path = ROOT / room / f"{module}.py"
    if not path.is_file():
        return set()
    kinds = (ast.ClassDef, ast.FunctionDef) if room in ("model", "optim") else (ast.ClassDef,)
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return {node.name for node in body if isinstance(node, kinds)}
