"""Our side of the comparison of ETLs: ids and floats through an nvtabular.Workflow, in a process of its own.

python benchmarks/workflow_run.py FOLDER OUT     reads FOLDER/impressions, writes OUT/train; prints JSON
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import nvtabular as nvt
from impressions import COLUMNS, DENSE

from sparsefeed.etl.cluster import open_cluster
from sparsefeed.etl.config import ClusterConfig, EtlConfig
from sparsefeed.etl.impressions import ReadImpressions, columns_of, label
from sparsefeed.etl.logs import LogFolder
from sparsefeed.etl.ops.map_ids import MapIds
from sparsefeed.etl.ops.standardise import Standardise
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.etl.training_data import write_training_data
from sparsefeed.etl.workflow import dataset_of, fit_workflow

__all__ = ["SPEC"]

SPEC = FeedSpec.parse(
    {
        "name": "bench",
        "tables": [{"name": name, "dim": 16, "min_count": 2} for name in COLUMNS],
        "features": [
            *(
                {"kind": "id", "name": n, "table": n, "side": "member" if n == "member_id" else "candidate"}
                for n in COLUMNS
            ),
            *({"kind": "dense", "name": name, "side": "candidate"} for name in DENSE),
        ],
        "responses": [{"name": "click", "column": "click"}],
        "logs": {"position": None},
    }
)


def main(folder: Path, out: Path) -> dict[str, float]:
    """Fit and write, on two workers, timed apart."""
    config = EtlConfig(cluster=ClusterConfig(workers=2, gpu=False))
    with open_cluster(config.cluster):
        started = time.perf_counter()
        logs = LogFolder.open(folder, SPEC)
        ids, dense = MapIds(SPEC, out), Standardise(SPEC)
        passed = [label("click"), "impression_id"]
        workflow = nvt.Workflow(passed + (dense.columns >> dense) + (ids.columns >> ids))
        read = ReadImpressions(SPEC, columns_of(SPEC))
        partitions = logs.partitions(config.partition_rows)
        fit_workflow(workflow, [ids, dense], SPEC, read, partitions, logs.text_impressions)
        fitted = time.perf_counter()
        rows = workflow.transform(dataset_of(SPEC, read, partitions, logs.text_impressions))
        columns = [label("click"), *dense.columns, *ids.columns, "impression_id"]
        written = rows.to_ddf()[columns], rows.schema[columns]
        write_training_data(*written, SPEC, out / "train", config.row_group_rows, None)
        done = time.perf_counter()
    return {
        "fit_s": fitted - started,
        "write_s": done - fitted,
        **{f"num_{name}": id_map.num_admitted for name, id_map in ids.maps.items()},
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(main(*map(Path, sys.argv[1:]))))
