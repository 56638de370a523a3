"""Which implementation a backend is."""

from __future__ import annotations

from functools import partial

import pytest

from tests.kernels.twins import DEVICE
from tinyllama import kernels
from tinyllama.kernels import attention, cross_entropy, reference, rmsnorm, rope, sdpa, swiglu


def test_a_cpu_has_pytorch_and_a_gpu_has_triton() -> None:
    assert kernels.select("auto", attention="sdpa", device="cpu", precision="fp32") is kernels.TORCH
    assert kernels.select("auto", attention="sdpa", device="cuda", precision="bf16") == kernels.Ops(
        linear=reference.linear,
        rms_norm=rmsnorm.rms_norm,
        add_rms_norm=rmsnorm.add_rms_norm,
        rope=rope.rope,
        swiglu=swiglu.swiglu,
        attention=sdpa.attention,
        linear_cross_entropy=cross_entropy.linear_cross_entropy,
    )


def test_what_is_asked_for_is_what_is_there() -> None:
    assert kernels.select("torch", attention="sdpa", device="cuda", precision="bf16") is kernels.TORCH
    assert (
        kernels.select("triton", attention="triton", device=DEVICE, precision="fp32").attention is attention.attention
    )
    assert kernels.TORCH.attention is sdpa.attention
    assert all(op is getattr(reference, name) for name, op in kernels.REFERENCE._asdict().items())


def test_auto_does_without_triton_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    assert kernels.select("auto", attention="sdpa", device="cuda", precision="bf16") is kernels.TORCH


def test_bf16_takes_what_suits_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    select = partial(kernels.select, "auto", attention="sdpa")
    for capability, ops in (("AVX2", kernels.WIDENED), ("DEFAULT", kernels.WIDENED), ("AVX512", kernels.BLOCKED)):
        monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda capability=capability: capability)
        assert select(device="cpu", precision="bf16") is ops
        assert select(device="cpu", precision="fp32") is kernels.TORCH
        assert select(device="cuda", precision="bf16") not in (kernels.WIDENED, kernels.BLOCKED)
