"""Memory of one GPU in a training step, and of the machine where the optimizer lies there, from shape and layout alone.

Three things are counted: what is held between steps (weights, gradients, optimizer: arXiv 1910.02054), what a forward
keeps for its backward, and what either end of the backward needs beside that. The most of a step is at one of those
ends: at the loss, when all activations are kept, or when the last gradients come out and are reduced. Constants are
those of DeepSpeed 0.19's optimizers and of our kernels; tests compare the sums with what PyTorch allocates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tinyllama.config.schema import Model, RunConfig
from tinyllama.plan.count import count_parameters

REDUCE_BUCKET = 500_000_000
"""Gradients that ZeRO reduces at once, at most."""
GATHERED = 1_000_000_000
"""Parameters that ZeRO's third stage holds whole at once, at most."""
CONTEXT_BYTES = 1_000_000_000
"""What CUDA, NCCL and the libraries take of a GPU before the first tensor."""
LOGITS_BYTES = 1 << 28
"""What our linear cross-entropy gives to a chunk of logits."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """All that memory depends on beside the model."""

    zero_stage: int
    offload: bool = False
    """Whether the optimizer's state lies in the machine's memory; not at the first stage."""
    world_size: int
    micro_batch: int
    accumulates: bool
    """Whether a step has more than one micro-batch."""
    recompute: bool
    precision: Literal["fp32", "bf16"]
    backend: Literal["torch", "triton"]
    masked_sdpa: bool
    """Whether PyTorch's attention is handed a mask of documents."""
    pinned: bool = False
    """Whether what is offloaded is pinned, of which PyTorch allocates powers of two."""

    @classmethod
    def of(cls, config: RunConfig, *, micro_batch: int, accumulation: int) -> Layout:
        """A run's."""
        parallelism, kernels = config.parallelism, config.kernels
        auto: Literal["torch", "triton"] = "triton" if parallelism.device == "cuda" else "torch"
        backend = auto if kernels.backend == "auto" else kernels.backend
        return cls(
            zero_stage=parallelism.zero_stage,
            offload=parallelism.offload == "optimizer",
            world_size=parallelism.world_size,
            micro_batch=micro_batch,
            accumulates=accumulation > 1,
            recompute=parallelism.recompute,
            precision=config.train.precision,
            backend=backend,
            masked_sdpa=config.train.mask_documents and (backend == "torch" or kernels.attention == "sdpa"),
            pinned=parallelism.device == "cuda",
        )

    @property
    def itemsize(self) -> int:
        """Bytes of a number that the model computes with."""
        return 2 if self.precision == "bf16" else 4


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one GPU, by what they are for."""

    weights: int
    gradients: int
    """Those being added up and those that have just come out."""
    optimizer: int
    """fp32 weights and both moments."""
    activations: int
    """Kept by the blocks of one micro-batch for its backward."""
    recomputed: int
    """One block's activations, where they are not kept but made again."""
    logits: int
    """What the loss keeps and needs."""
    buffers: int
    """For reducing gradients, gathering parameters and moving them to the machine's memory."""
    peak: int
    """The most at once: not all of the above are there at one time."""
    machine: int = 0
    """Bytes of the machine's own memory for this GPU's share of an offloaded optimizer: fp32 weights, both moments,
    fp32 gradients, and what is on its way."""


