"""Published layouts come out whole: every document in its split, every file in the ledger, whoever did the work."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.data.layouts import HOW, QUIET, decoded, published, read_documents, rows, tree, write_zst
from tinyllama.config.data import Data
from tinyllama.data import pool, units
from tinyllama.data import prepare as prepare_module
from tinyllama.data.find import dataset_dir
from tinyllama.data.formats import RawFile, raw_files, read_file
from tinyllama.data.manifest import Manifest
from tinyllama.data.prepare import prepare
from tinyllama.data.units import is_held_out, units_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several units of a few files each."""
    monkeypatch.setattr(units, "UNIT_BYTES", 40_000)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """The two published layouts."""
    return published(tmp_path_factory.mktemp("raw") / "raw")


@pytest.fixture(scope="module")
def whole(data: Data, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """They prepared in one go, by one process: what everything else has to come out as."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "UNIT_BYTES", 40_000)
        manifest = prepare(data, data_dir=root, how=HOW, console=QUIET)
    assert manifest is not None
    return dataset_dir(data, data_dir=root), manifest


@pytest.fixture(scope="module")
def given(data: Data, whole: tuple[Path, Manifest], tmp_path_factory: pytest.TempPathFactory) -> Data:
    """The same with the tokenizer given, so that nothing has to be sampled."""
    folder, _ = whole
    spec = dataclasses.replace(data.tokenizer, model=str(folder / "tokenizer.model"))
    return dataclasses.replace(data, tokenizer=spec)


def ledger(folder: Path, manifest: Manifest, source: str) -> list[dict[str, Any]]:
    path = folder / manifest.sources[source].raw.ledger.file
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_shards_hold_the_raw_text_and_the_ledger_all_that_was_read(data: Data, whole: tuple[Path, Manifest]) -> None:
    folder, manifest = whole
    for name, source in data.sources.items():
        assert len(manifest.sources[name].units) > 1
        expected: dict[str, list[str]] = {"train": [], "held_out": []}
        lines = {line["file"]: line for line in ledger(folder, manifest, name)}
        files = raw_files(source)
        assert list(lines) == [file.name for file in files]
        for file in files:
            assert file.path is not None
            documents = list(read_file(file, source=source))
            kept = [document for document in documents if document.kept]
            held = [file.held_out or is_held_out(document.key, fraction=source.held_out) for document in kept]
            if name == "slimpajama":
                assert len(kept) < len(documents)
                held = [file.name.startswith("validation")] * len(kept)
            sides = {
                "train_": [d.text for d, out in zip(kept, held, strict=True) if not out],
                "held_out_": [d.text for d, out in zip(kept, held, strict=True) if out],
                "filtered_": [d.text for d in documents if not d.kept],
                "": [d.text for d in documents],
            }
            line = lines[file.name]
            for prefix, texts in sides.items():
                assert line[f"{prefix}documents"] == len(texts)
                assert line[f"{prefix}bytes"] == sum(len(text.encode()) for text in texts)
            assert line["size"] == file.path.stat().st_size
            assert line["sha256"] == hashlib.sha256(file.path.read_bytes()).hexdigest()
            assert line["skipped"] == 0
            expected["train"] += sides["train_"]
            expected["held_out"] += sides["held_out_"]
        for split, texts in expected.items():
            assert decoded(folder, manifest, name, split) == texts
            entry = getattr(manifest.sources[name], split)
            assert (entry.documents, entry.bytes) == (len(texts), sum(len(text.encode()) for text in texts))
        raw = manifest.sources[name].raw
        splits = manifest.sources[name].train, manifest.sources[name].held_out
        assert raw.documents == raw.filtered_documents + sum(split.documents for split in splits)
        assert raw.bytes == raw.filtered_bytes + sum(split.bytes for split in splits)


def test_units_are_runs_of_files_filled_up_to_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "UNIT_BYTES", 10)
    files = [
        RawFile(name=f"{i}", path=None, size=size, held_out=False) for i, size in enumerate([4, 6, 1, 25, 3, 7, 0])
    ]
    cut = units_of("s", files)
    assert [[file.size for file in unit.files] for unit in cut] == [[4, 6], [1], [25], [3, 7, 0]]
    assert [unit.number for unit in cut] == [0, 1, 2, 3]
    assert cut[2].path("train") == "s/train-00002"


@pytest.mark.parametrize("workers", [2, 3])
def test_several_processes_make_the_same_bytes(
    given: Data, whole: tuple[Path, Manifest], tmp_path: Path, workers: int
) -> None:
    how = dataclasses.replace(HOW, workers=workers)
    assert prepare(given, data_dir=tmp_path, how=how, console=QUIET) is not None
    assert tree_but_digest(dataset_dir(given, data_dir=tmp_path)) == tree_but_digest(whole[0])


def tree_but_digest(folder: Path) -> dict[str, str]:
    """`tree` without the manifest, which says whether the tokenizer was given or trained."""
    return {name: digest for name, digest in tree(folder).items() if name != "manifest.json"}


def test_parts_in_any_order_make_the_same_bytes(given: Data, whole: tuple[Path, Manifest], tmp_path: Path) -> None:
    parts = [prepare_part(given, tmp_path, part=part, parts=3) for part in (2, 0)]
    assert parts == [None, None]
    assert not dataset_dir(given, data_dir=tmp_path).exists()
    again = prepare_part(given, tmp_path, part=2, parts=3)
    assert again is None
    last = prepare_part(given, tmp_path, part=1, parts=3)
    assert last is not None
    assert prepare_part(given, tmp_path, part=0, parts=3) == last, "it is found"
    assert tree_but_digest(dataset_dir(given, data_dir=tmp_path)) == tree_but_digest(whole[0])
    assert [path.name for path in tmp_path.iterdir()] == [dataset_dir(given, data_dir=tmp_path).name]


def prepare_part(data: Data, data_dir: Path, *, part: int, parts: int) -> Manifest | None:
    how = dataclasses.replace(HOW, part=part, parts=parts)
    return prepare(data, data_dir=data_dir, how=how, console=QUIET)


def test_what_is_done_is_not_done_again(
    given: Data, whole: tuple[Path, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    encode = pool.encode_unit

    def stops_at_the_third(unit: units.Unit, **options: Any) -> Any:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(unit.path("unit"))
        return encode(unit, **options)

    monkeypatch.setattr(pool, "encode_unit", stops_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        prepare(given, data_dir=tmp_path, how=HOW, console=QUIET)
    assert not dataset_dir(given, data_dir=tmp_path).exists()
    first, done[:] = list(done), []
    # a file of the first unit is another one now; its content is the same
    os.utime(Path(given.sources["slimpajama"].raw or "") / "train/chunk1/example_train_0.jsonl.zst")

    def counted(unit: units.Unit, **options: Any) -> Any:
        done.append(unit.path("unit"))
        return encode(unit, **options)

    monkeypatch.setattr(pool, "encode_unit", counted)
    assert prepare(given, data_dir=tmp_path, how=HOW, console=QUIET) is not None
    assert first[0] in done and not set(first[1:]) & set(done)
    assert tree_but_digest(dataset_dir(given, data_dir=tmp_path)) == tree_but_digest(whole[0])


SCRIPT = """
import sys
from pathlib import Path
from tests.data.layouts import HOW, QUIET, decoded, published
from tinyllama.data import units
from tinyllama.data.prepare import prepare
import dataclasses
if __name__ == "__main__":
    units.UNIT_BYTES = 40_000
    raw, data_dir, tokenizer, workers = sys.argv[1:]
    data = published(Path(raw), tokenizer=Path(tokenizer))
    prepare(data, data_dir=Path(data_dir), how=dataclasses.replace(HOW, workers=int(workers)), console=QUIET)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_any_moment_it_goes_on(
    given: Data, whole: tuple[Path, Manifest], tmp_path: Path, workers: int
) -> None:
    raw = Path(given.sources["slimpajama"].raw or "").parent
    script = tmp_path / "work.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(raw), str(tmp_path / "d"), str(given.tokenizer.model), str(workers)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    draw, kills = random.Random(workers), 0
    for done in (0, 1, 2, 4, 5, None):
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        if done is None:
            assert process.wait() == 0
            break
        while process.poll() is None and len([*(tmp_path / "d").glob(".*/*/unit-*.json")]) < done:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.1))
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)  # the parent alone: workers must not outlive it
        process.wait()
        assert_gone(process.pid)
    assert kills >= 2
    assert tree_but_digest(dataset_dir(given, data_dir=tmp_path / "d")) == tree_but_digest(whole[0])


