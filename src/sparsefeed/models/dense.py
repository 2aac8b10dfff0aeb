"""The dense model: a gated MLP beside a low-rank cross network, one linear head per response.

Notable: no layer mixes rows, so a row's logits do not depend on the rest of its batch, and one
trained model serves any number of members and candidates (docs/contracts/dense.md). Gate and
cross are built of what HugeCTR has layers for, so both trainers fit the same model.

Shapes: B rows, R responses, D width of the input, K cross rank, H width of a hidden layer,
M and C the numbers of dense features of the member and of the candidate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.config import ModelConfig

__all__ = ["CrossLayer", "DenseModel", "GatedLayer"]


class GatedLayer(nn.Module):
    """relu(W h + b) * sigmoid(V h + c); without a gate, relu(W h + b). [B, in] -> [B, out]."""

    def __init__(self, num_inputs: int, num_outputs: int, gate: bool = True) -> None:
        super().__init__()
        # One matrix product for W and V: the rows of V follow those of W.
        self.linear = nn.Linear(num_inputs, num_outputs * (2 if gate else 1))
        self.gate = gate

    def forward(self, h_BH: Tensor) -> Tensor:
        """Apply the layer."""
        if not self.gate:
            return torch.relu(self.linear(h_BH))
        value_BH, gate_BH = self.linear(h_BH).chunk(2, dim=1)
        return torch.relu(value_BH) * torch.sigmoid(gate_BH)


class CrossLayer(nn.Module):
    """x_{l+1} = x_0 * (U (V x_l) + b) + x_l with V [K, D] and U [D, K]: DCN-v2's low-rank form (arXiv 2008.13535)."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, rank, bias=False)  # V
        self.expand = nn.Linear(rank, width)  # U, b

    def forward(self, x0_BD: Tensor, x_BD: Tensor) -> Tensor:
        """Apply the layer."""
        out: Tensor = x0_BD * self.expand(self.project(x_BD)) + x_BD
        return out


class DenseModel(nn.Module):
    """Pooled embeddings and dense features -> one logit per response.

        member_dense ─┐                ┌─ cross x cross_layers ─┐
        candidate_dense ─ concat: x_BD ┤                        ├─ concat ─ linear ─ logits_BR
        pooled lookups ─┘              └─ gated x len(hidden) ──┘

    The lookups enter in the spec's order, by name: the order of a caller's mapping is of no account.

    Attributes:
        config: The shape it was built with.
    """

    def __init__(self, spec: FeedSpec, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self._lookups = tuple(feature.name for feature in spec.lookups)
        width = len(spec.dense) + sum(spec.table_of(feature).dim for feature in spec.lookups)
        self.cross = nn.ModuleList(CrossLayer(width, config.cross_rank) for _ in range(config.cross_layers))
        widths = (width, *config.hidden)
        self.deep = nn.ModuleList(GatedLayer(before, after, config.gate) for before, after in pairwise(widths))
        self.head = nn.Linear(width + config.hidden[-1], len(spec.responses))

    def forward(self, pooled: Mapping[str, Tensor], member_dense_BM: Tensor, candidate_dense_BC: Tensor) -> Tensor:
        """Logits [B, R], uncalibrated.

        Args:
            pooled: Per lookup feature its pooled vector [B, dim].
            member_dense_BM: The member's dense features, in order; M may be 0.
            candidate_dense_BC: The candidate's dense features, in order; C may be 0.
        """
        x0_BD = torch.cat([member_dense_BM, candidate_dense_BC, *(pooled[name] for name in self._lookups)], dim=1)
        x_BD = h_BH = x0_BD
        for cross in self.cross:
            x_BD = cross(x0_BD, x_BD)
        for layer in self.deep:
            h_BH = layer(h_BH)
        logits_BR: Tensor = self.head(torch.cat([x_BD, h_BH], dim=1))
        return logits_BR

    def start_at(self, rates: Sequence[float]) -> None:
        """Set the head's biases so that an untrained model predicts about these rates, one per response.

        Rates are held in [1e-6, 1 - 1e-6]. It saves the steps a small learning rate takes to reach a rare response.
        """
        rates_R = np.clip(np.asarray(rates, np.float64), 1e-6, 1 - 1e-6)
        with torch.no_grad():
            self.head.bias.copy_(torch.from_numpy(np.log(rates_R / (1 - rates_R))))
