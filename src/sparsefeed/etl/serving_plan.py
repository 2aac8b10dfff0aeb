"""FeedSpec and fitted statistics -> ServingPlan; free of dask and nvtabular, for who has no fitted workflow."""

from __future__ import annotations

from collections.abc import Mapping

from sparsefeed.etl.plan import DensePlan, LookupPlan, ServingPlan, TablePlan
from sparsefeed.etl.spec import FeedSpec, Side, side_of

__all__ = ["serving_plan"]


def serving_plan(spec: FeedSpec, scales: Mapping[str, tuple[float, float]]) -> ServingPlan:
    """The plan of a feed.

    Args:
        spec: What is served.
        scales: Per dense feature its mean and standard deviation, after fill and log.
    """
    lookups = tuple(
        LookupPlan(
            f.name,
            f.kind,
            side_of(f),
            spec.table_of(f).name,
            getattr(f, "max_length", 1),
            getattr(f, "pooling", "sum"),
        )
        for f in spec.lookups
    )
    return ServingPlan(
        name=spec.name,
        spec_digest=spec.digest,
        key_seed=spec.key_seed,
        tables=tuple(TablePlan(t.name, t.dim, t.tail_rows if t.paired_tail else 0) for t in spec.tables),
        lookups=lookups,
        member_dense=_dense_plan(spec, "member", scales),
        candidate_dense=_dense_plan(spec, "candidate", scales),
        member=spec.logs.member,
        post=spec.logs.post,
        responses=tuple(r.name for r in spec.responses),
        score_weights=tuple(r.score_weight for r in spec.responses),
    )


def _dense_plan(spec: FeedSpec, side: Side, scales: Mapping[str, tuple[float, float]]) -> DensePlan:
    features = spec.of_kind("dense", side=side)
    return DensePlan(
        names=tuple(f.name for f in features),
        fill=tuple(f.fill for f in features),
        log=tuple(f.log for f in features),
        mean=tuple(scales[f.name][0] for f in features),
        std=tuple(scales[f.name][1] for f in features),
    )
