"""Hugging Face's Llama: its configuration, and which rows of which of our tensors each of its tensors is.

transformers 5 moved `rope_theta` into `rope_parameters` and `torch_dtype` to `dtype`: both spellings are written, and
either is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tinyllama.config.rules import heads_divide
from tinyllama.config.schema import Model

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Part(NamedTuple):
    """Where one of Hugging Face's tensors lies in ours."""

    ours: str
    rows: slice
    shape: tuple[int, ...]


def parts(shape: Model) -> dict[str, Part]:
    """Each tensor of a LlamaForCausalLM by name, those of one of our packed projections in order."""

    def rows(ours: str, width: int, **heights: int) -> Iterator[tuple[str, Part]]:
        first = 0
        for theirs, height in heights.items():
            yield theirs, Part(ours, slice(first, first + height), (height, width))
            first += height

    def norm(ours: str) -> Part:
        return Part(ours, slice(None), (shape.d_model,))

    d, f, kv = shape.d_model, shape.d_ff, shape.n_kv_heads * shape.head_dim
    found = {"model.embed_tokens.weight": Part("embedding.weight", slice(None), (shape.vocab_size, d))}
    for layer in range(shape.n_layers):
        here, there = f"blocks.{layer}", f"model.layers.{layer}"
        found[f"{there}.input_layernorm.weight"] = norm(f"{here}.attention_norm.weight")
        for name, part in rows(f"{here}.attention.qkv.weight", d, q_proj=d, k_proj=kv, v_proj=kv):
            found[f"{there}.self_attn.{name}.weight"] = part
        found[f"{there}.self_attn.o_proj.weight"] = Part(f"{here}.attention.out.weight", slice(None), (d, d))
        found[f"{there}.post_attention_layernorm.weight"] = norm(f"{here}.mlp_norm.weight")
        for name, part in rows(f"{here}.mlp.gate_up.weight", d, gate_proj=f, up_proj=f):
            found[f"{there}.mlp.{name}.weight"] = part
        found[f"{there}.mlp.down_proj.weight"] = Part(f"{here}.mlp.down.weight", slice(None), (d, f))
    found["model.norm.weight"] = norm("norm.weight")
    found["lm_head.weight"] = Part("head.weight", slice(None), (shape.vocab_size, d))
    return found


class Ours(Mapping[str, Tensor]):
    """Our tensors by parameter name, in fp32, each put together from Hugging Face's when it is asked for.

    Raises ValueError then where not all of it is finite.
    """

    def __init__(self, theirs: Mapping[str, Tensor], shape: Model, *, where: Path) -> None:
        self._theirs = theirs
        self._where = where
        self._names: dict[str, list[str]] = {}
        for name, part in parts(shape).items():
            self._names.setdefault(part.ours, []).append(name)

    def __getitem__(self, name: str) -> Tensor:
        pieces = {theirs: self._theirs[theirs].float() for theirs in self._names[name]}
        for theirs, piece in pieces.items():
            if not torch.isfinite(piece).all():
                raise ValueError(f"{theirs} of {self._where} holds values that are not finite: get the weights again")
        return torch.cat([*pieces.values()])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def config_of(shape: Model, *, start: int, end: int, dtype: str) -> dict[str, Any]:
    """What config.json says of a shape, of the tokens that begin and end a document, and of the weights' dtype."""
    spelled = str(DTYPES[dtype]).removeprefix("torch.")
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": start,
        "dtype": spelled,
        "eos_token_id": end,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.d_model,
        "intermediate_size": shape.d_ff,
        "max_position_embeddings": shape.context,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": shape.n_heads,
        "num_hidden_layers": shape.n_layers,
        "num_key_value_heads": shape.n_kv_heads,
        "rms_norm_eps": shape.norm_eps,
        "rope_parameters": {"rope_theta": shape.rope_theta, "rope_type": "default"},
        "rope_scaling": None,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": False,
        "torch_dtype": spelled,
        "use_cache": True,
        "vocab_size": shape.vocab_size,
    }


def shape_of(config: Mapping[str, Any], *, name: str) -> Model:
    """The shape that a config.json says. Raises ValueError with all in it that our model cannot express."""
    if problems := list(_not_ours(config)):
        raise ValueError("\n".join(problems))
    heads, theta = config["num_attention_heads"], _theta(config)
    shape = Model(
        name=name,
        vocab_size=config["vocab_size"],
        context=config.get("max_position_embeddings", 2048),
        d_model=config["hidden_size"],
        n_layers=config["num_hidden_layers"],
        n_heads=heads,
        n_kv_heads=config.get("num_key_value_heads") or heads,
        d_ff=config["intermediate_size"],
        rope_theta=float(theta),
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
    )
    if problems := [f"{key}: {says}" for key, says in heads_divide(shape)]:
        raise ValueError("\n".join(problems))
    return shape


_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_OPTIONAL = ("num_key_value_heads", "max_position_embeddings", "head_dim")


def _not_ours(config: Mapping[str, Any]) -> Iterator[str]:
    if config.get("model_type") != "llama":
        yield f"model_type: {config.get('model_type')!r} is no Llama: only 'llama' can be imported"
        return
    sizes = {key: config.get(key) for key in _SIZES} | {key: config[key] for key in _OPTIONAL if config.get(key)}
    wrong = {key: size for key, size in sizes.items() if type(size) is not int or size < 1}
    yield from (f"{key}: {size!r} should be a whole number greater than 0" for key, size in wrong.items())
    if not wrong and config.get("max_position_embeddings", 0) > 2**24:
        yield f"max_position_embeddings: {config['max_position_embeddings']}: past {2**24} fp32 tells none apart"
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            yield f"{key}: true, and the model here has no biases"
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        yield f"hidden_act: {config['hidden_act']!r}, and the model here has silu alone"
    if config.get("tie_word_embeddings"):
        yield "tie_word_embeddings: true, and the output matrix here is one of its own"
    if config.get("quantization_config"):
        yield "quantization_config: quantised weights cannot be trained on: take the ones that were quantised"
    rope = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or {}
    for key, said in (("rope_parameters", rope), ("rope_scaling", scaling)):
        if not isinstance(said, dict):
            yield f"{key}: {said!r} should be a section of keys"
            return
        kind = said.get("rope_type", said.get("type", "default"))
        if kind != "default":
            yield f"{key}: {kind!r} scales the rotary frequencies, which the model here does not"
    for said in (config, rope, scaling):
        if said.get("partial_rotary_factor", 1) != 1:
            yield f"partial_rotary_factor: {said['partial_rotary_factor']!r}, and heads here are rotated whole"
    for key, number in (("rope_theta", _theta(config)), ("rms_norm_eps", config.get("rms_norm_eps", 1e-6))):
        if not isinstance(number, int | float) or isinstance(number, bool) or not 0 < number < float("inf"):
            yield f"{key}: {number!r} should be a number greater than 0"
    if "rope_theta" in rope and config.get("rope_theta") not in (None, rope["rope_theta"]):
        yield f"rope_theta: {config['rope_theta']!r}, and rope_parameters.rope_theta is {rope['rope_theta']!r}"
    if not wrong and config.get("head_dim") not in (None, config["hidden_size"] // config["num_attention_heads"]):
        yield f"head_dim: {config['head_dim']}, and heads here are hidden_size / num_attention_heads wide"


def _theta(config: Mapping[str, Any]) -> Any:
    inner = (config.get("rope_parameters") or {}).get("rope_theta")
    return inner if inner is not None else config.get("rope_theta", 10_000.0)
