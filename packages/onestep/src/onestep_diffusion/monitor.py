"""What training says while it runs: metrics by the line, warnings with a remedy, and the reasons to stop."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .errors import DivergedError

Entry = dict[str, Any]

PERFECT_LOSS = 1e-3  # of the classifier, at every level
PERFECT_STEPS = 500
STD_RANGE = (0.2, 5.0)  # of student samples, over sigma_data
STD_WARN_STEPS, STD_STOP_STEPS = 500, 5000
NONFINITE_SHARE = 0.01
FEW_EFFECTIVE = 0.1
COLLAPSE_SHARE = 0.05


class Monitor:
    """Collects the metrics of one run, one entry a call of the compiled step.

    Args:
        steps: of the whole run. batch_size: for images/s. sigma_data: of the samples.
        path: a JSON-lines file that entries are appended to.
        report: is given each entry, with `steps`, `images_per_s` and `eta_s` in it, say for a progress bar.
        stop: raise DivergedError; else, as among runs side by side, warn.
    """

    def __init__(
        self,
        *,
        steps: int,
        batch_size: int,
        sigma_data: float,
        path: Path | None = None,
        report: Callable[[Entry], None] | None = None,
        stop: bool = True,
        done: int = 0,
    ) -> None:
        self.steps, self.batch_size, self.sigma_data = steps, batch_size, sigma_data
        self.path, self.report, self.stop = path, report, stop
        self.history: list[Entry] = _keep_until(path, done) if path else []
        self._begin, self._done, self._last = time.perf_counter(), done, done
        self._since: dict[str, int] = {}  # guard -> step since which its condition has held
        self._told: set[str] = set()

    def add(self, step: int, metrics: Mapping[str, Any]) -> Entry:
        """The metrics of the updates up to `step`: kept, written, reported and judged."""
        metrics = jax.device_get(metrics)
        entry: Entry = {"step": step, **{name: _plain(value) for name, value in metrics.items()}}
        seconds = time.perf_counter() - self._begin
        rate = (step - self._done) / max(seconds, 1e-9)
        entry["images_per_s"] = round(rate * self.batch_size, 1)
        self.history.append(entry)
        self._write(entry)
        if self.report:
            self.report({**entry, "steps": self.steps, "eta_s": (self.steps - step) / max(rate, 1e-9)})
        self._judge(step, metrics)
        self._last = step
        return entry

    def note(self, **values: Any) -> None:
        """Add results of an evaluation to the last entry."""
        self.history[-1].update(values)
        self._write({"step": self.history[-1]["step"], **values})

    def warn_collapse(self, step: int, student_rank: float, data_rank: float) -> None:
        """Warn if student samples vary in far fewer directions than the data."""
        if student_rank < COLLAPSE_SHARE * data_rank:
            self._warn(
                "collapse",
                f"step {step}: student samples vary in {student_rank:.1f} directions, data in {data_rank:.1f}: "
                "collapsed; lower lr, raise aux_updates, or start from a teacher",
            )

    def _judge(self, step: int, metrics: Mapping[str, Any]) -> None:
        losses = [float(metrics[name]) for name in ("loss", "aux_loss") if name in metrics]
        if not np.isfinite(losses).all():
            self._fail(step, "the loss is not finite", "lower lr and ratio_lr, or use precision=f32")
        if float(metrics.get("nonfinite", 0)) > NONFINITE_SHARE:
            share = float(metrics["nonfinite"])
            self._fail(step, f"{share:.1%} of the field is not finite", "lower lr, logit_clip or ratio_lr")
        if "js_bins" in metrics:
            loss = 2 * (math.log(2) - np.nanmin(np.asarray(metrics["js_bins"], float)))
            if self._held("perfect", step, loss < PERFECT_LOSS) >= PERFECT_STEPS:
                self._warn(
                    "perfect",
                    f"step {step}: the classifier has been perfect at all levels for {PERFECT_STEPS} steps: the "
                    "student left the data; lower lr, raise ratio_lr, or start from a teacher",
                )
        if "std" in metrics:
            share = float(metrics["std"]) / self.sigma_data
            held = self._held("std", step, not STD_RANGE[0] <= share <= STD_RANGE[1])
            if held >= STD_STOP_STEPS:
                self._fail(step, f"student samples have {share:.2g} times the data's deviation", "lower lr")
            if held >= STD_WARN_STEPS:
                self._warn(
                    "std",
                    f"step {step}: student samples have had {share:.2g} times the data's deviation for {held} steps; "
                    "lower lr, or start from a teacher",
                )
        if float(metrics.get("ess", 1)) < FEW_EFFECTIVE:
            self._warn(
                "ess",
                f"step {step}: few samples carry the gradient (effective share {float(metrics['ess']):.2f}); "
                "use weight_norm=batch, a smaller logit_clip or a bounded divergence",
            )

    def _held(self, name: str, step: int, holds: bool) -> int:
        """For how many steps the condition has held."""
        if not holds:
            self._since.pop(name, None)
            return 0
        return step - self._since.setdefault(name, self._last)

    def _warn(self, name: str, text: str) -> None:
        if name not in self._told:
            self._told.add(name)
            warnings.warn(text, stacklevel=2)

    def _fail(self, step: int, what: str, remedy: str) -> None:
        text = f"training diverged before step {step}: {what}; {remedy}"
        if self.stop:
            raise DivergedError(text)
        self._warn(what, text)

    def _write(self, entry: Entry) -> None:
        if self.path:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")


def _keep_until(path: Path, step: int) -> list[Entry]:
    """The entries up to the step that training goes on from; later ones, which will come again, are cut off."""
    if not path.exists() or step == 0:
        path.write_text("")
        return []
    kept: dict[int, Entry] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # a line that a kill cut short
            break
        if entry["step"] <= step:
            kept.setdefault(entry["step"], {}).update(entry)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in kept.values()))
    return list(kept.values())


def _plain(value: Any) -> Any:
    """For JSON: floats, lists of floats; None for what is not finite."""
    array = np.asarray(value, float)
    if array.ndim:
        return [_plain(item) for item in array]
    return float(f"{float(array):.6g}") if np.isfinite(array) else None
