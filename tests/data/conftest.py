"""Small raw corpora, and one data set prepared from them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.data.layouts import HOW, QUIET
from tinyllama.config.data import Data, Source, Tokenizer
from tinyllama.data.find import dataset_dir
from tinyllama.data.manifest import Manifest
from tinyllama.data.prepare import prepare

WORDS = [
    "data",
    "model",
    "token",
    "law",
    "loss",
    "  indented",
    "\tif x:",
    "42",
    "naïve",
    "日本",
    "\r\n",
    "\n",
    "😀",
    "▁",
]


def write_jsonl(folder: Path, *, documents: int, seed: int, field: str = "text") -> list[str]:
    """Writes random documents in two files, one of them in a folder below, and gives their texts in reading order."""
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(WORDS, k=draw.randrange(1, 60))) for _ in range(documents)]
    texts[3] = ""  # a document without text is still a document
    (folder / "b").mkdir(parents=True)
    half = documents // 2
    for path, part in ((folder / "a.jsonl", texts[:half]), (folder / "b" / "c.jsonl", texts[half:])):
        path.write_text("".join(json.dumps({field: text}) + "\n" for text in part))
    return texts


@dataclass(frozen=True)
class Prepared:
    """A prepared data set with the texts it was made from."""

    data: Data
    data_dir: Path
    folder: Path
    manifest: Manifest
    texts: dict[str, list[str]]


@pytest.fixture(scope="session")
def make_data() -> Callable[..., Data]:
    """A data section with one jsonl source per raw folder."""

    def make(raw: dict[str, Path], *, tokenizer: Tokenizer | None = None, held_out: float = 0.1) -> Data:
        sources = {
            name: Source(format="jsonl", weight=1.0, raw=str(path), held_out=held_out) for name, path in raw.items()
        }
        trained = Tokenizer(model=None, sha256=None, vocab_size=300, sample_bytes=20_000)
        return Data(name="tiny", tokenizer=tokenizer or trained, sources=sources)

    return make


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, make_data: Callable[..., Data]) -> Prepared:
    """Two sources of 120 and 90 documents."""
    root = tmp_path_factory.mktemp("data")
    texts = {
        "web": write_jsonl(root / "raw" / "web", documents=120, seed=1),
        "code": write_jsonl(root / "raw" / "code", documents=90, seed=2),
    }
    data = make_data({name: root / "raw" / name for name in texts})
    manifest = prepare(data, data_dir=root, how=HOW, console=QUIET)
    assert manifest is not None
    return Prepared(data, root, dataset_dir(data, data_dir=root), manifest, texts)
