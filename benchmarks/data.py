"""Preparing and loading data beside peers: python benchmarks/data.py [--peers PYTHON] [--out FILE] [--quick].

What is timed was right first: ids are SentencePiece's on every document, the prepared streams are made of them, and
samples are what a slow gather gives. Otherwise nothing is timed, and the run exits with 1. PYTHON is one that has
litgpt, datatrove, grain and litdata; --quick goes through the same code with a megabyte, once.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import sentencepiece
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's path is its own folder's

from benchmarks import data_corpus as corpora
from benchmarks import data_race as races
from benchmarks.data_corpus import CONTEXT, LAST, SEQUENCES, WEIGHTS, Corpus
from benchmarks.data_peers import PeerError, Peers
from benchmarks.data_race import Run, keep, race, timed
from tinyllama.config.data import Data, Prepare
from tinyllama.data import mixture, units
from tinyllama.data.find import dataset_dir
from tinyllama.data.loader import Loader
from tinyllama.data.manifest import Manifest
from tinyllama.data.prepare import prepare

ROOT = Path(__file__).resolve().parents[1]
MICRO_BATCHES = (4, 16, 64)
PREPARERS, LOADERS = ("litgpt", "datatrove"), ("grain", "litdata")
QUIET = Console(quiet=True)


@dataclass
class Bench:
    """One run: what it works on, and the rows of its table."""

    corpus: Corpus
    folder: Path
    peers: Peers | None
    versions: Mapping[str, str | None]
    """Of the peers, None where one is missing."""
    quick: bool
    rows: list[dict[str, Any]] = field(default_factory=list)
    checks: dict[str, str] = field(default_factory=dict)
    """What is wrong, by what was looked at; nothing where it is right."""
    failed: dict[str, str] = field(default_factory=dict)
    _made: int = 0

    def add(self, part: str, what: str, than: str, seconds: Mapping[str, list[float]], **facts: Any) -> None:
        """Adds `races.row` of these."""
        self.rows.append(races.row(part, what, than, seconds, failed=self.failed, **facts))

    def fresh(self) -> Path:
        """A path where nothing is."""
        self._made += 1
        return self.folder / f"out{self._made}"

    @contextmanager
    def prepared(self, data: Data, *, workers: int) -> Iterator[tuple[float, Manifest, Path]]:
        """Within, a prepared data set: the seconds it took, its manifest and its folder."""
        data_dir = self.fresh()
        how = Prepare(workers=workers, parts=1, part=None, on_error="stop")
        # a raw file of ours is a unit, since all of them together are less than one of 64 MiB
        with patch.object(units, "UNIT_BYTES", 1):
            began = time.perf_counter()
            manifest = prepare(data, data_dir=data_dir, how=how, console=QUIET)
            seconds = time.perf_counter() - began
        assert manifest is not None
        yield seconds, manifest, dataset_dir(data, data_dir=data_dir)
        shutil.rmtree(data_dir)

    def prepare(self, data: Data, *, workers: int) -> float:
        """Seconds of a whole preparation, the encoder's memory empty at first."""
        with self.prepared(data, workers=workers) as (seconds, _, _):
            return seconds

    def let(self, peer: str, raw: str, *, workers: int, told: dict[str, int]) -> float:
        """Seconds that a peer's preparation takes; `told` gets its tokens."""
        assert self.peers is not None
        out = self.fresh()
        tokenizer = self.corpus.model if peer == "litgpt" else self.corpus.model.with_suffix(".json")
        answer = self.peers.ask(peer, raw=raw, out=str(out), workers=workers, tokenizer=str(tokenizer))
        shutil.rmtree(out)
        told[peer] = answer["tokens"]
        return float(answer["seconds"])

    def loader(self, manifest: Manifest, folder: Path) -> Loader:
        """The mixture's samples."""
        stages = [mixture.Stage(None, WEIGHTS)]
        return Loader(manifest, folder, stages=stages, unique_tokens={}, context=CONTEXT, seed=1)


def check(bench: Bench, manifest: Manifest, folder: Path) -> None:
    """Holds ids, the prepared streams and samples to what they must be."""
    packed: dict[str, bytes] = {}
    found = corpora.streams(manifest, folder)
    bench.checks["ids"] = corpora.wrong_ids(bench.corpus, packed)
    if not bench.checks["ids"]:
        bench.checks["streams"] = corpora.wrong_streams(bench.corpus, packed, found)
    bench.checks["samples"] = corpora.wrong_samples(bench.loader(manifest, folder), found)


