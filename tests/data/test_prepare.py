"""A prepared set holds exactly the raw text, is found by what determines its tokens, and is whole or absent."""

from __future__ import annotations

import dataclasses
import gzip
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.data.layouts import HOW, QUIET, decoded, read_documents
from tinyllama.config.data import Data, Filter, Source
from tinyllama.config.data import Tokenizer as Spec
from tinyllama.data import prepare as module
from tinyllama.data import stdlib
from tinyllama.data import survey as survey_module
from tinyllama.data.find import dataset_dir, find, is_embedded, missing
from tinyllama.data.formats import RawFile, read_file
from tinyllama.data.manifest import FILE
from tinyllama.data.prepare import prepare
from tinyllama.data.progress import Tally
from tinyllama.data.shards import TokenStream
from tinyllama.data.survey import survey
from tinyllama.data.tokenizer import Tokenizer
from tinyllama.data.units import is_held_out

if TYPE_CHECKING:
    from conftest import Prepared


def test_shards_hold_the_raw_text_split_in_two(prepared: Prepared) -> None:
    for name, source in prepared.data.sources.items():
        documents = list(read_documents(source))
        assert [document.text for document in documents] == prepared.texts[name]
        sides = {"train": [], "held_out": []}
        for document in documents:
            sides["held_out" if is_held_out(document.key, fraction=0.1) else "train"].append(document.text)
        for split, expected in sides.items():
            entry = getattr(prepared.manifest.sources[name], split)
            assert decoded(prepared.folder, prepared.manifest, name, split) == expected
            assert entry.documents == len(expected) > 0
            assert entry.bytes == sum(len(text.encode()) for text in expected)
        joined = "".join(sides["held_out"]).encode()
        bits = prepared.manifest.sources[name].held_out.gzip_bits_per_byte
        assert bits == pytest.approx(8 * len(gzip.compress(joined, 9)) / len(joined), rel=1e-12)


def test_scored_bytes_are_the_texts(prepared: Prepared) -> None:
    size = Tokenizer.load(prepared.folder / "tokenizer.model").token_bytes()
    for source in prepared.manifest.sources.values():
        for split in (source.train, source.held_out):
            stream = TokenStream(prepared.folder, split=split, tokenizer=prepared.manifest.tokenizer)
            assert size[stream.windows(np.array([0]), length=len(stream))].sum(dtype=int) == split.bytes


def test_the_split_is_a_fair_hash_of_the_key() -> None:
    sides = [is_held_out(f"f{i}", fraction=0.1) for i in range(20_000)]
    assert abs(sum(sides) - 2000) < 6 * (20_000 * 0.1 * 0.9) ** 0.5
    assert all(is_held_out(f"f{i}", fraction=0.2) for i, held_out in enumerate(sides) if held_out)


def test_preparing_again_finds_it_and_elsewhere_repeats_it(prepared: Prepared, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in prepared.folder.rglob("*")}
    assert prepare(prepared.data, data_dir=prepared.data_dir, how=HOW, console=QUIET) == prepared.manifest
    assert find(prepared.data, data_dir=prepared.data_dir) == prepared.manifest
    assert missing(prepared.data, data_dir=prepared.data_dir) is None
    assert {path: path.stat().st_mtime_ns for path in prepared.folder.rglob("*")} == before
    assert prepare(prepared.data, data_dir=tmp_path, how=HOW, console=QUIET) == prepared.manifest


