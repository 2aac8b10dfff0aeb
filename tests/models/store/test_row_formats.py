"""Stored rows against plain numpy and against fbgemm itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from sparsefeed.errors import BundleError
from sparsefeed.models.store.rows import ROW_FORMATS, RowFormat, dequantise, gather, quantise

VALUES = arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.sampled_from([4, 8, 36])),
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
)


def random_rows(num_rows: int = 200, dim: int = 32) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(num_rows, dim)).astype(np.float32)


def fbgemm_rows(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    torch = pytest.importorskip("torch")
    pytest.importorskip("fbgemm_gpu")
    return np.asarray(torch.ops.fbgemm.FloatToFused8BitRowwiseQuantized(torch.from_numpy(values.copy())).numpy())


@settings(max_examples=100, deadline=None)
@given(VALUES)
def test_int8_rows_are_fbgemms_bit_for_bit(values: NDArray[np.float32]) -> None:
    values += 0  # where 0 and -0 are the least, fbgemm keeps the sign of either; we keep 0
    np.testing.assert_array_equal(quantise(values, "int8"), fbgemm_rows(values))


def test_fbgemm_reads_our_rows_to_the_last_bit_of_rounding() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("fbgemm_gpu")
    stored = quantise(random_rows(), "int8")
    theirs = torch.ops.fbgemm.Fused8BitRowwiseQuantizedToFloat(torch.from_numpy(stored)).numpy()
    # fbgemm fuses the product and the sum (one rounding), we round twice: bias is below 8, so at most 2^-21.
    np.testing.assert_allclose(dequantise(stored, "int8"), theirs, rtol=0, atol=2.0**-21)


@settings(max_examples=100, deadline=None)
@given(VALUES)
def test_an_int8_value_is_off_by_half_a_step_at_most(values: NDArray[np.float32]) -> None:
    span = (values.max(1) - values.min(1)).astype(np.float64)
    largest = np.abs(values).max(1).astype(np.float64)
    # Half a step, four float32 roundings, and fbgemm's 1e-8, which costs a span s about 1e-8 / s of a row.
    allowed = span / 510 + 4 * largest * 2.0**-23 + np.minimum(span, 1e-8) + 1e-37
    error = np.abs(dequantise(quantise(values, "int8"), "int8").astype(np.float64) - values)
    assert (error <= allowed[:, None]).all()


def test_an_int8_row_is_q_times_scale_plus_bias() -> None:
    stored = quantise(random_rows(50, 12), "int8")
    q = stored[:, :12].astype(np.float32)
    scale, bias = stored[:, 12:16].copy().view("<f4"), stored[:, 16:20].copy().view("<f4")
    np.testing.assert_array_equal(dequantise(stored, "int8"), q * scale + bias)


def test_every_finite_fp16_decodes_as_numpy_decodes_it() -> None:
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)].reshape(-1, 4)
    decoded = dequantise(halves, "fp16")
    np.testing.assert_array_equal(decoded.view(np.uint32), halves.astype(np.float32).view(np.uint32))


@settings(max_examples=50, deadline=None)
@given(VALUES)
def test_fp32_keeps_every_bit(values: NDArray[np.float32]) -> None:
    decoded = dequantise(quantise(values, "fp32"), "fp32")
    np.testing.assert_array_equal(decoded.view(np.uint32), values.view(np.uint32))


@pytest.mark.parametrize("row_format", ROW_FORMATS)
@pytest.mark.parametrize("dim", [4, 12, 64, 256])
def test_a_gather_is_an_index_into_the_decoded_table(row_format: RowFormat, dim: int) -> None:
    stored = quantise(random_rows(100, dim), row_format)
    rows = np.random.default_rng(1).integers(0, 100, 333)
    np.testing.assert_array_equal(gather(stored, rows, row_format, dim), dequantise(stored, row_format)[rows])


@pytest.mark.parametrize("row_format", ROW_FORMATS)
def test_a_gather_fills_the_given_array(row_format: RowFormat) -> None:
    stored = quantise(random_rows(10, 8), row_format)
    out = np.full((3, 8), np.nan, np.float32)
    assert gather(stored, np.array([9, 0, 9]), row_format, 8, out) is out
    np.testing.assert_array_equal(out, dequantise(stored, row_format)[[9, 0, 9]])


def test_a_gather_of_nothing_is_empty() -> None:
    assert gather(quantise(random_rows(1, 8), "int8"), np.empty(0, np.int64), "int8", 8).shape == (0, 8)


@pytest.mark.parametrize("row", [-1, 10, 2**63 - 1, -(2**63)])
def test_a_row_outside_the_table_is_an_error_that_says_where(row: int) -> None:
    stored = quantise(random_rows(10, 8), "int8")
    with pytest.raises(IndexError, match=rf"rows\[2\]: got {row}; the table has rows \[0, 10\)"):
        gather(stored, np.array([0, 9, row]), "int8", 8)


@pytest.mark.parametrize(
    "out",
    [
        np.empty((2, 8), np.float32),
        np.empty((3, 4), np.float32),
        np.empty((3, 8), np.float64),
        np.empty((8, 3), np.float32).T,
    ],
)
def test_an_output_of_another_shape_is_refused_before_it_is_written(out: NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match=r"out: got .*must be C-ordered float32 \[3, 8\]"):
        gather(quantise(random_rows(10, 8), "fp32"), np.zeros(3, np.int64), "fp32", 8, out)


def test_a_table_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"int8 rows of 16 floats are uint8 \[n, 24\]"):
        gather(quantise(random_rows(10, 8), "int8"), np.zeros(1, np.int64), "int8", 16)


def test_rows_that_are_no_integers_are_refused() -> None:
    with pytest.raises(TypeError):
        gather(quantise(random_rows(10, 8), "int8"), np.array([0.5]), "int8", 8)


@pytest.mark.parametrize(
    ("row_format", "value"),
    [("fp32", np.nan), ("fp16", 70000), ("int8", np.inf), ("int8", 3e38), ("fp16", -np.inf), ("int8", np.nan)],
)
def test_a_value_that_the_format_cannot_hold_is_refused_with_its_row(row_format: RowFormat, value: float) -> None:
    values = random_rows(10, 8)
    values[7, 3] = value
    with pytest.raises(BundleError, match=f"row 7: value .* cannot be stored as {row_format}"):
        quantise(values, row_format)
