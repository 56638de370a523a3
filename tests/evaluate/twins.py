"""A tiny model in our form and in transformers', with a tokenizer that both have: a piece for each byte."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tests.model.peer import peer_of
from tests.model.tiny import SHAPE, build
from tinyllama.config.schema import Model
from tinyllama.model.llama import Llama

BYTES = replace(SHAPE, vocab_size=258, context=96)
"""Two tokens beyond the bytes: the beginning and the end of a document."""


def fast() -> PreTrainedTokenizerFast:
    """One token for each byte, then <s> and </s>, neither of which is added to a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {sign: index for index, sign in enumerate([*alphabet, "<s>", "</s>"])}
    whole = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=whole, bos_token="<s>", eos_token="</s>", pad_token="</s>")


class Pieces:
    """The same in the form of ours."""

    def __init__(self, whole: PreTrainedTokenizerFast) -> None:
        self._whole = whole
        self.eos: int = whole.convert_tokens_to_ids("</s>")
        self.start: int = whole.convert_tokens_to_ids("<s>")
        self.vocab_size = len(whole)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._whole.encode(text, add_special_tokens=False)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: Any = self._whole.decode(list(ids), skip_special_tokens=True)
        return str(text)


def ours(shape: Model = BYTES) -> Llama:
    """In fp32, with opinions: an untrained model hardly tells one context from another."""
    return build(shape, dtype=torch.float32, gain=3.0).eval().requires_grad_(False)


def theirs(model: Llama) -> LlamaForCausalLM:
    """The same weights in transformers' Llama."""
    return peer_of(model, start=256, end=257)
