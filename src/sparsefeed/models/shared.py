"""The dense model of a request: one member, n candidates, and what is the member's alone computed once.

A layer is linear before anything else, so it falls into a share of the member's columns and one of the candidate's:
W x = W_m x_m + W_c x_c, the first for one row, the second for n. In this way are shared

    the first gated layer of every expert, the mix of the experts, the head;
    the dot products of two of the member's lookups, and what all of these make of them;
    the cross layers. x_l is x_0 times a factor g_l, which is linear in the projections p_j = V_j x_j before it:
    g_0 = 1, g_l = g_{l-1} + U_{l-1} p_{l-1} + b_{l-1} (without g_{l-1} where there is no residual). So any map A of
    the member's columns, V_l or the head, is
        A x_l,m = A diag(x_m) c_l + sum_j (A diag(x_m) U_j,m) p_j,   c_l the constant part of g_l:
    a vector and a matrix [rows of A, K] per j, both the member's. No row of n has the member's columns.

A candidate's products with such matrices, K x K each, are fewer than those with the member's columns themselves where
these are more than K, about; where they are not, the cross layers after the first have whole rows (`_Cross.is_shared`).

Notable: at a hundred candidates every operator counts. So what the member has a share of is one product for all, a sum
is the product's that it is added to, and a line that the logits go through is part of the head. And the graph is of one
member: with one for several, the member's matrices are gathered per candidate, and requests that were joined took
longer than one by one (ADR 25).

Shapes: as in models.dense, and n candidates; L cross layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from sparsefeed.etl.spec import FeedSpec, side_of
from sparsefeed.models.dense import CrossLayer, DenseModel, GatedLayer, Interactions

__all__ = ["SharedModel"]

Pooled = Mapping[str, Tensor]
_MANY_PRODUCTS = 512  # of floats a row, above which small matrix products of every row cost less than copies of vectors


class SharedModel(nn.Module):
    """`DenseModel` for serving: the same logits, to float32 rounding; its weights are a copy.

    Args:
        model: what was trained.
        spec: its spec.
        scale: [R]; the logits are given times `scale` plus `shift`. None: as they are.
        shift: [R], with `scale`.
    """

    def __init__(
        self, model: DenseModel, spec: FeedSpec, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> None:
        super().__init__()
        self.lookups = {side: [f.name for f in spec.lookups if side_of(f) == side] for side in ("member", "candidate")}
        member, candidate = _columns(spec)
        self.dots = _Dots(model.interactions, spec) if model.interactions else None
        width, num_experts = len(member) + len(candidate), model.config.experts
        pairs = (self.dots.member, self.dots.candidate) if self.dots else ([], [])
        seen_m, seen_n = ([*own, *(width + p for p in of)] for own, of in zip((member, candidate), pairs, strict=True))
        deep = [layer.linear for layer in model.deep if isinstance(layer, GatedLayer)]
        self.first = nn.ModuleList(_Gated(linear, model.config.gate, seen_n) for linear in deep[:num_experts])
        self.rest = nn.ModuleList(_Gated(linear, model.config.gate) for linear in deep[num_experts:])
        self.mix = _Part(model.mix.weight[:, seen_n]) if model.mix else None
        of_x, of_h, of_dots = model.head.weight.split([width, model.config.hidden[-1], sum(map(len, pairs))], dim=1)
        if model.interactions and model.interactions.groups:  # added to every logit
            of_dots = of_dots + torch.cat(model.interactions.matched())
        of_one = model.head.bias
        if scale is not None and shift is not None:
            of_x, of_h, of_dots = (scale[:, None] * weight for weight in (of_x, of_h, of_dots))
            of_one = scale * of_one + shift
        self.cross = _Cross(model, of_x, member, candidate)
        self.register_buffer("of_h", of_h.detach().T.contiguous())
        alone = [] if self.mix else [of_h]  # mixed experts are weighed after the head, response by response
        self.head = _Part(torch.cat([of_x[:, self.cross.candidate], *alone, of_dots[:, pairs[1]]], dim=1))
        # What the member has a share of, in the order in which `forward` takes the shares.
        shares = [(linear.weight[:, seen_m], linear.bias) for linear in deep[:num_experts]]
        shares += [(model.mix.weight[:, seen_m], model.mix.bias)] if model.mix else []
        shares += [(_padded(weight, len(pairs[0])), torch.zeros(len(weight))) for weight in self.cross.constants]
        shares += [(torch.cat([self.cross.constant_of_head, of_dots[:, pairs[0]]], dim=1), of_one)]
        parts = [2 if model.config.gate else 1] * num_experts + [1] * (len(shares) - num_experts)
        self.sizes = [len(bias) // num for (_, bias), num in zip(shares, parts, strict=True) for _ in range(num)]
        weights, biases = zip(*shares, strict=True)
        self.register_buffer("of_member", torch.cat(weights).detach().T.contiguous())
        self.register_buffer("bias", torch.cat(biases).detach())

    def forward(
        self, members: Pooled, candidates: Pooled, member_dense_1M: Tensor | None, candidate_dense_nC: Tensor | None
    ) -> Tensor:
        """Logits [n, R], uncalibrated but for `scale` and `shift`.

        Args:
            members: Per lookup of the member its pooled vector [1, dim].
            candidates: Per lookup of the candidate its pooled vector [n, dim].
            member_dense_1M: None where the member has no dense features.
            candidate_dense_nC: None where the candidate has none.
        """
        of_member, of_candidate = (
            [*([] if dense is None else [dense]), *(vectors[name] for name in self.lookups[side])]
            for side, dense, vectors in (
                ("member", member_dense_1M, members),
                ("candidate", candidate_dense_nC, candidates),
            )
        )
        xm, xc = _joined(of_member) if of_member else None, _joined(of_candidate)
        dots_1, dots_n = self.dots(members, candidates) if self.dots else ([], [])
        together = self.bias.unsqueeze(0)
        if xm is not None:
            together = torch.addmm(self.bias, _joined([xm, *dots_1]), self.of_member)
        shares = iter(together.split(self.sizes, dim=1))
        seen_n = _joined([xc, *dots_n])
        experts = [layer(seen_n, shares) for layer in self.first]
        for start in range(0, len(self.rest), len(experts)):
            layers = self.rest[start : start + len(experts)]
            experts = [layer(h) for layer, h in zip(layers, experts, strict=True)]
        mix = self.mix(next(shares), seen_n) if self.mix else None
        x, share = self.cross(xm, xc, shares)
        logits_nR = self.head(share, _joined([x, *([] if self.mix else experts), *dots_n]))
        if mix is not None:
            mix_nRE = torch.softmax(mix.reshape(-1, mix.shape[1] // len(experts), len(experts)), dim=2)
            # Of each expert's own logits the mean: the head is linear.
            logits_nER = torch.stack(experts, dim=1) @ self.of_h
            logits_nR = logits_nR + (mix_nRE * logits_nER.transpose(1, 2)).sum(dim=2)
        return logits_nR


class _Part(nn.Module):
    """The candidate's columns of a linear map, on top of what the member's gave: [n, in] -> [n, out]."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        # [in, out]: the exporter writes such a product as it is, without a transpose.
        self.register_buffer("weight", weight.detach().T.contiguous())

    def forward(self, share: Tensor, rows: Tensor) -> Tensor:
        """Apply it; the share is [out], [1, out] or [n, out]."""
        return torch.addmm(share, rows, self.weight)


