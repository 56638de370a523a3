"""A model that transformers has written: with Llama's own tokenizer conventions, in shards, in half precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import sentencepiece
import torch
from rich.console import Console
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.exchange.models import TEXT
from tests.model.tiny import SHAPE, some_tokens
from tinyllama.data.tokenizer import Tokenizer
from tinyllama.engine.checkpoint import latest_weights
from tinyllama.evaluate.sample import prompt_tokens
from tinyllama.exchange.adopt import write_checkpoint
from tinyllama.exchange.export import export
from tinyllama.exchange.published import open_published

QUIET = Console(quiet=True)


def llama(folder: Path, *, dtype: torch.dtype, grouped: bool) -> None:
    """A model of transformers' own in a folder, with a tokenizer that adds a dummy prefix, as Llama 2's does."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=SHAPE.d_model,
        intermediate_size=SHAPE.d_ff,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2 if grouped else 4,
        max_position_embeddings=64,
        rms_norm_eps=1e-6,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder, max_shard_size="40KB")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines() * 20),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=300,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@torch.no_grad()
def test_its_logits_are_kept(tmp_path: Path, dtype: torch.dtype, grouped: bool) -> None:
    llama(tmp_path, dtype=dtype, grouped=grouped)
    theirs = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    trained = open_published(tmp_path, name="foreign", key="hf.source")
    write_checkpoint(trained, tmp_path / "checkpoints", console=QUIET)
    weights = latest_weights(tmp_path / "checkpoints")
    assert all(torch.equal(weights[name], trained.weights[name]) for name in trained.weights)
    tokens = some_tokens(2, 32)
    one, two = trained.build().logits(tokens)[0], theirs(tokens).logits
    assert float((one - two).abs().max()) <= 1e-5 * float(two.abs().max())


def test_its_texts_begin_as_they_did(tmp_path: Path) -> None:
    llama(tmp_path, dtype=torch.float32, grouped=True)
    trained = open_published(tmp_path, name="foreign", key="hf.source")
    assert (trained.start, trained.adds_start) == (1, True)
    export(trained, tmp_path / "out", card=b"", dtype="fp32", shard_bytes=10**9, console=QUIET)
    tokenizer, pieces = AutoTokenizer.from_pretrained(tmp_path / "out"), Tokenizer.load(tmp_path / "tokenizer.model")
    for text in ("The fox", " The  fox\n", "", "日本 ▁ x", "</s>"):
        [ids] = prompt_tokens(trained, pieces, [text])
        assert tokenizer(text).input_ids == ids, text
        assert ids[0] == 1
    again = open_published(tmp_path / "out", name="again", key="hf.source")
    assert (again.start, again.adds_start) == (1, True)
