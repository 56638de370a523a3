"""The model as a whole: its size, what a position may see, its gradients, its cache, and one pinned step."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.model.tiny import SHAPE, build, some_tokens
from tinyllama import kernels
from tinyllama.config.schema import RunConfig
from tinyllama.kernels import reference
from tinyllama.model.cache import Cache, KeyValues
from tinyllama.model.layers import Block, rope_tables
from tinyllama.model.llama import Llama, document_starts
from tinyllama.plan.count import count_parameters

OPTIONS = sorted(path.stem for path in (Path(__file__).parents[2] / "conf" / "model").glob("*.yaml"))
IGNORED = reference.IGNORED

GROUPS = {
    "embedding": r"embedding\.weight",
    "attention": r"blocks\.\d+\.attention\.(qkv|out)\.weight",
    "mlp": r"blocks\.\d+\.mlp\.(gate_up|down)\.weight",
    "norms": r"(blocks\.\d+\.(attention|mlp)_)?norm\.weight",
    "head": r"head\.weight",
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("data", ["stdlib", "slimpajama_starcoder"])
def test_the_built_model_is_as_large_as_the_plan_says(config: Callable[..., RunConfig], option: str, data: str) -> None:
    shape = config(f"model={option}", f"data={data}").model
    with torch.device("meta"):
        model = Llama(shape, ops=kernels.TORCH)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    counted = {
        group: sum(size for name, size in sizes.items() if re.fullmatch(pattern, name))
        for group, pattern in GROUPS.items()
    }
    planned = count_parameters(shape)
    assert counted == asdict(planned)
    assert sum(sizes.values()) == planned.total
    assert not list(model.named_buffers()), "a buffer would be cast with the model"


def seen_from(model: Llama, position: int, tokens: Tensor | None = None) -> list[bool]:
    """By position of the input, whether the loss at `position` alone has any gradient there."""
    tokens = some_tokens(1) if tokens is None else tokens
    targets = torch.full_like(tokens, IGNORED)
    targets[0, position] = 5
    embedded: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        output.retain_grad()
        embedded.append(output)

    handle = model.embedding.register_forward_hook(keep)
    loss, count = model(tokens, targets)
    loss.backward()
    handle.remove()
    assert int(count) == 1
    assert embedded[0].grad is not None
    return [bool(row.any()) for row in embedded[0].grad[0]]


def test_a_position_sees_itself_and_what_came_before() -> None:
    model = build()
    for position in range(SHAPE.context):
        assert seen_from(model, position) == [i <= position for i in range(SHAPE.context)]


def test_a_model_that_sees_one_token_ahead_is_caught() -> None:
    def peeking(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None = None) -> Tensor:
        # with one key too many at the end, every query is aligned with the key after its own
        return kernels.TORCH.attention(q, *(torch.cat((x, x[:, -1:]), dim=1) for x in (k, v)))

    model = build(ops=kernels.TORCH._replace(attention=peeking))
    with pytest.raises(AssertionError):
        assert seen_from(model, 4) == [i <= 4 for i in range(SHAPE.context)]


END = 5
"""What ends a document in these tests."""


def in_documents(length: int = SHAPE.context) -> Tensor:
    """A sequence that documents start in at positions 0, 6, 7 and 12."""
    tokens = some_tokens(1, length)
    tokens[tokens == END] = END + 1
    tokens[0, [6, 7, 12]] = END
    return tokens


FIRSTS = [0] * 6 + [6] + [7] * 5 + [12] * 4


def test_a_document_starts_with_the_end_of_the_one_before() -> None:
    starts = document_starts(torch.cat((in_documents(), torch.full_like(in_documents(), END + 1))), END)
    assert starts.dtype == torch.int32
    assert starts.tolist() == [FIRSTS, [0] * SHAPE.context]
    # a window that begins with an end token
    assert document_starts(in_documents()[:, 6:], END).tolist() == [[max(0, first - 6) for first in FIRSTS[6:]]]


def test_a_masked_position_sees_its_own_document_alone() -> None:
    model = build(document_end=END)
    for position, first in enumerate(FIRSTS):
        assert seen_from(model, position, in_documents()) == [first <= i <= position for i in range(SHAPE.context)]


def test_a_masked_document_is_what_it_is_alone() -> None:
    tokens, model = in_documents(), build(document_end=END, gain=3)
    targets = tokens.roll(-1, dims=1)

    def loss(model: Llama, shown: slice, scored: slice) -> Tensor:
        only = torch.full_like(targets, IGNORED)
        only[:, scored] = targets[:, scored]
        return model(tokens[:, shown], only[:, shown])[0]

    document, whole = slice(7, 12), slice(None)
    alone = loss(build(gain=3), document, document)
    # other positions, of the same distances: the fp32 tables round differently
    torch.testing.assert_close(loss(model, whole, document), alone, rtol=1e-7, atol=0)
    with pytest.raises(AssertionError, match="not close"):  # what stands before it tells without the mask
        torch.testing.assert_close(loss(build(gain=3), whole, document), alone, rtol=1e-3, atol=0)


def gradients(model: Llama) -> tuple[Tensor, dict[str, Tensor]]:
    tokens = some_tokens()
    loss, _ = model(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_golden(loss: float, norm: float) -> None:
    # fp32 sums of up to some thousand terms, in whatever order a machine takes them
    means = (
        "The arithmetic of the model or its initialisation has changed: runs made before can not be compared with runs "
        "made from here on. If that is meant, say so in the changelog and pin the new figures"
    )
    assert (loss, norm) == pytest.approx((4.157018, 3.508430), rel=1e-5), means


def test_one_golden_step() -> None:
    loss, by_name = gradients(build(dtype=torch.float32))
    norm = torch.stack([gradient.norm() for gradient in by_name.values()]).norm()
    assert_golden(float(loss), float(norm))
    for wrong in ((float(loss) * (1 + 2e-5), float(norm)), (float(loss), float(norm) * (1 + 2e-5))):
        with pytest.raises(AssertionError, match="arithmetic of the model or its initialisation has changed"):
            assert_golden(*wrong)


def test_an_untrained_model_knows_nothing() -> None:
    tokens = some_tokens()
    loss, count = build()(tokens, tokens.roll(-1, dims=1))
    # log(vocabulary), and half the variance of its logits: at most 32 * 2 / (5 * 32)
    assert math.log(61) < float(loss.detach()) < math.log(61) + 0.4
    assert int(count) == tokens.numel()


def test_backends_agree() -> None:
    loss, fast = gradients(build())
    slow_loss, slow = gradients(build(ops=kernels.REFERENCE))
    torch.testing.assert_close(loss, slow_loss, rtol=1e-13, atol=0)
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-14)


def test_recomputing_changes_nothing_and_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Block] = []
    forward = Block.forward

    def counted(self: Block, *inputs: Tensor | None) -> tuple[Tensor, Tensor, KeyValues]:
        calls.append(self)
        return forward(self, *inputs)

    monkeypatch.setattr(Block, "forward", counted)
    loss, kept = gradients(build())
    assert len(calls) == SHAPE.n_layers
    calls.clear()
    model = build(recompute=True)
    again, recomputed = gradients(model)
    assert len(calls) == 2 * SHAPE.n_layers
    assert torch.equal(loss, again)
    assert kept.keys() == recomputed.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(gradient, recomputed[name]) for name, gradient in kept.items())
    calls.clear()
    model.eval()
    gradients(model)
    assert len(calls) == SHAPE.n_layers, "an evaluation keeps nothing, so it has nothing to recompute"


def in_steps(model: Llama, tokens: Tensor, size: int, *, forget: int = 0) -> Tensor:
    """The logits of every position: `size` at once, then one by one through a cache that loses its first `forget`."""
    first, present = model.logits(tokens[:, :size])
    assert all(k.shape == v.shape == (len(tokens), size, SHAPE.n_kv_heads, SHAPE.head_dim) for k, v in present)
    cache = Cache(SHAPE, [size] * len(tokens), room=tokens.shape[1] - size, like=first)
    cache.put(range(len(tokens)), [(k[:, forget:], v[:, forget:]) for k, v in present])
    rest = [model.next_logits(tokens_b, cache)[:, None] for tokens_b in tokens[:, size:].T]
    return torch.cat((first, *rest), dim=1)


@torch.inference_mode()
def assert_cached(model: Llama, size: int, *, forget: int = 0) -> None:
    tokens = some_tokens()
    whole, _ = model.logits(tokens)
    last, _ = model.logits(tokens, last=True)
    torch.testing.assert_close(last, whole[:, -1:], rtol=0, atol=1e-12)
    torch.testing.assert_close(in_steps(model, tokens, size, forget=forget), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 15, 16])
def test_cached_logits_are_the_uncached_ones(size: int) -> None:
    # the logits are of order one, and fp64
    assert_cached(build(gain=3), size)


@pytest.mark.parametrize("size", [1, 3, 15])
def test_a_cache_that_loses_a_position_is_caught(size: int) -> None:
    with pytest.raises(AssertionError, match="not close"):
        assert_cached(build(gain=3), size, forget=1)


def test_logits_are_what_the_loss_is_of() -> None:
    model, tokens = build(), some_tokens()
    logits, _ = model.logits(tokens)
    loss, _ = model(tokens, tokens.roll(-1, dims=1))
    expected = -logits.log_softmax(-1).gather(-1, tokens.roll(-1, dims=1)[..., None]).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)


def test_positions_past_the_context_are_refused() -> None:
    with pytest.raises(ValueError, match="positions") as refusal:
        build().logits(some_tokens(1, 17))
    assert str(refusal.value) == "17 positions are more than the model's context of 16"


def test_what_inference_leaves_behind_can_be_trained_with() -> None:
    rope_tables.cache_clear()
    with torch.inference_mode():
        build().logits(some_tokens())
    gradients(build())


def test_rope_tables_are_exact_to_the_last_position() -> None:
    cos, sin = rope_tables(2048, 64, 10_000.0, torch.device("cpu"))
    assert cos.shape == sin.shape == (2048, 32)
    assert cos.dtype == sin.dtype == torch.float32
    for i in (0, 1, 257, 2047):
        for j in (0, 1, 31):
            # fp32 angles of position 2047 would be off by up to 1e-4
            angle = i * 10_000.0 ** (-2 * j / 64)
            assert float(cos[i, j]) == pytest.approx(math.cos(angle), abs=6e-8)
            assert float(sin[i, j]) == pytest.approx(math.sin(angle), abs=6e-8)
