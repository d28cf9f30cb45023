"""What can be watched while a model trains: a table, and TensorBoard."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd


class EpochLog(logging.Handler):
    """Takes the history from the message that a training logs after every epoch, and writes it.

    Parameters
    ----------
    path
        Table to write, CSV with one row per epoch. It is always whole, and complete after a resume too.
    board
        Writer of TensorBoard.
    """

    def __init__(self, path: Path, board: Any = None) -> None:
        super().__init__()
        self.path, self.board = path, board
        self.n_shown = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write the history that comes with a message."""
        if hasattr(record, "history"):
            self.write(pd.DataFrame(record.history).rename_axis("epoch"))

    def write(self, history: pd.DataFrame) -> None:
        """Write one row per epoch."""
        part = self.path.with_name(self.path.name + ".part")
        history.to_csv(part, float_format="%.6g")
        part.replace(self.path)
        if self.board is None:
            return
        for epoch, row in history.iloc[self.n_shown :].iterrows():
            for name, value in row.drop("stage").dropna().items():
                self.board.add_scalar(name, value, epoch)
        self.n_shown = len(history)
        self.board.flush()


@contextmanager
def epoch_log(folder: Path, *, tensorboard: bool = False) -> Iterator[EpochLog]:
    """Write ``history.csv`` after every epoch of the trainings in the block; they need a checkpoint.

    Parameters
    ----------
    folder
        Where the table goes, and below it, in ``tensorboard``, the files for TensorBoard.
    tensorboard
        Write them.

    Raises
    ------
    ImportError
        If tensorboard is asked for and not installed.
    """
    log = EpochLog(folder / "history.csv", _board(folder / "tensorboard") if tensorboard else None)
    logger = logging.getLogger("stage_sc.train")
    level = logger.level
    logger.addHandler(log)
    logger.setLevel(logging.INFO)
    try:
        yield log
    finally:
        logger.setLevel(level)
        logger.removeHandler(log)
        if log.board is not None:
            log.board.close()


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "`--tensorboard` needs tensorboard: run `pip install tensorboard`, or leave the option out and look at "
            "history.csv."
        ) from error
    return SummaryWriter(folder, purge_step=0)  # all epochs are written again after a resume
