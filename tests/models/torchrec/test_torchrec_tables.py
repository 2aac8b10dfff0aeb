from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch

from sparsefeed.etl.ids.codes import rows_of, vectors_of
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.config import ModelConfig
from sparsefeed.models.dense import DenseModel
from sparsefeed.models.torchrec.columns import Rows, open_split, read_part
from sparsefeed.models.torchrec.lookup_keys import keys_of, lists_of, lookup_order, places
from sparsefeed.models.torchrec.tables import RankingModel, embedding_tables, first_values
from tests.models.conftest import Written

CAPACITIES = {"member": 64, "post": 128, "hashtag": 64}


@pytest.mark.parametrize("cuts", [[0, 100], [0, 1, 99, 100], [0, 50, 100]])
def test_first_values_do_not_depend_on_how_the_table_is_cut(cuts: list[int]) -> None:
    start = 65_500  # the cuts fall on both sides of a block's end
    whole = first_values(3, 1, 0, start + 100, 4, 0.1)[start:]
    parts = [first_values(3, 1, start + a, start + b, 4, 0.1) for a, b in pairwise(cuts)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_first_values_are_small_random_and_zero_in_row_zero() -> None:
    values = first_values(0, 0, 0, 5000, 8, 0.05)
    assert (values[0] == 0).all()
    assert np.abs(values).max() <= 0.05
    assert values[1:].std() == pytest.approx(0.05 / np.sqrt(3), rel=0.02)
    assert len(np.unique(values[1:], axis=0)) == 4999
    assert not np.array_equal(values, first_values(0, 1, 0, 5000, 8, 0.05))
    assert not np.array_equal(values, first_values(1, 0, 0, 5000, 8, 0.05))


def test_tables_stand_in_the_specs_order_with_all_their_features(spec: FeedSpec) -> None:
    configs = embedding_tables(spec, CAPACITIES, torch.device("meta")).embedding_bag_configs()
    got = [(c.name, c.num_embeddings, c.embedding_dim, c.feature_names) for c in configs]
    assert got == [
        ("member", 64, 4, ["member_id"]),
        ("post", 128, 8, ["post_id", "clicked"]),
        ("hashtag", 64, 4, ["hashtags", "topics"]),
    ]


def test_the_model_pools_by_true_length_and_gives_each_feature_its_own_vector(spec: FeedSpec) -> None:
    torch.manual_seed(0)
    tables = embedding_tables(spec, CAPACITIES, torch.device("cpu"))
    model = RankingModel(spec, tables, DenseModel(spec, ModelConfig(hidden=(4,), cross_rank=2)))
    ids = {
        "member_id": [[5], [6], [7]],
        "post_id": [[9], [8], [7]],
        "clicked": [[9, 9, 4], [], [1]],  # mean, shares post_id's table
        "hashtags": [[], [1, 2], [3]],  # mean
        "topics": [[1, 2], [3], []],  # sum, shares hashtags' table
    }
    lookups = {
        name: (np.array([i for row in rows for i in row], np.int64), np.cumsum([0, *map(len, rows)]))
        for name, rows in ids.items()
    }
    zeros = np.zeros((3, 2), np.float32)
    rows = Rows(zeros, zeros, np.ones((3, 1), np.float32), -np.ones((3, 1), np.float32), lookups)
    weights = {name: bag.weight.detach().numpy() for name, bag in tables.embedding_bags.items()}
    expected = {}
    for feature in spec.lookups:
        table = weights[spec.table_of(feature).name]
        pooled = np.zeros((3, table.shape[1]), np.float32)
        for b, row in enumerate(ids[feature.name]):
            if row:
                pooled[b] = table[row].sum(0) / (1 if feature.name == "topics" else len(row))
        expected[feature.name] = torch.from_numpy(pooled)
    with torch.inference_mode():
        logits = model(rows.batch(lookup_order(spec), 0, 3))
        wanted = model.dense(expected, torch.ones(3, 1), -torch.ones(3, 1))
    torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-6)


def test_places_are_the_lists_read_column_by_column() -> None:
    lists = np.array([7, 8, 9, 4], np.int64), np.array([0, 3, 3, 4])
    got = [[values[a:b].tolist() for a, b in pairwise(offsets)] for values, offsets in places(lists, 4)]
    assert got == [[[7], [], [4]], [[8], [], []], [[9], [], []], [[], [], []]]


def test_a_learned_pooling_asks_a_key_per_place_beside_its_tables_other_features(learned: FeedSpec) -> None:
    order = lookup_order(learned)
    assert order[1:6] == ("post_id", "clicked.0", "clicked.1", "clicked.2", "clicked.3")
    assert keys_of(learned.feature_by_name["post_id"]) == ("post_id",)
    configs = embedding_tables(learned, CAPACITIES, torch.device("meta")).embedding_bag_configs()
    assert tuple(name for config in configs for name in config.feature_names) == order


