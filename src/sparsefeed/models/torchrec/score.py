"""Scoring of training rows on one process: what evaluation reads and what serving is held equal to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import torch
from torch import nn

from sparsefeed.errors import DataError
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.torchrec.checkpoint import Checkpoint, load_model
from sparsefeed.models.torchrec.columns import Rows, check_trained_on, held_out_parts, open_split, read_part
from sparsefeed.models.torchrec.earlier_ids import earlier_rows
from sparsefeed.models.torchrec.lookup_keys import lookup_order
from sparsefeed.models.torchrec.tables import RankingModel, embedding_tables

__all__ = ["Scorer"]

_BATCH_ROWS = 8192


class Scorer:
    """A trained model without sharding; the tables stay memory-mapped.

    Example:
        >>> scorer = Scorer(spec, latest(run))  # doctest: +SKIP
        >>> logits = scorer.score("etl/eval", random_only=True)  # doctest: +SKIP
    """

    def __init__(self, spec: FeedSpec, checkpoint: str | Path) -> None:
        """Load a checkpoint.

        Raises:
            TrainError: It was trained with another spec.
            BadFileError: A file of it is missing or damaged.
        """
        dense, arrays = load_model(checkpoint, spec)
        self._checkpoint = Path(checkpoint)
        self._etl = Checkpoint.read(self._checkpoint).etl
        self._spec = spec
        self._capacities = {name: len(array) for name, array in arrays.items()}
        tables = embedding_tables(spec, self._capacities, torch.device("meta"))
        for name, array in arrays.items():
            tables.embedding_bags[name].weight = nn.Parameter(torch.from_numpy(array), requires_grad=False)
        self._order = lookup_order(spec)
        self._model = RankingModel(spec, tables, dense).eval()

    def replace_table(self, name: str, rows: npt.NDArray[np.float32]) -> None:
        """Score with other rows [capacity_rows, dim] of a table: those that a bundle of few bits gives, say."""
        self._model.tables.embedding_bags[name].weight = nn.Parameter(torch.from_numpy(rows), requires_grad=False)

    def score(
        self, folder: str | Path, random_only: bool = False, chain: Sequence[Path] = (), held_out: int = 0
    ) -> npt.NDArray[np.float32]:
        """Uncalibrated logits [n, R] of `ETL/train` or `ETL/eval`, in the order of its files and rows.

        Args:
            folder: With `*.parquet` of docs/contracts/training.md; read one row group at a time.
            random_only: Score the rows of random sessions alone.
            chain: Where the rows are of a day that was added after the checkpoint was trained: the ETL results from the
                checkpoint's to the day's. Ids that are new since are read as the checkpoint's own map reads them.
            held_out: Score the last row groups alone, which training with so many `validation.rows` leaves out; 0: all.

        Raises:
            DataError: A column is missing, of another type, or holds an id outside its table.
            BadFileError: A file cannot be read.
            TrainError: The rows are of another ETL run than the checkpoint's.
        """
        folder = Path(folder)
        if chain and chain[-1] != folder.parent:
            raise DataError(f"{folder}: is not of {chain[-1]}, with which the chain of days ends")
        check_trained_on(self._checkpoint, self._etl, chain[0] if chain else folder.parent)
        earlier = earlier_rows(self._spec, chain) if chain else {}
        capacities = {**self._capacities, **{name: len(rows) for name, rows in earlier.items()}}
        columns = Rows.columns(self._spec, weights=False)
        parts = open_split(self._spec, folder.parent, folder.name, columns)
        if held_out:
            _, parts = held_out_parts(parts, held_out)
        if random_only:
            columns = (*columns, "random")
        logits = [np.zeros((0, len(self._spec.responses)), np.float32)]
        for part in parts:
            table = read_part(self._spec, part, columns, capacities)
            if random_only:
                table = table.filter(pc.equal(table.column("random"), 1))
            logits.append(self.score_rows(Rows.from_arrow(self._spec, table, earlier)))
        return np.concatenate(logits)

    def score_rows(self, rows: Rows) -> npt.NDArray[np.float32]:
        """Uncalibrated logits [N, R] of rows in memory."""
        logits = np.empty(rows.labels_NR.shape, np.float32)
        with torch.inference_mode():
            for start in range(0, len(rows), _BATCH_ROWS):
                stop = min(start + _BATCH_ROWS, len(rows))
                logits[start:stop] = self._model(rows.batch(self._order, start, stop)).numpy()
        return logits
