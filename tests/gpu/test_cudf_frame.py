"""cuDF frames against pandas': columns there and back, and what operators make of them, on a real GPU.

Written for RAPIDS 24.02, which was not where a GPU was, so it has not run yet.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from merlin.dag import ColumnSelector

from sparsefeed.etl import frame
from sparsefeed.etl.impressions import POSITION, RANDOM, STRATUM, SURFACE, label
from sparsefeed.etl.kernels.arrays import array_module
from sparsefeed.etl.ops.ips import Ips
from sparsefeed.etl.ops.standardise import Standardise
from sparsefeed.etl.ops.statistic import Statistic
from sparsefeed.etl.spec import FeedSpec

pytestmark = pytest.mark.gpu
cudf = pytest.importorskip("cudf")
NUM = 5000


def columns() -> dict[str, Any]:
    """What an operator may meet: numbers, text, dictionaries, lists, all of the widest type that logs have."""
    random = np.random.default_rng(0)
    number = random.normal(2, 5, NUM).astype(np.float32)
    number[::11] = np.nan
    text = pa.array([None if i % 7 == 0 else f"é{i % 50}" for i in range(NUM)], pa.large_string())
    lengths = random.integers(0, 4, NUM)
    tags = pa.array([["jazz", "rock", "folk"][: int(n)] for n in lengths], pa.large_list(pa.large_string()))
    return {
        "likes": number,
        "post_id": text,
        "tags": pa.chunked_array([tags]),
        label("click"): (random.random(NUM) < 0.2).astype(np.float32),
        SURFACE: pa.chunked_array([pa.array(["home", "explore"], pa.string()).take(random.integers(0, 2, NUM))]),
        POSITION: random.integers(1, 30, NUM).astype(np.int32),
        RANDOM: (random.random(NUM) < 0.3).astype(np.int8),
        STRATUM: np.zeros(NUM, np.int8),
    }


SPEC = FeedSpec.parse(
    {
        "name": "wall",
        "tables": [{"name": "post", "dim": 4}],
        "features": [
            {"kind": "id", "name": "post_id", "table": "post", "side": "candidate"},
            {"kind": "dense", "name": "likes", "side": "candidate", "fill": 1.0},
        ],
        "responses": [{"name": "click", "column": "click"}],
        "logs": {"member": None},
        "sessions": {},
        "ips": {"position_edges": [1, 3, 10]},
    }
)


def test_a_frame_says_on_the_device_what_it_says_in_host_memory() -> None:
    given = columns()
    there, here = frame.from_arrow(given, cudf=True), frame.from_arrow(given, cudf=False)
    for name in ("likes", POSITION, RANDOM):
        assert array_module(frame.values(there[name])).__name__ == "cupy"
        np.testing.assert_array_equal(frame.numpy(there[name]), frame.numpy(here[name]))
    for name in ("post_id", "tags", SURFACE):
        for found, expected in zip(frame.strings(there[name]), frame.strings(here[name]), strict=True):
            assert (found is None) == (expected is None)
            assert found is None or list(found) == list(expected)


def test_dictionaries_pass_and_lists_come_back() -> None:
    text = pa.array(["a", None, "b", "a"], pa.large_string()).dictionary_encode()
    part = frame.from_arrow({"id": pa.chunked_array([text])}, cudf=True)
    assert frame.device_strings(part["id"]) is None
    assert frame.arrow(part["id"]).to_pylist() == text.to_pylist()
    lists = frame.ragged(np.array([0, 2, 2, 3, 3]), np.arange(3))
    assert frame.arrow(frame.like(part, {"rows": lists})["rows"]).to_pylist() == [[0, 1], [], [2], []]


@pytest.mark.parametrize("operator", [Standardise, Ips])
def test_an_operator_fits_and_writes_the_same_for_both(operator: type[Statistic], tmp_path: Path) -> None:
    written = []
    for on_gpu in (False, True):
        part = frame.from_arrow(columns(), cudf=on_gpu)
        fitted: Any = Ips(SPEC, tmp_path) if operator is Ips else Standardise(SPEC)
        fitted.fit_finalize((fitted.merge([fitted.collect(part, 0)]), []))
        out = fitted.transform(ColumnSelector(fitted.columns), part)
        written.append({name: frame.numpy(out[name]) for name in out.columns})
    assert list(written[0]) == list(written[1])
    for name, expected in written[0].items():
        assert written[1][name].dtype == expected.dtype
        np.testing.assert_array_equal(written[1][name], expected)
