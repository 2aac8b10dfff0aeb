"""The recipe that docs/howto/etl.md shows is one that can be meant."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from sparsefeed.etl.config import EtlConfig
from sparsefeed.etl.spec import FeedSpec, validate
from tests import logs

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "etl.md"


def test_every_key_of_the_page_is_one_that_the_declarations_have() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    shown = yaml.safe_load(block)
    config = validate(EtlConfig, shown["etl"])
    assert (config.min_files, config.cluster.workers, config.on_bad_file) == (8, 16, "skip")
    feed, spec = shown["feed"], logs.spec().model_dump()
    tables = {table["name"]: table for table in spec["tables"]} | {table["name"]: table for table in feed["tables"]}
    whole = spec | {
        "tables": list(tables.values()),
        "features": [*spec["features"], *feed["features"]],
        "ips": feed["ips"],
        "sampling": feed["sampling"],
        "logs": spec["logs"] | feed["logs"],
    }
    parsed = FeedSpec.parse(whole)
    assert parsed.sampling is not None
    assert parsed.sampling.others == 0.1
    shown_orders = {
        feature["name"]: feature.get("order", "recent") for feature in feed["features"] if feature["kind"] == "history"
    }
    assert {h.name: h.order for h in parsed.histories if h.name in shown_orders} == shown_orders
    assert set(shown_orders.values()) == {"recent", "frequent"}
