"""RoPE's kernels, interpreted where there is no GPU, against the reference in fp64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.kernels.twins import DEVICE, DTYPES, assert_twins, draw, one_rounding
from tinyllama.kernels import reference, rope

# b, t, heads, key-value heads, head size: one of each, halves that are no power of two, more rows than a program takes
SHAPES = [(1, 1, 1, 1, 2), (2, 5, 8, 1, 16), (1, 3, 4, 4, 24), (2, 37, 3, 3, 6), (1, 20, 8, 2, 64), (3, 2, 2, 1, 128)]


def tables(t: int, c: int, *, start: int = 3) -> tuple[Tensor, Tensor]:
    angles = (start + torch.arange(t))[:, None] * 100.0 ** -torch.linspace(0, 1, c // 2)
    return angles.cos().to(DEVICE), angles.sin().to(DEVICE)


def assert_rope(x: Tensor, k: int, cos: Tensor, sin: Tensor) -> None:
    def op(x: Tensor) -> tuple[Tensor, ...]:
        return rope.rope(x, cos, sin, k)

    def twin(x: Tensor) -> tuple[Tensor, ...]:
        return reference.rope(x, cos, sin, k)

    assert_twins(op, twin, [x], ratios=one_rounding(x.dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rope_is_its_twin(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    b, t, h, k, c = shape
    assert_rope(draw(b, t, h + 2 * k, c, dtype=dtype), k, *tables(t, c))


def test_a_table_of_the_next_position_is_caught() -> None:
    x = draw(2, 37, 6, 16, dtype=torch.float32)
    with pytest.raises(AssertionError, match="error ratio"):
        assert_twins(
            lambda x: rope.rope(x, *tables(37, 16), 1),
            lambda x: reference.rope(x, *tables(37, 16, start=4), 1),
            [x],
            ratios=one_rounding(x.dtype),
        )


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_values_pass_through_whatever_they_are() -> None:
    x = draw(1, 4, 4, 8, dtype=torch.float32)
    x[:, 1, -1, 2], x[:, 2, -1, 3] = float("inf"), float("nan")
    *_, v = rope.rope(x, *tables(4, 8), 1)
    assert torch.equal(v.nan_to_num(nan=7), x[:, :, -1:].nan_to_num(nan=7))


def test_nothing_has_to_lie_densely() -> None:
    dense, (cos, sin) = draw(2, 5, 6, 16, dtype=torch.float32), tables(5, 16)
    expected = rope.rope(dense, cos, sin, 2)
    batch_inside, values_apart = (dense.transpose(i, j).contiguous().transpose(i, j) for i, j in ((0, 1), (2, 3)))
    wide = torch.zeros(5, 24, device=DEVICE)
    wide[:, 8:16] = cos
    for x, cosines in ((batch_inside, cos), (values_apart, cos), (dense, wide[:, 8:16]), (dense, cos.T.contiguous().T)):
        assert all(torch.equal(*pair) for pair in zip(rope.rope(x, cosines, sin, 2), expected, strict=True))
    # gradients that lie as PyTorch's attention gives them, heads before positions, and values apart
    leaf = dense.requires_grad_()
    outs = rope.rope(leaf, cos, sin, 2)
    ups = [draw(*out.shape, seed=seed, dtype=torch.float32) for seed, out in enumerate(outs)]
    [expected_dx] = torch.autograd.grad(outs, leaf, ups, retain_graph=True)
    for i, j in ((1, 2), (2, 3)):
        [dx] = torch.autograd.grad(
            outs, leaf, [up.transpose(i, j).contiguous().transpose(i, j) for up in ups], retain_graph=True
        )
        assert torch.equal(dx, expected_dx)


@pytest.mark.parametrize("used", [0, 1, 2])
def test_an_unused_output_has_no_gradient(used: int) -> None:
    x, (cos, sin) = draw(2, 5, 6, 16, dtype=torch.float32), tables(5, 16)
    heads = ((0, 2), (2, 4), (4, 6))[used]
    leaf = x.requires_grad_()
    out = rope.rope(leaf, cos, sin, 2)[used]
    [dx] = torch.autograd.grad(out, leaf, torch.ones_like(out))
    assert dx[:, :, slice(*heads)].all()
    assert int(dx.count_nonzero()) == out.numel()


def test_launches_cover_every_row() -> None:
    for n_rows in (0, 1, 63, 64, 65, 8 * 2048 * 40):
        for c in (2, 6, 64, 128):
            how = rope.launch(n_rows, c)
            assert n_rows <= how.programs * how.block < n_rows + how.block
            assert c // 2 <= how.block_half < c


def test_the_library_op_is_well_formed() -> None:
    x, (cos, sin) = draw(2, 5, 6, 16, dtype=torch.float32).requires_grad_(), tables(5, 16)
    torch.library.opcheck(torch.ops.tinyllama.rope, (x, cos, sin, 2))
