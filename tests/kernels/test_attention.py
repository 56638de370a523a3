"""Attention's kernels, interpreted where there is no GPU, against the reference in fp64."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.kernels.twins import DEVICE, DTYPES, assert_twins, draw
from tinyllama.kernels import attention as flash
from tinyllama.kernels import attention_backward, reference, sdpa, target

# tiles are of 32 and 16 here
LENGTHS = [1, 2, 15, 16, 17, 31, 32, 33, 63, 65]
GROUPS = [(4, 4), (4, 1), (8, 1)]


def tolerance(dtype: torch.dtype) -> float:
    """In 16 bits weights, their gradients and the results are each rounded; fp32 sums up to some hundred products."""
    return torch.finfo(dtype).eps * (8 if dtype == torch.float32 else 0.5)


def qkv(t: int, h: int, k: int, *, c: int = 16, dtype: torch.dtype = torch.float32, b: int = 2) -> list[Tensor]:
    shapes = ((b, t, h, c), (b, t, k, c), (b, t, k, c))
    return [draw(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate(shapes)]


def documents(*lengths: int) -> Tensor:
    """starts of one sequence of documents of these lengths, [t]."""
    firsts = [sum(lengths[:i]) for i in range(len(lengths))]
    return torch.tensor([first for first, n in zip(firsts, lengths, strict=True) for _ in range(n)], dtype=torch.int32)


def assert_attention(inputs: list[Tensor], starts: Tensor | None = None) -> None:
    starts = None if starts is None else starts.to(DEVICE)
    ratio, t = tolerance(inputs[0].dtype), inputs[0].shape[1]
    if t > 1:
        assert_twins(
            lambda q, k, v: flash.attention(q, k, v, starts),
            lambda q, k, v: reference.attention(q, k, v, starts),
            inputs,
            ratios=ratio,
        )
        return
    # one key gets all the weight whatever the query: the gradients of scores are zero, or what rounding leaves
    q, k, _ = inputs
    one = [
        lambda v, op=op: op(q.to(v.dtype), k.to(v.dtype), v, starts) for op in (flash.attention, reference.attention)
    ]
    assert_twins(*one, inputs[2:], ratios=ratio)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("h", "k"), GROUPS, ids=["1 to 1", "4 to 1", "8 to 1"])
@pytest.mark.parametrize("t", LENGTHS)
def test_attention_is_its_twin(t: int, h: int, k: int, dtype: torch.dtype) -> None:
    assert_attention(qkv(t, h, k, dtype=dtype, b=1 if t > 64 else 2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("c", [32, 64, 128])
def test_every_head_size_is_its_twin(c: int, dtype: torch.dtype) -> None:
    assert_attention(qkv(70, 2, 1, c=c, dtype=dtype, b=1))


DOCUMENTS = {
    "one": (70,),
    "pairs": (2,) * 35,
    "at tiles' edges": (32, 16, 16, 2),
    "beside tiles' edges": (31, 18, 15, 5),
    "many in a tile": (3, 1, 7, 20, 2, 40, 1, 60),
    "over many tiles": (5, 70, 9),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lengths", DOCUMENTS.values(), ids=DOCUMENTS)
def test_documents_do_not_see_each_other(lengths: tuple[int, ...], dtype: torch.dtype) -> None:
    # a row of them, and beside it their mirror image
    starts = torch.stack((documents(*lengths), documents(*reversed(lengths))))
    assert_attention(qkv(sum(lengths), 4, 2, dtype=dtype), starts)


def test_a_boundary_off_by_one_is_caught() -> None:
    inputs, starts = qkv(80, 4, 2), documents(30, 50)[None].repeat(2, 1)
    for wrong in (documents(29, 51), documents(31, 49)):
        with pytest.raises(AssertionError, match="error ratio"):
            assert_twins(
                partial(flash.attention, starts_bt=wrong[None].repeat(2, 1).to(DEVICE)),
                partial(reference.attention, starts_bt=starts.to(DEVICE)),
                inputs,
                ratios=tolerance(torch.float32),
            )


@pytest.mark.skipif(not target.INTERPRETED, reason="a GPU has its own tiles")
@pytest.mark.parametrize("with_documents", [False, True])
@pytest.mark.parametrize("t", [128, 200, 257])
def test_a_gpus_tiles_are_right_too(t: int, with_documents: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "of", lambda device: replace(target.INTERPRETER, arch=90, shared_bytes=232_448))
    assert flash.launch(16, torch.float16, on=target.of(torch.device(DEVICE))).block_m == 128
    starts = documents(3, 20, 60, 1, t - 84)[None] if with_documents else None
    assert_attention(qkv(t, 2, 1, dtype=torch.float16, b=1), starts)


def test_what_lies_in_a_packed_projection_is_read_in_place() -> None:
    packed = draw(2, 40, 8, 16, dtype=torch.float32)
    views = list(torch.split(packed, [4, 2, 2], dim=2))
    assert not any(view.is_contiguous() for view in views)
    assert torch.equal(flash.attention(*views), flash.attention(*(view.contiguous() for view in views)))
    # a sequence before the batch, and the head's values not side by side
    assert_attention([x.transpose(0, 1).contiguous().transpose(0, 1) for x in views])
    assert_attention([x.transpose(2, 3).contiguous().transpose(2, 3) for x in views])


def test_no_gradient_is_the_forward_alone() -> None:
    inputs = qkv(40, 4, 2)
    with torch.no_grad():
        alone = flash.attention(*inputs)
    assert torch.equal(alone, flash.attention(*(x.requires_grad_() for x in inputs)).detach())


def test_large_scores_are_finite() -> None:
    q, k, v = (x.requires_grad_() for x in qkv(70, 4, 2))
    out = flash.attention(q * 1e3, k * 1e3, v, documents(33, 37)[None].repeat(2, 1).to(DEVICE))
    gradients = torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
    assert all(x.isfinite().all() for x in (out, *gradients))
    for first in (0, 33):
        assert torch.equal(out[:, first], v[:, first].repeat_interleave(2, dim=1)), "the first sees itself alone"


def test_what_the_kernels_do_not_take_is_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    def untouched(*args: object) -> None:
        raise AssertionError("the kernel was used")

    monkeypatch.setattr(flash, "_attention", untouched)
    q, k, v = qkv(9, 4, 2)
    cached = (q[:, -3:], k, v)
    for inputs in (cached, qkv(9, 4, 2, c=24), [x.double() for x in (q, k, v)]):
        assert torch.equal(flash.attention(*inputs), sdpa.attention(*inputs))
    with pytest.raises(AssertionError, match="the kernel was used"):
        flash.attention(q, k, v)


def test_launches_have_whole_tiles_past_the_diagonal() -> None:
    for arch, shared in ((0, 0), (80, 166_912), (89, 101_376), (90, 232_448), (100, 232_448)):
        on = replace(target.INTERPRETER, arch=arch, shared_bytes=shared)
        for dtype in (torch.float32, torch.bfloat16):
            for c in flash.HEAD_SIZES:
                forward = flash.launch(c, dtype, on=on)
                for stays, walks, *_ in (forward, *attention_backward.launch(c, dtype, on=on)):
                    assert stays % walks == 0


def test_the_library_ops_are_well_formed() -> None:
    inputs = [x.requires_grad_() for x in qkv(20, 4, 2)]
    starts = documents(9, 11)[None].repeat(2, 1).to(DEVICE)
    for mask in (None, starts):
        torch.library.opcheck(torch.ops.tinyllama.attention, (*inputs, mask))
    compiled = torch.compile(lambda q, k, v: flash.attention(2 * q, k, v, starts), fullgraph=True, backend="aot_eager")
    q, k, v = inputs
    assert torch.equal(compiled(q, k, v), flash.attention(2 * q, k, v, starts))
