"""SwiGLU's kernels, interpreted where there is no GPU, against the reference in fp64."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.twins import DEVICE, DTYPES, assert_twins, draw, one_rounding
from tinyllama.kernels import reference, swiglu

# the packed projection: one value, widths beside powers of two, more than one piece to a row
SHAPES = [(1, 2), (3, 5, 66), (2, 64), (7, 2 * 1023), (2, 2 * 2049)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_swiglu_is_its_twin(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert_twins(swiglu.swiglu, reference.swiglu, [draw(*shape, dtype=dtype, scale=3.0)], ratios=one_rounding(dtype))


def test_gate_and_up_exchanged_are_caught() -> None:
    with pytest.raises(AssertionError, match="error ratio"):
        assert_twins(
            swiglu.swiglu,
            lambda x: reference.swiglu(x.roll(33, -1)),
            [draw(3, 66, dtype=torch.float32)],
            ratios=one_rounding(torch.float32),
        )


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_the_ends_are_finite() -> None:
    x = torch.tensor([[-1e4, -100.0, 1e4, 2.0, 3.0, 0.5]], device=DEVICE, requires_grad=True)
    y = swiglu.swiglu(x)
    [dx] = torch.autograd.grad(y, x, torch.ones_like(y))
    assert y.tolist() == [[0.0, 0.0, 5000.0]]
    assert dx.tolist() == [[0.0, 0.0, 0.5, 0.0, 0.0, 1e4]]


def test_rows_may_lie_apart_and_values_too() -> None:
    dense = draw(3, 4, 20, dtype=torch.float32)
    expected = swiglu.swiglu(dense)
    apart = torch.zeros(3, 4, 50, device=DEVICE)
    apart[..., 7:27] = dense
    for x in (apart[..., 7:27], dense.transpose(0, 1).contiguous().transpose(0, 1), dense.mT.contiguous().mT):
        leaf = x.detach().requires_grad_()
        y = swiglu.swiglu(leaf)
        assert torch.equal(y, expected)
        up = torch.ones(1, device=DEVICE).expand_as(y)
        [dx] = torch.autograd.grad(y, leaf, up)
        again = dense.clone().requires_grad_()
        [wanted] = torch.autograd.grad(swiglu.swiglu(again), again, up.contiguous())
        assert torch.equal(dx, wanted)


def test_no_rows_are_no_work() -> None:
    x = torch.ones(0, 16, device=DEVICE, requires_grad=True)
    y = swiglu.swiglu(x)
    assert y.shape == (0, 8)
    assert torch.autograd.grad(y, x, y)[0].shape == x.shape


def test_launches_cover_every_value() -> None:
    for width in (1, 100, 2048, 2049, 5632):
        how = swiglu.launch(9, width)
        assert how.grid[0] == 9
        assert width <= how.grid[1] * how.block < width + how.block


def test_the_library_op_is_well_formed() -> None:
    torch.library.opcheck(torch.ops.tinyllama.swiglu, (draw(2, 3, 20, dtype=torch.float32).requires_grad_(),))
