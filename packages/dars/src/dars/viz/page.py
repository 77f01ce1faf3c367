"""The tree as one HTML file that loads nothing: layout by d3-hierarchy 3.1.3 (assets/, with its licence)."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

from ..candidates import Candidate
from ..patches import changes
from ..reviewer.base import Review, ranking
from ..tree import Node, Tree
from .common import file_of, patch_size, totals
from .details import thinking

LONE = re.compile("[\ud800-\udfff]")  # bytes that were no UTF-8: no browser can show them


def html(tree: Tree, candidates: Sequence[Candidate] = (), review: Review | None = None, title: str = "dars") -> str:
    """A page that shows the tree, its nodes one at a time, the candidates and their ranking.

    Texts of the repository and the model are data in it: they become text nodes, and only when they are looked at. Its
    policy allows the scripts and styles that are in it and nothing else.

    Parameters
    ----------
    candidates : of this tree.
    review : scores in the order of the candidates; the first of its ranking is the best. Without one the best is the
        candidate that stands alone, if it does.

    Raises
    ------
    ValueError
        A review of another number of candidates, or a candidate from no node of this tree.
    """
    if review is not None and len(review.scores) != len(candidates):
        raise ValueError(f"the review has {len(review.scores)} scores for {len(candidates)} candidates")
    for candidate in candidates:
        if candidate.node_id not in tree.nodes:
            raise ValueError(f"a candidate comes from node {candidate.node_id}, which is not in the tree")
    style, script, library = (_asset(name) for name in ("viewer.css", "viewer.js", "d3-hierarchy.min.js"))
    policy = "; ".join(
        [
            "default-src 'none'", f"script-src {_hash(library)} {_hash(script)}", f"style-src {_hash(style)}",
            "base-uri 'none'", "form-action 'none'",
        ]
    )  # fmt: skip
    parts = {
        "csp": policy, "title": escape(title), "style": style, "licence": _asset("d3-hierarchy.LICENSE"),
        "data": _embedded(_data(tree, candidates, review, title)), "library": library, "script": script,
    }  # fmt: skip
    return re.sub(r"@@(\w+)@@", lambda found: parts[found[1]], _asset("viewer.html"))


def _data(tree: Tree, candidates: Sequence[Candidate], review: Review | None, title: str) -> dict[str, Any]:
    order = ranking(review.scores, candidates) if review is not None else list(range(len(candidates)))
    best = candidates[order[0]].node_id if order and (review is not None or len(order) == 1) else None
    sums = totals(tree)
    return {
        "title": title,
        "issue": str(tree.meta.get("issue", "")),
        "policy": tree.meta.get("policy"),
        "totals": {**sums._asdict(), "usage": sums.usage._asdict()},
        "nodes": [_node(node) for node in sorted(tree.nodes.values(), key=lambda node: node.id)],
        "candidates": [
            {
                "node": candidate.node_id, "patch": candidate.patch, "multiplicity": candidate.multiplicity,
                "auto": candidate.auto_submitted, "scores": dict(candidate.scores), "dropped": candidate.dropped,
                "size": patch_size(candidate.patch), "files": [change.path for change in changes(candidate.patch)],
                "score": None if review is None else review.scores[i], "rank": order.index(i) if review else None,
            }
            for i, candidate in enumerate(candidates)
        ],
        "review": None if review is None else {"evidence": dict(review.evidence)},
        "best": best,
    }  # fmt: skip


def _node(node: Node) -> dict[str, Any]:
    return {
        "id": node.id, "parent": node.parent, "kind": node.kind, "tool": node.tool, "args": node.args,
        "file": file_of(node), "thought": node.thought, "thinking": thinking(node), "observation": node.observation,
        "depth": node.depth, "exit": node.exit, "flags": node.flags, "patch": node.patch,
        "size": patch_size(node.patch) if node.patch else None, "expansion": node.expansion, "history": node.history,
        "rejected": node.rejected, "remaining": node.remaining, "usage": node.usage._asdict(), "cost": node.cost_usd,
        "wall": node.wall_s, "snapshot": node.snapshot, "hash": node.state_hash,
    }  # fmt: skip


def _embedded(value: Any) -> str:
    """JSON that cannot end the element it stands in, begin a comment, or look like an address."""
    text = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    text = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026").replace("://", ":\\/\\/")
    return LONE.sub("\ufffd", text)


def _finite(value: Any) -> Any:
    """The same with None for what JSON has no number for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath("assets", name).read_text(encoding="utf-8")
