"""A tiny model in our form and in transformers', with a tokenizer that both have: a piece for each byte."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.model.tiny import SHAPE, build
from tinyllama.config.schema import Model
from tinyllama.model.llama import Llama

NAMES = {
    "attention_norm": "input_layernorm",
    "attention.out": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp.down": "mlp.down_proj",
}
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
    shape = model.shape
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.d_model,
        intermediate_size=shape.d_ff,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads,
        max_position_embeddings=shape.context,
        rms_norm_eps=shape.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=False,
        bos_token_id=256,
        eos_token_id=257,
        attn_implementation="eager",
    )
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    head = shape.d_model // shape.n_heads
    sizes = [head * shape.n_heads, head * shape.n_kv_heads, head * shape.n_kv_heads]
    converted = {
        "model.embed_tokens.weight": weights["embedding.weight"],
        "model.norm.weight": weights["norm.weight"],
        "lm_head.weight": weights["head.weight"],
    }
    for layer in range(shape.n_layers):
        mine, other = f"blocks.{layer}", f"model.layers.{layer}"
        for part, piece in zip("qkv", weights[f"{mine}.attention.qkv.weight"].split(sizes), strict=True):
            converted[f"{other}.self_attn.{part}_proj.weight"] = piece
        gate, up = weights[f"{mine}.mlp.gate_up.weight"].chunk(2)
        converted[f"{other}.mlp.gate_proj.weight"], converted[f"{other}.mlp.up_proj.weight"] = gate, up
        for name, its_name in NAMES.items():
            converted[f"{other}.{its_name}.weight"] = weights[f"{mine}.{name}.weight"]
    twin = LlamaForCausalLM(config)
    twin.load_state_dict(converted)
    return twin.eval()
