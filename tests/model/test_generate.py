"""Sampling: greedy is the argmax of a full recomputation, and nothing comes out that must not."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.tiny import SHAPE, build, some_tokens
from tinyllama.config.tasks import Generate
from tinyllama.model import generate as module
from tinyllama.model.cache import Cache
from tinyllama.model.generate import generate, sample
from tinyllama.model.llama import Llama

EOS = 2
PROMPT = [5, 9, 33]
GREEDY = Generate(run=None, prompt=("",), samples=1, max_tokens=100, temperature=0.0, top_k=None, top_p=None, stop=())


@pytest.fixture(scope="module")
def model() -> Llama:
    return build(gain=3)


def texts(
    model: Llama,
    prompts: list[list[int]],
    *,
    seed: int = 0,
    eos: int = -1,
    n_tokens: int = SHAPE.vocab_size,
    **how: Any,
) -> list[list[int]]:
    """Each row's tokens; there is no end token unless a test says otherwise."""
    settings = replace(GREEDY, **how)
    rows: list[list[int]] = [[] for _ in range(len(prompts) * settings.samples)]
    over = set()
    for row, token in generate(model, prompts, settings, seed=seed, eos=eos, n_tokens=n_tokens):
        assert row not in over
        if token is None:
            over.add(row)
        else:
            rows[row].append(token)
    assert len(over) == len(rows), "every row's end is told once"
    return rows


def text(model: Llama, prompt: list[int] = PROMPT, **changed: Any) -> list[int]:
    return texts(model, [prompt], **changed)[0]


@torch.no_grad()
def slow_greedy(model: Llama, prompt: list[int], *, n_tokens: int = SHAPE.vocab_size) -> list[int]:
    tokens = list(prompt)
    while len(tokens) < SHAPE.context:
        logits, _ = model.logits(torch.tensor([tokens]))
        tokens.append(int(logits[0, -1, :n_tokens].argmax()))
    return tokens[len(prompt) :]


def test_greedy_is_the_argmax_of_a_full_recomputation(model: Llama) -> None:
    for prompt in (PROMPT, [1], some_tokens(1, 12)[0].tolist()):
        expected = slow_greedy(model, prompt)
        assert len(set(expected)) > 1, "the test's model says more than one thing"
        assert text(model, prompt) == expected


RAGGED = [PROMPT, [1], some_tokens(1, 12)[0].tolist(), [7, 7, 2], some_tokens(1, 15)[0].tolist(), PROMPT]


def test_a_row_of_a_batch_is_what_it_is_alone(model: Llama) -> None:
    expected = [slow_greedy(model, prompt) for prompt in RAGGED]
    assert texts(model, RAGGED) == expected == [text(model, prompt) for prompt in RAGGED]
    assert len({len(row) for row in expected}) > 3, "rows end one by one"
    assert texts(model, RAGGED[:2], samples=2) == [expected[0], expected[0], expected[1], expected[1]]
    for eos in sorted({token for row in expected for token in row}):
        cut = [row[: row.index(eos)] if eos in row else row for row in expected]
        assert texts(model, RAGGED, eos=eos) == cut


def unmasked(cache: Cache) -> None:
    cache._hidden = None


def misplaced(cache: Cache) -> None:
    cache._lengths_b = torch.full_like(cache._lengths_b, 6)


def swapped(cache: Cache) -> None:
    keep = cache.keep
    cache.keep = lambda rows: keep(rows[::-1])  # type: ignore[method-assign]


@pytest.mark.parametrize("spoil", [unmasked, misplaced, swapped])
def test_a_batch_that_mixes_its_rows_is_caught(
    model: Llama, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Cache], None]
) -> None:
    def spoilt(*shape: Any, **how: Any) -> Cache:
        cache = Cache(*shape, **how)
        spoil(cache)
        return cache

    prompts = [some_tokens(1, 6)[0].tolist(), PROMPT, [1]]
    expected = [slow_greedy(model, prompt)[:8] for prompt in prompts]
    others = {*expected[1], *expected[2]}
    eos = next(token for token in expected[0][1:] if token not in others)  # the first row ends alone
    expected[0] = expected[0][: expected[0].index(eos)]
    assert texts(model, prompts, max_tokens=8, eos=eos) == expected
    monkeypatch.setattr(module, "Cache", spoilt)
    assert texts(model, prompts, max_tokens=8, eos=eos) != expected


