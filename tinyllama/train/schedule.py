"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from tinyllama.config.schema import Schedule
from tinyllama.plan.horizon import decay_start


def learning_rate(step: int, *, steps: int, peak: float, schedule: Schedule) -> float:
    """The rate of step 0 <= step < steps.

    It rises linearly to the peak over the warmup, so that step 0 already learns. From there cosine falls along half a
    cosine (arXiv 1608.03983); wsd holds the peak, whatever the number of steps, until its linear decay begins (arXiv
    2404.06395). Both would reach min_ratio * peak at step `steps`, the first that is not taken.
    """
    if step < schedule.warmup_steps:
        return peak * ((step + 1) / schedule.warmup_steps)  # in this order the last one is the peak to the bit
    start = decay_start(schedule, steps=steps)
    if step < start:
        return peak
    fallen = (step - start) / (steps - start)
    left = 1 - fallen if schedule.name == "wsd" else (1 + math.cos(math.pi * fallen)) / 2
    return peak * (schedule.min_ratio + (1 - schedule.min_ratio) * left)
