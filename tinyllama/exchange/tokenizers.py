"""A SentencePiece model as the tokenizer files of Hugging Face, with the same ids for every text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from tinyllama.data.tokenizer import SPACE, Tokenizer

_PROTO: Any = sentencepiece_model_pb2  # its classes are made as it is imported, and have no types
_KINDS = _PROTO.ModelProto.SentencePiece
_LOOKS_LIKE_BYTE = re.compile(r"<0x[+0-9A-Fa-f][0-9A-Fa-f]>")


def tokenizer_files(tokenizer: Tokenizer, *, start: int, adds_start: bool, context: int) -> dict[str, bytes]:
    """`tokenizer.json` and `tokenizer_config.json`, by name: the same model gives the same bytes.

    `AutoTokenizer` of a folder with them gives the ids of `Tokenizer.encode` for every text, and for these ids, with
    skip_special_tokens, the texts of `Tokenizer.decode`. It differs in what is not the encoding of a text: where bytes
    are no UTF-8 it writes U+FFFD for all bytes beside them, and it is silent for the unknown piece.

    `start` is the token that a document begins with, `adds_start` whether each text is begun with it, `context` the
    tokens that the model takes. Raises ValueError, naming it, for what a model has that the files cannot express.
    """
    model = expressible(tokenizer, form="tokenizer.json")
    if not 0 <= start < tokenizer.vocab_size or model.pieces[start].type != _KINDS.CONTROL:
        raise ValueError(
            f"token {start} begins a document, and is no control symbol of the tokenizer's {tokenizer.vocab_size:,} "
            "pieces, so that a text could contain it: give a tokenizer whose control symbols the model was trained with"
        )
    bos, eos = model.pieces[start].piece, model.pieces[tokenizer.eos].piece
    unknown = next(piece.piece for piece in model.pieces if piece.type == _KINDS.UNKNOWN)
    # Where U+2581 stands for itself, spaces are written as spaces, so that the sign is in no piece and goes to bytes.
    pieces = [piece.piece.replace(SPACE, " ") if tokenizer.escapes_signs else piece.piece for piece in model.pieces]
    escapes = [{"type": "Prepend", "prepend": SPACE}, _replace(" ", SPACE)]
    unescapes = [_replace(SPACE, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": index,
                "content": pieces[index],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for index, piece in enumerate(model.pieces)
            if piece.type in (_KINDS.CONTROL, _KINDS.UNKNOWN)
        ],
        "normalizer": None if tokenizer.escapes_signs else {"type": "Sequence", "normalizers": escapes},
        "pre_tokenizer": None,
        "post_processor": _begins_with(bos, start) if adds_start else None,
        "decoder": {
            "type": "Sequence",
            "decoders": unescapes[1:]
            if tokenizer.escapes_signs
            else [*unescapes, {"type": "Strip", "content": " ", "start": 1, "stop": 0}],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece: index for index, piece in enumerate(pieces)},
            "merges": merges(
                {
                    written: piece.score
                    for written, piece in zip(pieces, model.pieces, strict=True)
                    if piece.type == _KINDS.NORMAL
                }
            ),
        },
    }
    settings = {
        # The class that takes tokenizer.json as it is; Llama's own would write merges and normalizers anew.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "unk_token": unknown,
        "add_bos_token": adds_start,
        "add_eos_token": False,
        "model_max_length": context,
        # What transformers 4 would add to these, a Llama does not take.
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        # "</s>" in a text is a text.
        "split_special_tokens": True,
    }
    return {"tokenizer.json": _written(content), "tokenizer_config.json": _written(settings)}


def merges(scores: Mapping[str, float]) -> list[list[str]]:
    """Every pair of pieces that makes another, the pairs of the piece with the highest score first.

    Both SentencePiece and Hugging Face join in this order, and of what comes first equally the leftmost. To
    SentencePiece pieces of one score are equal, which a list cannot say. Where these are runs of one sign, as Llama's
    runs of spaces are, the leftmost that can be joined is always the longest: longer runs come first. The pairs of one
    piece are equal too; it would show where x + y and y + z are the same piece and x, y, z are neighbours, which
    joining from the left was never seen to leave.
    """
    return [
        [piece[:cut], piece[cut:]]
        for piece in sorted(scores, key=lambda piece: (-scores[piece], -len(piece)))
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]


def check_vocabulary(path: Path, tokenizer: Tokenizer) -> list[str]:
    """The tokens of a tokenizer.json past the SentencePiece model's pieces, which the model leaves out, by id.

    Raises ValueError where the file cannot be read, or where an id means another piece than in the model. A piece
    may be written with spaces or with U+2581.
    """
    try:
        content = json.loads(path.read_bytes())
        vocabulary = content["model"]["vocab"]
        if isinstance(vocabulary, dict):
            by_id = {int(index): str(piece) for piece, index in vocabulary.items()}
        else:
            by_id = {index: str(row[0]) for index, row in enumerate(vocabulary)}
        by_id |= {int(token["id"]): str(token["content"]) for token in content.get("added_tokens") or []}
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(
            f"{path} is no tokenizer.json ({type(error).__name__}: {error}): restore it, or remove it and keep "
            "tokenizer.model"
        ) from error
    model = _PROTO.ModelProto.FromString(tokenizer.serialized())
    for index, piece in enumerate(model.pieces):
        other = by_id.get(index)
        if other is None or other.replace(SPACE, " ") != piece.piece.replace(SPACE, " "):
            says = "has no such id" if other is None else f"says {other!r}"
            raise ValueError(
                f"token {index} is {piece.piece!r} in tokenizer.model and {path} {says}: they are of two models, so "
                "give the folder the tokenizer.model that its weights were trained with"
            )
    return [by_id[index] for index in sorted(by_id) if index >= len(model.pieces)]


def expressible(tokenizer: Tokenizer, *, form: str) -> Any:
    """The parsed SentencePiece model, of which a file of that form can say all. Raises ValueError for any other."""
    model = _PROTO.ModelProto.FromString(tokenizer.serialized())
    _refuse_settings(model, form=form)
    _refuse_pieces(model, form=form)
    return model


def _refuse_settings(model: Any, *, form: str) -> None:
    """Raises ValueError for a setting under which SentencePiece does what the form cannot say."""
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    for setting, value, wanted in (
        ("model_type", _PROTO.TrainerSpec.ModelType.Name(trainer.model_type).lower(), "bpe"),
        ("normalization_rule_name", normalizer.name if normalizer.precompiled_charsmap else "identity", "identity"),
        ("remove_extra_whitespaces", normalizer.remove_extra_whitespaces, False),
        ("treat_whitespace_as_suffix", trainer.treat_whitespace_as_suffix, False),
        ("escape_whitespaces", normalizer.escape_whitespaces, True),
        ("a denormalizer", bool(model.denormalizer_spec.precompiled_charsmap), False),
    ):
        if value != wanted:
            raise ValueError(
                f"the tokenizer has {setting}={value}, with which no {form} gives the same ids: use a model that was "
                f"trained with {setting}={wanted}"
            )


def _refuse_pieces(model: Any, *, form: str) -> None:
    """Raises ValueError for the first piece that would be found, joined or decoded otherwise."""
    normal = {piece.piece for piece in model.pieces if piece.type == _KINDS.NORMAL}
    by_score: dict[float, str] = {}
    for index, piece in enumerate(model.pieces):
        reason = None
        if piece.type in (_KINDS.USER_DEFINED, _KINDS.UNUSED):
            reason = f"is {_KINDS.Type.Name(piece.type).lower().replace('_', '-')}"
        elif piece.type == _KINDS.NORMAL:
            alone = next((sign for sign in piece.piece if sign not in normal), None)
            if " " in piece.piece:
                reason = "has a space that is not written as U+2581"
            elif _LOOKS_LIKE_BYTE.fullmatch(piece.piece):
                reason = "would be read as a byte"
            elif alone is not None:
                reason = f"has {alone!r}, which is no piece itself"
            elif len(piece.piece) > 1:
                other = by_score.setdefault(piece.score, piece.piece)
                if other != piece.piece and len({*piece.piece, *other}) > 1:
                    reason = f"has the score of {other!r}, so that neither is joined first"
        if reason:
            raise ValueError(
                f"piece {index} of the tokenizer, {piece.piece!r}, {reason}, which no {form} can express: use a "
                "model without such a piece"
            )


def _replace(old: str, new: str) -> dict[str, object]:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def _begins_with(bos: str, start: int) -> dict[str, object]:
    """What puts a token before every text, and before each of two."""
    single, pair = (
        [{"SpecialToken": {"id": bos, "type_id": kind}}, {"Sequence": {"id": name, "type_id": kind}}]
        for kind, name in enumerate("AB")
    )
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": single + pair,
        "special_tokens": {bos: {"id": bos, "ids": [start], "tokens": [bos]}},
    }


def _written(content: object) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode()
