"""What is told of a data set is counted here again, from the raw files and from the batches themselves."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from tests.data.sets import Set, make_set
from tinyllama.config.data import Inspect
from tinyllama.data.inspect import QUANTILES, contents, of_step, realised, samples, short, show
from tinyllama.data.loader import Loader, window_count
from tinyllama.data.mixture import Mixture, Stage

CONTEXT = 24
STAGES = [Stage(100, {"web": 0.7, "code": 0.3}), Stage(None, {"web": 0.2, "code": 0.8}, ramp=60)]


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Set:
    return make_set(tmp_path_factory.mktemp("inspect"))


@pytest.fixture(scope="module")
def loader(several: Set) -> Loader:
    return Loader(several.manifest, several.folder, stages=STAGES, unique_tokens={}, context=CONTEXT, seed=5)


def rows(table: Table) -> list[tuple[str, ...]]:
    return list(zip(*(map(str, column.cells) for column in table.columns), strict=True))


def printed(parts: Iterable[Any]) -> str:
    """As the program prints it where there is no terminal."""
    file = io.StringIO()
    console = Console(file=file, width=80, soft_wrap=True, highlight=False, markup=False, emoji=False)
    for part in parts:
        console.print(part)
    return file.getvalue()


def test_contents_are_those_of_the_raw_files(several: Set) -> None:
    parts, lengths = contents(several.manifest, several.documents)
    expected, of_lengths = [], []
    for source, skipped in (("web", "1"), ("code", "0")):
        sizes: dict[str, list[int]] = {}
        for split, label in (("train", "to train on"), ("held_out", "held out")):
            texts = several.texts(source, split=split).values()
            sizes[split] = [len(several.tokenizer.encode(text)) + 1 for text in texts]
            tokens, size = sum(sizes[split]), sum(len(text.encode()) for text in texts)
            row = (f"{len(texts):,}", f"{tokens:,}", f"{size:,}", f"{size / tokens:.2f}")
            expected.append((source if split == "train" else "", label, *row))
        texts = several.texts(source, split="filtered").values()
        size = sum(len(text.encode()) for text in texts)
        expected.append(("", "filtered out", f"{len(texts):,}", "", f"{size:,}", ""))
        expected.append(("", "not readable", skipped, "", "", ""))
        of_lengths.append(
            (
                source,
                *(f"{n:,}" for n in np.quantile(sizes["train"], QUANTILES, method="inverted_cdf").tolist()),
                f"{np.mean(sizes['train']):,.1f}",
            )
        )
    assert rows(parts) == expected
    assert rows(lengths) == of_lengths
    assert len({*expected[0][2:], *expected[1][2:], *expected[2][2:]} - {""}) == 10, "no two are the same by chance"
    assert [str(column.header) for column in lengths.columns[1:]] == ["5%", "25%", "50%", "75%", "95%", "100%", "mean"]


def test_the_realised_mixture_is_a_count_of_the_samples(several: Set, loader: Loader) -> None:
    streams = {name: documents.stream for name, documents in several.documents.items()}
    source_of = {
        stream.windows(np.array([start]), length=CONTEXT + 1).tobytes(): name
        for name, stream in streams.items()
        for start in range(len(stream) - CONTEXT)
    }
    counts = Counter[str]()
    for k in range(421):
        sample = loader.batch([range(k, k + 1)], rank=0, world=1, micro_batch=1)
        counts[source_of[sample.tobytes()]] += 1
        if k + 1 in (1, 100, 421):
            table = realised(loader.mixture, sequences=k + 1, context=CONTEXT)
            assert rows(table) == [
                (
                    name,
                    f"{100 * counts[name] / (k + 1):.4f}%",
                    str(counts[name]),
                    f"{counts[name] * CONTEXT:,}",
                    f"{counts[name] / window_count(len(stream), context=CONTEXT):.3f}",
                )
                for name, stream in streams.items()
            ]
    assert min(counts.values()) > 100


@pytest.mark.parametrize("step", [range(6), range(300, 312), range(2000, 2030)], ids=["first", "inside", "far"])
def test_a_step_lists_the_documents_of_its_batch(several: Set, loader: Loader, step: range) -> None:
    tokenizer = several.tokenizer
    ids = {
        (source, key): [*tokenizer.encode(text), tokenizer.eos]
        for source in several.data.sources
        for key, text in several.texts(source).items()
    }
    batch = loader.batch([step], rank=0, world=1, micro_batch=len(step))[0]
    located = loader.mixture.locate(step)
    found: list[list[int]] = []
    for line in of_step(loader, several.documents, samples=step, context=CONTEXT):
        place, source, epoch, start, stop = re.fullmatch(  # type: ignore[union-attr]
            r"sequence (\d+): (\w+), epoch (\d+), tokens ([\d,]+) to ([\d,]+)|    .*", line
        ).groups()
        if place is not None:
            assert int(place) == len(found)
            assert int(epoch) == located.epoch[len(found)]
            assert loader.mixture.names[located.source[len(found)]] == source
            first, last = (int(number.replace(",", "")) for number in (start, stop))
            stream = several.documents[source].stream
            assert last - first == CONTEXT
            assert stream.windows(np.array([first]), length=CONTEXT + 1)[0].tolist() == batch[len(found)].tolist()
            found.append([])
            name = source
        else:
            match = re.fullmatch(r"    (\S+): tokens ([\d,]+) to ([\d,]+) of ([\d,]+)", line)
            assert match is not None
            start, stop, total = (int(number.replace(",", "")) for number in match.groups()[1:])
            document = ids[name, match[1]]
            assert len(document) == total
            found[-1] += document[start : stop + 1]
    assert found == batch.tolist()
    texts = [tokenizer.decode(sequence) for sequence in found]
    assert texts == [tokenizer.decode(sequence) for sequence in batch.tolist()] and len(set(texts)) == len(step)


def test_samples_are_raw_texts_cut_short_and_the_same_each_time(several: Set) -> None:
    def drawn(seed: int = 3, count: int = 40, characters: int = 30) -> list[str]:
        return list(samples(several.documents, count=count, characters=characters, seed=seed))

    shown = drawn()
    assert shown == drawn() and shown != drawn(seed=4) and shown[:2] == drawn(count=2)[:2]
    assert [text.partition(":")[0] for text in shown] == ["web"] * 40 + ["code"] * 40
    kinds = Counter[bool]()
    for text in shown:
        head, *lines = text.split("\n")
        source, key = head.split(": ")
        raw = several.texts(source)[key]
        cut = len(raw) > 30
        kinds[cut] += 1
        if cut:
            assert lines.pop() == f"    ... {len(raw):,} characters in all"
        assert "\n".join(line[4:] for line in lines) == raw[:30]
        assert all(line.startswith("    ") for line in lines)
    assert min(kinds[True], kinds[False]) > 0
    # by their tokens: one document in a hundred has four tenths of them
    longest = max(several.texts("web").items(), key=lambda item: len(item[1]))[0]
    assert 5 < sum(text.startswith(f"web: {longest}\n") for text in shown) < 30


def test_a_sample_cannot_write_to_the_terminal() -> None:
    text = "a\x1b[31mred\x07\r\tb\u202e \x00\n日本 é"
    hostile: Any = SimpleNamespace(stream=range(9), text_at=lambda token: ("x\x1b.txt:1", text))
    [shown] = samples({"web": hostile}, count=1, characters=99, seed=0)
    assert shown == "web: x\\x1b.txt:1\n    a\\x1b[31mred\\x07\\r\tb\\u202e \\x00\n    日本 é"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (9_999_999, "9,999,999"),
        (10_000_000, "10.0M"),
        (999_949_999, "999.9M"),
        (999_950_000, "1.0B"),
        (659_000_000_000, "659.0B"),
        (999_950_000_000, "1.0T"),
        (123_456_700_000_000, "123.5T"),
    ],
)
def test_a_count_is_short(count: int, text: str) -> None:
    assert short(count) == text and len(text) <= 9


def test_tables_of_a_trillion_tokens_fit_a_terminal(several: Set) -> None:
    web = several.manifest.sources["web"]
    large = replace(
        web,
        train=replace(web.train, documents=567_500_000, tokens=659_000_000_000, bytes=2_768_400_000_000),
        held_out=replace(web.held_out, documents=500_200, tokens=987_654_321, bytes=4_222_222_222),
        raw=replace(web.raw, filtered_documents=23_456_789, filtered_bytes=345_678_901_234, skipped=9_999_999),
    )
    names = ("slimpajama", "starcoderdata", "proof-pile")
    manifest: Any = SimpleNamespace(sources=dict.fromkeys(names, large))
    # most of the documents are of ordinary sizes
    lengths = np.repeat([123, 4_567, 12_345, 678_901, 9_876_543], [10, 50, 35, 4, 1])
    documents: Any = dict.fromkeys(names, SimpleNamespace(lengths=lambda units: lengths))
    mixture = Mixture(
        [Stage(None, {"slimpajama": 0.693584, "starcoderdata": 0.3, "proof-pile": 0.006416})],
        windows=dict.fromkeys(names, 322_000_000),
        seed=0,
    )
    tables = [*contents(manifest, documents), realised(mixture, sequences=1_464_843_750, context=2048)]
    lines = printed(tables).splitlines()
    # An empty line, a title and a header each, and not one line more than there are rows.
    assert len(lines) == (3 + 4 * 3) + (3 + 3) + (3 + 3)
    assert max(len(line.rstrip()) for line in lines) <= 80
    words = {word for line in lines for word in line.split()}
    cells = {cell for table in tables for row in rows(table) for cell in row if " " not in cell and cell}
    assert cells <= words and {"659.0B", "2.8T", "567.5M", "9,876,543", "23.5M", "69.3584%", *names} <= cells


def test_a_long_name_is_told_whole(several: Set) -> None:
    name = "a" * 30 + "b" * 30
    manifest: Any = SimpleNamespace(sources={name: several.manifest.sources["web"]})
    text = printed(contents(manifest, {name: several.documents["web"]}))
    assert "".join(re.findall(r"^[ab]+", text.partition("tokens of")[0], flags=re.MULTILINE)) == name
    assert max(map(len, text.splitlines())) <= 80
    tokens = f"{several.manifest.sources['web'].train.tokens:,}"
    assert all(cell in text for cell in ("bytes/token", "not readable", tokens))


@pytest.mark.parametrize("step", [None, range(8, 12)])
def test_all_that_is_shown(several: Set, loader: Loader, step: range | None) -> None:
    how = Inspect(samples=2, characters=50, at_step=None if step is None else 2)
    knobs: Any = {"stages": STAGES, "sequences": 421, "unique_tokens": {}, "context": CONTEXT, "seed": 5}
    shown = list(show(several.manifest, several.folder, how=how, step=step, **knobs))
    if step is not None:
        assert shown == list(of_step(loader, several.documents, samples=step, context=CONTEXT))
        return
    tables, texts = shown[:3], shown[3:]
    expected = [*contents(several.manifest, several.documents)]
    expected.append(realised(loader.mixture, sequences=421, context=CONTEXT))
    assert [rows(table) for table in tables if isinstance(table, Table)] == list(map(rows, expected))
    assert texts == list(samples(several.documents, count=2, characters=50, seed=5)) and len(texts) == 4
