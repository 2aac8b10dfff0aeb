"""The words of the request contract that client, server and steps share (docs/contracts/request.md).

The standard library alone, so that a client needs neither the steps nor the configuration.
"""

from __future__ import annotations

__all__ = ["OUTPUTS", "PROBE", "RANKER", "ROUTER", "STEPS", "UNKNOWN_BITS", "ranker_name", "step_name"]

STEPS = ("feed_transform", "feed_hps", "feed_dense")
RANKER = "feed_ranker"
ROUTER = "feed"  # answers by the bundle that the route file names (docs/contracts/router.md)
OUTPUTS = ("probability", "score", "unknown", "bundle")
PROBE = "sparsefeed-health"  # the id of a request that asks whether there is an answer at all; it is not counted

# Bits of the output `unknown`: which id has no row of its own, whose state the bundle does not have.
UNKNOWN_BITS = {"member_id": 1, "post_id": 2, "post_feature_id": 4, "member_state": 8, "post_state": 16}


def ranker_name(bundle: str = "") -> str:
    """Name of a bundle's ensemble; of the template's without one."""
    return step_name(RANKER, bundle)


def step_name(step: str, bundle: str = "") -> str:
    """Name of a bundle's model for a step; of the template's without one."""
    return f"{step}_{bundle}" if bundle else step
