"""What options of the command line have to choose from."""

from __future__ import annotations

from enum import Enum

__all__ = ["Baseline", "Dataset", "OnBadFile", "Scale", "View", "Weights"]


class Scale(str, Enum):
    """How large a simulated feed is."""

    tiny = "tiny"
    small = "small"
    large = "large"


class Weights(str, Enum):
    """Whether training rows are weighted."""

    ips = "ips"
    none = "none"


class OnBadFile(str, Enum):
    """What a file that cannot be read does."""

    stop = "stop"
    skip = "skip"


class View(str, Enum):
    """Which trainer reads the training rows."""

    torchrec = "torchrec"
    hugectr = "hugectr"


class Baseline(str, Enum):
    """What the model is measured beside, the constant apart."""

    logistic = "logistic"
    mlp = "mlp"
    lightgbm = "lightgbm"
    lightgbm_ids = "lightgbm_ids"


class Dataset(str, Enum):
    """Published logs that can be laid out (etl.datasets)."""

    kuairand = "kuairand"
    obd = "obd"
    movielens = "movielens"
