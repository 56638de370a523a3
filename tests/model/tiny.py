"""A model that is small enough to be worked through whole, in fp64."""

from __future__ import annotations

import torch

from tinyllama import kernels
from tinyllama.config.schema import Model
from tinyllama.kernels import Ops
from tinyllama.model.init import initial_weights
from tinyllama.model.llama import Llama

SHAPE = Model(
    name="tiny",
    vocab_size=61,
    context=16,
    d_model=32,
    n_layers=3,
    n_heads=4,
    n_kv_heads=2,
    d_ff=48,
    rope_theta=10_000.0,
    norm_eps=1e-5,
)


def build(
    shape: Model = SHAPE,
    *,
    ops: Ops = kernels.TORCH,
    dtype: torch.dtype = torch.float64,
    recompute: bool = False,
    document_end: int | None = None,
    compiled: bool = False,
    gain: float = 1.0,
) -> Llama:
    """The model at its initial weights times gain: at 1 an untrained model hardly tells one context from another."""
    model = Llama(shape, ops=ops, recompute=recompute, document_end=document_end, compiled=compiled).to(dtype)
    weights = initial_weights(model, seed=7)
    model.load_state_dict({name: weight if "norm" in name else weight * gain for name, weight in weights.items()})
    return model


def some_tokens(batch: int = 2, length: int = SHAPE.context) -> torch.Tensor:
    """Tokens by arithmetic, so that no generator of random numbers has a say in them."""
    return (torch.arange(batch * length) ** 2 * 7 + 3).view(batch, length) % SHAPE.vocab_size
