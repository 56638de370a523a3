"""Initial weights: TinyLlama's distribution, and the same values whatever the model around a parameter."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.model.tiny import SHAPE
from tinyllama import kernels
from tinyllama.config.schema import Model
from tinyllama.model.init import initial_weights
from tinyllama.model.llama import Llama

WIDE = replace(SHAPE, vocab_size=500, d_model=128, n_layers=4, d_ff=352)


def drawn(shape: Model, *, seed: int = 0) -> dict[str, Tensor]:
    with torch.device("meta"):
        model = Llama(shape, ops=kernels.TORCH)
    return initial_weights(model, seed=seed)


def assert_normal(weight: Tensor, std: float) -> None:
    """Mean, standard deviation and fourth moment within four standard errors of a normal's."""
    values, n = weight.double(), weight.numel()
    assert abs(values.mean()) < 4 * std / math.sqrt(n)
    assert abs(values.std() - std) < 4 * std / math.sqrt(2 * n)
    assert abs((values / std).pow(4).mean() - 3) < 4 * math.sqrt(96 / n)


def test_every_matrix_is_normal_with_its_std() -> None:
    # sqrt(2 / (5 * 128)), and for what is added to the residual stream 1 / (sqrt(128) * 4)
    plain, residual = 0.0559017, 0.0220971
    stds = {
        "embedding": plain,
        "attention.qkv": plain,
        "attention.out": residual,
        "mlp.gate_up": plain,
        "mlp.down": residual,
        "head": plain,
    }
    weights, seen = drawn(WIDE), set()
    for name, weight in weights.items():
        assert weight.dtype == torch.float32
        assert weight.device.type == "cpu"
        if "norm" in name:
            assert torch.equal(weight, torch.ones(128))
            continue
        [kind] = [kind for kind in stds if f"{kind}.weight" in name]
        seen.add(kind)
        assert_normal(weight, stds[kind])
        for wrong in (stds[kind] * 0.95, stds[kind] * 1.05):
            with pytest.raises(AssertionError):
                assert_normal(weight, wrong)
    assert seen == set(stds)
    assert len(weights) == 2 + 4 * 6 + 1


def test_no_two_parameters_share_values() -> None:
    firsts = [float(weight.flatten()[0]) for name, weight in drawn(WIDE).items() if "norm" not in name]
    assert len(set(firsts)) == len(firsts) == 2 + 4 * 4


def test_a_seed_is_its_values() -> None:
    one, same, other = drawn(SHAPE, seed=3), drawn(SHAPE, seed=3), drawn(SHAPE, seed=4)
    for name, weight in one.items():
        assert torch.equal(weight, same[name])
        assert torch.equal(weight, other[name]) == ("norm" in name)


def test_values_do_not_depend_on_the_parameters_around() -> None:
    whole, shallow = drawn(SHAPE), drawn(replace(SHAPE, n_layers=2, vocab_size=10))
    for name, weight in shallow.items():
        if weight.shape == whole[name].shape:
            scale = 3 / 2 if name.endswith(("out.weight", "down.weight")) else 1
            torch.testing.assert_close(weight, whole[name] * scale, rtol=1e-6, atol=0)


def test_values_do_not_depend_on_order_device_dtype_or_other_draws() -> None:
    model = Llama(SHAPE, ops=kernels.TORCH).to(torch.bfloat16)
    first = model.embedding
    del model.embedding
    model.embedding = first
    assert next(iter(dict(model.named_parameters()))) != "embedding.weight", "it is last now"
    torch.manual_seed(123)
    state = torch.get_rng_state()
    reordered, plain = initial_weights(model, seed=0), drawn(SHAPE)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    assert set(reordered) == set(plain)
    assert all(torch.equal(weight, plain[name]) for name, weight in reordered.items())
