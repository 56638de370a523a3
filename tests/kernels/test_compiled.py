"""Every kernel compiled for the GPUs of three generations, none of which has to be there."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import triton

from tests.kernels.compiled import DTYPES, MODELS, OTHERS, TARGETS
from tinyllama import kernels

ROOT = Path(__file__).parents[2]

Record = dict[str, str | int]

MOST_STACK = 0 if triton.__version__ >= "3.9" else 24
"""Bytes a model's kernel may spill: triton 3.6 leaves a few registers over where 3.9, which tiles were chosen with,
leaves none (attention's keys with documents, on sm_90)."""


def compiled(*program: str) -> list[Record]:
    """What a program, in a process without the interpreter, tells line by line."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *program], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def faults(records: list[Record], on: str) -> list[Record]:
    """Kernels that would not start for want of shared memory, and those of a model in training that spill."""
    limit = TARGETS[on].shared_bytes
    return [
        record
        for record in records
        if int(record["shared"]) > limit
        or (int(record["stack"]) > MOST_STACK and record["dtype"] == "bf16" and record["shape"] in MODELS)
    ]


def every_kernel() -> set[str]:
    """All kernels that there are, as module.name."""
    modules = [
        importlib.import_module(f"{kernels.__name__}.{module.name}")
        for module in pkgutil.iter_modules(kernels.__path__)
    ]
    return {
        f"{module.__name__.rpartition('.')[2]}.{name}"
        for module in modules
        for name, value in vars(module).items()
        if name.endswith("kernel") and hasattr(value, "fn")
    }


def test_the_1_1b_models_kernels_compile_for_an_h100() -> None:
    records = compiled("-m", "tests.kernels.compiled", "sm_90", "1.1b")
    assert {record["name"] for record in records} == every_kernel()
    assert faults(records, "sm_90") == []


@pytest.mark.compiled
@pytest.mark.parametrize("on", TARGETS)
def test_every_kernel_compiles_in_every_dtype_and_head_size(on: str) -> None:
    records = compiled("-m", "tests.kernels.compiled", on, "all")
    seen = {(record["name"], record["dtype"], record["shape"]) for record in records}
    shapes = {name: DTYPES if name != "120m" else ("bf16",) for name in (*MODELS, *OTHERS)}
    assert seen == {
        (kernel, dtype, shape) for kernel in every_kernel() for shape, dtypes in shapes.items() for dtype in dtypes
    }
    assert faults(records, on) == []


TOO_LARGE = """
import json, torch
from dataclasses import asdict
from tests.kernels.compiled import MODELS, TARGETS, launches
from tinyllama.kernels import attention
attention.launch = lambda *_, **__: attention.Launch(128, {block_n}, {warps}, {stages})
with launches(TARGETS["sm_80"]) as done:
    q = torch.empty(1, 256, 4, 64, dtype=torch.bfloat16, device="meta")
    attention._forward(q, q, q, None)
print(json.dumps({{"shape": "1.1b", "dtype": "bf16", **asdict(done[0])}}))
"""


def test_a_tile_too_large_is_seen() -> None:
    [spilling] = compiled("-c", TOO_LARGE.format(block_n=64, warps=2, stages=2))
    [filling] = compiled("-c", TOO_LARGE.format(block_n=64, warps=8, stages=12))
    assert int(spilling["stack"]) > MOST_STACK
    assert int(filling["shared"]) > TARGETS["sm_80"].shared_bytes
    assert filling["stack"] == 0
    for record in (spilling, filling):
        assert faults([record], "sm_80") == [record]
    assert faults([spilling | {"shape": "heads of 32"}], "sm_80") == []