def test_a_prepared_set_that_changed_is_refused(prepared: Prepared, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(prepared.folder, tmp_path / prepared.folder.name))
    (copy / "web" / "train-00000-00000.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"web/train-00000-00000\.bin has 0 bytes, .* prepare it again"):
        prepare(prepared.data, data_dir=tmp_path, how=HOW, console=QUIET)


def with_source(data: Data, **knobs: object) -> Data:
    return dataclasses.replace(data, sources=data.sources | {"web": dataclasses.replace(data.sources["web"], **knobs)})


def test_the_folder_is_named_by_what_determines_the_tokens(prepared: Prepared, tmp_path: Path) -> None:
    data, here = prepared.data, dataset_dir(prepared.data, data_dir=tmp_path)
    assert here.parent == tmp_path and here.name.startswith("tiny-") and len(here.name) == 5 + 8
    for same in ({"weight": 9.0}, {"tokens": 5}, {"max_epochs": 2.0}, {"unique_tokens": 99}, {"raw": "/elsewhere"}):
        assert dataset_dir(with_source(data, **same), data_dir=tmp_path) == here
    rule = Filter(field="meta", not_in=("x",))
    others = [
        with_source(data, **knob)
        for knob in (
            {"format": "text"},
            {"include": ("*.x",)},
            {"exclude": ("x",)},
            {"held_out_include": ("x",)},
            {"text_field": "t"},
            {"filter": rule},
            {"held_out": 0.2},
        )
    ]
    others += [
        dataclasses.replace(data, tokenizer=dataclasses.replace(data.tokenizer, **knob))
        for knob in ({"vocab_size": 301}, {"sample_bytes": 1}, {"model": "x", "sha256": "0" * 64})
    ]
    assert len({dataset_dir(other, data_dir=tmp_path) for other in [data, *others]}) == 1 + len(others)


def test_missing_says_what_where_and_how(prepared: Prepared, tmp_path: Path) -> None:
    data = with_source(prepared.data, raw=None)
    folder = dataset_dir(data, data_dir=tmp_path)
    code = data.sources["code"].raw
    assert missing(data, data_dir=tmp_path) == (
        f"data set tiny is not prepared: no shards of web, code in {folder}. Prepare them with: python main.py "
        f"task=prepare data=tiny data.sources.web.raw=/path/to/web data.sources.code.raw={code}"
    )
    line = ["data=tiny", "task=train", "data.sources.web.held_out=0.5", "data.sources.code.raw=here"]
    assert (missing(data, data_dir=tmp_path, line=line) or "").endswith(
        "python main.py task=prepare data=tiny data.sources.web.held_out=0.5 data.sources.code.raw=here "
        "data.sources.web.raw=/path/to/web"
    )
    assert find(data, data_dir=tmp_path) is None
    assert not is_embedded(data)
    assert is_embedded(dataclasses.replace(data, sources={"x": Source(format="stdlib_text", weight=1.0)}))


def test_a_given_tokenizer_is_copied_and_checked(prepared: Prepared, tmp_path: Path) -> None:
    path, sha256 = prepared.folder / "tokenizer.model", prepared.manifest.tokenizer.sha256
    given = dataclasses.replace(
        prepared.data, tokenizer=Spec(model=str(path), sha256=None, vocab_size=300, sample_bytes=1)
    )
    manifest = prepare(given, data_dir=tmp_path, how=HOW, console=QUIET)
    assert manifest.tokenizer == prepared.manifest.tokenizer and manifest.sources == prepared.manifest.sources
    stated = dataclasses.replace(given, tokenizer=dataclasses.replace(given.tokenizer, sha256=sha256))
    assert find(stated, data_dir=tmp_path) == manifest
    for knobs, message in (
        ({"sha256": "0" * 64}, "not 0{64}: restore the file or correct the hash"),
        ({"vocab_size": 32_000}, "has 300 pieces, but data.tokenizer.vocab_size is 32000: set it to 300"),
    ):
        wrong = dataclasses.replace(given, tokenizer=dataclasses.replace(given.tokenizer, **knobs))
        with pytest.raises(ValueError, match=message):
            prepare(wrong, data_dir=tmp_path / "wrong", how=HOW, console=QUIET)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError, OSError])
