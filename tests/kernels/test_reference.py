"""The specification itself against the textbook: loops and closed forms in fp64, and the mistakes they must catch."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tests.kernels.compare import assert_close, draw
from tinyllama.data import loader
from tinyllama.kernels import reference

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
EPS = 1e-5


def one_rounding(dtype: torch.dtype) -> float:
    """Tolerance of an op that is worked out wide and rounded once.

    Rounding is off by up to half an ulp, evenly spread: 1/sqrt(12) of an ulp, which over the mantissas between two
    powers of two is 0.2 eps of the values' RMS; a second rounding would make it 0.28. Nothing is wider than fp32 and
    fp64 here, so there each of an op's few steps rounds.
    """
    return torch.finfo(dtype).eps * (0.24 if dtype == torch.bfloat16 else 1.5)


def textbook_rms_norm(x_nd: Tensor, weight_d: Tensor, *, eps: float = EPS, extra: int = 0, offset: int = 0) -> Tensor:
    rows = []
    for x_d in x_nd.double():
        mean_square = sum(float(x) ** 2 for x in x_d) / (len(x_d) + extra)
        rows.append(x_d / math.sqrt(mean_square + eps) * (weight_d.double() + offset))
    return torch.stack(rows)


def norm_inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    # rows of every size: some where eps rules, some whose squares leave bf16's and fp32's comfort
    sizes = torch.logspace(-4, 4, 48, dtype=torch.float64)[:, None]
    return (draw(48, 64) * sizes).to(dtype), draw(64, seed=1, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rms_norm_is_its_formula(dtype: torch.dtype) -> None:
    x, weight = norm_inputs(dtype)
    actual = reference.rms_norm(x.view(6, 8, 64), weight, EPS).view(48, 64)
    assert_close(actual, textbook_rms_norm(x, weight), ratio=one_rounding(dtype), dtype=dtype)
    for wrong in ({"eps": 0.0}, {"eps": 2 * EPS}, {"extra": -1}, {"offset": 1}):
        with pytest.raises(AssertionError, match="error ratio"):
            assert_close(actual, textbook_rms_norm(x, weight, **wrong), ratio=one_rounding(dtype), dtype=dtype)


def test_rms_norm_in_bf16_rounds_once() -> None:
    x, weight = norm_inputs(torch.bfloat16)
    # as Hugging Face's Llama has it: the normalised values are rounded before they are scaled
    twice = reference.rms_norm(x, torch.ones_like(weight), EPS) * weight
    with pytest.raises(AssertionError, match="error ratio"):
        assert_close(twice, textbook_rms_norm(x, weight), ratio=one_rounding(x.dtype), dtype=x.dtype)


def test_the_fused_addition_is_the_norm_of_the_rounded_sum() -> None:
    x, residual, weight = (
        draw(*shape, seed=seed, dtype=torch.bfloat16) for seed, shape in enumerate(((9, 64),) * 2 + ((64,),))
    )
    normed, total = reference.add_rms_norm(x, residual, weight, EPS)
    assert torch.equal(total, x + residual)
    assert torch.equal(normed, reference.rms_norm(x + residual, weight, EPS))


def angles(t: int, c: int, *, start: int = 0, theta: float = 10_000.0) -> Tensor:
    rows = [[(start + i) * theta ** (-2 * j / c) for j in range(c // 2)] for i in range(t)]
    return torch.tensor(rows, dtype=torch.float64)


def tables(t: int, c: int, *, start: int = 0) -> tuple[Tensor, Tensor]:
    at = angles(t, c, start=start)
    return at.cos().float(), at.sin().float()


def textbook_rope(x_bthc: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    """Each pair of a head as a complex number, turned by cos + i sin."""
    out, c = x_bthc.double().clone(), x_bthc.shape[-1]
    for j in range(c // 2):
        first, second = (2 * j, 2 * j + 1) if interleaved else (j, j + c // 2)
        pair = torch.complex(out[..., first], out[..., second])
        turn = torch.complex(cos[:, j].double(), sin[:, j].double())
        pair = pair * turn[:, None]
        out[..., first], out[..., second] = pair.real, pair.imag
    return out


def turned(x_bthc: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """All heads of x as queries of a packed projection."""
    b, t, _, c = x_bthc.shape
    return reference.rope(torch.cat((x_bthc, x_bthc.new_zeros(b, t, 2, c)), dim=2), cos, sin, 1)[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rope_turns_pairs_as_complex_numbers(dtype: torch.dtype) -> None:
    x, (cos, sin) = draw(2, 9, 9, 16, dtype=dtype), tables(9, 16)
    q, k, v = reference.rope(x, cos, sin, 2)
    assert (q.shape, k.shape) == ((2, 9, 5, 16), (2, 9, 2, 16))
    assert torch.equal(v, x[:, :, 7:])
    actual, given = torch.cat((q, k), dim=2), x[:, :, :7]
    assert_close(actual, textbook_rope(given, cos, sin), ratio=one_rounding(dtype), dtype=dtype)
    wrongs = [
        textbook_rope(given, *tables(9, 16, start=1)),
        textbook_rope(given, cos, -sin),
        textbook_rope(given, cos, sin, interleaved=True),
    ]
    if dtype != torch.bfloat16:  # there the values' own rounding drowns that of the tables
        wrongs.append(textbook_rope(given, cos.bfloat16(), sin.bfloat16()))
    for wrong in wrongs:
        with pytest.raises(AssertionError, match="error ratio"):
            assert_close(actual, wrong, ratio=one_rounding(dtype), dtype=dtype)


def test_rope_is_undone_by_the_inverse_rotation() -> None:
    x, (cos, sin) = draw(2, 9, 5, 16), tables(9, 16)
    once = turned(x, cos, sin)
    # the fp32 tables' cos^2 + sin^2 is one but for two of their roundings
    assert_close(turned(once, cos, -sin), x, ratio=2 * torch.finfo(torch.float32).eps)
    with pytest.raises(AssertionError, match="error ratio"):
        assert_close(turned(once, cos, sin), x, ratio=0.1)


def test_rope_scores_depend_on_the_distance_alone() -> None:
    q, k, c = draw(1, 1, 1, 16), draw(1, 1, 1, 16, seed=1), 16

    def score(i: int, j: int) -> Tensor:
        at = [turned(x, *tables(1, c, start=where)) for x, where in ((q, i), (k, j))]
        return (at[0] * at[1]).sum()

    # each score sums c products, each off by up to three roundings of the fp32 tables
    ratio = 3 * math.sqrt(c) * torch.finfo(torch.float32).eps
    for distance in (0, 1, 5, 40):
        scores = torch.stack([score(i + distance, i) for i in (0, 1, 17, 400)])
        assert_close(scores, scores[:1].expand(4), ratio=ratio)
    with pytest.raises(AssertionError, match="error ratio"):
        assert_close(score(6, 1), score(5, 1), ratio=ratio)


def textbook_swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.double()[..., : gate_up.shape[-1] // 2], gate_up.double()[..., gate_up.shape[-1] // 2 :]
    return gate / (1 + torch.exp(-gate)) * up


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_swiglu_is_its_formula(dtype: torch.dtype) -> None:
    gate_up = draw(3, 7, 2 * 96, dtype=dtype, scale=3.0)
    actual = reference.swiglu(gate_up)
    assert_close(actual, textbook_swiglu(gate_up), ratio=one_rounding(dtype), dtype=dtype)
    gate, up = gate_up.chunk(2, dim=-1)
    wrongs = [
        textbook_swiglu(torch.cat((up, gate), dim=-1)),
        F.gelu(gate.double()) * up.double(),
        textbook_swiglu(torch.cat((gate * (1 + 2 * torch.finfo(dtype).eps), up), dim=-1)),
    ]
    if dtype == torch.bfloat16:
        wrongs.append((F.silu(gate) * up).double())  # rounded twice
    for wrong in wrongs:
        with pytest.raises(AssertionError, match="error ratio"):
            assert_close(actual, wrong, ratio=one_rounding(dtype), dtype=dtype)


def test_swiglu_at_the_ends() -> None:
    gate_up = torch.tensor([[-1e4, 0.0, 1e4, 2.0, 3.0, 0.5]])
    assert reference.swiglu(gate_up).tolist() == [[0.0, 0.0, 5000.0]]


def textbook_attention(
    q_bthc: Tensor,
    k_bskc: Tensor,
    v_bskc: Tensor,
    starts_bt: Tensor | None = None,
    *,
    past: int | None = None,
    scale: float = 1,
    strided: bool = False,
) -> Tensor:
    """One query at a time, each head with its own copy of its keys and values."""
    b, t, h, c = q_bthc.shape
    s, k = k_bskc.shape[1:3]
    past = s - t if past is None else past
    out = torch.zeros(b, t, h, c, dtype=torch.float64)
    for one in range(b):
        for head in range(h):
            shared = head % k if strided else head // (h // k)
            for i in range(t):
                visible = range(0 if starts_bt is None else int(starts_bt[one, i]), min(s, past + i + 1))
                keys, values = (x[one, visible, shared].double() for x in (k_bskc, v_bskc))
                exps = torch.exp(keys @ q_bthc[one, i, head].double() * scale / math.sqrt(c))
                out[one, i, head] = (exps / exps.sum()) @ values
    return out


def qkv(t: int, s: int, h: int, k: int, *, c: int = 8, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    shapes = ((2, t, h, c), (2, s, k, c), (2, s, k, c))
    return tuple(draw(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate(shapes))


def attention_tolerance(dtype: torch.dtype) -> float:
    """In bf16 scores, weights and results are each rounded, 0.2 eps apiece but for scores beyond one; in all, 0.5."""
    return torch.finfo(dtype).eps * (0.75 if dtype == torch.bfloat16 else 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("h", "k"), [(4, 4), (8, 2), (8, 1)], ids=["1 to 1", "4 to 1", "8 to 1"])
@pytest.mark.parametrize(("t", "s"), [(1, 1), (11, 11), (1, 7), (4, 9)])
def test_attention_is_its_loop(t: int, s: int, h: int, k: int, dtype: torch.dtype) -> None:
    inputs = qkv(t, s, h, k, dtype=dtype)
    expected = textbook_attention(*inputs)
    assert_close(reference.attention(*inputs), expected, ratio=attention_tolerance(dtype), dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "wrong",
    [{"past": 0}, {"past": 6}, {"past": 4}, {"scale": 1.05}, {"strided": True}],
    ids=["no cache", "sees the future", "not itself", "scale", "grouping"],
)
def test_attention_mistakes_raise(wrong: dict[str, int | float | bool], dtype: torch.dtype) -> None:
    inputs = qkv(4, 9, 8, 2, dtype=dtype)
    with pytest.raises(AssertionError, match="error ratio"):
        assert_close(
            reference.attention(*inputs),
            textbook_attention(*inputs, **wrong),
            ratio=attention_tolerance(dtype),
            dtype=dtype,
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_within_documents_is_its_loop(dtype: torch.dtype) -> None:
    inputs = qkv(7, 7, 4, 2, dtype=dtype)
    starts = torch.tensor([[0, 0, 0, 3, 3, 3, 6], [0, 1, 1, 1, 1, 1, 1]])
    actual, ratio = reference.attention(*inputs, starts), attention_tolerance(dtype)
    assert_close(actual, textbook_attention(*inputs, starts), ratio=ratio, dtype=dtype)
    early, none = starts.clone(), torch.zeros_like(starts)
    early[0, 3] = 0  # one query sees into the document before its own
    for wrong in (early, none):
        with pytest.raises(AssertionError, match="error ratio"):
            assert_close(actual, textbook_attention(*inputs, wrong), ratio=ratio, dtype=dtype)


def test_documents_need_a_whole_sequence() -> None:
    with pytest.raises(AssertionError, match="documents are those of a whole sequence"):
        reference.attention(*qkv(4, 9, 4, 2), torch.zeros(2, 4, dtype=torch.int64))


def test_attention_with_large_scores_is_finite() -> None:
    q, k, v = qkv(5, 5, 4, 2, dtype=torch.float32)
    out = reference.attention(q * 1e3, k * 1e3, v)
    assert out.isfinite().all()
    assert torch.equal(out[:, 0], v[:, 0].repeat_interleave(2, dim=1)), "the first sees itself alone"


def loss_inputs(dtype: torch.dtype, *, n: int = 60, d: int = 32, v: int = 47) -> tuple[Tensor, Tensor, Tensor]:
    targets = torch.arange(n) * 7 % v
    targets[::4] = reference.IGNORED
    return draw(n, d, dtype=dtype), draw(v, d, dtype=dtype, seed=1, scale=0.3), targets


def textbook_cross_entropy(x_nd: Tensor, weight_vd: Tensor, targets_n: Tensor) -> tuple[Tensor, int, Tensor, Tensor]:
    """The mean, the count, and d mean / d x and / d weight in closed form: softmax less the target's indicator."""
    x, weight = x_nd.double(), weight_vd.double()
    counted = [(row, int(target)) for row, target in enumerate(targets_n) if target >= 0]
    total, grad_x, grad_weight = 0.0, torch.zeros_like(x), torch.zeros_like(weight)
    for row, target in counted:
        logits = [float(x[row] @ w) for w in weight]
        sum_exps = math.fsum(math.exp(logit) for logit in logits)
        total += math.log(sum_exps) - logits[target]
        delta = torch.tensor([math.exp(logit) / sum_exps for logit in logits], dtype=torch.float64)
        delta[target] -= 1
        grad_x[row] = delta @ weight / len(counted)
        grad_weight += torch.outer(delta, x[row]) / len(counted)
    return torch.tensor(total / max(1, len(counted)), dtype=torch.float64), len(counted), grad_x, grad_weight


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear_cross_entropy_is_its_formula(dtype: torch.dtype) -> None:
    x, weight, targets = loss_inputs(dtype)
    x.requires_grad_()
    weight.requires_grad_()
    loss, count = reference.linear_cross_entropy(x, weight, targets)
    gradients = torch.autograd.grad(loss, (x, weight))
    mean, n, *expected = textbook_cross_entropy(x.detach(), weight.detach(), targets)
    assert count.dtype == torch.int64
    assert int(count) == n == 45
    # A bf16 logit is off by 0.2 eps of itself; the largest, of about 5, make that 0.8 eps a row, which over 45 rows and
    # a mean of 4.9 is 0.024 eps: three of those. In fp32 and fp64 it is the additions of the mean that round.
    eps, narrow = torch.finfo(dtype).eps, dtype == torch.bfloat16
    kept = torch.float32 if narrow else dtype
    assert_close(loss, mean, ratio=(0.07 if narrow else 2) * eps, dtype=kept)
    for wrong in (mean * 45 / 60, mean * 45 / 44, mean + mean * 0.14 * torch.finfo(torch.bfloat16).eps):
        with pytest.raises(AssertionError, match="error ratio"):
            assert_close(loss, wrong, ratio=(0.07 if narrow else 2) * eps, dtype=kept)
    # three roundings in bf16 (logits, their gradients, the result), sums of up to 60 products in fp32 and fp64
    for gradient, closed in zip(gradients, expected, strict=True):
        ratio = (0.5 if narrow else 4) * eps
        assert_close(gradient, closed, ratio=ratio, dtype=dtype)
        for wrong in (closed * 45 / 60, closed * 45 / 44):
            with pytest.raises(AssertionError, match="error ratio"):
                assert_close(gradient, wrong, ratio=ratio, dtype=dtype)


