"""A trained model, wherever it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tinyllama import kernels
from tinyllama.config.schema import Model
from tinyllama.model.huggingface import DTYPES
from tinyllama.model.llama import Llama


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The weights of a run, an import or an export, and how text becomes its tokens."""

    folder: Path
    shape: Model
    weights: Mapping[str, Tensor]
    """By parameter name, each read when it is asked for."""
    tokenizer: Path
    """The SentencePiece model."""
    start: int
    """The token that a document begins with: here the end of the one before it, in other Llamas one of its own."""
    adds_start: bool
    """Whether every text is begun with it. A model that was trained here has seen it between documents alone."""

    def build(self, *, device: str = "cpu", precision: str = "fp32") -> Llama:
        """The model itself, on PyTorch's ops, ready to be asked. Raises Damaged where its weights cannot be read."""
        with torch.device("meta"):
            model = Llama(self.shape, ops=kernels.TORCH)
        weights = {
            name: self.weights[name].to(device=device, dtype=DTYPES[precision]) for name, _ in model.named_parameters()
        }
        model.load_state_dict(weights, assign=True)
        return model.eval().requires_grad_(False)
