"""Rules of the tasks that work on a trained model."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from tinyllama.config.data_rules import Broken
from tinyllama.config.tasks import Evaluate, Export, Generate, HuggingFace


def tasks_are_told_enough(task: str, generate: Generate, evaluate: Evaluate, export: Export, hf: HuggingFace) -> Broken:
    """What works on a model is told which, what writes a folder where, and llama.cpp's format has its package."""
    needed = {
        "generate": {"generate.run": generate.run},
        "evaluate": {"evaluate.run": evaluate.run},
        "export": {"export.run": export.run, "export.out": export.out},
        "import": {"hf.source": hf.source, "hf.out": hf.out},
    }
    says = {
        "generate.run": "whose weights to use, as in generate.run=runs/NAME",
        "evaluate.run": "whom to ask, as in evaluate.run=runs/NAME",
        "export.run": "whose weights to write, as in export.run=runs/NAME",
        "export.out": "which folder to write, as in export.out=models/NAME",
        "hf.source": "which folder to read, as in hf.source=models/TinyLlama-1.1B",
        "hf.out": "which run folder to write, as in hf.out=runs/NAME",
    }
    for key, value in needed.get(task, {}).items():
        if value is None:
            yield key, f"is null: say {says[key]}"
    if task == "export" and export.format == "huggingface" and (export.out or "").endswith(".gguf"):
        yield "export.out", f"{export.out!r} is named as a file for llama.cpp: set export.format=gguf too, or rename it"
    if task == "export" and export.format == "gguf" and importlib.util.find_spec("gguf") is None:
        yield "export.format", "gguf needs the gguf package, which is not installed: pip install 'tinyllama[gguf]'"


def generation_has_something_to_say(generate: Generate) -> Broken:
    """There is a prompt, an empty one begins a document; an empty stop string would end every text at once."""
    if not generate.prompt:
        yield "generate.prompt", "holds no text: give one, or several, or '' to begin a document"
    if "" in generate.stop:
        yield "generate.stop", "'' is in every text: leave it out"


def tasks_can_be_asked(task: str, evaluate: Evaluate) -> Broken:
    """The harness is there where it is to ask, and it is told what."""
    if evaluate.every is not None and not evaluate.tasks:
        yield (
            "evaluate.every",
            f"{evaluate.every} asks nothing: set evaluate.tasks, or evaluate=commonsense; "
            "train.eval_every measures held-out text",
        )
    if task == "evaluate" and not evaluate.tasks and not evaluate.held_out:
        yield "evaluate.held_out", "is false and there are no evaluate.tasks: nothing is left to measure"
    if evaluate.tasks and task in ("train", "evaluate") and importlib.util.find_spec("lm_eval") is None:
        yield (
            "evaluate.tasks",
            "need lm-evaluation-harness, which is not installed: pip install 'tinyllama[eval]', or evaluate.tasks=[]",
        )


TASK_RULES: tuple[Callable[..., Broken], ...] = (
    tasks_are_told_enough,
    generation_has_something_to_say,
    tasks_can_be_asked,
)
