"""The fast ways through a training step: the same step as the reference's, and after 200 of them the same model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.model.test_kernels import END, TRITON, assert_same_step
from tests.model.tiny import SHAPE, build, some_tokens
from tinyllama import kernels
from tinyllama.kernels import Ops

STEPS = 200
TEXT = Path(__file__).parents[2] / "README.md"

pytestmark = [
    pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU"),
    # what torch.compile does itself
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("document_end", [None, END], ids=["whole", "documents"])
def test_a_compiled_step_is_the_references(document_end: int | None, recompute: bool) -> None:
    assert_same_step(kernels.TORCH, document_end=document_end, recompute=recompute, compiled=True)


def test_a_compiled_step_around_the_kernels_is_the_references() -> None:
    assert_same_step(TRITON, document_end=None, compiled=True)


def test_one_block_is_compiled_for_all_and_only_to_train(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = []

    def counting(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph)
        return graph.forward

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda part, **how: compile_(part, backend=counting, fullgraph=True, **how))
    torch.compiler.reset()
    model, tokens = build(compiled=True), some_tokens(2, 9)
    model.eval()
    model(tokens[:, :-1], tokens[:, 1:])
    model.logits(tokens)
    assert not graphs
    model.train()
    for _ in range(2):
        model(tokens[:, :-1], tokens[:, 1:])
    assert len(graphs) == 3, "the first block, the others, the loss"


def curve(ops: Ops, *, compiled: bool, dtype: torch.dtype) -> Tensor:
    """The losses of 200 steps of AdamW in fp32 on real text, the model in dtype."""
    model = build(ops=ops, dtype=dtype, compiled=compiled)
    masters = [parameter.detach().float() for parameter in model.parameters()]
    optimizer = torch.optim.AdamW(masters, lr=3e-3)
    text = torch.frombuffer(bytearray(TEXT.read_bytes()), dtype=torch.uint8).long() % SHAPE.vocab_size
    windows = text[: STEPS * 4 * 17].view(STEPS, 4, 17)
    losses = []
    for window in windows:
        loss, _ = model(window[:, :-1], window[:, 1:])
        model.zero_grad()
        loss.backward()
        for master, parameter in zip(masters, model.parameters(), strict=True):
            assert parameter.grad is not None
            master.grad = parameter.grad.float()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(list(model.parameters()), masters)
        losses.append(loss.item())
    return torch.tensor(losses)


def test_200_steps_are_those_of_the_reference() -> None:
    slow = curve(kernels.REFERENCE, compiled=False, dtype=torch.float32)
    fast = curve(kernels.TORCH, compiled=True, dtype=torch.float32)
    assert slow[-20:].mean() < slow[:5].mean() - 0.7, "nothing was learnt"
    assert (fast - slow).abs().max() < 1e-5


def test_200_steps_in_bf16_are_those_of_the_reference() -> None:
    slow = curve(kernels.REFERENCE, compiled=False, dtype=torch.bfloat16)
    fast = curve(kernels.WIDENED, compiled=True, dtype=torch.bfloat16)
    apart = fast - slow
    assert apart.abs().max() < 0.05
    assert apart[-100:].mean().abs() < 0.005, "one learns better than the other"
