"""The dense model: a gated MLP beside a low-rank cross network and dot products, one linear head per response.

Notable: no layer mixes rows, so a row's logits do not depend on the rest of its batch, and one
trained model serves any number of members and candidates (docs/contracts/dense.md). Gate, cross
and dot products are built of what HugeCTR has layers for, so both trainers fit the same model.

Shapes: B rows, R responses, D width of the input, K cross rank, P pairs of lookups, E experts, H width of a hidden
layer, M and C the numbers of dense features of the member and of the candidate, L the longest a list can be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from sparsefeed.etl.spec import FeedSpec, HistoryFeature, side_of
from sparsefeed.models.config import ModelConfig

__all__ = ["CrossLayer", "DenseModel", "GatedLayer", "Interactions", "LearnedPooling"]


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
    """x_{l+1} = x_0 * (U (V x_l) + b) + x_l with V [K, D] and U [D, K]: DCN-v2's low-rank form (arXiv 2008.13535).

    Without `residual` the last term is left out.
    """

    def __init__(self, width: int, rank: int, residual: bool = True) -> None:
        super().__init__()
        self.project = nn.Linear(width, rank, bias=False)  # V
        self.expand = nn.Linear(rank, width)  # U, b
        self.residual = residual

    def forward(self, x0_BD: Tensor, x_BD: Tensor) -> Tensor:
        """Apply the layer."""
        out: Tensor = x0_BD * self.expand(self.project(x_BD))
        return out + x_BD if self.residual else out


class Interactions(nn.Module):
    """Dot products of all pairs of vectors of one width: the vectors by name -> [B, P].

    Pair (i, j), j < i, stands at i (i - 1) / 2 + j, as in DLRM (arXiv 1906.00091); widths in order of first lookups.
    """

    def __init__(self, spec: FeedSpec) -> None:
        super().__init__()
        names_of: dict[int, list[str]] = {}
        for feature in spec.lookups:
            names_of.setdefault(spec.table_of(feature).dim, []).append(feature.name)
        self.groups = [names for names in names_of.values() if len(names) > 1]
        self.num_pairs = sum(len(names) * (len(names) - 1) // 2 for names in self.groups)
        for number, names in enumerate(self.groups):
            pairs = torch.tril_indices(len(names), len(names), -1)
            self.register_buffer(f"flat{number}", pairs[0] * len(names) + pairs[1], persistent=False)
            matched = [_is_match(spec, names[i], names[j]) for i, j in pairs.T.tolist()]
            self.register_buffer(f"matched{number}", torch.tensor(matched, dtype=torch.float32), persistent=False)

    def matched(self) -> list[Tensor]:
        """Per width, [pairs]: 1 where a pair is a match of the member's own ids with the candidate's, else 0."""
        return [getattr(self, f"matched{number}") for number in range(len(self.groups))]

    def forward(self, pooled: Mapping[str, Tensor]) -> list[Tensor]:
        """Per width its pairs, [B, pairs] each."""
        dots = []
        for number, names in enumerate(self.groups):
            vectors_BND = torch.stack([pooled[name] for name in names], dim=1)
            products_BNN = vectors_BND @ vectors_BND.transpose(1, 2)
            dots.append(products_BNN.flatten(1).index_select(1, getattr(self, f"flat{number}")))
        return dots


class LearnedPooling(nn.Module):
    """sum_i a_i e_i over the places of a list, a = softmax of one learned number per place over those that are filled.

    A softmax, for it begins, all numbers zero, as the mean; its shares add up to 1 whatever the length; and the ratio
    of two places does not depend on the length: what long lists teach holds for short ones. Unlike sigmoids, divided by
    their sum, it has no bound that a place's weight could get stuck at.
    """

    def __init__(self, max_length: int) -> None:
        super().__init__()
        self.place_L = nn.Parameter(torch.zeros(max_length))
        self.register_buffer("number_L", torch.arange(max_length), persistent=False)

    def forward(self, vectors_BLD: Tensor, length_B: Tensor) -> Tensor:
        """Pool vectors [B, L, D], those beyond the length zero, to [B, D]; an empty list gives zero."""
        empty_BL = self.number_L >= length_B.unsqueeze(1)
        # Not -inf: of an empty list all places are shut, and equal shares of zero vectors are zero, never NaN.
        share_BL = torch.softmax(self.place_L.masked_fill(empty_BL, -1e9), dim=1)
        return (share_BL.unsqueeze(2) * vectors_BLD).sum(dim=1).to(vectors_BLD.dtype)


def _is_match(spec: FeedSpec, one: str, other: str) -> bool:
    """Whether one is an id of the member and the other of the candidate; a history is what the member did."""
    features = [spec.feature_by_name[name] for name in (one, other)]
    return {side_of(feature) for feature in features} == {"member", "candidate"} and not any(
        isinstance(feature, HistoryFeature) for feature in features
    )


class DenseModel(nn.Module):
    """Pooled embeddings and dense features -> one logit per response.

        member_dense ─┐                ┌─ cross x cross_layers ─────────┐
        candidate_dense ─ concat: x_BD ┤                                ├─ concat ─ linear ─ add ─ logits_BR
        pooled lookups ─┘              └─ concat ─ gated x len(hidden) ─┤            │
              └──────────────────────────── dot products of pairs ──────┴── matches ─┘

    The matches, the sum of the dot products of the member's own ids with the candidate's, are a factorisation machine's
    second order (Rendle, 2010): interactions of ids are learnt from the first step, and no weight before them must be
    found first. Pairs of one side, and those of a history, only add noise to that sum (docs/log.md). The lookups enter
    in the spec's order, by name: the order of a caller's mapping is of no account.

    With several experts there is a gated network of each, and every response mixes their outputs by a softmax of its
    own over a linear map of what they see (MMoE, KDD 2018).

    Attributes:
        config: The shape it was built with.
    """

    def __init__(self, spec: FeedSpec, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self._lookups = tuple(feature.name for feature in spec.lookups)
        # A name may be one of ModuleDict's own, as `items`.
        self.pools = nn.ModuleDict({f"of_{one.name}": LearnedPooling(one.max_length) for one in spec.learned})
        width = len(spec.dense) + sum(spec.table_of(feature).dim for feature in spec.lookups)
        self.interactions = Interactions(spec) if config.interactions else None
        num_pairs = self.interactions.num_pairs if self.interactions else 0
        self.cross = nn.ModuleList(
            CrossLayer(width, config.cross_rank, config.cross_residual) for _ in range(config.cross_layers)
        )
        widths = (width + num_pairs, *config.hidden)
        # Layer by layer, the experts of a layer side by side.
        self.deep = nn.ModuleList(
            GatedLayer(before, after, config.gate) for before, after in pairwise(widths) for _ in range(config.experts)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.mix = nn.Linear(widths[0], len(spec.responses) * config.experts) if config.experts > 1 else None
        self.head = nn.Linear(width + config.hidden[-1] + num_pairs, len(spec.responses))

    def pool(self, vectors: Mapping[str, Tensor], lengths: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Pooled vectors by lookup: those that `lengths` [B] are given of by `LearnedPooling`, others are pooled."""
        return {
            name: self.pools[f"of_{name}"](value, lengths[name]) if name in lengths else value
            for name, value in vectors.items()
        }

    def forward(self, pooled: Mapping[str, Tensor], member_dense_BM: Tensor, candidate_dense_BC: Tensor) -> Tensor:
        """Logits [B, R], uncalibrated.

        Args:
            pooled: Per lookup feature its pooled vector [B, dim].
            member_dense_BM: The member's dense features, in order; M may be 0.
            candidate_dense_BC: The candidate's dense features, in order; C may be 0.
        """
        x0_BD = torch.cat([member_dense_BM, candidate_dense_BC, *(pooled[name] for name in self._lookups)], dim=1)
        dots = self.interactions(pooled) if self.interactions else []
        x_BD = x0_BD
        for cross in self.cross:
            x_BD = cross(x0_BD, x_BD)
        seen = torch.cat([x0_BD, *dots], dim=1) if dots else x0_BD
        logits_BR = self._mixed(seen, x_BD, dots) if self.mix else self._shared(seen, x_BD, dots)
        if self.interactions:
            for dots_BP, matched_P in zip(dots, self.interactions.matched(), strict=True):
                logits_BR = logits_BR + (dots_BP * matched_P).sum(dim=1, keepdim=True)
        return logits_BR

    def _shared(self, h_BH: Tensor, x_BD: Tensor, dots: Sequence[Tensor]) -> Tensor:
        for layer in self.deep:
            h_BH = self.dropout(layer(h_BH))
        logits_BR: Tensor = self.head(torch.cat([x_BD, h_BH, *dots], dim=1))
        return logits_BR

    def _mixed(self, seen: Tensor, x_BD: Tensor, dots: Sequence[Tensor]) -> Tensor:
        assert self.mix is not None
        experts, num = [seen] * self.config.experts, self.config.experts
        for start in range(0, len(self.deep), num):
            layers = self.deep[start : start + num]
            experts = [self.dropout(layer(h_BH)) for layer, h_BH in zip(layers, experts, strict=True)]
        shares_BRE = torch.softmax(self.mix(seen).unflatten(1, (-1, num)), dim=2)
        h_BRH = shares_BRE @ torch.stack(experts, dim=1)
        cut = (x_BD.shape[1], h_BRH.shape[2], sum(part.shape[1] for part in dots))
        of_x, of_h_RH, of_dots = self.head.weight.split(cut, dim=1)
        rest = torch.cat([x_BD, *dots], dim=1) @ torch.cat([of_x, of_dots], dim=1).T
        logits_BR: Tensor = rest + (h_BRH * of_h_RH).sum(dim=2) + self.head.bias
        return logits_BR

    def start_at(self, rates: Sequence[float]) -> None:
        """Set the head's biases so that an untrained model predicts about these rates, one per response.

        Rates are held in [1e-6, 1 - 1e-6]. It saves the steps a small learning rate takes to reach a rare response.
        """
        rates_R = np.clip(np.asarray(rates, np.float64), 1e-6, 1 - 1e-6)
        with torch.no_grad():
            self.head.bias.copy_(torch.from_numpy(np.log(rates_R / (1 - rates_R))))
