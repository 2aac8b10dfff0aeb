"""Sampling of rows by the responses they have: the rate of each row, its stratum, and whether it is kept.

Which rows are kept depends on the impression and the seed alone: a repeated run, on any cluster, keeps the same.
numpy's arrays or CuPy's; a device keeps the same rows as the CPU, for all is integers and one comparison of float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sparsefeed.etl.ids.slots import mix
from sparsefeed.etl.kernels.arrays import array_module

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
    """Stratum of each row: int8 [n], an index of `strata`, where the rows lie.

    Args:
        labels: per response, bool [n], numpy's or CuPy's.
        random: bool [n], likewise: rows of random sessions, which are all kept.
        rates: by response; one that is not there is kept with rate 1.
        others: of rows without any response.
    """
    xp = array_module(random)
    rate = xp.zeros(len(random))
    for response, y in labels.items():
        rate = xp.where(y, xp.maximum(rate, rates.get(response, 1.0)), rate)
    rate = xp.where(rate == 0, others, rate)
    rate = xp.where(random, 1.0, rate)
    stratum: NDArray[np.int8] = xp.searchsorted(xp.asarray(-strata(rates, others)), -rate).astype(np.int8)
    return stratum


def kept(keys: NDArray[np.uint64], rate: NDArray[np.float64], seed: int) -> NDArray[np.bool_]:
    """Which rows to keep: bool [n], where the keys lie.

    Args:
        keys: uint64 [n] of the impressions, numpy's or CuPy's.
        rate: float64 [n], likewise: the share of rows like it that is kept.
        seed: another one keeps others.
    """
    mixed = _mixed(keys, np.uint64(seed)) if array_module(keys) is np else _mixed_at_once(keys, seed)
    stays: NDArray[np.bool_] = mixed * 2.0**-64 < rate
    return stays


@njit(nogil=True, cache=True)
def _mixed(keys: NDArray[np.uint64], seed: np.uint64) -> NDArray[np.uint64]:
    out = np.empty(len(keys), np.uint64)
    for i in range(len(keys)):
        out[i] = mix(keys[i], seed)
    return out


def _mixed_at_once(keys: NDArray[Any], seed: int) -> NDArray[Any]:
    """`_mixed` in array expressions, for a device: the same lines of `mix`, not compiled, on whole arrays."""
    mixed: NDArray[Any] = mix.py_func(keys, array_module(keys).full(1, seed, np.uint64))
    return mixed
