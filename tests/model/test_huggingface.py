"""Our Llama beside Hugging Face's: names, shapes, logits, gradients, greedy text; and what is not ours is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from transformers import LlamaForCausalLM

from tests.model.peer import empty, peer_of
from tests.model.test_generate import GREEDY
from tests.model.tiny import SHAPE, build, some_tokens
from tinyllama import kernels
from tinyllama.config.schema import Model, RunConfig
from tinyllama.model.generate import generate
from tinyllama.model.huggingface import config_of, parts, shape_of
from tinyllama.model.llama import Llama

OPTIONS = sorted(path.stem for path in (Path(__file__).parents[2] / "conf" / "model").glob("*.yaml"))
SMALL = ("nano", "14m")


def pair(shape: Model, *, dtype: torch.dtype = torch.float32) -> tuple[Llama, LlamaForCausalLM]:
    """Both models with the same weights, far enough from their start to tell one context from another."""
    ours = build(shape, dtype=dtype, gain=2)
    return ours, peer_of(ours)


@pytest.fixture(params=OPTIONS)
def option(request: pytest.FixtureRequest, config: Callable[..., RunConfig]) -> Model:
    return config(f"model={request.param}", "data=slimpajama_starcoder").model


def test_names_and_shapes_are_theirs(option: Model) -> None:
    with torch.device("meta"):
        state = empty(option).state_dict()
    assert {name: part.shape for name, part in parts(option).items()} == {k: tuple(v.shape) for k, v in state.items()}


def test_every_row_of_ours_is_one_of_theirs(option: Model) -> None:
    with torch.device("meta"):
        ours = {name: tuple(parameter.shape) for name, parameter in Llama(option, ops=kernels.TORCH).named_parameters()}
    rows: dict[str, list[int]] = {name: [] for name in ours}
    for part in parts(option).values():
        rows[part.ours] += range(ours[part.ours][0])[part.rows]
        assert part.shape[1:] == ours[part.ours][1:]
        assert part.shape[0] == len(range(ours[part.ours][0])[part.rows])
    assert all(rows[name] == [*range(shape[0])] for name, shape in ours.items())


def test_a_shape_survives_the_way_there_and_back(option: Model) -> None:
    said = config_of(option, start=1, end=2, dtype="fp32")
    assert shape_of(said, name=option.name) == option
    for gone in (["rope_theta"], ["rope_parameters"], ["rope_scaling", "head_dim", "hidden_act"]):
        assert shape_of({k: v for k, v in said.items() if k not in gone}, name=option.name) == option
    as_they_say = empty(replace(option, n_layers=1)).config.to_dict() | {"num_hidden_layers": option.n_layers}
    assert shape_of(as_they_say, name=option.name) == option


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_logits_are_theirs(config: Callable[..., RunConfig], name: str) -> None:
    shape = config(f"model={name}").model
    ours, other = pair(shape)
    tokens = some_tokens(2, 100) % shape.vocab_size
    one, two = ours.logits(tokens)[0], other(tokens).logits
    assert float((one - two).abs().max()) <= 1e-5 * max(1.0, float(two.abs().max()))
    assert float(two.std()) > 0.1, "the test's model says something"


@torch.no_grad()
def test_in_fp64_there_is_no_difference_to_speak_of() -> None:
    ours, other = pair(SHAPE, dtype=torch.float64)
    tokens = some_tokens()
    # their RoPE tables and norms are worked out in fp32
    assert float((ours.logits(tokens)[0] - other(tokens).logits).abs().max()) < 1e-5


@pytest.mark.parametrize("name", ["tiny", *SMALL])
def test_gradients_are_theirs(config: Callable[..., RunConfig], name: str) -> None:
    shape = SHAPE if name == "tiny" else config(f"model={name}").model
    ours, other = pair(shape)
    tokens = some_tokens(2, 17 if name == "tiny" else 65) % shape.vocab_size
    loss, _ = ours(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    logits = other(tokens[:, :-1]).logits
    their_loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    their_loss.backward()
    assert loss.item() == pytest.approx(their_loss.item(), abs=1e-6)
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    for name, parameter in other.named_parameters():
        part = parts(shape)[name]
        mine, their = gradients[part.ours][part.rows], parameter.grad
        assert float((mine - their).norm() / their.norm()) < 1e-5, name


@torch.no_grad()
def test_a_swapped_projection_would_show() -> None:
    """What gibberish exports are made of: keys in the place of values."""
    ours, other = pair(SHAPE)
    state = other.state_dict()
    for layer in range(SHAPE.n_layers):
        k, v = (f"model.layers.{layer}.self_attn.{name}_proj.weight" for name in "kv")
        state[k], state[v] = state[v].clone(), state[k].clone()
    other.load_state_dict(state)
    tokens = some_tokens()
    assert float((ours.logits(tokens)[0] - other(tokens).logits).abs().max()) > 1e-2


@pytest.mark.parametrize("name", SMALL)
def test_greedy_text_is_theirs_over_100_tokens(config: Callable[..., RunConfig], name: str) -> None:
    shape = config(f"model={name}").model
    ours, other = pair(shape)
    prompts = [[5, 9, 33], [7], [11, 2, 3, 4, 5, 6, 8, 9]]
    told = generate(ours, prompts, GREEDY, seed=0, eos=-1, n_tokens=shape.vocab_size)
    texts: list[list[int]] = [[] for _ in prompts]
    for row, token in told:
        if token is not None:
            texts[row].append(token)
    for prompt, text in zip(prompts, texts, strict=True):
        expected = other.generate(torch.tensor([prompt]), max_new_tokens=100, do_sample=False, eos_token_id=None)
        assert prompt + text == expected[0].tolist()
        assert len(set(text)) > 10


GOOD = config_of(SHAPE, start=1, end=2, dtype="fp32")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "mistral"}, "model_type: 'mistral' is no Llama: only 'llama' can be imported"),
        ({"attention_bias": True}, "attention_bias: true, and the model here has no biases"),
        ({"mlp_bias": True}, "mlp_bias: true, and the model here has no biases"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu', and the model here has silu alone"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings: true, and the output matrix here is one of its own"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_scaling: 'linear' scales the rotary frequencies, which the model here does not",
        ),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 10000.0}},
            "rope_parameters: 'llama3' scales the rotary frequencies, which the model here does not",
        ),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
            "partial_rotary_factor: 0.5, and heads here are rotated whole",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: 0.5, and heads here are rotated whole"),
        (
            {"max_position_embeddings": 10**11},
            "max_position_embeddings: 100000000000: past 16777216 fp32 tells none apart",
        ),
        ({"rope_parameters": 5}, "rope_parameters: 5 should be a section of keys"),
        ({"rope_theta": 500000.0}, "rope_theta: 500000.0, and rope_parameters.rope_theta is 10000.0"),
        ({"rms_norm_eps": 0}, "rms_norm_eps: 0 should be a number greater than 0"),
        ({"head_dim": 64}, "head_dim: 64, and heads here are hidden_size / num_attention_heads wide"),
        ({"hidden_size": "32"}, "hidden_size: '32' should be a whole number greater than 0"),
        ({"vocab_size": None}, "vocab_size: None should be a whole number greater than 0"),
        (
            {"quantization_config": {"bits": 4}},
            "quantization_config: quantised weights cannot be trained on: take the ones that were quantised",
        ),
        (
            {"num_key_value_heads": 3},
            "model.n_kv_heads: 3 does not divide model.n_heads=4: every key-value head serves as many",
        ),
        (
            {"attention_bias": True, "hidden_act": "relu"},
            "attention_bias: true, and the model here has no biases\n"
            "hidden_act: 'relu', and the model here has silu alone",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_the_model_cannot_express_is_refused_by_name(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        shape_of(GOOD | change, name="other")


def test_heads_without_groups_are_theirs_too() -> None:
    said = {key: value for key, value in GOOD.items() if key != "num_key_value_heads"}
    assert shape_of(said, name="other").n_kv_heads == SHAPE.n_heads
