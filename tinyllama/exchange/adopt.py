"""A trained model as the first checkpoint of a run."""

from __future__ import annotations

import math
from pathlib import Path

from rich.console import Console
from safetensors.torch import save_file

from tinyllama.engine.checkpoint import name_of, sha256_of, write_state
from tinyllama.engine.room import check_room
from tinyllama.exchange.folder import moving, shards
from tinyllama.exchange.trained import Trained
from tinyllama.model.huggingface import parts

_FILE_BYTES = 5 * 10**9


def write_checkpoint(trained: Trained, checkpoints: Path, *, console: Console) -> None:
    """Write weights, in fp32 and without moments, as the checkpoint of step 0.

    Raises ValueError where a weight is not finite, OSError where the disk has no room.
    """
    place = checkpoints / name_of(0)
    place.mkdir(parents=True)
    sizes: dict[str, int] = {}
    for part in parts(trained.shape).values():
        sizes[part.ours] = sizes.get(part.ours, 0) + 4 * math.prod(part.shape)
    total, hashes = sum(sizes.values()), {}
    check_room(place, total)
    with moving(f"reading {len(sizes)} tensors", total, console) as moved:
        for number, names in enumerate(shards(sizes, _FILE_BYTES)):
            tensors = {}
            for name in names:
                tensors[name] = trained.weights[name]
                moved(sizes[name])
            path = place / f"weights-{number:05d}.safetensors"
            save_file(tensors, path)
            hashes[path.name] = sha256_of(path)
    write_state(place, step=0, meta={"tokens": 0}, files=hashes)
