"""Text in the layouts in which data sets are published, and what preparing and loading it must give."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import sentencepiece
import zstandard

from benchmarks.data_peers import DROPPED
from tinyllama.config.data import Data, Filter, Source, Tokenizer
from tinyllama.data import units
from tinyllama.data.loader import Loader
from tinyllama.data.manifest import Manifest
from tinyllama.data.tokenizer import Tokenizer as Model
from tinyllama.data.words import Encoder

WEIGHTS = {"web": 0.693584, "code": 0.306416}
CONTEXT, SEQUENCES, LAST = 2048, 1024, 1_430_512
"""Of a sequence, of a step, and the step after the last: those of the 1.1B model on 3T tokens."""
FULL = {"n_bytes": 60_000_000, "vocab_size": 32_000, "held_out": 0.01}
LITTLE = {"n_bytes": 1_000_000, "vocab_size": 2_000, "held_out": 0.1}
_DOCSTRING = re.compile(r'"""(.*?)"""', flags=re.DOTALL)
_PROSE, _CODE = (".md", ".rst", ".txt"), (".py", ".pyi", ".pyx", ".h", ".cpp")


@dataclass(frozen=True)
class Corpus:
    """Raw files in the published layouts, and what is in them."""

    data: Data
    model: Path
    texts: dict[str, dict[str, str]]
    """By source the documents that the filter keeps, by key, in reading order."""

    @property
    def all(self) -> list[str]:
        """Every text, in the order in which a preparation comes to it."""
        return [text for source in self.texts.values() for text in source.values()]

    @property
    def sizes(self) -> dict[str, int]:
        """By source its bytes as UTF-8."""
        return {name: sum(len(text.encode()) for text in source.values()) for name, source in self.texts.items()}


def found_texts(n_bytes: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Docstrings and documents, and code with its suffix, of this Python and what is installed: 6 bytes to 4."""
    places = [Path(sysconfig.get_paths()[name]) for name in ("stdlib", "purelib")]
    paths = []
    for place in places:
        for folder, below, files in os.walk(place):
            below[:] = [name for name in below if Path(folder, name) not in places]
            paths += [(place, Path(folder, name)) for name in files if Path(name).suffix in _PROSE + _CODE]
    # a hash mixes the packages, the same way each time
    paths.sort(key=lambda one: hashlib.sha256(one[1].relative_to(one[0]).as_posix().encode()).digest())
    prose, code, seen = [], [], set()
    left = {"prose": 0.6 * n_bytes, "code": 0.4 * n_bytes}
    for _, path in paths:
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError):
            continue
        if text in seen or not text:
            continue
        seen.add(text)
        said = text if path.suffix in _PROSE else "\n\n".join(one for one in _DOCSTRING.findall(text) if len(one) > 60)
        if said and left["prose"] > 0:
            prose.append(said)
            left["prose"] -= len(said)
        if path.suffix in _CODE and left["code"] > 0:
            code.append((path.suffix, text))
            left["code"] -= len(text)
        if max(left.values()) <= 0:
            break
    return prose, code