def test_workers_in_the_middle_of_their_work_do_not_outlive_their_parent(given: Data, tmp_path: Path) -> None:
    published(tmp_path / "raw")
    for i in range(4):  # each a unit that takes a second or so
        texts = [f"document {j} " + " ".join(f"{i}{j}{k}" for k in range(40)) for j in range(20_000)]
        write_zst(tmp_path / "raw" / "slimpajama" / "train" / "chunk1" / f"a{i}.jsonl.zst", rows(texts))
    script = tmp_path / "work.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(tmp_path / "raw"), str(tmp_path / "d"), str(given.tokenizer.model), "2"]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True)
    while len([*(tmp_path / "d").glob(".*/*/.unit-*.tmp")]) < 2:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert_gone(process.pid)


def assert_gone(session: int) -> None:
    """No process of a session is left, within a few seconds."""
    for _ in range(100):
        found = subprocess.run(["ps", "-o", "pid=", "-s", str(session)], capture_output=True, text=True, check=False)
        if not found.stdout.strip():
            return
        time.sleep(0.1)
    raise AssertionError(f"still there: {found.stdout}")


def test_a_killed_worker_is_told_and_what_was_done_stays(given: Data, tmp_path: Path) -> None:
    how = dataclasses.replace(HOW, workers=2)
    killed = []

    def kill_one() -> None:
        while not killed:
            with suppress(RuntimeError):  # the pool adds to them at this moment
                if workers := multiprocessing.active_children():
                    os.kill(workers[0].pid or 0, signal.SIGKILL)
                    killed.append(workers[0].pid)
            time.sleep(0.01)

    thread = threading.Thread(target=kill_one, daemon=True)
    thread.start()
    with pytest.raises(OSError, match=r"a worker was killed, .* as in prepare\.workers=1; the same command goes on"):
        prepare(given, data_dir=tmp_path, how=how, console=QUIET)
    assert killed
    assert prepare(given, data_dir=tmp_path, how=HOW, console=QUIET) is not None


