"""Every reader gives the same documents, and says which file and line it cannot read."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from tinyllama.config.data import Filter, Source
from tinyllama.data import formats
from tinyllama.data.formats import Document, identity, read_documents

ROWS = [{"text": f"document {i}\nof {'x' * i}", "meta": {"set": "Github" if i % 3 else "Book"}} for i in range(40)]
ROWS[7]["text"] = ""


def source(folder: Path, **knobs: object) -> Source:
    return Source(**{"format": "jsonl", "weight": 1.0, "raw": str(folder), **knobs})  # type: ignore[arg-type]


def lines(rows: list[object]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write(folder: Path, form: str) -> Path:
    path = folder / f"rows.{form}"
    if form == "jsonl":
        path.write_bytes(lines(ROWS))
    elif form == "jsonl.zst":  # two frames: what `cat a.zst b.zst` makes
        path.write_bytes(b"".join(zstandard.compress(lines(part)) for part in (ROWS[:15], ROWS[15:])))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=7)
    return path


@pytest.mark.parametrize("form", ["jsonl", "jsonl.zst", "parquet"])
def test_records_are_read_in_order_with_their_place(tmp_path: Path, form: str) -> None:
    write(tmp_path, form)
    read = list(read_documents(source(tmp_path, format=form)))
    assert read == [Document(f"rows.{form}:{i}", row["text"]) for i, row in enumerate(ROWS, start=1)]


@pytest.mark.parametrize("form", ["jsonl", "jsonl.zst", "parquet"])
def test_the_filter_drops_what_it_names_and_nothing_else(tmp_path: Path, form: str) -> None:
    write(tmp_path, form)
    rule = Filter(field="meta.set", not_in=("Github",))
    kept = [document.key for document in read_documents(source(tmp_path, format=form, filter=rule))]
    assert kept == [f"rows.{form}:{i + 1}" for i in range(0, 40, 3)]


def test_text_files_are_sorted_by_posix_path_and_kept_to_the_byte(tmp_path: Path) -> None:
    texts = {"b/z.txt": "café\r\n\n", "a.txt": "  one ", "b.txt": "", "b/a.md": "no", "c.x.txt": "dots"}
    (tmp_path / "b").mkdir()
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text.encode())
    read = list(read_documents(source(tmp_path, format="text", include="**/*.txt")))
    assert read == [Document(name, texts[name]) for name in ("a.txt", "b.txt", "b/z.txt", "c.x.txt")]


@pytest.mark.parametrize("kept", [0.1, 0.6, 0.99, 0.0])
def test_a_zst_file_that_was_cut_is_refused(tmp_path: Path, kept: float) -> None:
    path = write(tmp_path, "jsonl.zst")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ValueError, match=r"rows\.jsonl\.zst ends in the middle of a Zstandard frame .* fetch the file"):
        list(read_documents(source(tmp_path, format="jsonl.zst")))


@pytest.mark.parametrize("form", ["jsonl", "jsonl.zst"])
def test_long_lines_and_a_last_line_without_newline_are_whole(tmp_path: Path, form: str) -> None:
    texts = ["short", "long" * 700_000, "last"]
    content = lines([{"text": text} for text in texts]).removesuffix(b"\n")
    (tmp_path / f"x.{form}").write_bytes(content if form == "jsonl" else zstandard.compress(content))
    assert [document.text for document in read_documents(source(tmp_path, format=form))] == texts


def test_a_zst_file_that_was_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.zst"
    content = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(lines(ROWS)))
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"rows\.jsonl\.zst is damaged"):
        list(read_documents(source(tmp_path, format="jsonl.zst")))


def test_a_bomb_is_stopped_at_the_line_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MAX_BYTES", 1 << 20)
    (tmp_path / "bomb.jsonl.zst").write_bytes(zstandard.compress(b'{"text": "x"}\n"' + b"0" * (1 << 27)))
    with pytest.raises(ValueError, match=r"bomb\.jsonl\.zst, line 2 is longer than 1,048,576 bytes"):
        list(read_documents(source(tmp_path, format="jsonl.zst")))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "cut', "line 2: not JSON"),
        (b"", "line 2: not JSON"),
        (b"[" * 100_000, "line 2: not JSON"),
        (b'{"text": "\xff"}', "line 2: not UTF-8"),
        (b'{"texts": "x", "id": 1}', r"line 2: no field 'text' \(there is: id, texts\): correct text_field"),
        (b'["x"]', r"line 2: no field 'text' \(there is: list\)"),
        (b'{"text": null}', "line 2: field 'text' is NoneType, not text: correct text_field"),
        (b'{"text": 5}', "line 2: field 'text' is int, not text"),
        (b'{"text": "\\ud800"}', "line 2: field 'text' holds a lone surrogate"),
        (b'{"text": "x"}', r"line 2: no field 'meta\.set' \(there is: text\): correct text_field or filter\.field"),
    ],
)
def test_a_bad_line_is_named_not_dropped(tmp_path: Path, line: bytes, message: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"text": "fine", "meta": {"set": "Book"}}\n' + line + b"\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl, " + message):
        list(read_documents(source(tmp_path, filter=Filter(field="meta.set", not_in=("Github",)))))


def test_bad_parquet_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "parquet")
    with pytest.raises(
        ValueError, match=r"rows\.parquet cannot be read as parquet: no column 'content' \(there is: text"
    ):
        list(read_documents(source(tmp_path, format="parquet", text_field="content")))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x", None]}), path)
    with pytest.raises(ValueError, match=r"rows\.parquet, row 2: field 'text' is NoneType"):
        list(read_documents(source(tmp_path, format="parquet")))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"rows\.parquet cannot be read as parquet"):
        list(read_documents(source(tmp_path, format="parquet")))


def test_bad_text_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8 .*: convert it or leave it out"):
        list(read_documents(source(tmp_path, format="text")))
    monkeypatch.setattr(formats, "MAX_BYTES", 3)
    with pytest.raises(ValueError, match=r"a\.txt is larger than 3 bytes"):
        list(read_documents(source(tmp_path, format="text")))


def test_no_files_no_folder_no_raw(tmp_path: Path) -> None:
    for knobs, message in (
        ({"raw": None}, "raw is null: format jsonl reads files"),
        ({"raw": str(tmp_path / "no")}, "raw folder .*no does not exist: set raw"),
        ({"include": "*.zst"}, r"no file in .* matches include '\*\.zst': correct raw or include"),
        ({"include": "/etc/*"}, "include '/etc/\\*' is no glob below raw"),
    ):
        with pytest.raises(ValueError, match=message):
            list(read_documents(source(tmp_path, **knobs)))


def test_identity_is_the_interpreter_or_the_format(tmp_path: Path) -> None:
    version = ".".join(map(str, sys.version_info[:3]))
    assert identity(source(tmp_path, format="stdlib_code")).startswith(f"{sys.implementation.name}-{version}")
    assert identity(source(tmp_path, format="parquet")) == "parquet"
