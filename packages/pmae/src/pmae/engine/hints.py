"""What a run says when it goes wrong quietly."""

from __future__ import annotations

import logging
from typing import Any

from torch import Tensor

log = logging.getLogger("pmae")

LOUD = 3.0  # times the variance of the images themselves that augmented ones may have
STUCK = 0.95  # of the fvu after a tenth of the run, after half of it


def warn_of_views(model: Any, images: Tensor, views: Tensor) -> None:
    """Crops may put something bright where no image had anything: many deviations, which then are all of the loss."""
    plain, cropped = (float(model.standardizer.standardize(x).square().mean()) for x in (images, views))
    if cropped > LOUD * plain:
        log.warning(
            "augmented images vary %.3g times as much as the images themselves, once standardised: some pixels are "
            "nearly constant without augmentation; use augment=flip, a larger std_floor or standardize=channel",
            cropped / plain,
        )


def warn_if_stuck(history: list[dict[str, Any]]) -> None:
    """The task has no linear shortcut: a run on its plateau looks like one that learns slowly, but for this."""
    half = next((r for r in history if r["progress"] >= 0.5), None)
    early = next((r for r in history if r["progress"] >= 0.1), None)
    if half is None or half is not history[-1] or early is None or early is half or None in (early["fvu"], half["fvu"]):
        return
    if half["fvu"] > STUCK * early["fvu"]:
        log.warning(
            "half of the run took the unexplained share of the variance from %.3f to %.3f only: it seems stuck on its "
            "plateau, more masks per batch or more epochs may help", early["fvu"], half["fvu"],
        )  # fmt: skip