def encoding(bench: Bench, *, rounds: int) -> None:
    """The encoder beside SentencePiece, and whole preparations beside the encoder."""
    corpus, texts = bench.corpus, bench.corpus.all
    bare = sentencepiece.SentencePieceProcessor(model_file=str(corpus.model))
    held = [corpora.encoder_of(corpus)]

    def through(encode: Callable[[str], object]) -> float:
        began = time.perf_counter()
        for text in texts:
            encode(text)
        return time.perf_counter() - began

    def cold() -> float:
        held[0] = corpora.encoder_of(corpus)
        return through(held[0].encode)

    runs: dict[str, Run] = {
        "SentencePiece": lambda: through(bare.encode),
        "encoder, cold": cold,
        "encoder, warm": lambda: through(held[0].encode),
        **{workers(n): partial(bench.prepare, corpus.data, workers=n) for n in (1, 2)},
    }
    seconds = race(runs, rounds=rounds, failed=bench.failed)
    shared = {"amount": sum(corpus.sizes.values()) / 1e6, "unit": "MB/s"}
    bench.add("encode", "encoder, cold", "SentencePiece", seconds, goal=2.0, **shared)
    bench.add("encode", "encoder, warm", "SentencePiece", seconds, **shared)
    bench.add("prepare", "1 worker", "encoder, cold", seconds, goal=0.8, **shared)
    bench.add("prepare", "2 workers", "1 worker", seconds, goal=1.8, start=starts(bench), **shared)


def workers(n: int) -> str:
    """What a preparation by so many is called."""
    return "1 worker" if n == 1 else f"{n} workers"


def starts(bench: Bench, *, peers: Sequence[str] = ()) -> dict[str, float]:
    """Seconds of each preparation for next to nothing: its processes and its imports."""
    folder = bench.fresh()
    little = corpora.tiny(bench.corpus.data, folder)
    runs: dict[str, Run] = {}
    for n in (1, 2):
        runs[workers(n)] = partial(bench.prepare, little, workers=n)
        runs |= {f"{peer}, {n}": partial(bench.let, peer, str(folder), workers=n, told={}) for peer in peers}
    return {name: seconds[0] for name, seconds in race(runs, rounds=1, failed=bench.failed).items() if seconds}


def preparing(bench: Bench, *, rounds: int) -> dict[str, int]:
    """Preparations beside peers' of the .jsonl.zst files, with the same filter. The tokens that each made."""
    data = corpora.only_web(bench.corpus)
    with bench.prepared(data, workers=1) as (_, manifest, _):
        source = manifest.sources["web"]
    told = {"ours": source.train.tokens + source.held_out.tokens}
    peers = [peer for peer in PREPARERS if bench.versions.get(peer)]
    runs: dict[str, Run] = {}
    for n in (1, 2):
        runs[workers(n)] = partial(bench.prepare, data, workers=n)
        for peer in peers:
            runs[f"{peer}, {n}"] = partial(bench.let, peer, str(data.sources["web"].raw), workers=n, told=told)
    start = starts(bench, peers=peers) if peers else {}
    seconds = race(runs, rounds=rounds, failed=bench.failed) if peers else {}
    amount = bench.corpus.sizes["web"] / 1e6
    for peer in PREPARERS:
        for n in (1, 2):
            bench.add(
                "prepare", workers(n), f"{peer}, {n}", seconds, amount=amount, unit="MB/s", goal=None, start=start
            )
    return told


