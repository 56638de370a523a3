"""Hugging Face's tokenizer reads what is written for it and gives our ids, and what it could not say is refused."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers

from tests.data.test_words import trained
from tests.exchange.pieces import KINDS, TEXTS, by_hand, documents, train
from tinyllama.data.tokenizer import Tokenizer
from tinyllama.exchange import tokenizers as written
from tinyllama.exchange.tokenizers import check_vocabulary, merges, tokenizer_files

NAMES = ["ours", "small", "llama", "mixed"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    return train(tmp_path_factory.mktemp("models"))


def read(folder: Path, tokenizer: Tokenizer, *, start: int = 2, adds_start: bool = False) -> Any:
    """What transformers makes of the files, beside a model's configuration."""
    folder.mkdir(exist_ok=True)
    files = tokenizer_files(tokenizer, start=start, adds_start=adds_start, context=256)
    for name, content in (files | {"config.json": b'{"model_type": "llama"}'}).items():
        (folder / name).write_bytes(content)
    return transformers.AutoTokenizer.from_pretrained(folder)


def differing(other: Any, tokenizer: Tokenizer, texts: list[str]) -> list[str]:
    """The texts whose ids are others, or whose ids become another text."""
    ids = [tokenizer.encode(text) for text in texts]
    encoded = other(texts)["input_ids"]
    decoded = other.batch_decode(ids, skip_special_tokens=True)
    expected = [tokenizer.decode(one) for one in ids]
    return [
        text
        for text, *rest in zip(texts, ids, encoded, expected, decoded, strict=True)
        if rest[0] != rest[1] or rest[2] != rest[3]
    ]


@pytest.mark.parametrize("name", NAMES)
def test_ids_and_texts_are_sentencepieces(models: dict[str, Tokenizer], tmp_path: Path, name: str) -> None:
    other = read(tmp_path, models[name])
    assert type(other).__name__ == "TokenizersBackend"
    assert differing(other, models[name], TEXTS) == []
    assert differing(other, models[name], documents()) == []
    assert other("</s>")["input_ids"] == models[name].encode("</s>") != [2]
    assert len(other) == other.vocab_size == models[name].vocab_size
    assert other.model_max_length == 256 and other.clean_up_tokenization_spaces is False
    assert (other.bos_token_id, other.eos_token_id, other.unk_token_id) == (2, 2, 0)


def test_a_folder_without_a_model_will_do(models: dict[str, Tokenizer], tmp_path: Path) -> None:
    read(tmp_path, models["ours"])
    (tmp_path / "config.json").unlink()
    other = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert differing(other, models["ours"], TEXTS[:500]) == []


def test_what_transformers_saves_is_still_the_same(models: dict[str, Tokenizer], tmp_path: Path) -> None:
    read(tmp_path / "ours", models["ours"], start=1, adds_start=True).save_pretrained(tmp_path / "again")
    other = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert other("a </s>")["input_ids"] == [1, *models["ours"].encode("a </s>")]


@pytest.mark.parametrize("name", ["ours", "llama"])
def test_a_text_begins_with_the_start_where_it_is_to(models: dict[str, Tokenizer], tmp_path: Path, name: str) -> None:
    tokenizer = models[name]
    other = read(tmp_path, tokenizer, start=1, adds_start=True)
    for text in ("", "a b", "<s>"):
        ids = tokenizer.encode(text)
        assert other(text)["input_ids"] == [1, *ids]
        assert other(text, add_special_tokens=False)["input_ids"] == ids
        assert other.decode([1, *ids, 2], skip_special_tokens=True) == tokenizer.decode([1, *ids, 2]) == text
    assert other("a", "b")["input_ids"] == [1, *tokenizer.encode("a"), 1, *tokenizer.encode("b")]
    assert other.bos_token == "<s>"
    # For others that read it: transformers 5 itself goes by tokenizer.json.
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["add_bos_token"] is True and settings["add_eos_token"] is False


