"""Attention over blocks of queries beside the reference in fp64, and where it is used."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.kernels.compare import assert_close, draw, error_ratio
from tinyllama.kernels import blocked, reference

NAMES = ("out", "dq", "dk", "dv")


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)


def both_ways(op: Callable[..., Tensor], t: int, *, heads: int, kv_heads: int, dtype: torch.dtype) -> list[Tensor]:
    """The result and the gradients of queries, keys and values that are exact in bf16, worked out in a dtype."""
    drawn = [draw(2, t, n, 16, dtype=torch.bfloat16, seed=i) for i, n in enumerate((heads, kv_heads, kv_heads, heads))]
    q, k, v, grad = (x.to(dtype) for x in drawn)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = op(*leaves)
    return [out, *torch.autograd.grad(out, leaves, grad)]


@pytest.mark.usefixtures("compiling")
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (3, 3), (4, 1)])
@pytest.mark.parametrize("t", [1, 7, 16, 33, 48])
def test_every_block_is_the_references(monkeypatch: pytest.MonkeyPatch, t: int, heads: int, kv_heads: int) -> None:
    monkeypatch.setattr(blocked, "BLOCK", 16)
    found = both_ways(blocked.attention, t, heads=heads, kv_heads=kv_heads, dtype=torch.float32)
    expected = both_ways(reference.attention, t, heads=heads, kv_heads=kv_heads, dtype=torch.float64)
    for name, one, right in zip(NAMES, found, expected, strict=True):
        if t == 1 and name in ("dq", "dk"):  # of one position the weight is 1 whatever they are
            assert one.abs().max() < 1e-6
        else:
            assert_close(one, right, ratio=1e-6, dtype=torch.float32)


@pytest.mark.usefixtures("compiling")
def test_in_bf16_it_is_as_close_as_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "BLOCK", 32)
    found = both_ways(blocked.attention, 80, heads=4, kv_heads=2, dtype=torch.bfloat16)
    rounded = both_ways(reference.attention, 80, heads=4, kv_heads=2, dtype=torch.bfloat16)
    expected = both_ways(reference.attention, 80, heads=4, kv_heads=2, dtype=torch.float64)
    for one, other, right in zip(found, rounded, expected, strict=True):
        assert_close(one, right, ratio=1.25 * error_ratio(other.detach(), right.detach()), dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("compiles", "t", "s", "documents", "takes"),
    [
        (True, 24, 24, False, True),
        (True, blocked.LONGEST, blocked.LONGEST, False, True),
        (False, 24, 24, False, False),
        (True, blocked.LONGEST + 1, blocked.LONGEST + 1, False, False),
        (True, 24, 25, False, False),
        (True, 24, 24, True, False),
    ],
    ids=["compiled", "longest", "not compiled", "too long", "cached", "documents"],
)
def test_where_it_is_used(
    monkeypatch: pytest.MonkeyPatch, compiles: bool, t: int, s: int, documents: bool, takes: bool
) -> None:
    used = []
    apply = blocked.Blocked.apply
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiles)
    monkeypatch.setattr(blocked.Blocked, "apply", lambda *given: used.append(given) or apply(*given))
    q, k, v = draw(1, t, 2, 8), draw(1, s, 1, 8, seed=1), draw(1, s, 1, 8, seed=2)
    starts = torch.zeros(1, t, dtype=torch.int32) if documents else None
    out = blocked.attention(q.float(), k.float(), v.float(), starts)
    assert bool(used) == takes
    assert_close(out, reference.attention(q, k, v, starts), ratio=1e-6, dtype=torch.float32)
