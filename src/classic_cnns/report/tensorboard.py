"""What TensorBoard shows beside curves: config, layers, an HPARAMS row a run, and pictures."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils.tensorboard.summary import hparams

from classic_cnns.report import pictures

# The columns of the HPARAMS tab, the same in every run: TensorBoard takes them from the first one.
METRICS = ("error/val", "error/test", "loss/val", "loss/test", "speed/images_per_second")
# Its other columns; in a sweep what it varies instead, since TensorBoard shows the first five only.
KEYS = ("data.augment", "optim.lr", "data.batch_size", "trainer.max_epochs", "seed")


def hyperparameters(config: DictConfig) -> dict[str, str | float]:
    values = dict(word.split("=", 1) for word in config.varied)
    values = values or {"run": config.name} | {key: OmegaConf.select(config, key) for key in KEYS}
    for key, value in values.items():
        with suppress(ValueError):  # a text
            values[key] = float(str(value))
    return values


class RunLogger(TensorBoardLogger):
    """Scalars, texts and the HPARAMS row of one start of a run, all in one event file."""

    def __init__(self, directory: Path, first_step: int) -> None:
        super().__init__(
            directory,
            name="",
            version="tensorboard",
            default_hp_metric=False,
            purge_step=first_step,  # what an interrupted start wrote from there on is not shown
        )

    def write_start(self, config: DictConfig, layer_table: str) -> None:
        """The config and the layers as text, and the hyperparameters; metrics join by their tags.

        Lightning's log_hyperparams would add a false first point to the curve of each metric.
        """
        yaml = OmegaConf.to_yaml(config, resolve=True)
        self.experiment.add_text("config", "\n".join(f"    {line}" for line in yaml.splitlines()))
        self.experiment.add_text("layers", layer_table)
        experiment, start, _ = hparams(hyperparameters(config), dict.fromkeys(METRICS, 0.0))
        self.experiment.file_writer.add_summary(experiment)
        self.experiment.file_writer.add_summary(start)
        self.experiment.flush()

    def write_test(
        self, best: dict, net: nn.Module, answers: Tensor, mistakes: list, names: Sequence[str]
    ) -> None:
        """Pictures of a test with the checkpoint `best`: the whole weights, where `net` is cut."""
        board, step = self.experiment, best["global_step"]
        convolutions = [n for n, layer in net.named_modules() if isinstance(layer, nn.Conv2d)]
        for name in convolutions[:1]:
            weights = best["state_dict"][f"net.{name}.weight"]
            image = pictures.kernels(weights, getattr(net, "towers", 1))
            board.add_image(f"kernels/{name}", image, step)
        if len(answers) <= 20:  # classes
            board.add_text("confusion/test", pictures.confusion(answers, names), step)
        if mistakes:
            board.add_image("mistakes/test", pictures.mistakes(mistakes, names), step)

    def finalize(self, status: str) -> None:
        """Lightning calls this after training and again after testing: the file stays open."""
        self.experiment.flush()

    def save(self) -> None:
        """Without Lightning's hparams.yaml, since config.yaml says it all."""

    def close(self) -> None:
        _, _, end = hparams({}, {})
        self.experiment.file_writer.add_summary(end)
        self.experiment.close()