def test_a_worker_killed_while_the_next_is_started_is_told_too(
    given: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawn = ProcessPoolExecutor._spawn_process  # type: ignore[attr-defined]

    def spawn_after_a_death(pool: Any) -> None:
        if workers := multiprocessing.active_children():
            os.kill(workers[0].pid or 0, signal.SIGKILL)
            while not pool._call_queue._reader.closed:
                time.sleep(0.01)
        spawn(pool)

    monkeypatch.setattr(ProcessPoolExecutor, "_spawn_process", spawn_after_a_death)
    with pytest.raises(OSError, match=r"a worker was killed, .* as in prepare\.workers=1"):
        prepare(given, data_dir=tmp_path, how=dataclasses.replace(HOW, workers=2), console=QUIET)


@pytest.fixture
def damaged(given: Data, tmp_path: Path) -> Data:
    """A set of its own with a bad line in one file and another file cut short."""
    root = tmp_path / "raw"
    texts = [f"document {i} of the file" for i in range(30)]
    write_zst(root / "train/chunk1/a.jsonl.zst", [*rows(texts[:10]), {"no": "text"}, *rows(texts[10:20])])
    write_zst(root / "train/chunk1/b.jsonl.zst", rows(texts[20:]))
    write_zst(root / "validation/chunk1/c.jsonl.zst", rows(["held out", "filtered", "held out too"]))
    cut = root / "train/chunk1/b.jsonl.zst"
    cut.write_bytes(cut.read_bytes()[:-20])
    source = dataclasses.replace(given.sources["slimpajama"], raw=str(root))
    return dataclasses.replace(given, sources={"web": source})


def test_what_can_not_be_read_stops_the_work_or_is_written_down(damaged: Data, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.sources\.web: train/chunk1/a\.jsonl\.zst, line 11.*no field 'text'"):
        prepare(damaged, data_dir=tmp_path / "d", how=HOW, console=QUIET)
    left = [path for path in (tmp_path / "d").rglob("*") if path.is_file()]
    assert [path.name for path in left] == ["tokenizer.model"], "nothing else was done"
    told = Console(file=io.StringIO(), width=200)
    skip = dataclasses.replace(HOW, on_error="skip")
    manifest = prepare(damaged, data_dir=tmp_path / "d", how=skip, console=told)
    assert manifest is not None
    folder, raw = dataset_dir(damaged, data_dir=tmp_path / "d"), manifest.sources["web"].raw
    assert raw.skips is not None
    skips = [json.loads(line) for line in (folder / raw.skips.file).read_text().splitlines()]
    assert [(skip["name"], skip["row"]) for skip in skips] == [
        ("train/chunk1/a.jsonl.zst", 11),
        ("train/chunk1/b.jsonl.zst", 0),
    ]
    assert raw.skipped == 2
    with pytest.raises(
        ValueError, match=r"web: 2 of it could not be read when .*, listed in web/skipped\.jsonl: repair"
    ):
        prepare(damaged, data_dir=tmp_path / "d", how=HOW, console=QUIET)
    assert isinstance(told.file, io.StringIO)
    assert "warning: web: 2 could not be read, listed in web/skipped.jsonl" in told.file.getvalue()
    assert [line["skipped"] for line in ledger(folder, manifest, "web")] == [1, 1, 0]
    # every third is filtered out, and the count starts anew after the bad line
    kept = [i for i in range(20) if i % 10 % 3 != 1]
    assert decoded(folder, manifest, "web", "train")[: len(kept)] == [f"document {i} of the file" for i in kept]


def test_what_was_skipped_is_read_again_where_that_is_not_allowed(
    damaged: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip = dataclasses.replace(HOW, on_error="skip", part=0, parts=2)
    monkeypatch.setattr(units, "UNIT_BYTES", 1)
    assert prepare(damaged, data_dir=tmp_path / "d", how=skip, console=QUIET) is None
    with pytest.raises(ValueError, match=r"line 11"):
        prepare(damaged, data_dir=tmp_path / "d", how=HOW, console=QUIET)


def test_a_part_without_units_leaves_the_others_their_folder(given: Data, tmp_path: Path) -> None:
    assert prepare_part(given, tmp_path, part=0, parts=64) is None
    assert prepare_part(given, tmp_path, part=63, parts=64) is None
    assert len([*tmp_path.glob(".*/*/unit-*.json")]) == 1


@pytest.fixture
def own(tmp_path: Path) -> Data:
    """A set of its own, whose tokenizer is trained."""
    root = tmp_path / "raw"
    for i in range(6):
        texts = [f"document {j} of file {i}, " + " ".join(f"w{i}{j}{k}" for k in range(40)) for j in range(30)]
        write_zst(root / f"train/chunk1/{i}.jsonl.zst", rows(texts))
    data = published(tmp_path / "unused")
    spec = dataclasses.replace(data.tokenizer, vocab_size=300)
    source = dataclasses.replace(data.sources["slimpajama"], raw=str(root), held_out_include=(), held_out=0.1)
    return dataclasses.replace(data, tokenizer=spec, sources={"web": source})


def all_texts(data: Data) -> list[str]:
    return sorted(document.text for document in read_documents(data.sources["web"]))


def prepared_texts(data: Data, data_dir: Path, manifest: Manifest) -> list[str]:
    folder = dataset_dir(data, data_dir=data_dir)
    return sorted(text for split in ("train", "held_out") for text in decoded(folder, manifest, "web", split))


def test_units_of_another_tokenizer_are_done_again(own: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "UNIT_BYTES", 1)
    assert prepare_part(own, tmp_path / "d", part=0, parts=2) is None
    # the raw files change, and so does the tokenizer that is trained on them
    write_zst(Path(own.sources["web"].raw or "") / "train/chunk1/5.jsonl.zst", rows(["ééé ààà"] * 400))
    [before] = (tmp_path / "d").glob(".*/tokenizer.model")
    first = before.read_bytes()
    manifest = prepare(own, data_dir=tmp_path / "d", how=HOW, console=QUIET)
    assert manifest is not None
    folder = dataset_dir(own, data_dir=tmp_path / "d")
    assert (folder / "tokenizer.model").read_bytes() != first
    assert prepared_texts(own, tmp_path / "d", manifest) == all_texts(own)


def test_raw_files_that_change_meanwhile_are_told_and_done_again(
    own: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = prepare_module.encode_all

    def changes_one(*arguments: Any, **options: Any) -> None:
        encode(*arguments, **options)
        write_zst(Path(own.sources["web"].raw or "") / "train/chunk1/3.jsonl.zst", rows(["another text"] * 50))

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "encode_all", changes_one)
        with pytest.raises(OSError, match="raw files of web changed while they were encoded: the same command"):
            prepare(own, data_dir=tmp_path / "d", how=HOW, console=QUIET)
    manifest = prepare(own, data_dir=tmp_path / "d", how=HOW, console=QUIET)
    assert manifest is not None
    assert prepared_texts(own, tmp_path / "d", manifest) == all_texts(own)


def test_other_raw_files_are_not_answered_with_the_old_set(own: Data, tmp_path: Path) -> None:
    manifest = prepare(own, data_dir=tmp_path / "d", how=HOW, console=QUIET)
    assert prepare(own, data_dir=tmp_path / "d", how=HOW, console=QUIET) == manifest
    root = Path(own.sources["web"].raw or "")
    write_zst(root / "train/chunk1/more.jsonl.zst", rows(["more"]))
    with pytest.raises(ValueError, match=r"web: .* was made of other files than are in .*/raw now: give the new set"):
        prepare(own, data_dir=tmp_path / "d", how=HOW, console=QUIET)
    root.rename(tmp_path / "away")
    assert prepare(own, data_dir=tmp_path / "d", how=HOW, console=QUIET) == manifest, "what was prepared stays good"


def test_a_finish_that_was_killed_encodes_nothing_again(
    own: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(folder: Path) -> None:
        for path in sorted(folder.glob("*/unit-*.json"))[:1]:
            path.unlink()
        (folder / "web" / ".unit-00000.elsewhere.1.tmp").mkdir()
        (folder / "web" / ".unit-00000.elsewhere.1.tmp" / "x").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "_sweep", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(own, data_dir=tmp_path / "d", how=HOW, console=QUIET)
    monkeypatch.setattr(pool, "encode_unit", lambda *_, **__: 1 / 0)
    manifest = prepare(own, data_dir=tmp_path / "d", how=HOW, console=QUIET)
    assert manifest is not None
    folder = dataset_dir(own, data_dir=tmp_path / "d")
    assert set(tree(folder)) == {"manifest.json", *(file for file, _, _ in manifest.files())}
    assert not any(path.name.endswith(".tmp") for path in folder.rglob("*"))
    assert [path.name for path in (tmp_path / "d").iterdir()] == [folder.name]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_told_and_leaves_whole_units(given: Data, small_disk: Path, workers: int) -> None:
    with pytest.raises(OSError, match=r"the disk of .* is full: free some of it") as failure:
        prepare(given, data_dir=small_disk, how=dataclasses.replace(HOW, workers=workers), console=QUIET)
    assert failure.value.errno == errno.ENOSPC
    [partial] = small_disk.iterdir()
    assert partial.name.endswith(".partial")
    assert any(partial.glob("*/unit-*.json"))
    assert not any(partial.rglob("*.tmp"))


def test_files_that_are_not_there_are_told_before_any_work(given: Data, tmp_path: Path) -> None:
    wrong = dataclasses.replace(given.sources["starcoder"], raw=str(tmp_path / "gone"))
    data = dataclasses.replace(given, sources=given.sources | {"starcoder": wrong})
    with pytest.raises(ValueError, match=r"data\.sources\.starcoder: raw folder .*gone does not exist"):
        prepare(data, data_dir=tmp_path / "d", how=HOW, console=QUIET)


def test_held_out_files_are_never_trained_on(data: Data, whole: tuple[Path, Manifest]) -> None:
    folder, manifest = whole
    source = dataclasses.replace(data.sources["slimpajama"], include=("**/*.jsonl.zst",))
    training = [file for file in raw_files(source) if not file.held_out]
    assert {file.name.split("/")[0] for file in training} == {"train"}
    held_out = decoded(folder, manifest, "slimpajama", "held_out")
    everything = {document.text for document in read_documents(data.sources["slimpajama"])}
    assert set(held_out) <= everything
    assert not set(held_out) & set(decoded(folder, manifest, "slimpajama", "train"))
