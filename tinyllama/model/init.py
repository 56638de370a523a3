"""TinyLlama's initialisation, the same values whatever the device, the sharding and the order of the parameters."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from tinyllama.config.schema import Model
from tinyllama.model.llama import Llama


def init_std(name: str, shape: Model) -> float | None:
    """Standard deviation of a parameter's initial values; None for norms, which start at one.

    sqrt(2 / (5 d)), and 1 / (sqrt(d) L) for what is added to the residual stream (TinyLlama's published code).
    """
    if "norm" in name:
        return None
    if name.endswith(("attention.out.weight", "mlp.down.weight")):
        return 1 / (math.sqrt(shape.d_model) * shape.n_layers)
    return math.sqrt(2 / (5 * shape.d_model))


@torch.no_grad()
def initial_weights(model: Llama, *, seed: int) -> dict[str, Tensor]:
    """fp32 values on the CPU for every parameter by name, each drawn from a generator of its own."""
    weights = {}
    for name, parameter in model.named_parameters():
        std = init_std(name, model.shape)
        if std is None:
            weights[name] = torch.ones(parameter.shape)
        else:
            draw = hashlib.sha256(f"{seed}/{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(draw[:8], "little", signed=True))
            weights[name] = torch.empty(parameter.shape).normal_(std=std, generator=generator)
    return weights
