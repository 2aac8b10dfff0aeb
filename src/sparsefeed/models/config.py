"""Settings of the model and of its training; free of torch, so that a command that does not train starts at once."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from sparsefeed.etl.spec import Frozen, Name

__all__ = ["CalibrationKind", "ColdStart", "Int8Limits", "ModelConfig", "Sharding", "TrainConfig", "Validation"]

Sharding = Literal["table_wise", "row_wise", "column_wise", "data_parallel"]
CalibrationKind = Literal["platt", "isotonic", "none"]


class ModelConfig(Frozen):
    """Shape of the model; every trainer, export and checkpoint carries it."""

    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(128, 64), min_length=1)  # width per gated layer
    gate: bool = True  # False: relu(W h) alone
    dropout: float = Field(default=0.0, ge=0, lt=1)  # share of a gated layer's outputs that a step leaves out
    experts: int = Field(default=1, ge=1)  # gated networks that each response mixes for itself; 1: all share one
    interactions: bool = True  # dot products of the lookups' vectors, pair by pair
    cross_layers: int = Field(default=2, ge=0, le=8)  # 0: no cross network, the head sees the raw input
    cross_rank: int = Field(default=32, ge=1)
    cross_residual: bool = True  # False: a cross layer does not add its input
    table_init: float = Field(default=0.05, gt=0)  # embedding rows begin uniform in [-table_init, table_init]


class Int8Limits(Frozen):
    """How far a dense model in 8 bits may be from the exact one on held-out rows (models.int8)."""

    probability: float = Field(default=0.03, ge=0, allow_inf_nan=False)  # greatest change of one
    auc: float = Field(default=0.001, ge=0, allow_inf_nan=False)  # greatest change of a response's
    log_loss: float = Field(default=0.001, ge=0, allow_inf_nan=False)


class ColdStart(Frozen):
    """What the rows of a table's new ids begin with when a day is trained (models.torchrec.cold_start)."""

    start: Literal["random", "tail", "features", "similar"] = "tail"
    features: tuple[Name, ...] = ()  # for `features` and `similar`: id, ids or history features of other tables


class Validation(Frozen):
    """The last rows of the training days, which are not trained but watched; training stops when it helps no more."""

    rows: int = Field(default=100_000, ge=1)  # at least; whole row groups
    every: int = Field(default=200, ge=1)  # steps
    patience: int = Field(default=3, ge=1)  # times in a row that the loss was not the least so far


class TrainConfig(Frozen):
    """How to train; equal configurations on equal data give equal loss curves on a CPU."""

    # What may change when a run is resumed: where and how the same steps are done.
    PLACE: ClassVar = (
        "processes",
        "micro_batches",
        "sharding",
        "read_threads",
        "batches_ahead",
        "autotune_io",
        "log_every",
        "checkpoint_every_s",
    )

    ON_CPU: ClassVar = 2  # ranks where `processes` is None and there is no GPU

    processes: int | None = Field(default=None, ge=1)  # ranks; None: one per GPU, or ON_CPU
    batch_size: int = Field(default=8192, ge=1)  # rows of a global batch, over all ranks
    micro_batches: int = Field(default=1, ge=1)  # slices in which a rank's share goes through the dense model
    sharding: dict[str, Sharding] = Field(default_factory=dict)  # of tables; the others are planned (models.plan)
    dense_precision: Literal["fp32", "bf16"] = "fp32"  # of what the dense model computes; its weights are float32
    validation: Validation | None = None  # None: train all rows to the end; else the best checkpoint is the last
    tensorboard: bool = False  # write the curve for TensorBoard too, in the training folder
    deterministic: bool = False  # refuse operations whose result may differ from run to run (on GPUs: slower)
    epochs: int = Field(default=1, ge=1)
    reset_tables: bool = False  # each epoch after the first has the tables begin anew (arXiv 2407.01607)
    dense_learning_rate: float = Field(default=2e-3, gt=0)  # Adam
    day_learning_rate: float | None = Field(default=None, gt=0)  # that of an added day, trained already; None: the same
    table_learning_rate: float = Field(default=0.1, gt=0)  # row-wise Adagrad
    table_initial_gradient: float = Field(default=0.1, ge=0)  # times batch_size, which every row's Adagrad begins with
    warmup: float = Field(default=0.05, ge=0, le=1)  # share of all steps over which both rates rise from 0
    dense_decay: float = Field(default=0.0, ge=0, le=1)  # share of all steps, the last, over which the dense one falls
    cold_start: dict[Name, ColdStart] = Field(default_factory=dict)  # by table; of the others: `tail`
    weights: Literal["ips", "none"] = "ips"  # none: leave the w_ columns unread, every weight is 1
    order: Literal["time", "shuffled"] = "time"  # of row groups; by time the last rows, most like what comes, are last
    shuffle_rows: int = Field(default=2**18, ge=1)  # rows a rank shuffles at a time
    read_threads: int = Field(default=1, ge=1)  # row groups that a rank reads at once
    batches_ahead: int = Field(default=4, ge=0)  # made before they are asked for
    autotune_io: bool = False  # try both on the first steps, and go on with the best
    seed: int = Field(default=0, ge=0)
    log_every: int = Field(default=20, ge=1)  # steps
    checkpoint_every_s: float = Field(default=300.0, gt=0)  # besides the one at the end

    @property
    def initial_accumulator(self) -> float:
        """Of row-wise Adagrad, for rows that nothing was learnt of.

        A loss is a mean over the batch, so gradients are of the order 1 / batch_size. Without it the first row of a
        batch that has a new id moves that id's row by the learning rate in every float, whatever it says.
        """
        return (self.table_initial_gradient / self.batch_size) ** 2

    @property
    def of_a_day(self) -> TrainConfig:
        """How a day that is added is trained: with `reset_tables` once, or it would forget the days before it."""
        rate = self.day_learning_rate or self.dense_learning_rate
        epochs = 1 if self.reset_tables else self.epochs
        return self.model_copy(update={"dense_learning_rate": rate, "epochs": epochs, "reset_tables": False})

    @model_validator(mode="after")
    def _can_be_judged(self) -> TrainConfig:
        if self.reset_tables and self.validation:
            raise ValueError("reset_tables: cannot go with validation, whose loss rises anew with each epoch; drop one")
        return self

    @model_validator(mode="after")
    def _can_be_split(self) -> TrainConfig:
        if self.processes and self.batch_size % self.processes:
            raise ValueError(f"batch_size: got {self.batch_size}; must be a multiple of processes ({self.processes})")
        return self
