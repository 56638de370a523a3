"""The SentencePiece model: text to token ids and back, exactly."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

SPACE = "\u2581"
"""What SentencePiece writes a space as. The sign itself would come back as a space: its bytes are encoded instead."""
_LINE = 4096


class Tokenizer:
    """A SentencePiece model with byte fallback; `load` makes one.

    Decoding an encoding gives the text back exactly, U+2581 included, for models trained here. A model that adds a
    dummy prefix or normalises (Llama's adds a prefix) keeps its own conventions.
    """

    def __init__(self, model: bytes, *, name: str) -> None:
        """Takes a serialised model; `name` says in errors what it is. Raises ValueError where it cannot be used."""
        self.sha256 = hashlib.sha256(model).hexdigest()
        """Of the model file."""
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError(f"{name} is not a SentencePiece model ({error}): give a tokenizer.model file") from error
        self.vocab_size = self._model.vocab_size() if model else 0
        """Pieces, bytes and control symbols together."""
        if not self.vocab_size:
            raise ValueError(f"{name} is not a SentencePiece model (it is empty): give a tokenizer.model file")
        self.eos: int = self._model.eos_id()
        """Id of the end-of-document token."""
        if self.eos < 0:
            raise ValueError(f"{name} has no end-of-sentence piece, which ends every document: give a model with </s>")
        self._space_bytes = [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        if not all(map(self._model.is_byte, self._space_bytes)):
            raise ValueError(f"{name} has no byte pieces, so it cannot hold every text: train with byte_fallback")
        # Around each sign a model that adds a dummy prefix would add one more: leave the sign to its own convention.
        self.escapes_signs = sum(map(self._bytes_of, self._model.encode("a"))) == 1
        """Whether U+2581 in a text is encoded as bytes."""

    @classmethod
    def load(cls, path: Path, *, expected_sha256: str | None = None) -> Tokenizer:
        """Reads a model file. Raises ValueError where it is missing, differs from the hash, or is no usable model."""
        if not path.is_file():
            raise ValueError(f"tokenizer {path} does not exist: correct data.tokenizer.model, or null to train one")
        content = path.read_bytes()
        actual = hashlib.sha256(content).hexdigest()
        if expected_sha256 not in (None, actual):
            raise ValueError(
                f"tokenizer {path} has sha256 {actual}, not {expected_sha256}: restore the file or correct the hash"
            )
        return cls(content, name=f"tokenizer {path}")

    @property
    def end_piece(self) -> str:
        """How the end-of-document token is spelled."""
        piece: str = self._model.id_to_piece(self.eos)
        return piece

    def serialized(self) -> bytes:
        """The model, as SentencePiece writes it in a file."""
        content: bytes = self._model.serialized_model_proto()
        return content

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without beginning or end symbols."""
        # what is between U+2581 signs, where they are not spaces, and their bytes in between
        first, *rest = text.split(SPACE) if self.escapes_signs else [text]
        ids: list[int] = self._model.encode(first)
        for part in rest:
            ids += self._space_bytes + self._model.encode(part)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; control symbols are silent and bytes that are no UTF-8 become U+FFFD."""
        text: str = self._model.decode([int(index) for index in ids])
        return text

    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes that each piece stands for, uint16 [vocab_size].

        Control symbols stand for none and byte pieces for one, so that the sum over an encoded text is its length in
        bytes (one more under a model that adds a dummy prefix). Loss divided by it does not depend on the tokenizer.
        """
        return np.array([self._bytes_of(index) for index in range(self.vocab_size)], dtype=np.uint16)

    def _bytes_of(self, index: int) -> int:
        if self._model.is_control(index) or self._model.is_unknown(index):
            return 0
        if self._model.is_byte(index):
            return 1
        return len(self._model.id_to_piece(index).replace(SPACE, " ").encode())


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, path: Path) -> None:
    """Trains a BPE model with byte fallback on texts and writes it: the same texts give the same bytes.

    Like Llama's (arXiv 2302.13971: digits split, unknown 0, beginning 1, end 2, no padding), but for the dummy prefix,
    which would make a text's encoding depend on where it is cut, and with runs of spaces as pieces, for code. Newlines
    are byte pieces. Raises ValueError where the texts cannot fill the vocabulary or need a larger one.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_training_lines(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            # The rarest characters are left to byte pieces; at 1.0 every sign in the sample would take a piece.
            character_coverage=0.9995,
            # Nothing is drawn at random, so there is no seed to fix.
            shuffle_input_sentence=False,
            max_sentence_length=4 * _LINE,
            # Recorded in the file: a fixed number keeps the bytes the same on every machine.
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).rpartition("] ")[2] or "the sample is empty"
        raise ValueError(
            f"vocab_size {vocab_size} cannot be trained on this text ({reason}): change data.tokenizer.vocab_size, "
            "or give more text through data.tokenizer.sample_bytes"
        ) from error
    path.write_bytes(model.getvalue())


def _training_lines(texts: Iterable[str]) -> Iterator[str]:
    """Texts cut at newlines and, since SentencePiece skips what is too long for it, at 4,096 characters."""
    for text in texts:
        for line in text.split("\n"):
            yield from (line[start : start + _LINE] for start in range(0, len(line), _LINE))
