"""A GGUF file holds our weights and tokenizer as llama.cpp has them, and llama.cpp, where it is installed, agrees."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from torch import Tensor

from tests.exchange.pieces import KINDS, TEXTS, by_hand, documents, train
from tests.model.test_generate import GREEDY
from tests.model.tiny import SHAPE, build
from tinyllama.config.schema import Model
from tinyllama.data.tokenizer import SPACE, Tokenizer
from tinyllama.exchange import gguf as written
from tinyllama.exchange.gguf import layout, paired, write_gguf
from tinyllama.exchange.trained import Trained
from tinyllama.kernels import reference
from tinyllama.model.generate import generate
from tinyllama.model.layers import rope_tables

PYTHON = os.environ.get("LLAMA_CPP_PYTHON", sys.executable)
"""An interpreter that has llama-cpp-python."""
ASKS = Path(__file__).with_name("asks_llama_cpp.py")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizers")
    train(folder)
    return folder


def trained(
    tokenizer: Path, *, rows: int = 2050, context: int = 64, adds_start: bool = False, start: int = 2
) -> Trained:
    shape = replace(SHAPE, vocab_size=rows, context=context, d_model=64)
    model = build(shape, dtype=torch.float32, gain=4.0)
    return Trained(
        folder=tokenizer.parent,
        shape=shape,
        weights=dict(model.state_dict()),
        tokenizer=tokenizer,
        start=start,
        adds_start=adds_start,
    )


def tensors(path: Path) -> dict[str, Tensor]:
    """The file's tensors in fp32, by llama.cpp's names."""
    found = {}
    for tensor in gguf.GGUFReader(path).tensors:
        values = torch.from_numpy(tensor.data.copy())
        if tensor.tensor_type == gguf.GGMLQuantizationType.BF16:
            values = values.view(torch.bfloat16).float()
        assert values.shape == tuple(reversed(tensor.shape.tolist()))
        found[tensor.name] = values
    return found


def unpaired(weight: Tensor, heads: int) -> Tensor:
    return torch.cat([torch.cat([head[0::2], head[1::2]]) for head in weight.chunk(heads)])


def ours(file: Mapping[str, Tensor], shape: Model) -> dict[str, Tensor]:
    """The file's tensors, put together as ours."""
    found: dict[str, list[Tensor]] = {}
    for name, (part, heads) in layout(shape).items():
        found.setdefault(part.ours, []).append(unpaired(file[name], heads) if heads else file[name])
    return {name: torch.cat(tensors) for name, tensors in found.items()}


def fields(path: Path) -> dict[str, Any]:
    return {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_weight_comes_back(tokenizers: Path, tmp_path: Path, dtype: str) -> None:
    model = trained(tokenizers / "ours")
    write_gguf(model, tmp_path / "it.gguf", dtype=dtype, name="it")
    file = tensors(tmp_path / "it.gguf")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "it.gguf").tensors}
    assert all(kind == ("F32" if "norm" in name or dtype == "fp32" else "BF16") for name, kind in kinds.items())
    back = ours(file, model.shape)
    assert back.keys() == model.weights.keys()
    for name, weight in model.weights.items():
        expected = weight.to(torch.bfloat16).float() if dtype == "bf16" and weight.ndim == 2 else weight
        assert torch.equal(back[name], expected), name
    # The names that llama.cpp asks for, from gguf's own list.
    known = gguf.MODEL_TENSORS[gguf.MODEL_ARCH.LLAMA]
    names = {gguf.TENSOR_NAMES[one].format(bid=bid) + ".weight" for one in known for bid in range(3)}
    assert file.keys() <= names
    assert list(tmp_path.iterdir()) == [tmp_path / "it.gguf"]


