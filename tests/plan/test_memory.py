"""Planned memory beside what PyTorch allocates: by a model's forward, and in whole steps of the engine."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from itertools import product

import pytest
import torch
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.engine.launched import measured
from tests.engine.live import Live
from tests.engine.memory_steps import SHAPES
from tinyllama import kernels
from tinyllama.config.schema import Model, RunConfig
from tinyllama.engine.settings import settings
from tinyllama.kernels import cross_entropy, target
from tinyllama.model.llama import Llama
from tinyllama.plan import memory as planned
from tinyllama.plan.count import count_parameters
from tinyllama.plan.memory import Layout, memory

LAYOUT = Layout(
    zero_stage=1,
    world_size=1,
    micro_batch=4,
    accumulates=False,
    recompute=False,
    precision="fp32",
    backend="torch",
    masked_sdpa=False,
)


def kept_by_a_forward(shape: Model, layout: Layout) -> int:
    """Bytes that a model's forward keeps, weights aside.

    With no real numbers for the kernels, which would take long in the interpreter: their outputs have shapes all the
    same.
    """
    dtype = torch.bfloat16 if layout.precision == "bf16" else torch.float32
    fake = FakeTensorMode(allow_non_fake_inputs=True) if layout.backend == "triton" else nullcontext()
    ops = kernels.select(layout.backend, attention="sdpa", device="cpu", precision="fp32")
    with fake:
        torch.set_default_dtype(dtype)
        try:
            end = 0 if layout.masked_sdpa else None
            model = Llama(shape, ops=ops, recompute=layout.recompute, document_end=end)
        finally:
            torch.set_default_dtype(torch.float32)
        tokens = torch.zeros(layout.micro_batch, shape.context + 1, dtype=torch.long)
        model(tokens[:, :-1], tokens[:, 1:])  # some tables are made at the first
        with Live() as live:
            loss, _ = model(tokens[:, :-1], tokens[:, 1:])
            assert loss.requires_grad, "there is a backward that it is kept for"
            return live.now - live.before


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", SHAPES)
def test_activations_are_what_the_torch_ops_keep(name: str, precision: str, recompute: bool) -> None:
    compare(SHAPES[name], replace(LAYOUT, precision=precision, recompute=recompute))  # type: ignore[arg-type]


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize(("name", "precision"), [("14m", "fp32"), ("14m", "bf16"), ("1.1b", "bf16")])
def test_activations_are_what_the_kernels_keep(
    config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, name: str, precision: str, recompute: bool
) -> None:
    monkeypatch.setattr(target, "takes", lambda _: True)  # bf16 too: nothing is computed
    layout = replace(LAYOUT, precision=precision, recompute=recompute, backend="triton")  # type: ignore[arg-type]
    compare(config(f"model={name}", "data=slimpajama_starcoder").model, layout)


def compare(shape: Model, layout: Layout) -> None:
    tokens = layout.micro_batch * shape.context
    # log-probabilities by the torch ops; by the kernel, gradients of its inputs
    loss = 4 * shape.vocab_size * tokens
    if layout.backend == "triton":
        loss = layout.itemsize * shape.d_model * tokens + 4 * shape.vocab_size * shape.d_model
    kept = kept_by_a_forward(shape, layout)
    assert memory(shape, layout).activations + loss == pytest.approx(kept, rel=0.02)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_mask_of_documents_is_kept_by_every_layer_and_so_are_copies_of_shared_keys(
    monkeypatch: pytest.MonkeyPatch, backend: str, precision: str, kv_heads: int
) -> None:
    monkeypatch.setattr(target, "takes", lambda _: True)
    shape = replace(SHAPES["mostly activations"], n_kv_heads=kv_heads)
    compare(shape, replace(LAYOUT, backend=backend, precision=precision, masked_sdpa=True))  # type: ignore[arg-type]


def test_a_part_left_out_would_show() -> None:
    shape = SHAPES["wide vocabulary"]
    kept = kept_by_a_forward(shape, LAYOUT)
    loss = 4 * shape.vocab_size * LAYOUT.micro_batch * shape.context
    for other in (replace(shape, d_ff=shape.d_ff * 3 // 4), replace(shape, n_layers=shape.n_layers - 1)):
        assert memory(other, LAYOUT).activations + loss < 0.95 * kept


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_step_of_the_engine_takes_what_was_planned(ranks: int) -> None:
    found = measured("memory_steps.py", ranks=ranks)
    assert len(found) == 58 + 2 * (ranks == 1)
    ratios = {name: one["planned"] / one["most"] for name, one in found.items()}
    bounds = {name: 0.1 if name.endswith("offloaded") else 0.05 for name in found}
    assert {name: ratio for name, ratio in ratios.items() if not abs(ratio - 1) < bounds[name]} == {}
    machine = [one["planned machine"] / one["machine"] for one in found.values() if "machine" in one]
    assert machine == [pytest.approx(1, rel=0.001)] * 4


@pytest.mark.parametrize("ranks", [1, 4, 16])
def test_sharded_states_are_deepspeeds_own_estimate(ranks: int, config: Callable[..., RunConfig]) -> None:
    shape = config("model=1.1b", "data=slimpajama_starcoder").model
    n, layout = count_parameters(shape).total, replace(LAYOUT, precision="bf16", world_size=ranks)
    _, second = estimate_zero2_model_states_mem_needs(n, num_gpus_per_node=ranks, cpu_offload=False)
    _, third, layer = estimate_zero3_model_states_mem_needs(
        n, 0, num_gpus_per_node=ranks, cpu_offload=False, cpu_offload_params=False
    )
    # it counts a shard of gradients in fp32, and at the second stage one in bf16: those come out in buckets here
    for stage, estimate, counted in ((2, second, 2 + 4), (3, third - layer, 4)):
        ours = memory(shape, replace(layout, zero_stage=stage))
        assert ours.weights + ours.optimizer + counted * n / ranks == pytest.approx(estimate, rel=1e-6)
        assert ours.gradients - 2 * planned.REDUCE_BUCKET == pytest.approx(4 * n / ranks, rel=1e-6)


@pytest.mark.parametrize("ranks", [1, 4])
def test_an_offloaded_optimizer_is_deepspeeds_own_estimate(ranks: int, config: Callable[..., RunConfig]) -> None:
    shape = config("model=1.1b", "data=slimpajama_starcoder").model
    n = count_parameters(shape).total
    layout = replace(LAYOUT, precision="bf16", world_size=ranks, accumulates=True, offload=True)
    machine, gpu = estimate_zero2_model_states_mem_needs(n, num_gpus_per_node=ranks, additional_buffer_factor=1.0)
    ours = memory(shape, replace(layout, zero_stage=2))
    assert (ours.weights, ours.optimizer) == (gpu, 0)
    # beside fp32 weights, gradients and moments there are the weights that the GPU is sent, and one gradient
    sent = 2 * n // ranks + 2 * shape.d_model * shape.vocab_size
    assert ranks * (ours.machine - sent) == pytest.approx(machine, rel=1e-6)
    machine, gpu, layer = estimate_zero3_model_states_mem_needs(
        n, 0, num_gpus_per_node=ranks, cpu_offload_params=False, additional_buffer_factor=1.0
    )
    ours = memory(shape, replace(layout, zero_stage=3))
    assert (ours.weights, ours.optimizer) == (gpu - layer, 0)
    # gradients are added up beside those that the optimizer takes
    assert ranks * (ours.machine - 4 * n // ranks) == pytest.approx(machine, rel=1e-6)
    assert memory(shape, replace(layout, zero_stage=2, offload=False)).machine == 0


@pytest.mark.parametrize("name", ["14m", "300m", "1.1b"])
def test_what_is_shown_adds_up_to_the_most_at_least(config: Callable[..., RunConfig], name: str) -> None:
    shape = config(f"model={name}", "data=slimpajama_starcoder").model
    short = {}
    for stage, ranks, precision, recompute, accumulates, offload in product(
        (1, 2, 3), (1, 2, 8), ("fp32", "bf16"), (False, True), (False, True), (False, True)
    ):
        if offload and stage == 1:
            continue
        how = replace(LAYOUT, zero_stage=stage, world_size=ranks, precision=precision, recompute=recompute)  # type: ignore[arg-type]
        needed = memory(shape, replace(how, accumulates=accumulates, offload=offload, backend="triton"))
        parts = needed.weights + needed.gradients + needed.optimizer + needed.buffers
        parts += needed.activations + needed.recomputed + needed.logits
        if needed.peak > parts:
            short[stage, ranks, precision, recompute, accumulates, offload] = needed.peak / parts
    assert short == {}


def test_constants_are_what_the_code_uses(config: Callable[..., RunConfig]) -> None:
    told = settings(config().parallelism, parameters=10**12, precision="bf16", accumulation=1, clip=1.0)
    assert told["zero_optimization"]["reduce_bucket_size"] == planned.REDUCE_BUCKET
    assert told["zero_optimization"]["stage3_max_live_parameters"] == planned.GATHERED
    assert cross_entropy.LOGITS_BYTES == planned.LOGITS_BYTES
