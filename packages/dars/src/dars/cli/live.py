"""The tree as it grows: a view that is redrawn on a terminal, one line a minute in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..config import DarsConfig
from ..runs import restored
from ..search.state import SearchState
from ..tree import LETTERS

EVERY_S = 60.0
SYMBOLS = {**LETTERS, "insert": "i"}


@contextmanager
def watch(config: DarsConfig, folder: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """What takes the events of a search, each of which ``folder`` holds by then, and shows where it stands."""
    state: SearchState | None = None
    began = last = time.monotonic()

    def follow(event: dict[str, Any]) -> SearchState:
        nonlocal state
        if state is None:
            state = restored(folder, config.order)  # what was there before, and this event
        else:
            state.apply(event)
        return state

    def log(event: dict[str, Any]) -> None:
        nonlocal last
        at = follow(event)
        if time.monotonic() - last >= EVERY_S:
            last = time.monotonic()
            print(summary(at, config, last - began), file=sys.stderr)

    if not sys.stderr.isatty():
        yield log
        return
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(stderr=True), transient=True, refresh_per_second=4) as view:

        def draw(event: dict[str, Any]) -> None:
            at = follow(event)
            lines = paths(at)[-max(4, view.console.height - 4) :]
            line = summary(at, config, time.monotonic() - began)
            view.update(Group(*map(Text, lines), Text(line, style="bold")))

        yield draw


def summary(state: SearchState, config: DarsConfig, seconds: float) -> str:
    """One line: how far, how much, at what rate, and how long the budget lasts at most."""
    budget, taken = config.budget, state.steps - state.before[0]
    rate = taken / seconds if seconds > 0 else 0.0
    cost = "?" if state.cost_usd is None else f"{state.cost_usd:.3f}"
    left = f", at most {(budget.steps - taken) / rate / 60:.0f} min more" if rate else ""
    return (
        f"{taken} of {budget.steps} steps, {state.calls} calls, {cost} US$, {len(state.tree.leaves())} paths, "
        f"{len(state.pending)} alternatives owed, {60 * rate:.1f} steps a minute{left}"
    )


def paths(state: SearchState) -> list[str]:
    """One line for every path below its last branching: depth, kinds as letters, and how it ended."""
    lines = []
    for leaf in state.tree.leaves():
        own = []
        for node in reversed(state.tree.path(leaf.id)[1:]):
            own.append(SYMBOLS.get(node.kind, "·"))
            if node.child_index:
                break
        end = leaf.exit or ("…" if leaf.id in state.open else "")
        lines.append(f"{' ' * (leaf.depth - len(own))}{''.join(reversed(own))} {end}  #{leaf.id}")
    return lines