def train(texts: Sequence[str], path: Path, *, vocab_size: int) -> None:
    """A SentencePiece model like Llama's."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line[:4096] for text in texts for line in text.split("\n")),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        character_coverage=0.9995,
        max_sentence_length=1 << 14,
        num_threads=os.cpu_count(),
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())


def make_corpus(folder: Path, *, n_bytes: int, vocab_size: int, held_out: float) -> Corpus:
    """Writes prose as SlimPajama is published, with records to filter out, and code as Starcoderdata is."""
    prose, code = found_texts(n_bytes)
    model = folder / "tokenizer.model"
    train([*prose[::6], *(text for _, text in code[::6])], model, vocab_size=vocab_size)
    texts: dict[str, dict[str, str]] = {"web": {}, "code": {}}
    for number in range(8):
        name = f"train/chunk{number // 4 + 1}/example_train_{number % 4}.jsonl.zst"
        lines = []
        for row, text in enumerate(prose[number::8], start=1):
            subset = DROPPED if row % 25 == 0 else "RedPajamaCommonCrawl"
            lines.append(json.dumps({"text": text, "meta": {"redpajama_set_name": subset}}) + "\n")
            if subset != DROPPED:
                texts["web"][f"{name}:{row}"] = text
        path = folder / "web" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(zstandard.compress("".join(lines).encode()))
    for language, suffixes in (("cpp", (".h", ".cpp")), ("python", (".py", ".pyi", ".pyx"))):
        of_it = [text for suffix, text in code if suffix in suffixes]
        n_files = max(1, round(6 * len(of_it) / len(code)))
        (folder / "code" / language).mkdir(parents=True)
        for number in range(n_files if of_it else 0):
            name, column = f"{language}/train-{number:05d}-of-{n_files:05d}.parquet", of_it[number::n_files]
            pyarrow.parquet.write_table(pyarrow.table({"content": column}), folder / "code" / name)
            texts["code"] |= {f"{name}:{row}": text for row, text in enumerate(column, start=1)}
    rule = Filter(field="meta.redpajama_set_name", not_in=(DROPPED,))
    how: dict[str, dict[str, Any]] = {
        "web": {"format": "jsonl.zst", "include": ("train/chunk*/*.jsonl.zst",), "filter": rule},
        "code": {"format": "parquet", "include": ("*/*.parquet",), "text_field": "content"},
    }
    sources = {
        name: Source(**how[name], raw=str(folder / name), weight=weight, held_out=held_out)
        for name, weight in WEIGHTS.items()
    }
    tokenizer = Tokenizer(model=str(model), sha256=None, vocab_size=vocab_size, sample_bytes=1)
    return Corpus(Data(name="bench", tokenizer=tokenizer, sources=sources), model, texts)


def only_web(corpus: Corpus) -> Data:
    """The part that peers read."""
    return Data(name="web", tokenizer=corpus.data.tokenizer, sources={"web": corpus.data.sources["web"]})


def tiny(data: Data, folder: Path) -> Data:
    """Two files of one document each, for what a preparation takes before it comes to the first."""
    (folder / "train/chunk1").mkdir(parents=True)
    for number in range(2):
        record = {"text": "short" * 9 * number, "meta": {"redpajama_set_name": "RedPajamaC4"}}
        lines = (json.dumps(record) + "\n") * 200  # one in a hundred is held out
        (folder / f"train/chunk1/{number}.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    source = Source(format="jsonl.zst", weight=1.0, raw=str(folder), held_out=0.1)
    return Data(name="tiny", tokenizer=data.tokenizer, sources={"web": source})


def wrong_ids(corpus: Corpus, packed: dict[str, bytes]) -> str:
    """The first document whose ids are not SentencePiece's, if any; `packed` is given what they should be."""
    bare, encoder = sentencepiece.SentencePieceProcessor(model_file=str(corpus.model)), encoder_of(corpus)
    for texts in corpus.texts.values():
        keys = list(texts)
        for some in (keys[start : start + 256] for start in range(0, len(keys), 256)):
            for key, ids in zip(some, bare.encode([texts[key] for key in some]), strict=True):
                packed[key] = np.array(ids, dtype="<u2").tobytes()
                if encoder.encode(texts[key]) != packed[key]:
                    return f"{key}: the ids are not SentencePiece's"
    return ""


def streams(manifest: Manifest, folder: Path) -> dict[str, np.ndarray]:
    """By source its training tokens, as its files hold them."""
    return {
        name: np.concatenate([np.fromfile(folder / shard.file, dtype="<u2") for shard in source.train.shards])
        for name, source in manifest.sources.items()
    }


def wrong_streams(corpus: Corpus, packed: Mapping[str, bytes], found: Mapping[str, np.ndarray]) -> str:
    """The first source whose stream is not its documents, each with its end token, if any."""
    end = Model.load(corpus.model).eos.to_bytes(2, "little")
    for name, source in corpus.data.sources.items():
        trained = (key for key in corpus.texts[name] if not units.is_held_out(key, fraction=source.held_out))
        if b"".join(packed[key] + end for key in trained) != found[name].tobytes():
            return f"{name}: the prepared tokens are not those of its documents"
    return ""


def wrong_samples(loader: Loader, found: Mapping[str, np.ndarray]) -> str:
    """The first sample that is not the window it should be, if any."""
    for step in (0, 1, LAST):
        samples = range(step * SEQUENCES, step * SEQUENCES + 64)
        batch = loader.batch([samples], rank=0, world=1, micro_batch=64)[0]
        for k, row, source, _, window in zip(samples, batch, *loader.mixture.locate(samples), strict=True):
            tokens = found[loader.mixture.names[source]]
            start = min(int(window) * CONTEXT, len(tokens) - CONTEXT - 1)
            if (row != tokens[start : start + CONTEXT + 1]).any():
                return f"sample {k}: the tokens are not those of window {window}"
    return ""


def encoder_of(corpus: Corpus) -> Encoder:
    """One that has seen nothing."""
    return Encoder(Model.load(corpus.model), dtype="<u2")
