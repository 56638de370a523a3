"""DeepSpeed's configuration of a run."""

from __future__ import annotations

from typing import Any

from tinyllama.config.schema import Parallelism

REDUCE_BUCKET = 500_000_000
"""Gradients that ZeRO reduces at once, at most."""
GATHERED = 1_000_000_000
"""Parameters that its third stage holds whole at once, at most."""


def settings(
    parallelism: Parallelism, *, parameters: int, precision: str, accumulation: int, clip: float
) -> dict[str, Any]:
    """DeepSpeed's configuration. Whatever it would default to and matters is written out."""
    # a bucket is allocated whole, whatever the model: DeepSpeed's own size would be a gigabyte for the smallest
    zero: dict[str, Any] = {
        "stage": parallelism.zero_stage,
        "reduce_bucket_size": min(parameters, REDUCE_BUCKET),
        "stage3_prefetch_bucket_size": REDUCE_BUCKET // 10,
        "stage3_max_live_parameters": GATHERED,
    }
    if parallelism.offload == "optimizer":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": parallelism.device == "cuda"}
    return {
        "train_micro_batch_size_per_gpu": parallelism.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clip,
        "zero_optimization": zero,
        "bf16": {"enabled": precision == "bf16"},
        # sums of many bf16 gradients lose the small ones
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**62,
        "wall_clock_breakdown": False,
    }