def test_what_a_row_draws_depends_on_no_other(model: Llama) -> None:
    drawn = texts(model, RAGGED, samples=3, temperature=1.5, seed=3)
    assert len(set(map(tuple, drawn[:3]))) == 3, "samples differ"
    assert drawn[:3] != drawn[-3:], "and so do equal prompts"
    assert texts(model, RAGGED[:2], samples=3, temperature=1.5, seed=3) == drawn[:6]
    # the same rows, among others
    other = [prompt for prompt in RAGGED for _ in range(3)]
    assert texts(model, other, temperature=1.5, seed=3) == drawn
    assert texts(model, RAGGED, samples=3, temperature=1.5, seed=4) != drawn
    shifted = texts(model, [PROMPT], samples=4, temperature=1.5, seed=4)
    assert not {*map(tuple, shifted)} & {*map(tuple, drawn[:3])}, "the next seed's rows are no other's"


def test_a_reader_ends_a_row(model: Llama) -> None:
    whole, ended = texts(model, RAGGED[:3]), set()
    read: list[list[int | None]] = [[], [], []]
    for row, token in generate(model, RAGGED[:3], GREEDY, seed=0, eos=-1, n_tokens=SHAPE.vocab_size, ended=ended):
        read[row].append(token)
        if row == 1 and len(read[1]) == 2:
            ended.add(1)
    assert read == [[*whole[0], None], [*whole[1][:2], None], [*whole[2], None]]


def test_it_stops_where_the_context_ends(model: Llama) -> None:
    for length in (1, 3, 14, 15):
        prompt = some_tokens(1, length)[0].tolist()
        assert len(text(model, prompt, temperature=1.0)) == SHAPE.context - length


def test_it_stops_at_max_tokens(model: Llama) -> None:
    whole = text(model)
    for max_tokens in (1, 2, 12, 13):
        assert text(model, max_tokens=max_tokens) == whole[:max_tokens]


def test_it_stops_before_the_end_token(model: Llama) -> None:
    whole = text(model)
    for eos in set(whole):
        assert text(model, eos=eos) == whole[: whole.index(eos)]


def test_a_seed_is_its_text(model: Llama) -> None:
    texts = [tuple(text(model, temperature=1.0, seed=seed)) for seed in (*range(8), *range(8))]
    assert texts[:8] == texts[8:]
    assert len(set(texts)) == 8
    state = torch.get_rng_state()
    text(model, temperature=1.0)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"


def test_the_likeliest_of_one_is_greedy(model: Llama) -> None:
    for seed in range(4):
        assert text(model, temperature=2.0, top_k=1, seed=seed) == text(model)
    assert any(text(model, temperature=2.0, top_k=2, seed=seed) != text(model) for seed in range(4))


def test_no_token_is_sampled_that_the_tokenizer_has_not(model: Llama) -> None:
    drawn = {token for seed in range(20) for token in text(model, temperature=100.0, n_tokens=7, seed=seed)}
    assert drawn == set(range(7))
    assert max(text(model, temperature=100.0)) > 7, "without the bound there are others"
    assert text(model, n_tokens=7) == slow_greedy(model, PROMPT, n_tokens=7) != text(model)


def test_an_empty_prompt_starts_a_document(model: Llama) -> None:
    assert text(model, [], eos=EOS) == text(model, [EOS], eos=EOS)
    assert len(text(model, [], eos=EOS, temperature=1.0, n_tokens=2)) == SHAPE.context - 1


@pytest.mark.parametrize("length", [16, 17])
def test_a_prompt_that_fills_the_context_is_refused(model: Llama, length: int) -> None:
    with pytest.raises(ValueError, match="generate") as refusal:
        text(model, [1] * length)
    assert str(refusal.value) == f"generate.prompt: {length} tokens fill the context of 16: shorten it"


def test_of_several_prompts_the_one_that_fills_the_context_is_named(model: Llama) -> None:
    with pytest.raises(ValueError, match="generate") as refusal:
        generate(
            model, [PROMPT, [1] * 16], GREEDY, seed=0, eos=EOS, n_tokens=SHAPE.vocab_size
        )  # before a token is asked for
    assert str(refusal.value) == "generate.prompt 2 of 2: 16 tokens fill the context of 16: shorten it"