@pytest.mark.parametrize("seed", range(60))
def test_pieces_of_any_kind_are_joined_in_the_same_order(seed: int) -> None:
    draw = random.Random(seed)
    letters = draw.choice(["a", "ab", "ab", "ab ", "abc"])
    pieces = list(letters.replace(" ", "▁"))
    for _ in range(draw.randrange(4, 150)):
        piece = draw.choice(pieces) + draw.choice(pieces)
        if piece not in pieces and len(piece) < 9:
            pieces.append(piece)
    scores = draw.sample(range(-len(pieces), 0), len(pieces)) if seed % 2 else range(-1, -len(pieces) - 1, -1)
    model = by_hand(zip(pieces, scores, strict=True), add_dummy_prefix=seed % 3 == 0)
    tokenizer = Tokenizer(model.SerializeToString(), name="model")
    files = tokenizer_files(tokenizer, start=2, adds_start=False, context=9)
    other = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    texts = ["".join(draw.choices(letters, k=draw.randrange(1, 60))) for _ in range(200)]
    texts += ["".join(one) for length in range(1, 6) for one in product(letters, repeat=length)]
    texts += [piece.replace("▁", " ") * times for piece in pieces for times in range(2, 12)]
    assert [text for text in texts if other.encode(text).ids != tokenizer.encode(text)] == []


def runs(seed: int) -> tuple[Any, list[str]]:
    """A model whose runs of spaces share the lowest score, as Llama's do, and texts for it."""
    draw = random.Random(seed)
    letters, lengths = "ab", sorted(draw.sample(range(3, 20), draw.randrange(0, 17)))
    pieces = [*letters, "▁", "ab", "ba", "▁a", "▁▁a", "▁▁▁b", "a▁", "▁a▁▁", "b▁▁", "▁ab"]
    scores = [*draw.sample(range(-99, 0), len(pieces)), *[-1e9] * (1 + len(lengths))]
    model = by_hand(zip([*pieces, *("▁" * length for length in [2, *lengths])], scores, strict=True))
    texts = [" " * length for length in range(200)]
    texts += [
        "".join(draw.choices(["a", "b", " " * draw.randrange(1, 50)], k=draw.randrange(1, 30))) for _ in range(300)
    ]
    return model, texts


@pytest.mark.parametrize("seed", range(40))
def test_runs_of_spaces_may_share_a_score(seed: int) -> None:
    model, texts = runs(seed)
    tokenizer = Tokenizer(model.SerializeToString(), name="model")
    files = tokenizer_files(tokenizer, start=2, adds_start=False, context=9)
    other = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    assert [text for text in texts if other.encode(text).ids != tokenizer.encode(text)] == []


def test_shorter_runs_first_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    def shorter_first(scores: dict[str, float]) -> list[list[str]]:
        return sorted(merges(scores), key=lambda pair: (-scores["".join(pair)], len("".join(pair))))

    monkeypatch.setattr(written, "merges", shorter_first)
    with pytest.raises(AssertionError):
        test_runs_of_spaces_may_share_a_score(1)


