"""Composition of one checked config from overrides; each mistake is a one-line error.

Hydra reads and merges the files of the chosen groups. Single values are checked against those files
and then set.
"""

import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from threading import Lock
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from classic_cnns import UserError, one_line
from classic_cnns.config import schema, stored
from classic_cnns.config.trust import TrustedFinder
from classic_cnns.config.unused import HYDRA, check_no_hydra, check_used, read_text, references
from classic_cnns.data import folders
from classic_cnns.files import expand, flatten
from classic_cnns.trainer.devices import is_restarted
from classic_cnns.trainer.spinning import limit_spinning

HERE = Path(__file__)
# In an installed package the configs are inside it, in a checkout next to src/.
CONF = next(c for c in (HERE.parents[1] / "conf", HERE.parents[3] / "conf") if c.is_dir())
SEARCH = "sweep.search."  # null in its file, so its keys are added
PARAMS = f"{SEARCH}params."
PARAMETERS = "sweep.executor.parameters"  # of submitit, empty in its file
ENDS = (".low", ".high", ".step", ".log", ".choices")  # of a parameter
LIST_GROUPS = ("callbacks", "logger")  # groups that take a list of options, or null
LOCK = Lock()  # Hydra's state is global
READ: dict[tuple, tuple[dict, dict, set]] = {}  # cache, valid while no config file changes
# One time stamp for all jobs of a sweep.
STARTED = f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
OmegaConf.register_new_resolver("started", lambda: STARTED, replace=True)
# ${class_folders:root} in a config is the number of classes of an image folder.
OmegaConf.register_new_resolver(
    "class_folders", lambda root: len(folders.classes(root)), use_cache=True
)


def compose(*words: str, config_dirs: Sequence[str] = (), trust: Sequence[str] = ()) -> DictConfig:
    """The checked config of the command `train.py <words>`; raises UserError for a mistake.

    It is read-only: a value changed afterwards would not be checked, nor change the values that
    were derived from it. `config_dirs` are folders with your own configs and modules, as for
    `--config-dir`. `trust` are packages whose code the config of an earlier run may use, as for
    `--trust`.
    """
    if not all(isinstance(word, str) for word in words):
        raise UserError("compose() takes overrides, as in compose('model=lenet5', 'data=mnist')")
    config = Composer(config_dirs, trusted=trust).compose(words)
    OmegaConf.set_readonly(config, True)
    return config


def load_run(
    given: Namespace, run: str, words: Sequence[str] | None = None
) -> tuple[Path, DictConfig]:
    """The checkpoint and the config of a run on a command line, as `Composer.load_run`."""
    limit_spinning()
    return Composer(given.config_dir, trusted=given.trust).load_run(run, words)


