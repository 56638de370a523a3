"""A data set of several units, and what it holds by another way."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.data.layouts import HOW, QUIET
from tinyllama.config.data import Data, Filter, Source
from tinyllama.config.data import Tokenizer as Spec
from tinyllama.data import units
from tinyllama.data.documents import Documents
from tinyllama.data.find import dataset_dir
from tinyllama.data.formats import Document, raw_files, read_file
from tinyllama.data.manifest import Manifest
from tinyllama.data.prepare import prepare
from tinyllama.data.tokenizer import Tokenizer

WORDS = ("law", "of", "  loss", "42", "naïve", "日本", "\n", "😀", "▁", "\tx = [y]")


@dataclass(frozen=True)
class Set:
    """A prepared data set."""

    data: Data
    folder: Path
    manifest: Manifest

    @property
    def documents(self) -> dict[str, Documents]:
        return {name: Documents(self.manifest, self.folder, source=name) for name in self.data.sources}

    @property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.folder / self.manifest.tokenizer.file)

    def texts(self, source: str, *, split: str = "train") -> dict[str, str]:
        """Key and text of every document of a split, or of those filtered out, as the raw files have them."""
        of_source = self.data.sources[source]
        found = {}
        for file in raw_files(of_source):
            for item in read_file(file, source=of_source):
                if not isinstance(item, Document):
                    continue
                kept = units.split_of(item, file=file, source=of_source) if item.kept else "filtered"
                if kept == split:
                    found[item.key] = item.text
        return found


def make_set(root: Path) -> Set:
    """Two sources in units of some kilobytes: records, of which whole units are held out or filtered, and files.

    One line is no record, and left out.
    """
    draw = random.Random(0)

    def text(most: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randrange(most)))

    for number, part in enumerate(("train", "held_out", "none", "train", "train", "train", "train", "none")):
        # in the order of their names: units with and without documents to train on
        path = root / "raw" / "web" / f"{number}" / f"{part}.jsonl"
        path.parent.mkdir(parents=True)
        count = 1 if number == 4 else 40
        rows = [
            {"text": text(80), "set": "no" if part == "none" or (i % 5 == 3 and count > 1) else "yes"}
            for i in range(count)
        ]
        if number in (0, 3):
            rows[0]["text"] = text(3000) if number else ""
        lines = [json.dumps(row) for row in rows]
        if number == 5:
            lines[7:7] = ["{no record"]
        path.write_text("".join(line + "\n" for line in lines))
    for number in range(60):
        path = root / "raw" / "code" / f"{number:02d}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text(300))
    data = Data(
        name="several",
        tokenizer=Spec(model=None, sha256=None, vocab_size=300, sample_bytes=20_000),
        sources={
            "web": Source(
                format="jsonl",
                weight=0.7,
                raw=str(root / "raw" / "web"),
                include=("*/*.jsonl",),
                filter=Filter(field="set", not_in=("no",)),
                held_out_include=("*/held_out.jsonl",),
            ),
            "code": Source(format="text", weight=0.3, raw=str(root / "raw" / "code"), held_out=0.3),
        },
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "UNIT_BYTES", 13_000)
        manifest = prepare(data, data_dir=root, how=replace(HOW, on_error="skip"), console=QUIET)
    assert manifest is not None
    return Set(data, dataset_dir(data, data_dir=root), manifest)
