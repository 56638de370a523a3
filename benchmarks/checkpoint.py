"""Saving and loading beside DeepSpeed's own: python benchmarks/checkpoint.py [--model NAME] [--rounds N] [--out FILE].

One rank on this machine's CPU or GPU, in turns, round after round. Right first: what is loaded is bit for bit what was
saved, otherwise nothing is timed and the run exits with 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from rich.console import Console
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's path is its own folder's

from benchmarks.data_race import keep, machine, spread
from tinyllama import kernels
from tinyllama.config.resilience import Checkpoint as Kept
from tinyllama.config.schema import Model, Optimizer, Parallelism
from tinyllama.engine.distributed import Ranks
from tinyllama.engine.saving import Saver
from tinyllama.engine.start import newest_whole, state_of
from tinyllama.engine.zero import Engine, TrainState
from tinyllama.model.init import initial_weights
from tinyllama.model.llama import Llama

ROOT = Path(__file__).resolve().parents[1]
ALONE = Ranks(rank=0, local_rank=0, world_size=1)
ROWS = {
    "stall": "ours, until training goes on",
    "saved": "ours, until it is on disk, hashed and named",
    "deepspeed saved": "DeepSpeed's save_checkpoint, neither synced nor hashed",
    "loaded": "ours, hashed and loaded",
    "deepspeed loaded": "DeepSpeed's load_checkpoint",
}


def engine_of(name: str, device: torch.device) -> Engine:
    """An engine of a model of conf/, after one step, so that its moments are not zero."""
    shape = Model(**yaml.safe_load((ROOT / "conf/model" / f"{name}.yaml").read_text()) | {"vocab_size": 32_000})
    layout: dict[str, Any] = yaml.safe_load((ROOT / "conf/parallelism/single.yaml").read_text())
    layout |= {"device": device.type, "micro_batch": 1}
    adamw = yaml.safe_load((ROOT / "conf/optimizer/adamw.yaml").read_text())
    model = Llama(shape, ops=kernels.TORCH)
    one = Engine(
        model,
        state=TrainState.fresh(initial_weights(model, seed=1)),
        parallelism=Parallelism(**layout),
        optimizer=Optimizer(**adamw | {"betas": tuple(adamw["betas"])}),
        precision="bf16" if device.type == "cuda" else "fp32",
        accumulation=1,
        ranks=ALONE,
        device=device,
    )
    one.step(torch.arange(65).view(1, 1, 65), lr=1e-3)
    return one


def whole(engine: Engine) -> dict[str, Tensor]:
    """All that a checkpoint holds."""
    return {f"{part}/{name}": tensor for part, share in engine.shares() for name, tensor in share.items()}


def run(name: str, *, rounds: int, out: Path | None) -> int:
    """Measure, print a table, and write a file where one is asked for."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}  # all of which DeepSpeed looks for
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    told: dict[str, Any] = {"benchmark": "checkpoint", "date": datetime.now(UTC).isoformat(timespec="seconds")}
    told |= machine() | {"versions": {package: version(package) for package in ("torch", "deepspeed", "safetensors")}}
    if device.type == "cuda":
        told["device"] = torch.cuda.get_device_name()
    engine = engine_of(name, device)
    before = whole(engine)
    told |= {"model": name, "bytes": engine.share_bytes, "rounds": rounds}
    seconds: dict[str, list[float]] = {row: [] for row in ROWS}
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "ours", Path(folder) / "theirs"
        kept = Kept(every=1, minutes=None, keep=1, keep_every=None)
        saver = Saver(ours, engine=engine, kept=kept, ranks_here=1, named=lambda _: None)
        for step in range(1, rounds + 1):
            began = time.perf_counter()
            saver.save(step, meta={"losses": []})
            seconds["stall"].append(time.perf_counter() - began)
            saver.finish()
            seconds["saved"].append(time.perf_counter() - began)
            shutil.rmtree(theirs, ignore_errors=True)
            began = time.perf_counter()
            engine._engine.save_checkpoint(str(theirs), tag="one")
            seconds["deepspeed saved"].append(time.perf_counter() - began)
            began = time.perf_counter()
            found = newest_whole(ours, ranks=ALONE, device=device, report=print)
            assert found is not None
            engine.seat(state_of(found))
            seconds["loaded"].append(time.perf_counter() - began)
            began = time.perf_counter()
            engine._engine.load_checkpoint(str(theirs), tag="one")
            seconds["deepspeed loaded"].append(time.perf_counter() - began)
        after = state_of(newest_whole(ours, ranks=ALONE, device=device, report=print) or sys.exit("nothing was saved"))
        parts = {"weights": after.weights, "exp_avg": after.exp_avg, "exp_avg_sq": after.exp_avg_sq}
        same = all(
            torch.equal(parts[key.partition("/")[0]][key.partition("/")[2]], value) for key, value in before.items()
        )
    dist.destroy_process_group()
    if not same:
        print("what was loaded is not what was saved: nothing is told", file=sys.stderr)
        return 1
    told |= {"load_after": os.getloadavg(), "seconds": seconds}
    table = Table(title=f"{name}, {told['bytes'] / 1e9:.3g} GB, {told['device']}: seconds, min median max")
    for column in ("", "seconds", "of DeepSpeed's"):
        table.add_column(column, justify="left" if not column else "right")
    for row, text in ROWS.items():
        peer = seconds["deepspeed loaded" if "loaded" in row else "deepspeed saved"]
        shares = spread([a / b for a, b in zip(seconds[row], peer, strict=True)])
        table.add_row(text, *(" ".join(f"{x:.2f}" for x in of.values()) for of in (spread(seconds[row]), shares)))
    Console().print(table)
    keep(told, out)
    return 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="60m", help="an option of conf/model (60m)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    return run(given.model, rounds=given.rounds, out=given.out)


if __name__ == "__main__":
    sys.exit(main())
