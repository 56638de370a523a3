"""Memory of one GPU in a training step, and of the machine where the optimizer lies there, from shape and layout alone.

Three things are counted: what is held between steps (weights, gradients, optimizer: arXiv 1910.02054), what a forward
keeps for its backward, and what either end of the backward needs beside that. The most of a step is at one of those
ends: at the loss, when all activations are kept, or when the last gradients come out and are reduced. Constants are
those of DeepSpeed 0.19's optimizers and of our kernels; tests compare the sums with what PyTorch allocates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

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
    tokens, e = layout.micro_batch * model.context, layout.itemsize
    states = {1: _first_stage, 2: _second_stage, 3: _third_stage}[layout.zero_stage](model, layout)
    block = _kept_by_block(model, layout) * tokens
    kept = model.n_layers * block
    if layout.recompute:  # each block's stream and what is yet to be added to it, which the first has not
        kept = (2 * model.n_layers - 1) * e * model.d_model * tokens
    end = _kept_by_last_norm(model, layout) * tokens
    loss_kept, loss_more = _loss(model, layout, tokens)
    work = (e if layout.backend == "triton" else 4) * (model.d_model + 2 * model.d_ff) * tokens
    again = block if layout.recompute else 0
    return Memory(
        weights=states.weights,
        gradients=states.gradients,
        optimizer=states.optimizer,
        activations=kept + end,
        recomputed=again,
        logits=loss_kept + loss_more,
        buffers=states.buffers,
        machine=_machine(model, layout) if layout.offload else 0,
        peak=max(
            states.held + states.carried + kept + end + loss_kept + loss_more,
            states.held + states.begun + kept + again + work,
            states.held + states.coming + again + work,
            states.stepping,
        ),
    )


class _States(NamedTuple):
    """Bytes of all but activations; those that are there in the same moment beside them."""

    weights: int
    gradients: int
    optimizer: int
    buffers: int
    held: int
    """All the time."""
    carried: int
    """Of earlier micro-batches, beside what is held."""
    begun: int
    """When the head's gradient has come out, beside what is held."""
    coming: int
    """When the last gradients come out, beside what is held."""
    stepping: int
    """When gradients are reduced and the optimizer steps, in all; no more than before it where it is offloaded."""


def _first_stage(model: Model, layout: Layout) -> _States:
    """Whole gradients; in bf16 they are added up in fp32, flattened and rounded to what is sent."""
    n, e, mixed = count_parameters(model).total, layout.itemsize, layout.precision == "bf16"
    weights, optimizer, fresh = e * n, 12 * n // layout.world_size, e * n
    summed, bucket = 4 * n if mixed else 0, 0 if mixed else e * min(n, REDUCE_BUCKET)
    # two groups that fit into a bucket are copied together; a group that is larger is sent as it lies
    sent = (6 if n <= REDUCE_BUCKET else 2) * n if mixed else max(bucket, 4 * n // layout.world_size)
    held, carried = weights + optimizer + summed, fresh + bucket if layout.accumulates else 0
    return _States(
        weights=weights,
        gradients=summed + fresh,
        optimizer=optimizer,
        buffers=sent,
        held=held,
        carried=carried,
        begun=max(carried, bucket) + _embedding(model, layout),
        coming=max(carried, fresh + bucket - _embedding(model, layout)),  # whose gradient is the last
        stepping=held + fresh + sent,
    )


def _second_stage(model: Model, layout: Layout) -> _States:
    """A shard of gradients, which fill a bucket that is copied to be reduced: after the backward where it holds all."""
    n, e, mixed = count_parameters(model).total, layout.itemsize, layout.precision == "bf16"
    weights, shard, bucket = e * n, 4 * n // layout.world_size, e * min(n, REDUCE_BUCKET)
    if layout.offload:
        # bf16 gradients are added up here and moved at a step's end, one by one; fp32 ones lie in the bucket
        summed, staged = shard if mixed else 0, e * _largest(model)
        fresh = bucket if mixed or layout.world_size > 1 else staged
        optimizer, carried = 0, summed if layout.accumulates else 0
        held, coming, stepping = weights + staged, carried + bucket + fresh, 0
    else:
        summed, staged, fresh = shard if mixed or layout.accumulates else 0, 0, bucket
        optimizer, carried = 12 * n // layout.world_size, summed if layout.accumulates else 0
        held = weights + optimizer
        reduced = n > REDUCE_BUCKET  # while the backward goes on
        if mixed:  # a gradient that comes out is made wide to be added up
            staged = (e * reduced + 4) * _largest(model)
            coming = summed + bucket if reduced else carried + bucket
            stepping = held + summed + fresh + bucket + staged
        else:  # shards of gradients lie beside the buckets, and are flattened in the end
            fresh = shard + e * _largest(model) if reduced else bucket
            staged = max(0, shard - bucket)
            coming = summed + shard + bucket if reduced else carried + bucket
            stepping = held + max(summed + fresh + bucket, 2 * shard)
    return _States(
        weights=weights,
        gradients=summed + fresh,
        optimizer=optimizer,
        buffers=bucket + staged,
        held=held,
        carried=carried,
        begun=carried + bucket + _embedding(model, layout),
        coming=coming,
        stepping=stepping,
    )


def _third_stage(model: Model, layout: Layout) -> _States:
    """A shard of the weights too, which are gathered where there are other ranks."""
    n, e, w = count_parameters(model).total, layout.itemsize, layout.world_size
    weights, shard, bucket = e * n // w, 4 * n // w, e * min(n, REDUCE_BUCKET)
    optimizer, gathered = 0 if layout.offload else 12 * n // w, e * min(n, GATHERED) if w > 1 else 0
    if layout.offload:
        # of each bucket fp32 numbers are made, in the room of gathered parameters where there are some, and then copies
        copies, summed = 4 * min(n, REDUCE_BUCKET) // w * (1 if w > 1 else 2), 0
        coming = bucket + copies
    else:
        copies, summed = shard if w == 1 else 0, shard  # what one rank has added up is flattened in the end
        coming = bucket  # copied to be reduced; what is gathered ahead is there twice meanwhile, and less
    held = weights + optimizer + summed + bucket + gathered
    alone = held + copies + (bucket if n <= REDUCE_BUCKET else 0)
    return _States(
        weights=weights,
        gradients=summed + bucket,
        optimizer=optimizer,
        buffers=bucket + gathered + copies,
        held=held,
        carried=0,
        begun=_embedding(model, layout),
        coming=coming,
        stepping=alone if w == 1 and not layout.offload else 0,
    )


def _machine(model: Model, layout: Layout) -> int:
    """Of an offloaded optimizer: both moments, fp32 weights and gradients; then what the GPU is sent, or what it has
    sent and is added up."""
    n, e = count_parameters(model).total, layout.itemsize
    shard = 4 * n // layout.world_size
    states = 2 * shard + 2 * _allocated(shard, layout)
    if layout.zero_stage == 3:
        return states + _allocated(shard, layout)
    states += _allocated(e * n // layout.world_size, layout) + e * _largest(model)
    return states + (shard if layout.precision == "fp32" and layout.accumulates else 0)


def _embedding(model: Model, layout: Layout) -> int:
    """Bytes of the gradient of an embedding or a head."""
    return layout.itemsize * model.vocab_size * model.d_model


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