def test_another_order_or_spelling_would_show(
    models: dict[str, Tokenizer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(scores: dict[str, float]) -> list[list[str]]:
        *pairs, a, b = merges(scores)
        return [a, b, *pairs]

    with monkeypatch.context() as patch:
        patch.setattr(written, "merges", late)
        # The last two pairs make the rarest piece: it has to be met where another would have been joined first.
        assert differing(read(tmp_path, models["ours"]), models["ours"], documents())
    for name, spelling in (("ours", "_"), ("llama", "_")):
        with monkeypatch.context() as patch:
            patch.setattr(written, "SPACE", spelling)
            assert differing(read(tmp_path, models[name]), models[name], TEXTS[:400])
    other = read(tmp_path, models["ours"])
    other.split_special_tokens = False
    assert other("a</s>")["input_ids"][-1] == 2


def test_the_same_model_gives_the_same_bytes(models: dict[str, Tokenizer], tmp_path: Path) -> None:
    again = Tokenizer(models["ours"].serialized(), name="again")
    first, second = (tokenizer_files(one, start=2, adds_start=False, context=8) for one in (models["ours"], again))
    assert first == second and list(first) == ["tokenizer.json", "tokenizer_config.json"]


def test_bytes_that_are_no_text_are_where_decoding_differs(models: dict[str, Tokenizer], tmp_path: Path) -> None:
    tokenizer = models["ours"]
    other = read(tmp_path, tokenizer)
    ids = [*tokenizer.encode("a\n"), *tokenizer.encode("▁")[:2]]
    assert tokenizer.decode(ids) == "a\n\ufffd\ufffd"
    assert other.decode(ids) == "a\ufffd\ufffd\ufffd"


ABC = [("a", -9.0), ("b", -8.0), ("ab", -1.0), ("ba", -2.0)]


def kind(index: int, value: int) -> Callable[[Any], None]:
    return lambda model: setattr(model.pieces[index], "type", value)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (kind(262, KINDS.USER_DEFINED), "piece 262 of the tokenizer, 'ba', is user-defined, which no tokenizer.json"),
        (kind(261, KINDS.UNUSED), "piece 261 of the tokenizer, 'ab', is unused, which no tokenizer.json can express"),
        (lambda m: m.pieces.add(piece="bb", score=-1), "'bb', has the score of 'ab', so that neither is joined first"),
        (lambda m: m.pieces.add(piece="ac", score=-4), "'ac', has 'c', which is no piece itself, .*: use a model"),
        (lambda m: m.pieces.add(piece="a b", score=-4), "'a b', has a space that is not written as U\\+2581"),
        (lambda m: m.pieces.add(piece="<0xab>", score=-4), "'<0xab>', would be read as a byte"),
    ],
)  # fmt: skip
def test_pieces_that_are_refused(spoil: Callable[[Any], object], says: str) -> None:
    model = by_hand(ABC)
    spoil(model)
    with pytest.raises(ValueError, match=says):
        tokenizer_files(Tokenizer(model.SerializeToString(), name="it"), start=2, adds_start=False, context=8)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model_type": "unigram"}, "has model_type=unigram, .*: use a model that was trained with model_type=bpe"),
        ({"normalization_rule_name": "nmt_nfkc"}, "has normalization_rule_name=nmt_nfkc, .* trained with .*=identity"),
        ({"remove_extra_whitespaces": True}, "has remove_extra_whitespaces=True, .* remove_extra_whitespaces=False"),
        ({"treat_whitespace_as_suffix": True}, "has treat_whitespace_as_suffix=True, with which no tokenizer.json"),
        ({"user_defined_symbols": ["f t"]}, "'f t', is user-defined"),
    ],
)
def test_settings_that_are_refused(tmp_path: Path, options: dict[str, object], says: str) -> None:
    trained(tmp_path / "model", texts=[text[:3000] for text in documents()[:20]], vocab_size=600, **options)
    with pytest.raises(ValueError, match=says):
        tokenizer_files(Tokenizer.load(tmp_path / "model"), start=2, adds_start=False, context=8)


@pytest.mark.parametrize(("setting", "value"), [("escape_whitespaces", False), ("model_type", 3)])
def test_other_settings_that_are_refused(setting: str, value: object) -> None:
    model = by_hand(ABC, **{setting: value})
    with pytest.raises(ValueError, match=f"the tokenizer has {setting}="):
        tokenizer_files(Tokenizer(model.SerializeToString(), name="it"), start=2, adds_start=False, context=8)


@pytest.mark.parametrize("start", [-1, 263, 260, 0, 5])
def test_a_start_that_text_may_hold_is_refused(start: int) -> None:
    tokenizer = Tokenizer(by_hand(ABC).SerializeToString(), name="it")
    with pytest.raises(ValueError, match=rf"token {start} begins a document, and is no control symbol .* 263 pieces"):
        tokenizer_files(tokenizer, start=start, adds_start=False, context=8)


