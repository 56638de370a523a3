"""Writing a model in Hugging Face's format: a folder that AutoModelForCausalLM and AutoTokenizer load as it is."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from rich.console import Console
from safetensors.torch import save_file

from tinyllama.data.tokenizer import Tokenizer
from tinyllama.engine.room import check_room
from tinyllama.exchange.folder import moving, new_folder, shards, write_sums
from tinyllama.exchange.published import CONFIG, INDEX, TOKENIZER, WEIGHTS
from tinyllama.exchange.tokenizers import tokenizer_files
from tinyllama.exchange.trained import Trained
from tinyllama.model.huggingface import DTYPES, config_of, parts
from tinyllama.tracking.record import write_json

CARD = "README.md"


def export(trained: Trained, out: Path, *, card: bytes, dtype: str, shard_bytes: int, console: Console) -> None:
    """Write a folder, whole or not at all: configuration, weights in files of shard_bytes at most, tokenizer, card.

    The same model and card give the same bytes. Raises ValueError where something is at `out` or the tokenizer cannot
    be expressed, OSError where the disk has no room, Damaged where the weights are not what was written.
    """
    tokenizer = Tokenizer.load(trained.tokenizer)
    files = tokenizer_files(
        tokenizer, start=trained.start, adds_start=trained.adds_start, context=trained.shape.context
    )
    ids = {"bos_token_id": trained.start, "eos_token_id": tokenizer.eos}
    described = config_of(trained.shape, start=trained.start, end=tokenizer.eos, dtype=dtype)
    with new_folder(out, key="export.out") as folder:
        _write_weights(trained, folder, dtype=dtype, shard_bytes=shard_bytes, console=console)
        write_json(folder / CONFIG, described)
        write_json(folder / "generation_config.json", ids)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        shutil.copyfile(trained.tokenizer, folder / TOKENIZER)
        (folder / CARD).write_bytes(card)
        write_sums(folder)


def _write_weights(trained: Trained, folder: Path, *, dtype: str, shard_bytes: int, console: Console) -> None:
    wanted, kind = parts(trained.shape), DTYPES[dtype]
    sizes = {name: math.prod(part.shape) * kind.itemsize for name, part in wanted.items()}
    groups, total = shards(sizes, shard_bytes), sum(sizes.values())
    check_room(folder, total)
    weight_map: dict[str, str] = {}
    with moving(f"writing {len(sizes)} tensors", total, console) as moved:
        for number, names in enumerate(groups, start=1):
            file = WEIGHTS if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
            tensors = {}
            for name in names:
                part = wanted[name]
                tensors[name] = trained.weights[part.ours][part.rows].to(kind).contiguous().clone()
                moved(sizes[name])
            save_file(tensors, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(names, file)
    if len(groups) > 1:
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
