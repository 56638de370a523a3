"""Sampling text from a model: many rows at once, one token of each at a time, with a key-value cache."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from tinyllama.config.tasks import Generate
from tinyllama.model.cache import Cache
from tinyllama.model.llama import Llama


def sample(
    logits_v: Tensor, *, temperature: float, top_k: int | None, generator: torch.Generator, top_p: float | None = None
) -> int:
    """One token from logits [v]: the likeliest at temperature 0, else drawn from among those that are left.

    First the top_k likeliest are left; of these the fewest, likeliest first, whose probability reaches top_p.
    """
    if temperature == 0:
        return int(logits_v.argmax())
    scaled = (logits_v.double() - logits_v.max()) / temperature  # at most 0, so that no temperature overflows
    tokens = torch.arange(len(scaled))
    if top_k is not None and top_k < len(scaled):
        tokens = (scaled >= scaled.topk(top_k).values[-1]).nonzero()[:, 0]
    if top_k is not None or top_p is not None:
        # bf16 logits tie often: in a stable order exactly top_k are left, and the first of equals as in argmax
        tokens = tokens[scaled[tokens].argsort(descending=True, stable=True)[:top_k]]
    chances = scaled[tokens].softmax(-1)
    if top_p is not None:
        chances = chances[chances.cumsum(-1) - chances < top_p]
    return int(tokens[torch.multinomial(chances, 1, generator=generator)])


def row_generator(seed: int, row: int) -> torch.Generator:
    """What a row draws its tokens with: its own, so that no row's text depends on another's."""
    mixed = np.random.SeedSequence([seed, row]).generate_state(1)[0]
    return torch.Generator().manual_seed(int(mixed))


def check_room(prompts: Sequence[Sequence[int]], context: int) -> None:
    """Raise ValueError where a prompt leaves no room for another token, naming it where there are several."""
    for number, prompt in enumerate(prompts, start=1):
        if len(prompt) >= context:
            which = f" {number} of {len(prompts)}" if len(prompts) > 1 else ""
            raise ValueError(f"generate.prompt{which}: {len(prompt)} tokens fill the context of {context}: shorten it")


def generate(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    how: Generate,
    *,
    seed: int,
    eos: int,
    n_tokens: int,
    ended: Collection[int] = (),
) -> Iterator[tuple[int, int | None]]:
    """Yield (row, token) for the tokens that follow each prompt, and (row, None) where a row has ended.

    Sample s of prompt p is row p * how.samples + s. A row ends after how.max_tokens, with the end of its document, at
    the end of the model's context, or with a token after which the reader puts it into `ended`. Only the first n_tokens
    rows of the vocabulary are sampled: a tokenizer may have fewer than the model. An empty prompt begins a document.
    Raises ValueError where a prompt fills the context.
    """
    begun = [list(prompt) or [eos] for prompt in prompts]
    check_room(begun, model.shape.context)
    return _rows(model, begun, how, seed=seed, eos=eos, n_tokens=n_tokens, ended=ended)


@torch.inference_mode()
def _rows(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    how: Generate,
    *,
    seed: int,
    eos: int,
    n_tokens: int,
    ended: Collection[int],
) -> Iterator[tuple[int, int | None]]:
    rows = list(range(len(prompts) * how.samples))
    left = [min(how.max_tokens, model.shape.context - len(prompts[row // how.samples])) for row in rows]
    generators = [row_generator(seed, row) for row in rows]
    logits_bv, cache = _read(model, prompts, samples=how.samples, room=max(left) - 1)
    while rows:
        tokens = _choose(logits_bv[:, :n_tokens], how, [generators[row] for row in rows])
        going = []
        for place, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            left[row] -= 1
            if token != eos:
                yield row, token
            if token == eos or not left[row] or row in ended:
                yield row, None
            else:
                going.append(place)
        if going and len(going) < len(rows):
            cache.keep(going)
        rows, tokens = [rows[place] for place in going], [tokens[place] for place in going]
        if rows:
            logits_bv = model.next_logits(torch.tensor(tokens, device=logits_bv.device), cache)


def _read(model: Llama, prompts: Sequence[Sequence[int]], *, samples: int, room: int) -> tuple[Tensor, Cache]:
    """The logits [b, v] after each row's prompt, and a cache of all; prompts of one length are read together."""
    lengths = [len(prompt) for prompt in prompts for _ in range(samples)]
    weight_vd = model.head.weight
    cache = Cache(model.shape, lengths, room=room, like=weight_vd)
    logits_bv = weight_vd.new_empty(len(lengths), len(weight_vd))
    for length in set(lengths):
        tokens_bt = torch.tensor([prompt for prompt in prompts if len(prompt) == length], device=weight_vd.device)
        last_b1v, present = model.logits(tokens_bt, last=True)
        rows = [row for row, of_row in enumerate(lengths) if of_row == length]
        logits_bv[rows] = last_b1v[:, 0].repeat_interleave(samples, dim=0)
        cache.put(
            rows, [(k.repeat_interleave(samples, dim=0), v.repeat_interleave(samples, dim=0)) for k, v in present]
        )
    return logits_bv, cache


def _choose(logits_bv: Tensor, how: Generate, generators: Sequence[torch.Generator]) -> list[int]:
    """The next token of each row."""
    if how.temperature == 0:
        likeliest: list[int] = logits_bv.argmax(-1).tolist()
        return likeliest
    return [
        sample(logits_v, temperature=how.temperature, top_k=how.top_k, top_p=how.top_p, generator=generator)
        for logits_v, generator in zip(logits_bv.cpu(), generators, strict=True)
    ]
