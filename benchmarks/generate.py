"""Continuing texts beside transformers: python benchmarks/generate.py [--models NAME,...] [--threads N,...].

The same weights in fp32 on this machine's CPU, the same prompts, greedy, in turns. Right first: every row's tokens are
those of transformers, otherwise nothing is timed and the run exits with 1.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's path is its own folder's

from benchmarks.data_race import keep, machine, spread, times
from tinyllama import kernels
from tinyllama.config.schema import Model
from tinyllama.config.tasks import Generate
from tinyllama.model.generate import generate
from tinyllama.model.huggingface import config_of, parts
from tinyllama.model.init import initial_weights
from tinyllama.model.llama import Llama

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("nano", "14m", "60m")
BATCHES = (1, 8)
PROMPT = 32


def model_of(name: str) -> Llama:
    """A model of conf/ at weights that tell one token from another: an untrained model's logits are nearly equal."""
    shape = Model(**yaml.safe_load((ROOT / "conf/model" / f"{name}.yaml").read_text()) | {"vocab_size": 32_000})
    model = Llama(shape, ops=kernels.TORCH)
    weights = initial_weights(model, seed=1)
    model.load_state_dict({key: weight if "norm" in key else 3 * weight for key, weight in weights.items()})
    return model.eval().requires_grad_(False)


def peer_of(model: Llama) -> LlamaForCausalLM:
    """The same model as transformers has it: it keeps queries, keys and values apart, and gate and up."""
    config = LlamaConfig.from_dict(config_of(model.shape, start=2, end=2, dtype="fp32"))
    peer, weights = LlamaForCausalLM(config).float().eval(), model.state_dict()
    peer.load_state_dict({name: weights[part.ours][part.rows] for name, part in parts(model.shape).items()})
    return peer


def ours(model: Llama, prompts: Sequence[Sequence[int]], *, tokens: int) -> list[list[int]]:
    """The tokens that follow each prompt; none of them ends it."""
    how = Generate(run=None, prompt=(), samples=1, max_tokens=tokens, temperature=0.0, top_k=None, top_p=None, stop=())
    rows: list[list[int]] = [[] for _ in prompts]
    for row, token in generate(model, prompts, how, seed=0, eos=-1, n_tokens=model.shape.vocab_size):
        if token is not None:
            rows[row].append(token)
    return rows


def theirs(peer: LlamaForCausalLM, prompts: Sequence[Sequence[int]], *, tokens: int) -> list[list[int]]:
    """The same by transformers' generate."""
    how = GenerationConfig(
        do_sample=False, max_new_tokens=tokens, use_cache=True, eos_token_id=None, bos_token_id=None, pad_token_id=0
    )
    prompts_bt = torch.tensor(prompts)
    made = peer.generate(prompts_bt, attention_mask=torch.ones_like(prompts_bt), generation_config=how)
    rows: list[list[int]] = made[:, prompts_bt.shape[1] :].tolist()
    return rows


def raced(name: str, batch: int, *, rounds: int, tokens: int) -> dict[str, Any] | None:
    """Seconds of both, round by round; None where their tokens differ."""
    model = model_of(name)
    peer = peer_of(model)
    prompts = torch.randint(3, 32_000, (batch, PROMPT), generator=torch.Generator().manual_seed(batch)).tolist()
    if ours(model, prompts, tokens=tokens) != theirs(peer, prompts, tokens=tokens):  # which warms both
        return None
    seconds: dict[str, list[float]] = {"ours": [], "transformers": []}
    runs = {"ours": partial(ours, model), "transformers": partial(theirs, peer)}
    for _ in range(rounds):
        for who, one in runs.items():
            began = time.perf_counter()
            one(prompts, tokens=tokens)
            seconds[who].append(time.perf_counter() - began)
    ratio = times(seconds["ours"], seconds["transformers"])
    return {"model": name, "batch": batch, "prompt": PROMPT, "tokens": tokens, "ratio": ratio, "seconds": seconds}


def run(models: Sequence[str], *, threads: Sequence[int], rounds: int, tokens: int, out: Path | None) -> int:
    """Measure, print a table, and write a file where one is asked for, anew after each case."""
    told: dict[str, Any] = {"benchmark": "generate", "date": datetime.now(UTC).isoformat(timespec="seconds")}
    told |= machine() | {"versions": {package: version(package) for package in ("torch", "transformers")}}
    told |= {"dtype": "fp32", "rounds": rounds, "cases": []}
    table = Table(title=f"{told['device']}: tokens a second, and how many times transformers'")
    for column in ("model", "threads", "batch", "ours", "transformers", "ratio: min", "median", "max"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for count, name, batch in itertools.product(threads, models, BATCHES):
        torch.set_num_threads(count)
        case = raced(name, batch, rounds=rounds, tokens=tokens)
        if case is None:
            print(f"{name}, batch {batch}: other tokens than transformers': nothing is told", file=sys.stderr)
            return 1
        told["cases"].append({"threads": count, **case})
        told["load_after"] = os.getloadavg()
        rates = [batch * tokens / spread(case["seconds"][who])["median"] for who in ("ours", "transformers")]
        figures = [f"{rate:,.0f}" for rate in rates] + [f"{x:.2f}" for x in case["ratio"].values()]
        table.add_row(name, str(count), str(batch), *figures)
        keep(told, out)
    Console().print(table)
    return 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="options of conf/model (nano,14m,60m)")
    parser.add_argument("--threads", default="1,2", help="of PyTorch, one number after the other (1,2)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=100, help="new tokens of each row (100)")
    parser.add_argument("--out", type=Path, help="the file to write")
    given = parser.parse_args()
    threads = [int(count) for count in given.threads.split(",")]
    return run(given.models.split(","), threads=threads, rounds=given.rounds, tokens=given.tokens, out=given.out)


if __name__ == "__main__":
    sys.exit(main())