def test_neighbours_turn_as_halves_do() -> None:
    """llama.cpp's RoPE of the reordered rows gives our queries, reordered: every score stays the same."""
    shape, x_td = SHAPE, torch.arange(16 * 32).view(16, 32).sin()
    heads, c = shape.n_heads, shape.head_dim
    weight = torch.arange(32 * 32).view(32, 32).cos()
    cos, sin = rope_tables(16, c, shape.rope_theta, torch.device("cpu"))
    q_bthc = (x_td @ weight.T).view(1, 16, heads, c)
    expected = reference.rope(torch.cat([q_bthc, q_bthc, q_bthc], dim=2), cos, sin, heads)[0][0]
    pairs = (x_td @ paired(weight, heads).T).view(16, heads, c // 2, 2)
    a, b = pairs.unbind(-1)
    turned = torch.stack((a * cos[:, None] - b * sin[:, None], b * cos[:, None] + a * sin[:, None]), dim=-1).flatten(2)
    back = torch.cat((turned[..., 0::2], turned[..., 1::2]), dim=-1)
    torch.testing.assert_close(back, expected)
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(turned, expected)


def test_the_metadata(tokenizers: Path, tmp_path: Path) -> None:
    model = trained(tokenizers / "llama", adds_start=True, start=1)
    write_gguf(model, tmp_path / "it.gguf", dtype="bf16", name="a name")
    found = fields(tmp_path / "it.gguf")
    assert {key: found[key] for key in found if not key.startswith(("GGUF", "tokenizer"))} == {
        "general.architecture": "llama",
        "general.name": "a name",
        "general.file_type": 32,
        "llama.context_length": 64,
        "llama.embedding_length": 64,
        "llama.block_count": 3,
        "llama.feed_forward_length": 48,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 10_000.0,
        "llama.vocab_size": 2050,
    }
    tokenizer = Tokenizer.load(model.tokenizer)
    names, types = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    scores = found["tokenizer.ggml.scores"]
    assert len(names) == len(types) == len(scores) == len(set(names)) == 2050
    assert names[:4] == ["<unk>", "<s>", "</s>", "<0x00>"] and names[1500:1502] == ["[PAD1500]", "[PAD1501]"]
    assert types == [2, 3, 3] + [6] * 256 + [1] * (1500 - 259) + [5] * 550
    assert any(name.startswith(SPACE) for name in names) and not any(" " in name for name in names)
    assert scores[:1500] == [tokenizer._model.get_score(index) for index in range(1500)]
    rest = {key.removeprefix("tokenizer.ggml."): value for key, value in found.items() if key.startswith("tokenizer")}
    assert {key: value for key, value in rest.items() if not isinstance(value, list)} == {
        "model": "llama",
        "pre": "default",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        "add_bos_token": True,
        "add_eos_token": False,
        "add_space_prefix": True,
    }
    write_gguf(trained(tokenizers / "ours"), tmp_path / "ours.gguf", dtype="fp32", name="it")
    found = fields(tmp_path / "ours.gguf")
    told = {key: found[f"tokenizer.ggml.{key}"] for key in ("bos_token_id", "add_bos_token", "add_space_prefix")}
    assert told == {"bos_token_id": 2, "add_bos_token": False, "add_space_prefix": False}
    assert found["general.file_type"] == 0


def test_the_same_model_gives_the_same_file(tokenizers: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_gguf(trained(tokenizers / "ours"), tmp_path / name, dtype="fp32", name="it")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_is_whole_or_not_there(tokenizers: Path, tmp_path: Path) -> None:
    class Broken(Mapping[str, Tensor]):
        def __getitem__(self, name: str) -> Tensor:
            if name == "norm.weight":
                raise OSError("no such luck")
            return whole.weights[name]

        def __iter__(self) -> Iterator[str]:
            return iter(whole.weights)

        def __len__(self) -> int:
            return len(whole.weights)

    whole = trained(tokenizers / "ours")
    with pytest.raises(OSError, match="no such luck"):
        write_gguf(replace(whole, weights=Broken()), tmp_path / "it.gguf", dtype="fp32", name="it")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "it.gguf").write_text("mine")
    with pytest.raises(ValueError, match=r"export.out: .*it\.gguf is there already: name another place, or remove it"):
        write_gguf(whole, tmp_path / "it.gguf", dtype="fp32", name="it")
    assert (tmp_path / "it.gguf").read_text() == "mine"


def test_what_is_refused(tokenizers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = by_hand([("a", -1.0), ("b", -2.0)])
    model.pieces[259].type = KINDS.USER_DEFINED
    (tmp_path / "defined").write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match="'a', is user-defined, which no GGUF file can express"):
        write_gguf(trained(tmp_path / "defined"), tmp_path / "it.gguf", dtype="fp32", name="it")
    assert [path.name for path in tmp_path.iterdir()] == ["defined"]


def asked(path: Path, **questions: object) -> dict[str, Any]:
    done = subprocess.run(
        [PYTHON, str(ASKS), str(path)],
        input=json.dumps(questions),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if "No module named 'llama_cpp'" in done.stderr:
        pytest.skip("llama-cpp-python is not installed")
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers


def error_ratio(actual: Tensor, expected: Tensor) -> float:
    """Root mean square of the error over that of what is expected."""
    return float((actual - expected).square().mean().sqrt() / expected.square().mean().sqrt())


PROMPT = "def f(x):\n    return 日本"


@pytest.mark.parametrize(("name", "start", "adds_start"), [("ours", 2, False), ("llama", 1, True)])
def test_llama_cpp_agrees(tokenizers: Path, tmp_path: Path, name: str, start: int, adds_start: bool) -> None:
    model = trained(tokenizers / name, adds_start=adds_start, start=start)
    tokenizer = Tokenizer.load(model.tokenizer)
    write_gguf(model, tmp_path / "it.gguf", dtype="fp32", name="it")
    texts, prompt = TEXTS + documents(), tokenizer.encode(PROMPT)
    found = asked(tmp_path / "it.gguf", texts=texts, prompt=prompt, n_greedy=20)

    assert (found["bos"], found["eos"]) == (start, 2)
    assert found["begun"] == [1] * adds_start + tokenizer.encode("a")
    if name == "ours":
        # llama.cpp has the sign stand for a space, in every text.
        assert found["ids"][texts.index(SPACE)] != tokenizer.encode(SPACE)
    same = [index for index, text in enumerate(texts) if name != "ours" or SPACE not in text]
    assert len(same) > 2_000
    ids = [tokenizer.encode(texts[index]) for index in same]
    assert [found["ids"][index] for index in same] == ids
    assert [found["texts"][index] for index in same] == [tokenizer.decode(one) for one in ids]

    built = model.build()
    expected = built.logits(torch.tensor([prompt]))[0][0]
    # Both sum in fp32, in another order: some 64 terms in each of 15 products.
    assert error_ratio(torch.tensor(found["logits"]), expected) < 2e-5
    how = replace(GREEDY, max_tokens=20)
    greedy = generate(built, [prompt], how, seed=0, eos=-1, n_tokens=2050)
    assert [token for _, token in greedy if token is not None] == found["greedy"]


def test_llama_cpp_in_bf16_is_as_near_as_we_are(tokenizers: Path, tmp_path: Path) -> None:
    model = trained(tokenizers / "ours")
    write_gguf(model, tmp_path / "it.gguf", dtype="bf16", name="it")
    prompt = Tokenizer.load(model.tokenizer).encode(PROMPT)
    found = asked(tmp_path / "it.gguf", texts=[], prompt=prompt, n_greedy=0)
    exact, rounded = (
        model.build(precision=precision).logits(torch.tensor([prompt]))[0][0].float() for precision in ("fp32", "bf16")
    )
    assert error_ratio(torch.tensor(found["logits"]), exact) < 1.5 * error_ratio(rounded, exact) < 0.1


def test_rows_in_our_order_would_show(tokenizers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(tokenizers / "ours")
    monkeypatch.setattr(written, "paired", lambda weight, heads: weight)
    write_gguf(model, tmp_path / "it.gguf", dtype="fp32", name="it")
    assert not torch.equal(
        ours(tensors(tmp_path / "it.gguf"), model.shape)["blocks.0.attention.qkv.weight"],
        model.weights["blocks.0.attention.qkv.weight"],
    )
    prompt = Tokenizer.load(model.tokenizer).encode(PROMPT)
    found = asked(tmp_path / "it.gguf", texts=[], prompt=prompt, n_greedy=0)
    assert error_ratio(torch.tensor(found["logits"]), model.build().logits(torch.tensor([prompt]))[0][0]) > 0.01
