"""An op at a shape, with its inputs, and everyone who can do it: our kernels, PyTorch's ways, Liger-Kernel.

Tensors are laid out as in `tinyllama.kernels.reference`. Whoever wants them otherwise is given them so beforehand.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks.measure import Shape
from tinyllama.kernels import REFERENCE, Ops, sdpa
from tinyllama.kernels.reference import IGNORED

EPS = 1e-5
DOCUMENTS = 4
"""Documents in a sequence, on average."""

Call = Callable[..., Any]


class MissingError(Exception):
    """What is not here, and why not."""


def as_given(xs: Sequence[Tensor]) -> list[Tensor]:
    """The op's own layout."""
    return list(xs)


@dataclass(frozen=True, kw_only=True)
class Peer:
    """An implementation of a case's op."""

    run: Call
    native: Callable[[Sequence[Tensor]], list[Tensor]] = as_given
    """Lays out inputs, or their gradients, as it has them."""
    does: str | None = None
    """What it does in terms of `measure.least_bytes`, where that is less than the op."""
    outputs: int | None = None
    """How many of the op's outputs it has, from the first; None is all."""
    overwrites: bool = False
    """Whether its inputs, or its outputs' gradients, are something else afterwards."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """An op at a shape. Inputs want gradients; fixed ones, which follow them in a call, do not."""

    op: str
    shape: Shape
    inputs: list[Tensor]
    fixed: list[Tensor]
    upstreams: list[Tensor]

    @property
    def is_sequences(self) -> bool:
        """Whether all tensors are of sequences that know nothing of each other."""
        return self.op.endswith("attention")

    def call(self, ops: Ops) -> Call:
        """The op, of these ops, as a function of the inputs and the fixed ones."""
        return call(self.op, self.shape, ops)

    def starts(self) -> Tensor:
        """Where each position's document starts, for attention."""
        none = torch.zeros(self.shape.batch, self.shape.context, dtype=torch.int32)
        return self.fixed[0] if self.fixed else none


