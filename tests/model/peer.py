"""The same model in transformers' Llama."""

from __future__ import annotations

from transformers import LlamaConfig, LlamaForCausalLM

from tinyllama.config.schema import Model
from tinyllama.model.huggingface import config_of, parts
from tinyllama.model.llama import Llama


def empty(shape: Model, *, start: int = 2, end: int = 2) -> LlamaForCausalLM:
    """Of a shape, with weights of its own."""
    return LlamaForCausalLM(LlamaConfig.from_dict(config_of(shape, start=start, end=end, dtype="fp32")))


def peer_of(model: Llama, *, start: int = 2, end: int = 2) -> LlamaForCausalLM:
    """With our weights, in their dtype."""
    weights = model.state_dict()
    peer = empty(model.shape, start=start, end=end).to(weights["head.weight"].dtype)
    peer.load_state_dict({name: weights[part.ours][part.rows] for name, part in parts(model.shape).items()})
    return peer.eval()