def test_nothing_half_done_stays_behind(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        assert len(list(tmp_path.glob(".tiny-*.partial/web/.unit-00000.*.tmp/web/*"))) >= 2
        raise stop

    monkeypatch.setattr("tinyllama.data.units.split_of", interrupted)
    given = Spec(model=str(prepared.folder / "tokenizer.model"), sha256=None, vocab_size=300, sample_bytes=1)
    with pytest.raises(stop):
        prepare(dataclasses.replace(prepared.data, tokenizer=given), data_dir=tmp_path, how=HOW, console=QUIET)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["tokenizer.model"]


def test_what_dead_processes_left_is_removed(prepared: Prepared, tmp_path: Path) -> None:
    host = socket.gethostname()
    partial = tmp_path / f".{prepared.folder.name}.partial"
    dead, alive, far = (
        partial / "web" / f".unit-00007.{name}.tmp"
        for name in (f"{host}.99999999", f"{host}.{os.getppid()}", "other.1")
    )
    for folder in (dead, alive, far):
        folder.mkdir(parents=True)
        (folder / "x").touch()
    seen: list[list[Path]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_finish", lambda *_, **__: seen.append(sorted(partial.glob("web/.*"))) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(prepared.data, data_dir=tmp_path, how=HOW, console=QUIET)
    assert seen == [sorted([alive, far])]


def test_the_first_of_two_processes_wins(prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final = dataset_dir(prepared.data, data_dir=tmp_path)
    partial, encode = tmp_path / f".{final.name}.partial", module.encode_all

    def other_process(*arguments: Any, **options: Any) -> None:
        encode(*arguments, **options)
        shutil.copytree(prepared.folder, final)
        (final / "mark").touch()
        shutil.rmtree(partial)

    monkeypatch.setattr(module, "encode_all", other_process)
    assert prepare(prepared.data, data_dir=tmp_path, how=HOW, console=QUIET) == prepared.manifest
    assert (final / "mark").exists() and [path.name for path in tmp_path.iterdir()] == [final.name]


def test_errors_name_the_source(prepared: Prepared, make_data: Callable[..., Data], tmp_path: Path) -> None:
    raw = Path(prepared.data.sources["web"].raw or "")
    with pytest.raises(
        ValueError, match=r"data\.sources\.web: none of its 120 documents is held out .*: raise held_out"
    ):
        prepare(make_data({"web": raw}, held_out=1e-9), data_dir=tmp_path, how=HOW, console=QUIET)
    # what was encoded is not thrown away: a corrected source may still use it
    assert [path.suffix for path in tmp_path.iterdir()] == [".partial"]
    with pytest.raises(ValueError, match=r"data\.sources\.code: raw folder .*gone does not exist"):
        prepare(make_data({"web": raw, "code": tmp_path / "gone"}), data_dir=tmp_path / "d", how=HOW, console=QUIET)
    assert list((tmp_path / "d").iterdir()) == []


def test_no_training_text_is_refused(prepared: Prepared, make_data: Callable[..., Data], tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.jsonl").write_text('{"text": ""}\n')
    spec = Spec(model=str(prepared.folder / "tokenizer.model"), sha256=None, vocab_size=300, sample_bytes=1)
    with pytest.raises(ValueError, match=r"data\.sources\.web: [01] documents are left for training, too few"):
        prepare(make_data({"web": tmp_path / "raw"}, tokenizer=spec), data_dir=tmp_path, how=HOW, console=QUIET)


def sampled(source: Source, *, sample_bytes: int) -> list[str]:
    with Tally("x", total=None, console=QUIET) as tally:
        return survey(source, sample_bytes=sample_bytes, strict=True, progress=tally)


def test_the_sample_is_even_bounded_and_of_training_text_only(prepared: Prepared) -> None:
    source = dataclasses.replace(prepared.data.sources["web"], held_out=0.3)
    found = sampled(source, sample_bytes=3_000)
    documents = {document.text: document.key for document in read_documents(source)}
    assert 2_000 < sum(len(piece.encode()) for piece in found) <= 3_000
    keys = [documents[piece] for piece in found]
    assert not any(is_held_out(key, fraction=0.3) for key in keys)
    assert {key.split(":")[0] for key in keys} == {"a.jsonl", "b/c.jsonl"}
    everything = sampled(source, sample_bytes=10**9)
    train = [text for text, key in documents.items() if text and not is_held_out(key, fraction=0.3)]
    assert sorted(everything) == sorted(train)


def test_a_sample_does_not_read_a_terabyte(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    source, read = prepared.data.sources["web"], []

    def counted(file: RawFile, **how: Any) -> Any:
        read.append(file.name)
        return read_file(file, **how)

    monkeypatch.setattr(survey_module, "read_file", counted)
    assert sum(len(piece.encode()) for piece in sampled(source, sample_bytes=300)) <= 300
    assert len(read) == 1
    assert sampled(source, sample_bytes=300) == sampled(source, sample_bytes=300)


def test_the_standard_library_splits_code_and_docstrings_by_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = stdlib._files
    monkeypatch.setattr(stdlib, "_files", lambda root: [p for p in files(root) if p.parent.name in ("json", "email")])
    for cached in (stdlib._library, stdlib.code, stdlib.prose):
        cached.cache_clear()
    sources = {
        "text": Source(format="stdlib_text", weight=7.0, held_out=0.2),
        "code": Source(format="stdlib_code", weight=3.0, held_out=0.2),
    }
    spec = Spec(model=None, sha256=None, vocab_size=600, sample_bytes=100_000)
    data = Data(name="stdlib", tokenizer=spec, sources=sources)
    try:
        manifest = prepare(data, data_dir=tmp_path, how=HOW, console=QUIET)
        folder = dataset_dir(data, data_dir=tmp_path)
        documents = {name: list(read_documents(source)) for name, source in sources.items()}
    finally:
        for cached in (stdlib._library, stdlib.code, stdlib.prose):
            cached.cache_clear()
    side: dict[str, str] = {}
    for name, read in documents.items():
        for split in ("train", "held_out"):
            texts = set(decoded(folder, manifest, name, split))
            keys = {document.key for document in read if document.text in texts}
            assert keys
            assert all(side.setdefault(key, split) == split for key in keys)
    assert len(side) == len({document.key for read in documents.values() for document in read})
    assert (folder / FILE).is_file() and manifest.tokenizer.file == module.TOKENIZER_FILE
