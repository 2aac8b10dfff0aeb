"""One rank's model and optimisers: sharded tables, replicated dense model, one step at a time.

Notable: every table is cut row-wise over all ranks, so that memory and work are balanced whatever the sizes of
the tables and no plan needs tuning. The tables' optimiser (row-wise Adagrad) runs inside the backward pass and
touches the rows of the batch alone: row 0, which no batch names, stays zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import Tensor
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
from torchrec.distributed.types import ShardingPlan, ShardingType

from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.config import ModelConfig
from sparsefeed.models.dense import DenseModel
from sparsefeed.models.losses import weighted_cross_entropy
from sparsefeed.models.torchrec.checkpoint import Shard
from sparsefeed.models.torchrec.columns import Batch
from sparsefeed.models.torchrec.tables import RankingModel, embedding_tables, first_values

__all__ = ["Trainer"]


class _RowWiseSharder(EmbeddingBagCollectionSharder):
    """TorchRec hides row-wise sharding on CPU, where it works."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return [ShardingType.ROW_WISE.value]


class Trainer:
    """The model of one rank; needs an initialised process group.

    Guarantees: the parameters depend on the global batches alone, to float rounding, not on the number of ranks:
    the loss is the mean over the global batch, and first values do not depend on the sharding.
    """

    def __init__(
        self, spec: FeedSpec, config: ModelConfig, capacities: Mapping[str, int], seed: int, device: torch.device
    ) -> None:
        torch.manual_seed(seed)
        self._device = device
        self._dense = DenseModel(spec, config)
        tables = embedding_tables(spec, capacities, torch.device("meta"))
        sharder = _RowWiseSharder(fused_params={"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": 0.0})
        plan = construct_module_sharding_plan(
            tables,
            {table.name: row_wise(compute_kernel=EmbeddingComputeKernel.FUSED.value) for table in spec.tables},
            sharder=sharder,
            local_size=torch.cuda.device_count() if device.type == "cuda" else dist.get_world_size(),
            world_size=dist.get_world_size(),
            device_type=device.type,
        )
        self._model = DistributedModelParallel(
            RankingModel(spec, tables, self._dense),
            device=device,
            plan=ShardingPlan({"tables": plan}),
            sharders=[sharder],
        )
        self._adam = torch.optim.Adam(self._dense.parameters(), lr=0.0)
        self.shards = self._find_shards(spec)
        order = [table.name for table in spec.tables]
        for shard in self.shards:
            rows, dim = shard.values.shape
            first = first_values(seed, order.index(shard.table), shard.row, shard.row + rows, dim, config.table_init)
            shard.values.copy_(torch.from_numpy(first))

    def start_at(self, rates: list[float]) -> None:
        """Begin at these response rates; see `DenseModel.start_at`."""
        self._dense.start_at(rates)

    def step(self, batch: Batch, dense_learning_rate: float, table_learning_rate: float) -> Tensor:
        """Train on this rank's share of a global batch; its loss before the step, per response [R], detached."""
        for group in self._adam.param_groups:
            group["lr"] = dense_learning_rate
        fused = self._model.fused_optimizer
        for group in fused.param_groups:
            group["lr"] = table_learning_rate
        fused.step()  # hands the learning rate on; the rows are updated in the backward pass
        batch = batch.to(self._device)
        losses_R = weighted_cross_entropy(self._model(batch), batch.labels_BR, batch.weights_BR)
        self._adam.zero_grad()
        losses_R.mean().backward()
        self._adam.step()
        return losses_R.detach()

    def dense_state(self) -> dict[str, Tensor]:
        """Dense weights by name, and Adam's state as `adam.<state>.<name>`."""
        state = dict(self._dense.state_dict())
        for name, parameter in self._dense.named_parameters():
            for key, value in self._adam.state[parameter].items():
                state[f"adam.{key}.{name}"] = value
        return state

    def load_dense_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up `dense_state` again."""
        self._dense.load_state_dict({name: value for name, value in state.items() if not name.startswith("adam.")})
        for name, parameter in self._dense.named_parameters():
            for key in ("step", "exp_avg", "exp_avg_sq"):
                value = state[f"adam.{key}.{name}"]
                # Adam counts its steps on the CPU, whatever the device of the weights.
                self._adam.state[parameter][key] = value.clone() if key == "step" else value.to(parameter.device)

    def _find_shards(self, spec: FeedSpec) -> list[Shard]:
        weights: dict[str, Any] = self._model.module.tables.state_dict()
        states: dict[str, Any] = self._model.fused_optimizer.state_dict()["state"]
        shards = []
        for table in spec.tables:
            name = f"embedding_bags.{table.name}.weight"
            (accumulator,) = states[f"tables.{name}"].values()
            for weight, moment in zip(weights[name].local_shards(), accumulator.local_shards(), strict=True):
                shards.append(Shard(table.name, weight.metadata.shard_offsets[0], weight.tensor, moment.tensor))
        return shards
