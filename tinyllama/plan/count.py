"""Parameters by group and FLOPs per token under each named convention, from a shape alone."""

from __future__ import annotations

from dataclasses import dataclass

from tinyllama.config.schema import Model


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """How many parameters each group of a model holds; the groups sum to the total."""

    embedding: int
    attention: int
    mlp: int
    norms: int
    head: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.embedding + self.attention + self.mlp + self.norms + self.head

    @property
    def without_input_embedding(self) -> int:
        """All that a token is multiplied or scaled by."""
        return self.total - self.embedding

    @property
    def without_embeddings(self) -> int:
        """The decoder blocks and the last norm."""
        return self.total - self.embedding - self.head


def count_parameters(model: Model) -> Parameters:
    """The parameters of a shape, by group."""
    kv_width = model.n_kv_heads * model.head_dim
    return Parameters(
        embedding=model.vocab_size * model.d_model,
        attention=model.n_layers * (2 * model.d_model * model.d_model + 2 * model.d_model * kv_width),
        mlp=model.n_layers * 3 * model.d_model * model.d_ff,
        norms=(2 * model.n_layers + 1) * model.d_model,
        head=model.vocab_size * model.d_model,
    )


@dataclass(frozen=True, kw_only=True)
class FlopsPerToken:
    """Training FLOPs for one token, forward and backward, under five conventions.

    A parameter costs 6 (2 forward, 4 backward). Attention's two matrix products cost 12 L d s when the whole square of
    scores counts and half of that when the causal half does. The figures differ by a third on one and the same run, so
    a figure of MFU means nothing until it names its convention.
    """

    six_n_without_embeddings: int
    six_n: int
    causal: int
    palm: int
    six_n_and_full_attention: int

    @property
    def conventions(self) -> dict[str, int]:
        """Each count by what it counts."""
        return {
            "6N, no embeddings, no attention": self.six_n_without_embeddings,
            "6N, all parameters, no attention": self.six_n,
            "6N, no input embedding, causal attention": self.causal,
            "6N, no input embedding, full attention (PaLM)": self.palm,
            "6N, all parameters, full attention": self.six_n_and_full_attention,
        }


def count_flops(model: Model) -> FlopsPerToken:
    """Training FLOPs per token at the model's own context."""
    parameters = count_parameters(model)
    attention = 12 * model.n_layers * model.d_model * model.context
    return FlopsPerToken(
        six_n_without_embeddings=6 * parameters.without_embeddings,
        six_n=6 * parameters.total,
        causal=6 * parameters.without_input_embedding + attention // 2,
        palm=6 * parameters.without_input_embedding + attention,
        six_n_and_full_attention=6 * parameters.total + attention,
    )