def test_an_ignored_row_counts_for_nothing() -> None:
    x, weight, targets = loss_inputs(torch.float64)
    scored = targets != reference.IGNORED
    loss, count = reference.linear_cross_entropy(x, weight, targets)
    alone, same = reference.linear_cross_entropy(x[scored], weight, targets[scored])
    assert_close(loss, alone, ratio=1e-15)
    assert int(count) == int(same)
    x[~scored] = 1e30
    assert_close(reference.linear_cross_entropy(x, weight, targets)[0], loss, ratio=0.0)


def test_no_targets_are_a_loss_of_zero_with_zero_gradients() -> None:
    x, weight, targets = loss_inputs(torch.float32)
    x.requires_grad_()
    loss, count = reference.linear_cross_entropy(x, weight, torch.full_like(targets, reference.IGNORED))
    loss.backward()
    assert (float(loss.detach()), int(count)) == (0.0, 0)
    assert x.grad is not None
    assert not x.grad.any()


def test_means_of_parts_combine_into_the_mean_of_all() -> None:
    x, weight, targets = loss_inputs(torch.float64)
    whole, count = reference.linear_cross_entropy(x, weight, targets)
    # parts with 9, 0 and 36 targets
    parts = [slice(0, 12), slice(12, 13), slice(13, 60)]
    means = [reference.linear_cross_entropy(x[part], weight, targets[part]) for part in parts]
    assert [int(n) for _, n in means] == [9, 0, 36]
    combined = torch.stack([mean * n for mean, n in means]).sum() / count
    assert_close(combined, whole, ratio=1e-14)
    with pytest.raises(AssertionError, match="error ratio"):
        assert_close(torch.stack([mean for mean, _ in means]).mean(), whole, ratio=1e-14)


