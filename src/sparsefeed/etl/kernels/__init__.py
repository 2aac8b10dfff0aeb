"""Pure array kernels: numpy in, numpy out; shared by training and serving."""
