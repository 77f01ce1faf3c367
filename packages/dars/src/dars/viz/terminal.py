"""A tree as plain text: a line for every straight run of actions, indented below the decision it follows from."""

from __future__ import annotations

from collections import Counter
from itertools import groupby

from ..tree import Node, Tree
from .common import ending, is_decision, money, totals


def text(tree: Tree, width: int = 100) -> str:
    """The tree on a terminal.

    Parameters
    ----------
    width : characters a line; what is longer is cut and ends in "…".

    Examples
    --------
    >>> from dars import ExpansionPolicy
    >>> from dars.search import simulate_skeleton
    >>> print(text(simulate_skeleton("oooo(s|s)", ExpansionPolicy.paper()).tree, 60))
    6 steps, 2 leaves (submit 2), 1 expansion, $0.00
    ── #1–4 other ×4 ◆
       ├─ #5 submit ■ submit
       └─ #6 submit ■ submit
    """
    if width < 20:
        raise ValueError(f"width is {width}; it has to be at least 20")
    lines = [_header(tree)]
    stack = [(child, "", i == len(tree.root.children) - 1) for i, child in enumerate(tree.root.children)][::-1]
    alone = len(stack) == 1
    while stack:
        start, indent, last = stack.pop()
        run = [tree.nodes[start]]
        while len(run[-1].children) == 1 and not is_decision(run[-1]):
            run.append(tree.nodes[run[-1].children[0]])
        top = alone and not indent
        branch = "── " if top else "└─ " if last else "├─ "
        lines.append(indent + branch + _run(run))
        below = indent + ("   " if last or top else "│  ")
        children = run[-1].children
        stack += [(child, below, i == len(children) - 1) for i, child in enumerate(children)][::-1]
    return "\n".join(line if len(line) <= width else line[: width - 1] + "…" for line in lines)


def _header(tree: Tree) -> str:
    sums = totals(tree)
    exits = Counter(leaf.exit or "unfinished" for leaf in tree.leaves() if leaf.id)
    how = ", ".join(f"{name} {count}" for name, count in sorted(exits.items(), key=lambda item: (-item[1], item[0])))
    parts = [
        _count(sums.steps, "step"), _count(sums.leaves, "leaf", "leaves") + (f" ({how})" if how else ""),
        _count(sums.expansions, "expansion"), money(sums.cost_usd),
    ]  # fmt: skip
    if any(sums.usage):
        parts.append(f"{sums.usage.cache_efficiency:.0%} of the input from the cache")
    return ", ".join(parts)


def _run(run: list[Node]) -> str:
    ids = f"#{run[0].id}" if len(run) == 1 else f"#{run[0].id}–{run[-1].id}"
    counted = ((kind or "other", len(list(group))) for kind, group in groupby(run, key=lambda node: node.kind))
    kinds = ", ".join(kind if count == 1 else f"{kind} ×{count}" for kind, count in counted)
    line = f"{ids} {kinds}"
    if is_decision(run[-1]):
        line += " ◆" + (" no other action found" if "exhausted" in run[-1].flags else "")
    return line if run[-1].children else f"{line} ■ {ending(run[-1])}"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
