"""How ETL runs; what it computes is the FeedSpec's."""

from __future__ import annotations

from datetime import date
from typing import Literal

from pydantic import Field

from sparsefeed.etl.spec import Frozen

__all__ = ["ClusterConfig", "EtlConfig"]


class ClusterConfig(Frozen):
    """Where ETL runs."""

    workers: int = Field(default=2, ge=0)  # processes, 0: this one; on GPUs one per device whatever is said here
    address: str | None = None  # of a running scheduler, "tcp://host:port"; None starts a cluster here
    gpu: bool | None = None  # None: if cuDF and a device are there


class EtlConfig(Frozen):
    """The cluster, the split and the size of what is written."""

    cluster: ClusterConfig = ClusterConfig()
    since: date | None = None  # the first day to read; None: the first there is
    until: date | None = None  # the last; None: the last there is
    train_from: date | None = None  # the first day whose rows are written; those before it are only fitted on
    eval_days: int = Field(default=1, ge=1)  # the last days, held out for evaluation
    partition_rows: int = Field(default=500_000, ge=1)  # read, and written as one file, by one task
    min_files: int = Field(default=1, ge=1)  # files of training rows, at least one per device; row groups are not cut
    row_group_rows: int = Field(default=65_536, ge=1)
    shuffle: bool = False  # rows of a file
    on_bad_file: Literal["stop", "skip"] = "stop"  # a file that cannot be read: an error, or left out and recorded
    shuffle_seed: int = Field(default=0, ge=0)
    view: Literal["torchrec", "hugectr"] = "torchrec"  # who reads the training rows

    @property
    def shuffles(self) -> bool:
        """Whether rows of a file are shuffled: always for HugeCTR, which shuffles batches alone."""
        return self.shuffle or self.view == "hugectr"