def loading(bench: Bench, manifest: Manifest, folder: Path, *, rounds: int) -> None:
    """Samples in process beside peers', and the first batch at the first and after the last step."""
    streams = corpora.streams(manifest, folder)
    for name, tokens in {**streams, "both": np.concatenate(list(streams.values()))}.items():
        tokens.tofile(file := bench.folder / f"{name}.bin")
        if bench.peers and bench.versions["litdata"]:
            bench.peers.ask("litdata_set", file=str(file), out=str(file.with_suffix(".set")), length=CONTEXT + 1)
    n_samples = 64 if bench.quick else 4096
    loader, at = bench.loader(manifest, folder), [0]

    def ours(micro_batch: int) -> float:
        first, at[0] = at[0], at[0] + n_samples
        began = time.perf_counter()
        for k in range(first, first + n_samples, micro_batch):
            loader.batch([range(k, k + micro_batch)], rank=0, world=1, micro_batch=micro_batch)
        return time.perf_counter() - began

    def theirs(peer: str, names: Sequence[str], micro_batch: int) -> float:
        assert bench.peers is not None
        files = [str(bench.folder / f"{name}.{'bin' if peer == 'grain' else 'set'}") for name in names]
        given = {"peer": peer, "files": files, "weights": list(WEIGHTS.values()), "length": CONTEXT + 1}
        told = bench.peers.ask("batches", **given, micro_batch=micro_batch, n=n_samples // micro_batch)
        if (told["shape"], told["dtype"]) != ([micro_batch, CONTEXT + 1], "int64"):
            raise PeerError(f"gives {told['dtype']} {told['shape']}")
        return float(told["seconds"])

    for micro_batch in MICRO_BATCHES:
        what = f"batches of {micro_batch}"
        runs: dict[str, Run] = {what: partial(ours, micro_batch)}
        for peer in LOADERS:
            if bench.versions.get(peer):
                runs[peer] = partial(theirs, peer, ["both"], micro_batch)
                runs[f"{peer}, mixed"] = partial(theirs, peer, list(WEIGHTS), micro_batch)
        seconds = race(runs, rounds=rounds, failed=bench.failed)
        for than in (f"{peer}{mixed}" for peer in LOADERS for mixed in ("", ", mixed")):
            bench.add("load", what, than, seconds, amount=n_samples, unit="samples/s", goal=3.0)

    def first_batch(step: int) -> float:
        for kept in vars(mixture).values():
            if hasattr(kept, "cache_clear"):
                kept.cache_clear()
        samples = range(step * SEQUENCES, (step + 1) * SEQUENCES)
        return timed(lambda: bench.loader(manifest, folder).batch([samples], rank=0, world=16, micro_batch=8))

    runs = {f"first batch at step {step:,}": partial(first_batch, step) for step in (0, LAST)}
    for name, found in race(runs, rounds=rounds, failed=bench.failed).items():
        row = {"part": "load", "what": name, "than": None, "status": "measured", "unit": "s", "goal": 0.1}
        bench.rows.append(row | {"rate": races.spread(found), "met": max(found) < 0.1, "seconds": found})


def run(*, peers: str | None = None, quick: bool = False, out: Path | None = None) -> int:
    """Everything, in a file. 1 if something of ours was wrong, which is then not timed, else 0."""
    began, now = time.perf_counter(), datetime.now().astimezone()
    if out is None and not quick:
        out = ROOT / "benchmarks" / "results" / f"{now:%Y-%m-%d}-cpu-data.json"
    told: dict[str, Any] = {"benchmark": "data", "date": now.isoformat(timespec="seconds"), **races.machine()}
    console = Console(width=None if sys.stdout.isatty() else 180)
    with tempfile.TemporaryDirectory(prefix="data-benchmark-") as name, ExitStack() as stack:
        folder = Path(name)
        theirs = Peers(peers, folder) if peers else None
        if theirs is not None:
            stack.callback(theirs.close)
        versions = theirs.ask("versions") if theirs else {}
        corpus = corpora.make_corpus(folder, **(corpora.LITTLE if quick else corpora.FULL))
        bench = Bench(corpus, folder, theirs, versions, quick)
        told |= {"peers": versions, "corpus": corpus.sizes}
        if theirs is not None and versions["datatrove"]:
            model, some = {"model": str(corpus.model), "tokenizer": str(corpus.model.with_suffix(".json"))}, corpus.all
            theirs.ask("convert", **model)
            told["peers_same_ids"] = theirs.ask("same_ids", **model, texts=some[:: max(1, len(some) // 500)])
        with bench.prepared(bench.corpus.data, workers=1) as (_, manifest, prepared):
            check(bench, manifest, prepared)
            told["checks"] = {key: not said for key, said in bench.checks.items()}
            if wrong := [said for said in bench.checks.values() if said]:
                console.print("refused: " + "; ".join(wrong))
            else:
                console.print(f"checked after {time.perf_counter() - began:.0f} s")
                encoding(bench, rounds=1 if quick else 5)
                told["tokens"] = preparing(bench, rounds=1 if quick else 3)
                loading(bench, manifest, prepared, rounds=1 if quick else 9)
    told |= {"rows": bench.rows, "seconds": time.perf_counter() - began, "load_after": os.getloadavg()}
    keep(told, out)
    console.print(races.table(bench.rows))
    return 1 if wrong else 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", metavar="PYTHON", help="a Python that has litgpt, datatrove, grain and litdata")
    parser.add_argument("--out", type=Path, help="the JSON file; by default benchmarks/results/DATE-cpu-data.json")
    parser.add_argument("--quick", action="store_true", help="a megabyte, once; a file is written only with --out")
    asked = parser.parse_args()
    return run(peers=asked.peers, quick=asked.quick, out=asked.out)


if __name__ == "__main__":
    sys.exit(main())
