"""A whole run on the Triton kernels, interpreted, beside the same line on plain PyTorch."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .conftest import Here

# interpreted, some hundred tokens a second are much
SMALLER_STILL = [
    "~data.sources.code",
    "data.sources.text.held_out=0.002",
    "data.tokenizer.vocab_size=512",
    "model.d_model=32",
    "model.d_ff=64",
    "model.n_layers=1",
    "model.n_heads=2",
    "model.n_kv_heads=1",
    "budget.tokens=1K",
    "train.batch_tokens=256",
    "train.eval_tokens=100",
    "train.log_every=1",
    "parallelism.micro_batch=2",
    "schedule.warmup_steps=2",
    "generate.max_tokens=1",
    "tracking=journal",
]


def far_apart(here: Here, one: str, other: str) -> float:
    """The largest relative difference of two runs' losses."""
    losses, others = here.losses(one), here.losses(other)
    assert list(losses) == list(others) == [1, 2, 3, 4]
    return max(abs(loss / others[step] - 1) for step, loss in losses.items())


def test_a_run_on_the_kernels_is_the_run_on_pytorch(here: Here) -> None:
    masked = [*SMALLER_STILL, "train.mask_documents=true"]
    here.run(*masked, "kernels=torch", "run_dir=runs/torch")
    here.run(*masked, "kernels=triton", "run_dir=runs/triton", TRITON_INTERPRET="1")
    assert far_apart(here, "runs/triton", "runs/torch") < 1e-6
    held_out = [here.result(run)["held_out"]["text"]["loss"] for run in ("runs/torch", "runs/triton")]
    assert abs(held_out[0] / held_out[1] - 1) < 1e-6
    losses = here.losses("runs/torch").values()
    assert all(later < earlier for earlier, later in pairwise(losses))


def test_what_documents_see_makes_a_difference(here: Here) -> None:
    # enough tokens for some documents to end among them
    longer = [*SMALLER_STILL, "budget.tokens=64K", "train.batch_tokens=16384", "parallelism.micro_batch=64"]
    for masked in ("true", "false"):
        here.run(*longer, f"train.mask_documents={masked}", f"run_dir=runs/masked_{masked}")
    assert 1e-6 < far_apart(here, "runs/masked_true", "runs/masked_false") < 1e-2
