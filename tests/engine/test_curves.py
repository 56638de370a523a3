"""Losses over 200 steps: the engine with all that is fast, beside a plain loop on the reference."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.engine.ranks import LAYOUT
from tests.model.tiny import SHAPE, build
from tinyllama import kernels
from tinyllama.config.schema import Optimizer
from tinyllama.engine.distributed import Ranks, kept_alive
from tinyllama.engine.zero import Engine, TrainState
from tinyllama.kernels import Ops
from tinyllama.model.init import initial_weights

STEPS, LR = 200, 3e-3
ADAMW = Optimizer(name="adamw", lr=LR, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, clip=1.0)
TEXT = 2 * (Path(__file__).parents[2] / "LICENSE").read_bytes()
"""Text that stays as it is: bf16's roundings are enlarged from step to step, by how much depends on it."""


pytestmark = [
    pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU"),
    # what torch.compile does itself
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated"),
]


@pytest.fixture(autouse=True)
def _only_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")  # DeepSpeed asks for it


def windows() -> Tensor:
    """200 steps of two micro-batches of real text."""
    text = torch.frombuffer(bytearray(TEXT), dtype=torch.uint8).long() % SHAPE.vocab_size
    return text[: STEPS * 4 * 17].view(STEPS, 2, 2, 17)


def fast(ops: Ops, precision: str, *, lr: float = LR) -> Tensor:
    """The engine's losses, the model compiled."""
    model = build(ops=ops, dtype=torch.float32, compiled=True)
    engine = Engine(
        model,
        state=TrainState.fresh(initial_weights(model, seed=7)),
        parallelism=LAYOUT,
        optimizer=ADAMW,
        precision=precision,
        accumulation=2,
        ranks=Ranks(rank=0, local_rank=0, world_size=1),
        device=torch.device("cpu"),
    )
    return torch.tensor([engine.step(window, lr=lr).loss for window in windows()])


def slow(precision: str) -> Tensor:
    """A plain loop's, with fp32 masters, on the reference."""
    model = build(ops=kernels.REFERENCE, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    masters = [parameter.detach().float().clone() for parameter in model.parameters()]
    groups = [
        {"params": [one for one in masters if one.ndim > 1], "weight_decay": ADAMW.weight_decay},
        {"params": [one for one in masters if one.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=ADAMW.betas, eps=ADAMW.eps)
    losses = []
    for window in windows():
        total = 0.0
        for master in masters:
            master.grad = torch.zeros_like(master)
        for sequences in window:
            loss, _ = model(sequences[:, :-1], sequences[:, 1:])
            model.zero_grad()
            (loss / len(window)).backward()
            total += loss.item() / len(window)
            for master, parameter in zip(masters, model.parameters(), strict=True):
                assert parameter.grad is not None and master.grad is not None
                master.grad += parameter.grad.float()
        torch.nn.utils.clip_grad_norm_(masters, ADAMW.clip)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(list(model.parameters()), masters)
        losses.append(total)
    return torch.tensor(losses)


def test_there_are_signs_of_life_while_it_compiles() -> None:
    beats: list[float] = []
    with kept_alive(lambda: beats.append(time.monotonic()), every=0.01):
        while len(beats) < 3:
            time.sleep(0.001)
    count = len(beats)
    with kept_alive(lambda: beats.append(time.monotonic()), every=0.01, at_most=0.02):
        time.sleep(0.2)
    assert count < len(beats) <= count + 2, "it stops"


def apart(losses: Tensor, expected: Tensor) -> tuple[float, float]:
    """The most at any step, and the mean of the last hundred."""
    difference = losses - expected
    return float(difference.abs().max()), abs(float(difference[-100:].mean()))


@pytest.fixture(scope="module")
def reference() -> Callable[[str], Tensor]:
    """The plain loop's losses."""
    known = {precision: slow(precision) for precision in ("fp32", "bf16")}
    return lambda precision: known[precision]


def test_200_steps_are_those_of_the_reference(reference: Callable[[str], Tensor]) -> None:
    expected = reference("fp32")
    assert expected[-20:].mean() < expected[:5].mean() - 0.7, "nothing was learnt"
    most, _ = apart(fast(kernels.TORCH, "fp32"), expected)
    assert most < 1e-4


@pytest.mark.parametrize("ops", [kernels.WIDENED, kernels.BLOCKED], ids=["widened", "blocked"])
def test_200_steps_in_bf16_are_those_of_the_reference(reference: Callable[[str], Tensor], ops: Ops) -> None:
    most, mean = apart(fast(ops, "bf16"), reference("bf16"))
    assert most < 0.3
    assert mean < 0.005, "one learns better than the other"


def test_another_rate_would_show(reference: Callable[[str], Tensor]) -> None:
    """The bounds have teeth: half the rate is outside of both."""
    assert apart(fast(kernels.TORCH, "fp32", lr=LR / 2), reference("fp32"))[0] > 1e-2
    assert apart(fast(kernels.WIDENED, "bf16", lr=LR / 2), reference("bf16"))[1] > 0.005
