"""The parameter server: table files, quantised rows, deltas."""
