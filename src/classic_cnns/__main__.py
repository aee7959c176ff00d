"""The command `python src/train.py`, `classic-cnns` or `python -m classic_cnns`.

Composes the config, then starts one run, one rank of several, or a sweep.
"""

import sys

from omegaconf import DictConfig, OmegaConf

from classic_cnns import UserError, program
from classic_cnns.config import command_line
from classic_cnns.config.compose import CONF, Composer
from classic_cnns.trainer.launch import run_in_ranks
from classic_cnns.trainer.spinning import limit_spinning


def main() -> None:
    with command_line.one_line_errors():
        given = command_line.parse_command(sys.argv[1:])
        if given.shell_completion:
            return complete(given.words)
        composer = Composer(given.config_dir, given.config_name, given.trust)
        if given.help:
            lines = [f"{name}: {', '.join(found)}" for name, found in composer.groups.items()]
            print(command_line.HELP.format(program=program(), groups="\n".join(lines)))
        elif given.multirun:
            from classic_cnns.sweep.sweep import run_sweep

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
    limit_spinning()

    def task() -> None:
        from classic_cnns.run.run import run  # here, since importing torch takes seconds

        if run(config)["status"] == "diverged":  # which it has reported
            sys.exit(1)

    run_in_ranks(config.trainer, task)


def complete(words: list[str]) -> None:
    """Hydra's shell completion."""
    if not any(word.startswith(("install=", "uninstall=", "query=")) for word in words):
        raise UserError(
            "--shell-completion: needs a shell; try --shell-completion install=bash, zsh or fish"
        )
    import hydra

    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")(lambda _: None)()
    except ValueError as error:  # only Python 3.14 does not accept the help of Hydra 1.3
        raise UserError(
            f"--shell-completion: does not work with Hydra {hydra.__version__} on this version of "
            f"Python ({error}); try another version"
        ) from error


if __name__ == "__main__":
    main()
