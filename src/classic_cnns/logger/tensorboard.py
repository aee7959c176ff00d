"""TensorBoard logger, with the config, the layer table and a row of hyperparameters for a run."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf
from torch.utils.tensorboard.summary import hparams

# Columns of the HPARAMS tab, which shows the last value of each; those of best/ are of the tested
# checkpoint. They are equal in every run, since TensorBoard takes those of the first.
METRICS = ("best/error/val", "error/test", "best/loss/val", "loss/test", "speed/images_per_second")
# Hyperparameter columns, at most five; in a sweep the varied keys are shown instead.
KEYS = ("data.augment", "optim.lr", "data.batch_size", "trainer.max_epochs", "seed")
# The custom scalars tab: training, validation and test of a metric in one chart.
CHARTS = {
    "metrics": {
        name: ["Multiline", [f"^{metric}/{split}$" for split in ("train", "val", "test")]]
        for name, metric in {
            "error": "(top5_)?error",
            "loss": "loss",
            "accuracy": "accuracy",
        }.items()
    },
    "layers": {name: ["Multiline", [f"^{name}/"]] for name in ("saturated", "dead", "gradient")},
}


class TensorBoard(TensorBoardLogger):
    """Writes scalars, texts, images and the HPARAMS row of one start of a run to one event file.

    The file is in `save_dir`, whose path is the run's name in TensorBoard. Values that an
    interrupted start wrote for steps from `purge_step` on are hidden.
    """

    def __init__(self, save_dir: str | Path, purge_step: int | None = None) -> None:
        super().__init__(
            save_dir, name="", version="", default_hp_metric=False, purge_step=purge_step
        )

    @property
    def log_dir(self) -> str:
        """The run directory; runs of earlier versions continue in their subdirectory."""
        earlier = Path(self.save_dir) / "tensorboard"
        return str(earlier if earlier.is_dir() else self.save_dir)

    @rank_zero_only
    def log_hyperparams(self, params: Any, metrics: Any = None, step: int | None = None) -> None:
        """Write the config as text and as a row of the HPARAMS tab, where metrics join it by name.

        Lightning's own method adds a false first point to the curve of each metric.
        """
        if not {"model", "data", "optim", "trainer", "varied"} <= dict(params).keys():
            return  # a user's module logs its own hyperparameters; the config contains them
        config: Any = OmegaConf.create(params)
        yaml = OmegaConf.to_yaml(config)
        self.experiment.add_custom_scalars(CHARTS)
        self.experiment.add_text("config", "\n".join(f"    {line}" for line in yaml.splitlines()))
        experiment, start, _ = hparams(hyperparameters(config), dict.fromkeys(METRICS, 0.0))
        writer: Any = self.experiment.file_writer
        writer.add_summary(experiment)
        writer.add_summary(start)
        self.experiment.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Flush, and keep the file open: Lightning calls this after training and after testing."""
        self.experiment.flush()

    @rank_zero_only
    def save(self) -> None:
        """Do not write Lightning's hparams.yaml; config.yaml has the same content."""

    @rank_zero_only
    def close(self) -> None:
        _, _, end = hparams({}, {})
        self.experiment.file_writer.add_summary(end)
        self.experiment.close()


def hyperparameters(config: Any) -> dict[str, str | float]:
    values = dict(word.split("=", 1) for word in config.varied)
    if not values:
        values = {"run": config.name} | {key: OmegaConf.select(config, key) for key in KEYS}
    for key, value in values.items():
        if OmegaConf.is_config(value):  # of a data module of the user's own
            values[key] = str(value)
        with suppress(ValueError):  # a text
            values[key] = float(str(value))
    return values
