"""Compiling kernels for GPUs that are not here: run as a program, in a process of its own without the interpreter.

The host functions are called as they are, on tensors without storage. Where they would launch a kernel it is compiled
for the target instead, so that what is looked at is what a GPU would be given: dtypes, strides, tile sizes, warps.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from tinyllama.kernels import attention, attention_backward, cross_entropy, rmsnorm, rope, swiglu, target
from tinyllama.kernels.target import Target

TARGETS = {
    "sm_80": Target(arch=80, multiprocessors=108, shared_bytes=166_912),
    "sm_90": Target(arch=90, multiprocessors=132, shared_bytes=232_448),
    "sm_100": Target(arch=100, multiprocessors=148, shared_bytes=232_448),
}
"""A100, H100 and H200, B200."""

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


@dataclass(frozen=True)
class Compiled:
    """What came out for one launch."""

    name: str
    shared: int
    stack: int
    registers: int


def resources(cubin: bytes) -> dict[str, int]:
    """What a compiled kernel uses, as the artefact itself says: REG, STACK and others."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        command = [CUOBJDUMP, "--dump-resource-usage", file.name]
        dumped = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {key: int(value) for key, value in re.findall(r"\b([A-Z]+):(\d+)", dumped)}


@contextmanager
def launches(on: Target) -> Iterator[list[Compiled]]:
    """Within, every launch is a compilation for this target, listed in what this yields."""
    done: list[Compiled] = []
    run: Callable[..., Any] = JITFunction.run

    def compile_only(self: JITFunction[Any], *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        self.device_caches.clear()  # they know devices apart, and there is but one here
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        usage = resources(kernel.asm["cubin"])
        name = f"{self.fn.__module__.rpartition('.')[2]}.{self.fn.__name__}"
        done.append(Compiled(name, kernel.metadata.shared, usage["STACK"], usage["REG"]))
        return kernel

    nowhere = SimpleNamespace(
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", on.arch, 32),
    )
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as cache:
        patch.setenv("TRITON_CACHE_DIR", cache)
        patch.setattr(triton.runtime.driver, "_active", nowhere)
        patch.setattr(JITFunction, "run", compile_only)
        patch.setattr(target, "of", lambda device: on)
        yield done


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What the ops are given: sequences of a model's width, heads and vocabulary."""

    d: int
    h: int
    k: int
    c: int
    f: int
    b: int = 8
    t: int = 2048
    v: int = 32000


MODELS = {"1.1b": Shape(d=2048, h=32, k=4, c=64, f=5632), "120m": Shape(d=768, h=12, k=1, c=64, f=2048)}
OTHERS = {
    "heads of 16": Shape(d=64, h=4, k=2, c=16, f=172, t=300, v=4096),
    "heads of 32": Shape(d=512, h=16, k=16, c=32, f=1408, t=2000),
    "heads of 128": Shape(d=2048, h=16, k=8, c=128, f=5632, t=4096),
}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def attend(shape: Shape, dtype: torch.dtype, *, documents: bool) -> None:
    """Attention, both ways."""
    b, t = shape.b, shape.t
    q, k = (torch.empty(b, t, heads, shape.c, dtype=dtype, device="meta") for heads in (shape.h, shape.k))
    starts = torch.empty(b, t, dtype=torch.int32, device="meta") if documents else None
    out, lse = attention._forward(q, k, k, starts)
    attention_backward.backward(out, q, k, k, starts, out, lse)


def others(shape: Shape, dtype: torch.dtype) -> None:
    """Every other op, both ways."""
    b, t, n = shape.b, shape.t, shape.h + 2 * shape.k
    x, weight = (torch.empty(*size, dtype=dtype, device="meta") for size in ((b, t, shape.d), (shape.d,)))
    for residual in (None, x):
        y, total, rstd = rmsnorm._forward(x, residual, weight, 1e-5)
        rmsnorm._backward(y, residual, total, weight, rstd)
    packed = torch.empty(b, t, n, shape.c, dtype=dtype, device="meta")
    cos = torch.empty(t, shape.c // 2, device="meta")
    rope._backward(*rope._forward(packed, cos, cos, shape.k), cos, cos)
    gate_up = torch.empty(b, t, 2 * shape.f, dtype=dtype, device="meta")
    swiglu._backward(swiglu._forward(gate_up), gate_up)
    head = torch.empty(shape.v, shape.d, dtype=dtype, device="meta")
    targets = torch.empty(t, dtype=torch.int64, device="meta")
    for gradients in (False, True):
        cross_entropy._forward(x[0], head, targets, gradients)


def main(on: str, which: str) -> None:
    """A line of JSON for each kernel compiled for a target: the 1.1b model's alone, or all."""
    shapes = MODELS | OTHERS if which == "all" else {"1.1b": MODELS["1.1b"]}
    for name, shape in shapes.items():
        for told, dtype in DTYPES.items():
            if dtype != torch.bfloat16 and (which != "all" or name == "120m"):
                continue
            with launches(TARGETS[on]) as done:
                others(shape, dtype)
                # with documents there is all that there is without
                for documents in (True, False) if name in MODELS and dtype == torch.bfloat16 else (True,):
                    attend(shape, dtype, documents=documents)
            for compiled in done:
                print(json.dumps({"shape": name, "dtype": told, **asdict(compiled)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
