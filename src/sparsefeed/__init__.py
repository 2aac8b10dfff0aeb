"""sparsefeed: impression logs with string IDs in, a personalised feed ranker behind Triton out."""

__version__ = "0.1.0"
