"""A trained model as one GGUF file, which llama.cpp and what is built on it read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tinyllama.config.schema import Model
from tinyllama.data.tokenizer import Tokenizer
from tinyllama.engine.room import check_room
from tinyllama.exchange.folder import new_file
from tinyllama.exchange.tokenizers import expressible
from tinyllama.exchange.trained import Trained
from tinyllama.model.huggingface import DTYPES, Part, parts

if TYPE_CHECKING:
    from gguf import GGUFWriter


_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.layers.": "blk.",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.norm": "output_norm",
    "lm_head": "output",
}
"""What llama.cpp calls the parts of Hugging Face's names."""


def write_gguf(trained: Trained, path: Path, *, dtype: str, name: str) -> None:
    """Writes weights, shape and tokenizer as llama.cpp's `llama` architecture, whole or not at all.

    Matrices are `dtype`, fp32 or bf16, and norms fp32; `name` is what others show of the model. One tensor at a time
    is in memory. llama.cpp takes U+2581 in a text for a space, whatever our tokenizer does, and so gives it other ids.

    Raises ValueError where the file exists and for a tokenizer that it cannot express, OSError where it cannot be
    written.
    """
    from gguf import GGUFWriter

    placed = layout(trained.shape)
    with new_file(path, key="export.out") as partial:
        check_room(partial.parent, sum(DTYPES[dtype].itemsize * math.prod(part.shape) for part, _ in placed.values()))
        writer = GGUFWriter(partial, "llama")
        try:
            writer.add_name(name)
            _add_shape(writer, trained.shape, dtype=dtype)
            _add_tokenizer(writer, trained)
            _write_tensors(writer, trained, placed, dtype=dtype)
        finally:
            writer.close()


def layout(shape: Model) -> dict[str, tuple[Part, int]]:
    """Where each of llama.cpp's tensors lies in ours, and the heads whose rows RoPE pairs, 0 where it pairs none."""
    found = {}
    for name, part in parts(shape).items():
        heads = {"q_proj": shape.n_heads, "k_proj": shape.n_kv_heads}.get(name.split(".")[-2], 0)
        for theirs, here in _NAMES.items():
            name = name.replace(theirs, here)
        found[name] = part, heads
    return found


def paired(weight: Tensor, heads: int) -> Tensor:
    """Rows of a query or key matrix in the order in which llama.cpp's RoPE turns them: each beside its partner.

    Ours pairs row i of a head with row i + head_dim / 2, as Hugging Face does.
    """
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def _write_tensors(writer: GGUFWriter, trained: Trained, placed: Mapping[str, tuple[Part, int]], *, dtype: str) -> None:
    """Says what is to come, then writes one tensor after the other."""
    from gguf import GGMLQuantizationType

    kinds = {"fp32": GGMLQuantizationType.F32, "bf16": GGMLQuantizationType.BF16}
    # NumPy has no bf16: its bits are written as they are.
    bits = {"fp32": torch.int32, "bf16": torch.int16}
    kept = {name: dtype if len(part.shape) == 2 else "fp32" for name, (part, _) in placed.items()}
    for name, (part, _) in placed.items():
        item = DTYPES[kept[name]].itemsize
        n_bytes = item * math.prod(part.shape)
        writer.add_tensor_info(name, part.shape, np.dtype(f"<i{item}"), n_bytes, raw_dtype=kinds[kept[name]])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, (part, heads) in placed.items():
        rows = trained.weights[part.ours][part.rows]
        ordered = paired(rows, heads) if heads else rows
        writer.write_tensor_data(ordered.to(DTYPES[kept[name]]).contiguous().view(bits[kept[name]]).numpy())


def _add_shape(writer: GGUFWriter, shape: Model, *, dtype: str) -> None:
    from gguf import LlamaFileType

    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.d_model)
    writer.add_block_count(shape.n_layers)
    writer.add_feed_forward_length(shape.d_ff)
    writer.add_head_count(shape.n_heads)
    writer.add_head_count_kv(shape.n_kv_heads)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_file_type({"fp32": LlamaFileType.ALL_F32, "bf16": LlamaFileType.MOSTLY_BF16}[dtype])


def _add_tokenizer(writer: GGUFWriter, trained: Trained) -> None:
    from gguf import TokenType

    tokenizer = Tokenizer.load(trained.tokenizer)
    model = expressible(tokenizer, form="GGUF file")
    # Rows of the embedding past the last piece: llama.cpp counts its tokens by these.
    unused = range(len(model.pieces), trained.shape.vocab_size)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece.piece for piece in model.pieces] + [f"[PAD{index}]" for index in unused])
    writer.add_token_scores([piece.score for piece in model.pieces] + [-1e4] * len(unused))
    # SentencePiece's numbers of the types are GGUF's.
    writer.add_token_types([int(piece.type) for piece in model.pieces] + [int(TokenType.UNUSED)] * len(unused))
    writer.add_bos_token_id(trained.start)
    writer.add_eos_token_id(tokenizer.eos)
    writer.add_unk_token_id(next(i for i, piece in enumerate(model.pieces) if piece.type == TokenType.UNKNOWN))
    writer.add_add_bos_token(trained.adds_start)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(model.normalizer_spec.add_dummy_prefix)
