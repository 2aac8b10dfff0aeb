from __future__ import annotations

import numpy as np
import torch

from sparsefeed.models.losses import weighted_cross_entropy


def test_the_loss_is_the_formula_in_numpy() -> None:
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(50, 3)), random.integers(0, 2, (50, 3)).astype(float)
    weights = random.uniform(0.1, 3, (50, 3))
    p = 1 / (1 + np.exp(-logits))
    expected = -(weights * (labels * np.log(p) + (1 - labels) * np.log(1 - p))).mean(0)
    got = weighted_cross_entropy(*(torch.from_numpy(a) for a in (logits, labels, weights)))
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)


def test_a_weight_of_two_counts_a_row_twice_and_does_not_change_the_number_of_rows() -> None:
    logits, labels = torch.tensor([[0.3], [-1.0]]), torch.tensor([[1.0], [0.0]])
    weighted = weighted_cross_entropy(logits, labels, torch.tensor([[2.0], [0.0]]))
    alone = weighted_cross_entropy(logits[:1], labels[:1], torch.ones(1, 1))
    torch.testing.assert_close(weighted, alone)


def test_far_logits_stay_finite() -> None:
    logits = torch.tensor([[200.0], [-200.0]], requires_grad=True)
    loss = weighted_cross_entropy(logits, torch.tensor([[0.0], [1.0]]), torch.ones(2, 1))
    loss.sum().backward()
    assert loss.item() == 200.0
    assert torch.isfinite(logits.grad).all()
