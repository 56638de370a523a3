"""The peers of benchmarks/data.py, in a Python that has them; `Peers` is how the benchmark talks to it.

One line of JSON asks for a thing and one answers it, in turns, so that imports are done before anything is timed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("litgpt", "datatrove", "grain", "litdata", "tokenizers", "sentencepiece", "torch", "numpy")
DROPPED = "RedPajamaGithub"


class PeerError(Exception):
    """What a peer said instead of an answer."""


class Peers:
    """A process of the peers' Python."""

    def __init__(self, python: str, scratch: Path) -> None:
        """Starts it. Its own output goes to a file in `scratch`."""
        # one core for each worker: tokenizers and torch would take all of them
        threads = {"RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        caches = {name: str(scratch / "litdata") for name in ("DATA_OPTIMIZER_CACHE_FOLDER", "LITDATA_CACHE_DIR")}
        with (scratch / "peers.log").open("w") as log:
            self._process = subprocess.Popen(
                [python, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=scratch,
                env={**os.environ, **threads, **caches, "HF_HUB_OFFLINE": "1"},
            )

    def ask(self, do: str, **given: Any) -> Any:
        """What a function of this file gives there. Raises PeerError for what it raised."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **given}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        told = json.loads(line) if line else {"error": "the peers' Python ended"}
        if "error" in told:
            raise PeerError(told["error"])
        return told["told"]

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


def versions() -> dict[str, str | None]:
    """Of each package, None where it cannot be imported."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            __import__(package)
            found[package] = version(package)
        except (ImportError, PackageNotFoundError, RuntimeError, OSError) as error:
            print(f"{package}: {error}", file=sys.stderr)
            found[package] = None
    if found["litgpt"]:
        try:
            import litgpt.data.prepare_slimpajama  # noqa: F401
        except Exception as error:
            print(f"litgpt: {error}", file=sys.stderr)
            found["litgpt"] = None
    return found


def convert(model: str, tokenizer: str) -> None:
    """A SentencePiece model as tokenizers takes it, put together as transformers does it for Llama."""
    from sentencepiece import SentencePieceProcessor
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    given = SentencePieceProcessor(model_file=model)
    pieces = [given.id_to_piece(index) for index in range(given.vocab_size())]
    ids = {piece: index for index, piece in enumerate(pieces)}
    merges: list[tuple[str, str]] = []
    for piece in pieces:
        cuts = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
        merges += sorted(
            (cut for cut in cuts if cut[0] in ids and cut[1] in ids), key=lambda cut: (ids[cut[0]], ids[cut[1]])
        )
    merges.sort(key=lambda cut: ids[cut[0] + cut[1]])
    bpe = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.ByteFallback()
    bpe.add_special_tokens([AddedToken(piece, normalized=False) for piece in pieces[:3]])
    bpe.save(tokenizer)


def same_ids(model: str, tokenizer: str, texts: list[str]) -> float:
    """The share of texts for which a converted tokenizer gives the ids of the SentencePiece model."""
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer

    ours, theirs = SentencePieceProcessor(model_file=model), Tokenizer.from_file(tokenizer)
    return sum(ours.encode(text) == theirs.encode(text).ids for text in texts) / len(texts)


def litgpt(raw: str, out: str, workers: int, tokenizer: str) -> dict[str, Any]:
    """Prepares the .jsonl.zst files of a folder as litgpt/data/prepare_slimpajama.py does, by SentencePiece."""
    from litdata import TokensLoader
    from litdata.processing.data_processor import DataProcessor
    from litgpt.data.prepare_slimpajama import SlimPajamaDataRecipe
    from litgpt.tokenizer import Tokenizer

    folder = Path(out).with_suffix(".tokenizer")
    folder.mkdir(exist_ok=True)
    shutil.copy(tokenizer, folder / "tokenizer.model")
    began = time.perf_counter()
    recipe = SlimPajamaDataRecipe(tokenizer=Tokenizer(folder), chunk_size=2049 * 16384)
    processor = DataProcessor(
        input_dir=raw,
        output_dir=out,
        fast_dev_run=False,
        num_workers=workers,
        num_downloaders=1,
        item_loader=TokensLoader(),  # without it this litdata writes what its own loader of tokens refuses
    )
    processor.run(recipe)
    seconds = time.perf_counter() - began
    chunks = json.loads(Path(out, "index.json").read_text())["chunks"]
    return {"seconds": seconds, "tokens": sum(chunk["dim"] for chunk in chunks)}


def kept(document: Any) -> bool:
    """Whether a document of datatrove's is not of the subset that SlimPajama is taken without."""
    return bool(document.metadata["meta"]["redpajama_set_name"] != DROPPED)


def datatrove(raw: str, out: str, workers: int, tokenizer: str) -> dict[str, Any]:
    """Prepares the .jsonl.zst files of a folder by a reader, a filter and a document tokenizer."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.filters import LambdaFilter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    began = time.perf_counter()
    steps = [
        JsonlReader(raw, compression="zstd", glob_pattern="**/*.jsonl.zst"),
        LambdaFilter(kept),
        DocumentTokenizer(f"{out}/tokens", tokenizer_name_or_path=tokenizer, eos_token="</s>", shuffle_documents=False),
    ]
    LocalPipelineExecutor(steps, tasks=workers, workers=workers, logging_dir=f"{out}/logs").run()
    seconds = time.perf_counter() - began
    files = Path(out, "tokens").glob("*.ds")
    return {"seconds": seconds, "tokens": sum(file.stat().st_size for file in files) // 2}


class Windows:
    """A data source of grain's: windows of a mapped file of two-byte tokens, as int64."""

    def __init__(self, file: str, length: int) -> None:
        import numpy as np

        self._tokens, self._length = np.memmap(file, dtype="<u2", mode="r"), length

    def __len__(self) -> int:
        return int((len(self._tokens) - 1) // (self._length - 1))

    def __getitem__(self, index: Any) -> Any:
        start = int(index) * (self._length - 1)
        return self._tokens[start : start + self._length].astype("int64")


def pieces(file: str) -> Iterator[Any]:
    """A file of two-byte tokens as litgpt's tokenizer would give it, 64 thousand at once."""
    import numpy as np
    import torch

    tokens = np.memmap(file, dtype="<u2", mode="r")
    for start in range(0, len(tokens), 1 << 16):
        yield torch.from_numpy(tokens[start : start + (1 << 16)].astype("int32"))


def litdata_set(file: str, out: str, length: int) -> None:
    """A file of two-byte tokens as a data set of litdata's."""
    from litdata import TokensLoader, optimize

    loader = TokensLoader(block_size=length)
    optimize(pieces, [file], output_dir=out, chunk_bytes="64MB", num_workers=1, item_loader=loader)


def grain_batches(files: list[str], weights: list[float], length: int, micro_batch: int) -> Iterator[Any]:
    """Batches of grain's, in process."""
    import grain

    sets = [grain.MapDataset.source(Windows(file, length)).shuffle(seed=1).repeat() for file in files]
    data = grain.MapDataset.mix(sets, weights=weights) if len(sets) > 1 else sets[0]
    return iter(data.batch(micro_batch).to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


def litdata_batches(files: list[str], weights: list[float], length: int, micro_batch: int) -> Iterator[Any]:
    """Batches of litdata's, in process, put together as litgpt does for TinyLlama; int64 as a model takes them."""
    from litdata import CombinedStreamingDataset, StreamingDataLoader, StreamingDataset, TokensLoader

    loader = partial(TokensLoader, block_size=length)
    sets = [StreamingDataset(file, item_loader=loader(), shuffle=True, drop_last=True) for file in files]
    data: Any = sets[0]
    if len(sets) > 1:
        data = CombinedStreamingDataset(sets, seed=1, weights=weights, iterate_over_all=False)
    for batch in StreamingDataLoader(data, batch_size=micro_batch, num_workers=0, drop_last=True):
        yield batch.long()


def batches(peer: str, files: list[str], weights: list[float], length: int, micro_batch: int, n: int) -> dict[str, Any]:
    """Seconds for n batches after two, and the shape and the type of the last."""
    made: dict[str, Callable[..., Iterator[Any]]] = {"grain": grain_batches, "litdata": litdata_batches}
    source = made[peer](files, weights, length, micro_batch)
    for _ in range(2):
        next(source)
    began = time.perf_counter()
    for _ in range(n):
        batch = next(source)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "shape": list(batch.shape), "dtype": str(batch.dtype).rpartition(".")[2]}


def serve() -> None:
    """Answers until the input ends; what the peers print goes to the log."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    known = (versions, convert, same_ids, litgpt, datatrove, litdata_set, batches)
    functions = {function.__name__: function for function in known}
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            told = {"told": functions[asked.pop("do")](**asked)}
        except Exception as error:  # a peer that fails must not end the others
            import traceback

            traceback.print_exc()
            said = str(error).strip().partition("\n")[0]
            told = {"error": f"{type(error).__name__}: {said[:200]}"}
        answers.write(json.dumps(told) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
