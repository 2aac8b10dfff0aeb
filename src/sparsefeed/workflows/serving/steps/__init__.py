"""The three serving steps on numpy arrays: what runs inside Triton, and in any process that wants the same answer."""
