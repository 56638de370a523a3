"""Reading a Llama in Hugging Face's format. Nothing of it is a pickle, and nothing of it is run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinyllama.config.schema import Model
from tinyllama.data.tokenizer import Tokenizer
from tinyllama.engine.checkpoint import Damaged, Tensors
from tinyllama.exchange.folder import check_sums
from tinyllama.exchange.tokenizers import check_vocabulary
from tinyllama.exchange.trained import Trained
from tinyllama.model.huggingface import Ours, parts, shape_of

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZER, TOKENIZER_JSON, TOKENIZER_CONFIG = "tokenizer.model", "tokenizer.json", "tokenizer_config.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def open_published(folder: Path, *, name: str, key: str) -> Trained:
    """The model of a folder, its tensors read when they are asked for.

    Raises ValueError, naming the key that led here, with what is wrong with it: what our model cannot express, weights
    that are pickles, damaged, missing or of another shape, a tokenizer that is not the weights' own.
    """
    if not folder.is_dir():
        raise ValueError(f"{key}: {folder} is no folder: name one with {CONFIG}, safetensors and {TOKENIZER}")
    try:
        config = _json(folder / CONFIG)
        shape = shape_of(config, name=name)
        check_sums(folder)
        tensors = _tensors(folder)
        problems = [*_misfits(tensors, shape)]
        tokenizer, start, adds_start = _tokenizer(folder, config, shape)
    except (ValueError, OSError) as error:
        raise ValueError(_under(key, folder, str(error).splitlines())) from error
    if problems:
        raise ValueError(_under(key, folder, problems))
    return Trained(
        folder=folder,
        shape=shape,
        weights=Ours(tensors, shape, where=folder),
        tokenizer=folder / TOKENIZER,
        start=tokenizer.eos if start is None else start,
        adds_start=adds_start,
    )


def _under(key: str, folder: Path, problems: list[str]) -> str:
    shown = problems[:8] + [f"and {len(problems) - 8} more like these"] * (len(problems) > 8)
    return "\n".join([f"{key}: {folder} cannot be read as a model:", *shown])


def _json(path: Path) -> dict[str, Any]:
    try:
        whole = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ValueError(f"{path.name} is missing: name the folder that has it") from error
    except ValueError as error:
        raise ValueError(f"{path.name} is no JSON ({error}): get it again") from error
    if not isinstance(whole, dict):
        raise ValueError(f"{path.name} is no JSON object: get it again")
    return whole


def _tensors(folder: Path) -> Tensors:
    if (folder / INDEX).is_file():
        weight_map = _json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise ValueError(f"{INDEX} has no weight_map of files: get it again")
        files = [folder / name for name in sorted(set(weight_map.values()))]
        if outside := [file.name for file in files if file.parent != folder]:
            raise ValueError(f"{INDEX} leads out of the folder, to {outside[0]}: get it again")
    else:
        files = [folder / WEIGHTS]
        if not files[0].is_file():
            pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
            if pickles:
                raise ValueError(
                    f"{pickles[0]} is a pickle, which can run code when it is read: get the safetensors of this model, "
                    "or convert it where you trust it"
                )
            raise ValueError(f"neither {WEIGHTS} nor {INDEX} is there: name the folder that has the weights")
    if missing := [file.name for file in files if not file.is_file()]:
        raise ValueError(f"{missing[0]} is missing, and {INDEX} names it: get it again")
    try:
        return Tensors(files)
    except Damaged as error:
        raise ValueError(f"{error}: get it again") from error


def _misfits(tensors: Tensors, shape: Model) -> Iterator[str]:
    if shape.n_layers > len(tensors):
        yield f"num_hidden_layers: {shape.n_layers}, and the weights have {len(tensors)} tensors in all"
        return
    wanted = parts(shape)
    here = {name for name in tensors if not name.endswith("rotary_emb.inv_freq")}  # older files keep what theta says
    yield from (f"{name} is missing from the weights" for name in wanted if name not in here)
    yield from (f"{name} is in the weights, and there is no place for it here" for name in sorted(here - set(wanted)))
    for name in wanted:
        if name in here:
            found, dtype = tensors.described(name)
            if found != wanted[name].shape:
                yield f"{name} is {list(found)} in the weights, and {CONFIG} makes it {list(wanted[name].shape)}"
            if dtype not in ("F64", "F32", "F16", "BF16"):
                yield f"{name} is kept as {dtype}: only weights in floating point can be read"


def _tokenizer(folder: Path, config: dict[str, Any], shape: Model) -> tuple[Tokenizer, int | None, bool]:
    """The tokenizer, the token that begins a document if the folder says one, and whether every text begins with it."""
    if not (folder / TOKENIZER).is_file():
        raise ValueError(f"{TOKENIZER} is missing: only models with a SentencePiece tokenizer can be imported")
    tokenizer = Tokenizer.load(folder / TOKENIZER)
    if tokenizer.vocab_size > shape.vocab_size:
        raise ValueError(
            f"{TOKENIZER} has {tokenizer.vocab_size} pieces and vocab_size is {shape.vocab_size}: it is another model's"
        )
    if (folder / TOKENIZER_JSON).is_file():
        check_vocabulary(folder / TOKENIZER_JSON, tokenizer)
    ends = config.get("eos_token_id")
    if ends is not None and tokenizer.eos not in (ends if isinstance(ends, list) else [ends]):
        raise ValueError(
            f"eos_token_id: {ends}, and {TOKENIZER} ends documents with {tokenizer.eos}: it is another model's"
        )
    start = config.get("bos_token_id")
    if start is not None and not (type(start) is int and 0 <= start < shape.vocab_size):
        raise ValueError(f"bos_token_id: {start!r} is no token of 0 to {shape.vocab_size - 1}")
    said = _json(folder / TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).is_file() else {}
    is_llamas = str(said.get("tokenizer_class", "Llama")).startswith("Llama")  # which begins texts unless told not to
    return tokenizer, start, start is not None and bool(said.get("add_bos_token", is_llamas))
