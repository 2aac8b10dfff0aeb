"""The peers in quality: merlin-models' DLRM and DCN, trained on an ETL folder's rows in an environment of their own."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from peers.environment import merlin_models_python
from process import run_measured

__all__ = ["MERLIN_MODELS", "scores_of_merlin_models"]

MERLIN_MODELS = {"dlrm": "merlin-models DLRM", "dcn": "merlin-models DCN"}
SCRIPT = Path(__file__).parent / "peers" / "quality.py"
ENVIRON = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}


def scores_of_merlin_models(etl: Path, environment: Path) -> dict[str, NDArray[np.float32]]:
    """Probabilities of either net for the held-out rows of random sessions, in file order: float32 [n, R].

    Both are trained at once, a core each: their steps are too small for two. Some 1.5 GB and a minute.

    Args:
        etl: folder whose `train` is trained on and whose `eval` is scored.
        environment: of the peers, made when it is not there: 2 GB.

    Raises:
        RuntimeError: one failed; the message has the end of what it wrote.
    """
    python = str(merlin_models_python(environment))

    def score(peer: str, out: Path) -> NDArray[np.float32]:
        run_measured([python, str(SCRIPT), peer, str(etl), str(out)], ENVIRON)
        scores: NDArray[np.float32] = np.load(out)
        return scores

    with tempfile.TemporaryDirectory(prefix="merlin-models-") as scratch, ThreadPoolExecutor() as threads:
        running = {peer: threads.submit(score, peer, Path(scratch) / f"{peer}.npy") for peer in MERLIN_MODELS}
        return {peer: run.result() for peer, run in running.items()}
