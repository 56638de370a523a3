"""What Triton compiles and launches a kernel for: a GPU, or the interpreter that stands in for one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
from torch import Tensor

# what the kernels are tested with; triton 3.9 warns where it is left open, and 3.10 turns it off
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether kernels are interpreted, on the CPU; Triton reads this once, when it is imported."""

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What the kernels take. Others are the reference's."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A GPU, as far as launch parameters depend on it."""

    arch: int
    """Compute capability, 90 for 9.0; 0 is the interpreter."""
    multiprocessors: int
    """Streaming multiprocessors."""
    shared_bytes: int
    """Most shared memory that one program may have."""


INTERPRETER = Target(arch=0, multiprocessors=2, shared_bytes=0)


@lru_cache
def of(device: torch.device) -> Target:
    """The target that a device is."""
    if INTERPRETED:
        return INTERPRETER
    major, minor = torch.cuda.get_device_capability(device)
    properties = triton.runtime.driver.active.utils.get_device_properties(device.index or 0)
    return Target(
        arch=10 * major + minor,
        multiprocessors=properties["multiprocessor_count"],
        shared_bytes=properties["max_shared_mem"],
    )


def takes(x: Tensor) -> bool:
    """Whether the kernels work on this tensor; if not, the reference does.

    Raises ValueError for bf16 in the interpreter, whose arithmetic is wrong there without a word (triton 3.9).
    """
    if x.dtype not in DTYPES or not (x.is_cuda or INTERPRETED):
        return False
    if INTERPRETED and x.dtype == torch.bfloat16:
        raise ValueError("bfloat16 is not interpreted rightly: use float32, or a GPU without TRITON_INTERPRET")
    return True


def rows(x: Tensor) -> Tensor:
    """x as [rows, width] with its last dimension dense, copied only where its strides do not allow that."""
    return dense(x.reshape(-1, x.shape[-1]))


def dense(x: Tensor) -> Tensor:
    """x with its last dimension dense, copied only where it is not."""
    return x if x.stride(-1) == 1 else x.contiguous()
