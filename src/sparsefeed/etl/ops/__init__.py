"""NVTabular operators: thin classes over etl.kernels."""
