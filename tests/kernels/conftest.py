"""How kernels are tested: on one thread, interpreted, and with NaN in all memory that is not written to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tinyllama.kernels.target import INTERPRETED


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads for tensors this small only wait for each other, the longer the busier the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goes on with what tests/conftest.py has begun."""
    if INTERPRETED:
        monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def empty_is_nan() -> Iterator[None]:
    """torch.empty and its like hold NaN (the largest integer): what a kernel leaves unwritten shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
