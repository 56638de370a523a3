"""A compiled training step is the reference's; after 200 of them see tests/engine/test_curves.py."""

from __future__ import annotations

import shutil

import pytest
import torch

from tests.model.test_kernels import END, TRITON, assert_same_step
from tests.model.tiny import build, some_tokens
from tinyllama import kernels
from tinyllama.kernels import blocked

pytestmark = [
    pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU"),
    # what torch.compile does itself
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated"),
]


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("document_end", [None, END], ids=["whole", "documents"])
def test_a_compiled_step_is_the_references(document_end: int | None, recompute: bool) -> None:
    assert_same_step(kernels.TORCH, document_end=document_end, recompute=recompute, compiled=True)


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_a_compiled_step_by_blocks_is_the_references(monkeypatch: pytest.MonkeyPatch, recompute: bool) -> None:
    monkeypatch.setattr(blocked, "BLOCK", 8)
    torch.compiler.reset()
    assert_same_step(kernels.BLOCKED, document_end=None, recompute=recompute, compiled=True)


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