def test_a_vocabulary_of_llamas_size_takes_a_second(tmp_path: Path) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*letters, *map("".join, product(letters, repeat=2)), *map("".join, product(letters, repeat=3))]
    model = by_hand((piece, -float(index)) for index, piece in enumerate([*pieces, *(p * 4 for p in pieces[26:])]))
    tokenizer = Tokenizer(model.SerializeToString(), name="it")
    content = json.loads(tokenizer_files(tokenizer, start=2, adds_start=False, context=8)["tokenizer.json"])
    assert len(content["model"]["vocab"]) == tokenizer.vocab_size > 36_000
    assert len(content["model"]["merges"]) >= 2 * 26**3


@pytest.fixture
def file(models: dict[str, Tokenizer], tmp_path: Path) -> Path:
    read(tmp_path, models["llama"])
    return tmp_path / "tokenizer.json"


def edited(file: Path, change: Callable[[Any], object]) -> Path:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize("name", NAMES)
def test_our_own_vocabulary_is_the_models(models: dict[str, Tokenizer], tmp_path: Path, name: str) -> None:
    read(tmp_path, models[name])
    assert check_vocabulary(tmp_path / "tokenizer.json", models[name]) == []


def test_tokens_past_the_model_are_named(models: dict[str, Tokenizer], file: Path) -> None:
    def add(content: Any) -> None:
        content["added_tokens"] += [{"id": 1501, "content": "<|end|>"}, {"id": 1500, "content": "<pad>"}]
        content["model"]["vocab"]["extra"] = 1502

    assert check_vocabulary(edited(file, add), models["llama"]) == ["<pad>", "<|end|>", "extra"]


def test_other_pieces_are_a_mismatch(models: dict[str, Tokenizer], file: Path) -> None:
    def swap(content: Any) -> None:
        vocabulary = content["model"]["vocab"]
        names = {index: piece for piece, index in vocabulary.items()}
        vocabulary[names[700]], vocabulary[names[900]] = 900, 700

    with pytest.raises(ValueError, match=r"token 0 is '<unk>' .* says 'x': they are of two models, so give the folder"):
        check_vocabulary(edited(file, lambda content: content["added_tokens"][0].update(content="x")), models["llama"])
    edited(file, lambda content: content["added_tokens"][0].update(content="<unk>"))
    with pytest.raises(ValueError, match=r"token 700 is '.+' in tokenizer\.model and .*tokenizer\.json says '.+'"):
        check_vocabulary(edited(file, swap), models["llama"])
    edited(file, swap)
    shorter = edited(file, lambda content: content["model"]["vocab"].popitem())
    with pytest.raises(ValueError, match=r"token 1499 is .* has no such id"):
        check_vocabulary(shorter, models["llama"])


def test_a_unigram_list_counts_by_its_rows(models: dict[str, Tokenizer], file: Path) -> None:
    def as_list(content: Any) -> None:
        content["model"]["vocab"] = [[piece, 0.0] for piece in content["model"]["vocab"]]

    assert check_vocabulary(edited(file, as_list), models["llama"]) == []


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"model": {"vocab": [1]}}', b'{"model": null}', b"\xff"])
def test_a_file_that_is_no_tokenizer(models: dict[str, Tokenizer], tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad").write_bytes(content)
    says = re.escape(str(tmp_path / "bad")) + r" is no tokenizer\.json \(.*: restore it, or remove it"
    with pytest.raises(ValueError, match=says):
        check_vocabulary(tmp_path / "bad", models["llama"])
    with pytest.raises(ValueError, match=r"gone is no tokenizer\.json \(FileNotFoundError"):
        check_vocabulary(tmp_path / "gone", models["llama"])
