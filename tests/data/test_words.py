"""Words encoded one by one give the ids of the whole text, and the models that this cannot serve are left alone."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece

from tinyllama.data import stdlib, words
from tinyllama.data.tokenizer import Tokenizer, train_tokenizer
from tinyllama.data.words import Encoder, word_expression

LLAMA = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "split_digits": True,
    "allow_whitespace_only_pieces": True,
    "unk_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "pad_id": -1,
    "character_coverage": 0.9995,
    "minloglevel": 2,
}
"""How Llama's model was trained: with SentencePiece's dummy prefix."""
OTHER_SCRIPTS = [
    "日本語のテキストを書く。日本語は、長い言葉。",
    "длинное слово и ещё одно слово",
    "naïve café e\u0301a\u0308",
    "שלום עולם",
    "──────▅",
] * 60
NASTY = [
    *" ▁\n\t\r\x00\x01\x1f\x7f\x85\xa0\ufeff\u200b\u2028\ufffd\ufffe\ue000",
    *"aetTé\u0301_-.,:;()[]{}=+*/\\'\"#<>^&|~`0123456789",
    *"日本語。、の слово שלום ─▅😀\U0010ffff",
    "👩‍👩‍👧", "\r\n", "    ", "        ", "▁▁", "the", " the", "self", "return", "import ",
    "<s>", "</s>", "<unk>", "<0x41>", "<0x0A>", "⁇",
]  # fmt: skip
SHORT = [
    "",
    *NASTY,
    *(before + after for before in NASTY for after in NASTY),
    "".join(map(chr, range(0xD7FF))),
    "".join(f" {chr(code)}x" for code in range(0xE000, 0x11000)),
    "the " * 5_000,
    "the" * 5_000,
    "ab1" * 5_000,
    "9" * 9_000,
    " " * 9_000,
    "\n" * 9_000,
    "\n    " * 3_000 + "▁",
    "=" * 9_000,
    "日本" * 5_000,
    "\U0010ffff" * 5_000,
]


def random_texts(count: int) -> list[str]:
    draw = random.Random(7)
    alphabets = [draw.sample(NASTY, draw.randrange(2, len(NASTY))) for _ in range(20)]
    return ["".join(draw.choices(draw.choice(alphabets), k=draw.randrange(1, 120))) for _ in range(count)]


@pytest.fixture(scope="module")
def documents() -> list[str]:
    """Some of the library's code and prose."""
    draw = random.Random(3)
    code, prose = stdlib.code(), stdlib.prose()
    texts = [code[key] for key in draw.sample(sorted(code), 40)] + [
        prose[key] for key in draw.sample(sorted(prose), 60)
    ]
    return [text[:60_000] for text in texts]


def trained(path: Path, *, texts: Iterable[str], **options: object) -> None:
    lines = [line[:4000] for text in texts for line in text.split("\n")]
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=file, **{**LLAMA, "vocab_size": 1500, **options}
        )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, documents: list[str]) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("models")
    texts = [text[:20_000] for text in documents[::4]] + OTHER_SCRIPTS
    few: dict[str, Any] = {"texts": [text[:4000] for text in texts[:20]], "vocab_size": 600}
    train_tokenizer(texts, vocab_size=2000, path=folder / "ours")
    train_tokenizer(texts[:9], vocab_size=400, path=folder / "small")
    trained(folder / "llama", texts=texts)
    # Letters, digits and signs in the same pieces, and tabs among them.
    trained(folder / "mixed", texts=texts, split_by_unicode_script=False, split_by_number=False, split_digits=False)
    trained(folder / "inner", **few, split_by_whitespace=False)
    trained(folder / "suffix", **few, treat_whitespace_as_suffix=True)
    trained(folder / "defined", **few, user_defined_symbols=["f t", "self"])
    trained(folder / "nfkc", **few, normalization_rule_name="nmt_nfkc")
    trained(folder / "strips", **few, remove_extra_whitespaces=True)
    trained(folder / "unigram", **few, model_type="unigram")
    return {path.name: Tokenizer.load(path) for path in folder.iterdir()}


BY_WORD = ["ours", "small", "llama", "mixed"]
WHOLE = ["inner", "suffix", "defined", "nfkc", "strips", "unigram"]


def differing(encoder: Encoder, tokenizer: Tokenizer, texts: list[str], *, dtype: str) -> list[str]:
    """The texts whose ids are not SentencePiece's."""
    return [text for text in texts if encoder.encode(text) != np.array(tokenizer.encode(text), dtype=dtype).tobytes()]


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
@pytest.mark.parametrize("name", BY_WORD)
def test_words_give_the_ids_of_the_whole_text(
    models: dict[str, Tokenizer], documents: list[str], name: str, dtype: str
) -> None:
    encoder = Encoder(models[name], dtype=dtype)
    assert encoder.by_word
    for texts in (SHORT, random_texts(600), documents):
        assert differing(encoder, models[name], texts, dtype=dtype) == []
        assert differing(encoder, models[name], texts, dtype=dtype) == [], "from memory"


@pytest.mark.parametrize("name", BY_WORD)
@pytest.mark.parametrize("max_words", [1, 3, 100])
def test_what_is_forgotten_is_encoded_again(
    models: dict[str, Tokenizer], documents: list[str], name: str, max_words: int
) -> None:
    encoder = Encoder(models[name], dtype="<u2", max_words=max_words)
    for text in [*random_texts(60), *documents[::20], "a▁▁b▁ "]:
        assert differing(encoder, models[name], [text[:5000]], dtype="<u2") == []
        assert len(encoder._words) <= max_words


