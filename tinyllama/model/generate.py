"""Sampling text from a model, one token at a time with a key-value cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tinyllama.model.llama import Llama


def sample(logits_v: Tensor, *, temperature: float, top_k: int | None, generator: torch.Generator) -> int:
    """One token from logits [v]: the likeliest at temperature 0, else drawn from among the top_k."""
    if temperature == 0:
        return int(logits_v.argmax())
    scaled = (logits_v.double() - logits_v.max()) / temperature  # at most 0, so that no temperature overflows
    if top_k is not None:
        # bf16 logits tie often: in a stable order exactly top_k are left, and the first of equals as in argmax
        scaled[scaled.argsort(descending=True, stable=True)[top_k:]] = float("-inf")
    return int(torch.multinomial(scaled.softmax(-1), 1, generator=generator))


@torch.no_grad()
def generate(
    model: Llama,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int,
    eos: int,
    n_tokens: int,
) -> Iterator[int]:
    """Yield the tokens that follow a prompt, up to max_tokens, the end of the document or the model's context.

    Only the first n_tokens rows of the vocabulary are sampled: a tokenizer may have fewer than the model. An empty
    prompt starts a new document. Raises ValueError where the prompt already fills the context.
    """
    tokens = list(prompt) or [eos]
    room = model.shape.context - len(tokens)
    if room < 1:
        raise ValueError(f"generate.prompt: {len(tokens)} tokens fill the context of {model.shape.context}: shorten it")
    model.eval()
    device = model.embedding.weight.device
    generator = torch.Generator().manual_seed(seed)
    past = None
    for _ in range(min(max_tokens, room)):
        logits, past = model.logits(torch.tensor([tokens], device=device), past)
        token = sample(logits[0, -1, :n_tokens].cpu(), temperature=temperature, top_k=top_k, generator=generator)
        if token == eos:
            return
        yield token
        tokens = [token]
