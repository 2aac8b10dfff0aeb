"""One rank's model and optimisers: sharded tables, replicated dense model, one step at a time.

Notable: the dense model meets the tables at the vectors of the lookups alone, which are pooled unless the pooling is
learned. A step looks all rows up at once, takes its share of the batch through the dense model in `micro_batches`
slices, gathers the gradients of these vectors, then reduces the dense gradient over all ranks once and goes back
through the tables once. So slices save memory and cost no communication, and the step is that of the whole batch.

The tables' optimiser, row-wise Adagrad, runs inside the backward pass and touches the rows of the batch alone: row 0,
which no batch names, stays zero. A data-parallel table has a dense gradient, and the same formula leaves rows without
gradient alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode
from torch import Tensor
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.sharding_plan import (
    ParameterShardingGenerator,
    column_wise,
    construct_module_sharding_plan,
    data_parallel,
    row_wise,
    table_wise,
)
from torchrec.distributed.types import ShardingEnv, ShardingType

from sparsefeed.errors import TrainError
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.config import ModelConfig, TrainConfig
from sparsefeed.models.dense import DenseModel
from sparsefeed.models.losses import weighted_cross_entropy
from sparsefeed.models.plan import Plan, TablePlan
from sparsefeed.models.torchrec.checkpoint import Shard
from sparsefeed.models.torchrec.columns import Batch
from sparsefeed.models.torchrec.graphed import Graphed
from sparsefeed.models.torchrec.tables import Pooling, embedding_tables, first_values

__all__ = ["LossError", "Trainer"]

_EPSILON = 1e-8  # of Adagrad, fbgemm's


class _Sharder(EmbeddingBagCollectionSharder):
    """TorchRec hides row-wise sharding on CPU, where it works."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return [kind.value for kind in ShardingType]


class LossError(TrainError):
    """A row of a batch whose loss is no number."""

    def __init__(self, row: int, losses: list[float]) -> None:
        super().__init__(f"the loss of the row is {losses}")
        self.row = row