class Composer:
    """Composes configs from `config_dirs` and the project's own conf/.

    Hydra looks first into the folder that contains the primary config. A file of the user's that
    another one of the same name would hide is a UserError.
    """

    def __init__(
        self,
        config_dirs: Sequence[str] = (),
        config_name: str = "train",
        trusted: Sequence[str] = (),
    ) -> None:
        self.config_dirs = [
            str(expand("--config-dir", folder).absolute()) for folder in one_or_several(config_dirs)
        ]
        self.config_name, self.trusted = config_name, one_or_several(trusted)
        places = [*map(Path, self.config_dirs), CONF]
        for place in places:
            if not place.is_dir():
                raise UserError(f"--config-dir={place}: does not exist; try another folder")
        tops = [path for place in places for path in place.glob("*.yaml")]
        primary = [path for path in tops if path.stem == config_name]
        if not primary:
            names = ", ".join(sorted({path.stem for path in tops}))
            raise UserError(f"--config-name={config_name}: must be one of {names}")
        check_no_hydra(primary)
        main = primary[0].parent
        self.places = [main, *(place for place in places if place != main)]
        inner = [path for place in places for path in place.glob("*/*.yaml")]
        for path in inner if main == CONF else ():
            ours = CONF / path.parent.name / path.name
            if path != ours and ours.is_file():
                raise UserError(f"{path}: {ours} has the same name and would be used; rename yours")
        self.groups: dict[str, list[str]] = {}
        for group, option in sorted({(path.parent.name, path.stem) for path in inner}):
            self.groups.setdefault(group, []).append(option)
        stamps = [(path, path.stat().st_mtime_ns) for path in [*tops, *inner] if path.is_file()]
        # By the options of groups the config, and its resolved values; keys that files interpolate.
        key = config_name, *self.config_dirs, *stamps
        if key not in READ:
            texts = (read_text(path) for path, _ in stamps)
            READ[key] = {}, {}, set().union(*map(references, texts))
        self.composed, self.examples, self.references = READ[key]
        own = modules_in(self.config_dirs)
        files = [path for folder in own for path in Path(folder).glob("*")]
        modules = (path.stem for path in files if path.suffix == ".py" or path.is_dir())
        self.packages = [*self.trusted, *modules]
        add_to_path(own)  # `_target_` finds modules next to the user's configs

    def compose(self, words: Sequence[str], resolve: bool = True) -> DictConfig:
        """The checked config of one run, or with `resume` that of the earlier run.

        With `resolve` false, interpolations are kept. Raises UserError for an unknown key, or a
        value of the wrong type or out of range.
        """
        overrides = parse_overrides(words, single=True)
        choices = tuple(self.choice(o) for o in overrides if self.is_choice(o))
        config, default = self.read_files(choices), self.composed[choices]
        resumed = {o.key_or_group: value_of(o) for o in overrides}.get("resume", config.resume)
        if resumed is not None:
            return self.resume(resumed, overrides)
        add_to_path([os.getcwd()])  # `_target_` finds modules there too, but not those of strangers
        for override in overrides:
            if not self.is_choice(override):
                self.set_value(config, default, override)
        check_used(to_plain(config), CONF, self.chosen_files(overrides), self.references)
        if choices not in self.examples or "root" in config.data:
            self.examples[choices] = example_values(self.read_files(choices), config)
        resolved = check(config if resolve else deepcopy(config), self.examples[choices], words)
        schema.check_new_run(resolved)
        check_folder("run_dir", resolved.run_dir)
        again = is_restarted()  # then run_dir may contain this run, and `latest` be this run
        if resolved.run_dir is not None and not again:
            stored.check_new(expand("run_dir", resolved.run_dir))
        if resolved.init_from is not None:
            if not again:
                stored.find_checkpoint(resolved.init_from)
            # The path: `latest` will soon mean the new run.
            resolved.init_from = str(stored.resolve_latest(resolved.init_from))
        return resolved if resolve else config

    def resume(self, run: Any, overrides: Sequence[Override]) -> DictConfig:
        """The config of an earlier run, with devices, epochs and folders changed.

        Raises UserError for overrides of other keys.
        """
        for override in overrides:
            key, word = override.key_or_group, override.input_line
            if key not in stored.CHANGEABLE or (key == "trainer" and not self.is_choice(override)):
                raise UserError(
                    f"{word}: a resumed run keeps its own config; try resume={run} "
                    "alone, or a new run without resume"
                )
        own = stored.read_config(stored.find_run(run) / "config.yaml", self.packages)
        with stored.config_errors(run):
            own = self.upgrade(own)
            for override in overrides:
                if override.key_or_group == "data.root" and "root" not in own.data:
                    raise UserError(
                        f"{override.input_line}: the data of that run have no root; leave it out"
                    )
            own = self.change(own, [o for o in overrides if o.key_or_group != "resume"])
            own.resume = run
        return own

    def load_run(self, path: Any, words: Sequence[str] | None = None) -> tuple[Path, DictConfig]:
        """The checkpoint and the config of a run, with data and devices changed as `words` say.

        `path` is a run directory, a checkpoint, or `.../latest`. Raises UserError if nothing is
        there, and with `words` for overrides of other keys and for devices that are not there.
        """
        checkpoint = stored.find_checkpoint(path, "")
        folder = checkpoint.absolute().parent
        beside = folder.parent / "config.yaml"
        if folder.name == "checkpoints" and beside.is_file():
            config = stored.read_config(beside, self.packages)
        else:
            from classic_cnns.trainer.checkpoint_io import read_checkpoint  # imports torch

            values = read_checkpoint(checkpoint).get("hyper_parameters")
            config = stored.checked_config(values, checkpoint, self.packages)
        with stored.config_errors(path):
            config = self.upgrade(config)
            config.run_dir = config.init_from = None
            config.init_skip = []
            if words is None:
                return checkpoint, config
            overrides = parse_overrides(words, single=True)
            for override in overrides:
                key = override.key_or_group
                keys = [k for k, _ in flatten({key: override.value()}, groups=True)]
                of_net = ("data.input", "data.num_classes", "data.channels")
                of_data = key.partition(".")[0] in ("data", "data_dir", "trainer")
                if not of_data or any(k.startswith(of_net) for k in keys):
                    raise UserError(
                        f"{override.input_line}: only data, data_dir and trainer can be changed, "
                        "but not data.input, data.channels and data.num_classes"
                    )
            return checkpoint, self.change(config, overrides)

    def upgrade(self, config: DictConfig) -> DictConfig:
        """A stored config as of this version; its own modules can be imported if it is trusted."""
        if "callbacks" not in config:  # of version 0.1
            config = stored.upgraded_config(config, self.read_files(()))
        finder = TrustedFinder(self.trusted, [*modules_in(config.config_dirs), os.getcwd()])
        if self.trusted and finder not in sys.meta_path:
            sys.meta_path.append(finder)
        return config

    def change(self, config: DictConfig, overrides: Sequence[Override]) -> DictConfig:
        """The checked config of an earlier run with other data, devices or epochs."""
        choices = tuple(self.choice(o) for o in overrides if self.is_choice(o))
        earlier = to_plain(config.data)
        for choice in choices:
            group, today = choice.partition("=")[0], self.read_files(choices)
            if group == "trainer":  # its devices; the precision, for example, is the run's
                for key in stored.PLACEMENT:
                    config.trainer[key] = today.trainer[key]
            else:
                config[group] = today[group]
                if "none" in (config[group].get("augmentations") or ()):
                    config[group].augment = "none"  # other data are only for evaluation
        # Files of folders are read in the form of the run's data, for the run's classes.
        for key in ("channels", "size", "num_classes"):
            if "root" in config.data and key in earlier:
                config.data[key] = earlier[key]
        default = deepcopy(config)
        name = config.data.get("dataset")
        if "train_size" in config.data and name in self.groups["data"]:  # the run used a part
            default.data.train_size = self.read_files((f"data={name}",)).data.train_size
        for override in overrides:
            if not self.is_choice(override):
                self.set_value(config, default, override)
                if override.key_or_group == "data_dir" and "data_dir" in config.data:
                    config.data.data_dir = config.data_dir
        words = [str(override.input_line) for override in overrides]
        config = check(config, example_values(default, config), words)
        for key, what in (("channels", "channels"), ("num_classes", "classes")):
            has, takes = config.data.get(key), earlier.get(key)
            if None not in (has, takes) and has != takes:
                raise UserError(
                    f"{' '.join(words)}: these data have {has} {what} and the run's net is for "
                    f"{takes}; try other data"
                )
        return config

    def is_choice(self, override: Override) -> bool:
        key = override.get_key_element().lstrip("+~")
        return key in self.groups and not isinstance(override.value(), dict)

    def choice(self, override: Override) -> str:
        """The override of a group in Hydra's form; UserError for an option that does not exist."""
        group, value, word = override.key_or_group, override.value(), str(override.input_line)
        options = self.groups[group]
        all_options = f"{group} is one of {', '.join(options)}"
        if override.is_delete():
            raise UserError(f"{word}: groups cannot be removed; {all_options}")
        several = group in (*LIST_GROUPS, "debug", "experiment")
        if value is None and several:
            return f"{group}=[]"
        if isinstance(value, list) and not several:
            raise UserError(f"{word}: takes one choice; {all_options}")
        for name in value if isinstance(value, list) else [value]:
            if str(name) not in options:
                near = get_close_matches(str(name), options, n=1)
                hint = f"did you mean {group}={near[0]}? " if near else ""
                raise UserError(f"{word}: {hint}{all_options}")
        check_no_hydra(self.chosen_files([override]))
        return f"{group}={word.partition('=')[2]}"

    def chosen_files(self, overrides: Sequence[Override]) -> list[Path]:
        paths = []
        for override in filter(self.is_choice, overrides):
            value: Any = override.value()
            for name in value if isinstance(value, list) else [value]:
                paths += [place / override.key_or_group / f"{name}.yaml" for place in self.places]
        return [path for path in paths if path.is_file()]

    def read_files(self, choices: tuple[str, ...]) -> DictConfig:
        """The merged config of the files that `choices` select, with unresolved interpolations."""
        if choices not in self.composed:
            main, *others = self.places
            paths = ",".join(f"'file://{folder}'" for folder in others)
            try:
                with own_hydra(), hydra.initialize_config_dir(str(main), version_base="1.3"):
                    config = hydra.compose(
                        self.config_name,
                        [f"hydra.searchpath=[{paths}]", *choices],
                        return_hydra_config=True,
                    )
            except (
                HydraException, OmegaConfBaseException, OSError, ValueError, YAMLError,
            ) as error:  # fmt: skip
                line = one_line(error).partition(" Config search path")[0]
                raise UserError(f"{' '.join(choices)}: {line}".lstrip(": ")) from error
            chosen = config.hydra.runtime.choices
            with open_dict(config):
                del config["hydra"]
            OmegaConf.set_struct(config, False)
            config.name = config.name or f"{chosen.get('model')}-{chosen.get('data')}"
            config.config_dirs = self.config_dirs
            self.composed[choices] = config
        return deepcopy(self.composed[choices])

    def set_value(self, config: DictConfig, default: DictConfig, override: Override) -> None:
        """Set or remove one key; UserError for one that does not exist and cannot be added."""
        word, key = str(override.input_line), override.get_key_element().lstrip("+~")
        value, known = value_of(override), values_by_key(default)
        if key.startswith("hydra"):
            raise UserError(f"{word}: {HYDRA}")
        if override.is_delete():
            remove_part(config, default, word, key)
            return
        if key.startswith(PARAMS) and key.endswith(ENDS):
            set_search_parameter(config, word, key, value)
            return
        if isinstance(value, dict) and not (key.startswith("trainer.") and key.count(".") == 1):
            # The keys inside a class are its arguments.
            free = takes_class(key, known, to_plain(default)) or can_add(key, known)
            free = free and "_target_" in value
            for inner, _ in () if free else flatten(value, f"{key}.", groups=True):
                if inner not in known and not can_add(inner, known):
                    raise UserError(f"{word}: {unknown_key(inner, known)}")
        if key not in known:
            self.check_new_key(config, word, key, known)
        # A new class replaces the arguments of the old one.
        target = value.get("_target_") if isinstance(value, dict) else None
        other = target and target != values_by_key(config).get(f"{key}._target_")
        try:
            OmegaConf.update(config, key, value, merge=not other, force_add=True)
        except (OmegaConfBaseException, ValueError, TypeError) as error:
            raise UserError(f"{word}: {one_line(error)}; --cfg job shows all keys") from error

    def check_new_key(self, config: DictConfig, word: str, key: str, known: dict[str, Any]) -> None:
        """Raise UserError if a key that is in no file cannot be added by `word`."""
        added, (group, _, rest) = word.startswith("+"), key.partition(".")
        if key.startswith("trainer.") and "." not in rest:
            schema.check_trainer_argument(word, rest, added)
            return
        # Earlier words may have given a class.
        free = added or key.startswith((SEARCH, PARAMETERS))
        if free and can_add(key, values_by_key(config)):
            return
        name = rest.partition(".")[0]
        listed = group in LIST_GROUPS and f"{group}.{name}" in known
        if listed or takes_others(key, config):
            raise UserError(f"{word}: is not in its file; try +{word}")
        if group in LIST_GROUPS and name in self.groups[group]:
            usual = {"callbacks": "default", "logger": "tensorboard"}[group]
            raise UserError(f"{word}: is not selected; try {group}=[{usual},{name}]")
        raise UserError(f"{word}: {unknown_key(key, known)}")


