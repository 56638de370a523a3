"""What whole steps of the engine allocate, beside the plan's figure: `torchrun ... memory_steps.py OUT`."""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Literal

import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from torch.profiler import ProfilerActivity, profile

from tests.engine.live import Live
from tests.engine.ranks import ADAMW, LAYOUT
from tinyllama import kernels
from tinyllama.config.schema import Model
from tinyllama.engine import settings
from tinyllama.engine.distributed import Ranks, leave, meet, use_device
from tinyllama.engine.zero import Engine, TrainState, import_deepspeed
from tinyllama.model.init import initial_weights
from tinyllama.model.llama import Llama
from tinyllama.plan import memory as planned
from tinyllama.plan.count import count_parameters
from tinyllama.plan.memory import Layout, memory


def shape(*, vocab_size: int, context: int, d_model: int, n_layers: int, n_heads: int, d_ff: int) -> Model:
    return Model(
        name="test",
        vocab_size=vocab_size,
        context=context,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_heads // 2,
        d_ff=d_ff,
        rope_theta=1e4,
        norm_eps=1e-5,
    )


SHAPES = {
    "mostly states": shape(vocab_size=512, context=16, d_model=256, n_layers=4, n_heads=8, d_ff=688),
    "mostly activations": shape(vocab_size=256, context=256, d_model=64, n_layers=6, n_heads=4, d_ff=172),
    "between": shape(vocab_size=1024, context=128, d_model=128, n_layers=6, n_heads=4, d_ff=344),
    "wide vocabulary": shape(vocab_size=4096, context=64, d_model=96, n_layers=3, n_heads=6, d_ff=256),
}
INTERPRETED = shape(vocab_size=256, context=64, d_model=64, n_layers=4, n_heads=2, d_ff=172)
"""For the kernels, which take their time."""


STEPS = {1: 1, 2: 8}
"""By ranks. The least of so many is taken: the backend's threads, at times, let go late of what they have sent."""


