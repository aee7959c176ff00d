"""Search with Optuna; trial n is job n, and the study is stored in the sweep directory."""

from importlib.metadata import version
from importlib.util import find_spec
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from classic_cnns import UserError, one_line
from classic_cnns.config.schema import as_word
from classic_cnns.sweep.grid import Grid

STUDY = "sweep"  # name in the storage
KEYS = ("n_trials", "params", "pruner", "sampler")
STEPS = 100_000  # at most, of a range
ONE_SEED = ("GridSampler", "QMCSampler")  # their order of values spans all trials


class Search:
    """The parameters of a search, and after `open` its Optuna study.

    `params` has for each key `low` and `high`, with `step` or `log`, or `choices` as words of a
    command line. Sweep overrides on the command line are added to those of the config; a single
    value replaces one. Raises UserError for an invalid search.
    """

    def __init__(self, settings: DictConfig, grid: Grid) -> None:
        found = version("optuna") if find_spec("optuna") else "0"
        if int(found.partition(".")[0]) < 4:
            raise UserError("sweep.search: needs Optuna 4 or newer; try pip install -e '.[optuna]'")
        self.metric, self.direction = settings.metric, settings.direction
        search: dict[str, Any] = OmegaConf.to_container(settings.search)  # type: ignore
        for key in search.keys() - set(KEYS):
            raise UserError(f"sweep.search.{key}: there is no such key; it has {', '.join(KEYS)}")
        self.n_trials: Any = search.get("n_trials")
        if type(self.n_trials) is not int or not 1 <= self.n_trials <= settings.max_jobs:
            raise UserError(
                f"sweep.search.n_trials={as_word(self.n_trials)}: must be a whole number from 1 to "
                f"sweep.max_jobs={settings.max_jobs}; try sweep.search.n_trials=10"
            )
        self.sampler, self.pruner = search.get("sampler"), search.get("pruner")
        self.new_sampler(0)  # raises for a mistake
        build_part("pruner", self.pruner)
        given = {override.get_key_element().lstrip("+") for override in grid.overrides}
        self.params = {
            key: choices_as_words(key, param)
            for key, param in (search.get("params") or {}).items()
            if key not in given
        }
        self.params |= {o.get_key_element(): sweep_param(o, grid) for o in grid.varied}
        self.fixed = [str(o.input_line) for o in grid.overrides if not o.is_sweep_override()]
        if not self.params:
            raise UserError(
                "sweep.search: has no parameters; try sweep values, or sweep.search.params"
            )

    def corners(self) -> list[list[str]]:
        """Jobs that together use both ends, or every choice, of each parameter."""
        from optuna.trial import FixedTrial

        ends = {
            key: param.get("choices") or [param.get("low"), param.get("high")]
            for key, param in self.params.items()
        }
        first = {key: values[0] for key, values in ends.items()}
        jobs = []
        for key, values in ends.items():
            for value in values:
                jobs.append(self.suggest(FixedTrial(first | {key: value})))
        return jobs

    def suggest(self, trial: Any) -> list[str]:
        """The overrides of a trial's job; values that were suggested before are kept."""
        varied = (f"{key}={suggest(trial, key, param)}" for key, param in self.params.items())
        return [*self.fixed, *varied]

    def new_sampler(self, trials: int) -> Any:
        """A sampler seeded by the trial's number, so that a continued search repeats no draws."""
        own: dict[str, Any] = dict(self.sampler or {})
        seed = own.get("seed")
        if isinstance(seed, int) and not str(own.get("_target_")).endswith(ONE_SEED):
            own["seed"] = seed + trials
        return build_part("sampler", own or None)

    def open(self, path: Path) -> None:
        """Open the study in the file `path`, or create it."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        pruner = build_part("pruner", self.pruner) or optuna.pruners.NopPruner()
        try:
            storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
            self.study = optuna.create_study(
                storage=storage,
                study_name=STUDY,
                direction=self.direction,
                sampler=self.new_sampler(0),
                pruner=pruner,
                load_if_exists=True,
            )
        except Exception as error:  # a file from elsewhere can raise anything
            line = one_line(error)[:100]
            raise UserError(f"{path}: is not the study of a search ({line}); restore it") from error
        self.trials: list[Any] = list(self.study.trials)
        study = storage.get_study_id_from_name(STUDY)
        for number, trial in enumerate(self.trials):
            if not trial.state.is_finished():
                known = storage.get_trial_id_from_study_id_trial_number(study, number)
                self.trials[number] = optuna.trial.Trial(self.study, known)

    def is_over(self, number: int) -> bool:
        """Whether the study has the end of a trial."""
        return self.study.get_trials(deepcopy=False)[number].state.is_finished()

    @property
    def left(self) -> int:
        """The number of trials that are still to be started."""
        return max(0, self.n_trials - len(self.trials))

    def ask(self) -> list[str]:
        """The overrides of a new trial."""
        if sampler := self.new_sampler(len(self.trials)):
            self.study.sampler = sampler
        self.trials.append(self.study.ask())
        return self.suggest(self.trials[-1])

    def report(self, number: int, line: dict[str, Any]) -> bool:
        """Report one line of metrics.jsonl to the pruner; returns whether to prune the trial."""
        value, step = line["metrics"].get(self.metric), line["epoch"] - 1  # Optuna counts from 0
        known = self.study.get_trials(deepcopy=False)[number].intermediate_values
        if value is None or step in known:
            return False
        self.trials[number].report(value, step)
        return self.trials[number].should_prune()

    def tell(self, number: int, state: str, metrics: dict[str, float]) -> None:
        """Tell the study how a job has ended; an interrupted job will be continued later."""
        from optuna.trial import TrialState

        value, ending = metrics.get(self.metric), TrialState.FAIL
        if state == "finished" and value is not None and isfinite(value):
            ending = TrialState.COMPLETE
        elif state == "pruned":
            ending = TrialState.PRUNED
        if state == "interrupted":
            return
        value = value if ending == TrialState.COMPLETE else None
        try:
            self.study.tell(number, value, ending, skip_if_finished=True)
        except RuntimeError:  # raised by grid samplers when all values are done
            self.n_trials = len(self.trials)


def suggest(trial: Any, key: str, param: dict[str, Any]) -> str:
    """The trial's value for a parameter, as a word; UserError for an invalid parameter."""
    integers = all(type(param.get(end)) is int for end in ("low", "high"))
    try:
        if "choices" in param:
            return trial.suggest_categorical(key, **param)
        return repr((trial.suggest_int if integers else trial.suggest_float)(key, **param))
    except (TypeError, ValueError) as error:
        line = one_line(error).partition("() ")[2] or one_line(error).rstrip(".")
        raise UserError(
            f"sweep.search.params.{key}: {line}; try low and high, with log or step, or choices"
        ) from error


