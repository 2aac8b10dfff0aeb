"""The embedding tables in TorchRec, and the ranking model around them.

Notable: tables sum, and the mean is taken here by true lengths, so that training and the serving graph divide
alike. A table's features stand side by side: fbgemm's row-wise Adagrad is wrong otherwise. Pooled vectors are
taken from the KeyedTensor by key: the order of its values depends on the sharding plan. A row's first value
depends on (seed, table, row) alone, never on how the table is sharded.

Shapes: B rows, R responses.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.modules.embedding_configs import PoolingType

from sparsefeed.etl.spec import FeedSpec, IdFeature
from sparsefeed.models.dense import DenseModel
from sparsefeed.models.torchrec.columns import Batch
from sparsefeed.models.torchrec.lookup_keys import keys_of, lookup_order, second_of

__all__ = ["Pooling", "RankingModel", "embedding_tables", "first_values"]

_BLOCK_ROWS = 65536


def embedding_tables(spec: FeedSpec, capacities: Mapping[str, int], device: torch.device) -> EmbeddingBagCollection:
    """One sum-pooled table per spec table, in order, with all features that read it; on `meta` without memory."""
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name=table.name,
                num_embeddings=capacities[table.name],
                embedding_dim=table.dim,
                feature_names=list(lookup_order(spec, table.name)),
                pooling=PoolingType.SUM,
            )
            for table in spec.tables
        ],
        device=device,
    )


def first_values(seed: int, table: int, start: int, stop: int, dim: int, scale: float) -> npt.NDArray[np.float32]:
    """Rows [start, stop) of a new table: uniform in [-scale, scale), row 0 exactly zero.

    Any cut of a table into ranges gives the same rows. float32 [stop - start, dim].
    """
    rows = np.empty((stop - start, dim), np.float32)
    for block in range(start // _BLOCK_ROWS, -(-stop // _BLOCK_ROWS)):
        first = block * _BLOCK_ROWS
        low, high = max(start, first), min(stop, first + _BLOCK_ROWS)
        values = np.random.default_rng((seed, table, block)).random((high - first, dim), np.float32)
        rows[low - start : high - start] = (values[low - first :] * 2 - 1) * np.float32(scale)
    if start == 0:
        rows[0] = 0
    return rows


class Pooling:
    """Sums of rows -> vectors of the lookups: the mean where the spec says so; of a learned pooling all places."""

    def __init__(self, spec: FeedSpec) -> None:
        # `id` features have one row each: their mean is their sum.
        self._means = {f.name for f in spec.lookups if not isinstance(f, IdFeature) and f.pooling == "mean"}
        self._learned = {feature.name: keys_of(feature) for feature in spec.learned}
        self._order = tuple(feature.name for feature in spec.lookups)
        paired = [feature for feature in spec.lookups if spec.table_of(feature).paired_tail]
        self._paired = [key for feature in paired for key in keys_of(feature)]

    def __call__(
        self, sums: Mapping[str, Tensor], lookups: KeyedJaggedTensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Vectors by feature, zero where there is no id, and the lengths [B] of lists whose pooling is learned.

        Vectors are [B, dim], and [B, L, dim] of these lists, for `DenseModel.pool`.
        """
        lengths = dict(zip(lookups.keys(), lookups.lengths().view(len(lookups.keys()), -1), strict=True))
        sums = {**sums, **{key: sums[key] + sums[second_of(key)] for key in self._paired}}
        vectors, of_learned = {}, {}
        for name in self._order:
            if name in self._learned:
                keys = self._learned[name]
                vectors[name] = torch.stack([sums[key] for key in keys], dim=1)
                of_learned[name] = torch.stack([lengths[key] for key in keys]).sum(dim=0)
            elif name in self._means:
                vectors[name] = sums[name] / lengths[name].clamp(min=1).unsqueeze(1)
            else:
                vectors[name] = sums[name]
        return vectors, of_learned


class RankingModel(nn.Module):
    """Tables, pooling and dense model: a Batch -> logits [B, R]."""

    def __init__(self, spec: FeedSpec, tables: EmbeddingBagCollection, dense: DenseModel) -> None:
        super().__init__()
        self.tables = tables
        self.dense = dense
        self._pooling = Pooling(spec)

    def forward(self, batch: Batch) -> Tensor:
        """Uncalibrated logits [B, R]."""
        pooled = self.dense.pool(*self._pooling(self.tables(batch.lookups).to_dict(), batch.lookups))
        logits_BR: Tensor = self.dense(pooled, batch.member_dense_BM, batch.candidate_dense_BC)
        return logits_BR