def kept_by_the_machine(engine: Engine) -> int:
    """Bytes of what DeepSpeed puts into the machine's memory: by name, as on a CPU all tensors lie there."""
    optimizer = engine._engine.optimizer
    shards = getattr(optimizer, "fp32_partitioned_groups_flat", None) or optimizer.single_partition_of_fp32_groups
    tensors = [tensor for shard in shards for tensor in (shard, shard.grad, *optimizer.optimizer.state[shard].values())]
    if hasattr(optimizer, "accumulated_grads_in_cpu"):
        tensors += [
            *optimizer.param_buffer_of_bit16_for_cpu_offload_groups,
            *optimizer.accumulated_grads_in_cpu.values(),
        ]
        tensors.append(optimizer.temp_grad_buffer_for_cpu_offload)
    else:
        tensors.append(optimizer.grad_partitions_flat_buffer)
    return sum({tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def most_of_a_step(engine: Engine, tokens: torch.Tensor, live: Live) -> int:
    live.most = live.now
    engine.step(tokens, lr=1e-3)
    return live.most


def most_with_what_kernels_take(engine: Engine, tokens: torch.Tensor) -> int:
    """The same by PyTorch's allocator, which sees what is allocated inside an op as well."""
    before, now = Live().before, 0
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        engine.step(tokens, lr=1e-3)
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    totals = [now := now + event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return before + max(totals)


def step(
    model_shape: Model,
    ranks: Ranks,
    *,
    stage: Literal[1, 2, 3],
    precision: Literal["fp32", "bf16"],
    recompute: bool,
    accumulation: int = 2,
    offload: Literal["none", "optimizer"] = "none",
    backend: Literal["torch", "triton"] = "torch",
) -> dict[str, float]:
    """The most that a step allocates, of so many micro-batches."""
    gc.collect()  # the engine before goes in two rounds, and Live makes the second
    before = Live().before
    ops = kernels.select(backend, attention="triton", device="cpu", precision="fp32")  # of bf16 the reference's, too
    model = Llama(model_shape, ops=ops, recompute=recompute)
    engine = Engine(
        model,
        state=TrainState.fresh(initial_weights(model, seed=1)),
        parallelism=replace(LAYOUT, zero_stage=stage, offload=offload),
        optimizer=ADAMW,
        precision=precision,
        accumulation=accumulation,
        ranks=ranks,
        device=torch.device("cpu"),
    )
    tokens = torch.zeros(accumulation, int(LAYOUT.micro_batch), model_shape.context + 1, dtype=torch.long)
    engine.step(tokens, lr=1e-3)
    if backend == "triton":
        most = most_with_what_kernels_take(engine, tokens) - before
    else:
        with Live() as live:
            most = min(most_of_a_step(engine, tokens, live) for _ in range(STEPS[ranks.world_size])) - before
    layout = Layout(
        zero_stage=stage,
        offload=offload == "optimizer",
        world_size=ranks.world_size,
        micro_batch=int(LAYOUT.micro_batch),
        accumulates=accumulation > 1,
        recompute=recompute,
        precision=precision,
        backend=backend,
        masked_sdpa=False,
    )
    needed = memory(model_shape, layout)
    found = {"most": most, "planned": needed.peak}
    if layout.offload:
        machine = kept_by_the_machine(engine)
        found |= {"most": found["most"] - machine, "machine": machine, "planned machine": needed.machine}
        if stage == 3:  # a GPU is sent back what was added up for it; a CPU has it
            found["planned"] -= 4 * count_parameters(model_shape).total // ranks.world_size
    return found


def reduce_at_most(numbers: int) -> None:
    """As of a model larger than a bucket."""
    settings.REDUCE_BUCKET = planned.REDUCE_BUCKET = numbers
    at_once = DeepSpeedEngine.buffered_allreduce_fallback  # of the first stage in bf16, which asks no configuration
    DeepSpeedEngine.buffered_allreduce_fallback = lambda self, grads=None, elements_per_buffer=0: at_once(
        self, grads=grads, elements_per_buffer=numbers
    )


def main() -> None:
    import_deepspeed("cpu")
    gc.freeze()  # what is imported holds no tensors, and need not be looked through again and again
    ranks = Ranks.from_environment()
    meet(use_device("cpu", ranks, threads=1, ranks_here=1), patience=60)
    stages: tuple[Literal[1, 2, 3], ...] = (1, 2, 3)
    precisions: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")
    found = {
        f"{name}, stage {stage}, {precision}, {'recomputed' if recompute else 'kept'}": step(
            SHAPES[name],
            ranks,
            stage=stage,
            precision=precision,
            recompute=recompute,
            # each number of micro-batches with half of the shapes, whether kept or recomputed
            accumulation=1 if recompute == (number % 2 == 0) else 2,
        )
        for (number, name), recompute, stage, precision in product(enumerate(SHAPES), (False, True), stages, precisions)
    }
    large = SHAPES["mostly states"]
    for stage, precision in product(stages[1:], precisions):
        found[f"stage {stage}, {precision}, offloaded"] = step(
            large, ranks, stage=stage, precision=precision, recompute=False, offload="optimizer"
        )
    for recompute in (False, True) if ranks.world_size == 1 else ():
        found[f"on kernels, {'recomputed' if recompute else 'kept'}"] = step(
            INTERPRETED, ranks, stage=1, precision="fp32", recompute=recompute, backend="triton"
        )
    reduce_at_most(count_parameters(large).total // 5 * 2)
    for stage, precision in product(stages, precisions):
        found[f"stage {stage}, {precision}, in three buckets"] = step(
            large, ranks, stage=stage, precision=precision, recompute=False
        )
    if ranks.is_first:
        Path(sys.argv[1]).write_text(json.dumps(found, indent=2))
    leave()


if __name__ == "__main__":
    main()
