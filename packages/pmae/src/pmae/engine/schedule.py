"""Learning rate over a run: warm-up, then half a cosine (Loshchilov and Hutter 2017), as MAE trains.

A run is measured by its progress in [0, 1]. It is the share of the steps that are done or, if that is larger, the share
of the wall clock that is used up: a run that is too slow for its wall clock goes through the whole schedule in fewer
steps. It is never cut off in the middle of it.
"""

from __future__ import annotations

import math

WARMUPS = ("linear", "exp10")
WARMUP_EPOCHS = 40.0  # of 400 epochs or more; of fewer, a tenth
REFERENCE = 1.5e-4  # learning rate of a batch of 256


def scaled_lr(batch_size: int, reference: float = REFERENCE) -> float:
    """The linear scaling rule: ``reference`` is for 256 images a step."""
    return reference * batch_size / 256


def default_warmup(epochs: float) -> float:
    """40 epochs, or a tenth of the run if that is less."""
    return min(WARMUP_EPOCHS, epochs / 10)


def progress_of(step: int, steps: int, seconds: float = 0.0, wall_clock: float | None = None) -> float:
    """How much of a run of ``steps`` steps is over, in [0, 1]; 1 ends it."""
    used = 0.0 if wall_clock is None else seconds / wall_clock
    return min(1.0, max(step / steps, used))


def lr_factor(progress: float, epochs: float, warmup_epochs: float, warmup: str = "linear") -> float:
    """Factor of the peak learning rate at a point of the run.

    progress : in [0, 1]
    warmup : "linear", or "exp10", 10^(epoch - warmup_epochs) with whole epochs, as in the released code of PMAE: it
        stays near 0 for nearly all of the warm-up.
    """
    epoch = progress * epochs
    if epoch < warmup_epochs:
        if warmup == "exp10":
            return 10.0 ** (math.floor(epoch + 1e-9) - warmup_epochs)  # 29/800 · 800 is less than 29
        return epoch / warmup_epochs
    left = epochs - warmup_epochs
    return 0.5 * (1 + math.cos(math.pi * (epoch - warmup_epochs) / left)) if left > 0 else 1.0
