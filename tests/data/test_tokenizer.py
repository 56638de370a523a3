"""Text goes to ids and comes back the same, and training is repeatable to the byte."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from tinyllama.data.tokenizer import Tokenizer, train_tokenizer

SAMPLE = [
    "def f(x):\n    return x + 12345\n\n        if deep:\n",
    "the world is wide, the world is old\t▁▅\x00",
] * 40 + ["Serialises an object to a formatted string, or raises where its members cannot be written."] * 9
HARD = [
    "",
    " ",
    "        \t\t    x  ",
    "a\r\nb\n\n\n",
    "日本語のテキスト",
    "😀👩‍👩‍👧 e\u0301",
    "\x00\x01\x1f\x7f\ufeff\u200b\u2028",
    "▁", "▁▁a ▁ b▁\n",
    "▅⁇<unk><s></s><0x41>",
    "1234567890",
    "long " * 20_000,
    "".join(map(chr, range(0xD7FF))),
    "\U0010ffff",
]  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(SAMPLE, vocab_size=320, path=path)
    return path


def other_model(path: Path, **options: object) -> Path:
    """A model with SentencePiece's own defaults but for options."""
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["the world is wide"] * 20), model_writer=file, minloglevel=2, **options
        )
    return path


@pytest.mark.parametrize("text", HARD, ids=lambda text: ascii(text[:12]))
def test_round_trip_is_exact_and_bytes_add_up(path: Path, text: str) -> None:
    tokenizer = Tokenizer.load(path)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes()[ids].sum(dtype=np.int64) == len(text.encode())
    assert tokenizer.eos not in ids


def test_it_is_laid_out_like_llamas(path: Path) -> None:
    tokenizer = Tokenizer.load(path)
    size = tokenizer.token_bytes()
    assert tokenizer.vocab_size == len(size) == 320 and size.dtype == np.uint16 and tokenizer.eos == 2
    assert size[:3].tolist() == [0, 0, 0] and (size[3:259] == 1).all() and size[259:].max() > 1
    assert tokenizer.decode([1, *tokenizer.encode("x"), 2]) == "x"
    assert len(tokenizer.encode("12345")) == 5
    assert len(tokenizer.encode("    ")) < 4
    assert tokenizer.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_training_is_repeatable_to_the_byte_and_quiet(
    path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train_tokenizer(SAMPLE, vocab_size=320, path=tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
    train_tokenizer([*SAMPLE, "otherwise"] * 2, vocab_size=320, path=tmp_path / "other")
    assert (tmp_path / "other").read_bytes() != path.read_bytes()
    assert capfd.readouterr() == ("", "")


def test_long_lines_are_trained_on(tmp_path: Path) -> None:
    train_tokenizer(["abracadabra " * 5_000], vocab_size=280, path=tmp_path / "long")
    assert len(Tokenizer.load(tmp_path / "long").encode("abracadabra")) < 4


@pytest.mark.parametrize(
    ("texts", "size", "reason"),
    [(SAMPLE, 5000, "Vocabulary size too high"), (SAMPLE, 261, "smaller than required_chars"), ([], 300, "is empty")],
)
def test_a_vocabulary_that_does_not_fit_is_refused(tmp_path: Path, texts: list[str], size: int, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"vocab_size {size} cannot be trained .*{reason}.* change data\.tokenizer"):
        train_tokenizer(texts, vocab_size=size, path=tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_dummy_prefix_costs_one_byte(tmp_path: Path) -> None:
    options = {"model_type": "bpe", "vocab_size": 280, "byte_fallback": True, "normalization_rule_name": "identity"}
    tokenizer = Tokenizer.load(other_model(tmp_path / "llama", **options))
    for text in ("the world", "a▁b▁c"):
        assert tokenizer.token_bytes()[tokenizer.encode(text)].sum() == len(text.replace("▁", " ").encode()) + 1


def test_what_cannot_be_loaded(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone does not exist: correct data\.tokenizer\.model, or null to train one"):
        Tokenizer.load(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"has sha256 [0-9a-f]{64}, not 0{64}: restore the file or correct the hash"):
        Tokenizer.load(path, expected_sha256="0" * 64)
    for content in (b"", b"garbage" * 9, path.read_bytes()[:2000]):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(ValueError, match=r"bad is not a SentencePiece model .* give a tokenizer\.model file"):
            Tokenizer.load(tmp_path / "bad")
    with pytest.raises(ValueError, match="has no end-of-sentence piece, which ends every document"):
        Tokenizer.load(other_model(tmp_path / "eos", vocab_size=280, byte_fallback=True, eos_id=-1, model_type="bpe"))
    with pytest.raises(ValueError, match="has no byte pieces, so it cannot hold every text"):
        Tokenizer.load(other_model(tmp_path / "bytes", vocab_size=20, model_type="bpe"))
