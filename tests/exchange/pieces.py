"""SentencePiece models to be written for others, and the texts that tell them apart."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from tests.data.test_words import NASTY, OTHER_SCRIPTS, random_texts, trained
from tinyllama.data import stdlib
from tinyllama.data.tokenizer import Tokenizer, train_tokenizer

PROTO: Any = sentencepiece_model_pb2
KINDS = PROTO.ModelProto.SentencePiece


def documents() -> list[str]:
    """Some of the library's code and prose."""
    code, prose = stdlib.code(), stdlib.prose()
    return [code[key][:40_000] for key in sorted(code)[::60]] + [prose[key][:40_000] for key in sorted(prose)[::40]]


TEXTS = [
    "",
    *NASTY,
    *(f"a{chr(code)}b {chr(code)}{chr(code)}\n{chr(code)}" for code in [*range(0x20), 0x7F]),
    *map(chr, range(0x300)),
    "".join(map(chr, range(0x20))) * 3,
    "<s>", "</s>", "<unk>", "<0x0A>", "a</s>b <s> <0x0A>", "<0x0A>\n<0x0A>", "▁", " ▁ ▁▁x▁", "x▁y", "\u2581\n\u2581",
    " a", "a ", "  a  ", "\ta\t", "\n\n a", " \n ", "a\r\nb\r\r\n",
    "👩‍👩‍👧👨🏽‍🚀🏳️‍🌈", "e\u0301e\u0301 \u0301", "שלום, עולם! مرحبا", "\ufeff日本\u200b語",
    "".join(map(chr, range(0xD7FF))),
    "".join(f" {chr(code)}x" for code in range(0xE000, 0x11000)),
    "x = [1, 2]  # ok\n" * 6_000, "the " * 25_000, "ab1" * 33_000, " " * 100_000, "=" * 100_000, "日本" * 17_000,
    *random_texts(4_000),
]  # fmt: skip


def train(folder: Path) -> dict[str, Tokenizer]:
    """One as runs here train it, and others with SentencePiece's dummy prefix, as Llama's has."""
    texts = [text[:20_000] for text in documents()[::4]] + OTHER_SCRIPTS
    train_tokenizer(texts, vocab_size=2000, path=folder / "ours")
    train_tokenizer(texts[:9], vocab_size=600, path=folder / "small")
    trained(folder / "llama", texts=texts)
    # Spaces within pieces, and letters, digits and signs beside each other.
    apart = dict.fromkeys(("split_by_whitespace", "split_by_unicode_script", "split_by_number", "split_digits"), False)
    trained(folder / "mixed", texts=texts, **apart)
    return {name: Tokenizer.load(folder / name) for name in ("ours", "small", "llama", "mixed")}


def by_hand(pieces: Iterable[tuple[str, float]], **settings: object) -> Any:
    """A model of these pieces and their scores, beside the bytes and the three symbols; `normal` adds no prefix."""
    model = PROTO.ModelProto()
    model.trainer_spec.model_type = PROTO.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    symbols = [("<unk>", KINDS.UNKNOWN), ("<s>", KINDS.CONTROL), ("</s>", KINDS.CONTROL)]
    rows = [(name, 0.0, kind) for name, kind in symbols]
    rows += [(f"<0x{byte:02X}>", 0.0, KINDS.BYTE) for byte in range(256)]
    rows += [(piece, score, KINDS.NORMAL) for piece, score in pieces]
    for piece, score, kind in rows:
        model.pieces.add(piece=piece, score=score, type=kind)
    for name, value in settings.items():
        part = model.trainer_spec if hasattr(model.trainer_spec, name) else model.normalizer_spec
        setattr(part, name, value)
    return model
