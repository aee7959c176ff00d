"""Train one network on one data set and report its test error.

python src/train.py model=lenet5 data=mnist
python src/train.py -m data.augment=none,shift 'seed=range(3)'
python src/train.py trainer=ddp trainer.devices=2
python src/train.py --help
"""

from omegaconf import DictConfig

from classic_cnns.command_line import command
from classic_cnns.devices import started_outside
from classic_cnns.trainer.launch import in_rank, launch


def train(config: DictConfig) -> None:
    if config.trainer.devices > 1 and started_outside() is None:
        return launch(config.trainer.devices)

    def task() -> None:
        from classic_cnns.run import run  # here, since importing torch takes seconds

        run(config)

    in_rank(task)


if __name__ == "__main__":
    command(train, config_name="train")
