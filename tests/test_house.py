"""Conventions of CONTRIBUTING.md: packages follow config groups, imports point down, no repeats."""

import ast
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from classic_cnns.config.compose import CONF, compose

ROOT = Path(__file__).parents[1]
CODE = ROOT / "src" / "classic_cnns"
PACKAGES = {path.name for path in CODE.iterdir() if path.is_dir() and path.name != "__pycache__"}
GROUPS = {path.name for path in CONF.iterdir() if path.is_dir()}

# What each package may import from the project, besides the names in ALLOWED of the package itself.
ALLOWED = {
    "UserError", "assignment", "one_line", "printable", "program", "quoted"
}  # fmt: skip
IMPORTS = {
    "model": set(),
    "optim": set(),
    "files": set(),
    "report": {"files"},
    "trainer": {"files"},
    "callbacks": {"classifier", "data", "files", "report"},
    "logger": set(),
    "data": {"files", "report", "trainer"},
    "classifier": {"config", "data", "optim", "trainer"},
    "config": {"data", "files", "trainer"},
    "run": {
        "callbacks",
        "classifier",
        "config",
        "data",
        "files",
        "model",
        "optim",
        "report",
        "trainer",
    },
    "sweep": {"config", "files", "report", "trainer"},
    "__main__": {"config", "run", "sweep", "trainer"},
}


def targets(value):
    """All `_target_`s in a YAML value, nested ones too."""
    if isinstance(value, dict):
        yield from ([value["_target_"]] if "_target_" in value else [])
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from targets(item)


def imports(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports, also inside its functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def files(tree: Path = CODE) -> list[Path]:
    return [path for path in tree.rglob("*.py") if path.name != "__init__.py"]


def test_each_config_group_has_a_package():
    assert GROUPS - {"experiment", "debug"} <= PACKAGES  # these only set values of other groups
    # Packages without a config of their own.
    assert PACKAGES - GROUPS == {"config", "report", "run"}


def test_the_package_has_at_most_12_entries():
    entries = {
        path.stem for path in CODE.iterdir() if path.suffix == ".py" or path.stem in PACKAGES
    }
    assert len(entries - {"__init__", "__main__"}) <= 12


@pytest.mark.parametrize(
    "path", sorted(CONF.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONF))
)
def test_the_targets_of_a_group_are_in_its_package(path):
    package = path.relative_to(CONF).parts[0]
    for target in targets(yaml.safe_load(path.read_text())):
        if target.startswith("classic_cnns.") and package != "experiment":  # may name any package
            assert target.startswith(f"classic_cnns.{package}.")


@pytest.mark.parametrize("path", sorted(files()), ids=lambda path: str(path.relative_to(CODE)))
def test_imports_point_down(path):
    package = path.relative_to(CODE).parts[0].removesuffix(".py")
    ours = {name.split(".")[1] for name in imports(path) if name.startswith("classic_cnns.")}
    assert ours - {package} - ALLOWED <= IMPORTS[package]
    if package == "model":
        external = {name.split(".")[0] for name in imports(path)} - {"classic_cnns"}
        assert not ours - {"model"}
        allowed = {"torch", "triton", "math", "collections", "dataclasses", "importlib", "typing"}
        assert external <= allowed


@pytest.mark.parametrize("group", sorted(GROUPS))
def test_every_choice_of_every_group_composes(group, tmp_path, monkeypatch):
    for folder in ("train/a", "train/b", "val"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")  # for trainer=gpu
    # The other experiments are composed in test_command_line.py and test_claims.py.
    for path in (CONF / group).glob("search*.yaml" if group == "experiment" else "*.yaml"):
        words = [f"{group}={path.stem}"]
        if group == "data":
            folder = path.stem == "image_folder"
            # These models also accept colour images.
            words += ["model=alexnet" if folder else "model=lenet5_relu"]
            words += [f"data.root={tmp_path}"] if folder else []
        if group in ("model", "optim") and ("cifar10" in path.stem or "alexnet" in path.stem):
            words += ["data=cifar10", "model.input.fit=resize"]
            words += ["model=convnet_cifar10"] if group == "optim" else []
        if path.stem == "two_gpu":
            words += ["model=alexnet_small"]
        assert compose(*words)


def test_every_deviation_in_the_code_is_in_the_readme():
    marked = set()
    for path in [*files(), *CONF.rglob("*.yaml")]:
        for text in re.findall(r"Deviation: (.+)", path.read_text()):
            place = path.relative_to(CODE if path.suffix == ".py" else ROOT)
            marked.add((str(place), text.strip()))
    readme = (ROOT / "README.md").read_text()
    listed = re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", readme, re.M)
    assert marked == {(name, text.strip()) for name, text in listed if "." in name}


def test_every_package_is_installed():
    text = (ROOT / "pyproject.toml").read_text()
    listed = set(re.findall(r'^    "(classic_cnns[.a-z]*)",$', text, re.M))
    assert listed == {"classic_cnns", "classic_cnns.conf", *(f"classic_cnns.{r}" for r in PACKAGES)}


def test_no_tracked_file_is_large_and_the_constraints_name_no_host():
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    for name in names.splitlines():
        assert (ROOT / name).stat().st_size < 600_000
    assert "://" not in (ROOT / ".ci" / "constraints.txt").read_text()
