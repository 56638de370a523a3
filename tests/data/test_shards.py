"""Shards hold every token in order, and a manifest tells when one has changed."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tinyllama.data.manifest import FILE, Manifest, SplitEntry, TokenizerEntry
from tinyllama.data.shards import ShardWriter, TokenStream

if TYPE_CHECKING:
    from conftest import Prepared

DOCUMENTS = [list(range(10 * i, 10 * i + i % 7)) for i in range(30)]
EOS = 2


def entry(vocab_size: int = 400) -> TokenizerEntry:
    return TokenizerEntry(file="tokenizer.model", sha256="0" * 64, vocab_size=vocab_size, eos=EOS)


def packed(ids: list[int], tokenizer: TokenizerEntry) -> bytes:
    return np.array(ids, dtype=tokenizer.dtype).tobytes()


def write(folder: Path, *, shard_tokens: int, tokenizer: TokenizerEntry) -> SplitEntry:
    with ShardWriter(folder, prefix="s/train", tokenizer=tokenizer, shard_tokens=shard_tokens) as writer:
        for document in DOCUMENTS:
            writer.add(packed(document, tokenizer))
        shards = writer.close()
    return SplitEntry(tokens=sum(shard.tokens for shard in shards), documents=30, bytes=0, shards=shards)


@pytest.mark.parametrize("shard_tokens", [1, 7, 16, 10_000])
@pytest.mark.parametrize("vocab_size", [400, 70_000])
def test_no_token_is_lost_and_windows_span_shards(tmp_path: Path, shard_tokens: int, vocab_size: int) -> None:
    tokens = np.array([token for document in DOCUMENTS for token in [*document, EOS]])
    split = write(tmp_path, shard_tokens=shard_tokens, tokenizer=entry(vocab_size))
    assert [shard.tokens for shard in split.shards[:-1]] == [shard_tokens] * (len(split.shards) - 1)
    width = 2 if vocab_size == 400 else 4
    assert sum((tmp_path / shard.file).stat().st_size for shard in split.shards) == width * len(tokens)
    stream = TokenStream(tmp_path, split=split, tokenizer=entry(vocab_size))
    assert len(stream) == split.tokens == len(tokens)
    for length in (1, 5, len(tokens)):
        starts = np.arange(len(tokens) - length + 1)[::-1]
        windows = stream.windows(starts, length=length)
        assert windows.dtype == np.int64
        assert (windows == np.stack([tokens[start : start + length] for start in starts])).all()
    assert stream.windows(np.array([], dtype=np.int64), length=3).shape == (0, 3)


def test_tokens_are_little_endian(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, prefix="s/train", tokenizer=entry()) as writer:
        writer.add(packed([258], entry()))
    assert (tmp_path / "s" / "train-00000.bin").read_bytes() == bytes([2, 1, 2, 0])


def test_a_stream_needs_its_shards(tmp_path: Path) -> None:
    split = write(tmp_path, shard_tokens=16, tokenizer=entry())
    path = tmp_path / split.shards[1].file
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"train-00001\.bin has 30 bytes, not 32: delete .* and prepare it again"):
        TokenStream(tmp_path, split=split, tokenizer=entry())
    path.unlink()
    with pytest.raises(ValueError, match=r"train-00001\.bin is missing: delete"):
        TokenStream(tmp_path, split=split, tokenizer=entry())


@pytest.fixture
def copy(prepared: Prepared, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared.folder, tmp_path / "copy"))


def test_manifest_comes_back_the_same(prepared: Prepared, copy: Path) -> None:
    manifest = Manifest.load(copy)
    assert manifest == prepared.manifest
    manifest.verify(copy)
    changed = dataclasses.replace(manifest, name="other")
    changed.save(copy)
    assert Manifest.load(copy) == changed != manifest


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.model",
        "web/train-00000-00000.bin",
        "code/held_out-00000.bin",
        "web/train-00000.index",
        "code/files.jsonl",
    ],
)
def test_a_flipped_bit_or_a_missing_file_is_named(copy: Path, name: str) -> None:
    manifest = Manifest.load(copy)
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 4
    (copy / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} has changed \(sha256 .*\): delete {copy} and prepare it again"):
        manifest.verify(copy)
    (copy / name).unlink()
    with pytest.raises(ValueError, match=rf"{name} is missing: delete {copy} and prepare it again"):
        manifest.verify(copy)


def test_a_damaged_manifest_is_refused(copy: Path) -> None:
    raw = json.loads((copy / FILE).read_text())
    for content in ("{", "[]", json.dumps(raw | {"extra": 1}), json.dumps(raw | {"tokenizer": {}})):
        (copy / FILE).write_text(content)
        with pytest.raises(ValueError, match=r"manifest\.json is no manifest .*: delete .* and prepare it again"):
            Manifest.load(copy)
    (copy / FILE).unlink()
    with pytest.raises(ValueError, match=r"manifest\.json is missing: delete"):
        Manifest.load(copy)
