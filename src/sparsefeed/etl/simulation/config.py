"""What a simulation is asked for: one dial of scale, every size derived from it and open to change."""

from __future__ import annotations

from datetime import date
from typing import Any, Literal

from pydantic import Field, model_validator

from sparsefeed.etl.spec import Frozen

__all__ = ["SimulateConfig"]

# Sizes of the other scales; those of "tiny" are the defaults below.
_SCALES: dict[str, dict[str, int]] = {
    "small": {
        "num_sessions_per_day": 143_000,
        "num_members": 150_000,
        "num_creators": 12_000,
        "num_posts_per_day": 8_000,
        "num_hashtags": 8_000,
    },
    "large": {
        "num_sessions_per_day": 14_300_000,
        "num_members": 6_000_000,
        "num_creators": 300_000,
        "num_posts_per_day": 300_000,
        "num_hashtags": 150_000,
    },
}


class SimulateConfig(Frozen):
    """One simulated feed; equal configs give equal logs.

    Example:
        >>> SimulateConfig(scale="small", num_members=1000).num_creators
        12000
    """

    scale: Literal["tiny", "small", "large"] = "tiny"  # 1 million, 10 million, 1 billion impressions in 7 days
    seed: int = Field(default=0, ge=0)
    start: date = date(2026, 11, 2)  # the first day, UTC
    days: int = Field(default=7, ge=1, le=366)
    random_share: float = Field(default=0.2, ge=0, le=1)  # of sessions, on either surface
    explore_share: float = Field(default=0.2, ge=0, le=1)  # of sessions on "explore"; the others are on "home"
    num_sessions_per_day: int = Field(default=14_300, ge=1)  # ten impressions each
    num_members: int = Field(default=20_000, ge=1)  # of the whole time; a part of them joins on the way
    num_creators: int = Field(default=2_000, ge=1)
    num_posts_per_day: int = Field(default=1_200, ge=60)  # shown for three days each
    num_hashtags: int = Field(default=1_500, ge=12)  # at least one per topic

    @model_validator(mode="before")
    @classmethod
    def _sizes_of_the_scale(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {**_SCALES.get(str(value.get("scale")), {}), **value}
