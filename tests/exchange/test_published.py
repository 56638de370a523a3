"""What cannot be read as a model is refused by name, before anything is made of it."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from tests.exchange.models import TEXT, exported
from tinyllama.data.tokenizer import train_tokenizer
from tinyllama.exchange.adopt import write_checkpoint
from tinyllama.exchange.published import open_published
from tinyllama.exchange.trained import Trained
from tinyllama.launch.runs import is_published

WEIGHTS = "model.safetensors"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    exported(tmp_path, tmp_path / "out")
    (tmp_path / "out" / "SHA256SUMS").unlink()  # which would see every change at once
    return tmp_path / "out"


def opened(folder: Path) -> Trained:
    return open_published(folder, name="other", key="hf.source")


def edit(path: Path, **changes: Any) -> None:
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in (whole | changes).items() if value != "gone"}))


def change_tensors(out: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(out / WEIGHTS)
    change(tensors)
    save_file(tensors, out / WEIGHTS)


def truncate(out: Path) -> None:
    whole = (out / WEIGHTS).read_bytes()
    (out / WEIGHTS).write_bytes(whole[: len(whole) * 6 // 10])


def to_pickle(out: Path) -> None:
    (out / WEIGHTS).unlink()
    (out / "pytorch_model.bin").write_bytes(pickle.dumps({"weights": [1.0]}))


def drop_a_tensor(out: Path) -> None:
    change_tensors(out, lambda tensors: tensors.pop("model.layers.1.self_attn.k_proj.weight"))


def add_a_bias(out: Path) -> None:
    change_tensors(out, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}))


def widen(out: Path) -> None:
    change_tensors(out, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(321, 32)}))


def quantise(out: Path) -> None:
    change_tensors(out, lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"].to(torch.int8)}))


def another_tokenizer(out: Path) -> None:
    train_tokenizer([TEXT * 3, "other words, in another order " * 9] * 9, vocab_size=330, path=out / "tokenizer.model")


def no_tokenizer(out: Path) -> None:
    (out / "tokenizer.model").unlink()


def not_a_tokenizer(out: Path) -> None:
    (out / "tokenizer.model").write_bytes(b"nothing")


def index_out_of_the_folder(out: Path) -> None:
    (out / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))


def index_to_nothing(out: Path) -> None:
    (out / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (truncate, r"model.safetensors is no safetensors file: .*incomplete.*: get it again"),
        (
            to_pickle,
            r"pytorch_model.bin is a pickle, which can run code when it is read: get the safetensors of this model, or "
            r"convert it where you trust it",
        ),
        (drop_a_tensor, r"model.layers.1.self_attn.k_proj.weight is missing from the weights"),
        (add_a_bias, r"model.layers.0.self_attn.q_proj.bias is in the weights, and there is no place for it here"),
        (widen, r"lm_head.weight is \[321, 32\] in the weights, and config.json makes it \[320, 32\]"),
        (quantise, r"lm_head.weight is kept as I8: only weights in floating point can be read"),
        (another_tokenizer, r"tokenizer.model has 330 pieces and vocab_size is 320: it is another model's"),
        (no_tokenizer, r"tokenizer.model is missing: only models with a SentencePiece tokenizer can be imported"),
        (not_a_tokenizer, r"tokenizer .*/tokenizer.model is not a SentencePiece model"),
        (index_out_of_the_folder, r"model.safetensors.index.json leads out of the folder, to secret.safetensors"),
        (
            index_to_nothing,
            r"model-2.safetensors is missing, and model.safetensors.index.json names it: get it again",
        ),
        (
            lambda out: (out / "config.json").write_text('{"model_type": "llama"'),
            r"config.json is no JSON \(.*\): get it again",
        ),
        (lambda out: (out / "config.json").unlink(), "config.json is missing: name the folder that has it"),
        (
            lambda out: edit(out / "config.json", hidden_act="gelu"),
            "hidden_act: 'gelu', and the model here has silu alone",
        ),
        (
            lambda out: edit(out / "config.json", eos_token_id=7),
            "eos_token_id: 7, and tokenizer.model ends documents with 2: it is another model's",
        ),
        (lambda out: edit(out / "config.json", bos_token_id=320), "bos_token_id: 320 is no token of 0 to 319"),
        (lambda out: edit(out / "config.json", bos_token_id=True), "bos_token_id: True is no token of 0 to 319"),
        (
            lambda out: edit(out / "config.json", num_hidden_layers=10**8),
            "num_hidden_layers: 100000000, and the weights have 30 tensors in all",
        ),
        (lambda out: (out / WEIGHTS).unlink(), f"neither {WEIGHTS} nor {WEIGHTS}.index.json is there"),
    ],
    ids=lambda value: getattr(value, "__name__", "")[:20],
)
def test_what_is_no_model_is_refused(out: Path, spoil: Callable[[Path], Any], says: str) -> None:
    opened(out)
    spoil(out)
    with pytest.raises(ValueError, match=says) as refusal:
        opened(out)
    assert str(refusal.value).startswith(f"hf.source: {out} cannot be read as a model:\n")


def test_all_misfits_are_one_report(out: Path) -> None:
    edit(out / "config.json", num_hidden_layers=5)
    with pytest.raises(ValueError, match="missing from the weights") as refusal:
        opened(out)
    lines = str(refusal.value).splitlines()
    assert len(lines) == 10
    assert lines[-1] == "and 10 more like these"


def test_a_changed_byte_is_seen_by_the_sums(tmp_path: Path) -> None:
    exported(tmp_path, tmp_path / "out")
    opened(tmp_path / "out")
    path = tmp_path / "out" / WEIGHTS
    whole = bytearray(path.read_bytes())
    whole[-5] ^= 1
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=re.escape(f"{path} is not what SHA256SUMS says: copy the folder again")):
        opened(tmp_path / "out")


def test_the_sums_of_others_are_read_as_well(tmp_path: Path) -> None:
    exported(tmp_path, tmp_path / "out")
    sums = tmp_path / "out" / "SHA256SUMS"
    ours = sums.read_text()
    for theirs in (ours.replace("  ", " *"), ours.replace("  ", "  ./"), f"# of a mirror\n\n{ours}"):
        sums.write_text(theirs)
        opened(tmp_path / "out")
        sums.write_text(theirs.replace(theirs.splitlines()[-1][:64], "0" * 64))
        with pytest.raises(ValueError, match="is not what SHA256SUMS says"):
            opened(tmp_path / "out")


def test_what_is_not_finite_is_not_adopted(out: Path, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")

    change_tensors(out, spoil)
    says = re.escape(
        f"model.layers.1.mlp.up_proj.weight of {out} holds values that are not finite: get the weights again"
    )
    with pytest.raises(ValueError, match=says):
        opened(out).build()
    with pytest.raises(ValueError, match=says):
        write_checkpoint(opened(out), tmp_path / "checkpoints", console=Console(quiet=True))


def test_how_a_text_begins_is_what_the_folder_says(out: Path) -> None:
    assert (opened(out).start, opened(out).adds_start) == (2, False)
    edit(out / "config.json", bos_token_id=1)
    edit(out / "tokenizer_config.json", add_bos_token=True)
    assert (opened(out).start, opened(out).adds_start) == (1, True)
    # Llama's own tokenizer begins texts unless it is told not to
    edit(out / "tokenizer_config.json", add_bos_token="gone", tokenizer_class="LlamaTokenizer")
    assert opened(out).adds_start
    (out / "tokenizer_config.json").unlink()
    assert opened(out).adds_start
    edit(out / "config.json", bos_token_id=None)
    assert (opened(out).start, opened(out).adds_start) == (2, False)


def test_older_files_may_hold_what_theta_says(out: Path) -> None:
    change_tensors(out, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}))
    opened(out)


def test_a_run_is_told_from_a_published_model(out: Path, tmp_path: Path) -> None:
    assert is_published(out)
    assert not is_published(tmp_path)
    (tmp_path / "config.json").write_text('{"digest": "x"}')
    assert not is_published(tmp_path)
