"""The ops that the model's blocks run on, by backend."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from tinyllama.kernels import blocked, reference, sdpa, widened


class _Attention(Protocol):
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None = None, /) -> Tensor: ...


class Ops(NamedTuple):
    """One implementation of every op; `reference` says what each does."""

    linear: Callable[[Tensor, Tensor], Tensor]
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
    rope: Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor, Tensor]]
    swiglu: Callable[[Tensor], Tensor]
    attention: _Attention
    linear_cross_entropy: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


REFERENCE = Ops(
    linear=reference.linear,
    rms_norm=reference.rms_norm,
    add_rms_norm=reference.add_rms_norm,
    rope=reference.rope,
    swiglu=reference.swiglu,
    attention=reference.attention,
    linear_cross_entropy=reference.linear_cross_entropy,
)
"""What every other implementation is compared with."""

TORCH = REFERENCE._replace(attention=sdpa.attention)
"""The reference, but for attention: PyTorch's own is faster and does not hold the scores."""

WIDENED = TORCH._replace(
    linear=widened.linear, attention=widened.attention, linear_cross_entropy=widened.linear_cross_entropy
)
"""For bf16 on a CPU that has no instructions for it."""

BLOCKED = TORCH._replace(attention=blocked.attention)
"""For bf16 on a CPU with AVX512."""

_WITHOUT_BF16 = ("AVX2", "DEFAULT")


def select(
    backend: Literal["auto", "torch", "triton"],
    *,
    attention: Literal["triton", "sdpa"],
    device: Literal["cpu", "cuda"],
    precision: Literal["fp32", "bf16"],
) -> Ops:
    """The ops of a backend on a kind of device, with Triton's or PyTorch's attention beside the Triton kernels."""
    if backend == "auto":
        backend = "triton" if device == "cuda" and find_spec("triton") else "torch"
    if backend == "torch":
        if device == "cuda" or precision == "fp32":
            return TORCH
        return WIDENED if torch.backends.cpu.get_cpu_capability() in _WITHOUT_BF16 else BLOCKED
    # slow to import, and not there on every system
    from tinyllama.kernels import attention as flash
    from tinyllama.kernels import cross_entropy, rmsnorm, rope, swiglu

    return Ops(
        linear=reference.linear,
        rms_norm=rmsnorm.rms_norm,
        add_rms_norm=rmsnorm.add_rms_norm,
        rope=rope.rope,
        swiglu=swiglu.swiglu,
        attention=flash.attention if attention == "triton" else sdpa.attention,
        linear_cross_entropy=cross_entropy.linear_cross_entropy,
    )
