"""Parameters and FLOPs, against the published counts and figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tinyllama import kernels
from tinyllama.config.schema import Model, RunConfig
from tinyllama.model.layers import rope_tables
from tinyllama.model.llama import Llama
from tinyllama.plan.count import count_flops, count_parameters


@pytest.fixture(scope="session")
def tinyllama(config: Callable[..., RunConfig]) -> Model:
    return config("model=1.1b").model


def test_parameters_are_the_published_ones(config: Callable[..., RunConfig], tinyllama: Model) -> None:
    count = count_parameters(tinyllama)
    assert count.total == 1_100_048_384
    assert count.without_input_embedding == 1_034_512_384
    assert count.without_embeddings == 968_976_384
    assert count_parameters(config("model=120m").model).total == 121_129_728


@pytest.mark.parametrize("name", ["nano", "14m", "120m", "1.1b"])
def test_groups_sum_to_the_total(config: Callable[..., RunConfig], name: str) -> None:
    model = config(f"model={name}").model
    groups = asdict(count_parameters(model))
    assert all(groups.values())
    assert sum(groups.values()) == count_parameters(model).total


def test_each_group_counts_its_own_matrices() -> None:
    # every number differs and is prime to the others, so no swapped factor goes unseen
    model = Model(
        name="odd",
        vocab_size=11,
        context=17,
        d_model=30,
        n_layers=7,
        n_heads=15,
        n_kv_heads=5,
        d_ff=13,
        rope_theta=1e4,
        norm_eps=1e-5,
    )
    count = count_parameters(model)
    assert count.embedding == count.head == 11 * 30
    assert count.attention == 7 * (30 * 30 + 30 * 10 + 30 * 10 + 30 * 30)
    assert count.mlp == 7 * (30 * 13 + 30 * 13 + 13 * 30)
    assert count.norms == 7 * 2 * 30 + 30
    # scores and their product with the values: 2 FLOPs x context x width each, forward, and twice that backward
    assert count_flops(model).palm - 6 * count.without_input_embedding == 3 * 7 * 2 * (2 * 17 * 30)
    assert count_flops(replace(model, context=34)).six_n == count_flops(model).six_n


@pytest.mark.parametrize("name", ["nano", "14m", "30m", "60m", "120m", "300m", "1.1b"])
def test_counts_are_those_of_the_model(config: Callable[..., RunConfig], name: str) -> None:
    shape = config(f"model={name}", "data=slimpajama_starcoder").model
    with torch.device("meta"):
        model = Llama(shape, ops=kernels.REFERENCE)
    assert count_parameters(shape).total == sum(parameter.numel() for parameter in model.parameters())
    assert count_parameters(shape).norms == sum(p.numel() for p in model.parameters() if p.ndim == 1)


@pytest.mark.parametrize("name", ["nano", "14m", "1.1b"])
def test_flops_are_those_that_pytorch_counts(config: Callable[..., RunConfig], name: str) -> None:
    """On plain products of matrices: all pairs of positions, and no norms, which the conventions count as matrices."""
    shape = config(f"model={name}", "data=slimpajama_starcoder").model
    with torch.device("meta"):
        model = Llama(shape, ops=kernels.REFERENCE)
        model.embedding.weight.requires_grad_(False)  # meta has no backward of it, and it has no products
        tokens = torch.zeros(2, shape.context, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        x = model.embedding(tokens).requires_grad_()
        update = None
        angles = rope_tables(shape.context, shape.head_dim, shape.rope_theta, torch.device("meta"))
        for block in model.blocks:
            x, update, _ = block(x, update, angles)
        normed, _ = model.norm(x, update)
        loss, _ = model.head(normed, tokens)
        loss.backward()
    counted = count_flops(shape).palm - 6 * count_parameters(shape).norms
    assert counter.get_total_flops() == 2 * shape.context * counted


def test_mfu_of_the_published_run_under_each_convention(tinyllama: Model) -> None:
    # 24k tokens/s on an A100 of 312 TFLOP/s; the README's "56%" is PaLM's convention
    figures = {name: f"{24_000 * n / 312e12:.2%}" for name, n in count_flops(tinyllama).conventions.items()}
    assert figures == {
        "6N, no embeddings, no attention": "44.72%",
        "6N, all parameters, no attention": "50.77%",
        "6N, no input embedding, causal attention": "52.01%",
        "6N, no input embedding, full attention (PaLM)": "56.26%",
        "6N, all parameters, full attention": "59.29%",
    }