def sweep_param(override: Override, grid: Grid) -> dict[str, Any]:
    """The parameter that a sweep override of the command line describes."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        return {"low": value.start, "high": value.end, "log": "log" in value.tags}
    if isinstance(value, RangeSweep) and "log" in value.tags:
        raise UserError(f"{override.input_line}: steps are not on a log scale; try interval(a,b)")
    if isinstance(value, RangeSweep):
        values = list(islice(value.range(), STEPS + 1))
        if len(values) > STEPS:
            raise UserError(f"{override.input_line}: has too many steps; try interval(a,b)")
        return {"low": min(values), "high": max(values), "step": abs(value.step)}
    return {"choices": [word.partition("=")[2] for word in grid.values(override)]}


def choices_as_words(key: str, param: Any) -> dict[str, Any]:
    """A parameter of the config, with its choices as words of a command line."""
    if not isinstance(param, dict):
        raise UserError(f"sweep.search.params.{key}={param}: try {{low: 0.001, high: 0.1}}")
    words = ["null" if choice is None else str(choice) for choice in param.get("choices", ())]
    return param | ({"choices": words} if "choices" in param else {})


def build_part(name: str, config: dict[str, Any] | None) -> Any:
    """The sampler or pruner that the config describes, or None."""
    try:
        return instantiate(config)
    except InstantiationException as error:
        line = one_line(error.__cause__ or error)
        raise UserError(f"sweep.search.{name}: {line}; try one of optuna.{name}s") from error
