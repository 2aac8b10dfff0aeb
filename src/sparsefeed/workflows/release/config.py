"""How releases are kept and canaries judged; a recipe's section `release`."""

from __future__ import annotations

from pydantic import Field

from sparsefeed.etl.spec import Frozen

__all__ = ["Gate", "Guardrails", "ReleaseConfig", "Schedule"]


class Guardrails(Frozen):
    """What a canary may be worse by; beyond it, it is aborted. A rail that is None is not watched."""

    confidence: float = Field(default=0.99, gt=0.5, lt=1)  # of all rails together, however often one looks
    min_requests: int = Field(default=500, ge=1)  # of the canary, before it may pass
    error_rate: float | None = Field(default=0.005, ge=0, lt=1)  # canary's minus stable's
    p99_ratio: float | None = Field(default=1.5, ge=1)  # canary's p99 latency over stable's
    psi: float | None = Field(default=0.25, gt=0)  # population stability index of scores, ten bins
    ks: float | None = Field(default=None, gt=0, lt=1)  # largest difference of the scores' cumulative shares
    unknown_rate: float | None = Field(default=0.05, ge=0, lt=1)  # of posts without a row, canary's minus stable's
    response_drop: float | None = Field(default=0.1, ge=0, lt=1)  # relative, of each response's rate, by posted labels
    design_effect: float = Field(default=1.0, ge=1)  # how much more rates vary than if events were independent


class Gate(Frozen):
    """What a refreshed model must not be worse by than the current one, to become a version."""

    held_out_rows: int = Field(default=10_000, ge=1)  # of a day's last rows, which are not trained; whole row groups
    confidence: float = Field(default=0.99, gt=0.5, lt=1)  # of each response's bound
    tolerance: float = Field(default=0.0, ge=0)  # share by which a log loss may grow


class Schedule(Frozen):
    """What `sparsefeed loop` does beside a day's refresh, and after how many days; None: never."""

    retrain_every: int | None = Field(default=None, ge=1)  # since the last day that the base read: all is made anew
    retrain_days: int | None = Field(default=None, ge=2)  # that a retrain reads, the day included; None: as etl.since
    fold_every: int | None = Field(default=None, ge=1)  # since a version was whole: its overlays become whole files


class ReleaseConfig(Frozen):
    """How releases are kept and canaries judged."""

    keep_versions: int = Field(default=3, ge=2, le=50)  # those that something names apart
    canary_percent: float = Field(default=5.0, gt=0, le=100)
    look_every_s: float = Field(default=10.0, gt=0)  # of `canary watch`
    guardrails: Guardrails = Guardrails()
    gate: Gate = Gate()
    schedule: Schedule = Schedule()
