"""What is exported is what transformers loads, byte for byte the same whichever way it came, whole or absent."""

from __future__ import annotations

import json
import stat
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.exchange.models import exported, trained
from tests.model.tiny import some_tokens
from tinyllama.config.schema import RunConfig
from tinyllama.exchange import export as module
from tinyllama.exchange.export import export
from tinyllama.exchange.folder import new_file, new_folder
from tinyllama.exchange.published import open_published

QUIET = Console(quiet=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@torch.no_grad()
def test_transformers_loads_it_as_it_is(tmp_path: Path) -> None:
    ours = exported(tmp_path, tmp_path / "out").build()
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = some_tokens(2, 16)
    assert float((ours.logits(tokens)[0] - theirs(tokens).logits).abs().max()) < 1e-5
    assert (theirs.config.bos_token_id, theirs.config.eos_token_id) == (2, 2)
    assert theirs.generation_config.eos_token_id == 2
    assert theirs.config.rope_parameters["rope_theta"] == 10_000.0
    text = "def count(words):\n  return 3 ▁ 日本"
    from tinyllama.data.tokenizer import Tokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer(text).input_ids == Tokenizer.load(tmp_path / "tokenizer.model").encode(text)


@pytest.mark.parametrize("shard_bytes", [10**9, 60_000, 1])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_shards_together_are_the_model(tmp_path: Path, dtype: str, shard_bytes: int) -> None:
    model = exported(tmp_path, tmp_path / "out", dtype=dtype, shard_bytes=shard_bytes)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    together: dict[str, Tensor] = {}
    for file in files:
        tensors = load_file(file)
        sizes = [tensor.numel() * tensor.element_size() for tensor in tensors.values()]
        assert sum(sizes) <= shard_bytes or len(sizes) == 1
        assert not together.keys() & tensors.keys()
        together |= tensors
    assert all(tensor.dtype == kind for tensor in together.values())
    if shard_bytes == 10**9:
        assert [file.name for file in files] == ["model.safetensors"]
    else:
        index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
        assert len(files) > 1
        assert set(index["weight_map"].values()) == {file.name for file in files}
        assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in together.values())
    again = open_published(tmp_path / "out", name="again", key="hf.source")
    for name, weight in model.weights.items():
        assert torch.equal(again.weights[name], weight.to(kind).float()), name
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=kind)
    assert {name: tensor.dtype for name, tensor in loaded.state_dict().items()} == dict.fromkeys(together, kind)


def test_an_export_of_an_export_is_the_same_to_the_byte(tmp_path: Path) -> None:
    for number, shard_bytes in enumerate((10**9, 60_000)):
        one, two = tmp_path / f"one-{number}", tmp_path / f"two-{number}"
        exported(tmp_path, one, shard_bytes=shard_bytes)
        again = open_published(one, name="again", key="hf.source")
        export(again, two, card=b"# tiny\n", dtype="fp32", shard_bytes=shard_bytes, console=QUIET)
        assert contents(one) == contents(two)
        assert len(contents(one)) > 7


@pytest.mark.parametrize("option", ["nano", "14m"])
@torch.no_grad()
def test_the_small_options_go_there_and_back_whole(
    tmp_path: Path, config: Callable[..., RunConfig], option: str
) -> None:
    shape = config(f"model={option}").model
    one, two = tmp_path / "one", tmp_path / "two"
    model = exported(tmp_path, one, shape=shape, shard_bytes=20_000_000)
    again = open_published(one, name=option, key="hf.source")
    assert again.shape == shape
    export(again, two, card=b"# tiny\n", dtype="fp32", shard_bytes=20_000_000, console=QUIET)
    assert contents(one) == contents(two)
    ours, theirs = model.build(), AutoModelForCausalLM.from_pretrained(two)
    tokens = some_tokens(2, 64) % shape.vocab_size
    expected = theirs(tokens).logits
    assert float((ours.logits(tokens)[0] - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))


def test_its_sums_are_what_sha256sum_makes_of_it(tmp_path: Path) -> None:
    exported(tmp_path, tmp_path / "out")
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path / "out", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": OK") == len(contents(tmp_path / "out")) - 1


def test_others_may_read_it(tmp_path: Path) -> None:
    exported(tmp_path, tmp_path / "out")
    folder = stat.S_IMODE((tmp_path / "out").stat().st_mode)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()} == {folder & 0o666}


@pytest.mark.parametrize("there", ["folder", "file", "link to nothing"])
def test_nothing_is_written_over(tmp_path: Path, there: str) -> None:
    out = tmp_path / "out"
    if there == "folder":
        out.mkdir()
    elif there == "file":
        out.write_text("mine")
    else:
        out.symlink_to("nowhere")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match="out is there already: name another place, or remove it first"):
        exported(tmp_path, out)
    assert sorted(tmp_path.iterdir()) == [*before, tmp_path / "tokenizer.model"]


class Broken(Mapping[str, Tensor]):
    """Weights whose last tensor cannot be read."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights

    def __getitem__(self, name: str) -> Tensor:
        if name == "head.weight":
            raise OSError("the disk is gone")
        return self._weights[name]

    def __iter__(self) -> Any:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    from dataclasses import replace

    model = trained(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match="the disk is gone"):
        export(
            replace(model, weights=Broken(model.weights)),
            tmp_path / "out",
            card=b"",
            dtype="fp32",
            shard_bytes=1,
            console=QUIET,
        )
    assert sorted(tmp_path.iterdir()) == before


def test_a_full_disk_is_seen_before_a_byte_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(tmp_path)
    seen = []

    def full(folder: Path, n_bytes: int) -> None:
        seen.append(n_bytes)
        raise OSError(28, "no room")

    monkeypatch.setattr(module, "check_room", full)
    with pytest.raises(OSError, match="no room"):
        export(model, tmp_path / "out", card=b"", dtype="bf16", shard_bytes=10**9, console=QUIET)
    assert seen == [2 * sum(weight.numel() for weight in model.weights.values())]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", [new_folder, new_file])
def test_two_at_once_do_not_meet(tmp_path: Path, place: Any) -> None:
    with place(tmp_path / "out", key="export.out") as partial:
        with (
            pytest.raises(ValueError, match=r"export.out: another process is writing .*out: let it end, or"),
            place(tmp_path / "out", key="export.out"),
        ):
            pass
        mine = partial / "one" if place is new_folder else partial
        mine.write_text("mine")
    assert (tmp_path / "out" / "one" if place is new_folder else tmp_path / "out").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_where_nothing_can_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with (
        pytest.raises(ValueError, match=r"export.out: .*/file/out cannot be made \(.*\): name another place"),
        new_folder(tmp_path / "file" / "out", key="export.out"),
    ):
        pass


def test_what_a_killed_export_left_is_cleared(tmp_path: Path) -> None:
    stale = tmp_path / ".out.partial"
    stale.mkdir()
    (stale / "model.safetensors").write_text("half")
    exported(tmp_path, tmp_path / "out")
    assert not stale.exists()
    assert not open_published(tmp_path / "out", name="again", key="hf.source").adds_start
