"""The documents under any tokens, against a list of all of them made from the raw files."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.data.sets import Set, make_set
from tinyllama.data.documents import Documents, Piece

SOURCES = ("web", "code")


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Set:
    return make_set(tmp_path_factory.mktemp("documents"))


def tokens_of(several: Set, source: str) -> dict[str, list[int]]:
    """Key and tokens of every training document, end token included."""
    tokenizer = several.tokenizer
    return {key: [*tokenizer.encode(text), tokenizer.eos] for key, text in several.texts(source).items()}


def slow_between(documents: dict[str, list[int]], start: int, stop: int) -> Iterator[Piece]:
    """The pieces by walking through all documents."""
    begin = 0
    for key, ids in documents.items():
        first, last = max(start, begin), min(stop, begin + len(ids))
        if first < last:
            yield Piece(key, first - begin, last - begin, len(ids))
        begin += len(ids)


def test_the_set_has_what_is_hard(several: Set) -> None:
    web, code = (several.manifest.sources[source].units for source in SOURCES)
    assert [unit.documents for unit in web] == [32, 0, 0, 32, 33, 32, 0]
    assert [unit.tokens == 0 for unit in web] == [unit.documents == 0 for unit in web]
    assert (several.folder / web[1].index.file).stat().st_size == 0
    assert len(code) == 4 and all(unit.documents > 1 for unit in code)
    lengths = [len(ids) for ids in tokens_of(several, "web").values()]
    assert min(lengths) == 1 and max(lengths) > 2000


@pytest.mark.parametrize("source", SOURCES)
def test_pieces_are_those_of_a_walk_through_all_documents(several: Set, source: str) -> None:
    expected, documents = tokens_of(several, source), several.documents[source]
    stream = documents.stream.windows(np.array([0]), length=len(documents.stream))[0].tolist()
    assert stream == [token for ids in expected.values() for token in ids]
    assert [piece.key for piece in documents.between(0, len(stream))] == list(expected)
    draw = random.Random(1)
    ends = np.cumsum([len(ids) for ids in expected.values()]).tolist()
    spans = {(end + i, end + i + n) for end in ends[:-3] for i in (-1, 0, 1) for n in (0, 1, 2, 65)}
    spans |= {(draw.randrange(len(stream)), len(stream)) for _ in range(3)} | {(0, len(stream))}
    spans |= {(at, at + draw.choice((17, 400, 2100))) for at in draw.choices(range(len(stream) - 2100), k=100)}
    for start, stop in sorted((start, min(stop, len(stream))) for start, stop in spans):
        pieces = list(documents.between(start, stop))
        assert pieces == list(slow_between(expected, start, stop))
        assert [token for piece in pieces for token in expected[piece.key][piece.start : piece.stop]] == (
            stream[start:stop]
        )


@pytest.mark.parametrize("source", SOURCES)
def test_the_text_under_a_token_is_the_raw_text(several: Set, source: str) -> None:
    documents, texts = several.documents[source], several.texts(source)
    assert any(texts.values()) and (source == "code" or "" in texts.values())
    start, seen = 0, {}
    for key, ids in tokens_of(several, source).items():
        for token in {start, start + len(ids) // 2, start + len(ids) - 1}:
            assert documents.text_at(token) == (key, texts[key])
        seen[key], start = texts[key], start + len(ids)
    assert seen == texts and start == len(documents.stream)


@pytest.mark.parametrize("source", SOURCES)
def test_lengths_are_those_of_evenly_chosen_units_with_documents(several: Set, source: str) -> None:
    documents, lengths = several.documents[source], [len(ids) for ids in tokens_of(several, source).values()]
    assert documents.lengths(units=64).tolist() == lengths
    counts = [unit.documents for unit in several.manifest.sources[source].units if unit.documents]
    parts = [lengths[a:b] for a, b in pairwise([0, *np.cumsum(counts).tolist()])]
    assert documents.lengths(units=1).tolist() == parts[0]
    assert documents.lengths(units=2).tolist() == parts[0] + parts[-1]
    assert documents.lengths(units=3).tolist() == parts[0] + parts[round((len(parts) - 1) / 2)] + parts[-1]


def test_tokens_outside_the_stream_are_no_documents(several: Set) -> None:
    documents = several.documents["web"]
    for start, stop in ((-1, 3), (0, len(documents.stream) + 1), (3, 2)):
        with pytest.raises(AssertionError):
            list(documents.between(start, stop))


@pytest.mark.parametrize(
    ("unit", "damage"), [(1, "longer"), (1, "gone"), *((3, how) for how in ("longer", "shorter", "changed", "gone"))]
)
def test_a_damaged_index_is_refused(several: Set, tmp_path: Path, unit: int, damage: str) -> None:
    folder = shutil.copytree(several.folder, tmp_path / "set")
    several.manifest.verify(folder)
    index = folder / several.manifest.sources["web"].units[unit].index.file
    content = index.read_bytes()
    changed = {"longer": content + bytes(8), "shorter": content[:-8], "changed": b"\x07" + content[1:]}
    index.unlink() if damage == "gone" else index.write_bytes(changed[damage])
    says = rf"{index.name} (is missing|has changed \(sha256 .*\)): delete .*set and prepare it again"
    with pytest.raises(ValueError, match=says):
        several.manifest.verify(folder)
    documents = Documents(several.manifest, folder, source="web")
    with pytest.raises(ValueError, match=says):
        list(documents.between(0, len(documents.stream)))


def test_a_damaged_ledger_is_refused(several: Set, tmp_path: Path) -> None:
    folder = shutil.copytree(several.folder, tmp_path / "set")
    ledger = folder / several.manifest.sources["web"].raw.ledger.file
    ledger.write_text(ledger.read_text().replace("train", "drain", 1))
    with pytest.raises(ValueError, match=r"files\.jsonl has changed .*: delete .*set and prepare it again"):
        Documents(several.manifest, folder, source="web")
