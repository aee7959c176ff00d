"""Which code a config from elsewhere may use: known classes, and packages trusted by the user.

A stored config is data. Its `_target_`s are checked by name before anything is imported.
"""

import ast
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from math import inf
from pathlib import Path
from typing import Any

from classic_cnns import UserError
from classic_cnns.files import MAX_DEPTH

ROOT = Path(__file__).parents[1]
# Classes of torch and Lightning, recognised by the capital letter; no attributes of them.
KNOWN_CLASSES = re.compile(
    r"torch\.nn\.(?!Transformer)[A-Z]\w*"  # they copy any number of layers at once
    r"|torch\.optim\.(lr_scheduler\.)?[A-Z]\w*"
    r"|lightning\.pytorch\.Trainer"
    r"|lightning\.pytorch\.(callbacks|loggers|strategies|plugins|profilers)\.[A-Z]\w*"
)
# The same classes by the modules that define them, as in torch.nn.modules.loss.CrossEntropyLoss.
LONG_NAME = re.compile(
    r"((torch\.nn|torch\.optim|lightning\.pytorch\.(callbacks|loggers|strategies|plugins|profilers))"
    r"(\.[a-z]\w*)+)\.([A-Z]\w*)"
)
# Functions and classes for arguments, such as the weights of a loss or the interval of a callback.
KNOWN_ARGUMENTS = {"torch.tensor", "datetime.timedelta"}
# Packages that must not be trusted as a whole.
NEVER_TRUSTED = {*sys.stdlib_module_names, "classic_cnns", "hydra", "lightning", "numpy", "torch"}
MAX_VALUES = 20_000  # values in a config
# Larger images or classes fill the memory.
LARGEST = {"model.input.size": 4096, "data.size": 4096, "data.num_classes": 100_000}
OUR_NAMES = re.compile(r"classic_cnns\.(model|optim|data|callbacks|logger|trainer)\.(\w+)\.(\w+)")


def check_stored(config: Any, place: Any, trusted: Sequence[str] = ()) -> None:
    """Raise UserError if a stored config is too large, interpolates, or names untrusted code.

    `trusted` are packages and modules that the user trusts. A value that is contained several times
    counts each time.
    """
    for count, (key, value) in enumerate(nodes(config), 1):
        if value is not None and type(value) not in (dict, list, str, int, float, bool):
            raise UserError(  # of a tuple, for example, OmegaConf would make a list
                f"{place}: {key}: is a {type(value).__name__}, and not allowed in a stored config; "
                "try another run"
            )
        if count > MAX_VALUES or key.count(".") > MAX_DEPTH - 2:
            raise UserError(
                f"{place}: is not the config of a run (more than {MAX_VALUES:,} values or "
                f"{MAX_DEPTH} levels); try another run"
            )
        if "${" in key or (isinstance(value, str) and "${" in value):
            raise UserError(
                f"{place}: {key}={value}: interpolations are not allowed in a stored "
                "config; write the value instead"
            )
        if key.rpartition(".")[2] == "_target_" and not is_trusted(str(value), trusted):
            package = str(value).partition(".")[0]
            way_out = f"add --trust {package} if you know that code"
            raise UserError(
                f"{place}: {key}={value}: is not a known class of this project, of torch "
                f"or of Lightning; {'try another run' if package in NEVER_TRUSTED else way_out}"
            )
        if type(value) is int and value > (most := LARGEST.get(key, inf)):
            raise UserError(
                f"{place}: {key}={value}: must be at most {most} in a stored config; "
                "try another run"
            )


def nodes(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """All values in a plain config with their dotted keys, mappings and lists before their content.

    They are found one by one, so a caller can stop at a value that contains itself.
    """
    yield key, value
    if isinstance(value, (dict, list)):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from nodes(inner, f"{key}.{name}".lstrip("."))


def is_trusted(target: str, trusted: Sequence[str] = ()) -> bool:
    package = target.partition(".")[0]
    if target in KNOWN_ARGUMENTS:
        return True
    if package not in NEVER_TRUSTED:
        return package in trusted
    if ours := OUR_NAMES.fullmatch(target):
        return ours[3] in defined(ours[1], ours[2])
    return bool(KNOWN_CLASSES.fullmatch(short_name(target)))


@dataclass
class TrustedFinder(MetaPathFinder):
    """Finds the trusted packages, and only these, in folders that a stored config may name.

    The folder of a package that was found can then be imported from, as its code could do itself.
    """

    packages: Sequence[str]
    folders: Sequence[str]

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        for folder in self.folders if path is None and name in self.packages else ():
            if spec := PathFinder.find_spec(name, [folder]):
                sys.path += [folder] if folder not in sys.path else []
                return spec
        return None


def short_name(target: str) -> str:
    """The name of a class of torch or Lightning in its package, if it is given by its module."""
    long = LONG_NAME.fullmatch(target)
    if not long or KNOWN_CLASSES.fullmatch(target):
        return target
    module, package, name = long[1], long[2], long[5]
    with suppress(ImportError, AttributeError):  # importing these packages is safe
        if getattr(import_module(package), name) is getattr(import_module(module), name):
            return f"{package}.{name}"
    return target


def untrusted_packages(config: Any) -> list[str]:
    """The packages that have to be trusted when the config is read again."""
    return list(dict.fromkeys(target.partition(".")[0] for target in untrusted(config)))


def unreadable(config: Any) -> list[str]:
    """The `_target_`s that no option allows when the config is read again."""
    return [target for target in untrusted(config) if target.partition(".")[0] in NEVER_TRUSTED]


def untrusted(config: Any) -> list[str]:
    """The `_target_`s of a config that only the user can trust."""
    targets = (str(value) for key, value in nodes(config) if key.rpartition(".")[2] == "_target_")
    return [target for target in targets if not is_trusted(target)]


@cache
def defined(package: str, module: str) -> set[str]:
    """The names of classes that one of our modules defines; in model/ and optim/ also functions."""
    path = ROOT / package / f"{module}.py"
    if not path.is_file():
        return set()
    kinds = (ast.ClassDef, ast.FunctionDef) if package in ("model", "optim") else (ast.ClassDef,)
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return {node.name for node in body if isinstance(node, kinds)}
