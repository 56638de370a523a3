"""A data set is hashed once and not again before it changes, and nothing that is wrong with it goes unsaid."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.data.sets import Set, make_set
from tinyllama.data import manifest as module
from tinyllama.data import verify
from tinyllama.data.manifest import FILE, SMALL, Manifest, write_through
from tinyllama.data.verify import STAMP, Verification


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Set:
    return make_set(tmp_path_factory.mktemp("verify"))


@pytest.fixture
def folder(several: Set, tmp_path: Path) -> Path:
    return shutil.copytree(several.folder, tmp_path / "set")


@pytest.fixture
def hashed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    """Gives, and forgets, the files that have been hashed."""
    names: list[str] = []
    digest = module.hashlib.file_digest

    def counting(file: Any, name: str) -> Any:
        names.append(str(Path(file.name).relative_to(folder)))
        return digest(file, name)

    monkeypatch.setattr(module.hashlib, "file_digest", counting)

    def taken() -> list[str]:
        out = names[:]
        names.clear()
        return out

    yield taken
    assert not names, "every test looks at what was hashed"


def verified(manifest: Manifest, folder: Path) -> None:
    """What a run does: start, and look later."""
    verification = Verification(manifest, folder)
    verification.check()  # nothing is known yet, and nothing wrong
    verification.start()
    verification.join(timeout=20)
    assert not verification.is_alive()
    verification.check()


def test_only_a_set_of_a_billion_tokens_is_left_to_it(several: Set) -> None:
    web = several.manifest.sources["web"]
    for held_out, small in ((SMALL - 9, False), (SMALL - 10, True)):
        sized = replace(web, train=replace(web.train, tokens=9), held_out=replace(web.held_out, tokens=held_out))
        assert replace(several.manifest, sources={"web": sized}).is_small == small


def test_every_file_is_hashed_once(several: Set, folder: Path, hashed: Callable[[], list[str]]) -> None:
    verified(several.manifest, folder)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    once = hashed()
    assert sorted(once) == sorted(files - {FILE, STAMP}) and len(once) > 20
    verified(several.manifest, folder)
    verified(Manifest.load(folder), folder)
    assert hashed() == []


def test_a_flipped_bit_in_any_file_is_found(several: Set, folder: Path, hashed: Callable[[], list[str]]) -> None:
    verified(several.manifest, folder)
    files = sorted({*hashed()})
    filled = [file for file in files if (folder / file).stat().st_size]
    assert len(filled) > 15
    for number, file in enumerate(filled):
        path = folder / file
        content = bytearray(path.read_bytes())
        place = number * 7919 % len(content)
        content[place] ^= 1 << number % 8
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{path} has changed .*: delete {folder} and prepare it again"):
            verified(several.manifest, folder)
        content[place] ^= 1 << number % 8
        path.write_bytes(content)
        hashed()
    verified(several.manifest, folder)
    assert {*hashed()} == {*files}


def touch(path: Path) -> None:
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))


def rewrite_in_place_and_set_the_time_back(path: Path) -> None:
    state = path.stat()
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def copy_with_its_time(path: Path) -> None:
    shutil.copy2(path, path.with_name("copy"))
    path.with_name("copy").rename(path)


@pytest.mark.parametrize("change", [touch, rewrite_in_place_and_set_the_time_back, copy_with_its_time])
def test_what_was_written_since_is_hashed_again(
    several: Set, folder: Path, hashed: Callable[[], list[str]], change: Callable[[Path], None]
) -> None:
    verified(several.manifest, folder)
    everything = hashed()
    change(folder / several.manifest.sources["code"].train.shards[-1].file)
    verified(several.manifest, folder)
    assert hashed() == everything
    verified(several.manifest, folder)
    assert hashed() == []


def test_a_stamp_does_not_vouch_for_a_copy(several: Set, folder: Path, hashed: Callable[[], list[str]]) -> None:
    verified(several.manifest, folder)
    everything = hashed()
    folder.rename(folder.with_name("original"))
    shutil.copytree(folder.with_name("original"), folder)  # with the times of its files, and the stamp
    assert (folder / STAMP).exists()
    verified(several.manifest, folder)
    assert hashed() == everything


@pytest.mark.parametrize(("damage", "says"), [("cut", r"has [\d,]+ bytes, not [\d,]+"), ("gone", "is missing")])
def test_a_missing_or_cut_file_is_told_in_spite_of_the_stamp(
    several: Set, folder: Path, hashed: Callable[[], list[str]], damage: str, says: str
) -> None:
    verified(several.manifest, folder)
    path = folder / several.manifest.sources["web"].held_out.shards[0].file
    stamp = (folder / STAMP).read_bytes()
    if damage == "cut":
        os.truncate(path, path.stat().st_size - 2)
    else:
        path.unlink()
    for _ in range(2):
        with pytest.raises(ValueError, match=f"{path} {says}: delete {folder} and prepare it again"):
            verified(several.manifest, folder)
    assert (folder / STAMP).read_bytes() == stamp
    hashed()


def test_a_stamp_is_for_one_manifest(several: Set, folder: Path, hashed: Callable[[], list[str]]) -> None:
    verified(several.manifest, folder)
    hashed()
    other = replace(several.manifest, tokenizer=replace(several.manifest.tokenizer, sha256="0" * 64))
    with pytest.raises(ValueError, match=r"tokenizer\.model has changed"):
        verified(other, folder)
    assert hashed() == ["tokenizer.model"]


@pytest.mark.parametrize("content", [b"", b'{"tokenizer.model": [', b"\xff\xfe", b"[]", b"null"])
def test_a_damaged_stamp_is_none(several: Set, folder: Path, hashed: Callable[[], list[str]], content: bytes) -> None:
    (folder / STAMP).write_bytes(content)
    verified(several.manifest, folder)
    assert hashed()
    assert len(json.loads((folder / STAMP).read_bytes())) > 20
    verified(several.manifest, folder)
    assert hashed() == []


def test_what_changes_while_it_is_hashed_is_hashed_the_next_time(
    several: Set, folder: Path, hashed: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_file = module.check_file

    def slow(path: Path, **knobs: Any) -> None:
        check_file(path, **knobs)
        touch(path)

    with monkeypatch.context() as patch:
        patch.setattr(module, "check_file", slow)
        verified(several.manifest, folder)
    everything = hashed()
    verified(several.manifest, folder)
    assert hashed() == everything


def test_a_folder_that_cannot_be_written_to_is_hashed_each_time(
    several: Set, folder: Path, hashed: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def refuse(path: Path, content: bytes) -> None:
        tried.append(path)
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    monkeypatch.setattr(verify, "write_through", refuse)
    verified(several.manifest, folder)
    everything = hashed()
    verified(several.manifest, folder)
    assert hashed() == everything and tried == [folder / STAMP] * 2 and not (folder / STAMP).exists()
    monkeypatch.setattr(verify, "write_through", write_through)
    verified(several.manifest, folder)
    assert hashed() == everything and (folder / STAMP).exists()


def test_a_disk_that_cannot_be_read_is_told(
    several: Set, folder: Path, hashed: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(file: Any, name: str) -> None:
        raise OSError(errno.EIO, "Input/output error", file.name)

    monkeypatch.setattr(module.hashlib, "file_digest", fail)
    with pytest.raises(OSError, match=r"Input/output error: .*tokenizer\.model"):
        verified(several.manifest, folder)
    assert not (folder / STAMP).exists() and hashed() == []


def test_what_was_found_is_told_at_every_check(several: Set, folder: Path, hashed: Callable[[], list[str]]) -> None:
    (folder / several.manifest.tokenizer.file).unlink()
    verification = Verification(several.manifest, folder)
    assert verification.daemon, "a run that ends does not wait for it"
    verification.start()
    verification.join(timeout=20)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"tokenizer\.model is missing"):
            verification.check()
    assert hashed() == []
