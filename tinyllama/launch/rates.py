"""How fast finished runs were, for the plans of others."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tinyllama.config.load import as_dict, run_folder
from tinyllama.config.schema import Model, RunConfig
from tinyllama.launch.runs import finished
from tinyllama.plan.cost import Measured, OtherModel
from tinyllama.plan.count import count_flops, count_parameters
from tinyllama.tracking.folder import RESULT


class _Reached(NamedTuple):
    tokens_per_s: float
    """On one rank."""
    mfu: float | None
    model: Model
    how: list[Any]


def measured_rate(config: RunConfig) -> Measured | None:
    """What the newest finished run of a model reached that computed as this one will; where there is none, one of
    the model nearest in size."""
    how = _what_sets_the_rate(as_dict(config))
    found = [
        (_unlike(reached.model, config.model), -written, str(folder), reached)
        for written, folder, reached in _finished(config)
        if reached.how == how
    ]
    if not found:
        return None
    (is_other, _), _, folder, reached = min(found, key=lambda one: one[:3])
    model = reached.model
    other = OtherModel(count_parameters(model).total, count_flops(model).causal) if is_other else None
    return Measured(tokens_per_s=reached.tokens_per_s, run=folder, mfu=reached.mfu, other=other)


def _unlike(one: Model, other: Model) -> tuple[bool, float]:
    """Whether they compute otherwise, and how far apart they are in size."""
    sizes = count_parameters(one).total / count_parameters(other).total
    one = replace(one, name=other.name, rope_theta=other.rope_theta, norm_eps=other.norm_eps)
    return one != other, abs(math.log(sizes))


def _finished(config: RunConfig) -> Iterator[tuple[float, Path, _Reached]]:
    """When, where and what; not the run itself where it trains, as its plan is not measured by what came of it."""
    for path in Path(config.runs_dir).glob(f"*/{RESULT}"):
        # what is no result of this version is passed over: it is only asked how fast it was
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError):
            written = path.stat().st_mtime
            itself = config.task == "train" and path.parent == run_folder(config)
            if not itself and (reached := _read(path, written)):
                yield written, path.parent, reached


@cache
def _read(path: Path, written: float) -> _Reached | None:  # noqa: ARG001
    """Once for all points of a grid."""
    result = finished(path.parent)
    if not result or not result["tokens_per_s"]:
        return None
    config, layout = result["config"], result["config"]["parallelism"]
    rate = result["tokens_per_s"] / (layout["nodes"] * layout["gpus"])
    return _Reached(rate, result["mfu"], Model(**config["model"]), _what_sets_the_rate(config))


def _what_sets_the_rate(config: dict[str, Any]) -> list[Any]:
    """All but the model. Ranks of a CPU share it, and so do optimizers that lie there; each GPU is a rank's own, and
    what ranks wait for each other is left out."""
    layout, train = config["parallelism"], config["train"]
    offload = layout.get("offload", "none")
    on_cpu = layout["device"] == "cpu" or offload != "none"
    share = [layout[key] for key in ("nodes", "gpus", "threads")] if on_cpu else []
    how = [layout["device"], layout["recompute"], offload, config["study"].get("per_gpu", 1)]
    how += [train["precision"], train["mask_documents"]]
    kernels = {"compile": False} | config["kernels"]  # runs of earlier versions had no such choice
    return [config["hardware"]["name"], kernels, *how, *share]