def remove_part(config: DictConfig, default: DictConfig, word: str, key: str) -> None:
    """Remove a callback or a logger; UserError for one that is not there, and for other keys."""
    group, _, name = key.partition(".")
    of_list = group in LIST_GROUPS and "." not in name
    if of_list and key not in values_by_key(default):
        near = get_close_matches(key, [f"{group}.{name}" for name in default[group]], n=1)
        hint = f"did you mean ~{near[0]}?" if near else "--cfg job shows those that are"
        raise UserError(f"{word}: is not selected; {hint}")
    if not of_list:
        raise UserError(f"{word}: a key cannot be removed; set it to null if --cfg job shows null")
    config[group].pop(name, None)  # it may be given twice


def set_search_parameter(config: DictConfig, word: str, key: str, value: Any) -> None:
    """Set a bound of a parameter of a search, whose own name contains dots."""
    name, _, end = key.removeprefix(PARAMS).rpartition(".")
    search = to_plain(config.sweep).get("search") or {}
    try:
        params = search.get("params") or {}
        params[name] = {**(params.get(name) or {}), end: value}
    except (AttributeError, TypeError) as error:
        raise UserError(
            f"{word}: sweep.search and its params must be groups of keys here; leave out "
            "the word that sets them"
        ) from error
    config.sweep.search = search | {"params": params}


