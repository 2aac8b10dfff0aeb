"""Constant load: requests at a rate from a process of its own, one line for each.

    python benchmarks/release_load.py GRPC_URL MODEL RATE REQUESTS.json OUT.csv

sends to the router (MODEL -) or to one bundle until it is terminated. Lines: begun, ended (seconds of the system's
clock), the bundle that answered, or empty and the error. A request is due at its time whether the one before has been
answered or not, so that a pause is not hidden by its own length; four clients take turns.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

from sparsefeed.errors import ServeError
from sparsefeed.workflows.serving.client import FeedClient

_CLIENTS = 4


def main(url: str, bundle: str, rate: float, requests: list[tuple[str, list[str]]], out: Path) -> None:
    lock, begun = threading.Lock(), time.time()
    with out.open("w", buffering=1, encoding="utf-8") as file:

        def client(number: int) -> None:
            with FeedClient(url, None if bundle == "-" else bundle) as asking:
                for i in range(number, 10**9, _CLIENTS):
                    due = begun + i / rate
                    time.sleep(max(0.0, due - time.time()))
                    try:
                        answered, error = asking.rank(*requests[i % len(requests)]).bundle, ""
                    except ServeError as failure:
                        answered, error = "", json.dumps(str(failure)).replace(",", ";")
                    with lock:
                        file.write(f"{due:.6f},{time.time():.6f},{answered},{error}\n")

        threads = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(_CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), json.loads(Path(sys.argv[4]).read_text()), Path(sys.argv[5]))
