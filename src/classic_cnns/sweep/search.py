"""A search by Optuna: a trial is the job of its number, and the study remembers all of them."""

from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from classic_cnns import UserError
from classic_cnns.sweep.grid import Grid

STUDY = "sweep"  # its name in the storage
KEYS = ("n_trials", "params", "pruner", "sampler")
ONE_SEED = ("GridSampler", "QMCSampler")  # it orders the values of all trials


class Search:
    """What a search varies, and once it is open its study, whose trials are asked for and told.

    `params` have by key `low` and `high`, with `step` or `log`, or `choices` as the words of a
    command line. Sweeps on the command line join those of the config, and a single value there
    takes the place of one. Raises UserError for a search that cannot be meant.
    """

    def __init__(self, settings: DictConfig, grid: Grid) -> None:
        check_optuna()
        self.metric, self.direction = settings.metric, settings.direction
        search: dict[str, Any] = OmegaConf.to_container(settings.search)  # type: ignore
        for key in search.keys() - set(KEYS):
            raise UserError(f"sweep.search.{key}: there is no such key; it has {', '.join(KEYS)}")
        self.n_trials: Any = search.get("n_trials")
        if type(self.n_trials) is not int or not 1 <= self.n_trials <= settings.max_jobs:
            raise UserError(
                f"sweep.search.n_trials={self.n_trials}: must be a whole number from 1 to "
                f"sweep.max_jobs={settings.max_jobs}; try sweep.search.n_trials=10"
            )
        self.sampler, self.pruner = search.get("sampler"), search.get("pruner")
        self.new_sampler(0)  # a mistake in it is told now
        made("pruner", self.pruner)
        given = {override.get_key_element().lstrip("+") for override in grid.overrides}
        self.params = {
            key: with_words(key, param)
            for key, param in (search.get("params") or {}).items()
            if key not in given
        }
        self.params |= {o.get_key_element(): param_of(o, grid) for o in grid.varied}
        self.fixed = [str(o.input_line) for o in grid.overrides if not o.is_sweep_override()]
        if not self.params:
            raise UserError("sweep.search: has nothing to vary; try sweep values, or its params")

    def corners(self) -> list[list[str]]:
        """Jobs that have, one after another, each end and each choice of each parameter."""
        from optuna.trial import FixedTrial

        ends = {
            key: param.get("choices") or [param.get("low"), param.get("high")]
            for key, param in self.params.items()
        }
        first = {key: values[0] for key, values in ends.items()}
        jobs = []
        for key, values in ends.items():
            for value in values:
                try:
                    jobs.append(self.suggest(FixedTrial(first | {key: value})))
                except (TypeError, ValueError) as error:
                    raise UserError(
                        f"sweep.search.params.{key}: {one_line(error)}; try low and high, with "
                        "log or step, or choices"
                    ) from error
        return jobs

    def suggest(self, trial: Any) -> list[str]:
        """The words of a trial's job; it keeps the values that it has already."""
        varied = (f"{key}={suggest(trial, key, param)}" for key, param in self.params.items())
        return [*self.fixed, *varied]

    def new_sampler(self, trials: int) -> Any:
        """Each trial has a seed of its own: a search that goes on draws nothing a second time."""
        own: dict[str, Any] = dict(self.sampler or {})
        if own.get("seed") is not None and not own.get("_target_", "").endswith(ONE_SEED):
            own["seed"] += trials
        return made("sampler", own or None)

    def open(self, path: Path) -> None:
        """Open the study in `path`, new or of an earlier start."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
        self.study = optuna.create_study(
            storage=storage,
            study_name=STUDY,
            direction=self.direction,
            sampler=self.new_sampler(0),
            pruner=made("pruner", self.pruner) or optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
        self.trials: list[Any] = []
        self.reported: list[set[int]] = []  # epochs
        self.over: set[int] = set()  # numbers of trials
        study = storage.get_study_id_from_name(STUDY)
        for known in self.study.trials:
            trial: Any = known
            if known.state.is_finished():
                self.over.add(known.number)
            else:
                number = storage.get_trial_id_from_study_id_trial_number(study, known.number)
                trial = optuna.trial.Trial(self.study, number)
            self.trials.append(trial)
            self.reported.append(set(known.intermediate_values))

    @property
    def left(self) -> int:
        """Trials that have not been asked for yet."""
        return max(0, self.n_trials - len(self.trials))

    def ask(self) -> list[str]:
        """The words of a new trial."""
        self.study.sampler = self.new_sampler(len(self.trials))
        self.trials.append(self.study.ask())
        self.reported.append(set())
        return self.suggest(self.trials[-1])

    def report(self, number: int, line: dict[str, Any]) -> bool:
        """Tell the pruner of one line of metrics.jsonl; whether it gives the trial up."""
        value, epoch = line["metrics"].get(self.metric), line["epoch"]
        if value is None or epoch in self.reported[number]:
            return False
        self.reported[number].add(epoch)
        self.trials[number].report(value, epoch)
        return self.trials[number].should_prune()

    def tell(self, number: int, state: str, metrics: dict[str, float]) -> None:
        """How the trial's job has ended; an interrupted one goes on later."""
        from optuna.trial import TrialState

        value, told = metrics.get(self.metric), TrialState.FAIL
        if state == "finished" and value is not None and isfinite(value):
            told = TrialState.COMPLETE
        elif state == "pruned":
            told = TrialState.PRUNED
        if state == "interrupted" or number in self.over:
            return
        self.over.add(number)
        try:
            self.study.tell(number, value if told == TrialState.COMPLETE else None, told)
        except RuntimeError:  # how samplers of a grid say that they have no other values
            self.n_trials = len(self.trials)


def suggest(trial: Any, key: str, param: dict[str, Any]) -> str:
    if "choices" in param:
        return trial.suggest_categorical(key, **param)
    whole = all(type(param.get(end)) is int for end in ("low", "high"))
    return repr((trial.suggest_int if whole else trial.suggest_float)(key, **param))


def param_of(override: Override, grid: Grid) -> dict[str, Any]:
    """A sweep of the command line as a parameter of the search."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        return {"low": value.start, "high": value.end, "log": "log" in value.tags}
    if isinstance(value, RangeSweep):
        values = sorted(value.range())
        return {"low": values[0], "high": values[-1], "step": abs(value.step)}
    return {"choices": [word.partition("=")[2] for word in grid.values(override)]}


def with_words(key: str, param: Any) -> dict[str, Any]:
    """A parameter of the config, its choices as they would stand on the command line."""
    if not isinstance(param, dict):
        raise UserError(f"sweep.search.params.{key}={param}: try {{low: 0.001, high: 0.1}}")
    words = ["null" if choice is None else str(choice) for choice in param.get("choices", ())]
    return param | ({"choices": words} if "choices" in param else {})


def made(name: str, config: dict[str, Any] | None) -> Any:
    """The sampler or pruner that the config names, or None."""
    try:
        return instantiate(config)
    except InstantiationException as error:
        raise UserError(f"sweep.search.{name}: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def check_optuna() -> None:
    """Raise UserError where Optuna is missing or older than 4."""
    try:
        found = version("optuna")
    except PackageNotFoundError:
        found = "none"
    if not found[0].isdigit() or int(found.split(".")[0]) < 4:
        raise UserError(
            f"sweep.search: needs Optuna 4 or newer, and there is {found}; try pip install "
            "'classic_cnns[optuna]', or in a checkout pip install -e '.[optuna]'"
        )