class _Gated(nn.Module):
    """A gated layer. Value and gate are two products, each with its activation: one would be cut apart by copies."""

    def __init__(self, linear: nn.Linear, gate: bool, columns: Sequence[int] | None = None) -> None:
        super().__init__()
        weight = linear.weight if columns is None else linear.weight[:, [*columns]]
        self.parts = nn.ModuleList(_Part(part) for part in weight.chunk(1 + gate))
        self.biases = [bias.detach() for bias in linear.bias.chunk(1 + gate)]

    def forward(self, rows: Tensor, shares: Iterator[Tensor] | None = None) -> Tensor:
        """[n, out]; the shares of value and gate are their biases where there are none."""
        given = iter(self.biases) if shares is None else shares
        value, *gates = (part(next(given), rows) for part in self.parts)
        out = torch.relu(value)
        for gate in gates:
            out = out * torch.sigmoid(gate)
        return out


class _Dots(nn.Module):
    """Dot products of lookups of one width: two of the member's [1, pairs], and those with a candidate's [n, pairs].

    Attributes:
        member: where each of the first stands among all pairs (Interactions), as `forward` gives them.
        candidate: and each of the others.
    """

    def __init__(self, interactions: Interactions, spec: FeedSpec) -> None:
        super().__init__()
        self.groups: list[tuple[int, list[str], list[str]]] = []  # dim, the member's lookups, the candidate's
        self.member: list[int] = []
        self.candidate: list[int] = []
        start = 0
        for names in interactions.groups:
            sides = [side_of(spec.feature_by_name[name]) for name in names]
            members, candidates = ([i for i, of in enumerate(sides) if of == side] for side in ("member", "candidate"))
            dim = next(spec.table_of(f).dim for f in spec.lookups if f.name == names[0])
            self.groups.append((dim, [names[i] for i in members], [names[i] for i in candidates]))
            self.member += [start + _pair(i, j) for i, j in combinations(members, 2)]
            self.candidate += [start + _pair(i, j) for i in candidates for j in members]
            self.candidate += [start + _pair(i, j) for i, j in combinations(candidates, 2)]
            start += len(names) * (len(names) - 1) // 2

    def forward(self, members: Pooled, candidates: Pooled) -> tuple[list[Tensor], list[Tensor]]:
        """The member's pairs, and the candidate's."""
        alone, others = [], []
        for dim, of_member, of_candidate in self.groups:
            vectors_1AD, vectors_nCD = _stacked(members, of_member, dim), _stacked(candidates, of_candidate, dim)
            if len(of_member) > 1:
                alone.append(_products(vectors_1AD, len(of_member), dim))
            if of_member and of_candidate:
                products = vectors_nCD.reshape(-1, dim) @ vectors_1AD.reshape(-1, dim).T
                others.append(products.reshape(-1, len(of_candidate) * len(of_member)))
            if len(of_candidate) > 1:
                others.append(_products(vectors_nCD, len(of_candidate), dim))
        return alone, others


