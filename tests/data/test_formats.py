"""Every reader gives the same documents of the same files, and leaves none out in silence."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from tests.data.layouts import read_documents
from tinyllama.config.data import Filter, Source
from tinyllama.data import formats, stdlib, unpack
from tinyllama.data.formats import Document, Fault, RawFile, identity, raw_files, read_file

ROWS = [{"text": f"document {i}\nof {'x' * i}", "meta": {"set": "Github" if i % 3 else "Book"}} for i in range(40)]
ROWS[7]["text"] = ""


FORMS = ["jsonl", "jsonl.gz", "jsonl.zst", "parquet"]


def source(folder: Path, **knobs: object) -> Source:
    return Source(**{"format": "jsonl", "weight": 1.0, "raw": str(folder), **knobs})  # type: ignore[arg-type]


def lines(rows: list[object]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write(folder: Path, form: str) -> Path:
    path = folder / f"rows.{form}"
    if form == "jsonl":
        path.write_bytes(lines(ROWS))
    elif form != "parquet":  # two frames, or members: what `cat a.zst b.zst` makes
        pack = zstandard.compress if form == "jsonl.zst" else gzip.compress
        path.write_bytes(b"".join(pack(lines(part)) for part in (ROWS[:15], ROWS[15:])))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=7)
    return path


def names(source: Source) -> list[str]:
    return [file.name for file in raw_files(source)]


@pytest.mark.parametrize("form", FORMS)
def test_records_are_read_in_order_with_their_place(tmp_path: Path, form: str) -> None:
    write(tmp_path, form)
    read = list(read_documents(source(tmp_path, format=form)))
    assert read == [Document(f"rows.{form}", i, str(row["text"]), kept=True) for i, row in enumerate(ROWS, start=1)]
    assert read[4].key == f"rows.{form}:5"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", [{"not_in": ("Github",)}, {"keep": ("Book", "C4")}])
def test_the_filter_drops_what_it_names_and_nothing_else(
    tmp_path: Path, form: str, rule: dict[str, tuple[str]]
) -> None:
    write(tmp_path, form)
    filtered = source(tmp_path, format=form, filter=Filter(field="meta.set", **rule))
    [file] = raw_files(filtered)
    read = [item for item in read_file(file, source=filtered) if isinstance(item, Document)]
    assert len(read) == 40
    assert [item.row for item in read if item.kept] == list(range(1, 41, 3))
    assert [item.row for item in read_documents(filtered)] == list(range(1, 41, 3))


@pytest.mark.parametrize("form", FORMS)
def test_the_hasher_takes_in_the_raw_file(tmp_path: Path, form: str) -> None:
    path = write(tmp_path, form)
    [file] = raw_files(source(tmp_path, format=form))
    hasher = hashlib.sha256()
    assert len(list(read_file(file, source=source(tmp_path, format=form), hasher=hasher))) == 40
    assert hasher.hexdigest() == hashlib.sha256(path.read_bytes()).hexdigest()
    assert file == RawFile(path.name, path, path.stat().st_size, held_out=False)


def test_embedded_files_are_the_library_texts(tmp_path: Path) -> None:
    embedded = source(tmp_path, format="stdlib_text", raw=None)
    [file, *_] = raw_files(embedded)
    [name, *_] = stdlib.prose()
    hasher = hashlib.sha256()
    assert list(read_file(file, source=embedded, hasher=hasher)) == [Document(name, 0, stdlib.prose()[name], kept=True)]
    assert hasher.digest() == hashlib.sha256(stdlib.prose()[name].encode()).digest()
    assert (file.name, file.path, file.size) == (name, None, len(stdlib.prose()[name].encode()))


def test_text_files_are_sorted_by_posix_path_and_kept_to_the_byte(tmp_path: Path) -> None:
    texts = {"b/z.txt": "café\r\n\n", "a.txt": "  one ", "b.txt": "", "b/a.md": "no", "c.x.txt": "dots"}
    (tmp_path / "b").mkdir()
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text.encode())
    read = [(item.key, item.text) for item in read_documents(source(tmp_path, format="text", include=("**/*.txt",)))]
    assert read == [(name, texts[name]) for name in ("a.txt", "b.txt", "b/z.txt", "c.x.txt")]


@pytest.mark.parametrize("form", FORMS[:3])
def test_long_lines_and_a_last_line_without_newline_are_whole(tmp_path: Path, form: str) -> None:
    texts = ["short", "long" * 700_000, "last"]
    content = lines([{"text": text} for text in texts]).removesuffix(b"\n")
    pack = {"jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.zst": zstandard.compress}[form]
    (tmp_path / f"x.{form}").write_bytes(pack(content))
    assert [document.text for document in read_documents(source(tmp_path, format=form))] == texts


def test_a_zst_file_may_hold_skippable_and_empty_frames(tmp_path: Path) -> None:
    skipped = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"abcde"
    frame = zstandard.compress(b'{"text": "x"}\n')
    (tmp_path / "x.jsonl.zst").write_bytes(skipped + frame + zstandard.compress(b"") + frame + skipped)
    assert [document.row for document in read_documents(source(tmp_path, format="jsonl.zst"))] == [1, 2]


BAD_LINES = [
    (b'{"text": "cut', ", byte 42: is not JSON"),
    (b"", ", byte 42: is not JSON"),
    (b"[" * 100_000, ", byte 42: is not JSON"),
    (b'{"text": "x", "id": ' + b"9" * 5000 + b"}", ", byte 42: is not JSON .*4300 digits"),
    (b'{"text": "\xff"}', ", byte 52: is not UTF-8"),
    (b'{"texts": "x", "id": 1}', r": no field 'text' \(there is: id, texts\): correct text_field"),
    (b'{"\\ud800": "x"}', r": no field 'text' \(there is: '\\ud800'\): correct text_field"),
    (b'["x"]', r": no field 'text' \(there is: list\)"),
    (b'{"text": null}', ": field 'text' is null, not text: correct text_field"),
    (b'{"text": 5}', ": field 'text' is int, not text"),
    (b'{"text": "\\ud800"}', ": field 'text' holds a lone surrogate"),
    (b'{"text": "x"}', r": no field 'meta\.set' \(there is: text\): correct filter\.field"),
    (b'{"text": "' + b"x" * (1 << 20) + b'"}', ", byte 42: is longer than 1,048,576 bytes"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES, ids=range(len(BAD_LINES)))
@pytest.mark.parametrize("form", FORMS[:3])
def test_a_bad_line_is_named_and_its_neighbours_are_read(
    tmp_path: Path, line: bytes, message: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "MAX_BYTES", 1 << 20)
    fine = b'{"text": "fine", "meta": {"set": "Book"}}\n'
    pack = {"jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.zst": zstandard.compress}[form]
    path = tmp_path / f"rows.{form}"
    path.write_bytes(pack(fine + line + b"\n" + fine))
    filtered = source(tmp_path, format=form, filter=Filter(field="meta.set", not_in=("Github",)))
    hasher = hashlib.sha256()
    first, fault, last = read_file(raw_files(filtered)[0], source=filtered, hasher=hasher)
    assert (first, last) == tuple(Document(path.name, row, "fine", kept=True) for row in (1, 3))
    assert isinstance(fault, Fault)
    assert fault.row == 2
    assert hasher.digest() == hashlib.sha256(path.read_bytes()).digest()
    place = message if form == "jsonl" else message[message.index(": ") :]
    with pytest.raises(ValueError, match=rf"^rows\.{form}, line 2(, byte \d+)?{place}"):
        list(read_documents(filtered))


def test_no_files_no_folder_no_raw(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"")
    for knobs, message in (
        ({"raw": None}, "raw is null: format jsonl reads files"),
        ({"raw": str(tmp_path / "no")}, "raw folder .*no does not exist: set raw"),
        ({"include": ("*.jsonl", "*.zst")}, r"no file in .* matches include '\*\.zst': correct raw or include"),
        ({"held_out_include": ("b*",)}, r"no file in .* matches held_out_include 'b\*': correct raw or held_out"),
        ({"exclude": ("*.jsonl",)}, r"no file in .* matches include '\*\*/\*': correct raw or include"),
        ({"held_out_include": ("a*",)}, "every file in .* matches held_out_include too"),
        ({"include": ("/etc/*",)}, "include '/etc/\\*' is no glob below raw"),
        ({"include": ("../*",)}, "include '../\\*' is no glob below raw"),
        ({"include": ("a**",)}, "include 'a\\*\\*' is no glob below raw"),
        ({"exclude": ("[z-a]",)}, r"exclude '\[z-a\]' is no glob below raw"),
    ):
        with pytest.raises(ValueError, match=message):
            raw_files(source(tmp_path, **knobs))


@pytest.mark.parametrize(
    ("glob", "found"),
    [
        ("**/*", [".c/d", "a/b/x.py", "a/x.py", "a/y[1].txt", "x.py"]),
        ("**", [".c/d", "a/b/x.py", "a/x.py", "a/y[1].txt", "x.py"]),
        ("*", ["x.py"]),
        ("**/*.py", ["a/b/x.py", "a/x.py", "x.py"]),
        ("a/**", ["a/b/x.py", "a/x.py", "a/y[1].txt"]),
        ("a/**/x.py", ["a/b/x.py", "a/x.py"]),
        ("*/x.??", ["a/x.py"]),
        ("[!b]/[w-y].py", ["a/x.py"]),
        ("a/y[[]1].txt", ["a/y[1].txt"]),
        ("**/b/**", ["a/b/x.py"]),
        ("a/*[]1[]*", ["a/y[1].txt"]),
    ],
)
def test_globs_mean_the_same_in_every_python(tmp_path: Path, glob: str, found: list[str]) -> None:
    for number, name in enumerate(("a/b/x.py", "a/x.py", "a/y[1].txt", "x.py", ".c/d")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(str(number))
    assert names(source(tmp_path, include=(glob,))) == found


def test_what_the_hubs_library_notes_down_is_no_data(tmp_path: Path) -> None:
    for name in (
        "a.jsonl",
        ".cache/huggingface/download/a.jsonl.metadata",
        ".cache/huggingface/.gitignore",
        ".cache/b",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert names(source(tmp_path)) == [".cache/b", "a.jsonl"]


def test_excluded_and_held_out_files_are_not_trained_on(tmp_path: Path) -> None:
    for name in ("a", "b", "held", "held.lock", "c.lock"):
        (tmp_path / name).write_text("x")
    files = raw_files(source(tmp_path, include=("*", "a"), exclude=("*.lock",), held_out_include=("held*",)))
    assert [(file.name, file.held_out) for file in files] == [("a", False), ("b", False), ("held", True)]


def test_links_to_folders_are_followed_once_and_broken_ones_told(tmp_path: Path) -> None:
    raw, disk = tmp_path / "raw", tmp_path / "disk"
    raw.mkdir()
    disk.mkdir()
    (disk / "x.txt").write_text("x")
    (disk / "loop").symlink_to(raw)
    (raw / "chunk1").symlink_to(disk)
    assert names(source(raw, include=("**/*.txt",))) == ["chunk1/x.txt"]
    (raw / "gone.txt").symlink_to(tmp_path / "no")
    with pytest.raises(ValueError, match=r"gone\.txt leads nowhere \(No such file or directory\): fetch it"):
        raw_files(source(raw, include=("**/*.txt",)))
    assert names(source(raw, include=("**/*.txt",), exclude=("gone*",))) == ["chunk1/x.txt"]


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_one_file_under_two_names_is_refused(tmp_path: Path, link: object) -> None:
    (tmp_path / "a").write_text("x")
    link(tmp_path / "a", tmp_path / "b")  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"one and the same file, so that its documents would be counted twice: leave"):
        raw_files(source(tmp_path))
    assert names(source(tmp_path, exclude=("b",))) == ["a"]


def test_a_file_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")).write_text("x")
    with pytest.raises(ValueError, match=r"file name '\\udcff' in .* is not UTF-8: rename"):
        raw_files(source(tmp_path))


@pytest.mark.parametrize("form", ["text", "jsonl", "jsonl.zst", "parquet"])
def test_a_file_that_grew_or_vanished_since_it_was_listed(tmp_path: Path, form: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(b'{"text": "x"}\n')
    listed = source(tmp_path, format=form)
    [file] = raw_files(listed)
    path.write_bytes(b'{"text": "x"}\n' * 2)
    [fault] = read_file(file, source=listed)
    assert isinstance(fault, Fault)
    assert fault.message == (
        "a: had 14 bytes when it was listed and now has 28: let what writes it finish, then start again"
    )
    path.unlink()
    [fault] = read_file(file, source=listed)
    assert isinstance(fault, Fault)
    assert fault.message == "a: cannot be read (No such file or directory): repair it or leave it out"


def test_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"x")
    monkeypatch.setattr(unpack.Raw, "_next", lambda self: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    [fault] = read_file(raw_files(source(tmp_path))[0], source=source(tmp_path))
    assert isinstance(fault, Fault)
    assert fault.message == "a: cannot be read (Input/output error): repair it or leave it out"


def test_identity_is_the_interpreter_or_the_format(tmp_path: Path) -> None:
    version = ".".join(map(str, sys.version_info[:3]))
    assert identity(source(tmp_path, format="stdlib_code")).startswith(f"{sys.implementation.name}-{version}")
    assert identity(source(tmp_path, format="parquet")) == "parquet"
