"""The rules of the house: conf groups are code rooms, arrows point one way, facts stand once."""

import ast
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import hydra
import pytest
import yaml
from omegaconf import OmegaConf

from classic_cnns.allowed import check_values
from classic_cnns.overrides import CONF

ROOT = Path(__file__).parents[1]
CODE = ROOT / "src" / "classic_cnns"
ROOMS = {path.name for path in CODE.iterdir() if path.is_dir() and path.name != "__pycache__"}
GROUPS = {path.name for path in CONF.iterdir() if path.is_dir()}

# What each room may import of the project; the single files at the top belong to no room.
ARROWS = {
    "model": {"model"},
    "optim": {"optim"},
    "report": {"errors", "files", "report"},
    "sweep": {"devices", "errors", "files", "processes", "report", "sweep"},
    "data": {"data", "devices", "errors", "files"},
    "trainer": {"trainer", "devices", "errors", "files", "processes"},
    "classifier": {"model", "optim", "tally"},
    "tally": set(),
    "allowed": {"devices", "errors"},
    "devices": {"errors"},
    "errors": set(),
    "files": set(),
    "processes": set(),
    "run_directory": {"errors", "files"},
    "command_line": {"errors", "overrides", "report"},
    "overrides": {"allowed", "data", "devices", "errors", "run_directory"},
    "build": {"classifier", "errors", "optim", "report"},
    "run": {
        "build",
        "classifier",
        "data",
        "errors",
        "files",
        "processes",
        "report",
        "run_directory",
        "trainer",
    },
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


def test_each_group_of_conf_has_a_room_of_code():
    assert GROUPS - {"experiment"} <= ROOMS
    assert ROOMS - GROUPS <= {"report"}  # what people look at needs no config


@pytest.mark.parametrize(
    "path", sorted(CONF.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONF))
)
def test_own_targets_lie_in_the_room_of_their_group(path):
    room = path.relative_to(CONF).parts[0]
    for target in targets(yaml.safe_load(path.read_text())):
        if target.startswith("classic_cnns."):
            assert target.startswith(f"classic_cnns.{room}.")


@pytest.mark.parametrize("path", sorted(files()), ids=lambda path: str(path.relative_to(CODE)))
def test_arrows_point_one_way(path):
    room = path.relative_to(CODE).parts[0].removesuffix(".py")
    own = {name.split(".")[1] for name in imports(path) if name.startswith("classic_cnns.")}
    assert own - {room} <= ARROWS[room]
    if room == "model":
        foreign = {name.split(".")[0] for name in imports(path)} - {"classic_cnns"}
        assert foreign <= {"torch", "math", "collections", "dataclasses", "logging", "typing"}


@pytest.mark.parametrize("group", sorted(GROUPS))
def test_every_choice_of_every_group_composes_and_is_allowed(group, tmp_path):
    for folder in ("train/a", "train/b", "val"):
        (tmp_path / folder).mkdir(parents=True)
    for path in (CONF / group).glob("*.yaml"):
        if "optuna" in path.read_text() and not find_spec("optuna"):
            continue  # comes with an extra
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            model = ["model=lenet5_relu"] if group == "data" else []  # takes colours too
            if path.stem == "image_folder":
                model = ["model=alexnet", f"data.root={tmp_path}"]
            words = [f"{group}={path.stem}", *model, "name=x"]
            config = hydra.compose("train", words)
            values = OmegaConf.to_container(config, resolve=True)
        # A machine need not have the devices, and a net for large images wants them.
        if group != "trainer" and (group == "data" or values["model"]["input"]["fit"] != "crop"):
            check_values(values, values)


def test_every_deviation_in_the_code_is_in_the_readme():
    marked = set()
    for path in [*files(), *CONF.rglob("*.yaml")]:
        for text in re.findall(r"Deviation: (.+)", path.read_text()):
            marked.add((path.name, text.strip()))
    readme = (ROOT / "README.md").read_text()
    listed = re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", readme, re.M)
    assert marked == {(name, text.strip()) for name, text in listed if "." in name}


def test_no_file_needs_scrolling_more_than_twice():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files()}
    assert {name: length for name, length in lengths.items() if length > 220} == {}


def test_nothing_tracked_is_large_or_names_a_host():
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    for name in names.splitlines():
        assert (ROOT / name).stat().st_size < 600_000
    assert "://" not in (ROOT / ".ci" / "constraints.txt").read_text()