def assert_drawn_as(counts: Counter[int], chances: list[float], n: int) -> None:
    """Within four standard errors of a binomial count, and never what has no chance."""
    for token, chance in enumerate(chances):
        assert abs(counts[token] - n * chance) <= 4 * math.sqrt(n * chance * (1 - chance)), token


def test_temperature_and_top_k_shape_the_chances() -> None:
    logits, n = torch.tensor([0.0, 2.0, 1.0, -1.0]), 8000
    for temperature, top_k in ((1.0, None), (0.5, None), (2.0, 2), (1.0, 3), (1.0, 4), (1.0, 99)):
        generator = torch.Generator().manual_seed(0)
        counts = Counter(sample(logits, temperature=temperature, top_k=top_k, generator=generator) for _ in range(n))
        kept = sorted([0.0, 2.0, 1.0, -1.0], reverse=True)[:top_k]
        exps = [math.exp(x / temperature) if x in kept else 0.0 for x in (0.0, 2.0, 1.0, -1.0)]
        chances = [x / sum(exps) for x in exps]
        assert_drawn_as(counts, chances, n)
        cooler = [x**1.25 for x in chances]
        with pytest.raises(AssertionError):
            assert_drawn_as(counts, [x / sum(cooler) for x in cooler], n)
    assert sample(logits, temperature=0.0, top_k=None, generator=torch.Generator()) == 1


def test_ties_leave_no_more_than_top_k() -> None:
    logits, generator = torch.tensor([0.0, 3.0, 3.0, 3.0, 1.0]).bfloat16(), torch.Generator().manual_seed(0)
    for top_k, kept in ((1, {1}), (2, {1, 2}), (3, {1, 2, 3})):
        assert {sample(logits, temperature=1.0, top_k=top_k, generator=generator) for _ in range(100)} == kept
    assert sample(logits, temperature=0.0, top_k=None, generator=generator) == 1


def test_a_tiny_temperature_is_greedy() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = {sample(torch.tensor([1.0, 2.0, -1.0]), temperature=1e-310, top_k=None, generator=generator)}
    assert drawn == {1}


def draws(logits: Tensor, *, top_k: int | None, top_p: float, temperature: float = 1.0) -> set[int]:
    generator = torch.Generator().manual_seed(0)
    how: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "generator": generator}
    return {sample(logits, **how) for _ in range(400)}


def test_the_nucleus_is_the_fewest_that_reach_top_p() -> None:
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    for top_p, kept in (
        (1e-9, {1}),
        (0.39, {1}),
        (0.41, {1, 3}),
        (0.69, {1, 3}),
        (0.71, {1, 2, 3}),
        (1.0, {0, 1, 2, 3}),
    ):
        assert draws(logits, top_k=None, top_p=top_p) == kept
    # of what top_k leaves: 4/7 and 3/7
    assert draws(logits, top_k=2, top_p=0.56) == {1}
    assert draws(logits, top_k=2, top_p=0.58) == {1, 3}
    assert draws(torch.zeros(5), top_k=None, top_p=0.5) == {0, 1, 2}, "of equals the first"


def test_the_chances_are_those_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    seen: list[Tensor] = []

    def first(chances: Tensor, n: int, *, generator: torch.Generator) -> Tensor:
        seen.append(chances)
        return torch.zeros(n, dtype=torch.int64)

    monkeypatch.setattr(torch, "multinomial", first)
    numbers = torch.Generator().manual_seed(5)
    for temperature, top_k, top_p in itertools.product((0.3, 1.0, 1.7), (1, 5, 40, 300), (0.01, 0.5, 0.9, 0.999)):
        logits_v = 3 * torch.randn(200, dtype=torch.float64, generator=numbers)
        sample(logits_v, temperature=temperature, top_k=top_k, top_p=top_p, generator=numbers)
        warped = logits_v[None]
        for warper in (TemperatureLogitsWarper(temperature), TopKLogitsWarper(top_k), TopPLogitsWarper(top_p)):
            warped = warper(None, warped)
        expected = warped[0].softmax(-1).sort(descending=True).values
        chances = seen.pop()
        assert len(chances) == int((expected > 0).sum())
        torch.testing.assert_close(chances / chances.sum(), expected[: len(chances)], rtol=1e-12, atol=0)