def memory(model: Model, layout: Layout) -> Memory:
    """What a training step takes."""
    n, w, e = count_parameters(model).total, layout.world_size, layout.itemsize
    stage, mixed, offload = layout.zero_stage, layout.precision == "bf16", layout.offload
    tokens = layout.micro_batch * model.context
    bucket = e * min(n, REDUCE_BUCKET)

    # what ZeRO shards
    weights, optimizer = e * n // (w if stage == 3 else 1), 0 if offload else 12 * n // w
    fresh = e * n if stage == 1 else bucket  # gradients that have come out and are yet to be reduced
    whole, shard = 4 * n, 4 * n // w
    # added up in fp32; where all is fp32, stage 1 adds up in place, and so does stage 2 where there is nothing to add
    summed = {1: whole if mixed else 0, 2: shard if mixed or layout.accumulates else 0, 3: shard}[stage]
    gathered = e * min(n, GATHERED) if stage == 3 else 0
    # in bf16, stage 1 flattens what it has added up and rounds it to what is sent; the others fill buckets meanwhile
    flattened = 6 * min(n, REDUCE_BUCKET) if mixed and stage == 1 else 0
    filling = 0 if flattened else bucket
    # offloaded gradients: stage 2 adds bf16 ones up here and moves them at a step's end, one by one; stage 3 moves each
    # bucket, of which it makes fp32 numbers (where ranks gather parameters, in the room of those) and then copies
    staged = e * _largest(model) if offload and stage == 2 else 0
    copies = 4 * min(n, REDUCE_BUCKET) // w if offload and stage == 3 else 0
    if offload:
        summed = shard if mixed and stage == 2 else 0
        if stage == 2 and not mixed and w == 1:
            fresh = staged  # what has come out lies in the bucket

    held = weights + optimizer
    if stage == 3:
        held += summed + filling + (gathered if w > 1 else 0)
    elif flattened:
        held += summed
    held += staged
    carried = {1: fresh + filling, 2: summed, 3: 0}[stage] if layout.accumulates else 0
    # what one bucket holds is reduced once all of it is there, and the last to come is the embedding's
    embedding = e * model.vocab_size * model.d_model
    reduced = fresh if offload or n > REDUCE_BUCKET else 0
    coming = {1: max(carried, fresh + filling - embedding), 2: carried + filling + reduced, 3: fresh}[stage]
    coming += copies if w > 1 else 2 * copies
    # at the second stage a gradient is made wide to be handed on; at the third one rank has them twice
    handed = {1: 0, 2: 4 * _largest(model), 3: bucket if w == 1 else 0}[stage] if mixed else 0

    block = _kept_by_block(model, layout) * tokens
    kept = model.n_layers * block
    if layout.recompute:  # each block's stream and what is yet to be added to it, which the first has not
        kept = (2 * model.n_layers - 1) * e * model.d_model * tokens
    end = _kept_by_last_norm(model, layout) * tokens
    loss_kept, loss_more = _loss(model, layout, tokens)
    work = (e if layout.backend == "triton" else 4) * (model.d_model + 2 * model.d_ff) * tokens
    again = block if layout.recompute else 0
    # both moments, fp32 weights and gradients; then what the GPU is sent, or what it has sent and is added up
    machine = 2 * shard + 2 * _allocated(shard, layout)
    machine += _allocated(shard, layout) if stage == 3 else _allocated(e * n // w, layout) + staged
    if stage == 2 and not mixed and layout.accumulates:
        machine += shard
    begun = {1: max(carried, filling), 2: carried + filling, 3: 0}[stage] + embedding
    return Memory(
        weights=weights,
        gradients=summed + fresh,
        optimizer=optimizer,
        activations=kept + end,
        recomputed=again,
        logits=loss_kept + loss_more,
        buffers=filling + flattened + gathered + staged + copies,
        machine=machine if offload else 0,
        peak=max(
            held + carried + kept + end + loss_kept + loss_more,
            held + begun + kept + again + work,
            held + coming + again + work,
            0 if offload else weights + optimizer + summed + fresh + filling + flattened + gathered + handed,
        ),
    )


def _largest(model: Model) -> int:
    """Numbers in the largest matrix: an embedding, or gate and up."""
    return model.d_model * max(model.vocab_size, 2 * model.d_ff)


def _allocated(size: int, layout: Layout) -> int:
    """Bytes that a block of the machine's memory takes."""
    return 1 << (size - 1).bit_length() if layout.pinned else size


def _kept_by_block(model: Model, layout: Layout) -> int:
    """What one block keeps for its backward, in bytes a token."""
    d, f, h, kv = model.d_model, model.d_ff, model.n_heads, model.n_kv_heads * model.head_dim
    e = layout.itemsize
    # with a mask, keys and values that some query heads share are copied for each; what all share needs no copy
    copied = layout.masked_sdpa and 1 < model.n_kv_heads < h
    if layout.backend == "triton":
        # each norm its sum, its result and a root; queries, keys, values; what attention gathers, with a log-sum a
        # head; the packed projection and the SwiGLU of it
        each = e * (2 * 2 * d + d + (2 * d if copied else 2 * kv) + d + 3 * f) + 4 * (2 + h)
    else:
        # the reference's: the packed projection, for its values, unless copies are kept; and its rotated part
        qkv = (2 * d if copied else d + 2 * kv) + (d + kv)
        if e == 4:  # each norm also the normed sum
            each = e * (2 * 3 * d + qkv + d + 4 * f) + 4 * (2 + h)
        else:  # the same, where fp32 copies of what is computed widely are kept beside the bf16 results
            each = 2 * (2 * d + qkv + d + f) + 4 * (2 * 2 * d + 3 * f) + 4 * (2 + h)
    if layout.masked_sdpa:
        each += e * model.context
    return each


def _kept_by_last_norm(model: Model, layout: Layout) -> int:
    """The same of the norm after the blocks."""
    d, e = model.d_model, layout.itemsize
    each = e * d if layout.backend == "triton" else 3 * e * d if e == 4 else 10 * d
    return each + 4


def _loss(model: Model, layout: Layout, tokens: int) -> tuple[int, int]:
    """What the loss keeps for the backward, and what it needs beside that at its most."""
    v, d, e = model.vocab_size, model.d_model, layout.itemsize
    if layout.backend == "torch":
        return 4 * v * tokens, 8 * v * tokens  # log-probabilities; their gradient, and the logits'
    kept = e * d * tokens + 4 * v * d  # the gradients, made on the way
    return kept, max(min(LOGITS_BYTES, e * v * tokens), e * d * tokens + e * v * d)


def gigabytes(n_bytes: int) -> str:
    """In 10^9 bytes; small ones in 10^6."""
    return f"{n_bytes / 1e9:,.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:,.1f} MB"