def test_a_pooling_that_has_learned_nothing_is_the_mean(spec: FeedSpec, learned: FeedSpec, etl: Written) -> None:
    logits = []
    for declared in (spec, learned):
        torch.manual_seed(0)
        tables = embedding_tables(declared, CAPACITIES, torch.device("cpu"))
        model = RankingModel(declared, tables, DenseModel(declared, ModelConfig(hidden=(4,), cross_rank=2)))
        columns = Rows.columns(declared)
        part = open_split(declared, etl.path, "train", columns)[0]
        rows = Rows.from_arrow(declared, read_part(declared, part, columns, CAPACITIES))
        with torch.inference_mode():
            logits.append(model(rows.take(lookup_order(declared), np.arange(len(rows)))))
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-5, atol=1e-6)


def test_an_id_of_a_paired_tail_is_the_sum_of_two_rows_and_one_id_of_a_list(paired: FeedSpec) -> None:
    torch.manual_seed(0)
    tables = embedding_tables(paired, CAPACITIES, torch.device("cpu"))
    model = RankingModel(paired, tables, DenseModel(paired, ModelConfig(hidden=(4,), cross_rank=2)))
    place_L = torch.tensor([1.0, 0.0, -2.0, 0.5])
    model.dense.pools["of_clicked"].place_L.data = place_L
    ids = {
        "member_id": [5, 6, 7],
        "post_id": [9, -1, -16],
        "clicked": [[-3, 9, -3], [], [1]],  # learned
        "hashtags": [[], [-1, 12], [-7]],  # mean
        "topics": [[-1, -1], [13], []],  # sum
    }
    columns = {name: pa.array(values, pa.list_(pa.int64())) for name, values in ids.items() if "_id" not in name}
    columns |= {name: pa.array(values) for name, values in ids.items() if "_id" in name}
    columns |= {name: pa.array([0.5, 1, 2], pa.float32()) for name in ("y_click", "y_like", "tenure", "age")}
    rows = Rows.from_arrow(paired, pa.table(columns))
    weights = {name: bag.weight.detach().numpy() for name, bag in tables.embedding_bags.items()}
    expected = {}
    for feature in paired.lookups:
        table = weights[paired.table_of(feature).name]
        pooled = np.zeros((3, table.shape[1]), np.float32)
        for b, given in enumerate(ids[feature.name]):
            row = np.atleast_1d(np.array(given, np.int64))
            if not len(row):
                continue
            vectors = vectors_of(table, row, 8)
            shares = {"mean": np.full(len(row), 1 / len(row)), "sum": np.ones(len(row))}
            shares["learned"] = np.exp(place_L.numpy()[: len(row)]) / np.exp(place_L.numpy()[: len(row)]).sum()
            pooled[b] = shares[getattr(feature, "pooling", "sum")] @ vectors
        expected[feature.name] = torch.from_numpy(pooled)
    dense = torch.tensor([[0.5], [1], [2]])
    with torch.inference_mode():
        wanted = model.dense(expected, dense, dense)
        for batch in (rows.batch(lookup_order(paired), 0, 3), rows.take(lookup_order(paired), np.arange(3))):
            torch.testing.assert_close(model(batch), wanted, rtol=1e-5, atol=1e-6)


def test_keys_of_second_rows_stand_beside_the_first_and_hold_nothing_of_admitted_ids(paired: FeedSpec) -> None:
    order = lookup_order(paired)
    assert order[:5] == ("member_id", "post_id", "post_id.second", "clicked.0", "clicked.0.second")
    assert order[-4:] == ("hashtags", "hashtags.second", "topics", "topics.second")
    values = np.array([12, -1, -16, 40], np.int64), np.array([0, 2, 2, 4])
    lists = dict(lists_of(paired, paired.feature_by_name["topics"], values, {}))
    assert [part.tolist() for part in lists["topics"]] == [[12, 5, 2, 40], [0, 2, 2, 4]]
    assert [part.tolist() for part in lists["topics.second"]] == [[9, 6], [0, 1, 1, 2]]


def test_an_id_that_was_rare_on_an_earlier_day_is_read_as_the_code_it_was(paired: FeedSpec) -> None:
    earlier = {"hashtag": np.array([0, 1, *range(2, 20), -5, 20])}  # row 20 is new since, row 21 was 20
    lists = dict(
        lists_of(
            paired,
            paired.feature_by_name["topics"],
            (np.array([21, 20, -1, 12], np.int64), np.array([0, 2, 3, 4])),
            earlier,
        )
    )
    (first, second) = rows_of(np.array([-5]), 8)
    assert lists["topics"][0].tolist() == [20, *first, 5, 12]
    assert [part.tolist() for part in lists["topics.second"]] == [[*second, 9], [0, 1, 2, 2]]
