"""What is streamed adds up to the text, and holds nothing that may yet change."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import sentencepiece

from tinyllama.data.tokenizer import Tokenizer, train_tokenizer
from tinyllama.evaluate import stream
from tinyllama.evaluate.stream import Stream

TEXT = [
    "the world is wide, the world is old\n\n",
    "def f(x):\n        return x + 1\n",
    "日本語のテキスト 中文字符",
    "😀 été",
] * 30
ALPHABET = [
    "a",
    "b",
    "ab",
    " ",
    "  ",
    "\n",
    "é",
    "日",
    "本語",
    "😀",
    "👩‍👩‍👧",
    "\ufffd",
    "▁",
    "the world",
    "\x00",
    "e\u0301",
]
STOPS = ["\n\n", "ab", "ba", "aab", "b", "本", "語😀", "😀😀", "\ufffd", " the", "world is old"]


def ours(path: Path) -> Tokenizer:
    train_tokenizer(TEXT, vocab_size=340, path=path)
    return Tokenizer.load(path)


def llamas(path: Path) -> Tokenizer:
    """A model that adds a dummy prefix, and drops the space that a text begins with."""
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXT), model_writer=file, minloglevel=2, model_type="bpe", vocab_size=340,
            byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        )  # fmt: skip
    return Tokenizer.load(path)


@pytest.fixture(scope="module", params=[ours, llamas])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    made: Tokenizer = request.param(tmp_path_factory.mktemp("tokenizer") / "tokenizer.model")
    return made


def slow(tokenizer: Tokenizer, before: list[int], tokens: list[int], stop: list[str]) -> str:
    """All decoded at once, and read on a character at a time until it ends in a stop string."""
    text = tokenizer.decode([*before, *tokens])[len(tokenizer.decode(before)) :]
    for end in range(len(text) + 1):
        ending = [one for one in stop if text[:end].endswith(one)]
        if ending:
            return text[: end - max(map(len, ending))]
    return text


def streamed(tokenizer: Tokenizer, before: list[int], tokens: list[int], stop: list[str]) -> list[str]:
    told = Stream(tokenizer, before, stop)
    pieces = []
    for token in tokens:
        pieces.append(told.add(token))
        if told.ended:
            break
    return [*pieces, told.finish()]


def some_case(tokenizer: Tokenizer, seed: int) -> tuple[list[int], list[int], list[str]]:
    numbers = random.Random(seed)
    prompt = "".join(numbers.choices(ALPHABET, k=numbers.randrange(4)))
    tokens: list[int] = []
    for _ in range(numbers.randrange(12)):
        kind = numbers.random()
        if kind < 0.6:
            tokens += tokenizer.encode("".join(numbers.choices(ALPHABET, k=3)))
        elif kind < 0.8:  # parts of characters
            cut = tokenizer.encode("日😀é")
            tokens += cut[numbers.randrange(len(cut)) :]
        else:  # anything, control symbols and the unknown among them
            tokens.append(numbers.choice([0, 1, 2, numbers.randrange(tokenizer.vocab_size)]))
    return tokenizer.encode(prompt) or [tokenizer.eos], tokens, numbers.sample(STOPS, numbers.randrange(4))


def check(tokenizer: Tokenizer, seeds: range) -> None:
    for seed in seeds:
        before, tokens, stop = some_case(tokenizer, seed)
        assert "".join(streamed(tokenizer, before, tokens, stop)) == slow(tokenizer, before, tokens, stop), seed


def test_the_stream_is_the_text(tokenizer: Tokenizer) -> None:
    check(tokenizer, range(3000))


def test_a_stream_that_tells_halves_of_characters_is_caught(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_UNREADABLE", "\x01")
    with pytest.raises(AssertionError):
        check(tokenizer, range(300))


def test_a_stream_that_forgets_what_it_held_is_caught(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = Stream.finish

    def forgetful(self: Stream) -> str:
        self._held = ""
        return finish(self)

    monkeypatch.setattr(Stream, "finish", forgetful)
    with pytest.raises(AssertionError):
        check(tokenizer, range(300))


def test_a_character_is_told_when_it_is_whole(tokenizer: Tokenizer) -> None:
    pieces = tokenizer.encode("a🚀")[-4:]  # which is in no vocabulary here
    before = tokenizer.encode("x")
    assert streamed(tokenizer, before, pieces, []) == ["", "", "", "🚀", ""]
    assert streamed(tokenizer, before, pieces[:3], []) == ["", "", "", "\ufffd" * 3]


def test_what_may_become_a_stop_string_is_held_back() -> None:
    class Letters:
        def decode(self, ids: list[int]) -> str:
            return "".join(map(chr, ids))

    def told(text: str, *stop: str) -> list[str]:
        return streamed(Letters(), [ord(">")], list(map(ord, text)), list(stop))  # type: ignore[arg-type]

    assert told("abcd", "bcx") == ["a", "", "", "bcd", ""]
    assert told("abcx", "bcx") == ["a", "", "", "", ""]
    assert told("abc", "bcx") == ["a", "", "", "bc"]
    assert told("aaab", "aab") == ["", "", "a", "", ""], "where a first try was none, a later one is"
    assert told("xabcd", "abcd", "bc") == ["x", "", "", "a", ""], "the one that is complete first"
    assert told("xabc", "bc", "abc") == ["x", "", "", "", ""], "of two the longer"
    assert told("ab", "ab") == ["", "", ""]


def test_a_stop_string_is_looked_for_in_what_follows_alone(tokenizer: Tokenizer) -> None:
    before = tokenizer.encode("the world\n")
    assert "".join(streamed(tokenizer, before, tokenizer.encode("\nthe"), ["\n\n"])).strip() == "the"