@contextmanager
def own_hydra() -> Iterator[None]:
    """Reserve Hydra's global instance for this thread; a Hydra program around gets its own back."""
    with LOCK:
        outer = GlobalHydra.instance().hydra
        GlobalHydra.instance().clear()
        try:
            yield
        finally:
            if outer:
                GlobalHydra.instance().initialize(outer)


def parse_overrides(words: Sequence[str], single: bool = False) -> list[Override]:
    """The overrides of a command line; UserError for a word that is not of the form key=value.

    With `single`, which one run needs, also for a word that contains several values.
    """
    parsed = []
    for word in words:
        override = parse_word(word)
        if not override:
            key, _, value = word.partition("=")
            quoted = f"{key}='{value}'"
            hint = f': try "{quoted}"' if value and parse_word(quoted) else ""
            raise UserError(
                f"{word}: not of the form key=value; quote values with special characters{hint}"
            )
        if single and override.is_sweep_override():
            raise UserError(
                f"{word}: has several values, which only sweeps take (train.py -m); try one value, "
                "or quote a text with ','"
            )
        parsed.append(override)
    return parsed


def parse_word(word: str) -> Override | None:
    with suppress(HydraException):
        override = OverridesParser.create().parse_override(word)
        return override if override.key_or_group else None
    return None


