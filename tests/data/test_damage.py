"""A file that is cut, changed, hostile or gone is told of with its name and place, and never is a shorter file."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from tinyllama.config.data import Filter, Source
from tinyllama.data import formats, unpack
from tinyllama.data.formats import Document, Fault, raw_files, read_file

ROWS = [{"text": f"document {i} of {'x' * i}", "meta": {"set": "C4"}} for i in range(2000)]
CONTENT = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
PACKED = {
    "jsonl.zst": zstandard.ZstdCompressor(write_checksum=True).compress(CONTENT),
    "jsonl.gz": gzip.compress(CONTENT),
}
KINDS = {"jsonl.zst": "Zstandard frame", "jsonl.gz": "gzip member"}


def read(path: Path, form: str, **knobs: object) -> tuple[list[Document], list[Fault]]:
    """The documents and faults of one file, whose every byte has been hashed."""
    source = Source(format=form, weight=1.0, raw=str(path.parent), include=(path.name,), **knobs)  # type: ignore[arg-type]
    [file] = raw_files(source)
    hasher = hashlib.sha256()
    items = list(read_file(file, source=source, hasher=hasher))
    assert hasher.digest() == hashlib.sha256(path.read_bytes()).digest()
    return [item for item in items if isinstance(item, Document)], [item for item in items if isinstance(item, Fault)]


def only_fault(path: Path, form: str, **knobs: object) -> str:
    """The message of the one fault of a file, after which nothing follows."""
    _, [fault] = read(path, form, **knobs)
    assert fault.row == 0
    return fault.message


def has(message: str, *parts: str) -> bool:
    return all(part in message for part in parts)


@pytest.mark.parametrize("form", PACKED)
@pytest.mark.parametrize("kept", [1, 3, 17, 0.1, 0.6, 0.99, -9, -5, -1])
def test_a_packed_file_that_was_cut(tmp_path: Path, form: str, kept: float) -> None:
    whole = PACKED[form]
    size = int(kept * len(whole)) if 0 < kept < 1 else int(kept) % len(whole)
    path = tmp_path / f"a.{form}"
    path.write_bytes(whole[:size])
    documents, [fault] = read(path, form)
    says = (
        f"a.{form}, byte {size:,}: ends in the middle of the {KINDS[form]} that begins at byte 0: fetch the file again"
    )
    assert fault.message == says
    assert [document.text for document in documents] == [row["text"] for row in ROWS[: len(documents)]]


@pytest.mark.parametrize("form", PACKED)
def test_a_second_frame_that_was_cut(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"a.{form}"
    path.write_bytes(PACKED[form] + PACKED[form][:-1])
    assert f"ends in the middle of the {KINDS[form]} that begins at byte {len(PACKED[form]):,}" in only_fault(
        path, form
    )


@pytest.mark.parametrize("form", PACKED)
def test_a_packed_file_with_a_flipped_bit(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"a.{form}"
    whole = PACKED[form]
    for at in (0, *range(20, len(whole), len(whole) // 40), len(whole) - 1):
        changed = bytearray(whole)
        changed[at] ^= 1
        path.write_bytes(changed)
        _, faults = read(path, form)
        assert faults, at
        # what a changed block unpacks to may be a thousand bad lines, before its checksum is seen
        message = faults[-1].message
        assert has(message, f"a.{form}, byte ", "fetch the file again") or "has 1,000 faults" in message, at


def test_a_flipped_bit_without_a_checksum_is_found_where_it_breaks_the_frame(tmp_path: Path) -> None:
    whole = bytearray(zstandard.compress(CONTENT))
    whole[6] ^= 255  # a block's header
    (tmp_path / "a.jsonl.zst").write_bytes(whole)
    assert "is damaged in, or is no Zstandard frame from, byte 0 on" in only_fault(
        tmp_path / "a.jsonl.zst", "jsonl.zst"
    )


@pytest.mark.parametrize("form", PACKED)
@pytest.mark.parametrize("rest", [b"\n", b"garbage that is no frame", b"\0" * 512])
def test_garbage_behind_the_last_frame(tmp_path: Path, form: str, rest: bytes) -> None:
    path = tmp_path / f"a.{form}"
    path.write_bytes(PACKED[form] + rest)
    documents, [fault] = read(path, form)
    assert len(documents) == len(ROWS)
    assert f"byte {len(PACKED[form]):,}" in fault.message


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
def test_an_empty_file(tmp_path: Path, form: str) -> None:
    (tmp_path / f"a.{form}").write_bytes(b"")
    assert only_fault(tmp_path / f"a.{form}", form) == (
        f"a.{form}: is empty: fetch the file again or leave it out by exclude"
    )


@pytest.mark.parametrize(("form", "pack"), [("jsonl.gz", gzip.compress), ("jsonl.zst", zstandard.compress)])
def test_a_packed_file_of_nothing(tmp_path: Path, form: str, pack: Callable[[bytes], bytes]) -> None:
    (tmp_path / f"a.{form}").write_bytes(pack(b""))
    assert "unpacks to nothing: fetch the file again" in only_fault(tmp_path / f"a.{form}", form)


@pytest.mark.parametrize(("form", "pack"), [("jsonl.gz", gzip.compress), ("jsonl.zst", zstandard.compress)])
def test_a_bomb(tmp_path: Path, form: str, pack: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "SPARE", 1 << 20)
    monkeypatch.setattr(unpack, "GROWTH", 100)
    monkeypatch.setattr(formats, "MAX_BYTES", 1 << 20)
    (tmp_path / "a").write_bytes(pack(b'{"text": "x"}\n"' + b"0" * (1 << 26)))
    assert has(
        only_fault(tmp_path / "a", form), "unpacks to more than 100 times its", "bytes and 1,048,576, as no text does"
    )


def test_a_bomb_of_empty_lines_ends_after_a_thousand_faults(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(b"\n" * (1 << 26)))
    _, faults = read(tmp_path / "a.jsonl.zst", "jsonl.zst")
    assert [fault.row for fault in faults] == [*range(1, 1001), 0]
    assert (
        faults[-1].message
        == "a.jsonl.zst: has 1,000 faults, and what follows line 1000 is not read: correct the source"
    )


def test_a_line_of_a_gigabyte_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:  # a hole, which takes no room on the disk
        file.write(b'{"text": "x"}\n')
        file.truncate(1 << 30)
        file.seek(1 << 30)
        file.write(b'\n{"text": "y"}\n')
    source = Source(format="jsonl", weight=1.0, raw=str(tmp_path))
    first, fault, last = read_file(raw_files(source)[0], source=source)
    assert [(item.row, item.text) for item in (first, last) if isinstance(item, Document)] == [(1, "x"), (3, "y")]
    assert isinstance(fault, Fault)
    assert (
        fault.message == "a.jsonl, line 2, byte 14: is longer than 67,108,864 bytes, the most a record may be: split it"
    )


def test_a_packed_line_of_a_gigabyte_takes_no_gigabyte(tmp_path: Path) -> None:
    packer = zstandard.ZstdCompressor().compressobj()
    with (tmp_path / "a.jsonl.zst").open("wb") as file:
        for _ in range(1 << 6):
            file.write(packer.compress(b"0" * (1 << 24)))
        file.write(packer.flush())
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tinyllama.config.data import Source\n"
        "from tinyllama.data import unpack\n"
        "from tinyllama.data.formats import raw_files, read_file\n"
        "unpack.GROWTH = int(sys.argv[2])\n"
        "source = Source(format='jsonl.zst', weight=1.0, raw=sys.argv[1])\n"
        "[fault] = read_file(raw_files(source)[0], source=source)\n"
        # its own: ru_maxrss begins with that of the process that started it
        "[most] = [line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith('VmHWM')]\n"
        "print(int(most.split()[1]) >> 10, fault.message)\n"
    )
    for growth, message in ((1000, "unpacks to more than 1,000 times"), (10**6, "line 1: is longer than 67,108,864")):
        command = [sys.executable, "-c", code, str(tmp_path), str(growth)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        assert message in done.stdout
        assert int(done.stdout.split()[0]) < 1000


def table(path: Path, **knobs: object) -> bytes:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS[:60]), path, **{"row_group_size": 20, **knobs})
    return path.read_bytes()


@pytest.mark.parametrize("kept", [0.1, 0.6, -9, -1])
def test_parquet_that_was_cut(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "a.parquet"
    whole = table(path)
    path.write_bytes(whole[: int(kept * len(whole)) if kept > 0 else int(kept)])
    assert only_fault(path, "parquet").startswith("a.parquet: cannot be read as parquet (")


def test_parquet_with_a_flipped_bit_under_a_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    whole = bytearray(table(path, write_page_checksum=True, compression="none"))
    whole[whole.index(b"document 25 of")] ^= 1
    path.write_bytes(whole)
    documents, [fault] = read(path, "parquet")
    assert fault.row == 21
    assert has(fault.message, "a.parquet, row 21: row group 1 (rows 21 to 40) cannot be read from here on", "fetch the")
    assert [document.row for document in documents] == [*range(1, 21), *range(41, 61)]


def test_parquet_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    whole = bytearray(table(path, compression="none"))
    whole[whole.index(b"document 25 of")] = 255
    path.write_bytes(whole)
    documents, [fault] = read(path, "parquet")
    assert has(fault.message, "a.parquet, row 26: is not UTF-8", "repair it")
    assert len(documents) == 59


def test_no_changed_byte_of_a_footer_loses_rows_or_the_process(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    whole = table(path, compression="zstd")
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for at in range(footer, len(whole), 7):
        changed = bytearray(whole)
        changed[at] ^= 16
        path.write_bytes(changed)
        documents, faults = read(path, "parquet", filter=Filter(field="meta.set", not_in=("x",)))
        assert faults or [document.text for document in documents] == [row["text"] for row in ROWS[:60]], at


def test_parquet_columns_that_are_not_there_or_not_text(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    columns = {"text": ["x", None], "n": [1, 2], "b": [b"x", b"y"], "l": [["x"], []], "meta": [{"set": "x"}, None]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    has_all = r"(there is: text, n, b, l.list.element, meta.set)"
    for field, says in (
        ("content", f"has no column 'content' {has_all}: correct text_field"),
        ("meta", f"has no column 'meta' {has_all}: correct text_field"),
        ("l.list.element", f"has no column 'l.list.element' {has_all}: correct text_field"),
        ("n", "has a column 'n' of INT64, not text: correct text_field"),
        ("b", "has a column 'b' of BYTE_ARRAY, not text: correct text_field"),
    ):
        assert only_fault(path, "parquet", text_field=field) == f"a.parquet: {says}"
    says = f"a.parquet: has no column 'meta.sets' {has_all}: correct filter.field"
    assert only_fault(path, "parquet", filter=Filter(field="meta.sets", keep=("x",))) == says
    _, [fault] = read(path, "parquet")
    assert fault.message == "a.parquet, row 2: field 'text' is null, not text: correct text_field or repair it"
    documents, [fault] = read(path, "parquet", text_field="meta.set")
    assert fault.message == "a.parquet, row 2: no field 'meta.set' (there is: NoneType): correct text_field"
    assert documents == [Document("a.parquet", 1, "x", kept=True)]


def test_a_parquet_dictionary_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 100_000, pyarrow.int32()), ["x" * 1_000_000])
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(
        pyarrow.table({"text": once}), path, store_schema=False, dictionary_pagesize_limit=1 << 30
    )
    before = pyarrow.default_memory_pool().max_memory()
    documents, [fault] = read(path, "parquet")
    assert 100 < len(documents) < 200
    assert "unpacks to more than 1,000 times its" in fault.message
    assert pyarrow.default_memory_pool().max_memory() - before < 1 << 28
    monkeypatch.setattr(formats, "MAX_BYTES", 999_999)
    _, faults = read(path, "parquet")
    assert faults[0].message == "a.parquet, row 1: is longer than 999,999 bytes, the most a record may be: split it"
    monkeypatch.setattr(unpack, "MAX_GROUP_BYTES", 1000)
    _, [fault] = read(path, "parquet")
    assert has(
        fault.message, "a.parquet, row 1: row group 0 (rows 1 to 100,000) has ", "more than 1,000: write smaller"
    )


def test_text_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9")
    assert has(only_fault(path, "text"), "a.txt, byte 3: is not UTF-8", "convert it or leave it out by exclude")
    monkeypatch.setattr(formats, "MAX_BYTES", 3)
    assert only_fault(path, "text") == "a.txt: is larger than 3 bytes, the most a document may be: split it"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda path: path.unlink(), "a: vanished while it was read: let what writes it finish"),
        (lambda path: os.utime(path, (1, 1)), "a: was written to while it was read"),
        (lambda path: path.write_bytes(CONTENT * 2), "a: had .* bytes when it was listed and now has "),
    ],
)
def test_a_file_that_changes_while_it_is_read(tmp_path: Path, change: Callable[[Path], object], says: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(CONTENT)
    source = Source(format="jsonl", weight=1.0, raw=str(tmp_path))
    items = read_file(raw_files(source)[0], source=source)
    next(items)
    change(path)
    *_, fault = items
    assert isinstance(fault, Fault)
    assert has(fault.message, *says.split(" .* "))
