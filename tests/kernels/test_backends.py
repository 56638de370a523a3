"""Which implementation a backend is."""

from __future__ import annotations

import pytest

from tinyllama import kernels
from tinyllama.kernels import reference, sdpa


def test_auto_is_the_fastest_there_is() -> None:
    assert kernels.select("auto") == kernels.select("torch") == kernels.TORCH
    assert kernels.TORCH.attention is sdpa.attention
    assert all(op is getattr(reference, name) for name, op in kernels.REFERENCE._asdict().items())


def test_triton_is_refused_with_what_to_use() -> None:
    with pytest.raises(ValueError, match=r"^kernels\.backend: ") as refusal:
        kernels.select("triton")
    assert str(refusal.value) == (
        "kernels.backend: 'triton' has no kernels in this version: use kernels=auto or kernels=torch"
    )
