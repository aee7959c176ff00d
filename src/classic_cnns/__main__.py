"""The one command: `python src/train.py`, `classic-cnns` or `python -m classic_cnns`.

From its words to a checked config, and then to one run, to one rank of several, or to a sweep.
"""

import sys

from omegaconf import DictConfig, OmegaConf

from classic_cnns import UserError, program
from classic_cnns.config import command_line
from classic_cnns.config.compose import CONF, Composer
from classic_cnns.trainer import devices
from classic_cnns.trainer.launch import in_rank, launch


def main() -> None:
    with command_line.one_line_errors():
        given = command_line.parse(sys.argv[1:])
        if given.shell_completion:
            return complete()
        composer = Composer(given.config_dir, given.config_name, given.trust)
        if given.help:
            lines = [f"{name}: {', '.join(found)}" for name, found in composer.groups.items()]
            print(command_line.HELP.format(program=program(), groups="\n".join(lines)))
        elif given.multirun:
            from classic_cnns.sweep import run_sweep

            sys.exit(run_sweep(given.words, command_line.flags(given), composer))
        else:
            of_sweep = [word for word in given.words if word.lstrip("+").startswith("sweep")]
            if of_sweep:
                raise UserError(f"{of_sweep[0]}: is for a sweep, which -m starts; add -m")
            if given.cfg:
                config = composer.compose(given.words, resolve=given.resolve)
                print(OmegaConf.to_yaml(config), end="")
            else:
                run_single(composer.compose(given.words))


def run_single(config: DictConfig) -> None:
    """One run, in this process or in one for each device."""
    devices.share_cores()
    count = devices.count(config.trainer.devices)
    if count > 1 and devices.started_outside() is None:
        return launch(count)

    def task() -> None:
        from classic_cnns.run.run import run  # here, since importing torch takes seconds

        run(config)

    in_rank(task)


def complete() -> None:
    """Hydra's completion of words in a shell."""
    import hydra

    hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")(lambda _: None)()


if __name__ == "__main__":
    main()
