"""Sampling: greedy is the argmax of a full recomputation, and nothing comes out that must not."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch

from tests.model.tiny import SHAPE, build, some_tokens
from tinyllama.model.generate import generate, sample
from tinyllama.model.llama import Llama

EOS = 2
PROMPT = [5, 9, 33]


@pytest.fixture(scope="module")
def model() -> Llama:
    return build(gain=3)


def text(model: Llama, prompt: list[int] = PROMPT, **changed: Any) -> list[int]:
    settings: dict[str, Any] = {
        "max_tokens": 100,
        "temperature": 0.0,
        "top_k": None,
        "seed": 0,
        "eos": -1,  # none, unless a test says otherwise
        "n_tokens": SHAPE.vocab_size,
    }
    return list(generate(model, prompt, **settings | changed))


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


def assert_drawn_as(counts: Counter[int], chances: list[float], n: int) -> None:
    """Within four standard errors of a binomial count, and never what has no chance."""
    for token, chance in enumerate(chances):
        assert abs(counts[token] - n * chance) <= 4 * math.sqrt(n * chance * (1 - chance)), token


def test_temperature_and_top_k_shape_the_chances() -> None:
    logits, n = torch.tensor([0.0, 2.0, 1.0, -1.0]), 4000
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
