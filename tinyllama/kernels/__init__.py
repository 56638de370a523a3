"""The ops that the model's blocks run on, by backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import Tensor

from tinyllama.kernels import reference, sdpa


class Ops(NamedTuple):
    """One implementation of every op; `reference` says what each does."""

    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    rope: Callable[[Tensor, Tensor, Tensor, int], Tensor]
    swiglu: Callable[[Tensor], Tensor]
    attention: Callable[[Tensor, Tensor, Tensor], Tensor]
    linear_cross_entropy: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


REFERENCE = Ops(
    rms_norm=reference.rms_norm,
    rope=reference.rope,
    swiglu=reference.swiglu,
    attention=reference.attention,
    linear_cross_entropy=reference.linear_cross_entropy,
)
"""What every other implementation is compared with."""

TORCH = REFERENCE._replace(attention=sdpa.attention)
"""The reference, but for attention: PyTorch's own is faster and does not hold the scores."""


def select(backend: Literal["auto", "torch", "triton"]) -> Ops:
    """The ops of a backend; auto is the fastest there is. Raises ValueError where the backend is not built."""
    if backend == "triton":
        raise ValueError("kernels.backend: 'triton' has no kernels in this version: use kernels=auto or kernels=torch")
    return TORCH
