"""The model on the Triton kernels, interpreted where there is no GPU, beside the model on plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.kernels.compare import assert_close
from tests.kernels.twins import DEVICE
from tests.model.test_llama import seen_from
from tests.model.tiny import SHAPE, build, some_tokens
from tinyllama import kernels
from tinyllama.kernels import Ops
from tinyllama.model.llama import Llama

# heads of 16, which the attention kernel takes
HEADS_OF_16 = replace(SHAPE, d_model=64, context=40)
TRITON = kernels.select("triton", attention="triton", device=DEVICE, precision="fp32")
END = 5


def step(
    ops: Ops, *, dtype: torch.dtype, document_end: int | None, recompute: bool = False, compiled: bool = False
) -> dict[str, Tensor]:
    """The loss, and every parameter's gradient scaled as an accumulated micro-batch's is."""
    model = build(
        HEADS_OF_16, ops=ops, dtype=dtype, document_end=document_end, recompute=recompute, compiled=compiled, gain=2
    )
    model = model.to(DEVICE)
    tokens = some_tokens(2, 41).to(DEVICE)
    targets = tokens[:, 1:].clone()
    targets[0, :7] = -100
    loss, count = model(tokens[:, :-1], targets)
    assert int(count) == 73
    (loss / 4).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert gradients.keys() == dict(model.named_parameters()).keys()
    return {"loss": loss.detach(), **gradients}


# three layers of fp32 sums; in fp64 the reference's own roundings do not count
RATIO = 3e-6


def assert_same_step(ops: Ops, *, document_end: int | None, recompute: bool = False, compiled: bool = False) -> None:
    fast = step(ops, dtype=torch.float32, document_end=document_end, recompute=recompute, compiled=compiled)
    slow = step(kernels.REFERENCE, dtype=torch.float64, document_end=document_end)
    assert fast.keys() == slow.keys()
    for name, value in fast.items():
        assert_close(value, slow[name], ratio=RATIO, dtype=torch.float32)


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("document_end", [None, END], ids=["whole", "documents"])
def test_a_training_step_on_the_kernels_is_the_references(document_end: int | None, recompute: bool) -> None:
    assert_same_step(TRITON, document_end=document_end, recompute=recompute)


def test_sdpa_beside_the_kernels_is_the_same_step() -> None:
    assert_same_step(kernels.select("triton", attention="sdpa", device=DEVICE, precision="fp32"), document_end=END)


def scaled(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *args: op(*args) * (1 + 1e-5)


@pytest.mark.parametrize("name", ["rms_norm", "swiglu", "attention"])
def test_one_op_off_by_a_part_in_a_hundred_thousand_is_caught(name: str) -> None:
    wrong = TRITON._replace(**{name: scaled(getattr(TRITON, name))})
    with pytest.raises(AssertionError, match="error ratio"):
        assert_same_step(wrong, document_end=None)


def test_causality_holds_through_the_kernels() -> None:
    model: Llama = build(HEADS_OF_16, ops=TRITON, dtype=torch.float32, gain=2).to(DEVICE)
    tokens = some_tokens(1, 40).to(DEVICE)
    for position in (0, 1, 31, 32, 33, 39):
        assert seen_from(model, position, tokens) == [i <= position for i in range(40)]


def test_every_op_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    used: set[str] = set()

    def noting(name: str, op: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def noted(*args: Tensor) -> Tensor:
            used.add(name)
            return op(*args)

        return noted

    step(Ops(*(noting(*item) for item in TRITON._asdict().items())), dtype=torch.float32, document_end=None)
    assert used == set(Ops._fields)
