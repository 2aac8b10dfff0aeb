"""The self-contained HTML report of a run."""

from __future__ import annotations

from sparsefeed.workflows.report.page import write_report

__all__ = ["write_report"]
