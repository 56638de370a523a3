"""The learning rate and the batch that suit a run's compute, where its configuration leaves them to a rule.

Both rules are those of Bi et al. 2024 (arXiv 2401.02954), whose C counts what attention takes in place of embeddings.
"""

from __future__ import annotations

import math
from fractions import Fraction

from tinyllama.config.schema import RunConfig
from tinyllama.plan.count import count_parameters
from tinyllama.plan.horizon import CHINCHILLA_TOKENS_PER_PARAM
from tinyllama.plan.laws import Range

RULES_RANGE = Range(least=1e17, most=2e19)
"""The compute that both rules were fitted on."""


def rules_compute(config: RunConfig, *, tokens: Fraction) -> float:
    """The C = 6 N D that the rules are asked at, in FLOPs; tokens are the run's own.

    With wsd D is 20 N whatever the budget, so that runs which differ in their budget alone can share a trunk.
    """
    parameters = count_parameters(config.model).total
    length = CHINCHILLA_TOKENS_PER_PARAM * parameters if config.schedule.name == "wsd" else float(tokens)
    return 6 * parameters * length


def batch_tokens(config: RunConfig, *, compute: float) -> int:
    """train.batch_tokens; where that is auto, 0.292 C^0.3271 in a power of two of sequences, four at least."""
    if config.train.batch_tokens != "auto":
        return config.train.batch_tokens
    sequences = 0.292 * compute**0.3271 / config.model.context
    return config.model.context << max(2, round(math.log2(sequences)))


def peak_rate(config: RunConfig, *, compute: float) -> float:
    """optimizer.lr; where that is auto, 0.3118 C^-0.125."""
    return 0.3118 * compute**-0.125 if config.optimizer.lr == "auto" else config.optimizer.lr
