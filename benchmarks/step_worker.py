"""One implementation's training step, in a process of its own and in any Python that has it; `Worker` talks to it.

All are given the same weights, the same batch, and the same loop: weights and gradients in the step's precision, fp32
masters, the norm clipped to 1, PyTorch's fused AdamW. Only `engine` brings its own, DeepSpeed's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's path is its own folder's

LR, BETAS, EPS, DECAY, CLIP = 1e-3, (0.9, 0.95), 1e-8, 0.1, 1.0
PACKAGES = ("torch", "triton", "transformers", "litgpt", "liger-kernel", "deepspeed")


ENVIRONMENT = {
    # as the launcher sets it for ranks on a CPU, here for all alike; idle threads are not to spin
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "1000000000",
    "OMP_WAIT_POLICY": "passive",
    # what a launcher tells the one rank that there is
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}


class WorkerError(Exception):
    """What an implementation said instead of an answer."""


class Worker:
    """A process that takes steps when it is asked to."""

    def __init__(self, name: str, case: Path, *, python: str, log: Path) -> None:
        """Starts it, of the case written in a folder. What it says itself goes to a file."""
        with log.open("w") as file:
            self._process = subprocess.Popen(
                [python, __file__, name, str(case)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env=os.environ | ENVIRONMENT,
            )

    def answer(self) -> dict[str, Any]:
        """The first is of how it began, each further one of what was asked. Raises WorkerError for what went wrong."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        told: dict[str, Any] = json.loads(line) if line else {"error": "its process ended"}
        if "error" in told:
            raise WorkerError(told["error"])
        return told

    def steps(self, count: int) -> dict[str, Any]:
        """`seconds` and `losses` of so many more steps."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()


Step = Callable[[], float]
"""Takes an optimizer step and returns its loss."""


def plain(model: Any, loss_of: Callable[[Any], Any], case: dict[str, Any]) -> Step:
    """The loop that all share: loss_of takes tokens [b, t + 1]."""
    import torch

    parameters = list(model.parameters())
    wide = case["precision"] == "fp32"
    masters = parameters if wide else [parameter.detach().float() for parameter in parameters]
    groups = [
        {"params": [master for master in masters if master.ndim > 1], "weight_decay": DECAY},
        {"params": [master for master in masters if master.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS, fused=True)
    tokens = case["tokens"]

    def step() -> float:
        loss = loss_of(tokens)
        loss.backward()
        if not wide:
            for master, parameter in zip(masters, parameters, strict=True):
                master.grad = parameter.grad.float()
        torch.nn.utils.clip_grad_norm_(masters, CLIP)
        optimizer.step()
        for tensor in (*parameters, *masters):
            tensor.grad = None
        if not wide:
            with torch.no_grad():
                torch._foreach_copy_(parameters, masters)
        return float(loss.detach())

    return step


def ours(case: dict[str, Any], *, compiled: bool = False, engine: bool = False) -> Step:
    """This project's model, in the plain loop or in its engine."""
    import torch

    from tinyllama import kernels
    from tinyllama.config.schema import Model, Optimizer, Parallelism
    from tinyllama.model.llama import Llama

    device, precision = case["device"], case["precision"]
    ops = kernels.select("auto", attention="sdpa", device=device, precision=precision)
    model = Llama(Model(**case["shape"]), ops=ops, compiled=compiled)
    if not engine:
        model.load_state_dict(case["weights"])
        model.to(device, _dtype(precision))
        return plain(model, lambda tokens: model(tokens[:, :-1], tokens[:, 1:])[0], case)
    import torch.distributed as dist

    from tinyllama.engine.distributed import Ranks
    from tinyllama.engine.zero import Engine, TrainState

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("nccl" if device == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    built = Engine(
        model,
        state=TrainState.fresh(case["weights"]),
        parallelism=Parallelism(**case["layout"]),
        optimizer=Optimizer(name="adamw", lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY, clip=CLIP),
        precision=precision,
        accumulation=1,
        ranks=Ranks(rank=0, local_rank=0, world_size=1),
        device=torch.device(device, 0) if device == "cuda" else torch.device(device),
    )
    tokens = case["tokens"][None]
    return lambda: built.step(tokens, lr=LR).loss


def transformers(case: dict[str, Any], *, compiled: bool = False, liger: bool = False) -> Step:
    """Hugging Face's Llama."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tinyllama.config.schema import Model
    from tinyllama.model.huggingface import parts

    model = LlamaForCausalLM(LlamaConfig.from_dict(case["huggingface"]))
    if liger:
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama(model=model, fused_linear_cross_entropy=True, cross_entropy=False)
    weights = {name: case["weights"][part.ours][part.rows] for name, part in parts(Model(**case["shape"])).items()}
    model.load_state_dict(weights)
    model.to(case["device"], _dtype(case["precision"])).train()
    run = torch.compile(model) if compiled else model

    def loss_of(tokens: Any) -> Any:
        if liger:  # which needs the labels, shifted beforehand
            return run(input_ids=tokens[:, :-1], shift_labels=tokens[:, 1:], labels=tokens[:, 1:], use_cache=False).loss
        return _loss(run(input_ids=tokens[:, :-1], use_cache=False).logits, tokens)

    return plain(model, loss_of, case)


def litgpt(case: dict[str, Any], *, compiled: bool = False) -> Step:
    """litgpt's GPT."""
    import torch
    from litgpt import GPT, Config

    shape, given = case["shape"], case["weights"]
    config = Config(
        name=shape["name"], block_size=shape["context"], vocab_size=shape["vocab_size"],
        padded_vocab_size=shape["vocab_size"], n_layer=shape["n_layers"], n_head=shape["n_heads"],
        n_query_groups=shape["n_kv_heads"], n_embd=shape["d_model"], intermediate_size=shape["d_ff"],
        norm_class_name="RMSNorm", norm_eps=shape["norm_eps"], mlp_class_name="LLaMAMLP", rotary_percentage=1.0,
        rope_base=int(shape["rope_theta"]), parallel_residual=False, bias=False,
    )  # fmt: skip
    model = GPT(config)
    weights = {
        "transformer.wte.weight": given["embedding.weight"],
        "transformer.ln_f.weight": given["norm.weight"],
        "lm_head.weight": given["head.weight"],
    }
    for i in range(shape["n_layers"]):
        ours_, theirs = f"blocks.{i}", f"transformer.h.{i}"
        gate, up = given[f"{ours_}.mlp.gate_up.weight"].chunk(2)
        weights |= {
            f"{theirs}.attn.qkv.weight": given[f"{ours_}.attention.qkv.weight"],
            f"{theirs}.attn.proj.weight": given[f"{ours_}.attention.out.weight"],
            f"{theirs}.mlp.fc_1.weight": gate,
            f"{theirs}.mlp.fc_2.weight": up,
            f"{theirs}.mlp.proj.weight": given[f"{ours_}.mlp.down.weight"],
            f"{theirs}.norm_1.weight": given[f"{ours_}.attention_norm.weight"],
            f"{theirs}.norm_2.weight": given[f"{ours_}.mlp_norm.weight"],
        }
    model.load_state_dict(weights)
    model.to(case["device"], _dtype(case["precision"]))
    run = torch.compile(model) if compiled else model

    return plain(model, lambda tokens: _loss(run(tokens[:, :-1]), tokens), case)


BUILT: dict[str, Callable[[dict[str, Any]], Step]] = {
    "tinyllama": ours,
    "tinyllama compiled": lambda case: ours(case, compiled=True),
    "engine": lambda case: ours(case, engine=True),
    "engine compiled": lambda case: ours(case, engine=True, compiled=True),
    "transformers": transformers,
    "transformers compiled": lambda case: transformers(case, compiled=True),
    "transformers liger": lambda case: transformers(case, liger=True),
    "litgpt compiled": lambda case: litgpt(case, compiled=True),
}


def _loss(logits: Any, tokens: Any) -> Any:
    """In fp32, as transformers' own."""
    import torch

    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


def _dtype(precision: str) -> Any:
    import torch

    return torch.bfloat16 if precision == "bf16" else torch.float32


def versions() -> dict[str, str]:
    """Of what is installed here."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def case_of(folder: Path) -> dict[str, Any]:
    """A case as it was written into a folder."""
    import torch

    case: dict[str, Any] = json.loads((folder / "case.json").read_text())
    case |= torch.load(folder / "given.pt", mmap=True)
    return case | {"tokens": case["tokens"].to(case["device"])}


def main(name: str, folder: Path, tell: Callable[[dict[str, Any]], None], asked: Iterable[str]) -> None:
    """Answers each line of `asked`."""
    import torch

    case = case_of(folder)
    device = case["device"]
    torch.set_num_threads(case["threads"])
    step = BUILT[name](case)
    tell({"versions": versions()})
    for line in asked:
        if device == "cuda":
            step()  # its memory is allocated anew
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        losses = [step() for _ in range(int(line))]  # a loss is waited for, as a trainer that logs does
        seconds = time.perf_counter() - began
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
        if device == "cuda":
            torch.cuda.empty_cache()  # the others need it
        tell({"seconds": seconds, "losses": losses, "peak_bytes": peak})


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print
    try:
        main(sys.argv[1], Path(sys.argv[2]), lambda told: print(json.dumps(told), file=answers), sys.stdin)
    except ImportError as error_:
        print(json.dumps({"error": f"not installed: {error_.name}"}), file=answers)
    except Exception as error_:
        reason = f"{type(error_).__name__}: {(str(error_).strip() or '-').splitlines()[0][:200]}"
        print(json.dumps({"error": f"failed: {reason}"}), file=answers)
        raise
