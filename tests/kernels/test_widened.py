"""bf16 in fp32 and rounded, beside the reference in fp64."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.compare import assert_close, draw
from tinyllama.kernels import reference, widened

EPS = torch.finfo(torch.bfloat16).eps
WIDE = torch.float64


def test_linear_rounds_once_each_way() -> None:
    x, weight, grad = (
        draw(*shape, dtype=torch.bfloat16, seed=i) for i, shape in enumerate([(2, 9, 24), (40, 24), (2, 9, 40)])
    )
    pairs = []
    for op, dtype in ((widened.linear, torch.bfloat16), (reference.linear, WIDE)):
        leaves = [leaf.to(dtype).requires_grad_() for leaf in (x, weight)]
        out = op(*leaves)
        pairs.append([out, *torch.autograd.grad(out, leaves, grad.to(dtype))])
    for actual, expected in zip(*pairs, strict=True):
        assert_close(actual, expected, ratio=0.3 * EPS, dtype=torch.bfloat16)  # half an eps at most, 0.29 by RMS


@pytest.mark.parametrize("documents", [False, True], ids=["whole", "documents"])
def test_attention_rounds_once(documents: bool) -> None:
    q, k, v = (draw(2, 12, heads, 16, dtype=torch.bfloat16, seed=heads) for heads in (4, 2, 2))
    starts = torch.tensor([[0] * 5 + [5] * 7, [0] * 12], dtype=torch.int32) if documents else None
    expected = reference.attention(q.double(), k.double(), v.double(), starts)
    assert_close(widened.attention(q, k, v, starts), expected, ratio=0.3 * EPS, dtype=torch.bfloat16)


def test_the_loss_has_no_rounded_logits() -> None:
    x, weight = draw(30, 24, dtype=torch.bfloat16), draw(50, 24, dtype=torch.bfloat16, seed=1)
    targets = torch.arange(30)
    targets[3:7] = reference.IGNORED
    loss, count = widened.linear_cross_entropy(x, weight, targets)
    expected, counted = reference.linear_cross_entropy(x.double(), weight.double(), targets)
    assert int(count) == int(counted) == 26
    assert_close(loss, expected, ratio=1e-6, dtype=torch.float32)
    rounded, _ = reference.linear_cross_entropy(x, weight, targets)
    assert abs(rounded - expected) > abs(loss - expected)
