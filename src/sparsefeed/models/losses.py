"""The training loss: cross entropy weighted as in the IPS formula, one number per response."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

__all__ = ["weighted_cross_entropy"]


def weighted_cross_entropy(logits_BR: Tensor, labels_BR: Tensor, weights_BR: Tensor) -> Tensor:
    """Mean over rows of w * BCE(logit, y), per response: [B, R] three times -> [R].

    The mean divides by the number of rows, not by the sum of weights: the weights carry the unit, so that
    sum(w * loss) over production rows estimates the loss on random sessions. The training loss is its mean over R.
    """
    loss_BR = binary_cross_entropy_with_logits(logits_BR, labels_BR, weight=weights_BR, reduction="none")
    return loss_BR.mean(dim=0)
