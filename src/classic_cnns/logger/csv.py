"""CSV logger that keeps the rows of a run that is resumed."""

import csv
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only

from classic_cnns import UserError


class CSV(CSVLogger):
    """Writes all metrics to `metrics.csv` in a folder of the run directory.

    Rows that an interrupted start wrote for steps from `purge_step` on are left out. `options` are
    arguments of CSVLogger, which itself would delete the file of an earlier start.
    """

    def __init__(self, save_dir: str | Path, purge_step: int | None = None, **options: Any) -> None:
        super().__init__(save_dir, **options)
        path = Path(self.log_dir) / "metrics.csv"
        if purge_step is not None and path.exists() and rank_zero_only.rank == 0:  # type: ignore
            try:
                with open(path, newline="") as file:
                    rows = [row for row in csv.DictReader(file) if int(row["step"]) < purge_step]
            except (csv.Error, KeyError, TypeError, ValueError) as error:
                line = f"{path}: is not the file of an earlier start; move it to another folder"
                raise UserError(line) from error
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the file will be deleted
                self.experiment.metrics = [
                    {key: value for key, value in row.items() if value} for row in rows
                ]
            self.save()
