"""PyTorch's fused attention against the reference: outputs and every gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tests.kernels.compare import assert_close, draw
from tinyllama.kernels import reference, sdpa

SHAPES = [(1, 1), (2, 2), (33, 33), (1, 9), (5, 9), (32, 33), (40, 100)]
TOLERANCES = {
    # sums of up to 100 products, forward and backward
    torch.float64: 8 * torch.finfo(torch.float64).eps,
    torch.float32: 8 * torch.finfo(torch.float32).eps,
    # each side rounds scores, weights, their gradients and the results, each at its own places: up to 0.9 eps
    torch.bfloat16: 1.2 * torch.finfo(torch.bfloat16).eps,
}


def inputs_and_upstream(t: int, s: int, h: int, k: int, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    shapes = ((2, t, h, 16), (2, s, k, 16), (2, s, k, 16))
    inputs = [draw(*shape, seed=seed, dtype=dtype).requires_grad_() for seed, shape in enumerate(shapes)]
    return inputs, draw(2, t, h, 16, seed=3, dtype=dtype)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(("h", "k"), [(4, 4), (8, 2), (8, 1)], ids=["1 to 1", "4 to 1", "8 to 1"])
@pytest.mark.parametrize(("t", "s"), SHAPES)
def test_fused_attention_is_the_reference(t: int, s: int, h: int, k: int, dtype: torch.dtype) -> None:
    inputs, upstream = inputs_and_upstream(t, s, h, k, dtype)
    out, expected = sdpa.attention(*inputs), reference.attention(*inputs)
    assert_close(out, expected, ratio=TOLERANCES[dtype])
    gradients, slow = (torch.autograd.grad(result, inputs, upstream) for result in (out, expected))
    # one visible key gets all the weight whatever the query: those gradients are zero, or what rounding leaves of it
    for gradient, other in zip(gradients[2:] if s == 1 else gradients, slow[2:] if s == 1 else slow, strict=True):
        assert_close(gradient, other, ratio=TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_fused_attention_within_documents_is_the_reference(dtype: torch.dtype) -> None:
    inputs, upstream = inputs_and_upstream(33, 33, 8, 2, dtype)
    starts = torch.tensor([[0] * 5 + [5] * 27 + [32], [0] * 33])
    out, expected = sdpa.attention(*inputs, starts), reference.attention(*inputs, starts)
    assert_close(out, expected, ratio=TOLERANCES[dtype])
    for pair in zip(*(torch.autograd.grad(result, inputs, upstream) for result in (out, expected)), strict=True):
        assert_close(*pair, ratio=TOLERANCES[dtype])
    with pytest.raises(AssertionError, match="error ratio"):
        assert_close(sdpa.attention(*inputs, torch.zeros_like(starts)), expected, ratio=TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_the_mask_of_no_cache_is_caught_where_there_is_one(dtype: torch.dtype) -> None:
    (q, k, v), _ = inputs_and_upstream(32, 33, 8, 2, dtype)
    wrong = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True, enable_gqa=True)
    with pytest.raises(AssertionError, match="error ratio"):
        assert_close(wrong.transpose(1, 2), reference.attention(q, k, v), ratio=TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_one_lost_key_is_caught(dtype: torch.dtype) -> None:
    inputs, upstream = inputs_and_upstream(5, 9, 8, 2, dtype)
    gradients = torch.autograd.grad(reference.attention(*inputs), inputs, upstream)
    q, k, v = inputs
    # the last query does not see its own
    short = torch.cat((reference.attention(q, k, v)[:, :-1], reference.attention(q[:, -1:], k[:, :-1], v[:, :-1])), 1)
    for gradient, other in zip(gradients, torch.autograd.grad(short, inputs, upstream), strict=True):
        with pytest.raises(AssertionError, match="error ratio"):
            assert_close(other, gradient, ratio=TOLERANCES[dtype])
