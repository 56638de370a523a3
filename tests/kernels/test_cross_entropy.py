"""Linear cross-entropy's kernel, interpreted where there is no GPU, against the reference in fp64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.kernels.twins import DEVICE, DTYPES, assert_twins, draw
from tinyllama.kernels import cross_entropy, reference
from tinyllama.kernels.reference import IGNORED

Inputs = tuple[Tensor, Tensor, Tensor]


def some_inputs(n: int, d: int, v: int, *, dtype: torch.dtype = torch.float32) -> Inputs:
    targets = torch.arange(n) * 7 % v
    targets[2::5] = IGNORED
    weight = draw(v, d, dtype=dtype, seed=1, scale=2 / math.sqrt(d))
    return draw(n, d, dtype=dtype), weight, targets.to(DEVICE)


def assert_loss(inputs: Inputs, twin: Callable[..., tuple[Tensor, Tensor]] = reference.linear_cross_entropy) -> None:
    """The mean, and the gradients of hidden states and weights, for a gradient of the mean that is not 1."""
    x, weight, targets = inputs
    eps, narrow = torch.finfo(x.dtype).eps, x.dtype != torch.float32
    # logits, their gradients, dx before and after it is scaled; in fp32 sums of up to some thousand products
    gradients = (0.6 if narrow else 6) * eps
    assert_twins(
        lambda x, weight: cross_entropy.linear_cross_entropy(x, weight, targets)[0].to(x.dtype),
        lambda x, weight: twin(x, weight, targets)[0],
        [x, weight],
        ratios=[(0.3 if narrow else 2) * eps, gradients, gradients],
    )


@pytest.fixture
def chunks_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Inputs], None]:
    """Let so many of the inputs' tokens be a chunk."""

    def limit(tokens: int, inputs: Inputs) -> None:
        x, weight, _ = inputs
        monkeypatch.setattr(cross_entropy, "LOGITS_BYTES", tokens * len(weight) * x.dtype.itemsize)
        assert cross_entropy.launch(len(x), len(weight), x.dtype).chunk == min(tokens, len(x))

    return limit


