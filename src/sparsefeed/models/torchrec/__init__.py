"""The trainer that runs everywhere: TorchRec over gloo on CPU, NCCL on GPUs."""

import warnings

with warnings.catch_warnings():
    # On import fbgemm warns of each kernel its CPU build leaves out; none is used here.
    warnings.simplefilter("ignore")
    import torchrec as _  # noqa: F401
