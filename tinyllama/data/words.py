"""Text to packed token ids, word by word: as exact as SentencePiece on the whole text, and several times as fast."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from tinyllama.data.tokenizer import SPACE, Tokenizer

MAX_WORDS = 400_000
"""Words that are remembered: some 60 MB of ordinary ones, and under 200 MB of the largest that are kept."""
MAX_SPAN = 1 << 22
"""Characters of the longest word that is encoded: SentencePiece takes 50 to 64 bytes of memory for each."""
_CHUNK = 1 << 20  # characters whose words are listed at once
_CHARACTERS, _BYTES = 48, 64  # of the longest word that is remembered, and of its ids
_PROTO: Any = sentencepiece_model_pb2  # its classes are made as it is imported, and have no types
_CLASSES = 8  # kinds of characters that the expression tells apart: it tries one after the other


class Encoder:
    """Encodes texts as a tokenizer does, into bytes that go into a shard as they are.

    BPE only ever joins neighbours into a piece of the vocabulary. Where no piece holds two characters one after the
    other, a text can be cut between them and its parts encoded alone, and most parts have been seen before.
    """

    def __init__(self, tokenizer: Tokenizer, *, dtype: str, max_words: int = MAX_WORDS) -> None:
        """Takes the NumPy type of the ids, `<u2` or `<u4`, and the number of words to remember.

        Raises ValueError where the type does not hold every id, or for fewer than one word.
        """
        if dtype not in ("<u2", "<u4") or tokenizer.vocab_size > 1 << 8 * int(dtype[-1]):
            raise ValueError(
                f"dtype {dtype} does not hold the ids of {tokenizer.vocab_size:,} pieces: give '<u2' up to 65,536 "
                "pieces and '<u4' for more"
            )
        if max_words < 1:
            raise ValueError(f"max_words is {max_words}, and the word at hand has to be held: give at least 1")
        self._tokenizer = tokenizer
        self._dtype = dtype
        self._prefix = "" if tokenizer.escapes_signs else " "
        expression = _expression(tokenizer)
        self.by_word = expression is not None
        """Whether texts are cut into words; the tokenizer encodes whole ones where its model does not allow it."""
        if expression is not None:
            self._expression = re.compile(expression)
            self._words = _Words(tokenizer, dtype=dtype, max_words=max_words)

    def encode(self, text: str) -> bytes:
        """Ids of a text, packed, without beginning or end symbols.

        Raises ValueError for a lone surrogate, and for a word of more than 4,194,304 characters.
        """
        if not text.isascii():
            _check(text)
        if not self.by_word:
            return np.array(self._tokenizer.encode(text), dtype=self._dtype).tobytes()
        if text:
            text = self._prefix + text
        if len(text) <= _CHUNK:
            return self._joined(self._expression.findall(text))
        return b"".join(map(self._joined, self._chunks(text)))

    def _chunks(self, text: str) -> Iterable[list[str]]:
        """The words of a text, those of a million characters at once, so that the list of them stays small."""
        start, size = 0, _CHUNK
        while start < len(text):
            words = self._expression.findall(text[start : start + size])
            end = start + size
            if end < len(text):
                # The last one may go on behind the cut.
                end -= len(words.pop())
            if words:
                yield words
                start, size = end, _CHUNK
            else:
                # One more character shows that it ends.
                size = self._span(text, start) + 1

    def _span(self, text: str, start: int) -> int:
        """Characters of the word that starts there."""
        found = self._expression.match(text, start)
        assert found is not None
        span = found.end() - start
        if span > MAX_SPAN:
            raise ValueError(
                f"a run of {span:,} characters without a space or line break is more than {MAX_SPAN:,}, and is no "
                "text: filter the document out, or break it up"
            )
        return span

    def _joined(self, words: list[str]) -> bytes:
        return b"".join(map(self._words.__getitem__, words))


class _Words(dict[str, bytes]):
    """Packed ids of the words met last; a new word is encoded when it is asked for."""

    def __init__(self, tokenizer: Tokenizer, *, dtype: str, max_words: int) -> None:
        super().__init__()
        self._dtype = dtype
        self._max_words = max_words
        model = _PROTO.ModelProto.FromString(tokenizer.serialized())
        model.normalizer_spec.add_dummy_prefix = False
        self._model = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
        self._sign = SPACE if tokenizer.escapes_signs else None
        self._sign_ids = tokenizer.encode(SPACE)

    def __missing__(self, word: str) -> bytes:
        ids = self._sign_ids if word == self._sign else self._model.encode(word)
        packed = np.array(ids, dtype=self._dtype).tobytes()
        if len(word) <= _CHARACTERS and len(packed) <= _BYTES:
            if len(self) >= self._max_words:
                # Forgetting all at once costs nothing until then; what is still in use is soon back.
                self.clear()
            self[word] = packed
        return packed


def _expression(tokenizer: Tokenizer) -> str | None:
    """A regular expression for the words of a text, or None where words cannot be encoded alone."""
    model = _PROTO.ModelProto.FromString(tokenizer.serialized())
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    kinds = _PROTO.ModelProto.SentencePiece
    if (
        trainer.model_type != _PROTO.TrainerSpec.BPE
        or trainer.treat_whitespace_as_suffix
        or normalizer.precompiled_charsmap
        or normalizer.remove_extra_whitespaces
        or not normalizer.escape_whitespaces
        or normalizer.add_dummy_prefix == tokenizer.escapes_signs
        # User-defined pieces are found before any joining, and unused ones are taken apart after it.
        or {piece.type for piece in model.pieces} - {kinds.NORMAL, kinds.UNKNOWN, kinds.CONTROL, kinds.BYTE}
    ):
        return None
    return word_expression(
        (piece.piece for piece in model.pieces if piece.type == kinds.NORMAL), escapes_signs=tokenizer.escapes_signs
    )


def word_expression(pieces: Iterable[str], *, escapes_signs: bool) -> str | None:
    """A regular expression whose matches make up any text, and between which no piece lies; None where spaces do.

    A word is a run of characters that pieces bring together, as letters or punctuation, with the spaces and line
    breaks before it where these only ever lead pieces. `escapes_signs`: U+2581 is a word, not a space.
    """
    pairs = {pair for piece in pieces for pair in pairwise(piece.replace(" ", SPACE))}
    leading = {SPACE, "\n", "\r", "\t"}
    while following := {b for a, b in pairs if b in leading and a not in leading}:
        leading -= following
    if SPACE not in leading:
        return None
    classes = [_class(group) for group in _groups((a, b) for a, b in pairs if not {a, b} & leading)[:_CLASSES]]
    before = _class(leading - {SPACE} | ({" "} if escapes_signs else {" ", SPACE}))
    # What is in no class is in no larger piece, or in so few that one class for all of them will do.
    rest = f"^{SPACE}{before}{''.join(classes)}"
    words = "|".join(f"[{one}]+" for one in [*classes, rest])
    return f"[{before}]*(?:{words})|[{before}]+" + (f"|{SPACE}" if escapes_signs else "")


def _groups(pairs: Iterable[tuple[str, str]]) -> list[set[str]]:
    """Characters that are connected through pairs, the largest group first."""
    group: dict[str, set[str]] = {}
    for a, b in pairs:
        small, large = sorted((group.setdefault(a, {a}), group.setdefault(b, {b})), key=len)
        if small is not large:
            large |= small
            group.update(dict.fromkeys(small, large))
    return sorted({id(one): one for one in group.values()}.values(), key=lambda one: (-len(one), min(one)))


def _class(characters: Iterable[str]) -> str:
    """The inside of a bracket expression."""
    return "".join(map(re.escape, sorted(characters)))


def _check(text: str) -> None:
    """Raises ValueError where a text cannot be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"character {error.start:,} is {text[error.start]!a}, half of a surrogate pair, which is no text: "
            "filter the document out, or repair it"
        ) from error
