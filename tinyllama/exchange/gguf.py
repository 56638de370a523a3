"""A trained model as one GGUF file, which llama.cpp and what is built on it read."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tinyllama import kernels
from tinyllama.config.schema import Model
from tinyllama.data.tokenizer import Tokenizer
from tinyllama.exchange.tokenizers import expressible
from tinyllama.exchange.trained import DTYPES, Trained
from tinyllama.model.llama import Llama

if TYPE_CHECKING:
    from gguf import GGUFWriter


class Part(NamedTuple):
    """Some rows of one of our tensors, which llama.cpp has under a name of their own."""

    name: str
    rows: int
    heads: int = 0
    """Heads whose rows RoPE pairs; none where it pairs none."""


def write_gguf(trained: Trained, path: Path, *, dtype: str, name: str) -> None:
    """Writes weights, shape and tokenizer as llama.cpp's `llama` architecture, whole or not at all.

    Matrices are `dtype`, fp32 or bf16, and norms fp32; `name` is what others show of the model. One tensor at a time
    is in memory. llama.cpp takes U+2581 in a text for a space, whatever our tokenizer does, and so gives it other ids.

    Raises ValueError where the file exists, where gguf is not installed, and for a tokenizer that the file cannot
    express; OSError where it cannot be written.
    """
    try:
        from gguf import GGUFWriter
    except ImportError as error:
        raise ValueError("gguf is not installed: pip install 'tinyllama[gguf]'") from error
    _refuse_existing(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    writer = GGUFWriter(partial, "llama")
    try:
        writer.add_name(name)
        _add_shape(writer, trained.shape, dtype=dtype)
        _add_tokenizer(writer, trained)
        _write_tensors(writer, trained, dtype=dtype)
        writer.flush()
        assert writer.fout is not None
        os.fsync(writer.fout[0].fileno())
        writer.close()
        _refuse_existing(path)
        partial.rename(path)
    finally:
        writer.close()
        partial.unlink(missing_ok=True)


def layout(shape: Model) -> dict[str, list[Part]]:
    """llama.cpp's tensors, by ours that hold their rows in this order."""
    d, kv = shape.d_model, shape.n_kv_heads * shape.head_dim
    parts = {"embedding.weight": [Part("token_embd.weight", shape.vocab_size)]}
    for n in range(shape.n_layers):
        ours, theirs = f"blocks.{n}", f"blk.{n}"
        parts |= {
            f"{ours}.attention_norm.weight": [Part(f"{theirs}.attn_norm.weight", d)],
            f"{ours}.attention.qkv.weight": [
                Part(f"{theirs}.attn_q.weight", d, shape.n_heads),
                Part(f"{theirs}.attn_k.weight", kv, shape.n_kv_heads),
                Part(f"{theirs}.attn_v.weight", kv),
            ],
            f"{ours}.attention.out.weight": [Part(f"{theirs}.attn_output.weight", d)],
            f"{ours}.mlp_norm.weight": [Part(f"{theirs}.ffn_norm.weight", d)],
            f"{ours}.mlp.gate_up.weight": [
                Part(f"{theirs}.ffn_gate.weight", shape.d_ff),
                Part(f"{theirs}.ffn_up.weight", shape.d_ff),
            ],
            f"{ours}.mlp.down.weight": [Part(f"{theirs}.ffn_down.weight", d)],
        }
    return parts | {
        "norm.weight": [Part("output_norm.weight", d)],
        "head.weight": [Part("output.weight", shape.vocab_size)],
    }


def paired(weight: Tensor, heads: int) -> Tensor:
    """Rows of a query or key matrix in the order in which llama.cpp's RoPE turns them: each beside its partner.

    Ours pairs row i of a head with row i + head_dim / 2, as Hugging Face does.
    """
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def _write_tensors(writer: GGUFWriter, trained: Trained, *, dtype: str) -> None:
    """Says what is to come, then writes one tensor after the other."""
    from gguf import GGMLQuantizationType

    kinds = {"fp32": GGMLQuantizationType.F32, "bf16": GGMLQuantizationType.BF16}
    # NumPy has no bf16: its bits are written as they are.
    bits = {"fp32": torch.int32, "bf16": torch.int16}
    with torch.device("meta"):
        model = Llama(trained.shape, ops=kernels.TORCH)
    sizes = {source: [*parameter.shape] for source, parameter in model.named_parameters()}
    kept = {source: dtype if len(size) == 2 else "fp32" for source, size in sizes.items()}
    parts = layout(trained.shape)
    for source, of_source in parts.items():
        for part in of_source:
            size = [part.rows, *sizes[source][1:]]
            item = DTYPES[kept[source]].itemsize
            kind = kinds[kept[source]]
            writer.add_tensor_info(part.name, size, np.dtype(f"<i{item}"), item * math.prod(size), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for source, of_source in parts.items():
        weight, first = trained.weights[source], 0
        for part in of_source:
            rows = weight[first : first + part.rows]
            ordered = paired(rows, part.heads) if part.heads else rows
            content = ordered.to(DTYPES[kept[source]]).contiguous().view(bits[kept[source]]).numpy()
            writer.write_tensor_data(content)
            first += part.rows


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


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise ValueError(f"{path} exists, and a model is not written over another: remove it, or name another file")
