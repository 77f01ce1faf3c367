"""Candidates: the cleaned patches at the ends of paths, equal ones taken together (section 3.3 of the paper)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from .patches import clean_patch, deduplicate, normalised
from .tree import Node, Tree


@dataclass(frozen=True)
class Candidate:
    """One answer.

    Attributes
    ----------
    node_id : the leaf that it comes from; of equal ones that with the shortest path.
    patch : what is left of ``raw_patch`` after cleaning.
    multiplicity : leaves that end in this patch.
    auto_submitted : its path ended without a submission.
    scores : what the reviewers gave it, by their name; empty before a review.
    dropped : (path, reason) of the files that cleaning took out.
    """

    node_id: int
    patch: str
    raw_patch: str
    multiplicity: int = 1
    auto_submitted: bool = False
    scores: Mapping[str, float] = field(default_factory=dict)
    dropped: tuple[tuple[str, str], ...] = ()


def harvest(tree: Tree, base_files: Iterable[str], unsubmitted: bool = True) -> list[Candidate]:
    """Distinct non-empty patches of the leaves, in the order of their nodes.

    Parameters
    ----------
    base_files : paths that the repository had.
    unsubmitted : whether paths that ended otherwise than by a submission count.
    """
    base = frozenset(base_files)
    ended: list[tuple[Node, Candidate]] = []
    for leaf in tree.leaves():
        submitted = leaf.exit == "submit"
        if not leaf.patch or not (submitted or (unsubmitted and leaf.exit.startswith("exit_"))):
            continue
        cleaned = clean_patch(leaf.patch, base)
        if cleaned.patch:
            found = Candidate(leaf.id, cleaned.patch, leaf.patch, 1, not submitted, dropped=tuple(cleaned.dropped))
            ended.append((leaf, found))
    classes = deduplicate([(found.patch, leaf.depth) for leaf, found in ended])
    certain = {normalised(found.patch) for _, found in ended if not found.auto_submitted}
    chosen = []
    for place, multiplicity in classes:
        found = ended[place][1]
        auto = normalised(found.patch) not in certain  # nobody submitted an equal one either
        chosen.append(replace(found, multiplicity=multiplicity, auto_submitted=auto))
    return sorted(chosen, key=lambda candidate: candidate.node_id)
