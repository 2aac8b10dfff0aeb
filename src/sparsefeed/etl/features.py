"""Features and tables: what a FeedSpec is made of, each declared once, where it stands."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from sparsefeed.etl.ids.codes import MOST_PAIRED_ROWS

__all__ = [
    "DenseFeature",
    "Feature",
    "Frozen",
    "HistoryFeature",
    "IdFeature",
    "IdListFeature",
    "Name",
    "Side",
    "Table",
    "side_of",
]

# Table and bundle names reach HPS, which accepts nothing else (docs/contracts/tables.md).
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,120}$")]
Side = Literal["member", "candidate"]


class Frozen(BaseModel):
    """Base of every declaration: immutable; unknown keys, NaN and infinities refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Table(Frozen):
    """One embedding table and the admission policy of its ids (docs/contracts/ids.md)."""

    name: Name
    dim: int = Field(multiple_of=4, ge=4, le=256)  # floats per row
    min_count: int = Field(default=1, ge=1)  # impressions before an id gets a row of its own
    tail_rows: int = Field(default=64, ge=1)  # shared by rare and unseen ids
    # What such an id reads: a row that its hash chooses, or the sum of two, one of each half of the tail, so that T
    # rows tell (T / 2)^2 ids apart; each id of the table then costs serving two keys (etl.ids.codes).
    tail: Literal["hashed", "quotient_remainder"] = "hashed"
    max_ids: int | None = Field(default=None, ge=1)  # keep the most frequent; None keeps all
    fingerprint_bits: Literal[8, 16, 32, 64] = 16  # an unseen id is taken for a seen one at 2^-bits

    @model_validator(mode="after")
    def _tail_has_halves(self) -> Table:
        rows = self.tail_rows
        if self.tail != "hashed" and (rows % 2 or not 4 <= rows <= MOST_PAIRED_ROWS):
            raise ValueError(
                f"tail_rows: got {rows}; a quotient_remainder tail has two halves: an even number, 4 to "
                f"{MOST_PAIRED_ROWS}"
            )
        return self

    @property
    def paired_tail(self) -> bool:
        """Whether an id without a row of its own is two rows of the tail."""
        return self.tail == "quotient_remainder"

    @property
    def keys_per_id(self) -> int:
        """Rows that an id is at most, and keys that serving asks for each."""
        return 2 if self.paired_tail else 1


class IdFeature(Frozen):
    """One string id per impression, looked up in `table`."""

    kind: Literal["id"]
    name: Name
    table: Name
    side: Side


class IdListFeature(Frozen):
    """Several string ids per impression (hashtags), pooled after the lookup."""

    kind: Literal["ids"]
    name: Name
    table: Name
    side: Side
    pooling: Literal["mean", "sum"] = "mean"
    max_length: int = Field(default=8, ge=1, le=1024)  # ids beyond it are dropped, in order


class DenseFeature(Frozen):
    """One number per impression: filled, optionally log(1+x), then standardised."""

    kind: Literal["dense"]
    name: Name
    side: Side
    fill: float = 0.0  # replaces null and NaN
    log: bool = False  # log(1 + max(x, 0)) before standardisation


class HistoryFeature(Frozen):
    """Ids of feature `of` that the member gave `response` to, before this impression.

    Order `recent` lists events, the last first, an id as often as it was met. Order `frequent` lists each id once, the
    most frequent first, of equal ones the last met; of a member's last 512 events of the window.

    Pooling `learned` has a weight per place of the list, a softmax over the places that are filled: what is first in
    the order may count for more. It begins as the mean (models.dense.LearnedPooling).
    """

    kind: Literal["history"]
    name: Name
    of: Name  # an `id` feature of the candidate; its table is shared
    response: Name
    pooling: Literal["mean", "sum", "learned"] = "mean"
    max_length: int = Field(default=20, ge=1, le=1024)
    order: Literal["recent", "frequent"] = "recent"
    window_days: float | None = Field(default=None, gt=0)  # events older than this are left out; None: all count


Feature = Annotated[IdFeature | IdListFeature | DenseFeature | HistoryFeature, Field(discriminator="kind")]


def side_of(feature: Feature) -> Side:
    """The side a feature belongs to; a history is the member's."""
    return "member" if isinstance(feature, HistoryFeature) else feature.side