def value_of(override: Override) -> Any:
    """The value of an override; that of a path or a name is a text, also in run_dir=2026_11_22."""
    texts = f"{schema.RULES[schema.FOLDER]} {schema.RULES[schema.NAME]} data.root".split()
    value = override.value()
    is_number = type(value) in (int, float) and override.key_or_group in texts
    return str(override.input_line).partition("=")[2] if is_number else value


def check(config: DictConfig, known: dict[str, Any], words: Sequence[str]) -> DictConfig:
    """The resolved config; UserError for a value that is not allowed.

    `known` are the values in the config files, which define the types.
    """
    copies = interpolations(config)
    for key in copies:
        try:
            if OmegaConf.is_list(found := OmegaConf.select(config, key)):
                OmegaConf.resolve(found)
        except OmegaConfBaseException as error:
            raise unresolved_error(key, config, words, error) from error
    try:
        OmegaConf.resolve(config)
    except OmegaConfBaseException as error:  # of a parameter of a search, whose name has dots
        key = next((key for key in copies if key.startswith(PARAMS)), copies[-1])
        raise unresolved_error(key, config, words, error) from error
    schema.check_values(to_plain(config), known, copies)
    check_folder("data_dir", config.data_dir)
    return config


def interpolations(config: DictConfig) -> list[str]:
    """The keys whose values, texts or lists, contain interpolations."""
    return [key for key, value in flatten(to_plain(config)) if "${" in str(value)]


def unresolved_error(
    key: str, config: DictConfig, words: Sequence[str], error: BaseException
) -> UserError:
    cause: BaseException | None = error
    while cause:  # OmegaConf wraps our error in its own
        if isinstance(cause, UserError):
            return cause
        cause = cause.__cause__ or cause.__context__
    word = next((word for word in words if "${" in word), None)
    text = word or f"{key}={dict(flatten(to_plain(config)))[key]}"
    line = one_line(error).partition(" full_key: ")[0]
    return UserError(f"{text}: {line}; try {text.partition('=')[0]}=<value>")


