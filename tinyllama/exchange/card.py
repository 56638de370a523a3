"""The model card of an export: what the model is, what it was trained on, what it has learnt, how to cite it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tinyllama.config.load import as_dict, essence
from tinyllama.config.schema import RunConfig
from tinyllama.plan.count import count_parameters

_FRONT = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- llama
- tinyllama
"""

_USE = """## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this one, or its name on the hub
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
ids = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=50)[0]))
```

No remote code is needed. Documents were told apart by `{end}`, which also begins one; nothing else was put before a
text. `SHA256SUMS` has every file's hash.
"""

_CITE = """## Cite

The architecture and the recipe are TinyLlama's:

```bibtex
@misc{zhang2024tinyllama,
  title = {TinyLlama: An Open-Source Small Language Model},
  author = {Peiyuan Zhang and Guangtao Zeng and Tianduo Wang and Wei Lu},
  year = {2024},
  eprint = {2401.02385},
  archivePrefix = {arXiv},
  primaryClass = {cs.CL}
}
```
"""


def card(
    config: RunConfig,
    *,
    plan: Mapping[str, Any],
    result: Mapping[str, Any] | None,
    step: int,
    tokens: int,
    end: str,
) -> str:
    """The card of a run's weights after so many steps and tokens, as Markdown that the Hugging Face hub reads.

    plan and result are what plan.json and result.json hold; the result is that of these very weights, or None. end is
    the token that ends a document. Paths of this machine stay out.
    """
    shape, parameters = config.model, count_parameters(config.model).total
    hubs = sorted({source.hub for source in config.data.sources.values() if source.hub})
    begun = "from scratch" if config.init_from is None else "from other weights"
    lines = [
        _FRONT + "".join(["datasets:\n", *(f"- {hub}\n" for hub in hubs)] if hubs else []) + "---\n",
        f"# {config.name}\n",
        f"A Llama of {parameters:,} parameters, trained {begun} on {tokens:,} tokens, {tokens / parameters:.3g} a "
        f"parameter, in {step:,} of {plan['steps']:,} steps. {shape.n_layers} layers, width {shape.d_model}, "
        f"{shape.n_heads} heads over {shape.n_kv_heads} key-value heads, SwiGLU width {shape.d_ff}, "
        f"context {shape.context}, vocabulary {shape.vocab_size:,}.\n",
        *_data(plan),
        *_learnt(result),
        _USE.format(end=end),
        _CITE,
        "## Configuration\n",
        "All that determines the run, as it was resolved:\n",
        f"```yaml\n{OmegaConf.to_yaml(_resolved(config))}```\n",
    ]
    return "\n".join(lines)


def _data(plan: Mapping[str, Any]) -> Iterator[str]:
    yield "## Data\n"
    yield "| source | share | tokens | epochs |\n|---|---:|---:|---:|"
    for name, source in plan["sources"].items():
        epochs = "not known" if source["epochs"] is None else f"{source['epochs']:.3g}"
        yield f"| {name} | {source['share']:.1%} | {source['tokens']:,} | {epochs} |"
    yield "\nPlanned for the whole run.\n"


def _resolved(config: RunConfig) -> dict[str, Any]:
    """What determines a run, with the names of its options and of files alone."""
    whole = essence(config)
    for section in ("model", "data", "budget"):
        whole[section] = {"name": as_dict(config)[section]["name"], **whole[section]}
    for keys, key in ((whole, "init_from"), (whole["data"]["tokenizer"], "model")):
        if keys.get(key):
            keys[key] = Path(keys[key]).name
    return whole


def _learnt(result: Mapping[str, Any] | None) -> Iterator[str]:
    yield "## Results\n"
    if result is None:
        yield "An intermediate checkpoint: not measured on all held-out text.\n"
        return
    yield "| held-out text | loss (nats a token) | bits per byte | `gzip -9` |\n|---|---:|---:|---:|"
    for name, source in result["held_out"].items():
        loss, bits, gzip = (source[key] for key in ("loss", "bits_per_byte", "gzip_bits_per_byte"))
        yield f"| {name} | {loss:.4f} | {bits:.4f} | {gzip:.4f} |"
    yield ""
    if tasks := result.get("tasks"):
        yield "| task (lm-evaluation-harness) | metric | score | ± | questions | shots |\n|---|---|---:|---:|---:|---:|"
        for task, found in tasks.items():
            asked = " | ".join(f"{found[key]:,.0f}" if key in found else "" for key in ("questions", "shots"))
            for metric, score in found.items():
                if score is not None and metric not in ("questions", "shots") and not metric.endswith("_stderr"):
                    error = found.get(f"{metric}_stderr")
                    yield f"| {task} | {metric} | {score:.4f} | {'' if error is None else f'{error:.4f}'} | {asked} |"
        yield ""
