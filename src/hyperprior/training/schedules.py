"""Learning rates over a run, as factors on the one that was configured. Steps count from 0."""

import math


def _warm_up(step: int, warmup_steps: int) -> float:
    return min(1.0, (step + 1) / (warmup_steps + 1))


def constant(step: int, max_steps: int, warmup_steps: int = 0) -> float:
    """Linear warm-up over `warmup_steps` steps, then 1: the paper's choice (section 4.1), without the warm-up."""
    return _warm_up(step, warmup_steps)


def cosine(step: int, max_steps: int, warmup_steps: int = 0, final: float = 0.01) -> float:
    """Linear warm-up, then half a cosine from 1 down to `final` at the last of `max_steps` steps."""
    if step < warmup_steps:
        return _warm_up(step, warmup_steps)
    progress = min(1.0, (step - warmup_steps) / max(1, max_steps - 1 - warmup_steps))
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2