@pytest.mark.parametrize("name", WHOLE)
def test_a_model_that_words_cannot_serve_encodes_whole_texts(
    models: dict[str, Tokenizer], documents: list[str], name: str
) -> None:
    encoder = Encoder(models[name], dtype="<u2")
    assert not encoder.by_word
    assert differing(encoder, models[name], [*SHORT, *random_texts(100), *documents[::9]], dtype="<u2") == []


def test_only_spaces_inside_pieces_forbid_words(models: dict[str, Tokenizer]) -> None:
    assert word_expression(["▁the", "▁▁", "▁▁▁x", "x", "ab", "\n▁"], escapes_signs=True)
    for piece in ("a▁", "▁a▁b", "▁▁a▁", "a b"):
        assert word_expression(["▁the", piece], escapes_signs=True) is None
    # "a" may stand before a line break in a piece, so that breaks are no longer spaces, which may then follow one.
    assert word_expression(["a\n", "\n▁"], escapes_signs=True) is None
    inner = [models["inner"]._model.id_to_piece(index) for index in range(models["inner"].vocab_size)]
    assert any(a != "▁" and b == "▁" for piece in inner for a, b in pairwise(piece))


def test_where_words_end() -> None:
    pieces = ["▁the", "ab", "bé", "():", "日本", "▁▁▁", "12"]
    found = re.compile(word_expression(pieces, escapes_signs=True) or "").findall
    assert found("the abé():\n\n   héab 日本x12▁ ▁\n") == [
        "the", " abé", "():", "\n\n   h", "éab", " 日本", "x", "12", "▁", " ", "▁", "\n",
    ]  # fmt: skip
    found = re.compile(word_expression([*pieces, "x\n", "\n\n"], escapes_signs=False) or "").findall
    assert found("x\n\nab▁ ▁ab") == ["x\n\n", "ab", "▁ ▁ab"]


@pytest.mark.parametrize(("name", "lonely"), [("ours", "e"), ("llama", "e"), ("ours", "("), ("llama", "о")])
def test_a_wrong_cut_would_show(
    models: dict[str, Tokenizer], documents: list[str], monkeypatch: pytest.MonkeyPatch, name: str, lonely: str
) -> None:
    def wrong(pieces: Iterable[str], *, escapes_signs: bool) -> str | None:
        return word_expression((piece for piece in pieces if lonely not in piece), escapes_signs=escapes_signs)

    monkeypatch.setattr(words, "word_expression", wrong)
    encoder = Encoder(models[name], dtype="<u2")
    assert encoder.by_word
    for texts in (SHORT, random_texts(600)):
        assert differing(encoder, models[name], texts, dtype="<u2")


@pytest.mark.parametrize("name", BY_WORD)
@pytest.mark.parametrize("chunk", [1, 2, 7, 64])
def test_a_long_text_is_walked_in_parts(
    models: dict[str, Tokenizer], documents: list[str], monkeypatch: pytest.MonkeyPatch, name: str, chunk: int
) -> None:
    monkeypatch.setattr(words, "_CHUNK", chunk)
    encoder = Encoder(models[name], dtype="<u2")
    texts = [*random_texts(100), *(text[:3000] for text in documents[::10]), "a" * 100, " " * 100, "\n" + "▁" * 100]
    assert differing(encoder, models[name], texts, dtype="<u2") == []
    assert all(len(part) <= chunk + 1 for text in texts for part in encoder._chunks(text))


@pytest.mark.parametrize("make", [lambda n: "x" * n, lambda n: "the end\n" + " " * n, lambda n: "日" * n + "\n"])
def test_a_word_that_takes_too_much_memory_is_refused(
    models: dict[str, Tokenizer], monkeypatch: pytest.MonkeyPatch, make: Callable[[int], str]
) -> None:
    monkeypatch.setattr(words, "_CHUNK", 100)
    monkeypatch.setattr(words, "MAX_SPAN", 1000)
    encoder = Encoder(models["ours"], dtype="<u2")
    assert differing(encoder, models["ours"], [make(900)], dtype="<u2") == []
    with pytest.raises(
        ValueError, match=r"a run of 1,10[01] characters without a space or line break is more than 1,000"
    ):
        encoder.encode(make(1100))


def test_what_is_refused(models: dict[str, Tokenizer], monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in ("u2", "int32"):
        with pytest.raises(ValueError, match=rf"dtype {dtype} does not hold the ids of 2,000 pieces: give '<u2'"):
            Encoder(models["ours"], dtype=dtype)
    with pytest.raises(ValueError, match="max_words is 0, and the word at hand has to be held: give at least 1"):
        Encoder(models["ours"], dtype="<u2", max_words=0)
    for name in ("ours", "inner"):
        with pytest.raises(ValueError, match=r"character 2 is '\\ud800', half of a surrogate pair, which is no text"):
            Encoder(models[name], dtype="<u2").encode("ab\ud800")
    monkeypatch.setattr(models["small"], "vocab_size", 65_537)
    with pytest.raises(ValueError, match="dtype <u2 does not hold the ids of 65,537 pieces"):
        Encoder(models["small"], dtype="<u2")
    Encoder(models["small"], dtype="<u4")
