"""Text from a trained model: what it has learnt, for a reader."""

from __future__ import annotations

from pathlib import Path

from tinyllama import kernels
from tinyllama.config.schema import Model
from tinyllama.config.tasks import Generate
from tinyllama.data.tokenizer import Tokenizer
from tinyllama.engine import checkpoint
from tinyllama.model.generate import generate
from tinyllama.model.llama import Llama


def continue_text(shape: Model, tokenizer: Path, checkpoints: Path, how: Generate, seed: int) -> str:
    """The prompt and what the weights of the newest checkpoint make of it, worked out on the CPU in fp32.

    Raises ValueError where the prompt fills the model's context, Damaged where the weights are not what was written.
    """
    pieces = Tokenizer.load(tokenizer)
    model = Llama(shape, ops=kernels.TORCH)
    model.load_state_dict(checkpoint.latest_weights(checkpoints))
    prompt = pieces.encode(how.prompt[0])
    tokens = generate(
        model,
        prompt,
        max_tokens=how.max_tokens,
        temperature=how.temperature,
        top_k=how.top_k,
        seed=seed,
        eos=pieces.eos,
        n_tokens=pieces.vocab_size,
    )
    return pieces.decode([*prompt, *tokens])