# one token, vocabularies beside powers of two, and one of more than a block
SHAPES = [(1, 8, 2), (5, 16, 47), (37, 32, 129), (64, 48, 256), (3, 8, 5000)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_loss_is_its_twin(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    assert_loss(some_inputs(*shape, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [1, 7, 36, 37, 100])
def test_chunks_do_not_show(tokens: int, dtype: torch.dtype, chunks_of: Callable[[int, Inputs], None]) -> None:
    inputs = some_inputs(37, 32, 130, dtype=dtype)
    chunks_of(tokens, inputs)
    assert_loss(inputs)


def test_no_more_logits_are_held_than_a_chunks(
    monkeypatch: pytest.MonkeyPatch, chunks_of: Callable[[int, Inputs], None]
) -> None:
    inputs, product, held = some_inputs(37, 32, 130), torch.mm, set()

    def noting(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
        if b.shape[1] == 130:
            held.add((out.shape[0], out.data_ptr()))
        return product(a, b, out=out)

    chunks_of(10, inputs)
    monkeypatch.setattr(torch, "mm", noting)
    cross_entropy.linear_cross_entropy(*inputs)
    assert sorted(rows for rows, _ in held) == [7, 10]
    assert len({where for _, where in held}) == 1


def test_one_target_of_the_next_token_is_caught() -> None:
    inputs = some_inputs(37, 32, 130)

    def off_by_one(x: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        wrong = targets.clone()
        wrong[20] += 1
        return reference.linear_cross_entropy(x, weight, wrong)

    with pytest.raises(AssertionError, match="error ratio"):
        assert_loss(inputs, off_by_one)


def test_the_count_is_that_of_the_scored() -> None:
    x, weight, targets = some_inputs(37, 32, 130)
    _, count = cross_entropy.linear_cross_entropy(x, weight, targets)
    assert count.dtype == torch.int64
    assert int(count) == int((targets != IGNORED).sum()) == 30


def test_no_targets_are_a_loss_of_zero_with_zero_gradients() -> None:
    x, weight, targets = some_inputs(6, 8, 20)
    for n in (0, 6):
        leaves = [x[:n].clone().requires_grad_(), weight.clone().requires_grad_()]
        loss, count = cross_entropy.linear_cross_entropy(*leaves, torch.full_like(targets, IGNORED)[:n])
        gradients = torch.autograd.grad(loss, leaves)
        assert (float(loss.detach()), int(count)) == (0.0, 0)
        assert [g.shape for g in gradients] == [leaf.shape for leaf in leaves]
        assert not any(g.any() for g in gradients)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_an_ignored_row_may_hold_anything() -> None:
    x, weight, targets = some_inputs(6, 8, 20)
    expected = float(cross_entropy.linear_cross_entropy(x, weight, targets)[0])
    x[targets == IGNORED] = float("nan")
    leaf = x.requires_grad_()
    loss, _ = cross_entropy.linear_cross_entropy(leaf, weight, targets)
    [dx] = torch.autograd.grad(loss, leaf)
    assert float(loss.detach()) == expected
    assert not dx[targets == IGNORED].any()
    assert dx[targets != IGNORED].all()


@pytest.mark.parametrize("target", [-1, -101, 20, 2**40])
def test_a_target_that_is_no_token_is_no_number(target: int) -> None:
    x, weight, targets = some_inputs(6, 8, 20)
    targets[3] = target
    assert cross_entropy.linear_cross_entropy(x, weight, targets)[0].isnan()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_hidden_state_that_is_no_number_shows() -> None:
    x, weight, targets = some_inputs(6, 8, 20)
    x[0, 0] = float("nan")
    assert cross_entropy.linear_cross_entropy(x, weight, targets)[0].isnan()


def test_large_logits_are_finite() -> None:
    x, weight, targets = some_inputs(6, 8, 20)
    leaf = (x * 1e4).requires_grad_()
    loss, _ = cross_entropy.linear_cross_entropy(leaf, weight, targets)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, leaf)[0].isfinite().all()


def test_gradients_are_made_only_where_they_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, targets = some_inputs(6, 8, 20)
    made: list[bool] = []
    op = cross_entropy._linear_cross_entropy

    def noting(*args: Tensor | bool) -> tuple[Tensor, ...]:
        made.append(bool(args[-1]))
        found: tuple[Tensor, ...] = op(*args)
        return found

    monkeypatch.setattr(cross_entropy, "_linear_cross_entropy", noting)
    alone = cross_entropy.linear_cross_entropy(x, weight, targets)[0]
    loss, _ = cross_entropy.linear_cross_entropy(x, weight.requires_grad_(), targets)
    with torch.no_grad():
        assert torch.equal(cross_entropy.linear_cross_entropy(x, weight, targets)[0], alone)
    assert torch.equal(loss.detach(), alone)
    assert made == [False, True, False]
    assert torch.autograd.grad(loss, weight)[0].any()


def test_a_chunk_and_both_gradients_are_below_600_mb_at_16k_tokens() -> None:
    how = cross_entropy.launch(16384, 32000, torch.bfloat16)
    assert how.chunk == 4096
    logits, dw, dx = 2 * how.chunk * 32000, 4 * 32000 * 2048, 2 * 16384 * 2048
    assert logits + dw + dx < 0.6e9


def test_launches_are_of_whole_tiles_while_they_fit() -> None:
    for vocab, chunk in ((32000, 4096), (256_000, 512), (3_000_000, 44), (2**30, 1)):
        assert cross_entropy.launch(10**6, vocab, torch.bfloat16).chunk == chunk


def test_cuda_has_the_product_that_sums_in_fp32() -> None:
    # it is not to be had on the CPU, where the products themselves are in fp32
    assert "out_dtype" in str(torch.ops.aten.addmm.dtype_out._schema)


def test_the_library_op_is_well_formed() -> None:
    x, weight, targets = some_inputs(6, 8, 20)
    torch.library.opcheck(torch.ops.tinyllama.linear_cross_entropy, (x, weight, targets, False))
    leaves = [x.requires_grad_(), weight.requires_grad_()]
    torch.library.opcheck(torch.ops.tinyllama.linear_cross_entropy, (*leaves, targets, True))
    compiled = torch.compile(
        lambda x, w: cross_entropy.linear_cross_entropy(2 * x, w, targets)[0], fullgraph=True, backend="aot_eager"
    )
    results = [f(*leaves) for f in (compiled, lambda x, w: cross_entropy.linear_cross_entropy(2 * x, w, targets)[0])]
    gradients_of = [torch.autograd.grad(loss, leaves) for loss in results]
    assert torch.equal(*results)
    assert all(torch.equal(*pair) for pair in zip(*gradients_of, strict=True))