class Trainer:
    """The model of one rank; needs an initialised process group.

    Guarantees: the parameters depend on the global batches alone, to float rounding, not on the number of ranks, the
    sharding or the slices: the loss is the mean over the global batch, and first values do not depend on the sharding.
    One exception: of a column-wise table each part of a row counts its own squares, so its steps are other ones.
    """

    def __init__(
        self,
        spec: FeedSpec,
        model: ModelConfig,
        config: TrainConfig,
        capacities: Mapping[str, int],
        plan: Plan,
        device: torch.device,
        restored: Mapping[str, int] | None = None,
    ) -> None:
        """Make it; the first rows of tables that `restored` counts will be read from a checkpoint."""
        torch.manual_seed(config.seed)
        self.device, self._slices = device, config.micro_batches
        self._half = config.dense_precision == "bf16"
        self._autocast = torch.autocast(device.type, torch.bfloat16, enabled=self._half)
        self._spec, self._model, self._config = spec, model, config
        self._dense = DenseModel(spec, model).to(device)
        # Not `fused` on a GPU: after 50 steps a weight was off by 0.02; as it is, all agree with the CPU's to 2e-7.
        self._adam = torch.optim.Adam(self._dense.parameters(), lr=0.0)
        self._gradient = _flat_gradient(self._dense)
        self._lookups = tuple(feature.name for feature in spec.lookups)
        self._learned = tuple(feature.name for feature in spec.learned)
        self._through_dense = Graphed(self._slices_through_dense)
        self._pooling = Pooling(spec)
        tables, sharder = embedding_tables(spec, capacities, torch.device("meta")), _sharder()
        sharding = construct_module_sharding_plan(
            tables,
            {table.name: _placed(plan.of(table.name)) for table in spec.tables},
            sharder=sharder,
            local_size=torch.cuda.device_count() if device.type == "cuda" else dist.get_world_size(),
            world_size=dist.get_world_size(),
            device_type=device.type,
        )
        group = dist.group.WORLD
        assert group is not None
        self._tables: Any = sharder.shard(tables, sharding, ShardingEnv.from_process_group(group), device)
        self._replicated = [table.name for table in spec.tables if plan.of(table.name).sharding == "data_parallel"]
        self.shards = self._find_shards(spec)
        self.begin_tables(restored or {})

    def begin_tables(self, known: Mapping[str, int]) -> None:
        """Give the tables their first values and Adagrad its first sums, but for the first `known` rows of each."""
        order = [table.name for table in self._spec.tables]
        for shard in self.shards:
            rows, dim = shard.values.shape
            start = min(max(known.get(shard.table, 0) - shard.row, 0), rows)
            number = order.index(shard.table)
            first = first_values(
                self._config.seed,
                number,
                shard.row + start,
                shard.row + rows,
                self._spec.tables[number].dim,
                self._model.table_init,
            )
            shard.values[start:].copy_(torch.from_numpy(first[:, shard.column : shard.column + dim]))
            shard.accumulator[start:] = self._config.initial_accumulator

    def start_at(self, rates: list[float]) -> None:
        """Begin at these response rates; see `DenseModel.start_at`."""
        self._dense.start_at(rates)

    def step(self, batch: Batch, dense_learning_rate: float, table_learning_rate: float) -> Tensor:
        """Train on this rank's share of a global batch; its loss before the step, per response [R], detached.

        Raises:
            LossError: The loss is no number; nothing has been changed. Not on a GPU, which it would have to wait for.
        """
        for group in self._adam.param_groups:
            group["lr"] = dense_learning_rate
        fused = self._tables.fused_optimizer
        for group in fused.param_groups:
            group["lr"] = table_learning_rate
        fused.step()  # hands the learning rate on; the rows are updated in the backward pass
        batch = batch.to(self.device)
        vectors, lengths = self._pooling(self._tables(batch.lookups).to_dict(), batch.lookups)
        self._gradient.zero_()
        rows = batch.labels_BR, batch.weights_BR, batch.member_dense_BM, batch.candidate_dense_BC
        detached = [vectors[name].detach() for name in self._lookups]
        losses_R, *gradients = self._through_dense(*rows, *(lengths[name] for name in self._learned), *detached)
        if dist.get_world_size() > 1:
            dist.all_reduce(self._gradient)
            self._gradient /= dist.get_world_size()
        torch.autograd.backward([vectors[name] for name in self._lookups], gradients)
        self._adam.step()
        self._step_replicated(table_learning_rate)
        return losses_R.clone()

    def loss(self, batch: Batch) -> Tensor:
        """Loss of this rank's rows as the model is, nothing dropped out, per response [R]."""
        self._dense.eval()
        try:
            return self._loss(batch)
        finally:
            self._dense.train()

    def _loss(self, batch: Batch) -> Tensor:
        with torch.no_grad(), self._autocast:
            batch = batch.to(self.device)
            vectors, lengths = self._pooling(self._tables(batch.lookups).to_dict(), batch.lookups)
            inputs = {name: self._dense_input(value) for name, value in vectors.items()}
            dense_parts = batch.member_dense_BM, batch.candidate_dense_BC
            logits_BR = self._dense(self._dense.pool(inputs, lengths), *map(self._dense_input, dense_parts))
        return weighted_cross_entropy(logits_BR.float(), batch.labels_BR, batch.weights_BR)

    def _slices_through_dense(
        self, labels_BR: Tensor, weights_BR: Tensor, member_BM: Tensor, candidate_BC: Tensor, *lookups: Tensor
    ) -> tuple[Tensor, ...]:
        """Forward and backward, slice by slice: the loss [R], and the gradient of the vectors of each lookup.

        `lookups` are the lengths of the lists whose pooling is learned, then the vectors of all.
        """
        num, learned = len(labels_BR), len(self._learned)
        lengths, vectors = lookups[:learned], lookups[learned:]
        size = max(1, -(-num // self._slices))
        losses, gradients = [], []
        for start in range(0, num, size):
            part = slice(start, start + size)
            leaves = [self._dense_input(value[part]).detach().requires_grad_() for value in vectors]
            dense_parts = map(self._dense_input, (member_BM[part], candidate_BC[part]))
            shares = {name: length_B[part] for name, length_B in zip(self._learned, lengths, strict=True)}
            with self._autocast:
                pooled = self._dense.pool(dict(zip(self._lookups, leaves, strict=True)), shares)
                logits_BR = self._dense(pooled, *dense_parts)
            losses_R = weighted_cross_entropy(logits_BR.float(), labels_BR[part], weights_BR[part])
            if self.device.type == "cpu" and not torch.isfinite(losses_R).all():
                raise _loss_error(logits_BR, labels_BR[part], weights_BR[part], start)
            losses_R = losses_R * (len(logits_BR) / num)
            losses_R.mean().backward()
            losses.append(losses_R.detach())
            gradients.append([leaf.grad for leaf in leaves])
        joined = [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*gradients, strict=True)]
        return torch.stack(losses).sum(dim=0), *(gradient.float() for gradient in joined)

    def _dense_input(self, value: Tensor) -> Tensor:
        """In bf16 the whole of the dense model, not its products alone, is of 16 bits: a fifth of a step less."""
        return value.bfloat16() if self._half else value

    def _step_replicated(self, learning_rate: float) -> None:
        """Row-wise Adagrad of the data-parallel tables, whose gradients are reduced already."""
        parameters = dict(self._tables.named_parameters()) if self._replicated else {}
        for shard in self.shards:
            if shard.table in self._replicated:
                parameter = parameters[f"embedding_bags.{shard.table}.weight"]
                gradient = parameter.grad
                shard.accumulator.add_(gradient.square().mean(dim=1))
                shard.values.sub_(learning_rate * gradient / (shard.accumulator.sqrt() + _EPSILON).unsqueeze(1))
                gradient.zero_()

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
                self._adam.state[parameter][key] = value.clone() if key == "step" else value.to(parameter.device)

    def _find_shards(self, spec: FeedSpec) -> list[Shard]:
        weights: dict[str, Any] = self._tables.state_dict()
        states: dict[str, Any] = self._tables.fused_optimizer.state_dict()["state"]
        shards = []
        for table in spec.tables:
            name = f"embedding_bags.{table.name}.weight"
            if table.name in self._replicated:
                values = weights[name]
                shards.append(Shard(table.name, 0, 0, 1, values, torch.zeros(len(values), device=values.device)))
                continue
            if name not in states:
                continue  # others have it
            (accumulator,) = states[name].values()
            for weight, moment in zip(weights[name].local_shards(), accumulator.local_shards(), strict=True):
                row, column = weight.metadata.shard_offsets
                parts = table.dim // weight.tensor.shape[1]
                shards.append(Shard(table.name, row, column, parts, weight.tensor, moment.tensor))
        return shards


def _loss_error(logits_BR: Tensor, labels_BR: Tensor, weights_BR: Tensor, first: int) -> LossError:
    for row in range(len(logits_BR)):
        own = slice(row, row + 1)
        losses_R = weighted_cross_entropy(logits_BR[own].float(), labels_BR[own], weights_BR[own])
        if not torch.isfinite(losses_R).all():
            return LossError(first + row, losses_R.tolist())
    return LossError(first, [float("nan")])


def _sharder() -> _Sharder:
    return _Sharder(
        fused_params={
            "optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            "learning_rate": 0.0,
            "eps": _EPSILON,
            "bounds_check_mode": BoundsCheckMode.NONE,
        }
    )


def _placed(table: TablePlan) -> ParameterShardingGenerator:
    """What TorchRec calls the table's sharding."""
    kernel = EmbeddingComputeKernel.FUSED.value
    if table.sharding == "table_wise":
        return table_wise(rank=table.devices[0], compute_kernel=kernel)
    if table.sharding == "column_wise":
        return column_wise(ranks=list(table.devices), compute_kernel=kernel)
    return row_wise(compute_kernel=kernel) if table.sharding == "row_wise" else data_parallel()


def _flat_gradient(dense: DenseModel) -> Tensor:
    """One tensor that all gradients of the model are parts of, so that one reduction takes all."""
    flat = torch.zeros(sum(parameter.numel() for parameter in dense.parameters()))
    flat = flat.to(next(dense.parameters()).device)
    start = 0
    for parameter in dense.parameters():
        parameter.grad = flat[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()
    return flat