class _Cross(nn.Module):
    """The cross layers.

    Attributes:
        is_shared: whether no row of n has the member's columns.
        candidate: columns of x that `forward` gives, in order.
        constants: per layer, [K, D_m], the map of the member's columns that the constant part of V_l x_l is.
        constant_of_head: the same of the head, [R, D_m].
    """

    def __init__(self, model: DenseModel, of_x_RD: Tensor, member: list[int], candidate: list[int]) -> None:
        super().__init__()
        layers = [layer for layer in model.cross if isinstance(layer, CrossLayer)]
        rank, num, outputs, width = model.config.cross_rank, len(layers), len(of_x_RD), len(member)
        by_matrices = rank * rank * num * (num - 1) // 2 + rank * num * outputs
        self.is_shared = by_matrices <= width * (rank * max(0, 2 * num - 1) + outputs)
        self.candidate = candidate if self.is_shared else [*member, *candidate]
        self.residual = model.config.cross_residual
        # The factor g_l of the member's columns: its constant part [D_m], and the U_j,m [D_m, K] after each other.
        constant, expands = torch.ones(width), []
        self.project, self.expand, self.constants, maps = nn.ModuleList(), nn.ModuleList(), [], []
        self.biases = []
        for number, layer in enumerate(layers):
            v_KD, u_DK, b_D = (t.detach() for t in (layer.project.weight, layer.expand.weight, layer.expand.bias))
            shared = number == 0 or self.is_shared
            self.project.append(_Part(v_KD[:, self.candidate if number else candidate]))
            self.constants.append(v_KD[:, member] * constant if shared else torch.zeros(rank, width))
            maps += [v_KD[:, member]] if number else []
            self.expand.append(_Part(u_DK[self.candidate]))
            # x_0 is the first layer's residual, too: x_0 (U p + b) + x_0 = x_0 (U p + (b + 1)).
            self.biases.append(b_D[self.candidate] + (1 if self.residual and number == 0 else 0))
            constant = b_D[member] + (constant if self.residual else 0)
            expands.append(u_DK[member])
        of_head_RM = of_x_RD.detach()[:, member]
        self.constant_of_head = of_head_RM * constant if self.is_shared else torch.zeros(outputs, width)
        self.sizes = [*(rank for _ in maps), outputs]
        self.register_buffer("maps", torch.cat([*maps, of_head_RM]).T.contiguous())
        self.register_buffer("expands", torch.cat(expands, dim=1).T.contiguous() if layers else torch.zeros(0, width))

    def forward(self, member: Tensor | None, candidates: Tensor, shares: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
        """Columns `candidate` of x_L [n, D_c]; and what the head's other columns of it give, [1, R] or [n, R]."""
        x0 = candidates
        if member is not None and not self.is_shared:
            x0 = _joined([member.expand(candidates.shape[0], -1), candidates])
        matrices = self._matrices(member) if member is not None and self.is_shared and self.project else []
        x, before = x0, list[Tensor]()
        for number, (project, expand, bias) in enumerate(zip(self.project, self.expand, self.biases, strict=True)):
            p = project(next(shares), x if number else candidates)
            if number and matrices:
                p = torch.addmm(p, _joined(before), matrices[number - 1])
            product = x0 * expand(bias, p)
            x = product + x if self.residual and number else product
            before = [*before, p] if self.residual else [p]
        share = next(shares)
        return x, torch.addmm(share, _joined(before), matrices[-1]) if matrices else share

    def _matrices(self, member_1D: Tensor) -> list[Tensor]:
        """A diag(x_m) U_j,m, transposed, for each map A but the first V: [K of every j it depends on, rows of A]."""
        all_KA = self.expands @ (member_1D.T * self.maps)
        rank = self.expands.shape[0] // len(self.project)
        parts = []
        for number, matrix in enumerate(all_KA.split(self.sizes, dim=1), 1):
            start, end = 0 if self.residual else (number - 1) * rank, number * rank
            parts.append(matrix if end - start == len(self.expands) else matrix[start:end])
        return parts


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Columns after each other; the exporter would write a copy of a single one."""
    return parts[0] if len(parts) == 1 else torch.cat([*parts], dim=1)


def _stacked(vectors: Pooled, names: Sequence[str], dim: int) -> Tensor:
    """[rows, names, dim]; of no names nothing that can be used."""
    return _joined([vectors[name] for name in names]).reshape(-1, len(names), dim) if names else torch.zeros(0)


def _products(vectors_BND: Tensor, num: int, dim: int) -> Tensor:
    """Dot products of every two [rows, pairs], in the order of `combinations`."""
    left, right = (torch.tensor(list(side)) for side in zip(*combinations(range(num), 2), strict=True))
    if len(left) * dim > _MANY_PRODUCTS:
        products_BNN = vectors_BND @ vectors_BND.transpose(1, 2)
        return products_BNN.reshape(-1, num * num).index_select(1, left * num + right)
    return (vectors_BND.index_select(1, left) * vectors_BND.index_select(1, right)).sum(dim=2)


def _padded(weight: Tensor, num_columns: int) -> Tensor:
    return torch.cat([weight, torch.zeros(len(weight), num_columns)], dim=1)


def _pair(i: int, j: int) -> int:
    """Where the pair stands among those of its group (Interactions)."""
    return max(i, j) * (max(i, j) - 1) // 2 + min(i, j)


def _columns(spec: FeedSpec) -> tuple[list[int], list[int]]:
    """Columns of the model's input that are the member's and the candidate's, as `SharedModel.forward` joins them."""
    columns: dict[str, list[int]] = {"member": [], "candidate": []}
    at = 0
    for feature in [*spec.of_kind("dense", side="member"), *spec.of_kind("dense", side="candidate"), *spec.lookups]:
        dim = spec.table_of(feature).dim if feature in spec.lookups else 1
        columns[side_of(feature)] += range(at, at + dim)
        at += dim
    return columns["member"], columns["candidate"]
