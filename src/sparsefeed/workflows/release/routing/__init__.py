"""What the router does inside Triton: routes, their file, who is sent where, figures. Needs numpy and numba alone."""