def test_everyone_ignores_the_same_target() -> None:
    torch_default = inspect.signature(F.cross_entropy).parameters["ignore_index"].default
    assert reference.IGNORED == loader.IGNORED == torch_default


Gradient = tuple[Callable[..., Tensor], tuple[Tensor, ...]]
GRADIENTS: dict[str, Gradient] = {
    "rms_norm": (lambda x, w: reference.rms_norm(x, w, EPS), (draw(2, 3, 4), draw(4, seed=1))),
    "add_rms_norm": (
        lambda x, r, w: torch.cat(reference.add_rms_norm(x, r, w, EPS)),
        (draw(2, 3, 4), draw(2, 3, 4, seed=1), draw(4, seed=2)),
    ),
    "rope": (lambda x: torch.cat(reference.rope(x, *tables(3, 4, start=2), 1), dim=2), (draw(1, 3, 4, 4),)),
    "swiglu": (reference.swiglu, (draw(2, 3, 8),)),
    "attention": (reference.attention, qkv(3, 3, 4, 2, c=2)),
    "attention, documents": (
        lambda *xs: reference.attention(*xs, torch.tensor([[0, 1, 1], [0, 0, 2]])),
        qkv(3, 3, 4, 2, c=2),
    ),
    "attention, cached": (reference.attention, qkv(2, 4, 4, 1, c=2)),
    "linear_cross_entropy": (
        lambda x, w: reference.linear_cross_entropy(x, w, torch.tensor([2, -100, 0, 4]))[0],
        (draw(4, 3), draw(5, 3, seed=1)),
    ),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_finite_differences(name: str) -> None:
    op, inputs = GRADIENTS[name]
    leaves = [x.clone().requires_grad_() for x in inputs]

    def scaled(*xs: Tensor) -> Tensor:
        """The same values, with a gradient that is a part in a hundred too large."""
        out = op(*xs)
        return out + 0.01 * (out - out.detach())

    assert torch.autograd.gradcheck(op, leaves)
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(scaled, leaves)
