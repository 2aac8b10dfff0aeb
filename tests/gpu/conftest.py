"""Tests of this folder need a CUDA device: `pytest -m gpu tests/gpu`."""

from __future__ import annotations

import pytest
from numba import cuda


@pytest.fixture(autouse=True, scope="session")
def gpu() -> None:
    """A device, or no test here runs."""
    if not cuda.is_available():
        pytest.skip("needs a CUDA device")
