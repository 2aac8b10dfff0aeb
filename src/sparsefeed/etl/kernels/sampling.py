"""Sampling of rows by the responses they have: the rate of each row, its stratum, and whether it is kept.

Which rows are kept depends on the impression and the seed alone: a repeated run, on any cluster, keeps the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sparsefeed.etl.ids.slots import mix

__all__ = ["kept", "strata", "stratum_of"]


def strata(rates: Mapping[str, float], others: float) -> NDArray[np.float64]:
    """Rates that rows may have, each once, float64: 1 first, then falling."""
    return np.array([1.0, *sorted({*rates.values(), others} - {1.0}, reverse=True)])


def stratum_of(
    labels: Mapping[str, NDArray[np.bool_]],
    random: NDArray[np.bool_],
    rates: Mapping[str, float],
    others: float,
) -> NDArray[np.int8]:
    """Stratum of each row: int8 [n], an index of `strata`.

    Args:
        labels: per response, bool [n].
        random: bool [n]: rows of random sessions, which are all kept.
        rates: by response; one that is not there is kept with rate 1.
        others: of rows without any response.
    """
    rate = np.zeros(len(random))
    for response, y in labels.items():
        rate[y] = np.maximum(rate[y], rates.get(response, 1.0))
    rate[rate == 0] = others
    rate[random] = 1.0
    falling = strata(rates, others)
    return np.searchsorted(-falling, -rate).astype(np.int8)


def kept(keys: NDArray[np.uint64], rate: NDArray[np.float64], seed: int) -> NDArray[np.bool_]:
    """Which rows to keep: bool [n].

    Args:
        keys: uint64 [n] of the impressions.
        rate: float64 [n]: the share of rows like it that is kept.
        seed: another one keeps others.
    """
    return np.asarray(_mixed(keys, np.uint64(seed)) * 2.0**-64 < rate)


@njit(nogil=True, cache=True)
def _mixed(keys: NDArray[np.uint64], seed: np.uint64) -> NDArray[np.uint64]:
    out = np.empty(len(keys), np.uint64)
    for i in range(len(keys)):
        out[i] = mix(keys[i], seed)
    return out