class Runner:
    """A peer at work on a case, with tensors of its own where it would spoil the case's."""

    def __init__(self, case: Case, peer: Peer) -> None:
        self._peer, self._fixed = peer, case.fixed
        self._given = [*peer.native(case.inputs), *case.upstreams]
        mine = [x.detach() for x in self._given]
        if peer.overwrites:
            mine = [x.clone(memory_format=torch.contiguous_format) for x in mine]
        n_inputs = len(mine) - len(case.upstreams)
        self._inputs, self._upstreams = [x.requires_grad_() for x in mine[:n_inputs]], mine[n_inputs:]

    def restore(self) -> None:
        """Undo what the last run did to its inputs, so that none works on another's results."""
        if self._peer.overwrites:
            with torch.no_grad():
                for mine, given in zip((*self._inputs, *self._upstreams), self._given, strict=True):
                    mine.copy_(given)

    def forward(self) -> list[Tensor]:
        """The outputs that have gradients."""
        return floating(self._peer.run(*self._inputs, *self._fixed))

    def backward(self, outputs: list[Tensor]) -> list[Tensor]:
        """The gradients of the inputs; outputs are freed by it."""
        return list(torch.autograd.grad(outputs, self._inputs, self._upstreams[: len(outputs)]))

    def both(self) -> None:
        """Forward and backward."""
        self.backward(self.forward())

    def expected(self, outputs: list[Tensor], gradients: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """What the case expects, laid out as this peer has it."""
        return outputs[: self._peer.outputs], self._peer.native(gradients)


def call(op: str, shape: Shape, ops: Ops) -> Call:
    """An op of these ops, as a function of tensors alone."""
    if op == "rms_norm":
        return lambda x, weight: ops.rms_norm(x, weight, EPS)
    if op == "add_rms_norm":
        return lambda x, residual, weight: ops.add_rms_norm(x, residual, weight, EPS)
    if op == "rope":
        return lambda qkv, cos, sin: ops.rope(qkv, cos, sin, shape.n_kv_heads)
    plain: Call = getattr(ops, op.removeprefix("document_"))
    return lambda *tensors: plain(*tensors)


def floating(outputs: Any) -> list[Tensor]:
    """Those outputs that can have a gradient."""
    return [out for out in (outputs if isinstance(outputs, tuple) else (outputs,)) if out.is_floating_point()]


def document_starts(shape: Shape, device: str, generator: torch.Generator) -> Tensor:
    """Documents that begin anywhere, each sequence's first one at 0; as `reference.visible` wants them."""
    size = (shape.batch, shape.context)
    begins = torch.rand(size, device=device, generator=generator) * shape.context < DOCUMENTS - 1
    here = torch.arange(shape.context, device=device, dtype=torch.int32).expand(size)
    return torch.where(begins, here, 0).cummax(1).values.int()


def make(op: str, shape: Shape, *, device: str, dtype: torch.dtype, seed: int = 0) -> Case:
    """Normal values for all, the same each time on the same kind of device; one in 64 targets counts in no loss."""
    generator = torch.Generator(device).manual_seed(seed)

    def draw(*size: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(size, generator=generator, device=device, dtype=dtype)

    b, t, d, c = shape.batch, shape.context, shape.d_model, shape.head_size
    fixed: list[Tensor] = []
    if op.endswith("rms_norm"):
        inputs = [draw(b, t, d) for _ in range(2 if op.startswith("add") else 1)] + [draw(d)]
    elif op == "rope":
        inputs = [draw(b, t, shape.n_heads + 2 * shape.n_kv_heads, c)]
        angles = torch.arange(t, device=device)[:, None] * 1e4 ** (-torch.arange(0, c, 2, device=device) / c)
        fixed = [angles.cos(), angles.sin()]
    elif op == "swiglu":
        inputs = [draw(b, t, 2 * shape.d_ff)]
    elif op == "linear_cross_entropy":
        inputs = [draw(b * t, d), draw(shape.vocab, d) / d**0.5]
        targets = torch.randint(shape.vocab, (b * t,), generator=generator, device=device)
        fixed = [targets.masked_fill(torch.arange(b * t, device=device) % 64 == 63, IGNORED)]
    else:
        inputs = [draw(b, t, heads, c) for heads in (shape.n_heads, shape.n_kv_heads, shape.n_kv_heads)]
        fixed = [document_starts(shape, device, generator)] if op.startswith("document") else []
    outputs = floating(call(op, shape, REFERENCE)(*(x.to("meta") for x in (*inputs, *fixed))))
    # a mean is differentiated as it is; what is upstream of anything else is anything
    upstreams = [
        draw(*out.shape, dtype=out.dtype) if out.ndim else torch.ones((), dtype=out.dtype, device=device)
        for out in outputs
    ]
    return Case(op=op, shape=shape, inputs=inputs, fixed=fixed, upstreams=upstreams)


def peers(case: Case, ops: Ops, *, backend: str) -> dict[str, Callable[[], Peer]]:
    """Everyone who can do it, ours first; each is made when it is called, or raises what it lacks.

    backend: what torch.compile hands its graphs to.
    """
    reference = case.call(REFERENCE)
    everyone: dict[str, Callable[[], Peer]] = {
        "tinyllama": lambda: Peer(run=case.call(ops)),
        "eager": lambda: Peer(run=reference),
        "compile": lambda: Peer(run=torch.compile(reference, dynamic=False, backend=backend)),
    }
    if case.op == "attention":
        everyone |= {
            "sdpa flash": lambda: Peer(run=_sdpa(SDPBackend.FLASH_ATTENTION)),
            "sdpa cudnn": lambda: Peer(run=_sdpa(SDPBackend.CUDNN_ATTENTION)),
            "sdpa efficient": lambda: Peer(run=_sdpa(SDPBackend.EFFICIENT_ATTENTION)),
        }
    elif case.op == "document_attention":
        everyone |= {
            "sdpa masked": lambda: Peer(run=sdpa.attention),
            "flex": lambda: Peer(run=_flex(case, backend)),
        }
    else:
        everyone["liger"] = lambda: _liger(case)
    return everyone


def _sdpa(backend: SDPBackend) -> Call:
    def run(*qkv: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return sdpa.attention(*qkv)

    return run


def _flex(case: Case, backend: str) -> Call:
    [starts] = case.fixed
    batch, context = starts.shape

    def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:  # noqa: ARG001
        return (i >= j) & (j >= starts[b, i])

    # made once for all layers of a batch, and so not timed
    mask = create_block_mask(seen, batch, None, context, context, device=str(starts.device))
    flex: Call = torch.compile(flex_attention, dynamic=False, backend=backend)

    def run(q: Tensor, k: Tensor, v: Tensor, _: Tensor) -> Tensor:
        out: Tensor = flex(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), block_mask=mask, enable_gqa=True)
        return out.transpose(1, 2)

    return run


def _liger_function(file: str, name: str) -> Call:
    try:
        importlib.import_module("liger_kernel")
    except ImportError:
        raise MissingError("not installed") from None
    function: Call = getattr(importlib.import_module(f"liger_kernel.ops.{file}"), name).apply
    return function


def _liger(case: Case) -> Peer:
    """Liger-Kernel's functions as of 0.8.5, each as its models call it, but that no gradient is written over another.

    Its tensors are its own: queries, keys and values apart, gate and up apart.
    """
    kv = case.shape.n_kv_heads
    if case.op == "rms_norm":
        norm = _liger_function("rms_norm", "LigerRMSNormFunction")
        return Peer(run=lambda x, weight: norm(x, weight, EPS, 0.0, "llama", False))
    if case.op == "add_rms_norm":
        fused = _liger_function("fused_add_rms_norm", "LigerFusedAddRMSNormFunction")
        return Peer(run=lambda x, residual, weight: fused(x, residual, weight, EPS, 0.0, "llama", False))
    if case.op == "swiglu":
        product = _liger_function("swiglu", "LigerSiLUMulFunction")
        return Peer(run=product, native=lambda xs: list(xs[0].chunk(2, dim=-1)), overwrites=True)
    if case.op == "linear_cross_entropy":
        loss = _liger_function("fused_linear_cross_entropy", "LigerFusedLinearCrossEntropyFunction")
        return Peer(run=lambda *tensors: loss(*tensors)[0])
    turn = _liger_function("rope", "LigerRopeFunction")
    # its tables repeat themselves for a head's second half
    cos, sin = (torch.cat((table, table), dim=-1)[None] for table in case.fixed)

    def turned(q: Tensor, k: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.transpose(1, 2) for x in turn(q.transpose(1, 2), k.transpose(1, 2), cos, sin))

    def without_values(xs: Sequence[Tensor]) -> list[Tensor]:
        return [xs[0][:, :, : -2 * kv], xs[0][:, :, -2 * kv : -kv]]

    return Peer(run=turned, native=without_values, does="rope_in_place", outputs=2, overwrites=True)
