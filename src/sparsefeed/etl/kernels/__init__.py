"""Pure array kernels, shared by training and serving: numpy in, numpy out; CuPy in, computed on its device."""