def example_values(default: DictConfig, config: DictConfig) -> dict[str, Any]:
    """The resolved values of the config files; None where an interpolation cannot be resolved.

    The root of the data, which has no default, is that of `config`.
    """
    with suppress(OmegaConfBaseException):  # of an interpolation, reported later
        if "root" in default.data:
            default.data.root = config.data.root
    values: dict[str, Any] = {}
    for key in interpolations(default):
        values[key] = None
        with suppress(OmegaConfBaseException):
            values[key] = OmegaConf.select(default, key)
    for key, value in values.items():
        OmegaConf.update(default, key, value)
    return to_plain(default)


def check_folder(key: str, value: Any) -> None:
    """Raise UserError if `value` is given and cannot be created as a folder and written to."""
    folder = expand(key, value or ".").absolute()
    if folder.name == "latest":
        raise UserError(f"{key}={value}: latest means the newest run; try another name")
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir() or (existing != folder and not os.access(existing, os.W_OK)):
        raise UserError(
            f"{key}={value}: cannot be created: {existing} is not a writable folder; "
            f"try {key}=<another folder>"
        )


def one_or_several(given: str | Path | Sequence[str]) -> list[str]:
    return [str(given)] if isinstance(given, (str, Path)) else list(given)


def can_add(key: str, known: dict[str, Any]) -> bool:
    """Whether a new key may be added: an argument of a class, or a named part."""
    group, parent = key.partition(".")[0], key.rpartition(".")[0]
    of_class = group in ("model", "data", "optim") and f"{parent}._target_" in known
    of_class |= parent in known and parent in (PARAMETERS, "data.augmentations")
    return of_class or key.startswith((SEARCH, *(f"{name}." for name in LIST_GROUPS)))


def takes_class(key: str, known: dict[str, Any], default: dict) -> bool:
    """Whether a class may be the value: the key has one, or it has null and no rule forbids it."""
    if "." not in key or known.get(key, key) is not None:
        return f"{key}._target_" in known
    rule = schema.rules(default, default).get(key)
    return rule is None or rule.holds({})


def takes_others(key: str, config: DictConfig) -> bool:
    """Whether the key is not misspelt, and may be an argument of a class from elsewhere."""
    parent, _, last = key.rpartition(".")
    own: Any = OmegaConf.select(config, parent)
    target = str(own.get("_target_")) if isinstance(own, DictConfig) and "_target_" in own else ""
    ours = target.startswith(("classic_cnns.", "functools."))
    return bool(target) and not ours and not get_close_matches(last, map(str, own))


def unknown_key(key: str, known: dict[str, Any]) -> str:
    groups = {name.split(".")[0] for name in known}
    near = [name for name in known if name.split(".")[-1] == key.split(".")[-1]]
    near = near[:3] + get_close_matches(key, [*known, *groups], n=2)
    last = key.rpartition(".")[2]
    habit = schema.HABITS.get(last, "")
    if habit.partition("=")[0] in {*known, *groups}:
        near = [habit]
    elif last in schema.trainer_arguments() and not near:
        near = [f"+trainer.{last}"]
    hint = (
        f"did you mean {' or '.join(dict.fromkeys(near))}?" if near else "--cfg job shows all keys"
    )
    return f"there is no key '{key}'; {hint}"


def add_to_path(folders: Sequence[str]) -> None:
    sys.path += [folder for folder in folders if folder not in sys.path]


def modules_in(folders: Sequence[str]) -> list[str]:
    """The folders of configs and their groups, where `_target_` finds modules."""
    inner = (path for f in folders for path in (Path(f), *sorted(Path(f).glob("*"))))
    return [str(path) for path in inner if path.is_dir()]


def values_by_key(config: DictConfig) -> dict[str, Any]:
    """The values and groups of a config, not resolved, by their full keys."""
    return dict(flatten(to_plain(config), groups=True))


def to_plain(config: Any) -> Any:
    return OmegaConf.to_container(config, resolve=False)
